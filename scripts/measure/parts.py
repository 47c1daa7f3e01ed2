"""The server beside the limit server, the classic design, and what a user would pick."""

import os, sys

import goals, servers
from documents import median, spread, table

# Name, connections, under way on each, bytes of a body.
POINTS = [("c1", 1, 1, 64), ("c50", 50, 1, 64), ("c50p16", 50, 16, 64), ("c500", 500, 1, 64),
          ("c50k16", 50, 1, 16384), ("c10p64", 10, 64, 64)]
RATIOS = ("throughput", "p50", "p99", "CPU")


def load(connections, pipeline=1, size=64):
    return ["--connections", connections, "--pipeline", pipeline, "--size", size]


def figures(report):
    server = report["server"]
    switches = [server.get(f"{kind}_switches_per_message") or 0 for kind in ("voluntary", "involuntary")]
    return {"throughput": report["replies_per_second"], "p50": report["latency_us"]["p50"],
            "p99": report["latency_us"]["p99"], "CPU": server["cpu_ns_per_message"], "switches": sum(switches)}


def interleaved(cases, given):
    """Runs each case in each repetition, in turn, and back in the next. A case is a key
    and a function that gives the figures of one run; the figures of a case, in order."""
    runs = {key: [] for key, _ in cases}
    for repetition in range(given.repetitions):
        for key, run in cases if repetition % 2 else reversed(cases):
            runs[key].append(run())
        print(f"repetition {repetition + 1} of {given.repetitions}", file=sys.stderr)
    return runs


def at_points(all_servers, given, points=POINTS):
    """Figures by point and name of the server; within a repetition all servers have a
    point before the next point begins, so that a ratio is of the same minute."""
    cases = []
    for point, *what in points:
        for server in all_servers:
            run = lambda server=server, what=what: figures(server.bench(*load(*what), seconds=given.seconds))
            cases.append(((point, server.name), run))
    return interleaved(cases, given)


def ratios(runs, key, to, figure):
    """Of each repetition to what `to` had in the same one."""
    return [a[figure] / b[figure] for a, b in zip(runs[key], runs[to])]


def stop(all_servers):
    for server in all_servers:
        server.stop()


def compare(part, given):
    all_servers = [servers.limit(), servers.chappe(), servers.three_threads(), servers.classic()]
    runs = at_points(all_servers, given)
    stop(all_servers)
    document = "PERFORMANCE.md"
    of = lambda point, name, figure: median([run[figure] for run in runs[point, name]])
    head = ["point", "messages/s", "p50 µs", "p99 µs", "CPU ns a message", "switches a message"]
    part.add(document, "limit", table(head, [
        [point, f"{of(point, 'limit', 'throughput'):,.0f}", f"{of(point, 'limit', 'p50'):.1f}",
         f"{of(point, 'limit', 'p99'):.0f}", f"{of(point, 'limit', 'CPU'):.0f}", f"{of(point, 'limit', 'switches'):.3f}"]
        for point, *_ in POINTS]))
    head = ["point", "messages/s", "throughput", "p50", "p99", "CPU a message", "switches a message"]
    for server in all_servers[1:]:
        # The goals are those of the server as it comes; the others are only marked.
        mark = part.goal if server.name == "chappe" else goals.mark
        rows = []
        for point, *_ in POINTS:
            cells = [point, f"{of(point, server.name, 'throughput'):,.0f}"]
            for figure in RATIOS:
                values = ratios(runs, (point, server.name), (point, "limit"), figure)
                cells.append(spread(values) + mark(figure, point, median(values)))
            switches = of(point, server.name, "switches")
            rows.append(cells + [f"{switches:.3f}" + mark("switches", point, switches)])
        part.add(document, server.name, table(head, rows))


def calls(part, given):
    all_servers = [servers.limit(), servers.chappe(), servers.three_threads(), servers.classic()]
    rows = []
    for point, *what in POINTS:
        cells = [point]
        for server in all_servers:
            report = server.bench(*load(*what), "--system-calls", seconds=given.seconds)["server"]
            count = report["system_calls_per_message"]
            if count is None:
                cells.append("not measured: " + report["system_calls_missing"])
            else:
                mark = part.goal("system calls", point, count) if server.name == "chappe" else ""
                cells.append(f"{count:.3f}{mark}")
        rows.append(cells)
    stop(all_servers)
    part.add("PERFORMANCE.md", "system calls", table(["point", *(server.name for server in all_servers)], rows))


def peers(part, given):
    others, left_out = servers.peers()
    all_servers = [servers.limit(), servers.chappe(), *others]
    runs = at_points(all_servers, given)
    stop(all_servers)
    head = ["server", *(point for point, *_ in POINTS)]
    for block, figure in (("peers", "throughput"), ("peers CPU", "CPU")):
        rows = [[server.name, *(spread(ratios(runs, (point, server.name), (point, "limit"), figure)) for point, *_ in POINTS)]
                for server in all_servers[1:]]
        lines = table(head, rows)
        if left_out:
            lines += ["", "Left out: " + ", ".join(left_out) + "."]
        part.add("PERFORMANCE.md", block, lines)


def memory(part, given):
    """Anonymous memory of a worker for each idle connection, fresh and after use."""
    count = min(15000, os.sysconf("SC_OPEN_MAX") - 1000)
    server = servers.chappe("memory", "timeouts.handshake=0")
    server.bench("--connections", 1, seconds=given.seconds)
    before = server.anonymous()
    each = lambda report: (report["server"]["anonymous_bytes_most"] - before) / count
    is_nobody = lambda connections: connections == 0
    fresh = each(server.bench("--connections", 1, "--idle", count, seconds=1))
    server.wait_connections(is_nobody)
    # Each of them has sent and received before it rests.
    server.bench("--connections", count, "--size", 1000, seconds=3)
    server.wait_connections(is_nobody)
    used = each(server.bench("--connections", 1, "--idle", count, seconds=1))
    server.stop()
    head = ["idle connections", "bytes each, never used", "bytes each, in a worker where as many were used before"]
    cells = [f"{value:.0f}" + part.goal("memory", point, value) for point, value in (("never used", fresh), ("after use", used))]
    part.add("PERFORMANCE.md", "memory", table(head, [[f"{count:,}", *cells]]))
