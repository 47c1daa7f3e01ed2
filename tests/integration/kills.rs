//! Workers and the master killed under load, at instants that nobody chose.
//! `scripts/kills` runs this many times; tests/crash_steps.rs chooses the instants.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use chappe::control::{Status, WorkerStatus};
use chappe_client::{CODE_PING, ErrorNumber};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use chappe_testkit::{
    TestServer, connect_from, pause, proc, receive_error, try_connect_from, wait_for, wait_until,
};

/// What each address may have, and a little more of what each tries to have.
const PER_IP: usize = 20;
const HELD: usize = 25;
const LIMIT: u32 = 100;

fn toml(workers: usize) -> String {
    format!(
        "worker_processes = {workers}\nmax_connections = {LIMIT}\n[log]\nlevel = \"info\"\n\
         [limits]\nconnections_per_ip = {PER_IP}\n"
    )
}

fn loopback(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))
}

/// Connects, asks now and then, and closes, until told to stop; counts the replies.
fn storm(source: IpAddr, server: SocketAddr, is_over: &AtomicBool, replies: &AtomicU64) {
    let mut clients = VecDeque::new();
    for nth in 0_u64.. {
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        // Whichever worker dies, the next client is served again.
        let Ok(mut client) = try_connect_from(source, server) else { continue };
        let is_reply = |code| code == CODE_PING;
        if nth % 2 == 0 && client.call(CODE_PING, b"").is_ok_and(|reply| is_reply(reply.code)) {
            replies.fetch_add(1, Ordering::Relaxed);
        }
        clients.push_back(client);
        if clients.len() > HELD {
            clients.pop_front();
        }
    }
}

/// Runs `body` while three addresses storm the server. How many replies there were.
fn under_storm(server: &TestServer, body: impl FnOnce()) -> u64 {
    let (is_over, replies) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for last in 11..14 {
            let (address, is_over, replies) = (server.address, &is_over, &replies);
            scope.spawn(move || storm(loopback(last), address, is_over, replies));
        }
        let done = catch_unwind(AssertUnwindSafe(|| {
            wait_until("the storm has begun", || replies.load(Ordering::Relaxed) > 100);
            body();
        }));
        is_over.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| resume_unwind(panic));
    });
    replies.into_inner()
}

/// One look at the totals, none of which may be less than at the last one.
fn look(server: &TestServer, before: &mut BTreeMap<String, u64>) -> Status {
    let status = server.status();
    for (name, value) in status.totals.as_ref().expect("totals").iter() {
        let last = before.insert(name.to_owned(), value).unwrap_or(0);
        assert!(value >= last, "{name} went from {last} to {value}");
    }
    status
}

/// The pid of a worker that is no longer young, so that its death is no reason to wait
/// with the next one, and that was not killed yet.
fn grown_up(status: &Status, killed: &[i32]) -> Option<i32> {
    let pid = |worker: &WorkerStatus| i32::try_from(worker.pid).expect("a pid");
    let living = status.workers.iter().filter(|worker| !killed.contains(&pid(worker)));
    let oldest = living.max_by_key(|worker| worker.uptime_ms)?;
    let is_grown_up = oldest.uptime_ms > 1000 && oldest.state == "serving";
    is_grown_up.then(|| pid(oldest))
}

fn workers_killed_in_a_storm(workers: usize, kills: u64) {
    let server = TestServer::start(&format!("kills_{workers}"), &toml(workers));
    let mut totals = BTreeMap::new();
    let replies = under_storm(&server, || {
        let mut killed = Vec::new();
        for _ in 0..kills {
            let victim = wait_for(|| grown_up(&look(&server, &mut totals), &killed));
            let victim = victim.expect("one has grown up");
            kill(Pid::from_raw(victim), Signal::SIGKILL).expect("our worker");
            killed.push(victim);
        }
    });
    // Everybody has left; what the dead had is back, each of it once.
    let settled = wait_for(|| {
        let status = look(&server, &mut totals);
        let is_settled = status.workers.len() == workers
            && status.serving().filter(|worker| worker.connections == 0).count() == workers
            && totals["connections_accepted"] == totals["connections_closed"]
            && status.semaphores.connection_permits == Some(LIMIT);
        is_settled.then_some(())
    });
    assert!(settled.is_some(), "{:#}", server.status_json());
    assert_eq!(totals["workers_died"], kills);
    assert!(totals["connections_refused_per_ip"] > 0, "{totals:?}");
    assert!(totals["connections_accepted"] >= replies, "{totals:?}, {replies} replies");

    let mut clients = Vec::new();
    for last in 11..14 {
        for _ in 0..PER_IP {
            let mut client = connect_from(loopback(last), server.address);
            assert_eq!(client.call(CODE_PING, b"").expect("a reply").code, CODE_PING);
            clients.push(client);
        }
        let mut one_more = connect_from(loopback(last), server.address);
        receive_error(&mut one_more, ErrorNumber::Busy);
    }
    let status = look(&server, &mut totals);
    let taken = u32::try_from(clients.len()).expect("a few");
    assert_eq!(status.semaphores.connection_permits, Some(LIMIT - taken));
    let open = totals["connections_accepted"] - totals["connections_closed"];
    assert_eq!((open, server.connections()), (clients.len() as u64, clients.len() as u64));
}

#[test]
fn what_killed_workers_had_comes_back_exactly_once_2() {
    workers_killed_in_a_storm(2, 6);
}

#[test]
fn what_killed_workers_had_comes_back_exactly_once_4() {
    workers_killed_in_a_storm(4, 12);
}

#[test]
fn nothing_is_left_of_a_master_killed_in_a_storm() {
    let mut server = TestServer::start("kills_master", &toml(3));
    under_storm(&server, || server.signal(Signal::SIGKILL));
    server.wait_exit();
    wait_until("its workers are gone", || proc::group(server.pid()).is_empty());
}

#[test]
fn a_worker_that_makes_no_progress_is_told_of_and_replaced() {
    let toml = "worker_stuck_timeout = \"1s\"\n";
    let server = TestServer::start("stuck", toml);
    let workers = server.worker_pids();
    let stuck = Pid::from_raw(workers[1]);
    // A thread names itself as its first step, which may come after the worker serves.
    let is_named = || proc::threads(workers[1]).values().any(|name| name == "sender");
    wait_until("the threads have their names", is_named);
    kill(stuck, Signal::SIGSTOP).expect("our worker");
    server.wait_status("/totals/workers_stuck", |stuck| stuck == 1);
    let now = server.wait_workers(2, &workers[1..]);
    assert!(now.contains(&workers[0]), "the other one goes on");
    server.wait_status("/totals/workers_died", |died| died == 1);
    let log = server.read("logs/master.log");
    assert_eq!(server.events("master", "worker.stuck").len(), 1, "{log}");
    for name in ["name=chappe state=T", "name=handler-0 state=T", "name=sender state=T"] {
        assert!(log.contains(name), "{name}: {log}");
    }
    assert_eq!(server.connect().call(CODE_PING, b"").expect("served").code, CODE_PING);
}

#[test]
fn idle_workers_and_those_stopped_with_their_master_are_not_stuck() {
    let toml = "worker_stuck_timeout = \"1s\"\n";
    let server = TestServer::start("stuck_not", toml);
    let workers = server.worker_pids();
    // All of them, the master first; and on again, the master first, as a container
    // that is paused for longer than the time-out.
    let all: Vec<_> = [&[server.pid()], &workers[..]].concat();
    for pid in &all {
        kill(Pid::from_raw(*pid), Signal::SIGSTOP).expect("ours");
    }
    pause(Duration::from_millis(2500), "all are stopped for longer than worker_stuck_timeout");
    for pid in &all {
        kill(Pid::from_raw(*pid), Signal::SIGCONT).expect("ours");
    }
    pause(Duration::from_millis(2500), "the workers are idle for longer than worker_stuck_timeout");
    assert_eq!(server.worker_pids(), workers);
    assert_eq!(server.total("workers_stuck"), 0);
}
