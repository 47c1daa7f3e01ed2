"""Takes the pictures of docs/pictures; see scripts/pictures."""

import contextlib, pathlib, shutil, socket, struct, subprocess, sys, tempfile, time, zlib

import servers, terminal

# As long as the page's history is to be, before its picture is taken.
LOAD_SECONDS = 150
SETTINGS = ("worker_processes=4", "max_connections=500", "worker.fuse=false",
            "metrics.address=\"127.0.0.1:0\"")
# Clients that send this many echoes of 60000 bytes and do not read.
STALLED, ECHOES = 3, 40


def stalled_client(address):
    host, port = address.rsplit(":", 1)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((host, int(port)))
    client.settimeout(2)
    body = bytes(60000)
    frame = struct.pack(">HHI", len(body) + 8, 1, zlib.crc32(body)) + body
    with contextlib.suppress(TimeoutError):  # by then it is full
        for _ in range(ECHOES):
            client.sendall(frame)
    return client


def load(server, connections, rate, seconds):
    command = [servers.CHAPPE, "bench", *server.site, "--connections", connections, "--rate", rate,
               "--duration", f"{seconds}s"]
    return subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main():
    folder = pathlib.Path(sys.argv[1])
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("scripts/pictures needs chromium")
    server = servers.Server("chappe", servers.CHAPPE, settings=SETTINGS)
    chappe = [str(servers.CHAPPE)]
    loads = [load(server, 120, 4000, LOAD_SECONDS)]
    time.sleep(LOAD_SECONDS / 3)
    loads.append(load(server, 60, 8000, LOAD_SECONDS / 3))
    clients = [stalled_client(server.address) for _ in range(STALLED)]
    time.sleep(LOAD_SECONDS / 4)
    status = subprocess.run([*chappe, "status", *server.site], capture_output=True, text=True, check=True).stdout
    lines = status.splitlines()
    still = terminal.Terminal(max(map(len, lines)), len(lines) + 1)
    still.write("$ chappe status\r\n" + "\r\n".join(lines))
    (folder / "status.svg").write_text(still.svg("chappe status"))
    live = terminal.run([*chappe, "top", *server.site], 134, 31, 5, b"c")
    (folder / "top.svg").write_text(live.svg("chappe top"))
    address = next(line.split()[2].rstrip("/,") for line in lines if line.startswith("metrics at"))
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                        "--disable-dev-shm-usage", f"--user-data-dir={profile}", "--window-size=1300,1210",
                        "--virtual-time-budget=2500", f"--screenshot={folder / 'page.png'}", address + "/"],
                       check=True, capture_output=True)
    for client in clients:
        client.close()
    for each in loads:
        each.terminate()
        each.wait()


main()
