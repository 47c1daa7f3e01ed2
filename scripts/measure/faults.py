"""What scripts/faults does after the build; see there."""

import base64, os, pathlib, re, subprocess, sys, time

import servers

PROGRAM = sys.argv[1]
# whole: each client gets each reply. cut: the first connection may be lost.
CASES = [
    ("whole", "sendmsg,sendto:error=EAGAIN:when=3+7"),
    ("whole", "sendmsg,sendto:error=EINTR:when=2+3"),
    ("whole", "sendmsg,sendto:error=ENOBUFS:when=5+11"),
    ("whole", "sendmsg,sendto:error=ENOMEM:when=5+11"),
    ("cut", "sendmsg,sendto:error=EPIPE:when=20"),
    ("cut", "sendmsg,sendto:error=ECONNRESET:when=20"),
    ("cut", "epoll_ctl:error=ENOMEM:when=12"),
    ("cut", "epoll_ctl:error=ENOSPC:when=9"),
    ("whole", "recvfrom:error=EINTR:when=2+3"),
    ("whole", "recvfrom:error=EAGAIN:when=2+3"),
    ("cut", "recvfrom:error=ECONNRESET:when=9"),
    ("whole", "accept4:error=EMFILE:when=1..2"),
    ("whole", "accept4:error=ENFILE:when=1..2"),
    ("whole", "accept4:error=ECONNABORTED:when=1..3"),
    ("whole", "accept4:error=EINTR:when=1..3"),
    ("whole", "epoll_wait:error=EINTR:when=3+5"),
    ("whole", "sendmsg,sendto:delay_enter=3000:when=2+9"),
]
COUNT = 300
DEADLINE = 10
IDLE_TICKS_MAX = 5


def status(server):
    """The fault may hit the answer to this question: then the command says so, and the question
    is asked again."""
    try:
        return server.status()
    except servers.Failed:
        return server.status()


def ticks(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def check(kind, fault, fuse, body):
    """What was wrong."""
    wrong = []
    with servers.Traced("faults", PROGRAM, fault, [f"worker.fuse={fuse}"]) as server:
        file = pathlib.Path(server.dir.name, "body")
        file.write_bytes(body)
        for client in 1, 2, 3:
            command = [PROGRAM, "send", "--to", server.address, "--count", str(COUNT), "--file", str(file)]
            sent = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            whole = sent.stdout.splitlines().count(body)
            if (kind, client) != ("cut", 1) and (sent.returncode, whole) != (0, COUNT):
                wrong.append(f"client {client}: exit {sent.returncode}, {whole} whole replies")
        give_up = time.monotonic() + DEADLINE
        while True:
            now = status(server)
            left = now["workers"][0]["connections"], now["semaphores"]["connection_permits"]
            if left == (0, 100000) or time.monotonic() > give_up:
                break
            time.sleep(0.1)
        if left != (0, 100000):
            wrong.append(f"{left[0]} connections are left, and {left[1]} permits are free")
        if now["totals"]["workers_died"]:
            wrong.append("a worker died")
        worker = now["workers"][0]["pid"]
        before = ticks(worker)
        time.sleep(0.5)
        if (spent := ticks(worker) - before) > IDLE_TICKS_MAX:
            wrong.append(f"an idle worker used {spent} ticks in half a second")
    if server.exit_code:
        wrong.append(f"the server ended with exit code {server.exit_code}")
    # A fault that nothing ran into proves nothing.
    if not re.search("INJECTED|DELAYED", server.trace):
        wrong.append("the fault never happened")
    return wrong


def main():
    body = base64.b64encode(os.urandom(15000))
    failed = 0
    for kind, fault in CASES:
        for fuse in "true", "false":
            wrong = check(kind, fault, fuse, body)
            failed += bool(wrong)
            for line in wrong:
                print(f"  {line}")
            print(f"{'FAILED' if wrong else 'ok    '}  {fault} worker.fuse={fuse}", flush=True)
    print(f"{2 * len(CASES) - failed} passed, {failed} failed")
    sys.exit(failed > 0)


main()
