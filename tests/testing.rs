//! `chappe::testing`, with the stock program as the application.

use chappe::testing::{TestError, TestServer};

const PROGRAM: &str = env!("CARGO_BIN_EXE_chappe");

#[test]
fn a_server_is_started_used_and_stopped() {
    let server = TestServer::of(PROGRAM).start().expect("it starts");
    let folder = server.folder().to_owned();
    let mut client = server.client().expect("connected");
    assert_eq!(&client.call(1, b"hello").expect("an echo").body[..], b"hello");
    assert_eq!(server.status().expect("a status").total("connections_accepted"), 1);
    assert!(folder.is_dir());
    server.stop().expect("it stops");
    assert!(!folder.exists());
    assert!(client.receive().is_ok_and(|frame| frame.as_goodbye().is_some()), "it says goodbye");
}

#[test]
fn a_reload_and_a_killed_worker_are_waited_for() {
    let server =
        TestServer::of(PROGRAM).config("worker_processes = 1\n").start().expect("it starts");
    let pid = || server.status().expect("a status").workers[0].pid;
    let first = pid();
    server.configure("worker_processes = 1\n[worker]\nhandler_threads = 1\n").expect("written");
    server.reload().expect("reloaded");
    server.kill_worker(0).expect("replaced");
    assert_ne!(pid(), first);
    assert!(matches!(server.kill_worker(9), Err(TestError::NoWorker(9))));
    assert!(server.logs().contains("signal=SIGKILL"), "{}", server.logs());
}

#[test]
fn what_goes_wrong_is_told_in_words() {
    let start = |toml: &str| TestServer::of(PROGRAM).config(toml).start().map(drop).unwrap_err();
    let unknown = start("no_such_key = 1\n").to_string();
    assert!(unknown.contains("no_such_key"), "{unknown}");
    assert!(matches!(start("="), TestError::Config(_)));
    let missing = TestServer::of("/nowhere/program").start().map(drop).unwrap_err();
    assert_eq!(missing.to_string(), "cannot run /nowhere/program");
    let server = TestServer::of(PROGRAM).start().expect("it starts");
    server.configure("no_such_key = 1\n").expect("written");
    let refused = server.reload().unwrap_err().to_string();
    assert!(refused.contains("no_such_key"), "{refused}");
}
