"""What settings do: the tables of docs/TUNING.md."""

import json, subprocess

import servers
from documents import median, spread, table
from parts import at_points, figures, interleaved, load, ratios, stop

DOCUMENT = "TUNING.md"
# benches/burn.rs.
BURN, SLEEP, BURN_US = 16, 17, 50


def cells(runs, key, to, names):
    """Messages a second, and ratios of `names`."""
    rate = median([run["throughput"] for run in runs[key]])
    return [f"{rate:,.0f}", *(spread(ratios(runs, key, to, name)) for name in names)]


def workers(part, given):
    """One, two, and two that each stay on a CPU."""
    ways = [("1", ["worker_processes=1"]), ("2", ["worker_processes=2"]),
            ("2, each on its CPU", ["worker_processes=2", "worker_cpu_affinity=auto"])]
    all_servers = [servers.burn(name, *settings) for name, settings in ways]
    loads = [("c50", load(50)), ("c50p16", load(50, 16)), ("c500", load(500)),
             ("c50, 50 µs of computing", [*load(50), "--code", BURN])]
    cases = [((what, server.name), lambda server=server, flags=flags: figures(server.bench(*flags, seconds=given.seconds)))
             for what, flags in loads for server in all_servers]
    runs = interleaved(cases, given)
    stop(all_servers)
    rows = [[what, name, *cells(runs, (what, name), (what, "1"), ("throughput", "p99", "CPU"))]
            for what, _ in loads for name, _ in ways]
    part.add(DOCUMENT, "workers", table(["load", "workers", "messages/s", "to one worker", "p99", "CPU a message"], rows))


def accept(part, given):
    """How connections spread over two workers, and what that does."""
    ways = ("shared", "reuseport")
    all_servers = [servers.chappe(way, "worker_processes=2", f"listen.accept={way}") for way in ways]

    def run(server, connections):
        command = server.command(*load(connections), seconds=given.seconds)
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        spread_over = server.wait_connections(lambda there: there >= connections)
        out, err = run.communicate()
        if run.returncode:
            raise servers.Failed(f"{server.name}: {out}{err}")
        server.wait_connections(lambda there: there == 0)
        return {**figures(json.loads(out)), "fullest": max(spread_over) / sum(spread_over)}

    cases = [((connections, server.name), lambda server=server, connections=connections: run(server, connections))
             for connections in (50, 500) for server in all_servers]
    runs = interleaved(cases, given)
    stop(all_servers)
    rows = []
    for connections in (50, 500):
        for way in ways:
            key = (connections, way)
            fullest = spread([run["fullest"] for run in runs[key]])
            rows.append([str(connections), way, fullest, *cells(runs, key, (connections, "shared"), ("throughput", "p99"))])
    head = ["connections", "`accept`", "share of the fuller worker", "messages/s", "to shared", "p99"]
    part.add(DOCUMENT, "accept", table(head, rows))


def threads(part, given):
    """Handlers that are quick, compute, or block, on one to eight handler threads."""
    counts = (1, 2, 4, 8)
    fused = {count: servers.burn(f"{count}", f"worker.handler_threads={count}") for count in counts}
    long = {count: servers.burn(f"{count}", f"worker.handler_threads={count}", "worker.fuse=false") for count in counts}
    kinds = [("quick", fused, load(50)), ("quick, `worker.fuse = false`", long, load(50)),
             ("50 µs of computing", fused, [*load(50), "--code", BURN]),
             ("1 of 1000 sleeps 5 ms", fused, [*load(50, 16), "--code", SLEEP])]
    cases = [((kind, count), lambda server=of[count], flags=flags: figures(server.bench(*flags, seconds=given.seconds)))
             for kind, of, flags in kinds for count in counts]
    runs = interleaved(cases, given)
    stop([*fused.values(), *long.values()])
    head = ["handlers", "handler threads", "messages/s", "to one thread", "p99", "CPU a message"]
    part.add(DOCUMENT, "threads", table(head, [
        [kind, str(count), *cells(runs, (kind, count), (kind, 1), ("throughput", "p99", "CPU"))]
        for kind, *_ in kinds for count in counts]))
    rows = []
    for kind, *_ in kinds[2:]:
        for count in counts[:3]:
            rate, ratio = cells(runs, (kind, count), (kind, 1), ("throughput",))
            mark = ""
            if kind == "50 µs of computing" and count == 2:
                mark = part.goal("computing", "two threads", median(ratios(runs, (kind, 2), (kind, 1), "throughput")))
            rows.append([kind, str(count), rate, ratio + mark])
    part.add("PERFORMANCE.md", "work", table(head[:4], rows))


def bodies(part, given):
    """From the smallest body to the largest that a frame takes."""
    sizes = (64, 256, 1024, 4096, 16384, 65527)
    all_servers = [servers.limit(), servers.chappe(), servers.three_threads()]
    runs = at_points(all_servers, given, [(size, 50, 1, size) for size in sizes])
    stop(all_servers)
    rows = []
    for size in sizes:
        rate = median([run["throughput"] for run in runs[size, "limit"]])
        row = [f"{size:,}", f"{rate:,.0f}", f"{rate * size / 1e6:,.0f}"]
        for name in ("chappe", "three threads"):
            row += [spread(ratios(runs, (size, name), (size, "limit"), figure)) for figure in ("throughput", "CPU")]
        rows.append(row)
    head = ["bytes of a body", "limit, messages/s", "limit, MB/s", "throughput", "CPU a message",
            "three threads, throughput", "three threads, CPU a message"]
    part.add(DOCUMENT, "bodies", table(head, rows))
