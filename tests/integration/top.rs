//! `chappe top` in a terminal that the test has made.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};

use chappe::client::CODE_ECHO;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;

use crate::support::server::{PROGRAM, command, finish};
use crate::support::{TestServer, wait_until};

/// What a terminal is told at the beginning and the end of a full screen.
const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";

/// `chappe top` with a terminal of its own.
struct Screen {
    child: Child,
    /// Our side of the terminal.
    keys: File,
    /// The program's side, which keeps its settings.
    terminal: OwnedFd,
    before: Termios,
    /// All that was written so far.
    shown: String,
}

impl Screen {
    fn start(server: &TestServer) -> Self {
        let size = Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).expect("a pseudo terminal");
        let before = tcgetattr(&pty.slave).expect("settings");
        let flags = OFlag::O_NONBLOCK;
        fcntl(&pty.master, FcntlArg::F_SETFL(flags)).expect("flags");
        let side = || pty.slave.try_clone().expect("a second handle");
        // A session of its own, with this terminal: the size and the keys of whatever
        // terminal the tests run in are none of its business.
        let child = Command::new("setsid")
            .args(["--ctty", PROGRAM, "top", "-c"])
            .arg(server.dir.join("chappe.toml"))
            .arg("-p")
            .arg(&server.dir)
            .env("TERM", "xterm")
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .expect("setsid of util-linux");
        let keys = File::from(pty.master);
        Self { child, keys, terminal: pty.slave, before, shown: String::new() }
    }

    fn read(&mut self) {
        let mut part = [0; 4096];
        loop {
            match self.keys.read(&mut part) {
                Ok(0) => return,
                Ok(n) => self.shown.push_str(&String::from_utf8_lossy(&part[..n])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// A word without spaces: what stays as it is is not written again.
    #[track_caller]
    fn wait_shows(&mut self, word: &str) {
        self.wait_shows_times(word, 1);
    }

    #[track_caller]
    fn wait_shows_times(&mut self, word: &str, times: usize) {
        wait_until(&format!("{word:?} on the screen, {times} times"), || {
            self.read();
            self.shown.matches(word).count() >= times
        });
    }

    #[track_caller]
    fn wait_exit(&mut self) -> ExitStatus {
        let mut ended = None;
        wait_until("top ends", || {
            // A terminal that nobody reads is a program that waits.
            self.read();
            ended = self.child.try_wait().expect("our own child");
            ended.is_some()
        });
        self.read();
        ended.expect("it has")
    }

    fn is_raw(&self) -> bool {
        let now = tcgetattr(&self.terminal).expect("settings");
        !now.local_flags.contains(LocalFlags::ICANON)
    }

    #[track_caller]
    fn assert_restored(&self) {
        let now = tcgetattr(&self.terminal).expect("settings");
        assert_eq!(now.local_flags, self.before.local_flags);
        assert_eq!(now.input_flags, self.before.input_flags);
        assert_eq!(now.output_flags, self.before.output_flags);
        assert_eq!(self.shown.matches(ENTER).count(), 1);
        assert!(self.shown.rfind(LEAVE) > self.shown.rfind(ENTER), "{:?}", self.shown);
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.read();
            eprintln!("--- screen {:?}", self.shown);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A daemon that does not outlive the test.
struct Daemon<'a>(&'a TestServer);

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        self.0.command(&["stop", "--wait"]);
    }
}

#[test]
fn top_shows_the_server_through_a_restart_until_q() {
    let mut server = TestServer::start("top_restart", "");
    let mut client = server.connect();
    client.call(CODE_ECHO, b"here").unwrap();
    let mut screen = Screen::start(&server);
    screen.wait_shows(ENTER);
    screen.wait_shows("connection_permits");
    screen.wait_shows("frames_received");
    for pid in server.worker_pids() {
        screen.wait_shows(&pid.to_string());
    }
    assert!(screen.is_raw(), "keys come one by one");
    server.signal(Signal::SIGTERM);
    server.wait_exit();
    screen.wait_shows("trying");
    assert_eq!(finish(&mut command(&server.dir)).code, Some(0));
    let daemon = Daemon(&server);
    // In the place of what was wrong, in another colour: all of it is written again.
    screen.wait_shows_times("quits", 2);
    screen.keys.write_all(b"xq").unwrap();
    assert_eq!(screen.wait_exit().code(), Some(0));
    screen.assert_restored();
    drop(daemon);
}

#[test]
fn top_gives_the_terminal_back_when_a_signal_ends_it() {
    let server = TestServer::start("top_signals", "");
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut screen = Screen::start(&server);
        screen.wait_shows("connection_permits");
        let pid = i32::try_from(screen.child.id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
        assert_eq!(screen.wait_exit().code(), Some(0), "{signal}");
        screen.assert_restored();
    }
}

#[test]
fn top_without_a_terminal_is_refused_with_a_hint() {
    let server = TestServer::start("top_no_terminal", "");
    let top = server.command(&["top"]);
    assert_eq!((top.code, top.stdout.as_str()), (Some(1), ""), "{top:?}");
    assert!(top.stderr.contains("chappe status --watch"), "{top:?}");
}
