"""Where the CPU time goes: why a second goal is missed."""

import json, os, pathlib, re, shutil, subprocess, sys, tempfile

import servers
from documents import median, table
from parts import POINTS, figures, interleaved, load, stop
from tuning import BURN, BURN_US

DOCUMENT = "PERFORMANCE.md"
SECONDS, SAMPLES = 3, 4000
# By the names of their entries on x86-64; on other machines they count in the rest.
CALLS = {"send": ("sendto", "sendmsg"), "recv": ("recvfrom",), "epoll_wait": ("epoll_wait", "epoll_pwait"),
         "futex": ("futex",)}


def shares(server, flags):
    """Under load: the CPU time of a message in ns, and what each part has of it, by perf's samples."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(pathlib.Path(folder, "perf"))
        command = server.command(*flags, seconds=SECONDS + 1)
        bench = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            pids = ",".join(map(str, server.pids))
            perf("record", "-q", "-g", "-F", str(SAMPLES), "-o", file, "-p", pids, "--", "sleep", str(SECONDS))
            out, err = bench.communicate()
        finally:
            bench.terminate()
            bench.wait()
        if bench.returncode:
            raise servers.Failed(f"{server.name}: {out}{err}")
        report = ["report", "-q", "-i", file, "--stdio", "-g", "none"]
        by_object = perf(*report, "--no-children", "--sort", "dso")
        by_call = perf(*report, "--children", "--sort", "sym")
    objects = {what: float(share) for share, what in re.findall(r"^ *([\d.]+)% +(\S+)", by_object, re.M)}
    if not objects:
        raise servers.Failed(f"perf has no sample of {server.name}")
    own = sum(share for what, share in objects.items() if what == "[vdso]" or what[0] != "[")
    symbols = {what: float(share) for share, what in re.findall(r"^ *([\d.]+)% .*\[k\] (\S+)", by_call, re.M)}
    calls = [sum(symbols.get(f"__x64_sys_{name}", 0) for name in names) for names in CALLS.values()]
    rest = sum(objects.values()) - own - sum(calls)
    return figures(json.loads(out))["CPU"], [own, *calls, rest]


class Refused(Exception):
    """There is no perf, or nobody may use it here."""


def perf(*words):
    if not shutil.which("perf"):
        raise Refused("there is no perf")
    run = subprocess.run(["perf", *words], capture_output=True, text=True)
    if run.returncode:
        raise Refused(f"perf {words[0]}: {run.stderr.strip().splitlines()[-1]}")
    return run.stdout


def where(part, given):
    try:
        kernel_and_own(part)
    except Refused as refused:
        part.add(DOCUMENT, "where", [f"Not measured: {refused}."])
    computing(part, given)


def kernel_and_own(part):
    all_servers = [servers.limit(), servers.chappe(), servers.three_threads()]
    rows = []
    for point, *what in POINTS:
        for server in all_servers:
            ns, parts = shares(server, load(*what))
            cells = [f"{ns * share / sum(parts):.0f}" for share in parts]
            rows.append([point, server.name, f"{ns:.0f}", *cells])
        print(f"where: {point}", file=sys.stderr)
    stop(all_servers)
    head = ["point", "server", "CPU ns a message", "own code", *CALLS, "rest of the kernel"]
    part.add(DOCUMENT, "where", table(head, rows))


def computing(part, given):
    """What the CPUs do while handlers compute: the client and the rest of the worker need some."""
    counts = (1, 2)
    all_servers = {count: servers.burn(f"{count}", f"worker.handler_threads={count}") for count in counts}

    def run(server):
        report = server.bench(*load(50), "--code", BURN, seconds=given.seconds)
        computes = report["replies_per_second"] * BURN_US / 1e6
        worker, client = report["server"]["cpu_share"], report["client"]["cpu_share"]
        # Displaced while it computes by the clock, a handler has less than it took.
        return {"rate": report["replies_per_second"], "computes": computes, "rest": worker - computes,
                "client": client, "nobody": os.cpu_count() - worker - client}

    cases = [(count, lambda server=server: run(server)) for count, server in all_servers.items()]
    runs = interleaved(cases, given)
    stop(all_servers.values())
    of = lambda count, what: median([run[what] for run in runs[count]])
    parts = ("computes", "rest", "client", "nobody")
    rows = [[str(count), f"{of(count, 'rate'):,.0f}", *(f"{of(count, what):.2f}" for what in parts)]
            for count in counts]
    head = ["handler threads", "messages/s", f"CPUs: {BURN_US} µs for each message",
            "the rest of the worker", "the client", "nobody"]
    part.add(DOCUMENT, "computing", table(head, rows))
