//! One fork: what a worker is born with, and what the new process does until it is a
//! worker.
//!
//! A [`Birth`] holds everything that the new process needs, all of it its own. It is made
//! before the fork and moves into the new process, which touches nothing else of the
//! master's memory. It logs to its own file before it closes the inherited descriptors, so
//! that the inherited logger is dropped while its descriptor is still open.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use chappe_shm::{Orders, Slot, Zone};
use chappe_sys::limits;
use chappe_sys::privileges::{self, Identity};
use chappe_sys::process::{self, ExitReason, Forked};

use super::owed::OwedLog;
use super::stuck::Stall;
use super::{Assignment, Master, Worker};
use crate::channel::{Channel, MasterEnd};
use crate::config::{Config, CpuAffinity, LogLevel};
use crate::logging::{self, Copies, Role};
use crate::throttle::Throttle;

/// The zone of a server that begins with this configuration.
pub(super) fn make_zone(config: &Config) -> io::Result<Arc<Zone>> {
    let zone = Zone::create(config.max_connections)?;
    provide_peer_tables(&zone, config, config.effective_worker_processes())?;
    Ok(zone)
}

/// Maps the tables in which `workers` workers of this configuration count addresses, if they
/// do; to be called before they are forked. Tables stay when that is turned off: the workers
/// that drain still have them.
pub(super) fn provide_peer_tables(zone: &Zone, config: &Config, workers: u16) -> io::Result<()> {
    if config.limits.connections_per_ip == 0 {
        return Ok(());
    }
    zone.provide_peer_tables(workers)
}

impl Master<'_> {
    pub(super) fn spawn(&mut self, number: u16) -> io::Result<()> {
        let slot = self
            .zone
            .claim_slot(number, self.generation)
            .ok_or_else(|| io::Error::other("no free worker slot"))?;
        let ready_by = Instant::now() + self.config.worker_ready_timeout;
        self.spawn_into(slot, number, self.generation, ready_by)
    }

    /// The worker of a generation, ours or the candidate's, into its slot.
    pub(super) fn spawn_into(
        &mut self,
        slot: Slot,
        number: u16,
        generation: u64,
        ready_by: Instant,
    ) -> io::Result<()> {
        match self.fork(number, generation, &slot) {
            Ok(mut worker) => {
                let pid = worker.pid;
                log::info!("worker started worker={number} pid={pid} generation={generation}");
                worker.ready_by = Some(ready_by);
                self.workers.push(worker);
                Ok(())
            }
            Err(error) => {
                self.zone.free(&slot);
                Err(error)
            }
        }
    }

    fn fork(&mut self, number: u16, generation: u64, slot: &Slot) -> io::Result<Worker> {
        let (birth, channel) = self.birth(number, generation, slot.clone())?;
        let run_worker = self.run_worker;
        let pid = self.signals.fork(move |forked| birth.begin(&forked, run_worker))?;
        slot.set_pid(pid.as_raw().unsigned_abs());
        Ok(Worker {
            number,
            generation,
            pid,
            slot: slot.clone(),
            channel: Some(channel),
            orders: Orders::default(),
            ring_at: None,
            log: OwedLog::default(),
            warnings: Throttle::new(2),
            started: Instant::now(),
            ready_by: None,
            leaves_by: None,
            is_cut: false,
            stall: Stall::default(),
        })
    }

    /// What a worker of the generation that serves is born with, or one of the candidate's,
    /// and the master's end of its channel.
    fn birth(&self, number: u16, generation: u64, slot: Slot) -> io::Result<(Birth, MasterEnd)> {
        let next = self.candidate.as_ref().filter(|next| next.generation == generation);
        let (config, listeners, logs, workers) = match next {
            Some(next) => (&next.config, &next.listeners, &next.worker_logs, next.workers),
            None => (&self.config, &self.listeners, &self.worker_logs, self.workers_wanted),
        };
        // Whoever changes the level in the file wants that one.
        let is_overridden = config.log.level == self.config.log.level;
        let level = self.log_level.filter(|_| is_overridden).unwrap_or(config.log.level);
        let (master_end, channel) = Channel::pair()?;
        let mut own = Vec::with_capacity(listeners.len());
        for bound in listeners {
            own.extend(bound.listeners_of(number, workers)?);
        }
        let log = logs.get(usize::from(number)).ok_or(io::ErrorKind::NotFound)?;
        let config = Arc::clone(config);
        let birth = Birth {
            assignment: Assignment { number, generation, slot, channel, listeners: own, config },
            log: log.try_clone()?,
            level,
            copies: self.copies,
            identity: self.identity.clone(),
        };
        Ok((birth, master_end))
    }
}

/// What a worker is born with. All descriptors are its own: dropped in the master, after
/// the fork, they leave the master's open.
#[derive(Debug)]
struct Birth {
    assignment: Assignment,
    log: File,
    level: LogLevel,
    /// Where its log lines go besides its log.
    copies: Copies,
    /// Whom it becomes; `None`: it stays who the master is.
    identity: Option<Identity>,
}

impl Birth {
    /// In the new process. Signals stay blocked until the worker has handlers.
    fn begin(self, forked: &Forked, run_worker: &dyn Fn(Assignment) -> ExitReason) -> ExitReason {
        let number = self.assignment.number;
        let assignment = self.settle_in(forked);
        assignment.map_or_else(
            |error| {
                log::error!("worker {number} cannot boot: {error}");
                ExitReason::CannotBoot
            },
            run_worker,
        )
    }

    fn settle_in(self, forked: &Forked) -> io::Result<Assignment> {
        let Self { assignment, log, level, copies, identity } = self;
        let number = assignment.number;
        let log = Arc::new(log);
        logging::init(Role::Worker(number), Arc::clone(&log), level, copies)
            .map_err(io::Error::other)?;
        // The zone stays mapped; its descriptor is the master's, for an upgrade.
        assignment.slot.zone().close_descriptor();
        // What the master has and is not in this list is closed, above all its ends
        // of the other workers' channels: a dead master must close something.
        let streams = (io::stdin(), io::stdout(), io::stderr());
        let mut keep = vec![streams.0.as_fd(), streams.1.as_fd(), streams.2.as_fd()];
        keep.extend([assignment.channel.as_fd(), log.as_fd()]);
        keep.extend(assignment.listeners.iter().map(AsFd::as_fd));
        process::close_all_except(forked, &keep)?;
        process::redirect_stdin_stdout_to_null()?;
        if copies == Copies::None {
            // A daemon's worker would hold the launcher's terminal open for life, and
            // whoever reads the launcher's stderr to its end would wait as long.
            process::redirect_stderr_to_null()?;
        }
        chappe_sys::set_title(&format!("chappe: worker process {number}"));
        confine(forked, &assignment, identity.as_ref())?;
        Ok(assignment)
    }
}

/// Limits first, while there are still the rights to set them; then the rights
/// go. There is no second thread yet that would keep them.
fn confine(
    forked: &Forked,
    assignment: &Assignment,
    identity: Option<&Identity>,
) -> io::Result<()> {
    let config = &assignment.config;
    if let Err(error) = limits::set_descriptors(config.worker_rlimit_nofile) {
        // What is too much was told by the master, and is no error here.
        log::warn!("worker_rlimit_nofile cannot be set: {error}");
    }
    if config.worker_cpu_affinity == CpuAffinity::Auto
        && let Err(error) = limits::cpu_of(assignment.number).and_then(limits::bind_to_cpu)
    {
        log::warn!("worker_cpu_affinity has no effect: {error}");
    }
    if let Some(identity) = identity {
        let named = |error| io::Error::other(format!("cannot become the user: {error}"));
        identity.assume(forked).map_err(named)?;
    }
    privileges::give_up_new_privileges(forked)
}
