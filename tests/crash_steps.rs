//! A server whose processes die at each step of what they share, one after the other,
//! under traffic. Whatever the step, permits, counts of addresses and totals must come out
//! as if the process had died a moment earlier or later. Each operation alone is in
//! `crates/shm/tests/crash_steps.rs`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::thread;

use chappe_client::{
    CODE_MESSAGE, CODE_PING, CODE_PUBLISH, CODE_PUBLISH_UNANSWERED, CODE_SUBSCRIBE,
    CODE_UNSUBSCRIBE, CODE_WHO, ClientError, Connection, ErrorNumber,
};
use chappe_testkit::site::{configuration, program};
use chappe_testkit::{Site, TestServer, connect_from, proc, receive_error, wait_for, wait_until};
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

    fn environment(&self) -> String {
        format!("{}:{}:{}", self.role, self.nth, self.file().display())
    }

    fn start(&self, toml: &str) -> TestServer {
        let mut program = Command::new(program("chappe"));
        program.env("CHAPPE_CRASH", self.environment()).stdin(Stdio::null());
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
    println!("  killed at each of {} steps", first_without(dies_under_traffic) - 1);
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

/// Each hub dies before it is ready.
#[test]
fn a_start_without_a_hub_is_given_up_in_time() {
    let plan = Plan::new("hub", 1);
    let toml = configuration("user = \"\"\nworker_ready_timeout = \"1s\"\n");
    let site = Site::new("chappe", "crash_no_hub", &toml);
    let armed = || File::create(plan.file()).expect("armed");
    armed();
    let mut start = site.command(&["--foreground"]);
    start.env("CHAPPE_CRASH", plan.environment()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut start = start.spawn().expect("chappe");
    let given_up = wait_for(|| {
        if plan.has_died() {
            armed();
        }
        start.try_wait().expect("our child")
    });
    // One that goes on ends all of its processes.
    let pid = Pid::from_raw(i32::try_from(start.id()).expect("a process"));
    let given_up = given_up.ok_or_else(|| kill(pid, Signal::SIGTERM));
    let mut reason = String::new();
    start.stderr.take().expect("piped").read_to_string(&mut reason).expect("text");
    assert_eq!(given_up.map(|status| status.code()), Ok(Some(1)), "{reason}");
    let late = "the hub was not ready within 1s (worker_ready_timeout); see hub.log";
    assert!(reason.contains(late), "{reason}");
    assert!(reason.matches("crash step hub: begun").count() > 1, "{reason}");
    site.assert_nothing_left();
}

/// Two workers, and connections that stay however long the hub is away.
const TOPICS: &str = "user = \"\"\nworker_processes = 2\n[timeouts]\ndeferred = \"60s\"\n";

/// A topic with its length in front, and a payload.
fn topic(payload: &[u8]) -> Vec<u8> {
    [b"\x04room", payload].concat()
}

/// A connection to each of the two workers; `None` if there is one worker for now.
fn one_each(server: &TestServer) -> Option<[Connection; 2]> {
    let mut found = BTreeMap::new();
    wait_for(|| {
        let mut client = server.connect();
        let who = client.call(CODE_WHO, b"").ok()?;
        let worker = who.body.split(|byte| *byte == b'\n').next()?.to_vec();
        found.entry(worker).or_insert(client);
        (found.len() == 2).then_some(())
    })?;
    found.into_values().collect::<Vec<_>>().try_into().ok()
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The offset and the payload of the next message.
fn message(client: &mut Connection) -> Result<(u64, Vec<u8>), ClientError> {
    let frame = client.receive()?;
    assert_eq!((frame.code, &frame.body[8..13]), (CODE_MESSAGE, &b"\x04room"[..]), "{frame:?}");
    Ok((number(&frame.body[..8]), frame.body[13..].to_vec()))
}

/// Publishes and returns the offset. What the connection has got before is left in it.
fn publish(client: &mut Connection, payload: &[u8]) -> Result<u64, ClientError> {
    let reply = client.call(CODE_PUBLISH, &topic(payload))?;
    assert_eq!(reply.code, CODE_PUBLISH, "{reply:?}");
    Ok(number(&reply.body[..8]))
}

/// The first number at which nobody has died any more. What waits most of the time is done
/// twice at once: the odd numbers and the even ones.
fn first_without(dies: impl Fn(u64) -> bool + Sync) -> u64 {
    let first_of = |first| (first..STEPS_MAX).step_by(2).find(|nth| !dies(*nth));
    let ends = thread::scope(|scope| {
        [1, 2].map(|first| scope.spawn(move || first_of(first))).map(|steps| steps.join())
    });
    let ends = ends.map(|end| end.expect("all is as it should be").expect("an end"));
    ends.into_iter().min().expect("two ends")
}

#[test]
fn the_hub_under_traffic() {
    println!("  killed at each of {} steps", first_without(the_hub_dies) - 1);
}

/// Whatever it was at: what was published is there for both subscribers, once and in order.
fn the_hub_dies(nth: u64) -> bool {
    let plan = Plan::new("hub", nth);
    let server = plan.start(TOPICS);
    let mut subscribers = one_each(&server).expect("no worker dies");
    for client in &mut subscribers {
        let reply = client.call(CODE_SUBSCRIBE, &topic(b"")).expect("a reply");
        assert_eq!(reply.code, CODE_SUBSCRIBE, "step {nth}: {reply:?}");
    }
    let mut publisher = server.connect();
    for payload in [b"1", b"3"] {
        let offset = publish(&mut publisher, payload).expect("an answer");
        assert_eq!(offset, number(payload) - u64::from(b'0'), "step {nth}");
        publisher.send(CODE_PUBLISH_UNANSWERED, &topic(&[payload[0] + 1])).expect("sent");
    }
    assert_eq!(publish(&mut publisher, b"5").expect("an answer"), 5, "step {nth}");
    for client in &mut subscribers {
        for offset in 1..=5 {
            let (found, payload) = message(client).expect("a message");
            assert_eq!((found, number(&payload)), (offset, u64::from(b'0') + offset), "step {nth}");
        }
        let reply = client.call(CODE_UNSUBSCRIBE, b"").expect("a reply");
        assert_eq!(reply.code, CODE_UNSUBSCRIBE, "step {nth}: twice? {reply:?}");
    }
    server.wait_status("/hub/topics", |topics| topics == 0);
    plan.has_died()
}

#[test]
fn a_worker_with_topics() {
    println!("  killed at each of {} steps", first_without(a_worker_with_topics_dies) - 1);
}

/// Whichever worker it was, at whatever: nothing comes twice, all that was answered comes to
/// whom its own worker has not left, and nothing of the dead one stays.
fn a_worker_with_topics_dies(nth: u64) -> bool {
    let plan = Plan::new("worker", nth);
    let server = plan.start(TOPICS);
    let connections = wait_for(|| one_each(&server)).expect("two workers");
    let [mut subscriber, mut publisher] = connections;
    let mut is_subscribed = false;
    let (mut seen, mut answered) = (BTreeMap::new(), BTreeMap::new());
    for payload in 0..8_u8 {
        if !is_subscribed {
            is_subscribed = subscriber.call(CODE_SUBSCRIBE, &topic(b"")).is_ok();
        }
        let Ok(offset) = publish(&mut publisher, &[payload]) else {
            // Nobody knows whether it was published.
            publisher = server.connect();
            continue;
        };
        assert_eq!(answered.insert(offset, payload), None, "step {nth}");
        while is_subscribed && !seen.contains_key(&offset) {
            match message(&mut subscriber) {
                Ok((offset, payload)) => assert_eq!(seen.insert(offset, payload), None),
                Err(_) => is_subscribed = false,
            }
        }
        if !is_subscribed {
            subscriber = server.connect();
        }
    }
    for (offset, payload) in &answered {
        let found = seen.get(offset).map(Vec::as_slice);
        assert!([None, Some(&[*payload][..])].contains(&found), "step {nth}: {seen:?}");
    }
    // What was not answered is read from the dead worker's queue when its turn comes.
    assert!(answered.values().is_sorted(), "step {nth}: {answered:?}");
    let mut payloads: Vec<_> = seen.values().collect();
    payloads.sort_unstable();
    payloads.dedup();
    assert_eq!(payloads.len(), seen.len(), "step {nth}: {seen:?}");
    // One death costs one publish and the messages of one connection at the most.
    assert!(answered.len() >= 7 && seen.len() >= 6, "step {nth}: {answered:?} {seen:?}");
    drop((subscriber, publisher));
    server.wait_status("/hub/topics", |topics| topics == 0);
    server.wait_serving(2);
    plan.has_died()
}
