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

use chappe_shm::Slot;
use chappe_sys::limits;
use chappe_sys::privileges::{self, Identity};
use chappe_sys::process::{self, ExitReason, Forked};
use chappe_sys::signals::Signals;

use super::Supervisor;
use super::worker::Worker;
use crate::channel::{Channel, MasterEnd};
use crate::config::{Config, CpuAffinity, LogLevel};
use crate::listen::Bound;
use crate::logging::{self, Copies, Role};
use crate::master::assignment::Assignment;
use crate::master::deadlines::{Deadlines, What};
use crate::master::hub;

/// What all workers of a generation are born with.
#[derive(Clone, Copy, Debug)]
pub(in crate::master) struct Outfit<'a> {
    /// The number of the generation.
    pub(in crate::master) generation: u64,
    /// Its configuration.
    pub(in crate::master) config: &'a Arc<Config>,
    /// How many workers it has.
    pub(in crate::master) workers: u16,
    /// Its listeners, of all workers.
    pub(in crate::master) listeners: &'a [Bound],
    /// The log of worker N at place N.
    pub(in crate::master) logs: &'a [Arc<File>],
    /// From which level on they log.
    pub(in crate::master) level: LogLevel,
    /// Where their log lines go besides their files.
    pub(in crate::master) copies: Copies,
    /// Whom they become; `None`: they stay who the master is.
    pub(in crate::master) identity: Option<&'a Identity>,
}

impl Supervisor {
    /// Forks a worker of the generation into a free slot. If it is not ready at `ready_by`
    /// it is late. `Ok(false)`: no slot is free.
    ///
    /// # Errors
    /// No descriptor, no memory or no process is left. Nothing has changed then.
    pub(in crate::master) fn spawn(
        &mut self,
        number: u16,
        outfit: &Outfit<'_>,
        ready_by: Instant,
        signals: &mut Signals,
        run_worker: &dyn Fn(Assignment) -> ExitReason,
        deadlines: &mut Deadlines,
    ) -> io::Result<bool> {
        let generation = outfit.generation;
        let Some(slot) = self.zone.claim_slot(number, generation) else { return Ok(false) };
        self.zone.bound_held(&slot, outfit.config.worker.max_connections);
        let hub = self.hub.as_mut().filter(|_| outfit.config.topics.enabled);
        let topics = hub.map(|hub| hub.begin_life(slot.index())).transpose();
        let birth = topics.and_then(|topics| Birth::new(number, outfit, slot.clone(), topics));
        let forked = birth.and_then(|(birth, channel)| {
            Ok((signals.fork(move |forked| birth.begin(&forked, run_worker))?, channel))
        });
        match forked {
            Ok((pid, channel)) => {
                slot.set_pid(pid.as_raw().unsigned_abs());
                let mut worker = Worker::new(number, generation, pid, slot);
                worker.channel = Some(channel);
                log::info!(target: "worker.started", "worker started worker={number} pid={pid} generation={generation}");
                deadlines.set(What::Ready(pid), ready_by);
                self.workers.push(worker);
                Ok(true)
            }
            Err(error) => {
                if let Some(hub) = &mut self.hub {
                    hub.end_life(slot.index());
                }
                self.zone.free(&slot);
                Err(error)
            }
        }
    }
}

/// What a worker is born with. All descriptors are its own: dropped in the master, after
/// the fork, they leave the master's open.
#[derive(Debug)]
struct Birth {
    assignment: Assignment,
    /// Of which its assignment has yet to get its part.
    topics: Option<hub::Birth>,
    log: File,
    level: LogLevel,
    /// Where its log lines go besides its log.
    copies: Copies,
    /// Whom it becomes; `None`: it stays who the master is.
    identity: Option<Identity>,
}

impl Birth {
    /// With the master's end of its channel.
    fn new(
        number: u16,
        outfit: &Outfit<'_>,
        slot: Slot,
        topics: Option<hub::Birth>,
    ) -> io::Result<(Self, MasterEnd)> {
        let Outfit { generation, workers, level, copies, .. } = *outfit;
        let (master_end, channel) = Channel::pair()?;
        let mut listeners = Vec::with_capacity(outfit.listeners.len());
        for bound in outfit.listeners {
            listeners.extend(bound.listeners_of(number, workers)?);
        }
        let log = outfit.logs.get(usize::from(number)).ok_or(io::ErrorKind::NotFound)?;
        let config = Arc::clone(outfit.config);
        let birth = Self {
            assignment: Assignment {
                number,
                generation,
                slot,
                channel,
                listeners,
                config,
                topics: None,
            },
            topics,
            log: log.try_clone()?,
            level,
            copies,
            identity: outfit.identity.cloned(),
        };
        Ok((birth, master_end))
    }

    /// In the new process. Signals stay blocked until the worker has handlers.
    fn begin(self, forked: &Forked, run_worker: &dyn Fn(Assignment) -> ExitReason) -> ExitReason {
        let number = self.assignment.number;
        let assignment = self.settle_in(forked);
        assignment.map_or_else(
            |error| {
                log::error!(target: "worker.boot_failed", "worker {number} cannot boot: {error}");
                ExitReason::CannotBoot
            },
            run_worker,
        )
    }

    fn settle_in(self, forked: &Forked) -> io::Result<Assignment> {
        let Self { mut assignment, topics, log, level, copies, identity } = self;
        let number = assignment.number;
        let log = Arc::new(log);
        logging::init(Role::Worker(number), Arc::clone(&log), level, copies)
            .map_err(io::Error::other)?;
        // The zone stays mapped; its descriptor is the master's, for an upgrade.
        assignment.slot.zone().close_descriptor();
        assignment.topics = topics.map(hub::Birth::join).transpose()?;
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
            // a program that reads the launcher's stderr to its end would wait as long.
            process::redirect_stderr_to_null()?;
        }
        crate::program::set_title(&format!("worker process {number}"));
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
        // The master has warned of a number that is too high; it is no error here.
        log::warn!(target: "setting.no_effect", "worker_rlimit_nofile cannot be set: {error}");
    }
    if config.worker_cpu_affinity == CpuAffinity::Auto
        && let Err(error) = limits::cpu_of(assignment.number).and_then(limits::bind_to_cpu)
    {
        log::warn!(target: "setting.no_effect", "worker_cpu_affinity has no effect: {error}");
    }
    if let Some(identity) = identity {
        let named = |error| io::Error::other(format!("cannot become the user: {error}"));
        identity.assume(forked).map_err(named)?;
    }
    privileges::give_up_new_privileges(forked)
}
