//! A server whose processes die at each step of what they share, one after the other,
//! under traffic. Whatever the step, permits, counts of addresses and totals must come out
//! as if the process had died a moment earlier or later. Each operation alone is in
//! `crates/shm/tests/crash_steps.rs`.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::thread;

use chappe_client::{CODE_PING, Connection, ErrorNumber};
use chappe_testkit::site::{configuration, program};
use chappe_testkit::{TestServer, connect_from, proc, receive_error, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// More steps than any operation has: a test that goes on beyond is broken.
const STEPS_MAX: u64 = 1000;

fn loopback(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))
}

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
        let mut program = Command::new(program("chappe"));
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

/// A client that has asked for something, whatever the outcome was.
fn visit(server: &TestServer, last: u8) -> Connection {
    let mut client = connect_from(loopback(last), server.address);
    // Its worker may die under it.
    let _ = client.call(CODE_PING, b"");
    client
}

#[test]
fn a_worker_under_traffic() {
    // What waits most of the time is done twice at once: the odd steps and the even ones.
    let first_without = |first| (first..STEPS_MAX).step_by(2).find(|nth| !dies_under_traffic(*nth));
    let ends = thread::scope(|scope| {
        [1, 2].map(|first| scope.spawn(move || first_without(first))).map(|steps| steps.join())
    });
    let end = ends.map(|end| end.expect("all is settled").expect("an end")).into_iter().min();
    println!("  killed at each of {} steps", end.expect("two ends") - 1);
}

/// Whether a worker has such a step, at which it has died then.
fn dies_under_traffic(nth: u64) -> bool {
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
    let _whatever_comes_of_it = server.run(&["reload"]);
    drop(clients);
    assert_settled(&server, &plan);
    plan.has_died()
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
        let reload = server.run(&["reload"]);
        assert_eq!(reload.code, Some(0), "step {nth}: {reload:?}");
        server.wait_status("/semaphores/connection_permits", |permits| permits == 4);
    }
    // Until an old worker has heard of it, it lets clients in, and sends them away at once.
    server.wait_serving(2);
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
    // With a client that does not close, the old worker would linger.
    drop(refused);
    clients.clear();
    std::fs::write(server.dir.join("chappe.toml"), configuration(&toml(100))).expect("written");
    assert_eq!(server.run(&["reload"]).code, Some(0));
    server.wait_serving(2);
    let _six: Vec<_> = (0..6).map(|_| served(1)).collect();
    let error = receive_error(&mut connect_from(loopback(1), server.address), ErrorNumber::Busy);
    assert!(error.to_string().contains("connections_per_ip"), "step {nth}: {error}");
}

#[test]
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
            let _whatever_comes_of_it = server.run(&["reload"]);
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
