//! The master: forks workers, watches them, replaces them, stops them.
//!
//! One thread for its whole life, and one place where it sleeps: `Master::sleep`,
//! a poll over its signals, the channels of its workers and the control socket,
//! until the next deadline. It never touches a client's connection and names nothing of what
//! workers do: that is a function it is handed.
//!
//! ```text
//! sleep → signals (reap first) → channels → control socket → deadlines → plan → sleep
//!
//! Supervisor   workers, their places, the shared memory        Deadlines   one queue
//! Generations  who serves, who is to, plan, history            Metrics     its process
//! Desk         control socket, clients, orders to workers      Manager     systemd
//! Logs         files, rotation, level
//! ```
//!
//! Each of them owns its state and reaches into no other: the loop (`turn`) hands events
//! down and gets back the outcomes. What concerns several of them is read from top to
//! bottom in one file: a start in `start`, a reload in `reload`, a stop in `stop`, a worker's
//! end in `supervisor::reap`.

mod control;
mod deadlines;
mod desk;
mod generations;
mod logs;
mod manager;
mod metrics;
mod pid_file;
mod plan;
mod reload;
mod resize;
mod sleep;
mod start;
#[cfg_attr(not(test), expect(dead_code, reason = "an upgrade in place will use it"))]
mod state;
mod status;
mod stop;
mod supervisor;
mod turn;

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chappe_shm::{Catalog, Slot};
use chappe_sys::notify::Notifier;
use chappe_sys::privileges::Identity;
use chappe_sys::process::ExitReason;
use chappe_sys::signals::Signals;
use nix::unistd::Pid;
use thiserror::Error;

pub(crate) use control::ControlSocket;
pub(crate) use metrics::bind as bind_metrics;
pub(crate) use pid_file::{PidFile, PidFileError};

use crate::channel::WorkerEnd;
use crate::config::{Address, Config, ConfigErrors, Loaded};
use crate::listen::{Bound, Listener};
use crate::logging::Copies;
use crate::throttle::Throttle;
use deadlines::Deadlines;
use desk::Desk;
use generations::Generations;
use logs::Logs;
use manager::Manager;
use metrics::Metrics;
use stop::Stop;
use supervisor::Supervisor;

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
    /// What to accept from, once it is to serve.
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
    /// What is counted of the application.
    pub(crate) catalog: Catalog,
    /// Listening sockets, in the order of the configuration.
    pub(crate) listeners: Vec<Bound>,
    /// The log of worker N at place N.
    pub(crate) worker_logs: Vec<Arc<File>>,
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
    /// Reads and checks the configuration again, from where it was at the start.
    pub(crate) load: &'a dyn Fn() -> Result<Loaded, ConfigErrors>,
    /// What the operator should know of a configuration that is to be served.
    pub(crate) warnings: &'a dyn Fn(&Config) -> Vec<String>,
}

/// Why the server did not start. Nothing is left running then.
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

impl StartError {
    fn system(step: &'static str) -> impl Fn(io::Error) -> Self {
        move |cause| Self::System { step, cause }
    }
}

/// The owners, and what all workers are born with.
struct Master<'a> {
    site: Site<'a>,
    run_worker: &'a dyn Fn(Assignment) -> ExitReason,
    copies: Copies,
    identity: Option<Identity>,
    signals: Signals,
    deadlines: Deadlines,
    supervisor: Supervisor,
    generations: Generations,
    desk: Desk,
    logs: Logs,
    metrics: Metrics,
    manager: Manager,
    stop: Stop,
    started: Instant,
    /// Warnings that poll failed.
    poll_warnings: Throttle,
}

/// Runs the master until it was told to stop and every worker is gone. `on_ready`
/// is called once, when every worker accepts; an error stops the server again.
///
/// # Errors
/// [`StartError`] when the first workers did not come up; never later.
pub(crate) fn run(
    setup: Setup,
    control: ControlSocket,
    site: Site<'_>,
    run_worker: &dyn Fn(Assignment) -> ExitReason,
    on_ready: impl FnOnce(&[Address]) -> io::Result<()>,
) -> Result<(), StartError> {
    let mut master = Master::new(setup, control, site, run_worker)?;
    let result = master.start(on_ready).and_then(|is_up| {
        master.supervise();
        if is_up { Ok(()) } else { Err(StartError::Interrupted) }
    });
    if let Err(error) = &result {
        log::error!(target: "start.failed", "start failed: {error}");
        master.supervisor.kill_and_reap_all();
    }
    master.metrics.end();
    master.desk.close();
    log::info!(target: "master.stopped", "master stopped");
    result
}
