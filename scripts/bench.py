"""What scripts/bench does after the build; see there."""

import json, os, pathlib, re, statistics, subprocess, sys, tempfile, time

REPETITIONS, SECONDS = int(sys.argv[1]), float(sys.argv[2])
BUILT = pathlib.Path("target/release").resolve()
CHAPPE = BUILT / "chappe"
# Name, connections, under way on each, bytes of a body, code.
POINTS = [("c1", 1, 1, 64), ("c50", 50, 1, 64), ("c50p16", 50, 16, 64), ("c500", 500, 1, 64),
          ("c50k16", 50, 1, 16384), ("c10p64", 10, 64, 64)]
# The first goal and the one behind it, for each point and figure.
GOALS = {
    "throughput": {"c50": (.85, .97), "c500": (.90, .97), "c50p16": (.85, .95), "c10p64": (.65, .85),
                   "c50k16": (.82, 1.0)},
    "p50": {"c1": (1.2, 1.05)},
    "p99": {"c50": (1.25, 1.0), "c500": (1.25, 1.0)},
    "CPU": {"c50": (1.2, 1.05), "c500": (1.15, 1.05), "c50p16": (1.25, 1.1), "c1": (1.6, 1.2)},
    "switches": {"c50": (.30, .05), "c50p16": (.03, .005), "c1": (3.1, 2)},
    "system calls": {"c50": (2.5, 2.2), "c50p16": (.17, .13)},
}


class Server:
    """A program under test, in a directory of its own; `pid` is where its work is done."""

    def __init__(self, name, program, *settings):
        self.name, self.dir = name, tempfile.TemporaryDirectory()
        command = [str(BUILT / program)]
        if program not in ("examples/limit", "examples/classic"):
            toml = 'worker_processes = 1\n[log]\nlevel = "warn"\n[[listen]]\naddress = "127.0.0.1:0"\n'
            pathlib.Path(self.dir.name, "chappe.toml").write_text(toml)
            self.site = ["-p", self.dir.name, "-c", self.dir.name + "/chappe.toml"]
            command += ["--foreground", *self.site]
            for setting in settings:
                command += ["--set", setting]
        elif program == "examples/classic":
            # With more than one handler thread it answers out of order.
            command.append("1")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.address = self.process.stdout.readline().split()[1]
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        self.pid = int(children[0]) if children else self.process.pid

    def bench(self, *flags, seconds=SECONDS):
        command = [CHAPPE, "bench", "--json", "--to", self.address, "--server-pid", str(self.pid),
                   "--warmup", "200ms", "--duration", f"{int(seconds * 1000)}ms", *map(str, flags)]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            raise SystemExit(f"{self.name}: {' '.join(map(str, flags))}\n{run.stdout}{run.stderr}")
        return json.loads(run.stdout)

    def anonymous(self):
        text = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s*(\d+)", text)[1]) * 1024

    def connections(self):
        status = subprocess.run([CHAPPE, "status", "--json", *self.site], capture_output=True, text=True)
        return json.loads(status.stdout)["workers"][0]["connections"]

    def wait_empty(self):
        deadline = time.monotonic() + 20
        while self.connections() and time.monotonic() < deadline:
            time.sleep(0.05)

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.dir.cleanup()


def figures(report):
    server = report["server"]
    switches = [server.get(f"{kind}_switches_per_message") or 0 for kind in ("voluntary", "involuntary")]
    return {"throughput": report["replies_per_second"], "p50": report["latency_us"]["p50"],
            "p99": report["latency_us"]["p99"], "CPU": server["cpu_ns_per_message"], "switches": sum(switches)}


def median(values):
    return statistics.median(values)


def spread(values, digits=2):
    """Median, and the middle half of the repetitions."""
    low, _, high = statistics.quantiles(values, n=4)
    return f"{median(values):.{digits}f} [{low:.{digits}f}-{high:.{digits}f}]"


def mark(figure, point, value):
    """Whether the goals are met: `++` both, `+` the first, `-` none."""
    goals = GOALS.get(figure, {}).get(point)
    if goals is None:
        return ""
    is_good = (lambda goal: value >= goal) if figure == "throughput" else (lambda goal: value <= goal)
    return " ++" if is_good(goals[1]) else " +" if is_good(goals[0]) else " -"


def compare(servers):
    runs = {server.name: {point[0]: [] for point in POINTS} for server in servers}
    for repetition in range(REPETITIONS):
        order = servers if repetition % 2 else servers[::-1]
        for name, connections, pipeline, size in POINTS:
            for server in order:
                # The classic one takes minutes for what has more than one under way.
                flags = ["--connections", connections, "--pipeline", pipeline, "--size", size]
                runs[server.name][name].append(figures(server.bench(*flags)))
        print(f"repetition {repetition + 1} of {REPETITIONS}", file=sys.stderr)
    return runs


def ratio_table(runs, name):
    ours, limits = runs[name], runs["limit"]
    lines = ["| point | messages/s | throughput | p50 | p99 | CPU a message | switches a message |",
             "|---|---|---|---|---|---|---|"]
    for point, *_ in POINTS:
        cells = [point, f"{median([run['throughput'] for run in ours[point]]):,.0f}"]
        for figure in ("throughput", "p50", "p99", "CPU"):
            ratios = [a[figure] / b[figure] for a, b in zip(ours[point], limits[point])]
            cells.append(spread(ratios) + mark(figure, point, median(ratios)))
        switches = median([run["switches"] for run in ours[point]])
        cells.append(f"{switches:.3f}" + mark("switches", point, switches))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def limit_table(runs):
    lines = ["| point | messages/s | p50 µs | p99 µs | CPU ns a message | switches a message |", "|---|---|---|---|---|---|"]
    for point, *_ in POINTS:
        of = lambda figure: median([run[figure] for run in runs["limit"][point]])
        lines.append(f"| {point} | {of('throughput'):,.0f} | {of('p50'):.1f} | {of('p99'):.0f} | {of('CPU'):.0f} | "
                     f"{of('switches'):.3f} |")
    return lines


def work_table():
    """Handlers that compute, on one to four handler threads; the loop stays free."""
    lines = ["| handlers | handler threads | messages/s | to one thread |", "|---|---|---|---|"]
    servers = [Server(f"{count}", "examples/burn", f"worker.handler_threads={count}") for count in (1, 2, 4)]
    for code, what, pipeline in ((16, "50 µs of computing", 1), (17, "1 of 1000 sleeps 5 ms", 16)):
        rates = {server.name: [] for server in servers}
        for _ in range(max(3, REPETITIONS // 2)):
            for server in servers:
                report = server.bench("--connections", 50, "--pipeline", pipeline, "--code", code)
                rates[server.name].append(report["replies_per_second"])
        for server in servers:
            ratios = [a / b for a, b in zip(rates[server.name], rates["1"])]
            lines.append(f"| {what} | {server.name} | {median(rates[server.name]):,.0f} | {spread(ratios)} |")
    for server in servers:
        server.stop()
    return lines


def memory_table():
    """Anonymous memory of a worker for each idle connection, fresh and after use."""
    count = min(15000, os.sysconf("SC_OPEN_MAX") - 1000)
    server = Server("memory", "chappe", "timeouts.handshake=0")
    server.bench("--connections", 1)
    before = server.anonymous()
    report = server.bench("--connections", 1, "--idle", count, seconds=1)
    fresh = report["server"]["anonymous_bytes_most"] - before
    server.wait_empty()
    # Each of them has sent and received before it rests.
    used = server.bench("--connections", count, "--size", 1000, seconds=3)
    server.wait_empty()
    after = server.bench("--connections", 1, "--idle", count, seconds=1)
    again = after["server"]["anonymous_bytes_most"] - before
    server.stop()
    return ["| idle connections | bytes each, never used | bytes each, in a worker where as many were used before |", "|---|---|---|",
            f"| {count:,} | {fresh / count:.0f} | {again / count:.0f} |"], used


def calls_table(servers):
    lines = ["| point | " + " | ".join(server.name for server in servers) + " |", "|---|" + "---|" * len(servers)]
    for name, connections, pipeline, size in POINTS:
        cells = [name]
        for server in servers:
            report = server.bench("--connections", connections, "--pipeline", pipeline, "--size", size, "--system-calls")
            calls = report["server"].get("system_calls_per_message")
            if calls is None:
                cells.append("not measured: " + report["server"]["system_calls_missing"])
            else:
                cells.append(f"{calls:.3f}" + (mark("system calls", name, calls) if server.name == "chappe" else ""))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def write(tables):
    path = pathlib.Path("docs/PERFORMANCE.md")
    text = path.read_text()
    for name, lines in tables.items():
        print(f"\n{name}\n" + "\n".join(lines))
        block = f"<!-- {name} -->\n" + "\n".join(lines) + "\n<!-- end -->"
        text, count = re.subn(rf"<!-- {name} -->\n.*?<!-- end -->", lambda _: block, text, flags=re.S)
        assert count == 1, f"docs/PERFORMANCE.md has no table {name}"
    path.write_text(text)


def main():
    servers = [Server("limit", "examples/limit"), Server("chappe", "chappe"),
               Server("three threads", "chappe", "worker.fuse=false"), Server("classic", "examples/classic")]
    load = os.getloadavg()[0]
    runs = compare(servers)
    calls = calls_table(servers)
    for server in servers:
        server.stop()
    memory, _ = memory_table()
    machine = [f"{os.cpu_count()} CPUs, Linux {os.uname().release}, load average {load:.1f} at the start; "
               f"{REPETITIONS} repetitions of {SECONDS} s, {time.strftime('%Y-%m-%d')}."]
    write({"machine": machine, "limit": limit_table(runs), "chappe": ratio_table(runs, "chappe"),
           "three threads": ratio_table(runs, "three threads"), "classic": ratio_table(runs, "classic"),
           "system calls": calls, "work": work_table(), "memory": memory})


main()
