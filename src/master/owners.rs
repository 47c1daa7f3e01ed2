//! The master: its owners, what it is started with, and why no server came of it.
//!
//! The files that act on several owners (`start`, `turn`, `reload`, `stop`, …) have their
//! methods on [`Master`] and are named by nothing here.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chappe_shm::Catalog;
use chappe_sys::notify::Notifier;
use chappe_sys::privileges::Identity;
use chappe_sys::process::ExitReason;
use chappe_sys::signals::Signals;
use nix::unistd::Pid;
use thiserror::Error;

use super::assignment::Assignment;
use super::deadlines::Deadlines;
use super::desk::Desk;
use super::generations::Generations;
use super::logs::Logs;
use super::manager::Manager;
use super::metrics::Metrics;
use super::stopping::Stop;
use super::supervisor::Supervisor;
use crate::config::{Config, ConfigErrors, Loaded};
use crate::listen::Bound;
use crate::logging::Copies;
use crate::throttle::Throttle;

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
    /// The hub took too long, or ended again and again.
    #[error("the hub was not ready within {limit:?} (worker_ready_timeout); see hub.log")]
    HubNotReady {
        /// The time it had.
        limit: Duration,
    },
    /// Somebody stopped the start.
    #[error("stopped before all workers were ready")]
    Interrupted,
}

impl StartError {
    pub(super) fn system(step: &'static str) -> impl Fn(io::Error) -> Self {
        move |cause| Self::System { step, cause }
    }
}

/// The owners, and what all workers are born with.
pub(super) struct Master<'a> {
    pub(super) site: Site<'a>,
    pub(super) run_worker: &'a dyn Fn(Assignment) -> ExitReason,
    pub(super) copies: Copies,
    pub(super) identity: Option<Identity>,
    pub(super) signals: Signals,
    pub(super) deadlines: Deadlines,
    pub(super) supervisor: Supervisor,
    pub(super) generations: Generations,
    pub(super) desk: Desk,
    pub(super) logs: Logs,
    pub(super) metrics: Metrics,
    pub(super) manager: Manager,
    pub(super) stop: Stop,
    pub(super) started: Instant,
    /// Warnings that poll failed.
    pub(super) poll_warnings: Throttle,
}
