"""What an application's own handlers cost: beside the stock echo, and when one of them waits."""

import json, subprocess

import servers
from documents import median, spread, table
from parts import POINTS, figures, interleaved, load, ratios, stop

# Of benches/burn.rs and benches/service.rs.
ECHO, SLEEP, SLEEP_MEASURED = 18, 17, 19
MEASURED_AT = ("c1", "c50", "c50p16", "c500")


def services(part, given):
    """The ten lines, and a service with a state, to the stock echo of the same repetition."""
    points = [point for point in POINTS if point[0] in MEASURED_AT]
    stock, lines, state = servers.chappe("stock"), servers.burn("ten lines"), servers.service("service with a state")
    codes = {stock: 1, lines: ECHO, state: ECHO}
    cases = []
    for point, *what in points:
        for server, code in codes.items():
            flags = [*load(*what), "--code", code]
            run = lambda server=server, flags=flags: figures(server.bench(*flags, seconds=given.seconds))
            cases.append(((point, server.name), run))
    runs = interleaved(cases, given)
    stop(codes)
    rows = []
    for point, *_ in points:
        for server in (lines, state):
            cells = [spread(ratios(runs, (point, server.name), (point, "stock"), figure)) for figure in ("throughput", "p99", "CPU")]
            rows.append([point, server.name, f"{median([run['throughput'] for run in runs[point, server.name]]):,.0f}", *cells])
    part.add("PERFORMANCE.md", "services", table(["point", "handler", "messages/s", "throughput", "p99", "CPU a message"], rows))
    waiting(part, given)


def waiting(part, given):
    """Fifty connections whose handler sleeps at each thousandth call, and ten that ping beside
    them: with the pace that is measured, and as a handler that its author calls blocking."""
    ways = {"measured": SLEEP_MEASURED, "blocking": SLEEP}
    all_servers = {way: servers.burn(way, "worker.handler_threads=2") for way in ways}
    seconds = max(given.seconds, 1.0)

    def run(way):
        server = all_servers[way]
        command = server.command(*load(50), "--code", ways[way], seconds=seconds)
        beside = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        pings = server.bench("--connections", 10, "--rate", 1000, "--code", 0, "--size", 0, seconds=seconds)
        report = json.loads(beside.communicate()[0])
        return {"throughput": report["replies_per_second"], "p99": pings["latency_us"]["p99"]}

    runs = interleaved([(way, lambda way=way: run(way)) for way in ways], given)
    stop(all_servers.values())
    rows = [[way, f"{median([run['throughput'] for run in runs[way]]):,.0f}",
             *(spread(ratios(runs, way, "blocking", figure)) for figure in ("throughput", "p99")),
             f"{median([run['p99'] for run in runs[way]]):,.0f}"] for way in ways]
    head = ["handler", "messages/s", "to blocking", "p99 of pings, to blocking", "p99 of pings µs"]
    part.add("PERFORMANCE.md", "waiting", table(head, rows))
