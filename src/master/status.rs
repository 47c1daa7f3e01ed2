//! The answer to `chappe status`: one object, keys for good.

use std::time::Instant;

use chappe_shm::SlotReport;
use chappe_sys::limits;

use super::generations::History;
use super::owners::Master;
use crate::control::{
    self, CodeStatus, Counters, Limits, ListenerStatus, MasterStatus, Permits, Semaphores, Status,
    WorkerStatus,
};
use crate::program;

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
        let catalog = zone.catalog();
        Status {
            master: MasterStatus {
                pid: std::process::id(),
                version: program::get().version.clone(),
                uptime_ms: millis(self.started.elapsed().as_millis()),
                generation: current.number,
                listen: self.generations.addresses().iter().map(ToString::to_string).collect(),
                listeners: self.listeners(),
                unreachable: self.generations.unreachable().map(ToString::to_string).collect(),
                stopping: self.stop.is_stopping(),
                log_level: self.logs.level().name().to_owned(),
                warnings: current.warnings.clone(),
            },
            reload: reloads(self.generations.history()),
            metrics: self.metrics.status(),
            hub: self.supervisor.hub_status(),
            workers: reports.iter().map(|report| WorkerStatus::new(report, catalog)).collect(),
            vacancies: self.deadlines.vacancies().map(|it| vacancy(it, now)).collect(),
            limits: self.limits(),
            semaphores: Semaphores {
                worker_ready: zone.worker_ready().checked_value(),
                connection_permits: Some(zone.free_permits()),
            },
            permits: self.permits(&reports),
            totals: Some(Counters::named(&zone.own_totals(), catalog, figures.counters())),
            codes: zone.code_reports(&figures).iter().map(CodeStatus::new).collect(),
        }
    }

    /// Both are in the order of the configuration.
    fn listeners(&self) -> Vec<ListenerStatus> {
        let options = &self.generations.current().config.listen;
        let both = self.generations.addresses().iter().zip(options);
        both.map(|(address, options)| ListenerStatus {
            address: address.to_string(),
            protocol: options.protocol.name().to_owned(),
        })
        .collect()
    }

    /// Where the connection permits are at one moment, `None` if workers were moving some
    /// each time that it was looked.
    fn permits(&self, reports: &[SlotReport]) -> Option<Permits> {
        let (books, shares) =
            (0..PERMIT_LOOKS_MAX).find_map(|_| self.supervisor.zone().own_permit_books())?;
        Some(Permits::new(books, &shares, reports.iter()))
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

fn millis(millis: u128) -> u64 {
    u64::try_from(millis).unwrap_or(u64::MAX)
}
