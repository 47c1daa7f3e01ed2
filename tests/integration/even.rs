//! How connections are spread over the workers of a shared socket. Which worker the kernel
//! wakes, and when it gets a CPU, is not the server's business: what is checked is that each
//! worker has a fair part, from half of the mean to twice as much.

use chappe_client::{CODE_PING, Connection};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use chappe_testkit::{TestServer, wait_for};

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

#[track_caller]
fn assert_fair(counts: &[u64]) {
    let mean = counts.iter().sum::<u64>() / counts.len() as u64;
    let is_fair = |count: &u64| (mean / 2..=mean * 2).contains(count);
    assert!(counts.iter().all(is_fair), "{counts:?}");
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

#[test]
fn connections_opened_at_once_are_for_all_workers() {
    let server = start("even_at_once");
    assert_fair(&at_once(&server, CONNECTIONS));
}

fn start_two(test: &str) -> TestServer {
    TestServer::start(test, "worker_processes = 2\n[log]\nlevel = \"info\"\n")
}

/// As few as that are all accepted before the workers have seen each other accept, and one of
/// them may have no CPU at that time: what most rounds come to is checked.
#[test]
fn fifty_connections_opened_at_once_are_for_both_workers() {
    let server = start_two("even_fifty_at_once");
    let mut smaller: Vec<u64> =
        (0..20).filter_map(|_| at_once(&server, 50).into_iter().min()).collect();
    smaller.sort_unstable();
    assert!(smaller[5] > 0 && smaller[10] >= 17, "{smaller:?}");
}

#[test]
fn a_thousand_connections_opened_at_once_are_for_both_workers() {
    let server = start_two("even_thousand_at_once");
    for _ in 0..5 {
        assert_fair(&at_once(&server, 1000));
    }
}

/// Clients that connect one after the other and are answered.
fn one_by_one(server: &TestServer, count: u64) -> Vec<Connection> {
    let answered = |_| {
        let mut client = server.connect();
        client.call(CODE_PING, b"").expect("served");
        client
    };
    (0..count).map(answered).collect()
}

#[test]
fn connections_opened_one_by_one_are_for_all_workers() {
    let server = start("even_one_by_one");
    let _clients = one_by_one(&server, CONNECTIONS);
    assert_fair(&spread(&server, CONNECTIONS));
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
    let left = CONNECTIONS / 2 - server.total("connections_closed");
    let _second = one_by_one(&server, CONNECTIONS - left);
    assert_fair(&spread(&server, CONNECTIONS));
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
