//! One fork: what the master does before and after it, and what the new process
//! does until it is a worker.
//!
//! The order matters. Signals are blocked over the fork, since the new process has
//! the master's handlers and pipe until it drops them: a signal sent to it would
//! wake the master. It logs to its own file before it closes the inherited ones, so
//! that the inherited logger is dropped while its descriptor is still its own.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use chappe_shm::{Slot, Zone};
use chappe_sys::process::{self, ExitReason, Forked};
use chappe_sys::{limits, privileges, signals};

use super::owed::Owed;
use super::{Assignment, Master, Worker};
use crate::channel::{Channel, WorkerEnd};
use crate::config::{Config, CpuAffinity};
use crate::logging::{self, Copies, Role};

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
        let (channel, worker_end) = Channel::pair()?;
        signals::block()?;
        let assigned = slot.clone();
        let forked = process::fork_worker(|forked| {
            self.adopt(generation);
            self.become_worker(&forked, number, assigned, worker_end).unwrap_or_else(|error| {
                log::error!("worker {number} cannot boot: {error}");
                ExitReason::CannotBoot
            })
        });
        signals::unblock()?;
        let pid = forked?;
        slot.set_pid(pid.as_raw().unsigned_abs());
        Ok(Worker {
            number,
            generation,
            pid,
            slot: slot.clone(),
            channel: Some(channel),
            owed: Owed::new(),
            started: Instant::now(),
            ready_by: None,
            leaves_by: None,
            is_cut: false,
            stall: super::Stall::default(),
        })
    }

    /// In the new process, before it closes anything: from here on its copy of the
    /// master is of its own generation, and the other one's descriptors are gone.
    fn adopt(&mut self, generation: u64) {
        let Some(candidate) = self.candidate.take() else { return };
        if candidate.generation == generation {
            if candidate.config.log.level != self.config.log.level {
                self.log_level = None;
            }
            self.config = candidate.config;
            self.generation = generation;
            self.listeners = candidate.listeners;
            self.worker_logs = candidate.worker_logs;
            self.workers_wanted = candidate.workers;
        }
    }

    /// In the new process. Signals stay blocked until the worker has handlers.
    fn become_worker(
        &mut self,
        forked: &Forked,
        number: u16,
        slot: Slot,
        channel: WorkerEnd,
    ) -> io::Result<ExitReason> {
        drop(self.signals.take());
        let file = Arc::clone(&self.worker_logs[usize::from(number)]);
        // Now, while their descriptors are their own; a copy of ours that stayed would
        // keep the file open for good after it was rotated.
        self.worker_logs.clear();
        self.workers.clear();
        let level = self.log_level.unwrap_or(self.config.log.level);
        logging::init(Role::Worker(number), Arc::clone(&file), level, self.copies)
            .map_err(io::Error::other)?;

        // The zone stays mapped; its descriptor is the master's, for an upgrade.
        self.zone.close_descriptor();
        // What the master has and is not in this list is closed, above all its ends
        // of the other workers' channels: a dead master must close something.
        let streams = (io::stdin(), io::stdout(), io::stderr());
        let mut keep = vec![streams.0.as_fd(), streams.1.as_fd(), streams.2.as_fd()];
        keep.extend([channel.as_fd(), file.as_fd()]);
        let workers = self.workers_wanted;
        let sockets = self.listeners.iter().flat_map(|bound| bound.sockets_of(number, workers));
        keep.extend(sockets.map(AsFd::as_fd));
        process::close_all_except(forked, &keep)?;
        drop(keep);
        drop(file);
        process::redirect_stdin_stdout_to_null()?;
        if self.copies == Copies::None {
            // A daemon's worker would hold the launcher's terminal open for life, and
            // whoever reads the launcher's stderr to its end would wait as long.
            process::redirect_stderr_to_null()?;
        }
        chappe_sys::set_title(&format!("chappe: worker process {number}"));
        self.confine(forked, number)?;

        let assignment = Assignment {
            number,
            generation: self.generation,
            slot,
            channel,
            // Taken in this process's copy of the master; the master keeps its own.
            listeners: std::mem::take(&mut self.listeners)
                .into_iter()
                .flat_map(|bound| bound.into_listeners(number, workers))
                .collect(),
            config: Arc::clone(&self.config),
        };
        Ok((self.run_worker)(assignment))
    }

    /// Limits first, while there are still the rights to set them; then the rights
    /// go. There is no second thread yet that would keep them.
    fn confine(&self, forked: &Forked, number: u16) -> io::Result<()> {
        if let Err(error) = limits::set_descriptors(self.config.worker_rlimit_nofile) {
            // What is too much was told by the master, and is no error here.
            log::warn!("worker_rlimit_nofile cannot be set: {error}");
        }
        if self.config.worker_cpu_affinity == CpuAffinity::Auto
            && let Err(error) = limits::cpu_of(number).and_then(limits::bind_to_cpu)
        {
            log::warn!("worker_cpu_affinity has no effect: {error}");
        }
        if let Some(identity) = &self.identity {
            let named = |error| io::Error::other(format!("cannot become the user: {error}"));
            identity.assume(forked).map_err(named)?;
        }
        privileges::give_up_new_privileges(forked)
    }
}
