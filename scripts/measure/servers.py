"""Programs under test: started each in a directory of its own, asked by `chappe bench`."""

import atexit, json, os, pathlib, re, socket, subprocess, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILT = ROOT / "target/release"
CHAPPE = BUILT / "chappe"
FRAME_BYTES = 65535
ONE_WORKER = "worker_processes=1"


class Failed(SystemExit):
    """A run that is not clean ends everything: its figures would be of something else."""


class Server:
    """A program that prints `ready ADDRESS`; its work is done in `pids`. `head` and `listen` are
    lines of the configuration: those before the first table, and those of the listener."""

    def __init__(self, name, *command, settings=None, prefix=(), head="", listen=""):
        self.name, self.program, self.dir = name, command[0], tempfile.TemporaryDirectory()
        command = [*prefix, *map(str, command)]
        if settings is not None:
            toml = f"{head}[log]\nlevel = \"warn\"\n[[listen]]\naddress = \"127.0.0.1:0\"\n{listen}"
            pathlib.Path(self.dir.name, "chappe.toml").write_text(toml)
            self.site = ["-p", self.dir.name, "-c", self.dir.name + "/chappe.toml"]
            self.settings = []
            for setting in settings:
                self.settings += ["--set", setting]
            command += ["--foreground", *self.site, *self.settings]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        # A run that fails leaves no server behind.
        atexit.register(self.process.terminate)
        ready = self.process.stdout.readline().split()
        if ready[:1] != ["ready"]:
            raise Failed(f"{name} does not start: {self.process.communicate()[1]}")
        self.address = ready[1]
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        self.pids = [int(pid) for pid in children.split()] or [self.process.pid]

    def command(self, *flags, seconds, warmup="200ms"):
        """The command line of a run; the server's settings do not matter to it."""
        command = [CHAPPE, "bench", "--json", "--to", self.address, "--warmup", warmup,
                   "--duration", f"{int(seconds * 1000)}ms"]
        for pid in self.pids:
            command += ["--server-pid", pid]
        return [str(word) for word in (*command, *flags)]

    def bench(self, *flags, seconds, **more):
        command = self.command(*flags, seconds=seconds, **more)
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            raise Failed(f"{self.name}: {' '.join(command)}\n{run.stdout}{run.stderr}")
        return json.loads(run.stdout)

    def anonymous(self):
        """Bytes of the first of its processes that are in no file."""
        text = pathlib.Path(f"/proc/{self.pids[0]}/status").read_text()
        return int(re.search(r"RssAnon:\s*(\d+)", text)[1]) * 1024

    def status(self):
        status = subprocess.run([self.program, "status", "--json", *self.site], capture_output=True, text=True)
        if status.returncode:
            raise Failed(f"{self.name}: {status.stderr}")
        return json.loads(status.stdout)

    def connections(self):
        return [worker["connections"] for worker in self.status()["workers"]]

    def wait_connections(self, is_enough):
        """The connections of each worker as soon as `is_enough` of their sum."""
        deadline = time.monotonic() + 20
        while True:
            connections = self.connections()
            if is_enough(sum(connections)):
                return connections
            if time.monotonic() > deadline:
                raise Failed(f"{self.name}: {connections} connections after 20 seconds")
            time.sleep(0.02)

    def stop(self):
        self.process.terminate()
        self.process.communicate()
        atexit.unregister(self.process.terminate)
        self.dir.cleanup()


class Foreign:
    """A server of others, on a port of its own: it listens when it can be connected to. `command`
    has `{port}` and `{folder}` in it."""

    def __init__(self, name, *command):
        self.name, self.dir = name, tempfile.TemporaryDirectory()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        words = [word.format(port=port, folder=self.dir.name) for word in command]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        atexit.register(self.process.terminate)
        self.address, self.pids = f"127.0.0.1:{port}", [self.process.pid]
        deadline = time.monotonic() + 20
        while True:
            try:
                return socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise Failed(f"{name} does not start")
                time.sleep(0.02)

    def stop(self):
        self.process.terminate()
        self.process.wait()
        atexit.unregister(self.process.terminate)
        self.dir.cleanup()


class Traced(Server):
    """A server under strace, which makes some system calls fail. It ends with the block, with
    `exit_code`, and `trace` is what strace has written."""

    def __init__(self, name, program, fault, settings):
        file = tempfile.NamedTemporaryFile("r")
        prefix = ["strace", "-f", "-o", file.name, "-e", f"inject={fault}"]
        head, listen = "[timeouts]\nlinger = \"500ms\"\n", "send_buffer = 16384\n"
        super().__init__(name, program, settings=[ONE_WORKER, *settings], prefix=prefix, head=head, listen=listen)
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run([self.program, "-s", "stop", *self.site])
        self.process.communicate()
        atexit.unregister(self.process.terminate)
        self.exit_code, self.trace = self.process.returncode, self.file.read()
        self.dir.cleanup()


def limit():
    return Server("limit", BUILT / "examples/limit")


def chappe(name="chappe", *settings):
    """As it comes, with one worker, unless `settings` say otherwise."""
    return Server(name, CHAPPE, settings=(ONE_WORKER, *settings))


def stock():
    """As it comes."""
    return Server("chappe", CHAPPE, settings=())


def three_threads():
    return chappe("three threads", "worker.fuse=false")


def classic():
    # With more than one handler thread it answers out of order.
    return Server("classic", BUILT / "examples/classic", "1")


def burn(name, *settings):
    """With handlers that compute and block: benches/burn.rs."""
    return Server(name, BUILT / "examples/burn", settings=(ONE_WORKER, *settings))


def service(name, *settings):
    """A service with a state for each connection: benches/service.rs."""
    return Server(name, BUILT / "examples/service", settings=(ONE_WORKER, *settings))


def peers():
    """Those whose tools are here, and why the others are not."""
    there, left_out = [], []
    tokio = ROOT / "target/peers/release/peers"
    if tokio.exists():
        for way, told in (("loop", "tokio, by hand"), ("codec", "tokio-util codec")):
            for threads in (1, 2):
                name = f"{told}, {threads} thread{'s' if threads > 1 else ''}"
                there.append(Server(name, tokio, way, threads))
    else:
        left_out.append("tokio (benches/peers is not built)")
    go = ROOT / "target/peers/go"
    if go.exists():
        there.append(Server("Go, a goroutine a connection", go))
    else:
        left_out.append("Go (not built: no `go` here)")
    try:
        there.append(Server("Node", "node", ROOT / "benches/peers/node.js"))
    except FileNotFoundError:
        left_out.append("Node (no `node` here)")
    except Failed:
        left_out.append("Node (its zlib has no crc32)")
    return there, left_out
