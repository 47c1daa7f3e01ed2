//! What `chappe status` is told: one object, keys for good.

use std::time::Instant;

use chappe_shm::{
    Counter, CounterValues, HANDLER_BOUNDS_US, HandlerTimes, PermitBooks, SlotReport,
};
use chappe_sys::{clock, limits};
use serde_json::{Map, Value, json};

use super::Master;
use super::generations::History;

/// Not shown for a worker, which never has any.
const COUNTED_BY_MASTER: &[Counter] =
    &[Counter::WorkersDied, Counter::WorkersStuck, Counter::DrainsCut];

/// How often the permits are looked at for one status: a worker moves one in less than a
/// microsecond, unless it is interrupted right then.
const PERMIT_LOOKS_MAX: usize = 16;

/// The answer to a command that has no more to say.
pub(super) fn accepted() -> Value {
    json!({ "ok": true, "pid": std::process::id() })
}

impl Master<'_> {
    pub(super) fn status(&self) -> Value {
        let addresses: Vec<_> =
            self.generations.addresses().iter().map(ToString::to_string).collect();
        let zone = self.supervisor.zone();
        let current = self.generations.current();
        let now = Instant::now();
        let vacancies: Vec<_> = self.deadlines.vacancies().map(|v| vacancy(v, now)).collect();
        json!({
            "master": {
                "pid": std::process::id(),
                "version": env!("CARGO_PKG_VERSION"),
                "uptime_ms": millis(self.started.elapsed().as_millis()),
                "generation": current.number,
                "listen": addresses,
                "stopping": self.stop.is_stopping(),
                "log_level": self.logs.level().name(),
                "warnings": current.warnings,
            },
            "reload": reloads(self.generations.history()),
            "metrics": self.metrics.to_json(),
            "workers": self.supervisor.reports().iter().map(worker).collect::<Vec<_>>(),
            "vacancies": vacancies,
            "limits": self.limits(),
            "semaphores": {
                "worker_ready": zone.worker_ready().checked_value(),
                "connection_permits": zone.free_permits(),
            },
            "permits": self.permits(),
            "totals": counters(&zone.own_totals(), &[]),
        })
    }

    /// Where the connection permits are at one moment, `None` if workers were moving some
    /// each time that it was looked.
    fn permits(&self) -> Option<Value> {
        let books =
            (0..PERMIT_LOOKS_MAX).find_map(|_| self.supervisor.zone().own_permit_books())?;
        let PermitBooks { limit, debt, free, held } = books;
        Some(json!({ "limit": limit, "debt": debt, "free": free, "held": held }))
    }

    /// What a worker may have, after all.
    fn limits(&self) -> Value {
        let config = &self.generations.current().config;
        let descriptors = limits::target_descriptors(config.worker_rlimit_nofile).unwrap_or(0);
        json!({
            "worker_descriptors": descriptors,
            "worker_connections": config.effective_worker_connections(descriptors),
        })
    }
}

/// A worker that died young, or could not be forked, and is paced.
fn vacancy((number, due): (u16, Instant), now: Instant) -> Value {
    let due = due.saturating_duration_since(now);
    json!({ "worker": number, "due_in_ms": millis(due.as_millis()) })
}

fn reloads(history: &History) -> Value {
    let last = history.last.as_ref().map(|last| {
        let outcome = if last.reason.is_none() { "ok" } else { "failed" };
        json!({ "outcome": outcome, "reason": last.reason, "at": last.at_ms })
    });
    json!({ "count": history.count, "last": last })
}

fn worker(report: &SlotReport) -> Value {
    json!({
        "worker": report.worker,
        "pid": report.pid,
        "generation": report.generation,
        "state": report.state.name(),
        "uptime_ms": clock::monotonic_ms().saturating_sub(report.started_at_ms),
        "connections": report.connections,
        "connections_blocked": report.gauges.blocked,
        "oldest_blocked_ms": report.gauges.oldest_blocked_ms,
        "inbox_bytes": report.gauges.inbox_bytes,
        "outbox_bytes": report.gauges.outbox_bytes,
        "handlers_busy": report.handlers_busy,
        "oldest_handler_ms": report.oldest_handler_ms,
        "handler_times": handler_times(&report.handler_times),
        "heartbeat_age_ms": (report.heartbeat_ms > 0)
            .then(|| clock::monotonic_ms().saturating_sub(report.heartbeat_ms)),
        "counters": counters(&report.counters, COUNTED_BY_MASTER),
    })
}

/// Turns of handler threads that took so long at the most, and longer than the row
/// before; the last row has no bound.
fn handler_times(times: &HandlerTimes) -> Value {
    let bounds = HANDLER_BOUNDS_US.iter().map(Some).chain([None]);
    bounds.zip(times).map(|(bound, turns)| json!({ "up_to_us": bound, "turns": turns })).collect()
}

fn counters(values: &CounterValues, without: &[Counter]) -> Value {
    let without: Vec<_> = without.iter().map(|counter| counter.name()).collect();
    let map: Map<String, Value> = values
        .iter()
        .filter(|(name, _)| !without.contains(name))
        .map(|(name, value)| (name.to_owned(), Value::from(value)))
        .collect();
    Value::Object(map)
}

fn millis(millis: u128) -> u64 {
    u64::try_from(millis).unwrap_or(u64::MAX)
}
