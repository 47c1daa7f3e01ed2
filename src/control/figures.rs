//! The figures of shared memory as a status has them, for all who tell them: the master in
//! its answer, the metrics process on its page. So they have one set of names, and one
//! reading of what a figure means.

use chappe_shm::{
    Catalog, CodeReport, Counter, CounterValues, HANDLER_BOUNDS_US, HandlerTimes, PermitBooks,
    PermitShares, SlotReport,
};
use chappe_sys::clock;

use super::status::{CodeStatus, Counters, HandlerTime, PermitShare, Permits, WorkerStatus};

/// Not shown for a worker, which never has any.
const COUNTED_BY_MASTER: &[Counter] =
    &[Counter::WorkersDied, Counter::WorkersStuck, Counter::DrainsCut];

impl Counters {
    /// Those of the server, and those of its application by the names of the catalog.
    pub(crate) fn named(values: &CounterValues, catalog: &Catalog, of_application: &[u64]) -> Self {
        let of_server = values.iter().map(|(name, value)| (name.to_owned(), value));
        of_server.chain(app_counters(catalog, of_application)).collect()
    }
}

fn app_counters(catalog: &Catalog, values: &[u64]) -> impl Iterator<Item = (String, u64)> {
    catalog.counters().iter().zip(values).map(|(name, &value)| (format!("app_{name}"), value))
}

impl WorkerStatus {
    pub(crate) fn new(report: &SlotReport, catalog: &Catalog) -> Self {
        let without: Vec<_> = COUNTED_BY_MASTER.iter().map(|counter| counter.name()).collect();
        let counters = report.counters.iter().filter(|(name, _)| !without.contains(name));
        let counters = counters.map(|(name, value)| (name.to_owned(), value));
        Self {
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
            counters: counters.chain(app_counters(catalog, &report.app_counters)).collect(),
        }
    }
}

fn handler_times(times: &HandlerTimes) -> Vec<HandlerTime> {
    let bounds = HANDLER_BOUNDS_US.iter().copied().map(Some).chain([None]);
    bounds.zip(times).map(|(up_to_us, turns)| HandlerTime { up_to_us, turns: *turns }).collect()
}

impl CodeStatus {
    pub(crate) fn new(report: &CodeReport) -> Self {
        let CodeReport { code, values, runs, on_loop, workers } = report;
        Self {
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
}

impl Permits {
    /// `shares` are told by slots, and the reports say whose those are.
    pub(crate) fn new<'a>(
        books: PermitBooks,
        shares: &PermitShares,
        reports: impl Iterator<Item = &'a SlotReport>,
    ) -> Self {
        let PermitBooks { limit, debt, free, credit, held } = books;
        let share = |report: &SlotReport| {
            let (_, held) = shares.iter().find(|(slot, _)| *slot == report.slot)?;
            Some(PermitShare { worker: report.worker, pid: report.pid, held: *held })
        };
        let workers = reports.filter_map(share).collect();
        Self { limit, debt, free, credit, held, workers }
    }
}
