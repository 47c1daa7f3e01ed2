"""What scripts/pressure does after the build; see there."""

import re, statistics, subprocess, sys, tomllib

import servers

SLOW, PACE, SECONDS = 300, 10_000, 3
SHOWN = ("worker_processes", "handler_threads", "total_max_bytes", "outbox_max_bytes",
         "outbox_total_max_bytes", "outbox_max_age", "notsent_lowat", "max_bytes")


def size(text):
    number, unit = re.fullmatch(r"(\d+)\s*(\w*)", str(text)).groups()
    return int(number) << {"": 0, "B": 0, "KiB": 10, "MiB": 20, "GiB": 30}[unit]


def mib(count):
    return f"{count / 2**20:.1f} MiB"


def measure(server, repetitions):
    """The report of each run, by code, by what was beside it, and by repetition."""
    reports = {}
    for number in range(repetitions):
        for what, code in ("ping", 0), ("echo", 1):
            # Which of the two is first alternates.
            for beside in ("alone", "full") if number % 2 else ("full", "alone"):
                others = ["--slow-readers", SLOW] if beside == "full" else []
                flags = ["--connections", 1, "--code", code, *others]
                reports[what, beside, number] = server.bench(*flags, seconds=SECONDS, warmup="300ms")
                server.wait_connections(lambda connections: connections == 0)
    return reports


def verdict(missed, name, value, goal):
    if value > goal:
        missed.append(name)
    return f"{value:.2f} (goal {goal}: {'met' if value <= goal else 'MISSED'})"


def latencies(reports, repetitions, missed):
    print(f"\n{repetitions} repetitions, interleaved; one connection, {SLOW} that never read; "
          "microseconds, medians\n")
    for what in "ping", "echo":
        for name, goal in ("p50", 1.2), ("p99", 1.5):
            pairs = [tuple(reports[what, beside, number]["latency_us"][name] for beside in ("alone", "full"))
                     for number in range(repetitions)]
            alone, full = (statistics.median(column) for column in zip(*pairs))
            ratios = sorted(full / alone for alone, full in pairs)
            text = verdict(missed, f"{what} {name}", statistics.median(ratios), goal)
            print(f"{what} {name}: alone {alone:.1f}, among {SLOW} full ones {full:.1f}; ratio {text}, "
                  f"from {ratios[0]:.2f} to {ratios[-1]:.2f}")


def memory(reports, config, workers, missed):
    full = [report for (_, beside, _), report in reports.items() if beside == "full"]
    shut = sum(run["slow_readers"]["closed_by_server"] for run in full)
    took = statistics.median(run["slow_readers"]["bytes_sent"] for run in full) / SLOW
    before = reports["ping", "alone", 0]["server"]["anonymous_bytes_before"]
    most = max(run["server"]["anonymous_bytes_most"] for run in full)
    threads = config["worker"]["handler_threads"]
    inbox, outbox = size(config["inbox"]["total_max_bytes"]), size(config["send"]["outbox_total_max_bytes"])
    replies, table = 65535, 512 * (SLOW + 1)
    bound = workers * (inbox + outbox + threads * replies) + table
    print(f"\nmemory of {workers} workers (RssAnon): {mib(before)} at the start, {mib(most)} at the most, "
          f"grown by {mib(most - before)}; {mib((most - before) / SLOW)} for each that never reads")
    print(f"bound: {workers} x (inboxes {mib(inbox)} + outboxes {mib(outbox)} + {threads} handler threads x "
          f"{replies} B) + {SLOW + 1} connections x 512 B = {mib(bound)}")
    print(f"each could send {took / 1024:.0f} KiB; {shut} of {SLOW * len(full)} were closed by the server")
    if most - before > bound:
        missed.append("memory")


def main():
    repetitions, paced_bytes, descriptors = map(int, sys.argv[1:])
    server = servers.stock()
    effective = [servers.CHAPPE, "-T", *server.site, *server.settings]
    effective = subprocess.run(effective, capture_output=True, text=True, check=True).stdout
    print("settings: stock, but for the port; of these:")
    print("".join(f"    {line}\n" for line in effective.splitlines() if line.split(" =")[0] in SHOWN), end="")
    missed = []
    reports = measure(server, repetitions)
    latencies(reports, repetitions, missed)
    memory(reports, tomllib.loads(effective), len(server.status()["workers"]), missed)
    print("\nmissed: " + ", ".join(missed) if missed else "\nall goals met")
    others = min(descriptors - 300, 1000)
    run = server.bench("--connections", others, "--paced-reader", PACE, "--paced-bytes", paced_bytes,
                       seconds=paced_bytes // PACE + 20, warmup="300ms")
    paced = run["paced_reader"]
    print(f"\nreader of 10 KB/s among {others} others ({run['replies_per_second']:.0f} replies/s): "
          f"{paced['bytes_received']} of {paced['bytes_asked']} bytes, {paced['replies_right']} replies right, "
          f"in {paced['seconds']:.1f} s")
    server.stop()
    sys.exit(bool(missed))


main()
