//! Processes that die at each step of what they share, one after the other: first
//! each operation on shared memory alone, then the real server under traffic. Whatever
//! the step, permits, counts of addresses and totals must come out as if the process
//! had died a moment earlier or later.
//!
//! Needs the feature `crash-steps`, and forks, so it has a runner of its own.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chappe_client::{CODE_PING, Client, ErrorNumber};
use chappe_shm::{Admission, Counter, Peers, Permits, Slot, ThreadCounters, ThreadRole, Zone};
use chappe_sys::crash;
use chappe_sys::process::{self, ExitReason};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use tempfile::TempDir;

#[expect(dead_code, unused_imports, reason = "other tests use more of it")]
#[path = "support/mod.rs"]
mod support;

use support::server::{PROGRAM, configuration};
use support::{TestServer, connect_from, proc, receive_error, wait_for, wait_until};

/// More steps than any operation has: a test that goes on beyond is broken.
const STEPS_MAX: u64 = 1000;

fn main() -> ExitCode {
    let tests: &[(&str, fn())] = &[
        ("each_operation_alone", each_operation_alone),
        ("a_worker_under_traffic", a_worker_under_traffic),
        ("the_master", the_master),
    ];
    let only = std::env::args().nth(1).filter(|name| !name.starts_with('-'));
    let chosen = tests.iter().filter(|(name, _)| only.as_ref().is_none_or(|o| name.contains(o)));
    let mut failed = 0;
    for (name, test) in chosen {
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("{name}: {}", if passed { "ok" } else { "FAILED" });
        failed += u8::from(!passed);
    }
    ExitCode::from(failed)
}

fn loopback(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))
}

// Each operation alone.

/// Of all workers together, before and after the master lowers it.
const LIMIT: u32 = 20;
const LOWERED: u32 = 5;
const PER_IP: u32 = 4;

/// A worker as far as it shares something.
struct Sharer {
    slot: Slot,
    permits: Permits,
    peers: Peers,
    counters: ThreadCounters,
}

impl Sharer {
    fn new(slot: Slot) -> Self {
        let (permits, peers) = (slot.permits(), slot.peers());
        let counters = slot.counters(ThreadRole::EventLoop);
        Self { slot, permits, peers, counters }
    }

    fn accept(&mut self, address: IpAddr) {
        assert_eq!(self.peers.admit(address, PER_IP), Admission::Counted);
        assert!(self.permits.try_take());
        self.counters.add(Counter::ConnectionsAccepted, 1);
    }
}

/// What a worker may be doing when it dies, and the limit that the master sets before.
type Operation = (&'static str, u32, fn(&mut Sharer));

const OPERATIONS: &[Operation] = &[
    ("take a permit", LIMIT, |worker| assert!(worker.permits.try_take())),
    ("take none", LOWERED, |worker| assert!(!worker.permits.try_take())),
    ("give a permit back", LIMIT, |worker| assert!(worker.permits.give_back())),
    ("pay debt", LOWERED, |worker| assert!(!worker.permits.give_back())),
    ("count an address", LIMIT, |worker| {
        assert_eq!(worker.peers.admit(loopback(9), PER_IP), Admission::Counted);
    }),
    ("count and take back", LIMIT, |worker| {
        assert_eq!(worker.peers.admit(loopback(1), PER_IP), Admission::Refused);
    }),
    ("give an address back", LIMIT, |worker| worker.peers.give_back(loopback(1))),
    ("give the last one back", LIMIT, |worker| worker.peers.give_back(loopback(2))),
    ("be ready", LIMIT, |worker| worker.slot.mark_ready()),
    ("serve", LIMIT, |worker| worker.slot.mark_serving()),
    ("drain", LIMIT, |worker| worker.slot.mark_draining()),
];

fn each_operation_alone() {
    for (name, limit, operate) in OPERATIONS {
        let nth = (1..STEPS_MAX).find(|&nth| !dies_at(nth, name, *limit, *operate));
        let steps = nth.expect("an end") - 1;
        println!("  {name}: killed at each of {steps} steps");
        assert!(steps >= 2, "{name}");
    }
}

/// Has a worker die at its `nth` step, and looks at what is left. False if there are
/// not so many.
fn dies_at(nth: u64, name: &str, limit: u32, operate: fn(&mut Sharer)) -> bool {
    let zone = Zone::create(LIMIT).expect("zone");
    zone.provide_peer_tables(2).expect("tables of addresses");
    let slot = |number| zone.claim_slot(number, 1).expect("a slot");
    let mut living = Sharer::new(slot(0));
    (0..2).for_each(|_| living.accept(loopback(1)));
    let dying = slot(1);
    let pid = process::fork_worker(|_| {
        let mut worker = Sharer::new(dying.clone());
        [1, 1, 2].into_iter().for_each(|last| worker.accept(loopback(last)));
        zone.worker_ready().post();
        worker.slot.send_semaphore().wait();
        crash::arm(nth);
        operate(&mut worker);
        ExitReason::Stopped
    })
    .expect("fork");
    let deadline = Instant::now() + Duration::from_secs(20);
    assert!(zone.worker_ready().wait_until(deadline));
    zone.set_limit(limit);
    dying.send_semaphore().post();
    let status = waitpid(pid, None).expect("our worker");
    let died = matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _));
    assert!(died || status == WaitStatus::Exited(pid, 0), "{name} at {nth}: {status:?}");
    assert_all_returned(&zone, &dying, &mut living, limit, &format!("{name} at {nth}"));
    died
}

fn assert_all_returned(zone: &Arc<Zone>, dead: &Slot, living: &mut Sharer, limit: u32, what: &str) {
    let accepted = || zone.totals().expect("quiet").get(Counter::ConnectionsAccepted);
    for _ in 0..2 {
        assert_eq!(accepted(), 5, "{what}");
        zone.free(dead);
    }
    let lost = zone.settle().expect("nobody else is inside");
    assert!((2..=4).contains(&lost), "{what}: {lost}");
    assert_eq!(zone.settle(), Some(0), "{what}: twice");
    let free = || zone.free_permits();
    assert_eq!((free(), zone.debt()), (limit - 2, 0), "{what}");
    for (last, count) in [(1, 2), (2, 0), (9, 0)] {
        assert_eq!(zone.connections_of(loopback(last)), count, "{what}: 127.0.0.{last}");
    }
    // Who lives on has all there is, and no more.
    for nth in 0..=PER_IP - 2 {
        let room = if nth < PER_IP - 2 { Admission::Counted } else { Admission::Refused };
        assert_eq!(living.peers.admit(loopback(1), PER_IP), room, "{what}");
    }
    for nth in 0..=limit - 2 {
        assert_eq!(living.permits.try_take(), nth < limit - 2, "{what}");
    }
    while living.permits.held() > 0 {
        living.permits.give_back();
    }
    assert_eq!(free(), limit, "{what}");
}

// The real server.

/// What the server is to do: a worker, or the master, dies at its Nth step from the
/// moment that the file is there.
struct Plan {
    directory: TempDir,
    role: &'static str,
    nth: u64,
}

impl Plan {
    fn new(role: &'static str, nth: u64) -> Self {
        Self { directory: TempDir::new().expect("a directory"), role, nth }
    }

    fn file(&self) -> std::path::PathBuf {
        self.directory.path().join("armed")
    }

    fn start(&self, toml: &str) -> TestServer {
        let mut program = Command::new(PROGRAM);
        let plan = format!("{}:{}:{}", self.role, self.nth, self.file().display());
        program.env("CHAPPE_CRASH", plan).stdin(Stdio::null());
        let server = TestServer::start_program(program, &format!("crash_{}", self.role), toml);
        File::create(self.file()).expect("armed");
        server
    }

    fn has_died(&self) -> bool {
        !self.file().exists()
    }
}

fn toml(max_connections: u32) -> String {
    // Workers that stay who they are can remove the file.
    format!(
        "user = \"\"\nworker_processes = 2\nworker_drain_spread = \"0\"\nmax_connections = {max_connections}\n\
         [worker]\nmax_connections = 4\n[limits]\nconnections_per_ip = 6\n"
    )
}

/// A client that has asked for something, whatever came of it.
fn visit(server: &TestServer, last: u8) -> Client {
    let mut client = connect_from(loopback(last), server.address);
    // Its worker may die under it.
    let _ = client.call(CODE_PING, b"");
    client
}

fn a_worker_under_traffic() {
    let end = (1..STEPS_MAX).find(|&nth| {
        let plan = Plan::new("worker", nth);
        let server = plan.start(&toml(100));
        let workers = server.worker_pids();
        // Its successor comes up armed.
        kill(Pid::from_raw(workers[0]), Signal::SIGKILL).expect("our worker");
        let mut clients: Vec<_> = (0..7).map(|_| visit(&server, 1)).collect();
        clients.truncate(5);
        clients.push(visit(&server, 2));
        let next = configuration(&toml(4));
        std::fs::write(server.dir.join("chappe.toml"), next).expect("the configuration");
        let _whatever_comes_of_it = server.command(&["reload"]);
        drop(clients);
        assert_settled(&server, &plan);
        !plan.has_died()
    });
    println!("  killed at each of {} steps", end.expect("an end") - 1);
}

/// All is as if nobody had ever been there.
fn assert_settled(server: &TestServer, plan: &Plan) {
    let nth = plan.nth;
    let mut last = serde_json::Value::Null;
    let settled = wait_for(|| {
        last = server.status_json();
        let workers = last["workers"].as_array().expect("workers");
        let totals = &last["totals"];
        let is_settled = workers.len() == 2
            && workers.iter().all(|worker| worker["state"] == "serving")
            && workers.iter().all(|worker| worker["connections"] == 0)
            && totals["connections_closed"] == totals["connections_accepted"]
            && totals["workers_died"] == 1 + u64::from(plan.has_died())
            && [4, 100].contains(&last["semaphores"]["connection_permits"].as_u64().unwrap_or(0));
        is_settled.then_some(())
    });
    assert!(settled.is_some(), "step {nth}: {last:#}");
    // A reload that a death has failed leaves the old limit, which is larger.
    if last["semaphores"]["connection_permits"] == 100 {
        let reload = server.command(&["reload"]);
        assert_eq!(reload.code, Some(0), "step {nth}: {reload:?}");
        server.wait_status("/semaphores/connection_permits", |permits| permits == 4);
    }
    let served = |last| {
        let mut client = connect_from(loopback(last), server.address);
        let reply = client.call(CODE_PING, b"").expect("a reply");
        assert_eq!(reply.code, CODE_PING, "step {nth}: {reply:?}");
        client
    };
    let mut clients: Vec<_> = (0..4).map(|_| served(1)).collect();
    let mut refused = connect_from(loopback(1), server.address);
    let error = receive_error(&mut refused, ErrorNumber::Busy);
    assert!(error.to_string().contains("max_connections"), "step {nth}: {error}");
    clients.clear();
    std::fs::write(server.dir.join("chappe.toml"), configuration(&toml(100))).expect("written");
    assert_eq!(server.command(&["reload"]).code, Some(0));
    let _six: Vec<_> = (0..6).map(|_| served(1)).collect();
    let error = receive_error(&mut connect_from(loopback(1), server.address), ErrorNumber::Busy);
    assert!(error.to_string().contains("connections_per_ip"), "step {nth}: {error}");
}

fn the_master() {
    let end = (1..STEPS_MAX).find(|&nth| {
        let plan = Plan::new("master", nth);
        let mut server = plan.start(&toml(8));
        let workers = server.worker_pids();
        let clients: Vec<_> = (0..6).map(|_| visit(&server, 1)).collect();
        kill(Pid::from_raw(workers[0]), Signal::SIGKILL).expect("our worker");
        wait_until("it is replaced, or its master is gone", || {
            plan.has_died() || server.worker_pids().iter().all(|pid| *pid != workers[0])
        });
        for max_connections in [4, 7] {
            let next = configuration(&toml(max_connections));
            std::fs::write(server.dir.join("chappe.toml"), next).expect("the configuration");
            let _whatever_comes_of_it = server.command(&["reload"]);
        }
        drop(clients);
        let died = plan.has_died();
        if died {
            server.wait_exit();
            wait_until("the workers have drained", || proc::group(server.pid()).is_empty());
        }
        !died
    });
    println!("  killed at each of {} steps", end.expect("an end") - 1);
}
