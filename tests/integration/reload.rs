//! Reloads of the real server: what changes, what stays, what nobody notices.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;

use chappe::control::{ReloadOutcome, WorkerStatus};
use chappe_client::{CODE_ECHO, CODE_PING, Connection, Goodbye};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use chappe_testkit::site::{configuration, pid_of};
use chappe_testkit::{DEADLINE, Finished, TestServer, drain, wait_until, while_stopped};

/// Replaces the file in one step: half of it would be a valid configuration too.
fn configure(server: &TestServer, toml: &str) {
    let next = server.dir.join("next.toml");
    fs::write(&next, configuration(toml)).expect("the configuration");
    fs::rename(&next, server.dir.join("chappe.toml")).expect("the configuration");
}

#[track_caller]
fn reload(server: &TestServer) -> Finished {
    let outcome = server.run(&["reload"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    outcome
}

#[track_caller]
fn reload_fails(server: &TestServer, code: i32, why: &str) {
    let outcome = server.run(&["reload"]);
    assert_eq!(outcome.code, Some(code), "{outcome:?}");
    assert!(outcome.stderr.contains(why), "{outcome:?}");
    assert_eq!(outcome.stdout, "");
}

fn last_outcome(server: &TestServer) -> Option<ReloadOutcome> {
    server.status().reload.last.map(|last| last.outcome)
}

#[track_caller]
fn wait_drained(server: &TestServer) {
    wait_until("nobody drains", || {
        let status = server.status();
        status.serving().count() == status.workers.len()
    });
}

/// A port that was free a moment ago. Only for what cannot have port 0: an address
/// that must be the same, or known, before the server has it.
fn free_port(ip: &str) -> SocketAddr {
    TcpListener::bind(format!("{ip}:0")).expect("a port").local_addr().expect("its address")
}

fn listen(address: SocketAddr) -> String {
    format!("[[listen]]\naddress = \"{address}\"\n")
}

fn echoes(address: SocketAddr) -> bool {
    Connection::connect(address, DEADLINE)
        .and_then(|mut client| client.call(CODE_ECHO, b"here"))
        .is_ok_and(|frame| frame.body == "here")
}

#[test]
fn changed_keys_take_effect_and_are_named() {
    let server = TestServer::start("reload_keys", "worker_drain_spread = \"0\"\n");
    let before = server.worker_pids();
    let mut old = server.connect();
    old.call(CODE_PING, b"").unwrap();
    configure(
        &server,
        "worker_processes = 3\nworker_drain_spread = \"0\"\ndaemon = false\nuser = \"root\"\n\
         [frame]\nmax_bytes = 1000\n",
    );
    let outcome = reload(&server);
    assert!(outcome.stdout.starts_with("reloaded: generation 2, workers 3, ready in "));
    assert!(
        outcome.stdout.contains("\nchanged: worker_processes, frame.max_bytes\n"),
        "{outcome:?}"
    );
    assert!(outcome.stdout.contains("\nneeds a restart: daemon, user\n"), "{outcome:?}");
    server.wait_event("master", "reload.done", "generation=2 workers=3 ");
    server.wait_event("master", "reload.restart_needed", "daemon, user");
    // The old connection has the old limit until it is told to connect again.
    let (frames, end) = drain(&mut old);
    assert!(frames[0].as_goodbye().is_some_and(|goodbye| goodbye.is(Goodbye::Reloading)));
    assert!(end.is_disconnect(), "{end:?}");
    drop(old);
    server.wait_workers(3, &before);
    let mut new = server.connect();
    new.send(CODE_ECHO, &[0; 1000]).unwrap();
    assert!(new.receive().unwrap().as_error().is_some());
    let status = server.status();
    assert_eq!(status.reload.count, 1);
    let last = status.reload.last.expect("a reload");
    assert_eq!(last.outcome, ReloadOutcome::Ok);
    assert!(last.at > 1_700_000_000_000, "{last:?}");
    assert_eq!(server.total("workers_died"), 0);
    // Down again, by signal; what needs a restart is still reported.
    configure(&server, "worker_processes = 1\nuser = \"root\"\n");
    let signalled = server.run(&["-s", "reload"]);
    assert_eq!(signalled.code, Some(0), "{signalled:?}");
    server.wait_workers(1, &[]);
    server.wait_event("master", "reload.done", "generation=3 workers=1 ");
    server.wait_event("master", "reload.restart_needed", "for user");
}

#[test]
fn a_bad_file_keeps_the_old_generation() {
    let server = TestServer::start("reload_bad_file", "");
    let before = server.worker_pids();
    let mut client = server.connect();
    configure(&server, "worker_processes = 0\n");
    let signalled = server.run(&["-s", "reload"]);
    assert_eq!(signalled.code, Some(2), "{signalled:?}");
    assert_eq!(server.status().reload.count, 0, "nothing was sent");
    // By command and by signal it is tried, and that it has failed is to be seen.
    let why = "chappe.toml:1:20: worker_processes is 0, must be";
    let assert_failed = |count| {
        let reload = server.status().reload;
        let last = reload.last.expect("a reload");
        assert_eq!((reload.count, last.outcome), (count, ReloadOutcome::Failed));
        assert!(last.reason.is_some_and(|reason| reason.contains(why)));
    };
    reload_fails(
        &server,
        2,
        &format!("reload failed, the old generation stays: {}/", server.dir.display()),
    );
    assert_failed(1);
    server.signal(Signal::SIGHUP);
    wait_until("it was tried again", || server.status().reload.count == 2);
    assert_failed(2);
    assert_eq!(server.events("master", "reload.failed").len(), 4, "two lines each");
    assert_eq!(server.worker_pids(), before);
    assert_eq!(client.call(CODE_ECHO, b"unhurt").unwrap().body, "unhurt");
}

#[test]
fn a_taken_port_keeps_the_old_generation_and_its_listeners() {
    let server = TestServer::start("reload_taken_port", "");
    let before = server.worker_pids();
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    let other = free_port("127.0.0.1");
    let toml = format!("{}{}", listen(other), listen(taken));
    configure(&server, &toml);
    let expected = format!("chappe.toml:5:11: listen.1.address: cannot listen on {taken}: ");
    reload_fails(&server, 1, &expected);
    assert_eq!(last_outcome(&server), Some(ReloadOutcome::Failed));
    assert_eq!(server.worker_pids(), before);
    assert!(echoes(server.address));
    assert!(!echoes(other), "nothing of it is left");
    drop(holder);
    reload(&server);
    assert!(echoes(other) && echoes(taken));
}

#[test]
fn an_address_that_was_just_removed_can_be_had_again() {
    let (first, second) = (free_port("127.0.0.1"), free_port("127.0.0.1"));
    let both = format!("worker_processes = 1\n{}{}", listen(first), listen(second));
    let server = TestServer::start("reload_removed_and_added", &both);
    let old = server.worker_pids()[0];
    // While it is stopped it has not even heard that it is to let go.
    let mut again = while_stopped(old, || {
        configure(&server, &format!("worker_processes = 1\n{}", listen(first)));
        reload(&server);
        configure(&server, &both);
        let again = server.command(&["reload"]).spawn().expect("the command starts");
        server.wait_event("master", "reload.waits", "");
        again
    });
    assert!(again.wait().expect("our own child").success());
    assert!(echoes(first) && echoes(second));
    assert_eq!(server.status().reload.count, 2);
    assert_eq!(last_outcome(&server), Some(ReloadOutcome::Ok));
}

#[test]
fn an_address_that_a_stopped_worker_keeps_fails_the_reload_in_the_end() {
    let (first, second) = (free_port("127.0.0.1"), free_port("127.0.0.1"));
    let both = format!("worker_processes = 1\n{}{}", listen(first), listen(second));
    let server = TestServer::start("reload_removed_and_kept", &both);
    let old = server.worker_pids()[0];
    while_stopped(old, || {
        configure(&server, &format!("worker_processes = 1\n{}", listen(first)));
        reload(&server);
        configure(&server, &both);
        reload_fails(&server, 1, &format!("cannot listen on {second}: "));
        assert!(echoes(first));
    });
    wait_drained(&server);
    reload(&server);
    assert!(echoes(second));
}

#[test]
fn a_stop_ends_a_reload_that_waits_for_an_address() {
    let (first, second) = (free_port("127.0.0.1"), free_port("127.0.0.1"));
    let both = format!("worker_processes = 1\n{}{}", listen(first), listen(second));
    let mut server = TestServer::start("reload_waits_and_stops", &both);
    let old = server.worker_pids()[0];
    let again = while_stopped(old, || {
        configure(&server, &format!("worker_processes = 1\n{}", listen(first)));
        reload(&server);
        configure(&server, &both);
        let again =
            server.command(&["reload"]).stderr(Stdio::piped()).spawn().expect("the command starts");
        server.wait_event("master", "reload.waits", "");
        server.signal(Signal::SIGTERM);
        server.wait_event("master", "reload.abandoned", "");
        again
    });
    let told = again.wait_with_output().expect("our own child");
    let text = String::from_utf8_lossy(&told.stderr);
    assert!(!told.status.success() && text.contains("the server is stopping"), "{text}");
    assert!(server.wait_exit().success());
}

#[test]
fn listeners_come_go_and_move_and_what_stays_is_never_closed() {
    let (first, second) = (free_port("127.0.0.1"), free_port("127.0.0.1"));
    let toml = format!("worker_drain_spread = \"0\"\n{}", listen(first));
    let server = TestServer::start("reload_listeners", &toml);
    assert_eq!(server.address, first);
    let inode = |address: SocketAddr| listening_inode(address).expect("it listens");
    let kept = inode(first);
    // Added.
    let sixth = free_port("[::1]");
    configure(&server, &format!("{}{}{}", listen(second), listen(first), listen(sixth)));
    let outcome = reload(&server);
    let said = format!("changed: worker_drain_spread, listen {second} added, listen {sixth} added");
    assert!(outcome.stdout.contains(&said), "{outcome:?}");
    assert!([first, second, sixth].into_iter().all(echoes));
    assert_eq!(inode(first), kept);
    let addresses = [second, first, sixth].map(|address| address.to_string());
    assert_eq!(server.status().master.listen, addresses);
    // One is removed, one moves.
    let moved = free_port("[::1]");
    configure(&server, &format!("{}{}", listen(moved), listen(first)));
    let outcome = reload(&server);
    for change in [
        format!("listen {moved} added"),
        format!("listen {second} removed"),
        format!("listen {sixth} removed"),
    ] {
        assert!(outcome.stdout.contains(&change), "{change}: {outcome:?}");
    }
    assert!(echoes(first) && echoes(moved));
    assert_eq!(inode(first), kept);
    wait_until("removed ports are free", || {
        listening_inode(second).is_none() && listening_inode(sixth).is_none()
    });
    // An option of a socket that stays.
    configure(&server, &format!("{}{}backlog = 7\n", listen(moved), listen(first)));
    let outcome = reload(&server);
    assert!(outcome.stdout.contains(&format!("changed: listen {first} backlog\n")), "{outcome:?}");
    assert_eq!(inode(first), kept);
}

/// The inode of the socket that listens there, as /proc/net/tcp has it.
fn listening_inode(address: SocketAddr) -> Option<String> {
    let (path, ip) = match address {
        SocketAddr::V4(_) => ("/proc/net/tcp", "0100007F"),
        SocketAddr::V6(_) => ("/proc/net/tcp6", "00000000000000000000000001000000"),
    };
    let wanted = format!("{ip}:{:04X}", address.port());
    let table = fs::read_to_string(path).expect("/proc");
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(1) == Some(&wanted.as_str()) && fields[3] == "0A").then(|| fields[9].to_owned())
    })
}

#[test]
fn a_burst_of_hups_is_a_few_reloads_and_the_last_file_holds() {
    let server = TestServer::start("reload_burst", "worker_drain_spread = \"0\"\n");
    for workers in 1..=30 {
        configure(&server, &format!("worker_processes = {}\n", 1 + workers % 4));
        server.signal(Signal::SIGHUP);
    }
    configure(&server, "worker_processes = 3\n");
    server.signal(Signal::SIGHUP);
    wait_until("the last file holds", || {
        let status = server.status();
        let generation = status.master.generation;
        status.serving().filter(|worker| worker.generation == generation).count() == 3
            && server.read("logs/master.log").contains(" workers=3 ready_ms=")
    });
    let count = server.status().reload.count;
    assert!((1..=31).contains(&count), "{count}");
    assert!(echoes(server.address));
    assert_eq!(server.total("workers_died"), 0);
}

#[test]
fn goodbyes_of_a_reload_are_spread_and_each_request_before_is_answered() {
    let toml = "worker_processes = 1\nworker_drain_spread = \"1s\"\n";
    let server = TestServer::start("reload_spread", toml);
    let mut clients: Vec<_> = (0..20).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.call(CODE_PING, b"").unwrap();
    }
    reload(&server);
    let begun = std::time::Instant::now();
    for client in &mut clients {
        client.send(CODE_ECHO, b"in between").unwrap();
    }
    for client in &mut clients {
        let (frames, end) = drain(client);
        assert!(end.is_disconnect(), "{end:?}");
        let replies = frames.iter().filter(|frame| frame.body == "in between").count();
        let goodbyes = frames.iter().filter_map(chappe_client::Frame::as_goodbye);
        assert_eq!((replies, goodbyes.count()), (1, 1), "{frames:?}");
    }
    // The last of twenty is told at nineteen twentieths.
    assert!(begun.elapsed().as_millis() >= 700, "{:?}", begun.elapsed());
    wait_drained(&server);
}

#[test]
fn totals_and_permits_hold_over_reloads() {
    let toml = |permits: u32| format!("worker_drain_spread = \"0\"\nmax_connections = {permits}\n");
    let server = TestServer::start("reload_totals", &toml(50));
    let mut before = BTreeMap::new();
    let mut check = || {
        for (name, value) in server.status().totals.expect("totals").iter() {
            let last = before.insert(name.to_owned(), value).unwrap_or(0);
            assert!(value >= last, "{name} went from {last} to {value}");
        }
    };
    let mut clients = Vec::new();
    for permits in [50, 20, 80, 5, 60] {
        clients.extend((0..3).map(|_| server.connect()));
        for client in clients.iter_mut().rev().take(3) {
            client.call(CODE_ECHO, b"counted").unwrap();
        }
        configure(&server, &toml(permits));
        reload(&server);
        check();
        // All are told to connect again, and that is when their permits come back.
        for mut client in clients.drain(..) {
            let (_, end) = drain(&mut client);
            assert!(end.is_disconnect(), "{end:?}");
            check();
        }
        server.wait_status("/semaphores/connection_permits", |free| free == u64::from(permits));
    }
    check();
    assert_eq!(server.total("connections_accepted"), 15);
    assert_eq!(server.total("connections_refused"), 0);
    // A failed reload changes no limit.
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    configure(&server, &(toml(7) + &listen(holder.local_addr().unwrap())));
    reload_fails(&server, 1, "cannot listen");
    assert_eq!(server.status_number("/semaphores/connection_permits"), 60);
}

#[test]
fn reuseport_has_a_socket_a_worker_and_loses_none() {
    let address = free_port("127.0.0.1");
    let toml = |workers: u16| {
        format!(
            "worker_processes = {workers}\nworker_drain_spread = \"0\"\n{}accept = \"reuseport\"\n",
            listen(address)
        )
    };
    let server = TestServer::start("reload_reuseport", &toml(2));
    let sockets = || {
        let table = fs::read_to_string("/proc/net/tcp").expect("/proc");
        let wanted = format!(" 0100007F:{:04X} 00000000:0000 0A ", address.port());
        table.lines().filter(|line| line.contains(&wanted)).count()
    };
    assert_eq!(sockets(), 2);
    // Whatever the kernel hashes a connect to has somebody who accepts.
    let check = |count: usize| {
        assert_eq!(sockets(), count);
        for _ in 0..40 {
            assert!(echoes(address));
        }
    };
    check(2);
    for workers in [4, 3, 1] {
        configure(&server, &toml(workers));
        reload(&server);
        wait_drained(&server);
        check(4);
    }
    // Four sockets: they are handed out again, until each worker has its own.
    let settle = |workers: usize, signal: Signal| {
        server.signal(signal);
        wait_until("the workers are as many", || server.worker_pids().len() == workers);
        wait_drained(&server);
        check(4);
    };
    settle(2, Signal::SIGTTIN);
    server.wait_event("master", "workers.renewed", "sockets");
    settle(3, Signal::SIGTTIN);
    settle(4, Signal::SIGTTIN);
    settle(3, Signal::SIGTTOU);
    assert_eq!(server.total("workers_died"), 0);
}

#[test]
fn a_changed_control_socket_is_reported_at_the_old_one() {
    let server = TestServer::start("reload_control_socket", "");
    configure(&server, "control_socket = \"run/other.sock\"\n");
    for command in ["reload", "status", "stop"] {
        let refused = server.run(&[command]);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        let hint = format!("but a master is running, pid {}: ", server.pid());
        assert!(refused.stderr.contains(&hint), "{refused:?}");
        assert!(refused.stderr.contains("--set control_socket="), "{refused:?}");
    }
    let outcome = server.run(&["reload", "--set", "control_socket=run/chappe.sock"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stdout.contains("needs a restart: control_socket"), "{outcome:?}");
}

#[test]
fn who_is_told_to_drain_is_shown_to_drain_whether_it_has_heard_it_or_not() {
    let server = TestServer::start("reload_unheard", "");
    let old = server.worker_pids();
    let states = |of_old: bool| {
        let workers = server.status().workers.into_iter();
        let is_old = |worker: &WorkerStatus| old.contains(&pid_of(worker).as_raw());
        workers.filter(|it| is_old(it) == of_old).map(|worker| worker.state).collect()
    };
    let signal = |signal| old.iter().for_each(|pid| kill(Pid::from_raw(*pid), signal).unwrap());
    // As busy as can be: they hear nothing.
    signal(Signal::SIGSTOP);
    reload(&server);
    let shown: Vec<String> = states(true);
    signal(Signal::SIGCONT);
    assert_eq!(shown, ["draining", "draining"]);
    // The new ones get their order before: a worker that gets it in time serves.
    wait_until("the new workers serve", || states(false) == ["serving", "serving"]);
    wait_drained(&server);
    assert_eq!(server.total("workers_died"), 0);
}

/// Four reloads in a row end the first drain, with what is still connected.
#[test]
fn connections_of_a_drain_that_is_ended_for_a_reload_are_counted() {
    let toml =
        "worker_processes = 1\nworker_shutdown_timeout = \"1h\"\nworker_drain_spread = \"30m\"\n";
    let server = TestServer::start("reload_cut", toml);
    let mut clients = Vec::new();
    for _ in 0..4 {
        for _ in 0..20 {
            let mut client = server.connect();
            client.call(CODE_PING, b"").unwrap();
            clients.push(client);
        }
        assert_eq!(server.run(&["reload"]).code, Some(0));
    }
    server.wait_status("/totals/drains_cut", |cut| cut == 1);
    // Those that had their goodbye first may have left by themselves; and a worker that
    // leaves its listener still takes what has queued there, which may be of the next twenty.
    server.wait_status("/totals/connections_cut", |cut| (10..=40).contains(&cut));
}
