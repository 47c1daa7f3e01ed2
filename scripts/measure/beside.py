"""Honest clients beside those that flood, and the load generator beside the servers."""

import json, subprocess, threading, tomllib

import servers
from documents import median, spread, table
from parts import POINTS, interleaved, load

FLOODING = 10


def size(text):
    number = str(text).rstrip("KMGiB")
    return int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[str(text)[len(number):].rstrip("iB")]


class Flood:
    """Ten that send and never read, leave when nothing more goes, and come again."""

    def __init__(self, server):
        self.is_over, self.times = threading.Event(), 0
        flags = ["--connections", 1, "--rate", 1, "--slow-readers", FLOODING]
        self.command = server.command(*flags, seconds=0.05, warmup="0s")
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.is_over.is_set():
            # One request a second: the window may have none, which is told and no fault.
            run = subprocess.run(self.command, capture_output=True, text=True)
            self.times += json.loads(run.stdout)["slow_readers"]["full"] == FLOODING

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.is_over.set()
        self.thread.join()


def flood(part, given):
    """What fifty honest clients notice of ten that flood, and what these cost in memory."""
    server = servers.chappe()
    seconds = max(given.seconds, 1.0)
    server.bench(*load(50), seconds=seconds)
    start = server.anonymous()
    most = {"full": 0, "again": 0}

    def run(beside):
        flags = load(50) + (["--slow-readers", FLOODING] if beside == "full" else [])
        if beside == "again":
            with Flood(server) as flood:
                report = server.bench(*flags, seconds=seconds)
            if not flood.times:
                raise servers.Failed("nobody has flooded")
        else:
            report = server.bench(*flags, seconds=seconds)
        if beside != "alone":
            most[beside] = max(most[beside], report["server"]["anonymous_bytes_most"] - start)
        server.wait_connections(lambda connections: connections == 0)
        return {"p99": report["latency_us"]["p99"], "throughput": report["replies_per_second"]}

    runs = interleaved([(beside, lambda beside=beside: run(beside)) for beside in ("alone", "full", "again")], given)
    effective = subprocess.run([servers.CHAPPE, "-T", *server.site, *server.settings], capture_output=True, text=True)
    server.stop()
    config = tomllib.loads(effective.stdout)
    # A reply and a read may each pass their mark by a frame.
    each = size(config["send"]["outbox_max_bytes"]) + size(config["inbox"]["max_bytes"]) + 2 * servers.FRAME_BYTES
    bound = FLOODING * each
    mib = lambda bytes: f"{bytes / 2**20:.1f} MiB"
    rows = [["nobody", f"{median([run['p99'] for run in runs['alone']]):.0f}", "1.00", "1.00", "", ""]]
    for beside, told in (("full", f"{FLOODING} that are full"), ("again", f"{FLOODING} that come, flood and leave, again and again")):
        slower = [a["p99"] / b["p99"] for a, b in zip(runs[beside], runs["alone"])]
        throughput = [a["throughput"] / b["throughput"] for a, b in zip(runs[beside], runs["alone"])]
        # The goal is of those that are there and do not go.
        marks = ("", "") if beside == "again" else (
            part.goal("flood", "p99", median(slower)), part.goal("flood", "memory", most[beside] / bound))
        p99 = median([run["p99"] for run in runs[beside]])
        rows.append([told, f"{p99:.0f}", spread(slower) + marks[0], spread(throughput), mib(most[beside]) + marks[1], mib(bound)])
    head = ["beside 50 that read", "their p99 µs", "to that without", "their throughput", "memory grown", "allowed"]
    part.add("PERFORMANCE.md", "flood", table(head, rows))


def generator(part, given):
    """What the load generator itself costs, with and without looking at the replies."""
    server = servers.limit()
    cases = []
    for point, *what in POINTS:
        for expect in ("echo", "any"):
            run = lambda what=what, expect=expect: server.bench(*load(*what), "--expect", expect, seconds=given.seconds)
            cases.append(((point, expect), run))
    for rate in (10_000, 30_000, 100_000):
        cases.append((rate, lambda rate=rate: server.bench("--connections", 50, "--rate", rate, seconds=given.seconds)))
    runs = interleaved(cases, given)
    server.stop()
    of = lambda key, side, figure: median([run[side][figure] for run in runs[key]])
    rows = []
    for point, *_ in POINTS:
        cost, unchecked = (of((point, expect), "client", "cpu_ns_per_message") for expect in ("echo", "any"))
        share, server_share = (of((point, "echo"), side, "cpu_share") for side in ("client", "server"))
        rows.append([point, f"{cost:.0f}", f"{unchecked:.0f}", f"{of((point, 'echo'), 'server', 'cpu_ns_per_message'):.0f}",
                     f"{share:.2f}", f"{server_share:.2f}"])
    head = ["point", "its CPU ns a message", "without checking", "the limit server's", "its share of a CPU", "the limit server's"]
    part.add("BENCH.md", "generator", table(head, rows))
    rows = [[f"{rate:,}", f"{median([run['replies_per_second'] for run in runs[rate]]):,.0f}",
             f"{of(rate, 'client', 'cpu_share'):.2f}", f"{of(rate, 'latency_us', 'p50'):.0f}",
             f"{of(rate, 'latency_us', 'p99'):.0f}", f"{of(rate, 'client', 'latest_send_us'):.0f}"]
            for rate in (10_000, 30_000, 100_000)]
    head = ["due a second", "answered a second", "its share of a CPU", "p50 µs", "p99 µs", "the latest request, µs after it was due"]
    part.add("BENCH.md", "open loop", table(head, rows))
