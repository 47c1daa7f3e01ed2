//! The answer to `chappe status`: one object, keys for good.

use std::time::Instant;

use chappe_shm::{
    CodeReport, Counter, CounterValues, HANDLER_BOUNDS_US, HandlerTimes, PermitBooks, SlotReport,
};
use chappe_sys::{clock, limits};

use super::Master;
use super::generations::History;
use crate::control::{
    self, CodeStatus, Counters, HandlerTime, Limits, MasterStatus, PermitShare, Permits,
    Semaphores, Status, WorkerStatus,
};
use crate::program;

/// Not shown for a worker, which never has any.
const COUNTED_BY_MASTER: &[Counter] =
    &[Counter::WorkersDied, Counter::WorkersStuck, Counter::DrainsCut];

/// How often the permits are looked at for one status: a worker moves one in less than a
/// microsecond, unless it is interrupted right then.
const PERMIT_LOOKS_MAX: usize = 16;

impl Master<'_> {
    pub(super) fn status(&self) -> Status {
        let zone = self.supervisor.zone();
        let current = self.generations.current();
        let now = Instant::now();
        let reports = self.supervisor.reports();
        let figures = zone.own_figures();
        let names = zone.catalog().counters();
        let app_counters = |values: &[u64]| {
            names.iter().zip(values).map(|(name, &n)| (format!("app_{name}"), n)).collect()
        };
        Status {
            master: MasterStatus {
                pid: std::process::id(),
                version: program::get().version.clone(),
                uptime_ms: millis(self.started.elapsed().as_millis()),
                generation: current.number,
                listen: self.generations.addresses().iter().map(ToString::to_string).collect(),
                unreachable: self.generations.unreachable().map(ToString::to_string).collect(),
                stopping: self.stop.is_stopping(),
                log_level: self.logs.level().name().to_owned(),
                warnings: current.warnings.clone(),
            },
            reload: reloads(self.generations.history()),
            metrics: self.metrics.status(),
            workers: (reports.iter())
                .map(|report| worker(report, app_counters(&report.app_counters)))
                .collect(),
            vacancies: self.deadlines.vacancies().map(|it| vacancy(it, now)).collect(),
            limits: self.limits(),
            semaphores: Semaphores {
                worker_ready: zone.worker_ready().checked_value(),
                connection_permits: Some(zone.free_permits()),
            },
            permits: self.permits(&reports),
            totals: Some(counters(&zone.own_totals(), &[], app_counters(figures.counters()))),
            codes: zone.code_reports(&figures).iter().map(code).collect(),
        }
    }

    /// Where the connection permits are at one moment, `None` if workers were moving some
    /// each time that it was looked.
    fn permits(&self, reports: &[SlotReport]) -> Option<Permits> {
        let (books, shares) =
            (0..PERMIT_LOOKS_MAX).find_map(|_| self.supervisor.zone().own_permit_books())?;
        let PermitBooks { limit, debt, free, credit, held } = books;
        let share = |report: &SlotReport| {
            let (_, held) = shares.iter().find(|(slot, _)| *slot == report.slot)?;
            Some(PermitShare { worker: report.worker, pid: report.pid, held: *held })
        };
        let workers = reports.iter().filter_map(share).collect();
        Some(Permits { limit, debt, free, credit, held, workers })
    }

    /// What a worker may have, after all.
    fn limits(&self) -> Limits {
        let config = &self.generations.current().config;
        let worker_descriptors =
            limits::target_descriptors(config.worker_rlimit_nofile).unwrap_or(0);
        let worker_connections = config.effective_worker_connections(worker_descriptors);
        Limits { worker_descriptors, worker_connections }
    }
}

/// A worker that died young, or could not be forked, and is paced.
fn vacancy((worker, due): (u16, Instant), now: Instant) -> control::Vacancy {
    let due = due.saturating_duration_since(now);
    control::Vacancy { worker, due_in_ms: millis(due.as_millis()) }
}

fn reloads(history: &History) -> control::ReloadStatus {
    let last = history.last.as_ref().map(|last| control::LastReload {
        outcome: if last.reason.is_none() {
            control::ReloadOutcome::Ok
        } else {
            control::ReloadOutcome::Failed
        },
        reason: last.reason.clone(),
        at: last.at_ms,
    });
    control::ReloadStatus { count: history.count, last }
}

fn worker(report: &SlotReport, app_counters: Vec<(String, u64)>) -> WorkerStatus {
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
        messages_waiting: report.gauges.waiting,
        handlers_busy: report.handlers_busy,
        oldest_handler_ms: report.oldest_handler_ms,
        handler_times: handler_times(&report.handler_times),
        heartbeat_age_ms: (report.heartbeat_ms > 0)
            .then(|| clock::monotonic_ms().saturating_sub(report.heartbeat_ms)),
        send_semaphore: report.send_permits,
        counters: counters(&report.counters, COUNTED_BY_MASTER, app_counters),
    }
}

fn code(report: &CodeReport) -> CodeStatus {
    let CodeReport { code, values, runs, on_loop, workers } = report;
    CodeStatus {
        code: *code,
        calls: values.calls,
        errors: values.errors,
        timed: values.timed(),
        p50_us: values.percentile_us(50),
        p99_us: values.percentile_us(99),
        runs: runs.map(|runs| runs.name().to_owned()),
        on_loop: *on_loop,
        workers: *workers,
    }
}

fn handler_times(times: &HandlerTimes) -> Vec<HandlerTime> {
    let bounds = HANDLER_BOUNDS_US.iter().copied().map(Some).chain([None]);
    bounds.zip(times).map(|(up_to_us, turns)| HandlerTime { up_to_us, turns: *turns }).collect()
}

fn counters(
    values: &CounterValues,
    without: &[Counter],
    app_counters: Vec<(String, u64)>,
) -> Counters {
    let without: Vec<_> = without.iter().map(|counter| counter.name()).collect();
    let of_server = values.iter().filter(|(name, _)| !without.contains(name));
    of_server.map(|(name, value)| (name.to_owned(), value)).chain(app_counters).collect()
}

fn millis(millis: u128) -> u64 {
    u64::try_from(millis).unwrap_or(u64::MAX)
}
