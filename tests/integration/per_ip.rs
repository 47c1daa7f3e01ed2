//! `limits.connections_per_ip`: how many connections one address may have, all
//! workers together.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use chappe_client::{CODE_ECHO, CODE_PING, Connection, ErrorNumber};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use chappe_testkit::site::configuration;
use chappe_testkit::{
    DEADLINE, TestServer, connect_from, drain, proc, receive_error, wait_for, wait_until,
};

fn loopback(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))
}

/// A client that is served; one that is not panics.
fn served(server: &TestServer, last: u8) -> Connection {
    let mut client = connect_from(loopback(last), server.address);
    let reply = client.call(CODE_PING, b"").expect("served");
    assert_eq!(reply.code, CODE_PING, "{reply:?}");
    client
}

#[track_caller]
fn refused(mut client: Connection) {
    let error = receive_error(&mut client, ErrorNumber::Busy);
    assert!(error.to_string().contains("limits.connections_per_ip"), "{error}");
    let (frames, end) = drain(&mut client);
    assert!(frames.is_empty() && end.is_disconnect(), "{frames:?} {end:?}");
}

#[test]
fn an_address_has_as_many_connections_as_it_may_over_all_workers() {
    let toml = "worker_processes = 4\n[limits]\nconnections_per_ip = 9\n";
    let server = TestServer::start("per_ip", toml);
    let mut clients: Vec<_> = (0..9).map(|_| served(&server, 1)).collect();
    for _ in 0..5 {
        refused(connect_from(loopback(1), server.address));
    }
    let others: Vec<_> = (2..12).map(|last| served(&server, last)).collect();
    let status = server.status_json();
    assert_eq!(status["totals"]["connections_refused"], 5);
    assert_eq!(status["totals"]["connections_refused_per_ip"], 5);
    assert_eq!(status["totals"]["connections_uncounted"], 0);
    // A refused one costs no permit.
    assert_eq!(status["semaphores"]["connection_permits"], 100_000 - 19);

    clients.truncate(6);
    server.wait_status("/totals/connections_closed", |closed| closed == 3);
    clients.extend((0..3).map(|_| served(&server, 1)));
    refused(connect_from(loopback(1), server.address));
    let refused = |number| server.events(&format!("worker-{number}"), "limits.per_ip");
    let refused: Vec<String> = (0..4).flat_map(refused).collect();
    assert!(refused.iter().any(|line| line.contains("peer=127.0.0.1:")), "{refused:?}");
    drop(others);
}

#[test]
fn who_finds_no_permit_is_not_counted_for_its_address() {
    let toml = "worker_processes = 1\nmax_connections = 2\n[limits]\nconnections_per_ip = 2\n";
    let server = TestServer::start("per_ip_permit", toml);
    let first = (served(&server, 1), served(&server, 2));
    for _ in 0..3 {
        let mut client = connect_from(loopback(1), server.address);
        let error = receive_error(&mut client, ErrorNumber::Busy);
        assert!(error.to_string().contains("max_connections"), "{error}");
    }
    drop(first.1);
    server.wait_status("/semaphores/connection_permits", |permits| permits == 1);
    drop(served(&server, 1));
}

#[test]
fn what_a_killed_worker_had_comes_back() {
    let toml = "worker_processes = 2\n[limits]\nconnections_per_ip = 8\n\
                [worker]\nmax_connections = 4\n";
    let server = TestServer::start("per_ip_killed", toml);
    let workers = server.worker_pids();
    // Four each: a full worker stops listening, so both have some.
    let clients: Vec<_> = (0..8).map(|_| served(&server, 1)).collect();
    kill(Pid::from_raw(workers[0]), Signal::SIGKILL).expect("our worker");
    server.wait_workers(2, &workers[..1]);
    server.wait_status("/totals/connections_closed", |closed| closed == 4);
    let again: Vec<_> = (0..4).map(|_| served(&server, 1)).collect();
    drop((clients, again));
    server.wait_status("/totals/connections_closed", |closed| closed == 12);
    drop((0..8).map(|_| served(&server, 1)).collect::<Vec<_>>());
}

#[test]
fn a_reload_changes_it_and_the_old_workers_connections_count() {
    let toml = |limit: u32| {
        let drain = "worker_drain_spread = \"0\"\nworker_shutdown_timeout = \"20s\"\n";
        format!("{drain}[limits]\nconnections_per_ip = {limit}\n")
    };
    let server = TestServer::start("per_ip_reload", &toml(3));
    let mut clients: Vec<_> = (0..3).map(|_| served(&server, 1)).collect();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Who goes on asking is not cut off by the drain.
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                for client in &mut clients {
                    client.call(CODE_ECHO, b"still here").expect("served on");
                }
            }
        });
        let done = catch_unwind(AssertUnwindSafe(|| {
            let text = configuration(&toml(4));
            fs::write(server.dir.join("chappe.toml"), text).expect("the configuration");
            let reload = server.run(&["reload"]);
            assert_eq!(reload.code, Some(0), "{reload:?}");
            // An old worker may take connects until it gets the order to drain.
            let fourth = wait_for(|| {
                let mut client = connect_from(loopback(1), server.address);
                let reply = client.call(CODE_PING, b"").ok()?;
                (reply.code == CODE_PING).then_some(client)
            });
            assert!(fourth.is_some(), "one more than the old limit");
            refused(connect_from(loopback(1), server.address));
        }));
        is_over.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| resume_unwind(panic));
    });
}

/// No process maps a table before somebody asks for it, and then as many as it can need.
#[test]
fn a_reload_turns_it_on_and_off_and_on_again() {
    const TABLE: u64 = 1 << 20;
    let toml = |limit: u32| {
        format!("worker_drain_spread = \"0\"\n[limits]\nconnections_per_ip = {limit}\n")
    };
    let server = TestServer::start("per_ip_on_and_off", &toml(0));
    let family = || [vec![server.pid()], server.worker_pids()].concat();
    let mappings = |pid| proc::mapping_rights(pid, "memfd:chappe-zone").len();
    for pid in family() {
        assert_eq!(mappings(pid), 1);
        assert!(proc::address_space_bytes(pid) < 1 << 30, "{}", proc::address_space_bytes(pid));
    }
    let space = proc::address_space_bytes(server.pid());
    for limit in [2, 0, 3, 1] {
        let old = server.worker_pids();
        let text = configuration(&toml(limit));
        fs::write(server.dir.join("chappe.toml"), text).expect("the configuration");
        let reload = server.run(&["reload"]);
        assert_eq!(reload.code, Some(0), "{reload:?}");
        // They may take connects, by the old limit, until they get the order to drain.
        wait_until("the old workers are gone", || !old.iter().any(|pid| proc::is_running(*pid)));
        let clients: Vec<_> = (0..5).map(|_| visit(&server)).collect();
        let served = clients.iter().flatten().count();
        assert_eq!(served, if limit == 0 { 5 } else { limit as usize }, "limit {limit}");
        drop(clients);
        server.wait_status("/semaphores/connection_permits", |permits| permits == 100_000);
        assert!(family().into_iter().all(|pid| mappings(pid) == 2), "limit {limit}");
    }
    let grown = proc::address_space_bytes(server.pid()) - space;
    assert!((8 * TABLE..64 * TABLE).contains(&grown), "two workers, four generations: {grown}");
}

/// A client that is served; `None` if it is told that it is one too many.
fn visit(server: &TestServer) -> Option<Connection> {
    let mut client = connect_from(loopback(1), server.address);
    let reply = client.call(CODE_PING, b"").ok()?;
    (reply.code == CODE_PING).then_some(client)
}

#[test]
fn peers_of_a_unix_socket_have_no_address() {
    let toml = "[limits]\nconnections_per_ip = 1\n\
                [[listen]]\naddress = \"127.0.0.1:0\"\n[[listen]]\naddress = \"unix:a.sock\"\n\
                [[listen]]\naddress = \"[::1]:0\"\n";
    let server = TestServer::start("per_ip_unix", toml);
    let path = server.dir.join("a.sock");
    let connect = || Connection::connect_unix(&path, DEADLINE).expect("connected");
    let mut clients: Vec<_> = (0..5).map(|_| connect()).collect();
    for client in &mut clients {
        assert_eq!(client.call(CODE_ECHO, b"in").expect("served").body, "in");
    }
    let six: Option<SocketAddr> =
        server.stdout().split_whitespace().last().and_then(|text| text.parse().ok());
    let six = six.expect("the third address");
    let mut first = Connection::connect(six, DEADLINE).expect("connected");
    assert_eq!(first.call(CODE_ECHO, b"in").expect("served").body, "in");
    refused(Connection::connect(six, DEADLINE).expect("connected"));
    let _other_address = served(&server, 1);
}
