//! The master: forks workers, watches them, replaces them, stops them.
//!
//! One thread for its whole life, and one place where it sleeps: `Master::sleep`,
//! a poll over its signals, the channels of its workers and the control socket,
//! until the next deadline. Everything else decides and returns. It never touches
//! a client's connection and names nothing of what workers do: that is a function
//! it is handed.
//!
//! ```text
//! sleep → signals (reap first) → channels → control socket → deadlines → sleep
//! ```

mod control;
mod logs;
mod manager;
mod metrics;
mod orders;
mod owed;
mod pid_file;
mod plan;
mod policy;
mod reap;
mod reload;
mod resize;
mod sleep;
mod spawn;
mod status;
mod stop;
mod stuck;
mod worker;

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chappe_shm::{Counter, Slot, SlotState, Stage, Zone};
use chappe_sys::notify::Notifier;
use chappe_sys::privileges::Identity;
use chappe_sys::process::ExitReason;
use chappe_sys::signals::Signals;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use thiserror::Error;

pub(crate) use control::ControlSocket;
use control::{Answer, Request};
pub(crate) use metrics::bind as bind_metrics;
pub(crate) use pid_file::{PidFile, PidFileError};

use crate::channel::{Message, ReceivedParcel, WorkerEnd};
use crate::config::{Address, Config, ConfigErrors, Loaded, LogLevel};
use crate::listen::{Bound, Listener};
use crate::logging::{self, Copies};
use crate::throttle::Throttle;
use manager::Manager;
use plan::{Event, Plan};
use reload::{Candidate, History};
use stop::Stop;
use stuck::Watchdog;
use worker::{Told, Worker};

/// What a worker is started with, all of it its own.
#[derive(Debug)]
pub struct Assignment {
    /// The worker's number, from 0. A successor has the same.
    pub number: u16,
    /// Which reload it belongs to, from 1.
    pub generation: u64,
    /// Its place in shared memory.
    pub slot: Slot,
    /// The line to the master.
    pub channel: WorkerEnd,
    /// What to accept from, once `serve` has come.
    pub(crate) listeners: Vec<Listener>,
    /// The configuration of its generation.
    pub(crate) config: Arc<Config>,
}

impl Assignment {
    /// The `[application]` table of the configuration.
    #[must_use]
    pub fn application(&self) -> &toml::Table {
        &self.config.application
    }
}

/// What the master is started with; everything that can fail with a plain reason
/// was done before.
#[derive(Debug)]
pub(crate) struct Setup {
    /// The configuration.
    pub(crate) config: Arc<Config>,
    /// Listening sockets, in the order of the configuration.
    pub(crate) listeners: Vec<Bound>,
    /// The log of worker N at place N.
    pub(crate) worker_logs: Vec<Arc<File>>,
    /// The bound control socket.
    pub(crate) control: ControlSocket,
    /// Where metrics are served; `None`: nowhere.
    pub(crate) metrics: Option<Bound>,
    /// Where the workers' log lines go besides their files.
    pub(crate) copies: Copies,
    /// What the operator should know; `status` repeats it.
    pub(crate) warnings: Vec<String>,
    /// Whom the workers become; `None`: they stay who the master is.
    pub(crate) identity: Option<Identity>,
    /// The line to the service manager, if one has started us.
    pub(crate) manager: Option<Notifier>,
}

/// What a reload needs of the outside, which the master knows nothing of.
#[derive(Clone, Copy)]
pub(crate) struct Site<'a> {
    /// Reads and checks the configuration anew, from where it was at the start.
    pub(crate) load: &'a dyn Fn() -> Result<Loaded, ConfigErrors>,
    /// What the operator should know of a configuration that is to be served.
    pub(crate) warnings: &'a dyn Fn(&Config) -> Vec<String>,
}

/// Why no server came of it. Nothing is left running then.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    /// No memory, descriptor, process or signal handler was to be had.
    #[error("{step}: {cause}")]
    System {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
    /// A worker ended before all were ready.
    #[error("worker {number} (pid {pid}) ended before it was ready: {how}; see {log}")]
    WorkerDied {
        /// Its number.
        number: u16,
        /// Its process.
        pid: Pid,
        /// `exit code 1`, `signal SIGSEGV`.
        how: String,
        /// Its log.
        log: String,
    },
    /// A worker took too long.
    #[error("worker {number} was not ready within {limit:?} (worker_ready_timeout)")]
    NotReady {
        /// Its number.
        number: u16,
        /// The time it had.
        limit: Duration,
    },
    /// Somebody stopped the start.
    #[error("stopped before all workers were ready")]
    Interrupted,
}

/// A worker number that waits for its next worker.
#[derive(Clone, Copy, Debug)]
struct Vacancy {
    number: u16,
    due: Instant,
}

/// How far the start is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not all workers are ready.
    Starting,
    /// All were sent `serve`, and not all have begun to accept.
    Arming { deadline: Instant },
    /// Whoever started us was told.
    Running,
}

struct Master<'a> {
    site: Site<'a>,
    /// Of the generation that serves, as everything here that is not a `Candidate`'s.
    config: Arc<Config>,
    generation: u64,
    /// The last number that was given to a generation, also to one that failed.
    last_generation: u64,
    /// What the configuration comes to, and what TTIN and TTOU have made of it.
    workers_configured: u16,
    workers_wanted: u16,
    zone: Arc<Zone>,
    listeners: Vec<Bound>,
    /// Where the listeners listen; kept when a stop closes them.
    addresses: Vec<Address>,
    worker_logs: Vec<Arc<File>>,
    control: Option<ControlSocket>,
    copies: Copies,
    warnings: Vec<String>,
    identity: Option<Identity>,
    manager: Manager,
    metrics: metrics::Metrics,
    run_worker: &'a dyn Fn(Assignment) -> ExitReason,
    signals: Signals,
    workers: Vec<Worker>,
    vacancies: Vec<Vacancy>,
    /// The pace of each worker number, for `policy::judge`.
    pauses: Vec<Duration>,
    phase: Phase,
    stop: Stop,
    plan: Plan,
    /// The generation that a reload makes ready.
    candidate: Option<Candidate>,
    reloads: History,
    /// Who waits for the reload that has not begun.
    reload_waiters: Vec<u64>,
    /// What they are told at the end of this turn.
    outcomes: Vec<(u64, serde_json::Value)>,
    /// When permits of dead workers are to be settled once more.
    settle_at: Option<Instant>,
    watchdog: Watchdog,
    /// The first death of the first generation.
    start_failure: Option<StartError>,
    started: Instant,
    /// Warnings that poll failed.
    poll_warnings: Throttle,
    /// How many lost log lines of its own the master has counted.
    log_lines_lost: u64,
    /// The level that an operator has set; without one the configuration's holds.
    log_level: Option<LogLevel>,
    rotation: logs::Rotation,
    /// Logs just opened, on their way to the workers.
    fresh_logs: Vec<logs::FreshLog>,
    /// What workers were asked and have not all answered.
    orders: Vec<orders::Order>,
    /// The number that the last order or reload got; clients wait for it.
    tickets: u64,
}

/// Runs the master until it was told to stop and every worker is gone. `on_ready`
/// is called once, when every worker accepts; an error stops the server again.
///
/// # Errors
/// [`StartError`] when the first workers did not come up; never later.
pub(crate) fn run(
    setup: Setup,
    site: Site<'_>,
    run_worker: &dyn Fn(Assignment) -> ExitReason,
    on_ready: impl FnOnce(&[Address]) -> io::Result<()>,
) -> Result<(), StartError> {
    let step = |step| move |cause| StartError::System { step, cause };
    let zone = spawn::make_zone(&setup.config).map_err(step("shared memory"))?;
    let signals = Signals::new(&chappe_sys::signals::USED).map_err(step("signal handlers"))?;
    let workers = setup.config.effective_worker_processes();
    let mut master = Master {
        site,
        generation: 1,
        last_generation: 1,
        workers_configured: workers,
        workers_wanted: workers,
        zone,
        addresses: setup.listeners.iter().map(|bound| bound.local.clone()).collect(),
        listeners: setup.listeners,
        worker_logs: setup.worker_logs,
        control: Some(setup.control),
        copies: setup.copies,
        warnings: setup.warnings,
        identity: setup.identity,
        manager: Manager::new(setup.manager),
        metrics: metrics::Metrics::new(setup.metrics),
        run_worker,
        signals,
        workers: Vec::new(),
        vacancies: Vec::new(),
        pauses: vec![Duration::ZERO; usize::from(workers)],
        phase: Phase::Starting,
        stop: Stop::No,
        plan: Plan::new(),
        candidate: None,
        reloads: History::default(),
        reload_waiters: Vec::new(),
        outcomes: Vec::new(),
        settle_at: None,
        watchdog: Watchdog::default(),
        start_failure: None,
        started: Instant::now(),
        poll_warnings: Throttle::new(sleep::WARNINGS_TOLD),
        log_lines_lost: 0,
        log_level: None,
        rotation: logs::Rotation::new(Instant::now()),
        fresh_logs: Vec::new(),
        orders: Vec::new(),
        tickets: 0,
        config: setup.config,
    };
    log::info!("master started version={} workers={workers}", env!("CARGO_PKG_VERSION"));
    let result = (0..workers)
        .try_for_each(|number| master.spawn(number).map_err(step("fork a worker")))
        .and_then(|()| master.supervise(on_ready));
    if let Err(error) = &result {
        log::error!("start failed: {error}");
        master.kill_and_reap_all();
    }
    master.end_metrics();
    if let Some(control) = master.control.take() {
        control.remove();
    }
    log::info!("master stopped");
    result
}

impl Master<'_> {
    fn supervise(
        &mut self,
        on_ready: impl FnOnce(&[Address]) -> io::Result<()>,
    ) -> Result<(), StartError> {
        let mut on_ready = Some(on_ready);
        while !(self.stop.is_stopping() && self.workers.is_empty()) {
            let ready_channels = match self.sleep() {
                Ok(ready) => ready,
                Err(cause) if self.phase == Phase::Running => self.look_at_all(&cause),
                Err(cause) => return Err(StartError::System { step: "wait for events", cause }),
            };
            self.take_signals();
            self.hear_workers(&ready_channels);
            self.take_requests();
            self.enforce_deadlines();
            self.act_on_plan();
            self.tell_outcomes();
            self.rotate_logs(Instant::now());
            self.end_orders(Instant::now());
            self.count_lost_lines();
            self.report_damage();
            self.tell_history();
            if let Some(failure) = self.start_failure.take() {
                return Err(failure);
            }
            if self.has_just_started()?
                && let Some(on_ready) = on_ready.take()
            {
                if let Err(error) = on_ready(&self.addresses) {
                    log::warn!("nobody waits for this start any more: {error}");
                    self.stop_fast("the end of its launcher");
                    continue;
                }
                self.manager.ready(&self.addresses, self.pauses.len());
                // What was asked for meanwhile is due.
                self.plan.note(Event::Started);
                self.act_on_plan();
                self.tell_outcomes();
            }
        }
        if self.phase == Phase::Running { Ok(()) } else { Err(StartError::Interrupted) }
    }

    fn take_signals(&mut self) {
        let mut pending = self.signals.pending();
        // First who is gone: what is alive decides whether a stop is complete.
        pending.sort_by_key(|&signal| signal != Signal::SIGCHLD);
        for signal in pending {
            match signal {
                Signal::SIGCHLD => self.reap(),
                Signal::SIGTERM | Signal::SIGINT => self.stop_fast(signal.as_str()),
                Signal::SIGQUIT => self.stop_gracefully(signal.as_str()),
                Signal::SIGUSR1 => {
                    self.reopen_logs(signal.as_str());
                }
                Signal::SIGHUP => self.request_reload(signal.as_str(), None),
                Signal::SIGTTIN => self.request_resize(1, signal.as_str()),
                Signal::SIGTTOU => self.request_resize(-1, signal.as_str()),
                other => log::warn!("{other} is not available in this version and does nothing"),
            }
        }
    }

    fn hear_workers(&mut self, ready: &[Pid]) {
        let (mut rang, mut reopen, mut answers) = (false, false, Vec::new());
        for worker in self.workers.iter_mut().filter(|worker| ready.contains(&worker.pid)) {
            while let Some(channel) = &worker.channel {
                match channel.try_receive_parcel() {
                    Ok(Some(ReceivedParcel::Parcel(parcel))) => match parcel.message {
                        Message::Ready => rang = true,
                        Message::AskReopen => reopen = true,
                        Message::Done | Message::NotDone | Message::Kicked | Message::NotKicked => {
                            answers.push((worker.pid, parcel))
                        }
                        message => {
                            log::warn!("worker {} said {message:?}, which is ours", worker.number);
                        }
                    },
                    Ok(Some(ReceivedParcel::Nonsense)) => {
                        log::warn!("worker {} has sent what is no message", worker.number);
                    }
                    Ok(Some(ReceivedParcel::Closed)) => worker.channel = None,
                    Ok(None) => break,
                    Err(error) => {
                        log::warn!("channel of worker {}: {error}", worker.number);
                        worker.channel = None;
                    }
                }
            }
        }
        if rang {
            self.answer_the_bell();
        }
        for (from, parcel) in answers {
            self.note_answer(from, parcel);
        }
        if reopen {
            self.reopen_logs("a worker");
        }
    }

    /// A worker that is ready serves: the first ones all together, a replacement at
    /// once. The slots say who is; the semaphore has only rung.
    fn answer_the_bell(&mut self) {
        self.zone.silence_ready();
        if self.stop.is_stopping() {
            return;
        }
        let generation = self.generation;
        // Those of a candidate wait for each other, see `look_at_candidate`.
        let is_waited_for =
            |worker: &Worker| worker.ready_by.is_some() && worker.generation == generation;
        let is_ready = |worker: &Worker| worker.slot.state() == SlotState::Ready;
        let all = self.workers.iter().filter(|worker| is_waited_for(worker)).all(is_ready)
            && self.workers.len() == self.pauses.len();
        if self.phase == Phase::Starting && !all {
            return;
        }
        for worker in self.workers.iter_mut().filter(|w| is_waited_for(w) && is_ready(w)) {
            worker.ready_by = None;
            worker.order(Stage::Serve);
        }
        if self.phase == Phase::Starting {
            let deadline = Instant::now() + self.config.worker_ready_timeout;
            self.phase = Phase::Arming { deadline };
        }
        self.look_at_candidate();
    }

    /// True once: when the last of the first workers has begun to accept.
    fn has_just_started(&mut self) -> Result<bool, StartError> {
        let Phase::Arming { deadline } = self.phase else { return Ok(false) };
        if self.stop.is_stopping() {
            return Ok(false);
        }
        let late = self.workers.iter().find(|worker| worker.slot.state() != SlotState::Serving);
        match late {
            None => {
                self.phase = Phase::Running;
                for address in &self.addresses {
                    log::info!("serving address={address}");
                }
                Ok(true)
            }
            Some(worker) if deadline <= Instant::now() => Err(self.not_ready(worker.number)),
            Some(_) => Ok(false),
        }
    }

    fn not_ready(&self, number: u16) -> StartError {
        StartError::NotReady { number, limit: self.config.worker_ready_timeout }
    }

    fn enforce_deadlines(&mut self) {
        let now = Instant::now();
        self.manager.ping(now);
        self.enforce_stop(now);
        self.enforce_leaving(now);
        self.enforce_candidate(now);
        self.enforce_readiness(now);
        self.enforce_metrics(now);
        self.workers.iter_mut().for_each(|worker| worker.try_again(now));
        self.enforce_progress(now);
        if self.settle_at.is_some_and(|at| at <= now) {
            self.settle();
        }
        let due: Vec<u16> =
            self.vacancies.iter().filter(|v| v.due <= now).map(|v| v.number).collect();
        self.vacancies.retain(|vacancy| vacancy.due > now);
        for number in due {
            self.respawn(number);
        }
    }

    fn enforce_readiness(&mut self, now: Instant) {
        let generation = self.generation;
        let is_due = |worker: &&mut Worker| {
            worker.generation == generation && worker.ready_by.is_some_and(|by| by <= now)
        };
        let (mut late, mut is_one_ready) = (None, false);
        for worker in self.workers.iter_mut().filter(is_due) {
            // At the start one that is ready only waits for the others.
            if worker.slot.state() == SlotState::Ready {
                is_one_ready = true;
                continue;
            }
            log::error!("worker was not ready in time worker={} pid={}", worker.number, worker.pid);
            worker.ready_by = None;
            worker.signal(Signal::SIGKILL);
            late.get_or_insert(worker.number);
        }
        if let Some(number) = late
            && self.phase != Phase::Running
        {
            self.start_failure = Some(self.not_ready(number));
        }
        if is_one_ready && late.is_none() {
            self.answer_the_bell();
        }
    }

    fn count_lost_lines(&mut self) {
        let lost = logging::lines_lost();
        if lost > self.log_lines_lost {
            self.zone.count(Counter::LogLinesLost, lost - self.log_lines_lost);
            self.log_lines_lost = lost;
        }
    }

    fn take_requests(&mut self) {
        // Out of `self` for a moment, since the answers need all of it.
        let Some(mut control) = self.control.take() else { return };
        control.turn(Instant::now(), |request| self.reply_to(request));
        self.control = Some(control);
    }

    fn reply_to(&mut self, request: Request) -> Answer {
        Answer::Now(match request {
            Request::Status {} => self.status(),
            Request::Stop {} => {
                self.stop_fast("the control socket");
                status::accepted()
            }
            Request::Quit {} => {
                self.stop_gracefully("the control socket");
                status::accepted()
            }
            Request::Reload {} => {
                let number = self.next_ticket();
                self.request_reload("the control socket", Some(number));
                return Answer::Later(number);
            }
            Request::Reopen { wait } => {
                let number = self.reopen_logs("the control socket");
                if wait {
                    return Answer::Later(number);
                }
                status::accepted()
            }
            Request::LogLevel { level } => self.change_log_level(level.0),
            Request::Connections { slow } => return self.list_connections(slow),
            Request::Kick { id } => return self.kick(id),
        })
    }
}
