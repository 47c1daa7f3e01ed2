//! Files that are no configuration: each call says what is wrong and does nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use chappe::control::ReloadOutcome;
use nix::sys::signal::Signal;

use chappe_testkit::site::{command, finish};
use chappe_testkit::{TestServer, fresh_dir};

/// What a wrong file keeps from being done.
const CALLS: [&[&str]; 7] =
    [&[], &["--foreground"], &["-t"], &["-t", "-q"], &["-T"], &["-s", "reload"], &["reload"]];

/// What has to reach a running server whatever its file has become.
const REACHING: [&[&str]; 6] =
    [&["-s", "stop"], &["-s", "quit"], &["-s", "reopen"], &["status"], &["stop"], &["logs"]];

/// Each call fails with exit code 2, says all of this, and leaves nothing behind.
#[track_caller]
fn assert_refused(dir: &Path, expected: &[&str]) {
    for arguments in CALLS {
        let call = finish(command(dir).args(arguments));
        assert_eq!((call.code, call.stdout.as_str()), (Some(2), ""), "{arguments:?}: {call:?}");
        for text in expected {
            assert!(call.stderr.contains(text), "{arguments:?}: no {text:?} in {call:?}");
        }
        assert!(call.stderr.lines().all(|line| line.starts_with("chappe: ")), "{call:?}");
        assert!(call.stderr.len() < 20_000, "{arguments:?}: {} bytes", call.stderr.len());
        assert!(!dir.join("run").exists() && !dir.join("logs").exists(), "{arguments:?}");
    }
    for arguments in REACHING {
        let call = finish(command(dir).args(arguments));
        // Without any text it is the call that is wrong; otherwise nobody is found, and what
        // is wrong with the file is what `-s` has to say.
        let is_text = expected.iter().any(|text| text.contains(": ") || text.contains("UTF-8"));
        let is_signal = arguments[0] == "-s";
        let code = if is_text && !is_signal { 1 } else { 2 };
        assert_eq!(call.code, Some(code), "{arguments:?}: {call:?}");
        assert!(call.stderr.contains(expected[0]), "{arguments:?}: {call:?}");
        assert!(is_signal || call.stderr.lines().count() <= 2, "{arguments:?}: {call:?}");
        assert!(!dir.join("run").exists() && !dir.join("logs").exists(), "{arguments:?}");
    }
}

#[test]
fn a_missing_file() {
    let dir = fresh_dir("config_missing");
    assert_refused(&dir, &["chappe.toml", "No such file"]);
}

#[test]
fn a_directory() {
    let dir = fresh_dir("config_directory");
    fs::create_dir(dir.join("chappe.toml")).unwrap();
    assert_refused(&dir, &["chappe.toml", "is a directory, must be a file"]);
}

#[test]
fn a_file_that_may_not_be_read() {
    if nix::unistd::geteuid().is_root() {
        println!("skipped: root may read everything");
        return;
    }
    let dir = fresh_dir("config_unreadable");
    fs::write(dir.join("chappe.toml"), "").unwrap();
    fs::set_permissions(dir.join("chappe.toml"), fs::Permissions::from_mode(0o000)).unwrap();
    assert_refused(&dir, &["chappe.toml", "Permission denied"]);
}

#[test]
fn a_pipe_is_not_waited_for() {
    let dir = fresh_dir("config_pipe");
    nix::unistd::mkfifo(&dir.join("chappe.toml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_refused(&dir, &["chappe.toml", "is a pipe or a socket, must be a file"]);
}

#[test]
fn text_that_is_not_utf_8() {
    let dir = fresh_dir("config_not_utf_8");
    fs::write(dir.join("chappe.toml"), b"daemon = false\npid_file = \"\xff\xfe\"\n").unwrap();
    assert_refused(&dir, &["is not UTF-8 in line 2", "chappe.toml"]);
}

#[test]
fn ten_megabytes_of_junk() {
    let dir = fresh_dir("config_junk");
    let mut state = 1_u32;
    let junk: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(10 << 20)
    .collect();
    fs::write(dir.join("chappe.toml"), junk).unwrap();
    assert_refused(&dir, &["chappe.toml", "is larger than 1MiB"]);
}

#[test]
fn a_megabyte_of_mistakes_is_told_in_short() {
    let dir = fresh_dir("config_mistakes");
    let junk = "x = [[[\n".repeat(130_000);
    fs::write(dir.join("chappe.toml"), junk).unwrap();
    assert_refused(&dir, &["chappe.toml:2:1: not TOML"]);
}

#[test]
fn several_mistakes_are_told_together() {
    let dir = fresh_dir("config_several");
    let text = "daemon = 1\nworker_proceses = 2\n[worker]\nhandler_threads = 0\n\
                [[listen]]\naddress = \"localhost:1\"\n";
    fs::write(dir.join("chappe.toml"), text).unwrap();
    let expected = [
        "chappe.toml:1:10: daemon is 1, must be true or false",
        "chappe.toml:2:1: worker_proceses is unknown, did you mean worker_processes?",
        "chappe.toml:4:19: worker.handler_threads is 0, must be 1..=128",
        "chappe.toml:6:11: listen.0.address is \"localhost:1\"",
    ];
    assert_refused(&dir, &expected);
}

#[test]
fn an_override_is_refused_like_a_file() {
    let dir = fresh_dir("config_override");
    fs::write(dir.join("chappe.toml"), "").unwrap();
    for arguments in CALLS.iter().chain(&REACHING) {
        let call =
            finish(command(&dir).args(*arguments).args(["--set", "worker.handler_threads=x"]));
        assert_eq!(call.code, Some(2), "{call:?}");
        assert!(call.stderr.contains("--set worker.handler_threads=x: "), "{call:?}");
    }
}

#[test]
fn a_running_server_does_not_mind() {
    let mut server = TestServer::start("config_while_running", "");
    let workers = server.worker_pids();
    fs::write(server.dir.join("chappe.toml"), "worker_processes = 0\n").unwrap();
    for arguments in CALLS {
        let call = finish(command(&server.dir).args(arguments));
        assert_eq!(call.code, Some(2), "{arguments:?}: {call:?}");
    }
    assert_eq!(server.worker_pids(), workers);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0));
}

/// Files that no reload would take, and what is said of them. `{}` is what the server
/// was started with, or begins with it.
const BROKEN: [(&str, &str); 5] = [
    ("wrong_key = 1\n{}", "wrong_key is unknown"),
    ("max_connections = 0\n{}", "max_connections is 0"),
    ("{}\n[worker\nhandler_threads = 2\n", "not TOML"),
    ("worker_processes = = 3\n{}", "not TOML"),
    ("include = [\"gone.toml\"]\n{}", "gone.toml cannot be read"),
];

#[test]
fn a_running_server_is_reached_whatever_its_file_has_become() {
    // None of these is where the defaults are.
    let paths = "control_socket = \"c.sock\"\npid_file = \"p.pid\"\n";
    let toml = format!("{paths}[log]\ndirectory = \"elsewhere\"\n");
    let server = TestServer::start("config_broken_running", &toml);
    let file = server.dir.join("chappe.toml");
    let good = fs::read_to_string(&file).unwrap();
    let reaching: [(&[&str], i32, &str); 8] = [
        (&["status"], 0, "master pid"),
        (&["logs", "-n", "1000"], 0, "worker serves"),
        (&["connections"], 0, "peer"),
        (&["log-level", "debug"], 0, ""),
        (&["kick", "999"], 1, ""),
        (&["reopen", "--wait"], 0, ""),
        (&["-s", "reopen"], 0, ""),
        // It has come so far that it misses its terminal.
        (&["top"], 1, ""),
    ];
    for (text, fault) in BROKEN {
        fs::write(&file, text.replace("{}", &good)).unwrap();
        for (arguments, code, shown) in reaching {
            let call = server.run(arguments);
            assert_eq!(call.code, Some(code), "{text}: {arguments:?}: {call:?}");
            assert!(call.stdout.contains(shown), "{text}: {arguments:?}: {call:?}");
            let warnings = call.stderr.lines().filter(|line| line.contains("warning: "));
            assert_eq!(warnings.filter(|line| line.contains(fault)).count(), 1, "{call:?}");
        }
        for arguments in [&["reload"][..], &["-s", "reload"]] {
            assert_eq!(server.run(arguments).code, Some(2), "{text}: {arguments:?}");
        }
    }
    let reload = server.status().reload;
    assert_eq!(reload.count, BROKEN.len() as u64, "each by the command, and none by a signal");
    assert_eq!(reload.last.map(|last| last.outcome), Some(ReloadOutcome::Failed));
}

#[test]
fn a_running_server_is_stopped_whatever_its_file_has_become() {
    let stops: [&[&str]; 4] =
        [&["stop", "--wait"], &["quit", "--wait"], &["-s", "stop"], &["-s", "quit"]];
    for ((text, _), arguments) in BROKEN.iter().zip(stops.iter().cycle()) {
        let name = format!("config_broken_{}_{}", arguments.concat(), text.len());
        let toml = "control_socket = \"c.sock\"\npid_file = \"p.pid\"\n";
        let mut server = TestServer::start(&name, toml);
        let file = server.dir.join("chappe.toml");
        let good = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("{}", &good)).unwrap();
        let call = server.run(arguments);
        assert_eq!(call.code, Some(0), "{text}: {arguments:?}: {call:?}");
        assert_eq!(server.wait_exit().code(), Some(0));
    }
}

#[test]
fn a_server_whose_file_is_gone_is_reached_by_naming_its_socket() {
    let server = TestServer::start("config_gone", "");
    fs::remove_file(server.dir.join("chappe.toml")).unwrap();
    // What lies at the default's place may be another server than the one that is meant.
    let refused = server.run(&["stop"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("--set control_socket=PATH"), "{refused:?}");
    let found = server.run(&["status", "--set", "control_socket=run/chappe.sock"]);
    assert_eq!(found.code, Some(0), "{found:?}");
    assert!(found.stderr.contains("No such file"), "{found:?}");
}
