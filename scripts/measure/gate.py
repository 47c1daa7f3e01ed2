"""What scripts/gate does after the build; see there."""

import argparse, contextlib, re, shutil, signal, subprocess, sys, tempfile

import servers
from documents import table
from instructions import of_a_message
from parts import load

# Figure, point, the most it may be fused and through three threads. Switches and system
# calls are of the closed loops c1, c50 and c50p16, instructions of one connection with one
# and with sixteen messages under way. The comment has what was measured, on a quiet machine
# and beside three compilers; a bound is well above both and below the fault beside it.
BOUNDS = [
    # 0.4 to 1.0 and 2.9 to 3.5: a loop that is woken a second time for a message adds one.
    ("switches", "c1", 1.3, 4.2),
    # 0.00 to 0.05 and 0.1 to 0.9. A thread woken for each message: 1 and more, 2.
    ("switches", "c50", .30, 1.5),
    # 0.000 to 0.003 and 0.02 to 0.04; 0.18 and more if messages are handed over singly.
    ("switches", "c50p16", .03, .10),
    # 3.00 and 6.98: one more call for each message is over both.
    ("system calls", "c1", 3.3, 7.5),
    # 2.02 and 3.0 to 3.7. One more call: 3.02 and 4.1 or more, mostly.
    ("system calls", "c50", 2.4, 4.05),
    # 0.126 and 0.21 to 0.23, 0.30 under strace. Each reply sent by itself: 1 and more. One
    # more call for each turn: 0.19.
    ("system calls", "c50p16", .17, .38),
    # 2086 and 6153, within 1 in 100: each bound is about an eighth above.
    ("instructions", "p1", 2300, 6900),
    # 354 to 726 and 1065 to 1089: a run that is late under valgrind leaves messages to threads.
    ("instructions", "p16", 760, 1230),
]
# Under strace it was 4.1 to 5.1: each call is slowed, the threads meet less well, and what a
# further call would add cannot be told from that.
NOT_BY_STRACE = ("three threads", "c50", "system calls")
LOADS = {"c1": load(1), "c50": load(50), "c50p16": load(50, 16)}
MODES = {"fused": (), "three threads": ("worker.fuse=false",)}
SECONDS = 0.3
# Noise only ever adds, so the least of several runs is taken.
RUNS, AGREE = 3, 0.01
MESSAGES = {"p1": 1600, "p16": 12800}


# --- switches and system calls, of a server under load ---

def perf_counts():
    """Whether perf(1) may count system calls here."""
    command = ["perf", "stat", "-e", "raw_syscalls:sys_enter", "true"]
    return shutil.which("perf") is not None and subprocess.run(command, capture_output=True).returncode == 0


def bench(server, flags, seconds=SECONDS):
    """A machine that others use may stand still for a whole run: that one says nothing."""
    for attempt in range(5):
        try:
            return server.bench(*flags, seconds=seconds)["server"]
        except servers.Failed as failed:
            if attempt == 4 or "nothing was answered" not in str(failed):
                raise


class Refused(Exception):
    """Nobody may trace the worker here, or this strace cannot."""


@contextlib.contextmanager
def strace(server):
    """strace(1) on all threads of the worker; what it has counted is in the list afterwards."""
    with tempfile.NamedTemporaryFile("r") as file:
        command = ["strace", "-f", "-c", "-U", "calls,name", "-o", file.name]
        for pid in server.pids:
            command += ["-p", str(pid)]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            missing = set(server.pids)
            while missing:
                # Of a process it says so once it has all of its threads.
                line = tracer.stderr.readline()
                attached = re.search(r"Process (\d+) attached", line)
                if attached:
                    missing.discard(int(attached[1]))
                elif "attach" in line or not line:
                    raise Refused(line.strip() or "strace does not start")
            counted = []
            yield counted
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.communicate()
        counted.append(file.read())


def refusal():
    """Why strace may not trace a worker, if it may not: one attach tells."""
    server = servers.chappe("gate")
    try:
        with strace(server):
            return None
    except Refused as refused:
        return str(refused)
    finally:
        server.stop()


def traced_calls(server, flags):
    """System calls a message by strace(1). It slows each call, so several threads meet less well
    than under perf and call more often."""
    handled = lambda: server.status()["totals"]["frames_received"]
    with strace(server) as counted:
        before = handled()
        bench(server, flags, 2 * SECONDS)
        messages = handled() - before
    return int(re.search(r"^ *(\d+) +total$", counted[0], re.M)[1]) / messages


def counted(settings, system_calls):
    """The least of some runs at each point; `system_calls` says by what they are counted."""
    server = servers.chappe("gate", *settings)
    least = {}
    for point, flags in LOADS.items():
        for _ in range(RUNS):
            if system_calls == "perf":
                flags = [*flags, "--system-calls"] if "--system-calls" not in flags else flags
            report = bench(server, flags)
            # Making room for another program is no matter of the server's.
            found = {"switches": report["voluntary_switches_per_message"]}
            if system_calls == "perf":
                found["system calls"] = report["system_calls_per_message"]
            elif system_calls == "strace":
                found["system calls"] = traced_calls(server, flags)
            for figure, value in found.items():
                least[figure, point] = min(value, least.get((figure, point), value))
    server.stop()
    return least


# --- instructions, of a server under valgrind ---

def instructions(settings):
    least = {}
    for point, messages in MESSAGES.items():
        together = int(point[1:])
        least["instructions", point] = of_a_message(servers.CHAPPE, settings, messages, together, AGREE)
    return least


def main():
    parser = argparse.ArgumentParser(prog="scripts/gate")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="a setting of the server in both modes: to see that a worse one fails")
    given = parser.parse_args()
    system_calls, skipped = "perf" if perf_counts() else None, []
    if system_calls is None:
        refused = refusal() if shutil.which("strace") else "there is no strace"
        if refused is None:
            system_calls = "strace"
        else:
            skipped.append(f"system calls (perf cannot count them; {refused})")
    has_valgrind = shutil.which("valgrind") is not None
    if not has_valgrind:
        skipped.append("instructions (no valgrind)")
    rows, exceeded = [], 0
    for mode, (name, settings) in enumerate(MODES.items()):
        found = counted((*settings, *given.set), system_calls)
        if has_valgrind:
            found |= instructions((*settings, *given.set))
        for figure, point, *bounds in BOUNDS:
            if system_calls == "strace" and (name, point, figure) == NOT_BY_STRACE:
                skipped.append(" ".join((*NOT_BY_STRACE, "(not by strace)")))
            elif (figure, point) in found:
                value, bound = found[figure, point], bounds[mode]
                exceeded += value > bound
                digits = 0 if figure == "instructions" else 3
                rows.append([name, point, figure, f"{value:.{digits}f}", f"{bound:.{digits}f}",
                             "EXCEEDED" if value > bound else "ok"])
    print("\n".join(table(["way", "point", "a message", "measured", "bound", ""], rows)))
    for what in skipped:
        print(f"skipped: {what}")
    if system_calls:
        print(f"system calls are counted by {system_calls}")
    if exceeded:
        sys.exit(f"{exceeded} of {len(rows)} bounds are exceeded")


main()
