//! What the page draws: the last quarter of an hour, a sample each second, kept by the
//! process, so that a page that is opened late has it; and the state of now, with rates
//! over the last second.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chappe_shm::{Catalog, Counter, CounterValues, HANDLER_BOUNDS_US, SlotReport, Zone};
use chappe_sys::Usage;
use nix::unistd::getppid;

use super::state::{ProcessFigures, ProcessRow, SemaphoreRow, State, WorkerRow};
use super::text::Facts;
use crate::control::{CodeStatus, Counters, Permits, ReloadOutcome, WorkerStatus};

/// How many samples are kept; older ones go.
pub(super) const SAMPLES_MAX: usize = 900;

/// The time between two samples.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// What a sample has, in its order. Counters are totals since the start: the page makes
/// rates of them.
const SERIES: &[&str] = &[
    "at_ms",
    "messages_in",
    "messages_out",
    "bytes_in",
    "bytes_out",
    "opened",
    "closed",
    "refused",
    "errors",
    "lost",
    "connections",
    "blocked",
    "inbox_bytes",
    "outbox_bytes",
    "cpu_ms",
    "memory_bytes",
    "send_posts",
    "permit_posts",
    "ready_posts",
];

/// In the order of [`SERIES`].
pub(super) type Sample = [u64; SERIES.len()];

/// What peers, handlers and the system did wrong.
const ERRORS: [Counter; 5] = [
    Counter::ProtocolErrors,
    Counter::HandlerErrors,
    Counter::HandlerPanics,
    Counter::AcceptErrors,
    Counter::FramesRateLimited,
];

/// Messages that are lost.
const LOST: [Counter; 2] = [Counter::MessagesExpired, Counter::MessagesDropped];

/// A process of the server at the last look.
#[derive(Debug)]
struct Seen {
    /// Of the process, or of `None` where the kernel does not tell.
    usage: Option<Usage>,
    /// Of one CPU, in percent, since the look before.
    cpu: Option<f64>,
}

/// A worker at the last look.
#[derive(Debug)]
struct SeenWorker {
    report: SlotReport,
    /// What it had counted at the look before; `None`: it was not there.
    before: Option<(CounterValues, chappe_shm::HandlerTimes)>,
}

/// The samples, and what the next one is compared with.
#[derive(Debug)]
pub(super) struct History {
    /// When this process began, in milliseconds since 1970: samples are numbered from then.
    epoch_ms: u64,
    samples: VecDeque<Sample>,
    /// The number of the next sample.
    next: u64,
    looked_at: Option<Instant>,
    seconds: f64,
    workers: Vec<SeenWorker>,
    processes: BTreeMap<u32, Seen>,
    /// Of all processes, the dead included, since this one began.
    cpu_ns: u64,
}

/// The samples, and when the next one is due.
#[derive(Debug)]
pub(super) struct Samples {
    pub(super) history: History,
    next_look: Instant,
    /// The two processes that are no workers: the master and this one.
    others: [u32; 2],
}

impl Samples {
    pub(super) fn new() -> Self {
        let others = [getppid().as_raw().unsigned_abs(), std::process::id()];
        Self { history: History::new(), next_look: Instant::now(), others }
    }

    /// Takes a sample if it is time to; says when the next one is.
    pub(super) fn look_if_due(&mut self, zone: &Arc<Zone>) -> Instant {
        let now = Instant::now();
        if self.next_look <= now {
            self.history.look(zone, &self.others, now);
            // What was missed, since the process was stopped, is not made up for.
            self.next_look = (self.next_look + SAMPLE_EVERY).max(Instant::now());
        }
        self.next_look
    }
}

impl History {
    pub(super) fn new() -> Self {
        Self {
            epoch_ms: unix_ms(),
            samples: VecDeque::with_capacity(SAMPLES_MAX),
            next: 0,
            looked_at: None,
            seconds: 0.0,
            workers: Vec::new(),
            processes: BTreeMap::new(),
            cpu_ns: 0,
        }
    }

    /// A look at everything: one sample more. `others` are processes that are no workers.
    pub(super) fn look(&mut self, zone: &Arc<Zone>, others: &[u32], now: Instant) {
        let Some(totals) = zone.totals() else { return };
        self.seconds = self
            .looked_at
            .replace(now)
            .map_or(0.0, |before| now.saturating_duration_since(before).as_secs_f64());
        let reports = zone.reports();
        self.look_at_processes(reports.iter().map(|it| it.pid).chain(others.iter().copied()));
        let mut earlier: BTreeMap<u32, _> = std::mem::take(&mut self.workers)
            .into_iter()
            .map(|seen| (seen.report.pid, (seen.report.counters, seen.report.handler_times)))
            .collect();
        let seen = |report: SlotReport| SeenWorker { before: earlier.remove(&report.pid), report };
        self.workers = reports.into_iter().map(seen).collect();
        let sample = self.sample(&totals);
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        self.next += 1;
    }

    fn look_at_processes(&mut self, pids: impl Iterator<Item = u32>) {
        let mut before = std::mem::take(&mut self.processes);
        for pid in pids {
            let usage = i32::try_from(pid).ok().and_then(|pid| Usage::of(&[pid]));
            let earlier = before.remove(&pid).and_then(|seen| seen.usage);
            let used = usage.zip(earlier).map(|(now, before)| now.since(before).cpu_ns);
            self.cpu_ns += used.unwrap_or(0);
            let cpu = used.and_then(|used| per_second(used, self.seconds)).map(|ns| ns / 1e7);
            self.processes.insert(pid, Seen { usage, cpu });
        }
    }

    fn sample(&self, totals: &CounterValues) -> Sample {
        let of = |counter| totals.get(counter);
        let sum = |counters: &[Counter]| counters.iter().map(|it| of(*it)).sum::<u64>();
        let all = |gauge: fn(&SlotReport) -> u64| {
            self.workers.iter().map(|seen| gauge(&seen.report)).fold(0, u64::saturating_add)
        };
        let usages = self.processes.values().filter_map(|seen| seen.usage);
        [
            unix_ms(),
            of(Counter::FramesReceived),
            of(Counter::FramesSent),
            of(Counter::BytesReceived),
            of(Counter::BytesSent),
            of(Counter::ConnectionsAccepted),
            of(Counter::ConnectionsClosed),
            of(Counter::ConnectionsRefused),
            sum(&ERRORS),
            sum(&LOST),
            all(|report| report.connections.into()),
            all(|report| report.gauges.blocked.into()),
            all(|report| report.gauges.inbox_bytes),
            all(|report| report.gauges.outbox_bytes),
            self.cpu_ns / 1_000_000,
            usages.map(|usage| usage.anonymous_bytes).sum(),
            of(Counter::SemaphorePosts),
            of(Counter::ConnectionPermitPosts),
            of(Counter::WorkerReadyPosts),
        ]
    }

    /// What the page asks for each second: everything of now, and the samples from number
    /// `after` on. `None` as long as nothing was seen.
    pub(super) fn state(&self, zone: &Zone, facts: &Facts, after: u64) -> Option<String> {
        let (totals, figures) = (zone.totals()?, zone.figures()?);
        let oldest = self.next - self.samples.len() as u64;
        let known = usize::try_from(after.saturating_sub(oldest)).unwrap_or(usize::MAX);
        let samples: Vec<_> = self.samples.iter().skip(known).collect();
        let history = zone.history();
        let reports = self.workers.iter().map(|seen| &seen.report);
        let permits = zone.permit_books();
        let send = self.workers.iter().filter_map(|seen| seen.report.send_permits).sum();
        let semaphore = |name, value, posts| SemaphoreRow { name, value, posts: totals.get(posts) };
        let catalog = zone.catalog();
        let state = State {
            version: facts.version,
            started_at_ms: facts.started_at_ms,
            now_ms: unix_ms(),
            generation: history.generation,
            reloads: history.reloads,
            reloads_failed: history.reloads_failed,
            last_reload: history.last.map(|(is_ok, _)| match is_ok {
                true => ReloadOutcome::Ok,
                false => ReloadOutcome::Failed,
            }),
            permits: permits.map(|(books, shares)| Permits::new(books, &shares, reports)),
            semaphores: [
                semaphore(
                    "worker_ready",
                    zone.worker_ready().checked_value(),
                    Counter::WorkerReadyPosts,
                ),
                semaphore(
                    "connection_permits",
                    zone.connection_permits().checked_value(),
                    Counter::ConnectionPermitPosts,
                ),
                semaphore("send", Some(send), Counter::SemaphorePosts),
            ],
            totals: Counters::named(&totals, catalog, figures.counters()),
            codes: zone.code_reports(&figures).iter().map(CodeStatus::new).collect(),
            handler_bounds_us: &HANDLER_BOUNDS_US,
            workers: self.workers.iter().map(|seen| self.worker(seen, catalog)).collect(),
            processes: self.others(),
            every_ms: u64::try_from(SAMPLE_EVERY.as_millis()).unwrap_or(u64::MAX),
            samples_max: SAMPLES_MAX,
            epoch_ms: self.epoch_ms,
            next: self.next,
            series: SERIES,
            samples,
        };
        Some(serde_json::to_string(&state).expect("numbers and words can be written"))
    }

    fn worker(&self, seen: &SeenWorker, catalog: &Catalog) -> WorkerRow {
        let SeenWorker { report, before } = seen;
        let rate = |counter: Counter| {
            let (before, _) = before.as_ref()?;
            per_second(report.counters.get(counter).checked_sub(before.get(counter))?, self.seconds)
        };
        let mut turns = report.handler_times;
        for (turns, earlier) in turns.iter_mut().zip(before.iter().flat_map(|(_, times)| times)) {
            *turns = turns.saturating_sub(*earlier);
        }
        let sum = |counters: &[Counter]| counters.iter().map(|it| report.counters.get(*it)).sum();
        WorkerRow {
            status: WorkerStatus::new(report, catalog),
            process: self.processes.get(&report.pid).map(Seen::figures).unwrap_or_default(),
            messages_in: rate(Counter::FramesReceived),
            messages_out: rate(Counter::FramesSent),
            bytes_in: rate(Counter::BytesReceived),
            bytes_out: rate(Counter::BytesSent),
            posts: rate(Counter::SemaphorePosts),
            turns: turns.into(),
            errors: sum(&ERRORS),
            lost: sum(&LOST),
        }
    }

    /// The processes that are no workers.
    fn others(&self) -> Vec<ProcessRow> {
        let is_worker = |pid: u32| self.workers.iter().any(|seen| seen.report.pid == pid);
        let others = self.processes.iter().filter(|(pid, _)| !is_worker(**pid));
        let own = std::process::id();
        let row = |(&pid, seen): (&u32, &Seen)| {
            let name = if pid == own { "metrics" } else { "master" };
            ProcessRow { name, pid, process: seen.figures() }
        };
        others.map(row).collect()
    }
}

impl Seen {
    fn figures(&self) -> ProcessFigures {
        let memory_bytes = self.usage.map(|usage| usage.anonymous_bytes);
        ProcessFigures { cpu: self.cpu, memory_bytes }
    }
}

#[expect(clippy::cast_precision_loss, reason = "it is shown with three digits")]
fn per_second(counted: u64, seconds: f64) -> Option<f64> {
    (seconds > 0.0).then(|| counted as f64 / seconds)
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_shm::{Slot, ThreadRole};
    use serde_json::{Value, json};
    use std::collections::BTreeSet;

    const FACTS: Facts = Facts { version: "9.9", started_at_ms: 5_000 };

    /// A zone with one worker, which is this process, and a history of looks a second apart.
    struct Scene {
        zone: Arc<Zone>,
        slot: Slot,
        history: History,
        now: Instant,
    }

    impl Scene {
        fn new() -> Self {
            let zone = Zone::create(100).unwrap();
            let slot = zone.claim_slot(0, 1).unwrap();
            slot.set_pid(std::process::id());
            slot.mark_serving();
            Self { zone, slot, history: History::new(), now: Instant::now() }
        }

        fn look(&mut self) {
            self.history.look(&self.zone, &[], self.now);
            self.now += SAMPLE_EVERY;
        }

        fn state(&self, after: u64) -> Value {
            let text = self.history.state(&self.zone, &FACTS, after).unwrap();
            serde_json::from_str(&text).unwrap()
        }
    }

    #[test]
    fn the_oldest_samples_go_and_a_page_gets_those_that_it_does_not_have() {
        let mut it = Scene::new();
        assert_eq!(it.state(0)["samples"], json!([]));
        for _ in 0..SAMPLES_MAX + 7 {
            it.look();
        }
        let count = |after| it.state(after)["samples"].as_array().unwrap().len();
        let next = it.state(0)["next"].as_u64().unwrap();
        assert_eq!(next, SAMPLES_MAX as u64 + 7);
        assert_eq!((count(0), count(7), count(8)), (SAMPLES_MAX, SAMPLES_MAX, SAMPLES_MAX - 1));
        assert_eq!((count(next - 1), count(next), count(next + 9), count(u64::MAX)), (1, 0, 0, 0));
        let sample = it.state(next - 1)["samples"][0].as_array().unwrap().len();
        assert_eq!(it.state(0)["series"].as_array().unwrap().len(), sample);
    }

    #[test]
    fn rates_of_a_worker_are_those_of_the_last_second() {
        let mut it = Scene::new();
        let counters = it.slot.counters(ThreadRole::EventLoop);
        let _line = it.slot.counters(ThreadRole::Handler(0));
        counters.add(Counter::FramesReceived, 40);
        it.slot.handler_finished(0, 5);
        it.look();
        assert_eq!(it.state(0)["workers"][0]["messages_in"], Value::Null, "nothing before");
        counters.add(Counter::FramesReceived, 10);
        it.slot.handler_finished(0, 50);
        it.look();
        let state = it.state(0);
        let worker = &state["workers"][0];
        assert_eq!((&worker["messages_in"], &worker["state"]), (&json!(10.0), &json!("serving")));
        assert_eq!(worker["turns"], json!([0, 1, 0, 0, 0, 0, 0, 0]));
        assert!(worker["cpu"].is_f64() && worker["memory_bytes"].as_u64() > Some(0), "{worker}");
        assert_eq!(state["samples"][1][1], 50, "totals in the history");
    }

    /// What the page's script reads of the state, by name, is there: nothing else says that a
    /// key was renamed on one side only.
    #[test]
    fn every_key_that_the_page_reads_is_there() {
        let mut it = Scene::new();
        it.look();
        let state = it.state(0);
        let page = crate::metrics::PAGE;
        // In the styles `#state` is an element.
        let named = |prefix: &str| {
            let places = page.match_indices(prefix).filter(|(at, _)| !page[..*at].ends_with('#'));
            let is_no_key = |c: char| !c.is_ascii_lowercase() && c != '_';
            let name = |at: usize| page[at + prefix.len()..].split(is_no_key).next().unwrap();
            places.map(|(at, _)| name(at).to_owned()).collect::<BTreeSet<_>>()
        };
        let keys = named("state.");
        assert!(keys.len() > 10, "{keys:?}");
        for key in &keys {
            assert!(state.get(key).is_some(), "state.{key}");
        }
        let worker = &state["workers"][0];
        let mut columns = named("column(\"");
        let sums = page.split("const keys = [").nth(1).unwrap().split(']').next().unwrap();
        columns.extend(sums.split('"').skip(1).step_by(2).map(str::to_owned));
        assert!(columns.len() > 10, "{columns:?}");
        for key in &columns {
            assert!(worker.get(key).is_some(), "of a worker: {key}");
        }
    }

    /// What the dead have used stays in the sum, as in the counters.
    #[test]
    fn cpu_time_never_goes_backwards() {
        let mut it = Scene::new();
        it.look();
        let begun = it.history.cpu_ns;
        while it.history.cpu_ns == begun {
            it.look();
        }
        let before = it.history.cpu_ns;
        it.zone.free(&it.slot);
        it.look();
        assert_eq!(it.history.cpu_ns, before);
        assert!(it.state(0)["workers"].as_array().unwrap().is_empty());
    }
}
