//! Start, stop, death and replacement of processes.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::process::Command;

use chappe_client::{CODE_ECHO, CODE_PING, CODE_WHO, Connection, Goodbye};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use chappe_testkit::site::{command, configuration, finish};
use chappe_testkit::{
    DEADLINE, Daemon, Finished, Numbered, Site, TestServer, drain, fresh_dir, proc, small_buffers,
    wait_for, wait_until,
};

#[track_caller]
fn assert_nothing_left(server: &TestServer) {
    wait_until("no process of the server is left", || proc::group(server.pid()).is_empty());
    // Nobody listens there any more.
    TcpListener::bind(server.address).expect("the port is free");
}

/// The worker that a connection is at.
fn worker_of(client: &mut Connection) -> i32 {
    let reply = client.call(CODE_WHO, b"").expect("who");
    let text = String::from_utf8(reply.body.to_vec()).expect("text");
    let pid = text.lines().find_map(|line| line.strip_prefix("pid=")).expect("a pid");
    pid.parse().expect("a number")
}

/// All totals by name.
fn totals(server: &TestServer) -> BTreeMap<String, u64> {
    let totals = server.status().totals.expect("totals");
    totals.iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[test]
fn the_ready_line_is_all_that_stdout_ever_gets() {
    let mut server = TestServer::start("ready_line", "");
    let line = format!("ready {}\n", server.address);
    assert_eq!(server.stdout(), line);
    server.connect().call(CODE_ECHO, b"x").unwrap();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    assert_eq!(server.stdout(), line);
}

#[test]
fn term_int_and_quit_end_it_with_exit_0_and_nothing_left() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let mut server = TestServer::start(&format!("stop_by_{signal}"), "");
        let mut clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.call(CODE_PING, b"").unwrap();
        }
        server.signal(signal);
        assert_eq!(server.wait_exit().code(), Some(0), "{signal}");
        assert_nothing_left(&server);
        assert!(!server.dir.join("run/chappe.sock").exists(), "{signal}: the socket is gone");
    }
}

#[test]
fn quit_answers_what_was_sent_and_says_goodbye() {
    let mut server = TestServer::start("quit_answers", "");
    let mut client = server.connect();
    client.call(CODE_PING, b"").unwrap();
    for number in 0..2000_u32 {
        client.send(CODE_ECHO, &number.to_be_bytes()).unwrap();
    }
    server.signal(Signal::SIGQUIT);
    let (frames, end) = drain(&mut client);
    for (number, frame) in (0..2000_u32).zip(&frames) {
        assert_eq!(frame.body, number.to_be_bytes()[..]);
    }
    assert_eq!(frames.len(), 2001, "{end:?}");
    let goodbye = frames[2000].as_goodbye().expect("a goodbye");
    assert!(goodbye.is(Goodbye::Stopping), "{goodbye}");
    assert!(end.is_disconnect(), "{end:?}");
    assert_eq!(server.wait_exit().code(), Some(0));
    assert_nothing_left(&server);
}

#[test]
fn quit_serves_connections_that_wait_in_the_backlog() {
    let mut server = TestServer::start("quit_backlog", "");
    // Connected as far as the kernel is concerned; accepted or not, they count.
    let mut clients: Vec<_> = (0..50).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send(CODE_ECHO, b"waited").unwrap();
    }
    server.signal(Signal::SIGQUIT);
    for client in &mut clients {
        assert_eq!(client.receive().unwrap().body, "waited");
    }
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn quit_does_not_wait_for_a_peer_that_never_leaves() {
    let toml = "worker_shutdown_timeout = \"1s\"\n";
    let mut server = TestServer::start("quit_is_bounded", toml);
    let mut client = server.connect();
    client.call(CODE_PING, b"").unwrap();
    server.signal(Signal::SIGQUIT);
    assert_eq!(server.wait_exit().code(), Some(0));
    let cut = ["worker-0", "worker-1"].map(|log| server.events(log, "worker.cut")).concat();
    assert!(cut.len() == 1 && cut[0].ends_with("connections=1"), "{cut:?}");
    drop(client);
}

#[test]
fn a_killed_worker_is_replaced_and_costs_only_its_own_connections() {
    // Four each: a full worker stops listening, so both get theirs.
    let toml = "max_connections = 100\n[worker]\nmax_connections = 4\n";
    let server = TestServer::start("killed_worker", toml);
    let workers = server.worker_pids();
    let mut clients: Vec<_> = (0..8).map(|_| server.connect()).collect();
    let places: Vec<_> = clients.iter_mut().map(worker_of).collect();
    for pid in &workers {
        assert_eq!(places.iter().filter(|place| *place == pid).count(), 4, "{places:?}");
    }
    server.wait_status("/semaphores/connection_permits", |permits| permits == 92);

    kill(Pid::from_raw(workers[0]), Signal::SIGKILL).unwrap();

    let mut survivors = 0;
    for (client, place) in clients.iter_mut().zip(&places) {
        if *place == workers[0] {
            let end = client.receive().unwrap_err();
            assert!(end.is_disconnect(), "{end:?}");
        } else {
            assert_eq!(client.call(CODE_ECHO, b"unhurt").unwrap().body, "unhurt");
            survivors += 1;
        }
    }
    assert_eq!(survivors, 4);
    let now = server.wait_workers(2, &workers[..1]);
    assert!(now.contains(&workers[1]));
    server.wait_status("/semaphores/connection_permits", |permits| permits == 96);
    server.wait_status("/totals/workers_died", |died| died == 1);
    server.wait_status("/totals/connections_closed", |closed| closed == 4);
    server.wait_event("master", "worker.ended", &format!("pid={} ", workers[0]));
    // The other is full, so it is the new one that serves these.
    for _ in 0..4 {
        let place = worker_of(&mut server.connect());
        assert!(now.contains(&place) && place != workers[1], "{place} of {now:?}");
    }
    drop(clients);
    server.wait_status("/semaphores/connection_permits", |permits| permits == 100);
}

#[test]
fn totals_never_go_backwards_over_a_workers_death() {
    let server = TestServer::start("totals_over_death", "worker_processes = 1\n");
    let workers = server.worker_pids();
    let mut client = server.connect();
    for _ in 0..500 {
        client.call(CODE_ECHO, b"counted").unwrap();
    }
    let mut before = totals(&server);
    kill(Pid::from_raw(workers[0]), Signal::SIGKILL).unwrap();
    let died = wait_for(|| {
        let now = totals(&server);
        for (name, value) in &before {
            assert!(now[name] >= *value, "{name} went from {value} to {}", now[name]);
        }
        before = now;
        (before["workers_died"] == 1).then_some(())
    });
    assert!(died.is_some(), "{before:?}");
    assert!(before["frames_received"] >= 500, "{before:?}");
    server.wait_workers(1, &workers);
    assert_eq!(server.connect().call(CODE_ECHO, b"again").unwrap().body, "again");
}

#[test]
fn workers_leave_when_the_master_is_killed() {
    let mut server = TestServer::start("killed_master", "");
    let mut client = server.connect();
    client.call(CODE_PING, b"").unwrap();
    server.signal(Signal::SIGKILL);
    server.wait_exit();
    assert_nothing_left(&server);
    let (_, end) = drain(&mut client);
    assert!(end.is_disconnect(), "{end:?}");
}

#[test]
fn a_start_right_after_the_masters_death_finds_the_port_free() {
    let first = TestServer::start("killed_master_first", "");
    // Replies that nobody reads yet keep one of its workers for a while.
    let mut client = small_buffers(first.address, 4096);
    for number in 0..20 {
        client.send(CODE_ECHO, &Numbered { stream: 0, number, bytes: 60_000 }.body()).unwrap();
    }
    first.wait_status("/totals/sends_blocked", |blocked| blocked > 0);
    first.signal(Signal::SIGKILL);

    let toml = format!("[[listen]]\naddress = \"{}\"\n", first.address);
    let second = TestServer::start("killed_master_second", &toml);
    assert_eq!(second.address, first.address);
    assert_eq!(second.connect().call(CODE_ECHO, b"new").unwrap().body, "new");
    assert!(!proc::group(first.pid()).is_empty(), "a worker of the dead master still drains");
    for number in 0..20 {
        let expected = Numbered { stream: 0, number, bytes: 60_000 }.body();
        assert!(client.receive().unwrap().body == expected, "reply {number}");
    }
    assert!(client.receive().unwrap().as_goodbye().expect("a goodbye").is(Goodbye::Stopping));
    drop(client);
    wait_until("the old workers are gone", || {
        proc::group(first.pid()).iter().all(|pid| *pid == first.pid())
    });
}

fn start_daemon(test: &str) -> Daemon {
    Site::new("chappe", test, &configuration("")).start_daemon()
}

#[test]
fn the_working_directory_is_the_prefix() {
    let daemon = start_daemon("daemon_directory");
    let workers = proc::workers(daemon.master);
    assert_eq!(workers.len(), 2);
    for pid in [&[daemon.master], &workers[..]].concat() {
        let directory = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
        assert_eq!(directory, daemon.dir.canonicalize().unwrap(), "process {pid}");
    }
}

#[test]
fn a_daemon_is_ready_when_the_launcher_returns() {
    let daemon = start_daemon("daemon");
    assert_eq!(daemon.start.code, Some(0), "{:?}", daemon.start);
    let line = &daemon.start.stdout;
    assert_eq!(line.lines().count(), 1, "{line:?}");
    assert!(line.contains(&daemon.master.to_string()), "{line:?}");
    let logs = daemon.dir.join("logs");
    assert!(line.contains(logs.to_str().unwrap()) || line.contains("logs"), "{line:?}");
    let address = daemon.address();
    let mut client = Connection::connect(address, DEADLINE).unwrap();
    assert_eq!(client.call(CODE_ECHO, b"served").unwrap().body, "served");
    let workers = proc::workers(daemon.master);
    assert_eq!(workers.len(), 2);
    assert_eq!(proc::threads(daemon.master).len(), 1);
    // Nothing of the terminal, or whatever started it, is held open.
    for pid in [&[daemon.master], &workers[..]].concat() {
        let descriptors = proc::open_descriptors(pid);
        for number in 0..=2 {
            assert_eq!(descriptors[&number], "/dev/null", "descriptor {number} of {pid}");
        }
    }

    let second = finish(&mut command(&daemon.dir));
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(!second.stderr.is_empty(), "it says why");
    assert_eq!(client.call(CODE_ECHO, b"unhurt").unwrap().body, "unhurt");

    let quit = finish(command(&daemon.dir).args(["-s", "quit"]));
    assert_eq!(quit.code, Some(0), "{quit:?}");
    wait_until("the daemon is gone", || !proc::is_running(daemon.master));
    wait_until("its workers are gone", || !workers.iter().any(|pid| proc::is_running(*pid)));
    TcpListener::bind(address).expect("the port is free");
    let again = finish(command(&daemon.dir).args(["-s", "quit"]));
    assert_eq!(again.code, Some(1), "nobody to signal: {again:?}");
}

#[test]
fn a_daemon_can_be_stopped_at_once() {
    let daemon = start_daemon("daemon_stop");
    let workers = proc::workers(daemon.master);
    let stop = finish(command(&daemon.dir).args(["-s", "stop"]));
    assert_eq!(stop.code, Some(0), "{stop:?}");
    wait_until("the daemon is gone", || !proc::is_running(daemon.master));
    wait_until("its workers are gone", || !workers.iter().any(|pid| proc::is_running(*pid)));
}

/// Starts a server that should fail, and waits for that.
fn start_failing(command: &mut Command) -> Finished {
    let finished = finish(command);
    assert!(!finished.stderr.is_empty(), "it says why: {finished:?}");
    assert_eq!(finished.stdout, "", "{finished:?}");
    finished
}

#[test]
fn a_second_server_of_the_same_directory_is_refused() {
    let server = TestServer::start("second_server", "");
    let second = start_failing(command(&server.dir).arg("--foreground"));
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains(&server.pid().to_string()), "{second:?}");
    assert_eq!(server.connect().call(CODE_ECHO, b"unhurt").unwrap().body, "unhurt");
    assert_eq!(server.run(&["status"]).code, Some(0), "its control socket is still its own");
}

#[test]
fn a_taken_port_is_told_and_nothing_starts() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    for foreground in [true, false] {
        let dir = fresh_dir(&format!("taken_port_{foreground}"));
        let toml = format!("[[listen]]\naddress = \"{taken}\"\n");
        fs::write(dir.join("chappe.toml"), configuration(&toml)).unwrap();
        let mut start = command(&dir);
        if foreground {
            start.arg("--foreground");
        }
        let failed = start_failing(&mut start);
        assert_eq!(failed.code, Some(1), "{failed:?}");
        assert!(failed.stderr.contains(&taken), "{failed:?}");
    }
}

#[test]
fn a_configuration_can_be_checked() {
    let dir = fresh_dir("check_configuration");
    fs::write(dir.join("chappe.toml"), configuration("")).unwrap();
    let good = finish(command(&dir).arg("-t"));
    assert_eq!(good.code, Some(0), "{good:?}");

    let bad = "worker_processes = 0\nmax_conections = 5\n[frame]\nmax_bytes = 7\n";
    fs::write(dir.join("chappe.toml"), bad).unwrap();
    for arguments in [&["-t"][..], &["--foreground"], &[]] {
        let refused = finish(command(&dir).args(arguments));
        assert_eq!(refused.code, Some(2), "{arguments:?}: {refused:?}");
        for mistake in ["worker_processes", "max_conections", "max_bytes", "chappe.toml"] {
            assert!(refused.stderr.contains(mistake), "{mistake}: {refused:?}");
        }
    }
}

#[test]
fn a_wrong_command_line_is_exit_2() {
    let dir = fresh_dir("wrong_command_line");
    fs::write(dir.join("chappe.toml"), "").unwrap();
    for arguments in [&["--frobnicate"][..], &["-s", "dance"], &["send", "--count", "0"]] {
        let refused = finish(command(&dir).args(arguments));
        assert_eq!(refused.code, Some(2), "{arguments:?}: {refused:?}");
    }
}

/// Many deaths, few signals: SIGCHLD does not queue, so one stands for several.
#[test]
fn all_workers_killed_at_once_are_all_replaced() {
    let server = TestServer::start("killed_at_once", "worker_processes = 8\n");
    let mut clients: Vec<_> = (0..40).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.call(CODE_PING, b"").unwrap();
    }
    let mut gone = Vec::new();
    for round in 1..=3 {
        let workers = server.wait_workers(8, &gone);
        for pid in &workers {
            kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap();
        }
        gone.extend(workers);
        server.wait_status("/totals/workers_died", |died| died == 8 * round);
    }
    server.wait_workers(8, &gone);
    server.wait_status("/semaphores/connection_permits", |permits| permits == 100_000);
    server.wait_status("/totals/connections_closed", |closed| closed == 40);
    assert_eq!(server.connect().call(CODE_PING, b"").expect("served").code, CODE_PING);
}
