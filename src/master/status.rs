//! What `chappe status` is told: one object, keys for good.

use std::time::Instant;

use chappe_shm::{
    Counter, CounterValues, HANDLER_BOUNDS_US, HandlerTimes, PermitBooks, SlotReport,
};
use chappe_sys::{clock, limits};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Master, Vacancy};
use crate::control::{
    self, Accepted, Counters, HandlerTime, Limits, MasterStatus, Permits, Semaphores, Status,
    WorkerStatus, to_value,
};

/// Not shown for a worker, which never has any.
const COUNTED_BY_MASTER: &[Counter] =
    &[Counter::WorkersDied, Counter::WorkersStuck, Counter::DrainsCut];

/// How often the permits are looked at for one status: a worker moves one in less than a
/// microsecond, unless it is interrupted right then.
const PERMIT_LOOKS_MAX: usize = 16;

/// The answer to a command that has no more to say.
pub(super) fn accepted() -> Value {
    to_value(&Accepted { ok: true, pid: std::process::id() })
}

impl Master<'_> {
    pub(super) fn status(&self) -> Value {
        let mut workers: Vec<_> = self.workers.iter().map(|w| w.slot.report()).collect();
        workers.sort_by_key(|report| (report.generation, report.worker));
        to_value(&Status {
            master: MasterStatus {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                uptime_ms: millis(self.started.elapsed().as_millis()),
                generation: self.generation,
                listen: self.addresses.iter().map(ToString::to_string).collect(),
                stopping: self.stop.is_stopping(),
                log_level: self.log_level.unwrap_or(self.config.log.level).name().to_owned(),
                warnings: self.warnings.clone(),
            },
            reload: typed(self.reloads.to_json()),
            metrics: typed(self.metrics.to_json()),
            workers: workers.iter().map(worker).collect(),
            vacancies: self.vacancies.iter().map(vacancy).collect(),
            limits: self.limits(),
            semaphores: Semaphores {
                worker_ready: self.zone.worker_ready().checked_value(),
                connection_permits: self.zone.connection_permits().checked_value(),
            },
            permits: self.permits(),
            // The master writes them itself, so they are never in the middle of a change.
            totals: self.zone.totals().as_ref().map(|totals| counters(totals, &[])),
        })
    }

    /// Where the connection permits are at one moment, `None` if workers were moving some
    /// each time that it was looked.
    fn permits(&self) -> Option<Permits> {
        let books = (0..PERMIT_LOOKS_MAX).find_map(|_| self.zone.permit_books())?;
        let PermitBooks { limit, debt, free, held } = books;
        Some(Permits { limit, debt, free, held })
    }

    /// What a worker may have, after all.
    fn limits(&self) -> Limits {
        let wanted = self.config.worker_rlimit_nofile;
        let worker_descriptors = limits::target_descriptors(wanted).unwrap_or(0);
        let worker_connections = self.config.effective_worker_connections(worker_descriptors);
        Limits { worker_descriptors, worker_connections }
    }
}

/// What another file of the master's has written as an object.
fn typed<T: DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).expect("the object has the keys of its type")
}

/// A worker that died young, or could not be forked, and is paced.
fn vacancy(vacancy: &Vacancy) -> control::Vacancy {
    let due = vacancy.due.saturating_duration_since(Instant::now());
    control::Vacancy { worker: vacancy.number, due_in_ms: millis(due.as_millis()) }
}

fn worker(report: &SlotReport) -> WorkerStatus {
    WorkerStatus {
        worker: report.worker,
        pid: report.pid,
        generation: report.generation,
        state: report.state.name().to_owned(),
        uptime_ms: clock::monotonic_ms().saturating_sub(report.started_at_ms),
        connections: report.connections,
        connections_blocked: report.gauges.blocked,
        oldest_blocked_ms: report.gauges.oldest_blocked_ms,
        inbox_bytes: report.gauges.inbox_bytes,
        outbox_bytes: report.gauges.outbox_bytes,
        handlers_busy: report.handlers_busy,
        oldest_handler_ms: report.oldest_handler_ms,
        handler_times: handler_times(&report.handler_times),
        heartbeat_age_ms: (report.heartbeat_ms > 0)
            .then(|| clock::monotonic_ms().saturating_sub(report.heartbeat_ms)),
        counters: counters(&report.counters, COUNTED_BY_MASTER),
    }
}

fn handler_times(times: &HandlerTimes) -> Vec<HandlerTime> {
    let bounds = HANDLER_BOUNDS_US.iter().copied().map(Some).chain([None]);
    bounds.zip(times).map(|(up_to_us, turns)| HandlerTime { up_to_us, turns: *turns }).collect()
}

fn counters(values: &CounterValues, without: &[Counter]) -> Counters {
    let without: Vec<_> = without.iter().map(|counter| counter.name()).collect();
    values.iter().filter(|(name, _)| !without.contains(name)).collect()
}

fn millis(millis: u128) -> u64 {
    u64::try_from(millis).unwrap_or(u64::MAX)
}
