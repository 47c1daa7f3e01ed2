//! Logs: reopened, rotated, shown, lost on a full disk, throttled.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use chappe_client::{CODE_ECHO, CODE_PING};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use chappe_testkit::{DEADLINE, TestServer, proc, site, wait_until};

const LOGS: [&str; 4] = ["master.log", "hub.log", "worker-0.log", "worker-1.log"];

fn log(server: &TestServer, name: &str) -> PathBuf {
    server.dir.join("logs").join(name)
}

fn move_away(server: &TestServer, suffix: &str) {
    for name in LOGS {
        let path = log(server, name);
        fs::rename(&path, log(server, &format!("{name}.{suffix}"))).expect("moved");
    }
}

/// Which log files the processes of the server hold open.
fn held_logs(server: &TestServer) -> Vec<String> {
    let mut held = Vec::new();
    for pid in std::iter::once(server.pid()).chain(proc::children(server.pid())) {
        let descriptors = proc::open_descriptors(pid);
        held.extend(descriptors.into_values().filter(|target| target.contains("/logs/")));
    }
    held.sort();
    held
}

#[track_caller]
fn assert_all_in_new_files(server: &TestServer) {
    for name in LOGS {
        assert!(log(server, name).exists(), "{name}");
    }
    let held = held_logs(server);
    // The master keeps the others' logs to hand them on.
    assert_eq!(held.len(), 7, "{held:?}");
    assert!(held.iter().all(|path| path.ends_with(".log")), "{held:?}");
}

#[test]
fn reopen_waits_until_every_process_has_left_the_old_file() {
    let server = TestServer::start("reopen_wait", "");
    for round in ["a", "b", "c"] {
        move_away(&server, round);
        let reopen = server.run(&["reopen", "--wait"]);
        assert_eq!((reopen.code, reopen.stderr.as_str()), (Some(0), ""));
        assert_all_in_new_files(&server);
    }
    // And they are written to.
    for _ in 0..50 {
        server.connect().call(CODE_PING, b"").unwrap();
    }
    server.wait_event("worker-0", "conn.accepted", "");
    server.wait_event("worker-1", "conn.accepted", "");
    server.wait_event("hub", "log.reopened", "");
    server.wait_event("master", "logs.reopened", "");
}

#[test]
fn usr1_reopens_whichever_process_gets_it() {
    let server = TestServer::start("reopen_usr1", "");
    let worker = server.worker_pids()[1];
    let hub = i32::try_from(server.status_number("/hub/pid")).unwrap();
    for (round, pid) in [server.pid(), worker, hub].into_iter().enumerate() {
        move_away(&server, &round.to_string());
        kill(Pid::from_raw(pid), Signal::SIGUSR1).unwrap();
        wait_until("all logs are there again and none is held that was moved", || {
            LOGS.iter().all(|name| log(&server, name).exists())
                && held_logs(&server).iter().all(|path| path.ends_with(".log"))
        });
    }
    move_away(&server, "s");
    assert_eq!(server.run(&["-s", "reopen"]).code, Some(0));
    wait_until("all logs are there again", || LOGS.iter().all(|name| log(&server, name).exists()));
    assert!(server.worker_pids().contains(&worker), "nobody was stopped by it");
}

#[test]
fn a_draining_worker_reopens_too() {
    let server = TestServer::start("reopen_draining", "worker_processes = 1\n");
    // Its reply is never read, so its worker can't finish.
    let mut client = chappe_testkit::small_buffers(server.address, 4096);
    client.set_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    while client.send(CODE_ECHO, &[1; 60_000]).is_ok() {}
    let pid = server.worker_pids()[0];
    kill(Pid::from_raw(pid), Signal::SIGQUIT).unwrap();
    server.wait_event("worker-0", "worker.drains", "");
    let old = log(&server, "worker-0.log");
    fs::rename(&old, log(&server, "worker-0.log.old")).unwrap();
    let reopen = server.run(&["reopen", "--wait"]);
    assert_eq!((reopen.code, reopen.stderr.as_str()), (Some(0), ""));
    assert!(proc::is_running(pid));
    let held = proc::open_descriptors(pid);
    let is_new = |path: &&String| path.ends_with("/logs/worker-0.log");
    assert_eq!(held.values().filter(is_new).count(), 1, "{held:?}");
    assert!(held.values().all(|path| !path.contains("worker-0.log.old")), "{held:?}");
}

#[test]
fn workers_that_have_dropped_their_rights_reopen_too() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root's workers drop rights");
        return;
    }
    let server = TestServer::start("reopen_user", "user = \"nobody\"\n");
    move_away(&server, "old");
    let reopen = server.run(&["reopen", "--wait"]);
    assert_eq!((reopen.code, reopen.stderr.as_str()), (Some(0), ""));
    assert_all_in_new_files(&server);
    server.wait_event("worker-1", "log.reopened", "");
}

#[test]
fn a_reload_goes_on_in_the_reopened_files() {
    let server = TestServer::start("reopen_reload", "");
    let old = server.worker_pids();
    move_away(&server, "old");
    assert_eq!(server.run(&["reopen", "--wait"]).code, Some(0));
    let reload = server.run(&["reload"]);
    assert_eq!(reload.code, Some(0), "{reload:?}");
    server.wait_workers(2, &old);
    assert_all_in_new_files(&server);
    assert!(!server.read("logs/worker-0.log.old").contains("generation=2"));
    server.wait_event("worker-0", "worker.ready", "generation=2");
}

#[test]
fn owner_and_mode_are_the_same_after_a_reopen() {
    let server = TestServer::start("reopen_mode", "");
    let about = |name| {
        let about = fs::metadata(log(&server, name)).expect("a log");
        (about.uid(), about.gid(), about.permissions().mode())
    };
    let before = LOGS.map(about);
    move_away(&server, "old");
    assert_eq!(server.run(&["reopen", "--wait"]).code, Some(0));
    assert_eq!(LOGS.map(about), before);
}

#[test]
fn a_worker_without_a_descriptor_is_offered_its_new_log_again() {
    let server = TestServer::start("reopen_again", "worker_processes = 1\n");
    let worker = server.worker_pids()[0];
    let limit = |limit: &str| {
        let pid = worker.to_string();
        Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={limit}")]).status()
    };
    // No number is left for another one.
    if !limit("0:").is_ok_and(|status| status.success()) {
        println!("skipped: there is no prlimit(1) that may limit the worker");
        return;
    }
    fs::rename(log(&server, "worker-0.log"), log(&server, "worker-0.log.old")).unwrap();
    let reopen = server.run(&["reopen", "--wait"]);
    assert_eq!(reopen.code, Some(1), "{reopen:?}");
    assert!(reopen.stderr.contains("keeps its old log"), "{reopen:?}");
    assert!(limit("1000:").is_ok_and(|status| status.success()));
    server.wait_event("worker-0", "log.reopened", "");
    let held = held_logs(&server);
    assert!(held.iter().all(|path| path.ends_with(".log")), "{held:?}");
}

#[test]
fn a_log_that_cannot_be_opened_stays_the_old_one() {
    let server = TestServer::start("reopen_fails", "");
    move_away(&server, "old");
    // Root may open what it has no right to, but no directory as a file.
    fs::create_dir(log(&server, "worker-1.log")).unwrap();
    let reopen = server.run(&["reopen", "--wait"]);
    assert_eq!(reopen.code, Some(1), "{reopen:?}");
    assert!(reopen.stderr.contains("worker-1.log"), "{reopen:?}");
    server.wait_event("master", "log.kept", "");
    let old = log(&server, "worker-1.log.old");
    let before = fs::metadata(&old).unwrap().len();
    assert_eq!(server.run(&["log-level", "info"]).code, Some(0));
    wait_until("the old log is written to", || fs::metadata(&old).unwrap().len() > before);
}

#[test]
fn big_logs_are_rotated_and_so_many_are_kept() {
    const SIZE: u64 = 64 << 10;
    let toml = "worker_processes = 1\n[log]\nlevel = \"debug\"\nrotate_size = \"64KiB\"\n\
                rotate_keep = 2\n";
    let server = TestServer::start("rotation", toml);
    let rotated = |number: u32| log(&server, &format!("worker-0.log.{number}"));
    wait_until("it was rotated three times", || {
        for _ in 0..200 {
            server.connect().call(CODE_PING, b"").unwrap();
        }
        let reopened = server.events("master", "logs.reopened");
        reopened.iter().filter(|line| line.contains("by=rotation")).count() >= 3
    });
    for number in [1, 2] {
        assert!(fs::metadata(rotated(number)).unwrap().len() >= SIZE, "{number}");
    }
    assert!(!rotated(3).exists());
    // A process that has written to the renamed file has left it, and no line is cut.
    assert_eq!(server.run(&["reopen", "--wait"]).code, Some(0));
    let held = held_logs(&server);
    assert!(held.iter().all(|path| path.ends_with(".log")), "{held:?}");
    for number in [1, 2] {
        let text = fs::read_to_string(rotated(number)).unwrap();
        assert!(text.ends_with('\n'));
        assert!(text.lines().all(|line| line.contains(" worker-0 ")), "whole lines");
    }
    assert_eq!(server.total("log_lines_lost"), 0);
}

/// `chappe logs -f …` as a process, its lines as they come.
struct Follower {
    child: std::process::Child,
    lines: mpsc::Receiver<String>,
}

impl Follower {
    fn start(server: &TestServer, arguments: &[&str]) -> Self {
        let mut child = site::command(&server.dir)
            .args(["logs", "-f"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the command starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    // Dropping the reader closes the pipe.
                    return;
                }
            }
        });
        Self { child, lines }
    }

    #[track_caller]
    fn wait_for(&self, needle: &str) -> Vec<String> {
        let mut seen = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(DEADLINE) {
            seen.push(line);
            if seen.last().is_some_and(|line| line.contains(needle)) {
                return seen;
            }
        }
        panic!("no {needle:?} in {seen:#?}");
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn logs_are_merged_by_time_and_filtered() {
    let server = TestServer::start("logs_merged", "");
    for _ in 0..20 {
        server.connect().call(CODE_PING, b"").unwrap();
    }
    let shown = |arguments: &[&str]| {
        let logs = server.run(&[&["logs"], arguments].concat());
        assert_eq!((logs.code, logs.stderr.as_str()), (Some(0), ""));
        logs.stdout
    };
    let all = shown(&["-n", "1000"]);
    for who in [" master ", " hub ", " worker-0 ", " worker-1 "] {
        assert!(all.contains(who), "{who}: {all}");
    }
    let times: Vec<&str> = all.lines().map(|line| &line[..24]).collect();
    assert!(times.is_sorted(), "{all}");
    assert_eq!(shown(&["-n", "3"]).lines().count(), 3);
    let one = shown(&["-w", "1", "-n", "1000"]);
    assert!(one.lines().all(|line| line.contains(" worker-1 ")), "{one}");
    let info = shown(&["-l", "info", "-n", "1000"]);
    assert!(!info.contains("DEBUG") && info.contains("INFO"), "{info}");
    let unknown = server.run(&["logs", "-w", "77"]);
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    assert_eq!(server.run(&["logs", "-l", "loud"]).code, Some(2));
}

#[test]
fn logs_follow_over_reopen_and_end_with_their_reader() {
    let server = TestServer::start("logs_follow", "");
    let mut follower = Follower::start(&server, &["-n", "1"]);
    // It has begun once it has shown the last line.
    follower.wait_for("Z ");
    for round in ["a", "b"] {
        move_away(&server, round);
        assert_eq!(server.run(&["reopen", "--wait"]).code, Some(0));
        follower.wait_for("logs reopened");
        let id = {
            let mut client = server.connect();
            let who = client.call(3, b"").unwrap();
            let text = String::from_utf8_lossy(&who.body).into_owned();
            text.lines().find_map(|line| line.strip_prefix("connection=").map(str::to_owned))
        };
        follower.wait_for(&format!("conn={} closed", id.expect("an id")));
    }
    // Nobody reads any more, and nothing is written: it ends all the same.
    let mut child = {
        let mut command = site::command(&server.dir);
        command.args(["logs", "-f", "-w", "0"]).stdout(Stdio::piped());
        command.spawn().expect("the command starts")
    };
    drop(child.stdout.take());
    wait_until("logs -f ends", || child.try_wait().expect("our own child").is_some());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(follower.child.try_wait().unwrap().is_none());
}

fn limit_file_size(pid: i32, limit: &str) -> bool {
    let status = Command::new("prlimit")
        .args(["--pid", &pid.to_string(), &format!("--fsize={limit}:unlimited")])
        .status();
    status.is_ok_and(|status| status.success())
}

#[test]
fn a_full_disk_costs_lines_that_are_counted_and_no_message() {
    let server = TestServer::start("full_disk", "worker_processes = 1\n");
    let worker = server.worker_pids()[0];
    // Files of this process end here, as they would on a full disk.
    let size = fs::metadata(log(&server, "worker-0.log")).unwrap().len() + 100;
    if !limit_file_size(worker, &size.to_string()) {
        println!("skipped: there is no prlimit(1) that may limit the worker");
        return;
    }
    for _ in 0..100 {
        assert_eq!(server.connect().call(CODE_ECHO, b"text").unwrap().body, &b"text"[..]);
    }
    server.wait_status("/totals/log_lines_lost", |lost| lost >= 100);
    assert_eq!(server.worker_pids(), [worker]);
    assert!(fs::metadata(log(&server, "worker-0.log")).unwrap().len() <= size);

    assert!(limit_file_size(worker, "unlimited"));
    server.connect().call(CODE_PING, b"").unwrap();
    server.wait_event("worker-0", "log.lost", "count=");
    let text = server.read("logs/worker-0.log");
    assert!(text.lines().last().is_some_and(|line| line.contains(" worker-0 ")), "{text}");
}

#[test]
fn the_master_counts_its_own_lost_lines() {
    let server = TestServer::start("full_disk_master", "worker_processes = 1\n");
    let size = fs::metadata(log(&server, "master.log")).unwrap().len();
    if !limit_file_size(server.pid(), &size.to_string()) {
        println!("skipped: there is no prlimit(1) that may limit the master");
        return;
    }
    for _ in 0..5 {
        server.signal(Signal::SIGUSR2);
        server.status_json();
    }
    server.wait_status("/totals/log_lines_lost", |lost| lost > 0);
    assert!(limit_file_size(server.pid(), "unlimited"));
    server.signal(Signal::SIGUSR2);
    server.wait_event("master", "log.lost", "count=");
}

#[test]
fn the_master_counts_its_lost_lines_over_a_reload_of_its_log() {
    let toml = |level: &str| {
        // What a worker shares with the hub is a file, too, if one in memory.
        let topics = "[topics]\nenabled = false\n";
        let log = format!("[log]\nlevel = \"{level}\"\n");
        site::configuration(&format!("worker_processes = 1\n{topics}{log}"))
    };
    let server = TestServer::start("full_disk_reload", &toml("debug"));
    let workers = server.worker_pids();
    // Nothing can be written from here on.
    if !limit_file_size(server.pid(), "0") {
        println!("skipped: there is no prlimit(1) that may limit the master");
        return;
    }
    for _ in 0..9 {
        assert_eq!(server.run(&["reopen", "--wait"]).code, Some(0));
    }
    fs::write(server.dir.join("chappe.toml"), toml("info")).unwrap();
    assert_eq!(server.run(&["reload"]).code, Some(0));
    server.wait_workers(1, &workers);
    // The new worker's own lines are counted once and for all.
    server.wait_event("worker-0", "worker.drained", "");
    let lost = server.total("log_lines_lost");
    for _ in 0..3 {
        server.signal(Signal::SIGUSR2);
        server.status_json();
    }
    server.wait_status("/totals/log_lines_lost", |now| now >= lost + 3);
}

#[test]
fn the_level_changes_without_a_restart_and_for_new_workers_too() {
    let server = TestServer::start("log_level", "worker_processes = 1\n[log]\nlevel = \"info\"\n");
    server.connect().call(CODE_PING, b"").unwrap();
    let change = server.run(&["log-level", "debug"]);
    assert_eq!((change.code, change.stderr.as_str()), (Some(0), ""));
    server.wait_event("worker-0", "log.level", "level=debug");
    assert!(server.events("worker-0", "conn.accepted").is_empty());
    server.connect().call(CODE_PING, b"").unwrap();
    server.wait_event("worker-0", "conn.accepted", "");
    assert_eq!(server.run(&["log-level", "loud"]).code, Some(2));

    let old = server.worker_pids()[0];
    kill(Pid::from_raw(old), Signal::SIGKILL).unwrap();
    server.wait_workers(1, &[old]);
    let count = |event: &str| server.events("worker-0", event).len();
    wait_until("the new worker serves", || count("worker.serves") == 2);
    let before = count("conn.accepted");
    server.connect().call(CODE_PING, b"").unwrap();
    wait_until("it logs connections", || count("conn.accepted") > before);
}

#[test]
fn a_warning_that_repeats_is_logged_once() {
    let toml = "worker_processes = 1\n[worker]\nmax_connections = 1\n";
    let server = TestServer::start("repeated_warning", toml);
    for _ in 0..50 {
        server.connect().call(CODE_PING, b"").unwrap();
    }
    server.wait_status("/totals/connections_accepted", |accepted| accepted >= 50);
    let warnings = server.events("worker-0", "accept.full");
    assert!((1..=2).contains(&warnings.len()), "{warnings:?}");
}

#[test]
fn a_worker_names_its_threads_and_the_permits_that_it_has() {
    let toml = "worker_processes = 1\n[worker]\nhandler_threads = 2\n";
    let server = TestServer::start("logs_threads", toml);
    let worker = server.worker_pids()[0];
    for (tid, name) in proc::threads(worker) {
        let name = if tid == worker { "event-loop" } else { &name };
        server.wait_event("worker-0", "thread.started", &format!("name={name} tid={tid}"));
    }
    let clients = [server.connect(), server.connect()];
    server.wait_event("worker-0", "conn.accepted", "permits_held=2");
    drop(clients);
    server.wait_event("worker-0", "conn.closed", "cause=peer_closed permits_held=0");
    assert!(!server.read("logs/worker-0.log").contains("TRACE"), "the level is debug");
}

#[test]
fn trace_follows_a_frame_through_the_threads() {
    let threads = [("true", "event-loop", "event-loop"), ("false", "handler-0", "sender")];
    for (fuse, handles, sends) in threads {
        let toml = format!(
            "worker_processes = 1\n[worker]\nhandler_threads = 1\nfuse = {fuse}\n\
             [log]\nlevel = \"trace\"\n"
        );
        let server = TestServer::start(&format!("logs_trace_{fuse}"), &toml);
        let mut client = server.connect();
        client.call(CODE_ECHO, b"hello").unwrap();
        client.call(99, b"").unwrap();
        let of = |what: &str, thread: &str| format!("conn=1 {what} thread={thread}");
        server.wait_event("worker-0", "conn.frame", &of("frame handled code=1 bytes=5", handles));
        server.wait_event("worker-0", "conn.frame", &of("frame replied code=1 bytes=5", handles));
        server.wait_event("worker-0", "conn.flushed", &of("flushed All", sends));
        server.wait_event("worker-0", "conn.frame", &of("frame handled code=99 bytes=0", handles));
        server.wait_event(
            "worker-0",
            "conn.error",
            "conn=1 error answered problem=UnknownCode code=99",
        );
    }
}

#[test]
fn permits_that_run_out_are_told_once() {
    let toml = "worker_processes = 1\nmax_connections = 1\n";
    let server = TestServer::start("permits_out", toml);
    let mut first = server.connect();
    first.call(CODE_PING, b"").unwrap();
    for _ in 0..20 {
        server.connect().receive().expect("busy");
    }
    server.wait_status("/totals/connections_refused", |refused| refused == 20);
    let warnings = server.events("worker-0", "permits.exhausted");
    assert!((1..=2).contains(&warnings.len()), "{warnings:?}");
}

#[test]
fn failing_accepts_are_told_once_and_counted() {
    let server = TestServer::start("accepts_fail", "worker_processes = 1\n");
    let worker = server.worker_pids()[0];
    let pid = worker.to_string();
    // Not one descriptor more than there are.
    let open = proc::open_descriptors(worker).len();
    let limit = |limit: &str| {
        let limit = format!("--nofile={limit}");
        Command::new("prlimit").args(["--pid", &pid, &limit]).status()
    };
    if !limit(&format!("{open}:")).is_ok_and(|status| status.success()) {
        println!("skipped: there is no prlimit(1) that may limit the worker");
        return;
    }
    let mut waiting = server.connect();
    server.wait_status("/totals/accept_errors", |errors| errors >= 3);
    let warnings = server.events("worker-0", "accept.failed");
    assert!((1..=2).contains(&warnings.len()), "{warnings:?}");
    assert!(limit("1000:").is_ok_and(|status| status.success()));
    waiting.call(CODE_PING, b"").unwrap();
}

#[test]
fn a_huge_log_is_not_read_into_memory() {
    let dir = chappe_testkit::fresh_dir("logs_huge");
    fs::write(dir.join("chappe.toml"), "").unwrap();
    fs::create_dir(dir.join("logs")).unwrap();
    let path = dir.join("logs/master.log");
    let line = |level: &str| format!("2026-11-23T03:04:05.678Z {level} master 1 text\n");
    fs::write(&path, line("ERROR")).unwrap();
    // A line of a quarter of a gigabyte, as far as readers can see: more than they may map.
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.set_len(256 << 20).unwrap();
    let many = line("DEBUG").repeat(20_000);
    file.write_all(format!("\n{many}").as_bytes()).unwrap();
    for (arguments, expected) in
        [(&["-n", "2"][..], line("DEBUG").repeat(2)), (&["-n", "2", "-l", "error"], line("ERROR"))]
    {
        let mut call = Command::new("sh");
        call.args([
            "-c",
            "ulimit -v 200000 && exec \"$0\" \"$@\"",
            &site::program("chappe"),
            "logs",
            "-p",
        ]);
        call.arg(&dir).arg("-c").arg(dir.join("chappe.toml")).args(arguments);
        let shown = site::finish(&mut call);
        assert_eq!((shown.code, shown.stderr.as_str()), (Some(0), ""), "{arguments:?}");
        assert_eq!(shown.stdout, expected, "{arguments:?}");
    }
}

#[test]
fn a_line_of_a_log_cannot_steer_the_terminal() {
    let dir = chappe_testkit::fresh_dir("logs_terminal");
    fs::write(dir.join("chappe.toml"), "").unwrap();
    fs::create_dir(dir.join("logs")).unwrap();
    let line = "2026-11-23T03:04:05.678Z INFO  master 1 \x1b]0;title\x07\x1b[2J\tgone \u{e4}\n";
    fs::write(dir.join("logs/master.log"), line).unwrap();
    // Into a file it goes as it is.
    assert_eq!(site::finish(site::command(&dir).arg("logs")).stdout, line);
    let pty = openpty(None, None).expect("a pseudo terminal");
    let kept = pty.slave.try_clone().expect("another one");
    let shown = site::command(&dir).arg("logs").stdout(pty.slave).status();
    assert!(shown.expect("it starts").success());
    let mut bytes = [0; 4096];
    let length = File::from(pty.master).read(&mut bytes).expect("what it has written");
    drop(kept);
    let shown = String::from_utf8_lossy(&bytes[..length]);
    assert!(shown.contains(r"\x1b]0;title\x07\x1b[2J"), "{shown:?}");
    assert!(shown.contains("gone \u{e4}") && !shown.contains(['\x1b', '\x07']), "{shown:?}");
}
