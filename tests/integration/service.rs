//! Under a service manager: what it is told, and the sockets that it passes.

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use chappe_client::{CODE_ECHO, Connection};
use chappe_sys::clock::monotonic_us;
use nix::sys::signal::Signal;

use chappe_testkit::site::{configuration, finish, program};
use chappe_testkit::{DEADLINE, TestServer, fresh_dir, wait_until};

/// A service manager's ear.
struct Manager {
    directory: tempfile::TempDir,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = UnixDatagram::bind(directory.path().join("notify")).expect("bound");
        socket.set_read_timeout(Some(DEADLINE)).expect("a time-out");
        Self { directory, socket }
    }

    fn program(&self) -> Command {
        let mut program = Command::new(program("chappe"));
        program.stdin(Stdio::null()).env("NOTIFY_SOCKET", self.directory.path().join("notify"));
        program
    }

    /// The next message that is no sign of life; and how many came before it.
    #[track_caller]
    fn hear(&self) -> (String, usize) {
        let mut pings = 0;
        loop {
            let mut buffer = [0; 4096];
            let bytes = self.socket.recv(&mut buffer).expect("a message");
            match std::str::from_utf8(&buffer[..bytes]).expect("text") {
                "WATCHDOG=1" => pings += 1,
                text => return (text.to_owned(), pings),
            }
        }
    }
}

#[test]
fn the_manager_hears_of_ready_and_of_stopping() {
    let manager = Manager::new();
    let mut server = TestServer::start_program(manager.program(), "notify", "");
    let (ready, pings) = manager.hear();
    assert_eq!(pings, 0, "nobody asked for them");
    let expected = format!(
        "READY=1\nMAINPID={}\nSTATUS=serving on {} with 2 workers\n",
        server.pid(),
        server.address
    );
    assert_eq!(ready, expected);
    server.signal(Signal::SIGQUIT);
    let (stopping, _) = manager.hear();
    assert!(stopping.starts_with("STOPPING=1\nEXTEND_TIMEOUT_USEC="), "{stopping}");
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn the_manager_hears_of_a_reload_and_of_its_end() {
    let manager = Manager::new();
    let server = TestServer::start_program(manager.program(), "notify_reload", "");
    manager.hear();
    let toml = |more: &str| configuration(&format!("worker_processes = 3\n{more}"));
    fs::write(server.dir.join("chappe.toml"), toml("")).expect("the configuration");
    assert_eq!(server.run(&["reload"]).code, Some(0));
    let (reloading, _) = manager.hear();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    let (ready, _) = manager.hear();
    assert!(ready.starts_with("READY=1\n") && ready.contains(" with 3 workers\n"), "{ready}");
    // Also of one that fails at its first step, and never of one before it was asked for.
    for wrong in ["wrong = 1\n", "wrong = 2\n", "wrong = 3\n"] {
        fs::write(server.dir.join("chappe.toml"), toml(wrong)).expect("the configuration");
        let asked = monotonic_us();
        server.signal(Signal::SIGHUP);
        let (reloading, _) = manager.hear();
        let micros = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
        let micros: u64 = micros.and_then(|text| text.parse().ok()).expect("microseconds");
        assert!((asked..=monotonic_us()).contains(&micros), "{micros}, asked at {asked}");
        assert!(manager.hear().0.starts_with("READY=1\n"));
    }
    server.signal(Signal::SIGTERM);
    assert!(manager.hear().0.starts_with("STOPPING=1\n"));
}

#[test]
fn the_watchdog_is_fed_by_the_masters_loop() {
    let manager = Manager::new();
    let mut program = manager.program();
    program.env("WATCHDOG_USEC", "100000");
    let server = TestServer::start_program(program, "watchdog", "");
    manager.socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
    let mut pings = 0;
    while pings < 5 {
        let mut buffer = [0; 4096];
        let bytes = manager.socket.recv(&mut buffer).expect("a sign of life");
        pings += u32::from(&buffer[..bytes] == b"WATCHDOG=1");
    }
    drop(server);

    // One that is meant for another process is not ours.
    let mut program = manager.program();
    program.env("WATCHDOG_USEC", "1000").env("WATCHDOG_PID", "1");
    let other = Manager::new();
    program.env("NOTIFY_SOCKET", other.directory.path().join("notify"));
    let server = TestServer::start_program(program, "watchdog_of_another", "");
    server.status_json();
    server.signal(Signal::SIGTERM);
    let (ready, before) = other.hear();
    let (stopping, between) = other.hear();
    assert!(ready.starts_with("READY=1") && stopping.starts_with("STOPPING=1"));
    assert_eq!((before, between), (0, 0));
}

/// A manager that waits for a microsecond makes a mistake. It gets a sign of life each 10 ms and
/// no more, and what is logged once it no longer reads them is bounded, too.
#[test]
fn a_watchdog_of_a_microsecond_is_fed_each_10_ms_and_is_no_storm_of_warnings() {
    const PINGS: u32 = 50;
    const PAUSE: Duration = Duration::from_millis(10);
    let manager = Manager::new();
    let mut program = manager.program();
    program.env("WATCHDOG_USEC", "1");
    let server = TestServer::start_program(program, "watchdog_microsecond", "");
    // What waits in the socket was sent before; a storm would never let it be empty.
    manager.socket.set_nonblocking(true).expect("set");
    let waits = |_: &u32| manager.socket.recv(&mut [0; 100]).is_ok();
    let waiting = (0..1000).take_while(waits).count();
    assert!(waiting < 1000, "signs of life come faster than they are read");
    manager.socket.set_nonblocking(false).expect("set");
    let began = Instant::now();
    for _ in 0..PINGS {
        let mut buffer = [0; 100];
        let bytes = manager.socket.recv(&mut buffer).expect("a sign of life");
        assert_eq!(&buffer[..bytes], b"WATCHDOG=1");
    }
    // The first may be on its way when the clock is started.
    let elapsed = began.elapsed();
    assert!(elapsed >= PAUSE * (PINGS - 2), "{PINGS} signs of life in {elapsed:?}");

    drop(manager);
    server.wait_event("master", "manager.failed", "");
    let uptime_ms = || server.status().master.uptime_ms;
    let refused_at = uptime_ms();
    wait_until("some hundred more were refused", || uptime_ms() > refused_at + 2000);
    let warnings = server.events("master", "manager.failed");
    // Two in ten seconds, and ten seconds may be over in between.
    assert!(warnings.len() <= 4, "{warnings:#?}");
}

#[test]
fn a_manager_that_is_not_there_is_no_reason_not_to_serve() {
    let mut command = Command::new(program("chappe"));
    command.stdin(Stdio::null()).env("NOTIFY_SOCKET", "/nowhere/notify");
    let server = TestServer::start_program(command, "notify_nobody", "");
    server.wait_event("master", "manager.absent", "");
    let mut command = Command::new(program("chappe"));
    command.stdin(Stdio::null()).env("NOTIFY_SOCKET", "relative");
    let server = TestServer::start_program(command, "notify_wrong", "");
    let warnings = server.status().master.warnings;
    assert!(warnings[0].contains("NOTIFY_SOCKET"), "{warnings:?}");
}

/// The server's program with a listening socket as descriptor 3, as systemd passes it.
fn activated(socket: OwnedFd) -> Command {
    let mut shell = Command::new("sh");
    let script = "LISTEN_FDS=1 LISTEN_PID=$$; export LISTEN_FDS LISTEN_PID; \
                  exec \"$0\" \"$@\" 3<&0 0</dev/null";
    shell.arg("-c").arg(script).arg(program("chappe")).stdin(Stdio::from(socket));
    shell
}

#[test]
fn a_passed_port_is_served() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("an address");
    // A connect that comes before the server does is served, too.
    let mut early = Connection::connect(address, DEADLINE).expect("in the backlog");
    early.send(CODE_ECHO, b"early").expect("sent");
    let toml = format!("[[listen]]\naddress = \"{address}\"\n");
    let mut server = TestServer::start_program(activated(listener.into()), "passed_port", &toml);
    assert_eq!(server.address, address);
    assert_eq!(early.receive().expect("a reply").body, "early");
    assert_eq!(server.connect().call(CODE_ECHO, b"late").expect("a reply").body, "late");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn a_passed_path_is_served_and_left_there() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("a.sock");
    let listener = UnixListener::bind(&path).expect("bound");
    let toml = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\n[[listen]]\naddress = \"unix:{}\"\n",
        path.display()
    );
    let mut server = TestServer::start_program(activated(listener.into()), "passed_path", &toml);
    let mut client = Connection::connect_unix(&path, DEADLINE).expect("connected");
    assert_eq!(client.call(CODE_ECHO, b"x").expect("a reply").body, "x");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    assert!(path.exists(), "it belongs to the program that passed it");
}

/// Starts with a passed socket what must fail, and says why it did.
#[track_caller]
fn failure(dir: &Path, socket: OwnedFd, arguments: &[&str]) -> String {
    let mut command = activated(socket);
    command.arg("-p").arg(dir).arg("-c").arg(dir.join("chappe.toml")).args(arguments);
    let finished = finish(&mut command);
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(1), ""), "{finished:?}");
    finished.stderr
}

#[test]
fn passed_sockets_that_cannot_be_served_are_errors() {
    let dir = fresh_dir("passed_wrong");
    fs::write(dir.join("chappe.toml"), configuration("")).expect("the configuration");
    let listener = || TcpListener::bind("127.0.0.1:0").expect("bound");
    let (port, foreground) = (listener(), ["--foreground"]);
    let address = port.local_addr().expect("an address").to_string();
    let reason = failure(&dir, port.into(), &foreground);
    assert!(reason.contains("no [[listen]] table names") && reason.contains(&address), "{reason}");
    let reason = failure(&dir, listener().into(), &[]);
    assert!(reason.contains("start with --foreground"), "{reason}");
    let reason = failure(&dir, tempfile::tempfile().expect("a file").into(), &foreground);
    assert!(reason.contains("descriptor 3, passed by LISTEN_FDS, is not a listening"), "{reason}");
}

#[test]
fn the_units_reload_asks_the_server_that_it_has_started() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let unit = fs::read_to_string(root.join("conf/chappe.service")).expect("a unit file");
    let options = |key: &str, call: &str| {
        let start = format!("{key}=/usr/local/bin/chappe {call} ");
        let line = unit.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap_or_else(|| panic!("no {start} in {unit}")).to_owned()
    };
    assert_eq!(options("ExecReload", "reload"), options("ExecStart", "--foreground"));
}

#[test]
fn the_unit_is_one_that_systemd_takes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = fresh_dir("unit");
    for name in ["chappe.service", "chappe.socket"] {
        let unit = fs::read_to_string(root.join("conf").join(name)).expect("a unit file");
        // The program need not be installed here.
        let unit = unit.replace("/usr/local/bin/chappe", &program("chappe"));
        fs::write(dir.join(name), unit).expect("a copy");
    }
    let mut verify = Command::new("systemd-analyze");
    verify.arg("verify").arg(dir.join("chappe.service")).arg(dir.join("chappe.socket"));
    if verify.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        println!("skipped: there is no systemd-analyze");
        return;
    }
    let verified = finish(&mut verify);
    assert_eq!(verified.code, Some(0), "{verified:?}");
    let ours = verified.stderr.lines().find(|line| line.contains("chappe"));
    assert_eq!(ours, None, "{verified:?}");
}
