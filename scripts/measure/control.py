"""How long the processes take: start, reload and stop, with few workers and with many.

    python3 scripts/measure/control.py PROGRAM …     several programs, each in turn
"""

import json, os, pathlib, socket, sys, time

from documents import median, table
from servers import BUILT, Failed, Server

# Workers, and how often.
CASES = ((2, 15), (1000, 8))
PHASES = ("start", "reload", "stop")


class Site(Server):
    """A server that answers on its control socket."""

    def __init__(self, program, workers):
        head = f'worker_processes = {workers}\nworker_ready_timeout = "120s"\nworker_drain_spread = "0"\n'
        super().__init__(f"{program} with {workers} workers", program, settings=[], head=head)
        self.control = f"{self.dir.name}/run/chappe.sock"

    def ask(self, command):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.control)
            client.sendall(json.dumps({"command": command}).encode() + b"\n")
            reply = json.loads(client.makefile().readline())
        if "error" in reply:
            raise Failed(f"{command}: {reply['error']}")
        return reply

    def wait_alone(self):
        """Until nobody of the old generation is left."""
        while any(worker["state"] != "serving" for worker in self.ask("status")["workers"]):
            time.sleep(0.02)


def milliseconds(act):
    begun = time.perf_counter()
    result = act()
    return (time.perf_counter() - begun) * 1000, result


def once(program, workers):
    """From the call to the line `ready`, from the request to the answer, from TERM to the exit."""
    start, site = milliseconds(lambda: Site(program, workers))
    reload, _ = milliseconds(lambda: site.ask("reload"))
    site.wait_alone()
    stop, _ = milliseconds(site.stop)
    return {"start": start, "reload": reload, "stop": stop}


def measure(programs):
    """Of each case and program the times of each phase; the programs take turns."""
    times = {}
    for workers, count in CASES:
        for _ in range(count):
            for program in programs:
                for phase, took in once(program, workers).items():
                    times.setdefault((workers, program), {}).setdefault(phase, []).append(took)
    return times


def told(values):
    digits = 1 if median(values) < 100 else 0
    return f"{median(values):.{digits}f} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


def rows(times, program):
    return [[f"{workers:,}", str(count), *(told(times[workers, program][phase]) for phase in PHASES)]
            for workers, count in CASES]


HEAD = ["workers", "times", "start, ms", "reload, ms", "stop, ms"]


def control(part, _given):
    """Medians, and the fastest and slowest."""
    program = BUILT / "chappe"
    part.add("PERFORMANCE.md", "control", table(HEAD, rows(measure([program]), program)))


if __name__ == "__main__":
    programs = [pathlib.Path(os.path.abspath(name)) for name in sys.argv[1:]]
    times = measure(programs)
    for program in programs:
        print(f"\n{program}\n" + "\n".join(table(HEAD, rows(times, program))))
