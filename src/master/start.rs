//! The start, from the first fork to the first connection: all workers are forked, all get
//! ready, then all are told to serve, and when the last of them accepts the server is up.
//! Whatever goes wrong before that fails the start, and nothing is left running.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chappe_shm::{SlotState, Zone};
use chappe_sys::process::ExitReason;
use chappe_sys::regular_file;
use chappe_sys::signals::{self, Signals};

use super::assignment::Assignment;
use super::control::ControlSocket;
use super::deadlines::{Deadlines, What};
use super::desk::Desk;
use super::generations::Generations;
use super::logs::Logs;
use super::manager::Manager;
use super::metrics::Metrics;
use super::owners::{Master, Setup, Site, StartError};
use super::plan::Event as Planned;
use super::sleep;
use super::stopping::Stop;
use super::supervisor::{Ended, Outfit, Supervisor};
use super::turn::Event;
use crate::config::{Address, Config};
use crate::logging::Role;
use crate::throttle::Throttle;

/// How often the slots are checked while workers begin to accept: they say it in
/// their slot only, and it takes them no longer than a wake-up.
const ARMING_TICK: Duration = Duration::from_millis(1);

/// Maps the tables in which `workers` workers of this configuration count addresses, if they
/// do; to be called before they are forked. Tables stay when that is turned off: the workers
/// that drain still have them.
pub(super) fn provide_peer_tables(zone: &Zone, config: &Config, workers: u16) -> io::Result<()> {
    if config.limits.connections_per_ip == 0 {
        return Ok(());
    }
    zone.provide_peer_tables(workers)
}

impl<'a> Master<'a> {
    /// All owners, without a worker yet.
    ///
    /// # Errors
    /// No memory, no descriptor.
    pub(super) fn new(
        setup: Setup,
        control: ControlSocket,
        site: Site<'a>,
        run_worker: &'a dyn Fn(Assignment) -> ExitReason,
    ) -> Result<Self, StartError> {
        let Setup {
            config,
            catalog,
            listeners,
            worker_logs,
            metrics,
            copies,
            warnings,
            identity,
            manager,
        } = setup;
        let workers = config.effective_worker_processes();
        let zone = Zone::for_application(config.max_connections, catalog)
            .and_then(|zone| provide_peer_tables(&zone, &config, workers).map(|()| zone))
            .map_err(StartError::system("shared memory"))?;
        let signals =
            Signals::new(&signals::USED).map_err(StartError::system("signal handlers"))?;
        let mut deadlines = Deadlines::default();
        let supervisor = Supervisor::new(zone, workers);
        let mut master = Self {
            site,
            run_worker,
            copies,
            identity,
            signals,
            supervisor,
            logs: Logs::new(&config, worker_logs, &mut deadlines),
            generations: Generations::new(Arc::clone(&config), listeners, warnings),
            desk: Desk::new(Some(control), 0),
            metrics: Metrics::new(metrics, &mut deadlines),
            manager: Manager::new(manager, &mut deadlines),
            stop: Stop::No,
            started: Instant::now(),
            poll_warnings: Throttle::new(sleep::WARNINGS_LOGGED),
            deadlines,
        };
        master.provide_hub(&config).map_err(StartError::system("the hub"))?;
        Ok(master)
    }

    /// False: it was stopped before it was up, and is stopping.
    ///
    /// # Errors
    /// A worker can't be forked, ends, or is late.
    pub(super) fn start(
        &mut self,
        on_ready: impl FnOnce(&[Address]) -> io::Result<()>,
    ) -> Result<bool, StartError> {
        let workers = self.generations.current().workers;
        log::info!(target: "master.started", "master started version={} workers={workers}", env!("CARGO_PKG_VERSION"));
        for number in 0..workers {
            self.spawn(number).map_err(StartError::system("fork a worker"))?;
        }
        self.check_progress_from_now();

        let generation = self.generations.current().number;
        let count = usize::from(workers);
        self.wait_until(None, |supervisor| supervisor.are_ready(generation, count))?;
        if self.stop.is_stopping() {
            return Ok(false);
        }
        let limit = self.generations.current().config.worker_ready_timeout;
        self.wait_until(Some(limit), Supervisor::is_hub_ready)?;
        if self.stop.is_stopping() {
            return Ok(false);
        }
        self.supervisor.serve_ready(generation, &mut self.deadlines);
        self.wait_until(Some(limit), |supervisor| supervisor.are_serving(generation))?;
        if self.stop.is_stopping() {
            return Ok(false);
        }
        self.deadlines.clear(What::Start);
        for address in self.generations.addresses() {
            log::info!(target: "master.serves", "serving address={address}");
        }
        if let Err(error) = on_ready(self.generations.addresses()) {
            log::warn!(target: "start.abandoned", "start abandoned: the launcher is gone: {error}");
            self.stop_fast("the end of its launcher");
            return Ok(true);
        }
        self.manager.ready(self.generations.addresses(), self.supervisor.numbers());
        self.check_core_state();
        // What was asked for in the meantime is due.
        self.generations.note(Planned::Started);
        self.act_on_plan();
        Ok(true)
    }

    /// Turns until it is so, or the server is to stop. With a `limit` the slots are checked
    /// all the time, since nothing else tells.
    fn wait_until(
        &mut self,
        limit: Option<Duration>,
        is_so: impl Fn(&Supervisor) -> bool,
    ) -> Result<(), StartError> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut failure = None;
        while !self.stop.is_stopping() && !is_so(&self.supervisor) {
            if let Some(deadline) = deadline {
                let now = Instant::now();
                if deadline <= now {
                    if !self.supervisor.is_hub_ready() {
                        return Err(StartError::HubNotReady { limit: limit.unwrap_or_default() });
                    }
                    let generation = self.generations.current().number;
                    let behind = self.supervisor.first_behind(generation, SlotState::Serving);
                    return Err(self.not_ready(behind.unwrap_or(0)));
                }
                self.deadlines.set(What::Start, now + ARMING_TICK);
            }
            let turned = self.turn(&mut |master, event| {
                if let Some(error) = master.failure_of(event) {
                    failure.get_or_insert(error);
                }
            });
            turned.map_err(StartError::system("wait for events"))?;
            if let Some(error) = failure.take() {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether the start has failed by it.
    fn failure_of(&self, event: Event) -> Option<StartError> {
        match event {
            Event::Late(number) => Some(self.not_ready(number)),
            Event::Ended(ended) if !self.stop.is_stopping() => {
                let log = self.logs.directory().join(Role::Worker(ended.number).file_name());
                let how = how_it_ended(&ended, &log);
                let (number, pid, log) = (ended.number, ended.pid, log.display().to_string());
                Some(StartError::WorkerDied { number, pid, how, log })
            }
            Event::Ready | Event::Ended(_) => None,
        }
    }

    fn not_ready(&self, number: u16) -> StartError {
        let limit = self.generations.current().config.worker_ready_timeout;
        StartError::NotReady { number, limit }
    }

    /// Forks the worker of a number of the generation that serves.
    ///
    /// # Errors
    /// No slot, no descriptor, no memory or no process is left.
    fn spawn(&mut self, number: u16) -> io::Result<()> {
        let current = self.generations.current();
        let outfit = Outfit {
            generation: current.number,
            config: &current.config,
            workers: current.workers,
            listeners: &current.listeners,
            logs: self.logs.files(),
            level: self.logs.level(),
            copies: self.copies,
            identity: self.identity.as_ref(),
        };
        let ready_by = Instant::now() + current.config.worker_ready_timeout;
        let (signals, run_worker) = (&mut self.signals, self.run_worker);
        let queue = &mut self.deadlines;
        match self.supervisor.spawn(number, &outfit, ready_by, signals, run_worker, queue)? {
            true => Ok(()),
            false => Err(io::Error::other("no free worker slot")),
        }
    }

    /// Forks the next worker of a number whose worker has ended.
    pub(super) fn fill_vacancy(&mut self, number: u16) {
        if let Err(error) = self.spawn(number) {
            log::error!(target: "fork.failed", "cannot fork a worker: {error} worker={number}");
            self.supervisor.could_not_fork(number, &mut self.deadlines);
        }
    }

    /// Workers that make no progress are found from now on, if the configuration says so.
    pub(super) fn check_progress_from_now(&mut self) {
        let limit = self.generations.current().config.worker_stuck_timeout;
        self.deadlines.set_or_clear(What::Progress, limit.map(|_| Instant::now()));
    }
}

/// How much of a log's end is searched.
const LOG_TAIL_BYTES: u64 = 4096;

/// How a worker has ended, with the reason if its log has one: what an application says
/// that cannot start.
pub(super) fn how_it_ended(ended: &Ended, log: &Path) -> String {
    let Ended { number, pid, how, .. } = ended;
    let reason = tail(log).ok().and_then(|tail| {
        let marker = format!(" {pid} worker.boot_failed: worker {number} cannot boot: ");
        let reason = tail.lines().rev().find_map(|line| Some(line.split_once(&marker)?.1))?;
        Some(reason.replace(char::is_control, "?"))
    });
    reason.map_or_else(|| how.clone(), |reason| format!("{how}: {reason}"))
}

fn tail(log: &Path) -> io::Result<String> {
    let mut file = regular_file::open_to_read(log)?;
    let from = file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
