//! Reload: a new generation besides the old one, which serves until the new one is
//! ready, and goes on serving if it never is.
//!
//! ```text
//! read, check → bind → fork → all ready → commit: listen, limits, serve → old drains
//!      └────────┴───────┴─────────┴── any failure: undo, log why
//! ```
//!
//! Everything that can fail comes before the first thing that can be seen. Each owner keeps
//! what the new generation needs apart from what the one that serves has, until the commit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chappe_shm::{Counter, SlotState};

use super::deadlines::What;
use super::generations::{Candidate, Failure};
use super::owners::Master;
use super::plan::{Due, Event, Verdict};
use super::start;
use super::stop::CUT_GRACE;
use super::supervisor::{Ended, Outfit};
use crate::config::{Changes, Config, Loaded};
use crate::control::{Refused, Reloaded, Reply};
use crate::listen::Bound;
use crate::logging::Role;

/// How many old generations may drain at a time.
const DRAINS_MAX: usize = 3;

/// For how long an address is waited for that a process of ours still has, and is about to
/// let go of.
const ADDRESS_TIME_MAX: Duration = Duration::from_millis(2500);
/// How often it is tried.
const ADDRESS_PAUSE: Duration = Duration::from_millis(10);

impl Master<'_> {
    // Asked for, and begun when nothing else is under way.

    /// Notes that a reload is wanted. `waiter` is the ticket of a client that waits for the
    /// outcome.
    pub(super) fn request_reload(&mut self, by: &str, waiter: Option<u64>) {
        match self.generations.note(Event::Reload) {
            Verdict::Now => log::info!(target: "reload.requested", "reload requested by={by}"),
            Verdict::Later => {
                log::info!(target: "reload.deferred", "reload requested, it will run after the current operation by={by}")
            }
            Verdict::Refused => {
                log::warn!(target: "reload.refused", "reload refused: the server is stopping by={by}")
            }
        }
        if let Some(waiter) = waiter {
            self.generations.add_waiter(waiter);
        }
        if self.stop.is_stopping() {
            self.dismiss_waiters();
        }
    }

    /// Does what is due. A reload that fails at once may make the next one due.
    pub(super) fn act_on_plan(&mut self) {
        while let Some(due) = self.generations.due() {
            match due {
                Due::Resize(by) => self.resize(by),
                Due::Reload => self.begin_reload(),
            }
        }
    }

    fn begin_reload(&mut self) {
        self.manager.reloading();
        self.try_reload(Instant::now());
    }

    /// The reload that waits for an address is tried once more. The file is read again, so
    /// a client that has asked in the meantime gets this outcome, too.
    pub(super) fn try_reload_again(&mut self) {
        if let Some(begun) = self.generations.waits_since() {
            self.try_reload(begun);
        }
    }

    /// An address that was just removed may be taken for a moment: a worker that leaves has not
    /// closed it yet. It is tried again until it has.
    fn try_reload(&mut self, begun: Instant) {
        // Before the bind: if a process closes it in between, the next try finds it free.
        let comes_free = self.supervisor.is_letting_go() || self.metrics.is_letting_go();
        let candidate = self.read_candidate(begun);
        if let Err(failure) = &candidate
            && is_worth_another_try(failure, comes_free, begun.elapsed())
        {
            if self.generations.waits_since().is_none() {
                log::info!(target: "reload.waits", "{failure}; a worker that is leaving still has the address, trying again");
            }
            self.generations.set_waiting(Some(begun));
            return self.deadlines.set(What::Address, Instant::now() + ADDRESS_PAUSE);
        }
        self.generations.set_waiting(None);
        let waiters = self.generations.take_waiters();
        match candidate {
            Ok(mut candidate) => {
                candidate.waiters = waiters;
                self.begin_candidate(candidate);
            }
            Err(failure) => self.report_failure(&failure, &waiters),
        }
    }

    // Read, check, bind.

    fn read_candidate(&mut self, begun: Instant) -> Result<Candidate, Failure> {
        let loaded = (self.site.load)().map_err(Failure::Config)?;
        let mut config = loaded.config.clone();
        let running = &self.generations.current().config;
        let changes = running.changes(&config);
        config.keep_until_restart(running);
        let workers = self.generations.workers_for(&config);
        let told = (changes, loaded.warnings.clone());
        self.prepare(Arc::new(config), workers, told, begun, Some(&loaded))
    }

    /// The generation that serves once more, with another number of workers.
    pub(super) fn resized_candidate(&mut self, workers: u16) -> Result<Candidate, Failure> {
        let current = self.generations.current();
        let told = (Changes::default(), current.warnings.clone());
        self.prepare(Arc::clone(&current.config), workers, told, Instant::now(), None)
    }

    /// Binds and opens what the new generation needs. `loaded` knows the places of keys, if its
    /// file was just read.
    fn prepare(
        &mut self,
        config: Arc<Config>,
        workers: u16,
        changes: (Changes, Vec<String>),
        begun: Instant,
        loaded: Option<&Loaded>,
    ) -> Result<Candidate, Failure> {
        const METRICS: &str = "metrics.address";
        let key_of = |index| match loaded {
            Some(loaded) => loaded.listener_key(index),
            None => format!("listen.{index}.address"),
        };
        let listeners =
            self.generations.bind_next(&config, workers, key_of).map_err(Failure::Listen)?;
        let metrics_key = loaded.map_or_else(|| METRICS.to_owned(), |loaded| loaded.key(METRICS));
        let metrics = self.metrics.bind_next(&config);
        let metrics = metrics.map_err(|error| Failure::Listen(error.of(metrics_key)))?;
        start::provide_peer_tables(self.supervisor.zone(), &config, workers).map_err(|error| {
            Failure::Other(format!("memory for limits.connections_per_ip: {error}"))
        })?;
        self.provide_hub(&config)
            .map_err(|error| Failure::Other(format!("cannot have a hub: {error}")))?;
        let logs = self.logs.prepare(&config, workers).map_err(Failure::other)?;
        // Nothing can fail any more.
        self.logs.begin(logs);
        self.metrics.begin(metrics);
        Ok(self.generations.prepared(config, workers, listeners, changes, begun))
    }

    // Fork.

    pub(super) fn begin_candidate(&mut self, mut candidate: Candidate) {
        let list = |keys: &[String]| if keys.is_empty() { "-".into() } else { keys.join(",") };
        log::info!(
            target: "reload.started", "reloading generation={} workers={} changed={:?}",
            candidate.next.number,
            candidate.next.workers,
            list(&candidate.changes.applied),
        );
        if !candidate.changes.restart.is_empty() {
            log::warn!(target: "reload.restart_needed", "a restart is needed for {}", candidate.changes.restart.join(", "));
        }
        let more = (self.site.warnings)(&candidate.next.config);
        for warning in more {
            if !candidate.next.warnings.contains(&warning) {
                candidate.next.warnings.push(warning);
            }
        }
        for warning in &candidate.next.warnings {
            log::warn!(target: "config.warning", "{warning}");
        }
        self.deadlines.set(What::Candidate, candidate.ready_by);
        self.generations.begin(candidate);
        let serving = self.generations.current().number;
        while self.supervisor.draining_before(serving).len() >= DRAINS_MAX {
            self.end_oldest_drain();
        }
        self.fork_candidate();
    }

    /// Forks as many workers of the new generation as there are slots for.
    pub(super) fn fork_candidate(&mut self) {
        while let Some(number) = self.generations.next_unforked() {
            match self.fork_one(number) {
                Ok(true) => self.generations.forked(),
                Ok(false) => {
                    // Slots come free when somebody who is leaving has left.
                    if !self.supervisor.is_making_room() && !self.end_oldest_drain() {
                        self.fail_reload("no free worker slot");
                    }
                    return;
                }
                Err(error) => self.fail_reload(&format!("cannot fork worker {number}: {error}")),
            }
        }
    }

    /// False when no slot is free.
    fn fork_one(&mut self, number: u16) -> std::io::Result<bool> {
        let Some(candidate) = self.generations.candidate() else { return Ok(true) };
        let next = &candidate.next;
        let outfit = Outfit {
            generation: next.number,
            config: &next.config,
            workers: next.workers,
            listeners: &next.listeners,
            logs: self.logs.next_files(),
            level: self.logs.level_with(&next.config),
            copies: self.copies,
            identity: self.identity.as_ref(),
        };
        let (signals, run_worker) = (&mut self.signals, self.run_worker);
        let (ready_by, queue) = (candidate.ready_by, &mut self.deadlines);
        self.supervisor.spawn(number, &outfit, ready_by, signals, run_worker, queue)
    }

    /// False when no older generation drains any more.
    fn end_oldest_drain(&mut self) -> bool {
        let serving = self.generations.current().number;
        let Some(&oldest) = self.supervisor.draining_before(serving).first() else { return false };
        let count = self.supervisor.cut(oldest, &mut self.deadlines);
        log::warn!(target: "reload.oldest_ended", "ending the oldest drain for a reload generation={oldest} workers={count}");
        self.supervisor.zone().count(Counter::DrainsCut, 1);
        true
    }

    // All ready, or not.

    /// Commits if every worker of the new generation is ready.
    pub(super) fn try_commit(&mut self) {
        let Some(candidate) = self.generations.candidate() else { return };
        let (number, workers) = (candidate.next.number, usize::from(candidate.next.workers));
        if self.supervisor.are_ready(number, workers) {
            self.commit();
        }
    }

    /// The workers of the new generation have had their time.
    pub(super) fn end_of_candidate(&mut self) {
        let Some(candidate) = self.generations.candidate() else { return };
        let late = self.supervisor.first_behind(candidate.next.number, SlotState::Ready);
        let Some(number) = late.or(self.generations.next_unforked()) else {
            return self.try_commit();
        };
        let limit = candidate.next.config.worker_ready_timeout;
        self.fail_reload(&format!(
            "worker {number} was not ready within {limit:?} (worker_ready_timeout)"
        ));
    }

    /// A worker of the new generation has ended.
    pub(super) fn candidate_lost(&mut self, ended: &Ended) {
        let Ended { number, pid, .. } = ended;
        let log = Role::Worker(*number).file_name();
        let directory = self.generations.candidate().map(|it| it.next.config.log.directory.clone());
        let path = directory.unwrap_or_default().join(&log);
        let how = start::how_it_ended(ended, &path);
        self.fail_reload(&format!(
            "worker {number} (pid {pid}) ended before all were ready: {how}; see {log}"
        ));
    }

    // Commit.

    fn commit(&mut self) {
        let Some(candidate) = self.generations.candidate() else { return };
        // The last steps that can fail: from here on connects go to the new sockets.
        let listening = candidate.next.listeners.iter().try_for_each(Bound::listen);
        if let Err(error) = listening.and_then(|()| self.metrics.listen_next()) {
            return self.fail_reload(&error.to_string());
        }
        let (number, config) = (candidate.next.number, Arc::clone(&candidate.next.config));
        let old_timeout = self.generations.current().config.worker_shutdown_timeout + CUT_GRACE;
        self.supervisor.zone().set_limit(config.max_connections);
        self.supervisor.serve_ready(number, &mut self.deadlines);
        // Now that somebody else serves.
        let until = Instant::now() + old_timeout;
        self.supervisor.drain_all_but(number, until, &mut self.deadlines);
        let Some(committed) = self.generations.commit() else { return };
        let ready = committed.begun.elapsed();
        let workers = self.generations.current().workers;
        self.deadlines.clear_all(|w| matches!(w, What::Vacancy(_) | What::Candidate));
        self.supervisor.forget_pauses(workers);
        let hub_log = self.logs.commit(&config, &mut self.deadlines);
        self.configure_hub(&config, hub_log);
        self.metrics.commit(&mut self.deadlines);
        self.check_progress_from_now();
        self.manager.ready(self.generations.addresses(), self.supervisor.numbers());
        let ready_ms = u64::try_from(ready.as_millis()).unwrap_or(u64::MAX);
        log::info!(target: "reload.done", "reloaded generation={number} workers={workers} ready_ms={ready_ms}");
        let outcome = Reply::Reloaded(Reloaded {
            ok: true,
            generation: number,
            workers: workers.into(),
            ready_ms,
            changed: committed.changes.applied,
            restart: committed.changes.restart,
            warnings: self.generations.current().warnings.clone(),
        });
        self.answer_all(&committed.waiters, &outcome);
        self.check_core_state();
    }

    // Undo.

    /// Undoes what was done for the new generation.
    fn fail_reload(&mut self, reason: &str) {
        let Some(candidate) = self.undo() else { return };
        self.report_failure(&Failure::Other(reason.to_owned()), &candidate.waiters);
    }

    /// The server stops: there will be no new generation.
    pub(super) fn abandon_reload(&mut self) {
        let candidate = self.undo();
        if candidate.is_some() || self.generations.waits_since().is_some() {
            log::warn!(target: "reload.abandoned", "reload abandoned: the server is stopping");
            self.generations.note_failure("stopping");
            self.generations.set_waiting(None);
            self.deadlines.clear(What::Address);
        }
        let waiters = candidate.map(|candidate| candidate.waiters).unwrap_or_default();
        waiters.into_iter().for_each(|waiter| self.generations.add_waiter(waiter));
        self.dismiss_waiters();
    }

    fn undo(&mut self) -> Option<Candidate> {
        let candidate = self.generations.drop_candidate()?;
        self.deadlines.clear(What::Candidate);
        self.logs.drop_next();
        self.metrics.drop_next();
        self.supervisor.cut(candidate.next.number, &mut self.deadlines);
        Some(candidate)
    }

    pub(super) fn report_failure(&mut self, failure: &Failure, waiters: &[u64]) {
        let reason = failure.to_string();
        for line in reason.lines() {
            log::error!(target: "reload.failed", "reload failed: {line}");
        }
        log::warn!(target: "reload.failed", "generation {} continues to serve", self.generations.current().number);
        self.manager.ready(self.generations.addresses(), self.supervisor.numbers());
        self.generations.note_failure(&reason);
        let error = format!("reload failed, the old generation stays: {reason}");
        let wrong_configuration = Some(matches!(failure, Failure::Config(_)));
        self.answer_all(waiters, &Reply::Refused(Refused { error, wrong_configuration }));
        self.check_core_state();
    }

    fn dismiss_waiters(&mut self) {
        let waiters = self.generations.take_waiters();
        self.answer_all(&waiters, &Reply::refused("the server is stopping"));
    }

    fn answer_all(&mut self, waiters: &[u64], outcome: &Reply) {
        for waiter in waiters {
            self.desk.answer(*waiter, outcome, &mut self.deadlines);
        }
    }
}

/// Whether an address that can't be had may be had in a moment: somebody has it, a process of
/// ours is about to let go of one, and it was not waited for long enough yet.
fn is_worth_another_try(failure: &Failure, comes_free: bool, waited: Duration) -> bool {
    failure.is_taken() && comes_free && waited < ADDRESS_TIME_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Address;
    use crate::listen::ListenError;
    use std::io::{Error, ErrorKind};

    #[test]
    fn only_an_address_that_one_of_ours_lets_go_of_is_waited_for() {
        let refused = |kind: ErrorKind| {
            let address = Address::Unix("/x".into());
            ListenError::Bind { address, cause: Error::from(kind) }
        };
        let taken = || refused(ErrorKind::AddrInUse);
        let named = taken().of("metrics.address".to_owned());
        for failure in [taken(), named].map(Failure::Listen) {
            assert!(is_worth_another_try(&failure, true, Duration::ZERO), "{failure}");
            assert!(!is_worth_another_try(&failure, false, Duration::ZERO), "{failure}");
            assert!(!is_worth_another_try(&failure, true, ADDRESS_TIME_MAX), "{failure}");
        }
        let forbidden = Failure::Listen(refused(ErrorKind::PermissionDenied));
        assert!(!is_worth_another_try(&forbidden, true, Duration::ZERO));
        let other = Failure::Other("Address already in use".to_owned());
        assert!(!is_worth_another_try(&other, true, Duration::ZERO));
    }
}
