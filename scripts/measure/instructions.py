"""Instructions that a worker executes in user space, all of its threads: the real server under
valgrind, which counts them, so other load changes nothing."""

import pathlib, re, socket, struct, tempfile, time, zlib

import servers

BODY = bytes(range(64))
echo = lambda code: struct.pack(">HHI", 8 + len(BODY), code, zlib.crc32(BODY)) + BODY
ECHO = echo(1)
# A process that has to wait for its CPU takes detours, since its turns are bounded in time and its
# clocks tick: that only ever adds, so the least of some runs is taken, until the two least agree.
RUNS_MAX = 8


def exchange(address, messages, together):
    """Echoes `messages` on one connection, `together` in one read, and checks them."""
    batch = ECHO * together
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(messages // together):
            connection.sendall(batch)
            replies = b""
            while len(replies) < len(batch):
                received = connection.recv(len(batch))
                if not received:
                    raise servers.Failed("the server has closed the connection")
                replies += received
            if replies != batch:
                raise servers.Failed("a reply is not what was sent")


def connect_each(code):
    """Opens a connection for each message, which this code echoes, and closes it."""
    def talk(address, messages, _together):
        host, port = address.rsplit(":", 1)
        for _ in range(messages):
            with socket.create_connection((host, int(port)), timeout=60) as connection:
                connection.sendall(echo(code))
                if connection.recv(len(ECHO)) != echo(code):
                    raise servers.Failed("a reply is not what was sent")
    return talk


def wait_counted(server, messages):
    """The last are counted when they are answered, which a client may see before."""
    deadline = time.monotonic() + 20
    while (counted := server.status()["totals"]["frames_received"]) != messages:
        if time.monotonic() > deadline:
            raise servers.Failed(f"{counted} of {messages} messages were counted")
        time.sleep(0.02)


def of_a_life(program, settings, messages, together, counts, talk):
    """Of a whole life of a worker that answers `messages` messages."""
    with tempfile.TemporaryDirectory() as folder:
        # The worker may be another user.
        pathlib.Path(folder).chmod(0o777)
        valgrind = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={folder}/%p"]
        server = servers.Server("under valgrind", program, settings=(servers.ONE_WORKER, *settings), prefix=valgrind)
        talk(server.address, messages, together)
        wait_counted(server, messages if counts else 0)
        # Behind it may be the hub, which has nothing to do.
        worker = server.pids[0]
        server.stop()
        text = pathlib.Path(folder, str(worker)).read_text()
        return int(re.search(r"^(?:summary|totals): (\d+)", text, re.M)[1])


def of_a_message(program, settings, messages, together, agree, counts=True, talk=exchange):
    """What twice as many messages cost more, so start and end do not count."""
    least = []
    for times in (1, 2):
        totals = []
        while len(totals) < RUNS_MAX:
            total = of_a_life(program, settings, times * messages, together, counts, talk)
            totals = sorted([*totals, total])
            if len(totals) > 1 and totals[1] - totals[0] <= agree * totals[0]:
                break
        least.append(totals[0])
    once, twice = least
    return (twice - once) / messages
