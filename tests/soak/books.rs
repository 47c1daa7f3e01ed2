//! What must hold between two rounds, when nobody is connected: everything is back
//! where it was, and the counters add up.

use std::fs;

use serde_json::Value;

use crate::operator::{Deeds, Weather, status};
use crate::world::{Outcome, Seen};
use chappe_testkit::{TestServer, proc, wait_for};

pub(crate) const PERMITS: u64 = 1000;

/// Counters of what no client here does and nothing here meets.
pub(crate) const NEVER: [&str; 7] = [
    "accept_errors",
    "handler_errors",
    "handler_panics",
    "closed_idle",
    "closed_handshake",
    "closed_frame_timeout",
    "log_lines_lost",
];

/// How much more anonymous memory a worker may hold when nobody is connected than one
/// that has just started: what its allocator keeps of the busiest moment.
const WORKER_GROWTH_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// The bound for the master, over the whole run.
const MASTER_GROWTH_BYTES_MAX: u64 = 2 * 1024 * 1024;

/// What the kernel says of a process.
#[derive(Clone, Copy, Debug)]
struct Held {
    descriptors: usize,
    threads: usize,
    bytes: u64,
}

fn held(pid: i32) -> Held {
    Held {
        descriptors: descriptors(pid),
        threads: proc::threads(pid).len(),
        bytes: memory(pid, "RssAnon:"),
    }
}

/// A line of `/proc/PID/status`, in bytes; 0 if the process is gone.
pub(crate) fn memory(pid: i32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Without listeners and logs: the master keeps a log for each worker number there was,
/// and with `accept = "reuseport"` everybody has as many listeners.
fn descriptors(pid: i32) -> usize {
    let listening = proc::listening_inodes();
    let is_listener = |target: &String| {
        let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        inode.is_some_and(|inode| listening.iter().any(|listener| listener == inode))
    };
    let is_counted = |target: &&String| !is_listener(target) && !target.contains("/logs/");
    proc::open_descriptors(pid).values().filter(is_counted).count()
}

/// The state to come back to, and what was counted up to now.
pub(crate) struct Books {
    master: Held,
    worker: Held,
    totals: Value,
    /// The most that a worker held at the end of a round.
    pub(crate) worker_bytes_max: u64,
    pub(crate) master_bytes: u64,
}

impl Books {
    /// Of a server that nobody has talked to.
    pub(crate) fn open(server: &TestServer) -> Self {
        let worker = held(server.worker_pids()[0]);
        let master = held(server.pid());
        let totals = status(server)["totals"].clone();
        let (worker_bytes_max, master_bytes) = (worker.bytes, master.bytes);
        Self { master, worker, totals, worker_bytes_max, master_bytes }
    }

    /// Checks everything, and returns what is wrong.
    pub(crate) fn settle(
        &mut self,
        server: &TestServer,
        weather: Weather,
        seen: &Seen,
        deeds: &Deeds,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        let is_at_rest = wait_for(|| is_at_rest(&status(server), PERMITS).then_some(()));
        let status = status(server);
        if is_at_rest.is_none() {
            wrong.push(format!("connections or permits do not come back: {status:#}"));
        }
        let totals = status["totals"].clone();
        let round = Round { now: &totals, before: &self.totals };
        round.check(weather, seen, deeds, &mut wrong);
        self.totals = totals;
        self.check_processes(server, &mut wrong);
        check_logs(server, &mut wrong);
        wrong
    }

    /// Descriptors, threads and memory are as at the start.
    pub(crate) fn check_processes(&mut self, server: &TestServer, wrong: &mut Vec<String>) {
        let processes = server.worker_pids().into_iter().map(|pid| (pid, self.worker));
        let processes: Vec<_> = processes.chain([(server.pid(), self.master)]).collect();
        for (pid, before) in processes {
            // A control client's descriptor is closed a moment after its answer.
            let is_back = wait_for(|| {
                let now = held(pid);
                let is_back = now.descriptors == before.descriptors;
                (is_back && now.threads == before.threads).then_some(())
            });
            let now = held(pid);
            if is_back.is_none() {
                let open = proc::open_descriptors(pid);
                wrong.push(format!("process {pid} had {before:?} and has {now:?}: {open:?}"));
            }
            let is_master = pid == server.pid();
            let growth_max =
                if is_master { MASTER_GROWTH_BYTES_MAX } else { WORKER_GROWTH_BYTES_MAX };
            if now.bytes > before.bytes + growth_max {
                wrong.push(format!("process {pid} grew from {before:?} to {now:?}"));
            }
            let place = if is_master { &mut self.master_bytes } else { &mut self.worker_bytes_max };
            *place = now.bytes.max(*place);
        }
    }

    /// A total, since the server started.
    pub(crate) fn total(&self, name: &str) -> u64 {
        self.totals[name].as_u64().unwrap_or(0)
    }
}

/// Nobody is connected, all permits are back, and each place is filled.
pub(crate) fn is_at_rest(status: &Value, permits: u64) -> bool {
    let workers = status["workers"].as_array().expect("workers");
    status["semaphores"]["connection_permits"] == permits
        && workers.iter().all(|worker| worker["connections"] == 0)
        && status["vacancies"].as_array().is_some_and(Vec::is_empty)
}

/// What one round has added to the totals.
struct Round<'a> {
    now: &'a Value,
    before: &'a Value,
}

impl Round<'_> {
    fn get(&self, name: &str) -> u64 {
        let number = |totals: &Value| totals[name].as_u64().expect("a counter");
        number(self.now) - number(self.before)
    }

    fn check(&self, weather: Weather, seen: &Seen, deeds: &Deeds, wrong: &mut Vec<String>) {
        let mut must = |holds: bool, what: String| {
            if !holds {
                wrong.push(what);
            }
        };
        let of = |name: &str| format!("{name} is {}", self.get(name));
        let nor =
            ["connections_refused", "frames_rate_limited", "drains_cut", "connections_kicked"];
        for name in NEVER.into_iter().chain(nor) {
            must(self.get(name) == 0, of(name));
        }
        must(self.get("workers_died") == deeds.kills, of("workers_died"));
        let (slow, cut) = (self.get("closed_slow"), self.get("connections_cut"));
        must(slow <= seen.paused_long, format!("closed_slow is {slow}, {seen:?}"));
        must(cut >= seen.outcomes(Outcome::Cut), format!("connections_cut is {cut}, {seen:?}"));

        let received = self.get("frames_received");
        let sent = self.get("frames_sent");
        let accounted = sent + self.get("messages_expired") + self.get("messages_dropped");
        let answered: u64 = seen.answered.iter().sum();
        let accepted = self.get("connections_accepted");
        let books = format!(
            "received {received}, sent {sent}, expired {}, dropped {}, accepted {accepted}, \
             closed {}, {seen:?}",
            self.get("messages_expired"),
            self.get("messages_dropped"),
            self.get("connections_closed"),
        );
        must(received <= seen.asked, format!("more was received than sent: {books}"));
        // Goodbyes are sent and were not received; each connection has one at most.
        let notices = accounted.checked_sub(received);
        if deeds.kills > 0 {
            // A killed worker takes its last counts and messages with it.
            must(accounted <= received + accepted, format!("too much was sent: {books}"));
            must(accepted <= seen.connects, format!("more accepted than connected: {books}"));
            return;
        }
        must(answered + seen.goodbyes <= sent, format!("more was read than sent: {books}"));
        must(accepted == seen.connects, format!("not each connect was accepted: {books}"));
        must(accepted == self.get("connections_closed"), format!("not all are closed: {books}"));
        let goodbyes_max = if weather == Weather::Calm { 0 } else { accepted };
        must(
            notices.is_some_and(|notices| (seen.goodbyes..=goodbyes_max).contains(&notices)),
            format!("the counters do not add up: {books}"),
        );
    }
}

/// No error and no panic in any log, and nothing on standard error that is not a log.
pub(crate) fn check_logs(server: &TestServer, wrong: &mut Vec<String>) {
    let logs = fs::read_dir(server.dir.join("logs")).into_iter().flatten().flatten();
    let names = logs.map(|entry| format!("logs/{}", entry.file_name().to_string_lossy()));
    for name in names.chain(["stderr.txt".to_owned()]) {
        let text = server.read(&name);
        for line in text.lines().filter(|line| line.contains(" ERROR ") || line.contains("panic")) {
            wrong.push(format!("{name}: {line}"));
        }
    }
}
