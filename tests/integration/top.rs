//! `chappe top` in a terminal that the test has made.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::str::Chars;

use chappe_client::CODE_ECHO;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;

use chappe_testkit::site::{command, finish, program};
use chappe_testkit::{TestServer, wait_until};

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
    written: Vec<u8>,
    /// What is to be seen after that: the program only writes what has changed, and a
    /// word may come in pieces.
    shown: Picture,
}

const ROWS: u16 = 40;
const COLUMNS: u16 = 120;

/// The characters of a terminal, as far as this program makes use of one: it moves the
/// cursor, clears, and writes from there on. Colours and modes change no character.
struct Picture {
    cells: Vec<Vec<char>>,
    row: usize,
    column: usize,
}

impl Picture {
    fn new() -> Self {
        let cells = vec![vec![' '; COLUMNS.into()]; ROWS.into()];
        Self { cells, row: 0, column: 0 }
    }

    /// The picture after all of this; a sequence that is not whole yet is left out.
    fn of(bytes: &[u8]) -> Self {
        let mut picture = Self::new();
        let text = String::from_utf8_lossy(bytes);
        let mut rest = text.chars();
        while let Some(next) = rest.next() {
            match next {
                '\x1b' => picture.obey(&mut rest),
                '\r' => picture.column = 0,
                '\n' => picture.row += 1,
                shown => picture.put(shown),
            }
        }
        picture
    }

    fn put(&mut self, shown: char) {
        if let Some(cell) = self.cells.get_mut(self.row).and_then(|row| row.get_mut(self.column)) {
            *cell = shown;
        }
        self.column += 1;
    }

    /// A control sequence: parameters, then a letter.
    fn obey(&mut self, rest: &mut Chars<'_>) {
        if rest.next() != Some('[') {
            return;
        }
        let mut parameters = String::new();
        let last = rest.find(|letter| {
            let is_last = letter.is_ascii_alphabetic();
            if !is_last {
                parameters.push(*letter);
            }
            is_last
        });
        let mut numbers = parameters.split(';').map(|number| number.parse().unwrap_or(1_usize));
        match last {
            Some('H') => {
                let mut place = || numbers.next().unwrap_or(1).max(1) - 1;
                (self.row, self.column) = (place(), place());
            }
            Some('J') if parameters == "2" => self.cells = Self::new().cells,
            Some('J') => self.clear_from_here(),
            _ => {}
        }
    }

    fn clear_from_here(&mut self) {
        let first = self.row;
        for (number, row) in self.cells.iter_mut().enumerate().skip(first) {
            let column = if number == first { self.column } else { 0 };
            row.iter_mut().skip(column).for_each(|cell| *cell = ' ');
        }
    }

    fn text(&self) -> String {
        let rows: Vec<String> = self.cells.iter().map(|row| row.iter().collect()).collect();
        rows.iter().map(|row| row.trim_end()).collect::<Vec<_>>().join("\n")
    }
}

impl Screen {
    fn start(server: &TestServer) -> Self {
        Self::of(server, &["top"], "")
    }

    /// Another command in a terminal. The shell does `first` before it becomes the command.
    fn of(server: &TestServer, arguments: &[&str], first: &str) -> Self {
        let size = Winsize { ws_row: ROWS, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).expect("a pseudo terminal");
        let before = tcgetattr(&pty.slave).expect("settings");
        let flags = OFlag::O_NONBLOCK;
        fcntl(&pty.master, FcntlArg::F_SETFL(flags)).expect("flags");
        // The program must not hold our side, which would never be closed.
        fcntl(&pty.master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("flags");
        let side = || pty.slave.try_clone().expect("a second handle");
        // A session of its own, with this terminal: the size and the keys of whatever
        // terminal the tests run in are none of its business.
        let child = Command::new("setsid")
            .args([
                "--ctty",
                // It is ignored where the tests are started by nohup(1).
                "env",
                "--default-signal=HUP",
                "sh",
                "-c",
                &format!("{first}\nexec \"$0\" \"$@\""),
                &program("chappe"),
            ])
            .args(arguments)
            .arg("-c")
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
        Self {
            child,
            keys,
            terminal: pty.slave,
            before,
            written: Vec::new(),
            shown: Picture::new(),
        }
    }

    fn read(&mut self) {
        let mut part = [0; 4096];
        loop {
            match self.keys.read(&mut part) {
                Ok(0) => break,
                Ok(n) => self.written.extend(&part[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        self.shown = Picture::of(&self.written);
    }

    /// How often this was written, and where last.
    fn places(&self, sequence: &str) -> Vec<usize> {
        let text = String::from_utf8_lossy(&self.written);
        text.match_indices(sequence).map(|(place, _)| place).collect()
    }

    #[track_caller]
    fn wait_shows(&mut self, text: &str) {
        wait_until(&format!("{text:?} on the screen"), || {
            self.read();
            self.shown.text().contains(text)
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

    /// Our side is closed, the program's side is not.
    fn close(&mut self) {
        self.keys = File::open("/dev/null").expect("it is always there");
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_some()
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
        let (entered, left) = (self.places(ENTER), self.places(LEAVE));
        assert_eq!(entered.len(), 1);
        assert!(left.last() > entered.last(), "{}", self.shown.text());
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.read();
            eprintln!("--- screen\n{}", self.shown.text());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A daemon that does not outlive the test.
struct Daemon<'a>(&'a TestServer);

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        self.0.run(&["stop", "--wait"]);
    }
}

#[test]
fn a_word_that_is_drawn_in_pieces_is_read_as_one() {
    let drawn = "\x1b[?1049h\x1b[2J\x1b[3;5Htrxxng\x1b[38;5;1mé\x1b[3;7H\x1b[1myi\x1b[0m\x1b[";
    assert_eq!(Picture::of(drawn.as_bytes()).text().trim(), "tryingé");
    let cleared = format!("{drawn}0m\x1b[2J");
    assert_eq!(Picture::of(cleared.as_bytes()).text().trim(), "");
}

#[test]
fn top_shows_the_server_through_a_restart_until_q() {
    let mut server = TestServer::start("top_restart", "");
    let mut client = server.connect();
    client.call(CODE_ECHO, b"here").unwrap();
    let mut screen = Screen::start(&server);
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
    screen.wait_shows("q quit");
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

/// A window that is closed, or a connection that is lost: told by a signal, or with `nohup`
/// by nothing but the terminal itself.
#[test]
fn what_draws_ends_with_its_terminal() {
    let server = TestServer::start("top_closed", "");
    for (arguments, shows) in [
        (&["top"][..], "connection_permits"),
        (&["status", "--watch"], "connection_permits"),
        (&["logs", "-f"], "worker serves"),
    ] {
        for first in ["", "trap '' HUP"] {
            let mut screen = Screen::of(&server, arguments, first);
            screen.wait_shows(shows);
            screen.close();
            wait_until(&format!("{arguments:?} ends, {first:?}"), || screen.has_ended());
        }
    }
    // A measurement ends by the signal, and goes on with `nohup`.
    let mut screen = Screen::of(&server, &["bench", "--duration", "1h"], "");
    screen.wait_shows("measuring");
    screen.close();
    wait_until("bench ends", || screen.has_ended());
}

#[test]
fn top_without_a_terminal_is_refused_with_a_hint() {
    let server = TestServer::start("top_no_terminal", "");
    let top = server.run(&["top"]);
    assert_eq!((top.code, top.stdout.as_str()), (Some(1), ""), "{top:?}");
    assert!(top.stderr.contains("chappe status --watch"), "{top:?}");
}
