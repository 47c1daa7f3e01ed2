"""Publish and subscribe beside redis-server and nats-server, by one client program."""

import json, os, shutil, subprocess

import servers
from documents import median, spread, table
from parts import interleaved, ratios, stop

DOCUMENT = "PERFORMANCE.md"
CLIENT = servers.BUILT / "examples/topics"
REDIS, NATS, RESP, NATIVE = "redis-server", "nats-server", "chappe, RESP", "chappe, native"
# A subscriber and its server take a descriptor each, of two processes.
NEIGHBOURS = min(10_000, os.sysconf("SC_OPEN_MAX") - 1000)

# What the client is told at each point; benches/topics says what it does.
DELIVERIES = {
    "fanout": ["--subscribers", 1000, "--rate", 250],
    "hundred": ["--subscribers", 100, "--rate", 1000],
    "many": ["--subscribers", 1000, "--topics", 1000, "--publishers", 4, "--rate", 40_000, "--burst", 16],
    "flood": ["--subscribers", 100, "--publishers", 4, "--window", 64, "--ahead", 2048],
}
ANSWERS = {
    "publish c1": ["--publishers", 1],
    "publish c50": ["--publishers", 50],
    "publish c50p16": ["--publishers", 50, "--window", 16],
    "ping c50": ["--ping", "--publishers", 50],
    "ping c50p16": ["--ping", "--publishers", 50, "--window", 16],
}
NEIGHBOUR = ["--subscribers", NEIGHBOURS, "--rate", 4, "--neighbour"]
WORKERS = (1, 2, 4, 8)

# By RESP, to redis-server in the same repetition unless the words say otherwise.
GOALS = [
    ("p99 ms", "fanout", "≤", 10), ("CPU", "fanout", "≤", .8),
    ("p50", "hundred", "≤", 1.0), ("p99", "hundred", "≤", 1.0), ("CPU", "hundred", "≤", 1.0),
    ("p99", "many", "≤", 1.0), ("CPU", "many", "≤", 1.3), ("deliveries", "flood", "≥", 1.5),
    ("p50", "publish c1", "≤", 1.4), ("answers", "publish c50", "≥", 1.2), ("answers", "publish c50p16", "≥", .8),
    ("answers", "ping c50", "≥", 1.5), ("answers", "ping c50p16", "≥", 1.2),
    ("delay ms", "neighbour", "≤", 2), ("answers", "workers", "≥", .9),
]
TOLD = {
    "p99 ms": "p99, in ms", "p50": "p50", "p99": "p99", "CPU": "CPU a delivery", "deliveries": "deliveries/s",
    "answers": "answers/s", "delay ms": "what a fan-out adds to the p99 of another connection, in ms",
}
PLACES = {"workers": "publish c50p16, eight workers to one"}


def ask(server, protocol, flags, seconds):
    """A run of the client, which is not clean unless every message has come."""
    command = [CLIENT, "--protocol", protocol, "--to", server.address, "--seconds", seconds]
    for pid in server.pids:
        command += ["--server-pid", pid]
    run = subprocess.run([str(word) for word in (*command, *flags)], capture_output=True, text=True)
    if run.returncode:
        raise servers.Failed(f"{server.name}: {run.args}\n{run.stdout}{run.stderr}")
    return json.loads(run.stdout)


def of_deliveries(report):
    return {"deliveries": report["deliveries_per_second"], "p50": report["latency_us"]["p50"],
            "p99": report["latency_us"]["p99"], "CPU": report["server_cpu_ns"] / report["deliveries"],
            "p99 ms": report["latency_us"]["p99"] / 1000, "client": report["client_cpu_share"]}


def of_answers(report):
    return {"answers": report["answers_per_second"], "p50": report["answer_us"]["p50"],
            "p99": report["answer_us"]["p99"], "CPU": report["server_cpu_ns"] / report["answers"]}


def of_neighbour(report):
    quiet, busy = (report["neighbour_us"][when]["p99"] for when in ("quiet", "busy"))
    return {"quiet": quiet, "busy": busy, "delay ms": (busy - quiet) / 1000, "p99 ms": report["latency_us"]["p99"] / 1000}


def chappe(name, workers, listen=""):
    """For as many connections as there are, which come at once."""
    settings = (f"worker_processes={workers}", "timeouts.handshake=0")
    server = servers.Server(name, servers.CHAPPE, settings=settings, listen=listen)
    server.pids.append(server.process.pid)
    return server


RESP_LISTENER = 'protocol = "resp"\nbacklog = 4096\n'


def others():
    """Those that are installed, with what they speak, and those that are not."""
    there, left_out = [], []
    commands = {
        REDIS: ("resp", "redis-server", "--port", "{port}", "--save", "", "--dir", "{folder}",
                "--maxclients", str(NEIGHBOURS + 500), "--tcp-backlog", "4096"),
        NATS: ("nats", "nats-server", "-a", "127.0.0.1", "-p", "{port}"),
    }
    for name, (protocol, *command) in commands.items():
        # Where distributions put daemons is not in everybody's path.
        program = shutil.which(command[0]) or shutil.which(command[0], path="/usr/sbin:/sbin")
        if program:
            there.append((servers.Foreign(name, program, *command[1:]), protocol))
        else:
            left_out.append(name)
    return there, left_out


def topics(part, given):
    seconds = max(given.seconds, 1.0)
    there, left_out = others()
    two = [(chappe(RESP, 2, RESP_LISTENER), "resp"), (chappe(NATIVE, 2, "backlog = 4096\n"), "chappe")]
    one = [(chappe(RESP, 1, RESP_LISTENER), "resp"), (chappe(NATIVE, 1), "chappe")]
    case = lambda point, server, protocol, flags, figures: (
        (point, server.name), lambda: figures(ask(server, protocol, flags, seconds)))
    cases = [case(point, *server, flags, of_deliveries) for point, flags in DELIVERIES.items() for server in there + two]
    for point, flags in ANSWERS.items():
        cases += [case(point, *server, flags, of_answers) for server in there + (one if "ping" in point else two)]
    cases += [case("neighbour", *server, NEIGHBOUR, of_neighbour) for server in there + two]
    of_workers = {count: chappe(f"{count}", count, RESP_LISTENER) for count in WORKERS}
    cases += [case("workers", server, "resp", ANSWERS["publish c50p16"], of_answers) for server in of_workers.values()]
    runs = interleaved(cases, given)
    stop([server for server, _ in there + two + one] + list(of_workers.values()))

    names = [server.name for server, _ in there + two]
    note = ["", "Left out, since it is not installed here: " + ", ".join(left_out) + "."] if left_out else []
    has_redis = REDIS not in left_out
    of = lambda point, name, figure: median([run[figure] for run in runs[point, name]])

    def to_redis(point, name, figure):
        if not has_redis or name == REDIS:
            return ""
        return spread(ratios(runs, (point, name), (point, REDIS), figure))

    rows = [[point, name, f"{of(point, name, 'deliveries'):,.0f}", f"{of(point, name, 'p50'):,.0f}",
             f"{of(point, name, 'p99'):,.0f}", f"{of(point, name, 'CPU'):,.0f}", f"{of(point, name, 'client'):.2f}",
             *(to_redis(point, name, figure) for figure in ("deliveries", "p50", "p99", "CPU"))]
            for point in DELIVERIES for name in names]
    head = ["point", "server", "deliveries/s", "p50 µs", "p99 µs", "CPU ns a delivery", "the client's share of a CPU",
            "deliveries/s, to redis-server", "p50", "p99", "CPU"]
    part.add(DOCUMENT, "topics", table(head, rows) + note)

    rows = [[point, name, f"{of(point, name, 'answers'):,.0f}", f"{of(point, name, 'p50'):,.0f}", f"{of(point, name, 'CPU'):,.0f}",
             *(to_redis(point, name, figure) for figure in ("answers", "p50", "CPU"))]
            for point in ANSWERS for name in names]
    head = ["point", "server", "answers/s", "p50 µs", "CPU ns each", "answers/s, to redis-server", "p50", "CPU"]
    part.add(DOCUMENT, "topics answers", table(head, rows) + note)

    spread_of = lambda name, figure: spread([run[figure] for run in runs["neighbour", name]])
    rows = [[name, f"{NEIGHBOURS:,}", *(f"{of('neighbour', name, when):,.0f}" for when in ("quiet", "busy")),
             spread_of(name, "delay ms"), spread_of(name, "p99 ms")] for name in names]
    head = ["server", "subscribers", "its p99 µs while nobody publishes", "while somebody does", "that is more, ms", "p99 of a delivery, ms"]
    part.add(DOCUMENT, "topics neighbour", table(head, rows) + note)

    to_one = lambda count: spread(ratios(runs, ("workers", f"{count}"), ("workers", "1"), "answers"))
    rows = [[f"{count}", f"{of('workers', str(count), 'answers'):,.0f}", to_one(count)] for count in WORKERS]
    part.add(DOCUMENT, "topics workers", table(["workers", "answers/s", "to one worker"], rows))
    part.add(DOCUMENT, "topics goals", goals(runs, has_redis))


def goals(runs, has_redis):
    rows = []
    for figure, point, sign, goal in GOALS:
        if figure.endswith("ms"):
            value = median([run[figure] for run in runs[point, RESP]])
        elif point == "workers":
            value = median(ratios(runs, (point, "8"), (point, "1"), figure))
        elif has_redis:
            value = median(ratios(runs, (point, RESP), (point, REDIS), figure))
        else:
            rows.append([f"{TOLD[figure]}, {PLACES.get(point, point)}", f"{sign} {goal}", "not measured", ""])
            continue
        is_met = value <= goal if sign == "≤" else value >= goal
        rows.append([f"{TOLD[figure]}, {PLACES.get(point, point)}", f"{sign} {goal}", f"{value:.2f}", "yes" if is_met else "no"])
    return table(["what", "goal", "measured", "met"], rows)
