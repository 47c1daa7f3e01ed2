"""What scripts/counting does after the builds; see there."""

import json, pathlib, re, socket, struct, subprocess, sys, tempfile, time, zlib

COUNTED, UNCOUNTED = (pathlib.Path(path).resolve() for path in sys.argv[1:3])
BODY, ECHO = bytes(range(64)), 1
FRAME = struct.pack(">HHI", 8 + len(BODY), ECHO, zlib.crc32(BODY)) + BODY
FEW, MANY, REPETITIONS = 2000, 6000, 3
# Name, worker.fuse, questions in one write, which come in one read.
WAYS = [("event loop alone, one at a time", "true", 1),
        ("event loop alone, 16 at a time", "true", 16)]


def talk(address, rounds, depth):
    """Asks, waits for all replies, asks again: so each round is one read and one write."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=60) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(rounds):
            peer.sendall(FRAME * depth)
            left = len(FRAME) * depth
            reply = b""
            while len(reply) < left:
                part = peer.recv(left - len(reply))
                assert part, "the server closed the connection"
                reply += part
            assert reply == FRAME * depth, "another reply"


def instructions(program, fuse, depth, rounds):
    """What the worker executes from its start to its end."""
    with tempfile.TemporaryDirectory() as directory:
        site = pathlib.Path(directory)
        (site / "chappe.toml").write_text(
            # As whoever runs this: a worker writes its own figures at its end.
            f'user = ""\nworker_processes = 1\n[[listen]]\naddress = "127.0.0.1:0"\n'
            f'[worker]\nfuse = {fuse}\n')
        where = ["-p", directory, "-c", str(site / "chappe.toml")]
        tool = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={directory}/out.%p"]
        with open(site / "stderr", "w") as stderr:
            server = subprocess.Popen([*tool, program, "--foreground", *where],
                                      stdout=subprocess.PIPE, stderr=stderr, text=True)
        try:
            ready = server.stdout.readline().split()
            assert ready[:1] == ["ready"], (site / "stderr").read_text()
            talk(ready[1], rounds, depth)
            status = json.loads(subprocess.check_output([program, "status", "--json", *where]))
            worker, asked = status["workers"][0]["pid"], status["totals"]["frames_received"]
            assert asked == (rounds * depth if program == COUNTED else 0), asked
            subprocess.check_call([program, "stop", "--wait", *where], stdout=subprocess.DEVNULL)
            assert server.wait(60) == 0, (site / "stderr").read_text()
        finally:
            server.kill()
            server.wait()
        out = (site / f"out.{worker}").read_text()
        return int(re.search(r"^(?:summary|totals): (\d+)", out, re.M)[1])


def a_message(program, fuse, depth):
    """The least of some: a process that has to wait for its CPU takes detours, since its
    turns are bounded in time and its clocks tick."""
    few, many = (min(instructions(program, fuse, depth, rounds) for _ in range(REPETITIONS))
                 for rounds in (FEW, MANY))
    return (many - few) / ((MANY - FEW) * depth)


print("| a message of 64 bytes | counted | not counted | counting |")
print("|---|---|---|---|")
for name, fuse, depth in WAYS:
    begun = time.monotonic()
    with_it, without = (a_message(program, fuse, depth) for program in (COUNTED, UNCOUNTED))
    share = 100 * (with_it - without) / with_it
    print(f"| {name} | {with_it:.1f} | {without:.1f} | {with_it - without:.1f} ({share:.1f} %) |",
          flush=True)
    print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
