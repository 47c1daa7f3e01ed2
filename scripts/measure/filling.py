"""What scripts/filling does after the build: a client fills its socket with echoes and empties
it again, ROUNDS times, at each value of send.notsent_lowat."""

import pathlib, socket, struct, sys, time, zlib

import servers

BODY = bytes(65527)
FRAME = struct.pack(">HHI", 8 + len(BODY), 1, zlib.crc32(BODY)) + BODY
# The peer's acknowledgement and the event loop's EPOLLOUT take a moment.
PAUSE = 0.05
DEADLINE = 10


def fill(server, rounds):
    totals = lambda: server.status()["totals"]
    host, port = server.address.rsplit(":", 1)
    client = socket.create_connection((host, int(port)))
    client.settimeout(DEADLINE)
    sent = read = 0
    for number in range(1, rounds + 1):
        before = totals()
        echoes = 0
        while True:
            client.sendall(FRAME)
            sent, echoes = sent + 1, echoes + 1
            give_up = time.monotonic() + DEADLINE
            while True:
                now = totals()
                is_blocked = now["sends_blocked"] > before["sends_blocked"]
                if is_blocked or now["frames_sent"] == sent:
                    break
                assert time.monotonic() < give_up, f"neither sent nor blocked: {now}"
            if is_blocked:
                break
        held = now["bytes_sent"] - read * len(FRAME)
        replies = 0
        while totals()["send_calls"] == now["send_calls"]:
            left = len(FRAME)
            while left:
                left -= len(client.recv(left))
            read, replies = read + 1, replies + 1
            time.sleep(PAUSE)
        print(
            f"  round {number}: blocked at echo {echoes}, {held} bytes with the kernel;"
            f" the server sends again after {replies} replies were read",
            flush=True,
        )


def main():
    program, rounds = sys.argv[1], int(sys.argv[2])
    kernel = lambda name: " ".join(pathlib.Path("/proc/sys", name).read_text().split())
    print(f"kernel {kernel('kernel/osrelease')}, tcp_wmem {kernel('net/ipv4/tcp_wmem')},"
          f" tcp_rmem {kernel('net/ipv4/tcp_rmem')}")
    for lowat in "64KiB", "0":
        server = servers.Server("filling", program, settings=[servers.ONE_WORKER, f"send.notsent_lowat={lowat}"])
        print(f"send.notsent_lowat = {lowat}", flush=True)
        fill(server, rounds)
        server.stop()


main()
