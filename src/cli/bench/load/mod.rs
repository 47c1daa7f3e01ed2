//! The load generator: what `chappe bench` runs. One thread, one epoll set, and as
//! little work for each message as can be done, since the client runs beside the
//! server that it measures; its own cost is part of the report.
//!
//! Each reply is checked: order, length, code, checksum, content. A run goes through
//! these steps, and leaves off early only if every measured connection is gone:
//!
//! ```text
//! one ping ─ connect, first frame ─ idle ones answered, slow readers full ─ warm-up ─ window ─ last replies
//!           │                                                │                           │
//!           memory before                     processor time, counters ──── until here ──┘
//! ```
//!
//! It never retries, never reconnects and starts no thread, and no process but perf(1),
//! if it is asked to.

mod body;
mod calls;
mod engine;
mod fault;
mod first;
mod lane;
mod plan;
mod schedule;
mod sides;
mod tally;

use std::collections::BTreeMap;

use std::time::Duration;

use chappe_client::{CODE_PING, Connection};
use chappe_sys::limits;
use hdrhistogram::Histogram;

use body::Bodies;
use calls::CallCounter;
use engine::Engine;
use lane::{Exchange, Lane};
use sides::{Idle, PACED_BUFFER_BYTES, PacedReader, SLOW_BUFFER_BYTES, SlowReader};

pub(crate) use chappe_sys::Usage;
pub(crate) use fault::Faults;
pub(crate) use plan::{Expect, LoadError, Paced, Plan, Target};
pub(crate) use sides::PacedOutcome;

use plan::Wrong;

/// Descriptors for other things than connections.
const DESCRIPTORS_SPARE: u64 = 32;

/// Slow readers are full when none could send anything for this long.
const FULL_AFTER: Duration = Duration::from_millis(300);
/// And if they still can after this long, the server takes all there is.
const FULL_TIME_MAX: Duration = Duration::from_secs(25);

/// Between looking at counters and measuring: looking takes time, and what waited
/// in that time must not be measured.
const SETTLE: Duration = Duration::from_millis(20);

/// What a run tells, and asks, while it goes on.
pub(crate) trait Watch {
    /// How far this step is.
    fn progress(&mut self, step: Step, done: Duration, of: Duration);

    /// The server's counters, if they can be had.
    fn counters(&mut self) -> Option<BTreeMap<String, u64>>;
}

/// A step of a run that takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Connecting,
    Filling,
    WarmUp,
    Measuring,
    Draining,
}

/// The outcome of a run.
#[derive(Debug)]
pub(crate) struct Report {
    /// The address that was measured.
    pub(crate) target: Target,
    /// Whether it lasted as long as it should, with all connections.
    pub(crate) is_complete: bool,
    /// How long the window was.
    pub(crate) seconds: f64,
    /// Right replies to requests of the window.
    pub(crate) replies: u64,
    /// Nanoseconds, of these replies, and of those that never came.
    pub(crate) latencies: Histogram<u64>,
    /// The latest that a request was sent after it was due.
    pub(crate) late_ns_max: u64,
    /// Frames that are no replies, which an application pushes.
    pub(crate) unasked: u64,
    pub(crate) faults: Faults,
    /// Idle connections that the server has closed.
    pub(crate) idle_closed: u64,
    /// Slow readers: how many were full, how many the server has closed since, and what
    /// all of them could send.
    pub(crate) slow_full: u64,
    pub(crate) slow_closed: u64,
    pub(crate) slow_bytes_sent: u64,
    pub(crate) paced: Option<PacedOutcome>,
    /// Between the two looks, and of how many replies.
    pub(crate) answered: u64,
    pub(crate) client: Option<Usage>,
    pub(crate) server: Option<Usage>,
    /// System calls of the server, or why they are not known; `None`: not asked for.
    pub(crate) system_calls: Option<Result<u64, String>>,
    /// The time between the two looks, in seconds.
    pub(crate) looked_seconds: f64,
    pub(crate) counters: Option<BTreeMap<String, u64>>,
    /// The server's memory before there were connections, and the most seen later.
    pub(crate) memory: Option<(u64, u64)>,
}

impl Report {
    /// Whether nothing at all was wrong.
    pub(crate) fn is_clean(&self) -> bool {
        self.is_complete
            && self.faults.is_empty()
            && self.replies > 0
            && self.paced.as_ref().is_none_or(PacedOutcome::is_whole)
    }
}

/// A look at what was used and counted so far.
struct Look {
    client: Option<Usage>,
    server: Option<Usage>,
    counters: Option<BTreeMap<String, u64>>,
    answered: u64,
    at: u64,
}

/// Carries out a plan.
pub(crate) fn run(plan: &Plan, watch: &mut dyn Watch) -> Result<Report, LoadError> {
    raise_descriptors(plan)?;
    let target = probe(plan)?;
    let memory_before = Usage::of(&plan.server_pids).map(|usage| usage.anonymous_bytes);
    let mut run = Run { plan, watch, engine: engine(plan)?, target };
    run.connect()?;
    run.settle()?;
    let memory_loaded = Usage::of(&plan.server_pids).map(|usage| usage.anonymous_bytes);
    let slow_full = run.engine.slow.iter().filter(|reader| !reader.is_gone()).count() as u64;
    run.engine.start(plan.rate)?;
    let after_warmup = run.engine.clock.now() + nanoseconds(plan.warmup);
    run.turn_until(after_warmup, Step::WarmUp, |_| false)?;
    let calls = plan.counts_system_calls.then(|| CallCounter::start(&plan.server_pids));
    let before = run.look();
    let calls = calls.map(|calls| calls.and_then(CallCounter::begin));
    let from = run.engine.clock.now() + nanoseconds(SETTLE.min(plan.duration / 10));
    let ends_at = from + nanoseconds(plan.duration);
    run.engine.tally.window_from = from;
    run.engine.ends_at = ends_at;
    run.turn_until(ends_at, Step::Measuring, |_| false)?;
    let stopped = run.engine.clock.now().min(ends_at);
    let all = run.engine.lanes.len();
    let is_complete = stopped >= ends_at && run.engine.open_lanes() == all;
    let grace = ends_at + nanoseconds(plan.timeout);
    run.turn_until(grace, Step::Draining, |engine| !engine.is_anything_under_way())?;
    run.engine.close_accounts();
    let system_calls = calls.map(|calls| calls.and_then(CallCounter::end));
    let after = run.look();
    let seconds = stopped.saturating_sub(from) as f64 / 1e9;
    let memory = memory_before.zip(memory_loaded).zip(after.server);
    let memory = memory.map(|((before, loaded), last)| (before, loaded.max(last.anonymous_bytes)));
    Ok(run.report(Outcome { is_complete, seconds, slow_full, memory, system_calls }, before, after))
}

/// What the steps of a run came to.
struct Outcome {
    is_complete: bool,
    seconds: f64,
    slow_full: u64,
    memory: Option<(u64, u64)>,
    system_calls: Option<Result<u64, String>>,
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// As many as this process may have; an error if that is too few.
fn raise_descriptors(plan: &Plan) -> Result<(), LoadError> {
    let system = |step| move |source| LoadError::System { step, source };
    limits::set_descriptors(0).map_err(system("raise the limit of descriptors"))?;
    let limit = limits::descriptors().map_err(system("the limit of descriptors"))?;
    let needed = connections(plan);
    if needed + DESCRIPTORS_SPARE > limit {
        return Err(LoadError::Descriptors { needed, limit });
    }
    Ok(())
}

fn connections(plan: &Plan) -> u64 {
    let all = [plan.connections, plan.idle, plan.slow_readers, u32::from(plan.paced.is_some())];
    all.into_iter().map(u64::from).sum()
}

/// Sends one ping before anything else: whatever is wrong with the address is reported
/// one connection and not of a thousand.
fn probe(plan: &Plan) -> Result<Target, LoadError> {
    let (to, mut client) = Target::find(&plan.to, plan.timeout)?;
    let wrong = |to, source| LoadError::Protocol { to, source };
    match Connection::call(&mut client, CODE_PING, b"") {
        Ok(frame) => {
            if let Some(error) = frame.as_error() {
                return Err(LoadError::Refused { to, refusal: error.to_string() });
            }
            if let Some(goodbye) = frame.as_goodbye() {
                return Err(LoadError::Refused { to, refusal: goodbye.to_string() });
            }
            if frame.code != CODE_PING || !frame.body.is_empty() {
                let (code, bytes) = (frame.code, frame.body.len());
                return Err(wrong(to, Wrong::Reply { code, bytes }));
            }
            Ok(to)
        }
        Err(error) => Err(wrong(to, Wrong::Client(error))),
    }
}

fn engine(plan: &Plan) -> Result<Engine, LoadError> {
    let exchange = Exchange {
        bodies: match &plan.body {
            Some(body) => Bodies::given(body)?,
            None => Bodies::new(plan.body_bytes)?,
        },
        code: plan.code,
        reply_code: plan.reply_code,
        expect: plan.expect,
        pipeline: plan.pipeline,
    };
    Engine::new(exchange, SlowReader::request(plan.slow_body_bytes)?)
}

struct Run<'a> {
    plan: &'a Plan,
    watch: &'a mut dyn Watch,
    engine: Engine,
    target: Target,
}

impl Run<'_> {
    /// Slow readers first, then idle ones: they are there before anybody is measured.
    fn connect(&mut self) -> Result<(), LoadError> {
        let plan = self.plan;
        let mut number = 0;
        for _ in 0..plan.slow_readers {
            let stream = self.connect_one(&mut number, Some(SLOW_BUFFER_BYTES))?;
            self.engine.add_slow(SlowReader::new(stream))?;
        }
        for _ in 0..plan.idle {
            let stream = self.connect_one(&mut number, None)?;
            let idle = Idle::new(stream);
            let step = "ping on an idle connection";
            self.engine.add_idle(idle.map_err(|source| LoadError::System { step, source })?)?;
        }
        for lane in 0..plan.connections {
            let stream = self.connect_one(&mut number, None)?;
            self.engine.add_lane(Lane::new(stream, lane))?;
        }
        if let Some(paced) = plan.paced {
            let stream = self.connect_one(&mut number, Some(PACED_BUFFER_BYTES))?;
            let reader = PacedReader::new(stream, plan.connections, paced, self.engine.clock)?;
            self.engine.set_paced(reader)?;
        }
        Ok(())
    }

    fn connect_one(
        &mut self,
        number: &mut u64,
        buffer: Option<usize>,
    ) -> Result<std::net::TcpStream, LoadError> {
        *number += 1;
        let all = connections(self.plan);
        if number.is_multiple_of(64) {
            let of = |count| Duration::from_secs(count);
            self.watch.progress(Step::Connecting, of(*number), of(all));
        }
        let timeout = self.plan.timeout;
        let to = || self.target.clone();
        let mut stream = self
            .target
            .connect(timeout, buffer)
            .map_err(|source| LoadError::ConnectOne { number: *number, all, to: to(), source })?;
        if let Some(first) = &self.plan.first {
            first.exchange(&mut stream, *number, timeout).map_err(|source| LoadError::First {
                number: *number,
                all,
                to: to(),
                source,
            })?;
        }
        Ok(stream)
    }

    /// Until each idle connection had its pong and no slow reader can send any more.
    fn settle(&mut self) -> Result<(), LoadError> {
        let limit = FULL_TIME_MAX.max(self.plan.timeout);
        let deadline = self.engine.clock.now() + nanoseconds(limit);
        let is_settled = |engine: &Engine| {
            (engine.slow.is_empty() || engine.are_slow_full(FULL_AFTER))
                && engine.idle.iter().all(Idle::is_settled)
        };
        self.turn_until(deadline, Step::Filling, is_settled)?;
        if is_settled(&self.engine) {
            return Ok(());
        }
        let full = self.engine.slow.iter().filter(|reader| reader.is_full()).count();
        let answered = self.engine.idle.iter().filter(|idle| idle.is_settled()).count();
        Err(LoadError::Stuck {
            what: format!(
                "after {limit:?} {full} of {} slow readers are full and {answered} of {} idle \
                 connections had their pong",
                self.plan.slow_readers, self.plan.idle
            ),
        })
    }

    /// Goes on until a moment, or until it is over: nobody is left, or `is_over`.
    fn turn_until(
        &mut self,
        end: u64,
        step: Step,
        is_over: impl Fn(&Engine) -> bool,
    ) -> Result<(), LoadError> {
        const TELL_EVERY: u64 = 100_000_000;
        let from = self.engine.clock.now();
        let mut tell_at = from;
        let may_be_alone = step == Step::Filling || self.engine.lanes.is_empty();
        loop {
            let now = self.engine.clock.now();
            if now >= tell_at {
                tell_at = now + TELL_EVERY;
                let of = Duration::from_nanos(end.saturating_sub(from));
                self.watch.progress(step, Duration::from_nanos(now - from), of);
            }
            let is_alone = self.engine.open_lanes() == 0 && !may_be_alone;
            if now >= end || is_alone || is_over(&self.engine) {
                return Ok(());
            }
            self.engine.turn()?;
        }
    }

    fn look(&mut self) -> Look {
        let own = i32::try_from(std::process::id()).ok();
        let counters = self.watch.counters();
        Look {
            client: own.and_then(|own| Usage::of(&[own])),
            server: Usage::of(&self.plan.server_pids),
            counters,
            answered: self.engine.tally.answered,
            at: self.engine.clock.now(),
        }
    }

    fn report(self, outcome: Outcome, before: Look, after: Look) -> Report {
        let Outcome { is_complete, seconds, slow_full, memory, system_calls } = outcome;
        let engine = self.engine;
        let grown = |(before, after): (Usage, Usage)| after.since(before);
        let counters = before.counters.zip(after.counters).map(|(before, after)| {
            let since = |(name, value): (String, u64)| {
                let before = before.get(&name).copied().unwrap_or(0);
                (name, value.saturating_sub(before))
            };
            after.into_iter().map(since).collect()
        });
        Report {
            target: self.target,
            is_complete,
            seconds,
            replies: engine.tally.replies,
            late_ns_max: engine.tally.late_ns_max,
            unasked: engine.tally.unasked,
            idle_closed: engine.idle.iter().filter(|idle| idle.is_gone()).count() as u64,
            slow_full,
            slow_closed: engine.slow.iter().filter(|slow| slow.is_gone()).count() as u64,
            slow_bytes_sent: engine.slow.iter().map(SlowReader::bytes_sent).sum(),
            paced: engine.paced.as_ref().map(|paced| paced.outcome(after.at)),
            answered: after.answered - before.answered,
            client: before.client.zip(after.client).map(grown),
            server: before.server.zip(after.server).map(grown),
            looked_seconds: (after.at - before.at) as f64 / 1e9,
            counters,
            system_calls,
            memory,
            latencies: engine.tally.latencies,
            faults: engine.tally.faults,
        }
    }
}
