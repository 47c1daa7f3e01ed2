//! What is said over the control socket, also by and to another version.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use chappe::control::{self, ReplyError, Status};
use chappe_sys::unix_socket;
use serde::Deserialize;

use chappe_testkit::site::{Finished, command, finish};
use chappe_testkit::{TestServer, fresh_dir, while_stopped};

/// What is answered to a line.
fn answer(server: &TestServer, line: &str) -> String {
    let mut stream =
        UnixStream::connect(server.dir.join("run/chappe.sock")).expect("the control socket");
    stream.write_all(line.as_bytes()).expect("the control socket");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the control socket");
    answer
}

#[test]
fn a_status_has_the_keys_of_its_type_and_no_others() {
    let toml = "[metrics]\naddress = \"127.0.0.1:0\"\n";
    let server = TestServer::start("control_status", toml);
    assert_eq!(server.run(&["reload"]).code, Some(0));
    let json = server.status_json();
    let status = Status::deserialize(&json).unwrap();
    assert_eq!(serde_json::to_value(&status).unwrap(), json);
    assert!(status.metrics.is_some() && status.reload.last.is_some(), "{json:#}");
    assert_eq!(status.master.pid, u32::try_from(server.pid()).unwrap());
}

#[test]
fn a_client_of_another_version_is_told_what_this_one_knows() {
    let server = TestServer::start("control_newer_client", "");
    let version = env!("CARGO_PKG_VERSION");
    for (line, expected) in [
        ("{\"command\":\"upgrade\"}\n", format!("chappe {version} has no command `upgrade`")),
        (
            "{\"command\":\"kick\",\"peer\":\"x\"}\n",
            "`kick` is not in a form that chappe".to_owned(),
        ),
        ("{\"command\":\"status\",\"deep\":1}\n", "unknown field `deep`".to_owned()),
    ] {
        let error = control::read::<Status>(&answer(&server, line)).unwrap_err();
        assert!(matches!(&error, ReplyError::Refused(_)), "{error}");
        let error = error.to_string();
        assert!(error.contains(&expected) && error.contains("another version"), "{error}");
    }
}

/// Runs a command against a server that says this, whatever it is asked.
fn against(directory: &Path, says: &str, arguments: &[&str]) -> Finished {
    let path = directory.join("run/chappe.sock");
    let listener = UnixListener::bind(&path).expect("the control socket");
    let finished = std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut stream = listener.accept().expect("the control socket").0;
            let mut request = [0; 1000];
            assert!(stream.read(&mut request).expect("the control socket") > 0);
            stream.write_all(says.as_bytes()).expect("the control socket");
        });
        finish(command(directory).args(arguments))
    });
    std::fs::remove_file(path).expect("the control socket");
    finished
}

#[test]
fn a_server_of_another_version_is_told_from_a_broken_one() {
    let directory = fresh_dir("control_newer_server");
    std::fs::write(directory.join("chappe.toml"), "").unwrap();
    std::fs::create_dir(directory.join("run")).unwrap();
    let status = "{\"master\":{\"pid\":1,\"version\":\"9.1.0\"},\"workers\":{}}\n";
    let told = against(&directory, status, &["status"]);
    assert_eq!((told.code, told.stdout.as_str()), (Some(1), ""), "{told:?}");
    let version = env!("CARGO_PKG_VERSION");
    for part in ["chappe 9.1.0", &format!("this program, chappe {version}"), "status --json"] {
        assert!(told.stderr.contains(part), "{told:?}");
    }
    let json = against(&directory, status, &["status", "--json"]);
    assert_eq!((json.code, json.stdout.as_str()), (Some(0), status), "{json:?}");
    for (says, arguments, expected) in [
        ("{\"done\":true}\n", &["kick", "7"][..], "missing field `ok`"),
        ("{\"ok\":true}\n", &["reload"], "missing field `generation`"),
        ("{\"ok\":true}\n", &["connections"], "missing field `missing_workers`"),
        ("HTTP/1.1 400 Bad Request\r\n", &["status"], "is not valid: HTTP/1.1 400"),
        ("", &["status"], "hung up, without an answer"),
    ] {
        let told = against(&directory, says, arguments);
        assert_eq!((told.code, told.stdout.as_str()), (Some(1), ""), "{told:?}");
        assert!(told.stderr.contains(expected), "{told:?}");
    }
    let list = "{\"ok\":true,\"missing_workers\":0}\n{\"id\":3}\n";
    let told = against(&directory, list, &["connections"]);
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(told.stderr.contains("1 line of the list can't be read"), "{told:?}");
}

/// Every command that asks the master, and none that waits for anything else.
const ASKING: [&[&str]; 8] = [
    &["status"],
    &["status", "--json"],
    &["connections"],
    &["kick", "7"],
    &["log-level", "debug"],
    &["reopen", "--wait"],
    &["reload"],
    &["quit", "--wait"],
];

/// Runs all of them at once while the master is stopped; what each says of it.
fn asked_while_stopped(server: &TestServer) -> Vec<String> {
    let outcomes = std::thread::scope(|scope| {
        let run = |arguments| scope.spawn(move || server.run(arguments));
        let running: Vec<_> = ASKING.into_iter().map(run).collect();
        running.into_iter().map(|one| one.join().expect("it ends")).collect::<Vec<_>>()
    });
    let said = |outcome: Finished| {
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), ""), "{outcome:?}");
        outcome.stderr
    };
    outcomes.into_iter().map(said).collect()
}

#[test]
fn a_master_that_hangs_is_told_of_in_time_by_every_command() {
    let server = TestServer::start("control_hanging", "");
    while_stopped(server.pid(), || {
        for said in asked_while_stopped(&server) {
            assert!(said.contains("did not answer within 10s"), "{said}");
            assert!(said.contains(&format!("pid {}", server.pid())), "{said}");
        }
    });
}

/// A signal needs no answer: `-s quit` returns at once, where `quit` wants to hear that the
/// master has accepted.
#[test]
fn a_signal_is_sent_to_a_master_that_hangs_and_a_command_of_the_same_name_fails() {
    let mut server = TestServer::start("control_signal", "");
    while_stopped(server.pid(), || {
        let began = Instant::now();
        let signalled = server.run(&["-s", "quit"]);
        let at_once = began.elapsed();
        assert_eq!((signalled.code, signalled.stderr.as_str()), (Some(0), ""), "{signalled:?}");
        let began = Instant::now();
        let asked = server.run(&["quit"]);
        assert_eq!(asked.code, Some(1), "{asked:?}");
        assert!(asked.stderr.contains("did not answer within 10s"), "{asked:?}");
        assert!(at_once < began.elapsed(), "-s quit took {at_once:?}");
    });
    assert_eq!(server.wait_exit().code(), Some(0), "the signal was there when it went on");
}

/// What the help says of the two ways, and of waiting.
#[test]
fn the_help_says_what_a_signal_and_a_command_wait_for() {
    let directory = fresh_dir("control_help");
    let help = |arguments: &[&str]| {
        let help = finish(command(&directory).args(arguments));
        assert_eq!(help.code, Some(0), "{help:?}");
        help.stdout.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let signal = "Send a signal to the running master and return at once; the command of the same \
                  name reports the outcome";
    assert!(help(&["--help"]).contains(signal), "{}", help(&["--help"]));
    for name in ["stop", "quit"] {
        let told = help(&[name, "--help"]);
        assert!(told.contains("only when the master is gone, however long that takes"), "{told}");
    }
}

#[test]
fn a_master_whose_queue_is_full_is_told_of_in_time_by_every_command() {
    let server = TestServer::start("control_full", "");
    let path = server.dir.join("run/chappe.sock");
    while_stopped(server.pid(), || {
        let mut queued = Vec::new();
        while let Ok(one) = unix_socket::connect_timeout(&path, Duration::from_millis(1)) {
            queued.push(one);
        }
        assert!(queued.len() > 16, "{}", queued.len());
        for said in asked_while_stopped(&server) {
            assert!(said.contains("no connection was accepted within 10s"), "{said}");
        }
    });
    server.wait_serving(2);
}

#[test]
fn a_reload_takes_as_long_as_the_master_answers_others() {
    let directory = fresh_dir("control_long_reload");
    std::fs::write(directory.join("chappe.toml"), "").unwrap();
    std::fs::create_dir(directory.join("run")).unwrap();
    let listener = UnixListener::bind(directory.join("run/chappe.sock")).unwrap();
    let real = TestServer::start("control_long_reload_status", "").status_json().to_string();
    let reloaded = std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, mut asked) = (listener.accept().unwrap().0, [0; 1000]);
            let bytes = stream.read(&mut asked).unwrap();
            assert_eq!(&asked[..bytes], b"{\"command\":\"reload\"}\n");
            for _ in 0..2 {
                // It has become impatient.
                let mut other = listener.accept().unwrap().0;
                let bytes = other.read(&mut asked).unwrap();
                assert_eq!(&asked[..bytes], b"{\"command\":\"status\"}\n");
                other.write_all(format!("{real}\n").as_bytes()).unwrap();
            }
            let answer = "{\"ok\":true,\"generation\":2,\"workers\":1,\"ready_ms\":7000,\
                          \"changed\":[],\"restart\":[],\"warnings\":[]}\n";
            stream.write_all(answer.as_bytes()).unwrap();
        });
        finish(command(&directory).arg("reload"))
    });
    assert_eq!((reloaded.code, reloaded.stderr.as_str()), (Some(0), ""), "{reloaded:?}");
    assert!(reloaded.stdout.contains("ready in 7000 ms"), "{reloaded:?}");
}

#[test]
fn send_and_bench_ask_the_server_where_it_listens() {
    let server = TestServer::start("control_where", "");
    let file = server.dir.join("chappe.toml");
    let elsewhere = "[[listen]]\naddress = \"127.0.0.1:1\"\n";
    // Changed since the start, and wrong since the start.
    for text in [elsewhere.to_owned(), format!("worker_processes = 0\n{elsewhere}")] {
        std::fs::write(&file, text).unwrap();
        let send = server.run(&["send", "--body", "here"]);
        assert_eq!((send.code, send.stdout.contains("here")), (Some(0), true), "{send:?}");
        let bench = ["bench", "--warmup", "0s", "--duration", "500ms", "--connections", "2"];
        let bench = server.run(&bench);
        assert_eq!(bench.code, Some(0), "{bench:?}");
    }
    // Nobody can be asked: the file says where to.
    std::fs::write(&file, format!("control_socket = \"run/other\"\n{elsewhere}")).unwrap();
    let send = server.run(&["send"]);
    assert_eq!(send.code, Some(1), "{send:?}");
    let origin =
        format!("cannot connect to 127.0.0.1:1 ({}:3:11: listen.0.address)", file.display());
    assert!(send.stderr.contains(&origin), "{send:?}");
}

#[test]
fn a_reload_refuses_what_it_would_ignore() {
    let server = TestServer::start("control_reload_set", "");
    for (command, set) in [
        (&["reload"][..], "log.level=trace"),
        (&["-s", "reload"], "log.level=trace"),
        (&["reload"], "worker.handler_threads = 1"),
    ] {
        let refused = server.run(&[command, &["--set", set]].concat());
        assert_eq!((refused.code, refused.stdout.as_str()), (Some(2), ""), "{refused:?}");
        let text = format!("--set {set}: a reload reads the files");
        assert!(refused.stderr.contains(&text), "{refused:?}");
    }
    assert_eq!(server.status().reload.count, 0);
    // These only say where the server is.
    let set = ["--set", "control_socket=run/chappe.sock", "--set", "log.directory=logs"];
    let reload = server.run(&[&["reload"][..], &set].concat());
    assert_eq!(reload.code, Some(0), "{reload:?}");
}
