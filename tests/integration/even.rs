//! How connections are spread over the workers of a shared socket.

use std::ops::RangeInclusive;

use chappe_client::{CODE_PING, Client};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{TestServer, wait_for};

const WORKERS: usize = 4;
const CONNECTIONS: u64 = 1000;

fn start(test: &str) -> TestServer {
    TestServer::start(test, &format!("worker_processes = {WORKERS}\n[log]\nlevel = \"info\"\n"))
}

/// Connections of each worker, in the order of their numbers, once there are enough.
fn spread(server: &TestServer, connections: u64) -> Vec<u64> {
    let counts = wait_for(|| {
        let status = server.status_json();
        let workers = status["workers"].as_array().expect("workers");
        let counts = workers.iter().map(|worker| worker["connections"].as_u64().expect("a number"));
        let counts: Vec<u64> = counts.collect();
        (counts.iter().sum::<u64>() == connections).then_some(counts)
    });
    counts.unwrap_or_else(|| panic!("{:#}", server.status_json()))
}

/// The most and the fewest differ by a fifth at most.
fn are_even(how: &str, counts: &[u64]) -> bool {
    println!("{how}: {counts:?}");
    let (most, fewest) = (counts.iter().max(), counts.iter().min());
    let (most, fewest) = (most.expect("workers"), fewest.expect("workers"));
    most * 4 <= fewest * 5
}

/// How connections that are all opened before one is answered are spread; they are closed
/// again.
fn at_once(server: &TestServer, connections: u64) -> Vec<u64> {
    let clients: Vec<_> = (0..connections).map(|_| server.connect()).collect();
    let counts = spread(server, connections);
    drop(clients);
    spread(server, 0);
    counts
}

/// A burst is over in less time than a worker may have to wait for its CPU on a machine
/// with ten times as much to do as it has CPUs; the others do not wait for it forever. So
/// it may come out uneven, but not always.
#[test]
fn connections_opened_at_once_are_spread_evenly() {
    const ATTEMPTS: u32 = 3;
    let server = start("even_at_once");
    let is_even = (0..ATTEMPTS).any(|_| are_even("at once", &at_once(&server, CONNECTIONS)));
    assert!(is_even, "uneven each time");
}

/// Checks the shares in each of `rounds` rounds on a server with two workers.
#[track_caller]
fn check_two(test: &str, rounds: u32, connections: u64, fair: RangeInclusive<u64>) {
    let server = TestServer::start(test, "worker_processes = 2\n[log]\nlevel = \"info\"\n");
    let mut all: Vec<_> = (0..rounds).map(|_| at_once(&server, connections)).collect();
    println!("{connections} at once: {all:?}");
    all.retain(|counts| counts.iter().any(|count| !fair.contains(count)));
    assert!(all.is_empty(), "{} of {rounds} are not within {fair:?}: {all:?}", all.len());
}

/// As few as that are all accepted before the workers have seen each other accept.
#[test]
fn fifty_connections_opened_at_once_are_for_both_workers() {
    check_two("even_fifty_at_once", 20, 50, 17..=33);
}

#[test]
fn a_thousand_connections_opened_at_once_are_for_both_workers() {
    check_two("even_thousand_at_once", 5, 1000, 400..=600);
}

/// Clients that connect one after the other and are answered.
fn one_by_one(server: &TestServer, count: u64) -> Vec<Client> {
    let answered = |_| {
        let mut client = server.connect();
        client.call(CODE_PING, b"").expect("served");
        client
    };
    (0..count).map(answered).collect()
}

#[test]
fn connections_opened_one_by_one_are_spread_evenly() {
    let server = start("even_one_by_one");
    let _clients = one_by_one(&server, CONNECTIONS);
    assert!(are_even("one by one", &spread(&server, CONNECTIONS)));
}

#[test]
fn a_few_connections_are_spread_too() {
    let server = start("even_few");
    let count = 2 * WORKERS as u64;
    let _clients = one_by_one(&server, count);
    let counts = spread(&server, count);
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

#[test]
fn a_worker_that_is_new_catches_up() {
    let server = start("even_new");
    let _first = one_by_one(&server, CONNECTIONS / 2);
    let workers = server.worker_pids();
    kill(Pid::from_raw(workers[0]), Signal::SIGKILL).expect("our worker");
    server.wait_status("/totals/connections_closed", |closed| closed > 0);
    server.wait_serving(WORKERS);
    let left = CONNECTIONS / 2 - server.status_number("/totals/connections_closed");
    let _second = one_by_one(&server, CONNECTIONS - left);
    // While it is alone below the mean, it may get ahead by what comes in a pause.
    let counts = spread(&server, CONNECTIONS);
    println!("after a death: {counts:?}");
    let mean = CONNECTIONS / WORKERS as u64;
    let is_fair = |count: &u64| (mean * 3 / 4..=mean * 5 / 4).contains(count);
    assert!(counts.iter().all(is_fair), "{counts:?}");
}

/// It has the fewest connections, and does not take any: the others do not wait for it.
#[test]
fn a_stopped_worker_stops_nobody() {
    let server = start("even_stopped");
    let workers = server.worker_pids();
    let _first = one_by_one(&server, 40);
    let stopped = Pid::from_raw(workers[0]);
    kill(stopped, Signal::SIGSTOP).expect("our worker");
    let _second = one_by_one(&server, 200);
    kill(stopped, Signal::SIGCONT).expect("our worker");
    spread(&server, 240);
}
