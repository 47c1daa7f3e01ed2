//! The metrics process: a child of the master's that is no worker. It is forked when
//! an address is configured, replaced when it dies, and ended by SIGKILL: there is
//! nothing in it to lose.
//!
//! The socket stays with the master. A client that connects while there is no process
//! waits in the socket's queue for the next one.

mod birth;

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use chappe_sys::signals::Signals;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

pub(super) use birth::Outfit;

use super::deadlines::{Deadlines, What};
use super::supervisor::{Death, Verdict, judge};
use crate::channel::MasterEnd;
use crate::config::{self, Address, Config};
use crate::control::MetricsStatus;
use crate::listen::{Bound, ListenError};
use crate::metrics;
use birth::Birth;

/// The process that runs.
#[derive(Debug)]
struct Helper {
    pid: Pid,
    /// Never spoken on: the process ends when it closes.
    _channel: MasterEnd,
    started: Instant,
}

/// What the master has of it. When the next one is forked is in the queue of deadlines.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// `None`: off.
    endpoint: Option<Bound>,
    helper: Option<Helper>,
    /// Processes that were ended and may still have their socket.
    dismissed: BTreeSet<Pid>,
    /// The one that a reload will have.
    next: Option<Bound>,
    /// The pace, for `policy::judge`.
    pause: Duration,
}

/// Binds what is configured, and does not listen yet.
///
/// # Errors
/// The address is taken, forbidden, or not this machine's.
pub(crate) fn bind(config: &Config) -> Result<Option<Bound>, ListenError> {
    options(config).map(|options| Bound::bind(&options, 1)).transpose()
}

/// As a listener that one process has.
fn options(config: &Config) -> Option<config::Listen> {
    let address = Address::Tcp(config.metrics.address?);
    Some(config::Listen { address, backlog: metrics::BACKLOG, ..config::Listen::default() })
}

impl Metrics {
    pub(super) fn new(endpoint: Option<Bound>, deadlines: &mut Deadlines) -> Self {
        deadlines.set_or_clear(What::Metrics, endpoint.as_ref().map(|_| Instant::now()));
        Self { endpoint, ..Self::default() }
    }

    /// What a reload will have: the same socket for the same address.
    ///
    /// # Errors
    /// Those of [`bind`].
    pub(super) fn bind_next(&self, config: &Config) -> Result<Option<Bound>, ListenError> {
        match (&self.endpoint, options(config)) {
            (Some(bound), Some(options)) if bound.options.address == options.address => {
                bound.stay(&options, 1).map(Some)
            }
            _ => bind(config),
        }
    }

    pub(super) fn status(&self) -> Option<MetricsStatus> {
        let bound = self.endpoint.as_ref()?;
        let pid = self.helper.as_ref().map(|helper| helper.pid.as_raw());
        Some(MetricsStatus { address: bound.local.to_string(), pid })
    }

    /// The socket of the generation that a reload makes ready.
    pub(super) fn begin(&mut self, next: Option<Bound>) {
        self.next = next;
    }

    /// Lets scrapes in at the next generation's address.
    ///
    /// # Errors
    /// Somebody else has begun to listen there since the bind.
    pub(super) fn listen_next(&self) -> Result<(), ListenError> {
        self.next.iter().try_for_each(Bound::listen)
    }

    /// There is no next generation any more.
    pub(super) fn drop_next(&mut self) {
        self.next = None;
    }

    /// After a reload: another address has another process, the same one keeps its own.
    pub(super) fn commit(&mut self, deadlines: &mut Deadlines) {
        let endpoint = self.next.take();
        let address = |bound: &Option<Bound>| bound.as_ref().map(|b| b.options.address.clone());
        if address(&self.endpoint) == address(&endpoint) {
            self.endpoint = endpoint;
            return;
        }
        self.dismiss();
        let dismissed = std::mem::take(&mut self.dismissed);
        *self = Self { dismissed, ..Self::new(endpoint, deadlines) };
    }

    /// Ends the process. Its end is not waited for.
    fn dismiss(&mut self) {
        if let Some(helper) = self.helper.take() {
            // It is not reaped yet, so its number can't be another one's.
            let _ = kill(helper.pid, Signal::SIGKILL);
            self.dismissed.insert(helper.pid);
        }
    }

    /// Whether a process that was ended may still have its socket.
    pub(super) fn is_letting_go(&self) -> bool {
        !self.dismissed.is_empty()
    }

    /// True when the child that ended was the metrics process, or one before it.
    pub(super) fn ended(
        &mut self,
        pid: Pid,
        death: Death,
        how: &str,
        is_stopping: bool,
        deadlines: &mut Deadlines,
    ) -> bool {
        if self.dismissed.remove(&pid) {
            return true;
        }
        let Some(helper) = self.helper.take_if(|helper| helper.pid == pid) else {
            return false;
        };
        let lived = helper.started.elapsed();
        log::warn!(target: "metrics.ended", "metrics process ended pid={pid} {how} uptime_ms={}", lived.as_millis());
        self.fill(death, lived, is_stopping, deadlines);
        true
    }

    fn fill(
        &mut self,
        death: Death,
        lived: Duration,
        is_stopping: bool,
        deadlines: &mut Deadlines,
    ) {
        match judge(is_stopping, death, lived, &mut self.pause) {
            Verdict::Forget => {}
            Verdict::Respawn(after) => {
                let pause_ms = after.as_millis();
                log::info!(target: "metrics.paused", "metrics process will be replaced pause_ms={pause_ms}");
                deadlines.set(What::Metrics, Instant::now() + after);
            }
        }
    }

    /// At the master's end: nothing is left running.
    pub(super) fn end(&mut self) {
        let pid = self.helper.as_ref().map(|helper| helper.pid);
        self.dismiss();
        if let Some(pid) = pid {
            // An error is ECHILD: it was reaped already.
            let _ = waitpid(pid, None);
        }
    }

    /// Forks the process. If that fails, the next try is paced like one after a death.
    pub(super) fn fork(
        &mut self,
        outfit: Outfit,
        is_stopping: bool,
        signals: &mut Signals,
        deadlines: &mut Deadlines,
    ) {
        match self.try_fork(outfit, signals) {
            Ok(helper) => {
                let address = self.endpoint.as_ref().map(|bound| bound.local.to_string());
                let address = address.unwrap_or_default();
                log::info!(target: "metrics.started", "metrics process started pid={} address={address}", helper.pid);
                self.helper = Some(helper);
            }
            Err(error) => {
                log::error!(target: "fork.failed", "cannot fork the metrics process: {error}");
                self.fill(Death::Failed, Duration::ZERO, is_stopping, deadlines);
            }
        }
    }

    fn try_fork(&self, outfit: Outfit, signals: &mut Signals) -> io::Result<Helper> {
        let endpoint = self.endpoint.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let (birth, channel) = Birth::new(outfit, endpoint)?;
        let pid = signals.fork(|forked| birth.begin(&forked))?;
        Ok(Helper { pid, _channel: channel, started: Instant::now() })
    }
}
