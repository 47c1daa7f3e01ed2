//! What must never end the master, stop it, make it spin or forget: a lowered limit of
//! descriptors, a worker that does not listen.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use chappe_client::{CODE_PING, Goodbye};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use chappe_testkit::site::{command, configuration, finish, program};
use chappe_testkit::{TestServer, drain, proc, wait_until};

/// Sets limits of a running process, as prlimit(1) has them; false without it.
fn limit(pid: i32, limit: &str) -> bool {
    let status = Command::new("prlimit").args(["--pid", &pid.to_string(), limit]).status();
    status.is_ok_and(|status| status.success())
}

/// Soft and hard limit of open descriptors.
fn nofile(pid: i32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).expect("a process");
    let line = text.lines().find(|line| line.starts_with("Max open files")).expect("the line");
    let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
    (numbers.next().expect("soft"), numbers.next().expect("hard"))
}

#[test]
fn the_workers_limit_is_not_the_masters() {
    let toml = "worker_processes = 1\nworker_rlimit_nofile = 300\n";
    let server = TestServer::start("nofile_master", toml);
    let (soft, hard) = nofile(server.pid());
    assert_eq!(soft, hard, "the master has all it may have");
    let old = server.worker_pids();
    fs::write(server.dir.join("chappe.toml"), configuration(&toml.replace("300", "256"))).unwrap();
    assert_eq!(server.run(&["reload"]).code, Some(0));
    let workers = server.wait_workers(1, &old);
    assert_eq!(nofile(workers[0]).0, 256);
    assert_eq!(nofile(server.pid()), (hard, hard));
    assert_eq!(server.status().limits.worker_descriptors, 256);
}

#[test]
fn a_limit_that_cannot_be_had_is_the_hard_one() {
    // More than fs.nr_open allows to anybody.
    let toml = "worker_processes = 1\nworker_rlimit_nofile = 1073741824\n";
    let mut limited = Command::new("prlimit");
    limited.args(["--nofile=1100:4000", &program("chappe")]).stdin(Stdio::null());
    let server = TestServer::start_program(limited, "nofile_refused", toml);
    assert_eq!(nofile(server.worker_pids()[0]), (4000, 4000));
    let status = server.status_json();
    assert_eq!(status["limits"]["worker_descriptors"], 4000);
    let warning = status["master"]["warnings"][0].as_str().expect("a warning");
    assert!(warning.ends_with("is the hard limit; using 4000"), "{warning}");
}

#[test]
fn a_master_that_cannot_wait_for_events_goes_on() {
    let server = TestServer::start("poll_fails", "");
    let (pid, workers) = (server.pid(), server.worker_pids());
    // poll refuses to look at more descriptors than a process may have.
    if !limit(pid, "--nofile=2:") {
        println!("skipped: there is no prlimit(1) that may limit the master");
        return;
    }
    server.wait_event("master", "master.blind", "");
    server.connect().call(CODE_PING, b"").unwrap();
    assert!(limit(pid, &format!("--nofile={}:", nofile(pid).1)));
    assert_eq!(i32::try_from(server.status().master.pid), Ok(pid));
    assert_eq!(server.worker_pids(), workers);
    assert_eq!(server.events("master", "master.blind").len(), 1);
}

#[test]
fn a_control_client_that_cannot_be_let_in_is_told_of_once() {
    let server = TestServer::start("control_accept_fails", "");
    let (pid, open) = (server.pid(), proc::open_descriptors(server.pid()));
    // Not one descriptor more than there are: the next number is the first free one.
    let next = (0..).find(|number| !open.contains_key(number)).expect("one is free");
    if !limit(pid, &format!("--nofile={next}:")) {
        println!("skipped: there is no prlimit(1) that may limit the master");
        return;
    }
    let failures = || server.events("master", "control.accept_failed").len();
    let client = UnixStream::connect(server.dir.join("run/chappe.sock")).unwrap();
    wait_until("the master has tried", || failures() > 0);
    assert!(limit(pid, &format!("--nofile={}:", nofile(pid).1)));
    // Answered as soon as the master tries again.
    assert_eq!(i32::try_from(server.status().master.pid), Ok(pid));
    assert!(failures() <= 2, "{}", failures());
    drop(client);
}

#[test]
fn a_worker_that_does_not_listen_is_told_later() {
    let server = TestServer::start("channel_full", "worker_processes = 1\n");
    let mut client = server.connect();
    client.call(CODE_PING, b"").unwrap();
    let worker = server.worker_pids()[0];
    kill(Pid::from_raw(worker), Signal::SIGSTOP).unwrap();
    // Nobody waits for the answers, and the worker gives none.
    wait_until("its channel is full", || {
        for _ in 0..50 {
            let mut control = UnixStream::connect(server.dir.join("run/chappe.sock")).unwrap();
            control.write_all(b"{\"command\":\"kick\",\"id\":99}\n").unwrap();
        }
        server.events("master", "channel.failed").iter().any(|line| line.contains("0 Kick"))
    });
    assert_eq!(server.run(&["reopen"]).code, Some(0));
    assert_eq!(server.run(&["reload"]).code, Some(0));
    let missing = server.run(&["connections"]);
    // The stopped one, and not its successor.
    let named = format!("no list from worker 0 (pid {worker})\n");
    assert!(missing.stderr.ends_with(&named), "{missing:?}");
    kill(Pid::from_raw(worker), Signal::SIGCONT).unwrap();
    server.wait_event("worker-0", "worker.drains", "a reload");
    let (frames, _) = drain(&mut client);
    assert!(frames[0].as_goodbye().is_some_and(|goodbye| goodbye.is(Goodbye::Reloading)));
    drop(client);
    wait_until("it has left by itself", || !proc::is_running(worker));
    assert_eq!(server.total("workers_died"), 0);
    assert!(server.events("master", "worker.killed").is_empty());
}

#[test]
fn answers_about_a_connection_and_about_a_log_are_told_apart() {
    let server = TestServer::start("kick_and_reopen", "worker_processes = 1\n");
    let worker = server.worker_pids()[0];
    kill(Pid::from_raw(worker), Signal::SIGSTOP).unwrap();
    // The reopen has the number 3, too, behind the kick and the status.
    let mut control = UnixStream::connect(server.dir.join("run/chappe.sock")).unwrap();
    control.write_all(b"{\"command\":\"kick\",\"id\":3}\n").unwrap();
    server.status_json();
    let mut reopen = command(&server.dir);
    let reopen = reopen.args(["reopen", "--wait"]).stderr(Stdio::piped()).spawn().unwrap();
    server.wait_event("master", "logs.reopened", "");
    kill(Pid::from_raw(worker), Signal::SIGCONT).unwrap();
    let reopened = reopen.wait_with_output().unwrap();
    assert!(reopened.status.success(), "{reopened:?}");
}

#[test]
fn a_stop_is_waited_for_from_another_pid_namespace() {
    let mut server = TestServer::start("other_namespace", "");
    let in_namespace = |arguments: &[&str]| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", &program("chappe"), "-p"]).arg(&server.dir);
        unshare.arg("-c").arg(server.dir.join("chappe.toml")).args(arguments);
        unshare.stdin(Stdio::null());
        finish(&mut unshare)
    };
    if in_namespace(&["status"]).code != Some(0) {
        println!("skipped: there is no unshare(1) that may make a namespace");
        return;
    }
    // Without the lock there is no way to see its end: then it is not stopped, either.
    let refused = in_namespace(&["stop", "--wait", "--set", "pid_file=run/other.pid"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("can't be waited for"), "{refused:?}");
    let stopped = in_namespace(&["stop", "--wait"]);
    assert_eq!((stopped.code, stopped.stderr.as_str()), (Some(0), ""), "{stopped:?}");
    assert!(!server.dir.join("run/chappe.pid").exists());
    assert_eq!(server.wait_exit().code(), Some(0));
}
