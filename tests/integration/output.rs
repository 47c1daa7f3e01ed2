//! What commands print, and that they don't mind who stops reading.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use chappe_client::CODE_PING;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use chappe_testkit::site::{command, finish, program};
use chappe_testkit::{TestServer, wait_until};

/// Runs a command whose output nobody reads; what it says on stderr and its code.
#[track_caller]
fn unread(command: &mut Command) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output =
        command.stdout(writer).stderr(Stdio::piped()).output().expect("the command starts");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_reader_that_has_left_is_no_failure_of_any_command() {
    let server = TestServer::start("unread_output", "");
    let calls: [&[&str]; 9] = [
        &["-v"],
        &["-V"],
        &["-h"],
        &["-T", "-q"],
        &["status"],
        &["status", "--json"],
        &["status", "--watch"],
        &["status", "--watch", "--json"],
        &["send", "--help"],
    ];
    for arguments in calls {
        let (code, stderr) = unread(command(&server.dir).args(arguments));
        assert_eq!((code, stderr.contains("panic")), (Some(0), false), "{arguments:?}: {stderr}");
    }
    // Not every reply was seen, so it can't say that all is well; it says nothing.
    let (code, stderr) = unread(command(&server.dir).args(["send", "--count", "2000"]));
    assert_eq!((code, stderr.as_str()), (Some(1), ""));
}

#[test]
fn errors_survive_a_closed_stderr() {
    let server = TestServer::start("unread_errors", "");
    for (arguments, expected) in [(&["-x"][..], 2), (&["-t"], 0), (&["send", "--to", "unix:x"], 1)]
    {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut call = command(&server.dir);
        let status = call.args(arguments).stdout(Stdio::null()).stderr(writer).status();
        assert_eq!(status.expect("it ran").code(), Some(expected), "{arguments:?}");
    }
}

#[test]
fn status_is_watched_until_interrupted() {
    let server = TestServer::start("status_watch", "");
    let output = |name: &str| fs::File::create(server.dir.join(name)).expect("a file");
    let mut plain = command(&server.dir);
    let mut plain = plain.args(["status", "--watch"]).stdout(output("plain.txt")).spawn().unwrap();
    let mut json = command(&server.dir);
    let mut json =
        json.args(["status", "--watch", "--json"]).stdout(output("json.txt")).spawn().unwrap();
    wait_until("it was shown twice", || {
        server.read("plain.txt").matches("master pid").count() >= 2
            && server.read("json.txt").lines().count() >= 2
    });
    for child in [&mut plain, &mut json] {
        // Not SIGINT, which whatever runs the tests may have set to be ignored.
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
        wait_until("it has ended", || child.try_wait().unwrap().is_some());
        let status = child.wait().unwrap();
        assert!(!status.success(), "as a program ends that is interrupted: {status:?}");
    }
    assert!(!server.read("plain.txt").contains('\x1b'), "a file is no terminal");
    for line in server.read("json.txt").lines() {
        let status: serde_json::Value = serde_json::from_str(line).expect("an object a line");
        assert_eq!(status["master"]["pid"], server.pid());
    }
}

#[test]
fn a_watch_ends_with_the_master() {
    let mut server = TestServer::start("status_watch_end", "");
    let file = fs::File::create(server.dir.join("watch.txt")).expect("a file");
    let mut watch = command(&server.dir);
    let mut watch = watch.args(["status", "--watch"]).stdout(file).stderr(Stdio::piped());
    let watch = std::mem::replace(&mut watch, &mut Command::new("true")).spawn().unwrap();
    wait_until("it was shown", || server.read("watch.txt").contains("master pid"));
    server.signal(Signal::SIGTERM);
    server.wait_exit();
    let output = watch.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("no master is running"), "{stderr}");
}

#[test]
fn the_version_says_how_it_was_built() {
    let program = || Command::new(program("chappe"));
    let version = concat!("chappe ", env!("CARGO_PKG_VERSION"), "\n");
    for short_or_long in ["-v", "--version"] {
        assert_eq!(finish(program().arg(short_or_long)).stdout, version);
    }
    let build = finish(program().arg("-V"));
    assert_eq!(build.code, Some(0));
    let text = build.stdout.strip_prefix(version).expect("the version first");
    for name in ["profile: ", "target: ", "compiler: rustc "] {
        assert!(text.lines().any(|line| line.starts_with(name)), "{text}");
    }
}

/// The server's program with something of ours as its standard error.
fn with_stderr(end: OwnedFd) -> Command {
    let mut shell = Command::new("sh");
    let script = "exec \"$0\" \"$@\" 2>&0 0</dev/null";
    shell.arg("-c").arg(script).arg(program("chappe")).stdin(Stdio::from(end));
    shell
}

#[test]
fn a_standard_error_that_nobody_reads_stops_nobody() {
    let (reader, pipe) = std::io::pipe().expect("a pipe");
    let (socket_reader, socket) = UnixStream::pair().expect("a pair of sockets");
    let ends: [(&str, Box<dyn Read + Send>, OwnedFd); 2] = [
        ("stderr_pipe", Box::new(reader), pipe.into()),
        ("stderr_socket", Box::new(socket_reader), socket.into()),
    ];
    for (name, reader, end) in ends {
        let ours = end.try_clone().expect("a second descriptor");
        let mut server = TestServer::start_program(with_stderr(end), name, "");
        // More lines than anything of the kernel's holds.
        for _ in 0..1500 {
            server.connect().call(CODE_PING, b"").expect("an answer");
        }
        assert_eq!(server.run(&["reload"]).code, Some(0));
        let flags = OFlag::from_bits_retain(fcntl(&ours, FcntlArg::F_GETFL).expect("flags"));
        assert!(!flags.contains(OFlag::O_NONBLOCK), "the flags are not only ours");
        drop(ours);

        // Who reads again is told what is missing.
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                let _nobody_asks_any_more = sender.send(line);
            }
        });
        wait_until("the copy says what it lacks", || {
            server.connect().call(CODE_PING, b"").expect("an answer");
            lines.try_iter().any(|line| line.contains("lines were left out here"))
        });
        assert_eq!(server.total("log_lines_lost"), 0);
        server.signal(Signal::SIGTERM);
        assert_eq!(server.wait_exit().code(), Some(0));
    }
}
