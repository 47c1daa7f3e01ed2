//! Reload: a new generation beside the old one, which serves until the new one is
//! ready, and goes on serving if it never is.
//!
//! ```text
//! read, check → bind → fork → all ready → commit: listen, limits, serve → old drains
//!      └────────┴───────┴─────────┴── any failure: undo, tell why
//! ```
//!
//! Everything that can fail comes before the first thing that can be seen. What the
//! new generation needs is in the `Candidate`; the master's own fields are those of
//! the generation that serves, until the commit exchanges them.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chappe_shm::{Counter, SlotState, Stage};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::plan::{Due, Event, Verdict};
use super::stop::{CUT_GRACE, FAST_STOP_MAX};
use super::{Master, Worker, spawn};
use crate::config::{Changes, Config, ConfigErrors, match_listeners};
use crate::listen::Bound;
use crate::logging::{self, Role};

/// How many old generations may drain at a time.
const DRAINS_MAX: usize = 3;

/// Why a reload did not come about.
#[derive(Debug)]
pub(super) enum Failure {
    /// The file is wrong.
    Config(ConfigErrors),
    /// Anything else, in a sentence.
    Other(String),
}

/// The generation that is to be.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) generation: u64,
    pub(super) config: Arc<Config>,
    pub(super) workers: u16,
    pub(super) listeners: Vec<Bound>,
    pub(super) worker_logs: Vec<Arc<File>>,
    metrics: Option<Bound>,
    /// The master's own log, if it is to be in another directory.
    pub(super) master_log: Option<Arc<File>>,
    changes: Changes,
    warnings: Vec<String>,
    /// Worker numbers that have no process yet, the next one last.
    unforked: Vec<u16>,
    begun: Instant,
    /// When its workers are late.
    pub(super) ready_by: Instant,
    /// Who waits for the outcome.
    waiters: Vec<u64>,
}

/// What `status` tells of reloads.
#[derive(Debug, Default)]
pub(super) struct History {
    count: u64,
    failed: u64,
    last: Option<Value>,
}

/// The numbers of it: how many, how many failed, and whether and when the last one
/// went well.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) count: u64,
    pub(super) failed: u64,
    pub(super) last: Option<(bool, u64)>,
}

impl History {
    fn add(&mut self, reason: Option<&str>) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.count += 1;
        self.failed += u64::from(reason.is_some());
        self.last = Some(json!({
            "outcome": if reason.is_none() { "ok" } else { "failed" },
            "reason": reason,
            "at": u64::try_from(at.as_millis()).unwrap_or(u64::MAX),
        }));
    }

    pub(super) fn counts(&self) -> Counts {
        let last = self.last.as_ref();
        let last = last.map(|last| (last["outcome"] == "ok", last["at"].as_u64().unwrap_or(0)));
        Counts { count: self.count, failed: self.failed, last }
    }

    pub(super) fn to_json(&self) -> Value {
        json!({ "count": self.count, "last": self.last })
    }
}

impl Master<'_> {
    /// Notes that a reload is wanted. `waiter` is who wants to hear how it went.
    pub(super) fn request_reload(&mut self, by: &str, waiter: Option<u64>) {
        match self.plan.note(Event::Reload) {
            Verdict::Now => log::info!("reload requested by={by}"),
            Verdict::Later => log::info!("reload requested, it comes afterwards by={by}"),
            Verdict::Refused => log::warn!("reload refused: the server is stopping by={by}"),
        }
        self.reload_waiters.extend(waiter);
        if self.stop.is_stopping() {
            self.dismiss_waiters();
        }
    }

    /// Does what is due. A reload that fails at once may make the next one due.
    pub(super) fn act_on_plan(&mut self) {
        while let Some(due) = self.plan.due() {
            match due {
                Due::Resize(by) => self.resize(by),
                Due::Reload => self.begin_reload(),
            }
        }
    }

    fn begin_reload(&mut self) {
        let begun = Instant::now();
        let waiters = std::mem::take(&mut self.reload_waiters);
        self.manager.reloading();
        match self.read_candidate(begun) {
            Ok(candidate) => self.start_candidate(Candidate { waiters, ..candidate }),
            Err(failure) => self.report_failure(&failure, &waiters),
        }
    }

    fn read_candidate(&self, begun: Instant) -> Result<Candidate, Failure> {
        let loaded = (self.site.load)().map_err(Failure::Config)?;
        let mut config = loaded.config;
        let changes = self.config.changes(&config);
        config.keep_until_restart(&self.config);
        let configured = config.effective_worker_processes();
        // TTIN and TTOU hold until the configured number changes.
        let workers =
            if configured == self.workers_configured { self.workers_wanted } else { configured };
        self.prepare(Arc::new(config), workers, (changes, loaded.warnings), begun)
    }

    /// The generation that serves once more, with another number of workers.
    pub(super) fn resized_candidate(&self, workers: u16) -> Result<Candidate, Failure> {
        let told = (Changes::default(), self.warnings.clone());
        self.prepare(Arc::clone(&self.config), workers, told, Instant::now())
    }

    /// Binds and opens what the new generation needs.
    fn prepare(
        &self,
        config: Arc<Config>,
        workers: u16,
        (changes, warnings): (Changes, Vec<String>),
        begun: Instant,
    ) -> Result<Candidate, Failure> {
        let other = |error: &dyn std::fmt::Display| Failure::Other(error.to_string());
        let old: Vec<_> = self.listeners.iter().map(|bound| bound.options.clone()).collect();
        let listeners = config
            .listen
            .iter()
            .zip(match_listeners(&old, &config.listen))
            .map(|(options, place)| match place {
                Some(place) => self.listeners[place].stay(options, workers),
                None => Bound::bind(options, workers),
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| other(&error))?;
        let metrics = self
            .metrics
            .next(&config)
            .map_err(|error| Failure::Other(format!("metrics: {error}")))?;
        spawn::provide_peer_tables(&self.zone, &config, workers).map_err(|error| {
            Failure::Other(format!("memory for limits.connections_per_ip: {error}"))
        })?;
        let directory = &config.log.directory;
        let worker_logs = (0..workers)
            .map(|number| match self.worker_logs.get(usize::from(number)) {
                Some(log) if *directory == self.config.log.directory => Ok(Arc::clone(log)),
                _ => logging::open(directory, Role::Worker(number)),
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| other(&error))?;
        let master_log = (*directory != self.config.log.directory)
            .then(|| logging::open(directory, Role::Master))
            .transpose()
            .map_err(|error| other(&error))?;
        Ok(Candidate {
            generation: self.last_generation + 1,
            ready_by: begun + config.worker_ready_timeout,
            config,
            workers,
            listeners,
            worker_logs,
            metrics,
            master_log,
            changes,
            warnings,
            unforked: (0..workers).rev().collect(),
            begun,
            waiters: Vec::new(),
        })
    }

    pub(super) fn start_candidate(&mut self, mut candidate: Candidate) {
        let list = |keys: &[String]| if keys.is_empty() { "-".into() } else { keys.join(",") };
        log::info!(
            "reloading generation={} workers={} changed={:?}",
            candidate.generation,
            candidate.workers,
            list(&candidate.changes.applied),
        );
        if !candidate.changes.restart.is_empty() {
            log::warn!("a restart is needed for {}", candidate.changes.restart.join(", "));
        }
        let more = (self.site.warnings)(&candidate.config);
        for warning in more {
            if !candidate.warnings.contains(&warning) {
                candidate.warnings.push(warning);
            }
        }
        for warning in &candidate.warnings {
            log::warn!("{warning}");
        }
        // Also when it fails: no two generations have the same number.
        self.last_generation = candidate.generation;
        self.candidate = Some(candidate);
        while self.draining_generations().len() >= DRAINS_MAX {
            self.end_oldest_drain();
        }
        self.fork_candidate();
    }

    /// Forks as many workers of the new generation as there are slots for.
    pub(super) fn fork_candidate(&mut self) {
        while let Some(candidate) = &mut self.candidate {
            let Some(number) = candidate.unforked.pop() else { return };
            let (generation, by) = (candidate.generation, candidate.ready_by);
            match self.zone.claim_slot(number, generation) {
                Some(slot) => {
                    if let Err(error) = self.spawn_into(slot, number, generation, by) {
                        self.fail_reload(&format!("cannot fork worker {number}: {error}"));
                    }
                }
                None => {
                    if let Some(candidate) = &mut self.candidate {
                        candidate.unforked.push(number);
                    }
                    // Slots come free when somebody who is leaving has left.
                    if !self.is_making_room() && !self.end_oldest_drain() {
                        self.fail_reload("no free worker slot");
                    }
                    return;
                }
            }
        }
    }

    /// Whether a worker was told to go at once.
    fn is_making_room(&self) -> bool {
        self.workers.iter().any(|worker| worker.is_cut)
    }

    /// Old generations that drain and were not told to hurry.
    fn draining_generations(&self) -> Vec<u64> {
        let mut generations: Vec<u64> = self
            .workers
            .iter()
            .filter(|w| w.leaves_by.is_some() && !w.is_cut && w.generation < self.generation)
            .map(|worker| worker.generation)
            .collect();
        generations.sort_unstable();
        generations.dedup();
        generations
    }

    /// False when there is none.
    fn end_oldest_drain(&mut self) -> bool {
        let Some(&oldest) = self.draining_generations().first() else { return false };
        let mut count = 0;
        for worker in &mut self.workers {
            if worker.generation == oldest && worker.leaves_by.is_some() {
                worker.cut();
                count += 1;
            }
        }
        log::warn!("ending the oldest drain for a reload generation={oldest} workers={count}");
        self.zone.count(Counter::DrainsCut, 1);
        true
    }

    /// Commits if every worker of the new generation is ready.
    pub(super) fn look_at_candidate(&mut self) {
        let Some(candidate) = &self.candidate else { return };
        let is_ready = |worker: &Worker| {
            worker.generation != candidate.generation || worker.slot.state() == SlotState::Ready
        };
        if candidate.unforked.is_empty() && self.workers.iter().all(is_ready) {
            self.commit();
        }
    }

    pub(super) fn enforce_candidate(&mut self, now: Instant) {
        let Some(candidate) = &self.candidate else { return };
        if candidate.ready_by > now {
            return;
        }
        let is_late = |worker: &&Worker| {
            worker.generation == candidate.generation && worker.slot.state() != SlotState::Ready
        };
        let number = self.workers.iter().find(is_late).map(|worker| worker.number);
        let Some(number) = number.or(candidate.unforked.last().copied()) else {
            return self.look_at_candidate();
        };
        let limit = candidate.config.worker_ready_timeout;
        self.fail_reload(&format!(
            "worker {number} was not ready within {limit:?} (worker_ready_timeout)"
        ));
    }

    fn commit(&mut self) {
        let Some(candidate) = &self.candidate else { return };
        let ready = candidate.begun.elapsed();
        // The last steps that can fail: from here on connects go to the new sockets.
        let listening =
            candidate.listeners.iter().chain(&candidate.metrics).try_for_each(Bound::listen);
        if let Err(error) = listening {
            return self.fail_reload(&error.to_string());
        }
        self.zone.set_limit(candidate.config.max_connections);
        let Some(mut candidate) = self.candidate.take() else { return };
        let now = Instant::now();
        for worker in &mut self.workers {
            if worker.generation == candidate.generation {
                worker.ready_by = None;
                worker.order(Stage::Serve);
            }
        }
        // Now that somebody else serves.
        let old_timeout = self.config.worker_shutdown_timeout + CUT_GRACE;
        for worker in &mut self.workers {
            if worker.generation != candidate.generation && worker.leaves_by.is_none() {
                worker.drain(Stage::DrainForReload, now + old_timeout);
            }
        }
        let waiters = std::mem::take(&mut candidate.waiters);
        let changes = std::mem::take(&mut candidate.changes);
        self.install(candidate);
        self.vacancies.clear();
        self.reloads.add(None);
        self.manager.ready(&self.addresses, self.pauses.len());
        self.plan.note(Event::Over);
        let ready_ms = u64::try_from(ready.as_millis()).unwrap_or(u64::MAX);
        log::info!(
            "reloaded generation={} workers={} ready_ms={ready_ms}",
            self.generation,
            self.workers_wanted
        );
        self.answer(
            &waiters,
            &json!({
                "ok": true,
                "generation": self.generation,
                "workers": self.workers_wanted,
                "ready_ms": ready_ms,
                "changed": changes.applied,
                "restart": changes.restart,
                "warnings": self.warnings,
            }),
        );
    }

    /// Makes the new generation the one that serves.
    pub(super) fn install(&mut self, candidate: Candidate) {
        let configured = candidate.config.effective_worker_processes();
        // Who changes the level in the file wants that one.
        if candidate.config.log.level != self.config.log.level {
            self.log_level = None;
        }
        self.config = candidate.config;
        self.generation = candidate.generation;
        // Sockets that stay have a second descriptor among the new ones.
        self.listeners = candidate.listeners;
        self.addresses = self.listeners.iter().map(|bound| bound.local.clone()).collect();
        self.worker_logs = candidate.worker_logs;
        self.install_metrics(candidate.metrics);
        self.workers_configured = configured;
        self.workers_wanted = candidate.workers;
        self.warnings = candidate.warnings;
        // What went wrong before is no fault of workers that have just come up.
        self.pauses = vec![Duration::ZERO; usize::from(candidate.workers)];
        // The logger stays, with what it has counted: in the same directory its file may
        // have been opened anew while the new generation was made ready.
        if let Some(log) = candidate.master_log {
            logging::swap(log);
        }
        if let Err(error) = logging::set_level(self.log_level.unwrap_or(self.config.log.level)) {
            log::error!("the master's log level stays what it was: {error}");
        }
    }

    /// Undoes what was done for the new generation.
    pub(super) fn fail_reload(&mut self, reason: &str) {
        let Some(candidate) = self.candidate.take() else { return };
        self.terminate(&candidate);
        self.report_failure(&Failure::Other(reason.to_owned()), &candidate.waiters);
    }

    /// The server stops: there will be no new generation.
    pub(super) fn abandon_reload(&mut self) {
        if let Some(candidate) = self.candidate.take() {
            self.terminate(&candidate);
            log::warn!("reload abandoned: the server is stopping");
            self.reloads.add(Some("stopping"));
            self.reload_waiters.extend(candidate.waiters);
        }
        self.dismiss_waiters();
    }

    fn terminate(&mut self, candidate: &Candidate) {
        candidate.listeners.iter().for_each(Bound::give_up);
        for worker in &mut self.workers {
            if worker.generation == candidate.generation {
                worker.cut();
            }
        }
    }

    fn dismiss_waiters(&mut self) {
        let waiters = std::mem::take(&mut self.reload_waiters);
        self.answer(&waiters, &json!({ "error": "the server is stopping" }));
    }

    pub(super) fn report_failure(&mut self, failure: &Failure, waiters: &[u64]) {
        let (reason, is_config) = match failure {
            Failure::Config(errors) => (errors.to_string(), true),
            Failure::Other(reason) => (reason.clone(), false),
        };
        for line in reason.lines() {
            log::error!("reload failed: {line}");
        }
        log::warn!("generation {} goes on serving", self.generation);
        self.manager.ready(&self.addresses, self.pauses.len());
        self.reloads.add(Some(&reason));
        self.plan.note(Event::Over);
        let error = format!("reload failed, the old generation stays: {reason}");
        self.answer(waiters, &json!({ "error": error, "wrong_configuration": is_config }));
    }

    fn answer(&mut self, waiters: &[u64], outcome: &Value) {
        self.outcomes.extend(waiters.iter().map(|&waiter| (waiter, outcome.clone())));
    }

    /// At the end of a turn, when the control socket is in its place.
    pub(super) fn tell_outcomes(&mut self) {
        for (waiter, outcome) in std::mem::take(&mut self.outcomes) {
            if let Some(control) = &mut self.control {
                control.resolve(waiter, &outcome);
            }
        }
    }

    /// Kills whoever was to leave and has not.
    pub(super) fn enforce_leaving(&mut self, now: Instant) {
        for worker in &mut self.workers {
            if worker.leaves_by.is_some_and(|by| by <= now) {
                log::warn!("killing a worker that does not leave worker={}", worker.number);
                worker.leaves_by = Some(now + FAST_STOP_MAX);
                worker.is_cut = true;
                worker.signal(Signal::SIGKILL);
            }
        }
    }
}

impl Worker {
    /// It finishes what it has; if it is still there at `until`, it is killed.
    pub(super) fn drain(&mut self, stage: Stage, until: Instant) {
        self.ready_by = None;
        self.leaves_by = Some(until);
        self.order(stage);
    }

    /// It goes now.
    fn cut(&mut self) {
        self.ready_by = None;
        self.is_cut = true;
        self.leaves_by = Some(Instant::now() + FAST_STOP_MAX);
        // To everybody else it drains from now on.
        self.orders.stage = Stage::Drain;
        self.slot.set_orders(self.orders);
        self.signal(Signal::SIGTERM);
    }
}
