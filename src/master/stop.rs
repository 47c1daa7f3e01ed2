//! The two ways to stop, and what cuts them short.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::Master;
use super::deadlines::What;

/// How long workers may take for the fast stop; they only have sockets to close.
pub(super) const FAST_STOP_MAX: Duration = Duration::from_secs(5);

/// How much longer than `worker_shutdown_timeout` a worker may take to leave. At that
/// time it cuts its connections by itself, and counts them; one that is killed at the
/// same moment counts nothing.
pub(super) const CUT_GRACE: Duration = Duration::from_secs(1);

/// A signal that comes twice in this time is one: timeout(1) and others send it to the process
/// and to its group.
const ONE_SIGNAL: Duration = Duration::from_millis(250);

/// Whether, and how, the server is going down. It only ever gets more urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It is not.
    No,
    /// Workers answer what they have; then the rest is cut.
    Graceful,
    /// Workers close and go; then they are killed. Who asked for it, and when.
    Fast { by: &'static str, since: Instant },
    /// Workers were killed; the kernel does the rest.
    Killed,
}

impl Stop {
    pub(super) fn is_stopping(self) -> bool {
        self != Self::No
    }
}

impl Master<'_> {
    /// The fast stop; asked for a second time it kills.
    pub(super) fn stop_fast(&mut self, by: &'static str) {
        match self.stop {
            Stop::No | Stop::Graceful => {
                log::info!(target: "stop.fast", "stopping now by={by}");
                self.begin_stop(Stop::Fast { by, since: Instant::now() }, FAST_STOP_MAX);
                self.supervisor.signal_all(Signal::SIGTERM);
            }
            Stop::Fast { by: first, since } if first == by && since.elapsed() < ONE_SIGNAL => {
                log::info!(target: "stop.same", "ignoring a repeated stop signal by={by}");
            }
            Stop::Fast { .. } => {
                log::warn!(target: "stop.again", "killing the workers: second stop order by={by}");
                self.kill_workers();
            }
            Stop::Killed => {}
        }
    }

    /// The graceful stop. It does nothing to a stop that is on its way.
    pub(super) fn stop_gracefully(&mut self, by: &str) {
        if self.stop.is_stopping() {
            log::info!(target: "stop.already", "already stopping, nothing changes by={by}");
            return;
        }
        log::info!(target: "stop.graceful", "stopping gracefully by={by}");
        let limit = self.generations.current().config.worker_shutdown_timeout + CUT_GRACE;
        self.begin_stop(Stop::Graceful, limit);
        self.supervisor.drain_all(&mut self.deadlines);
    }

    fn begin_stop(&mut self, stop: Stop, limit: Duration) {
        self.manager.stopping(limit);
        self.stop = stop;
        self.deadlines.set(What::Stop, Instant::now() + limit);
        self.abandon_reload();
        self.generations.stop();
        // Nobody comes any more, so nobody is waited for.
        self.deadlines.clear_all(|what| matches!(what, What::Vacancy(_) | What::Ready(_)));
    }

    pub(super) fn end_of_stop(&mut self) {
        let left = self.supervisor.count();
        log::warn!(target: "stop.overdue", "killing {left} workers that took too long to stop");
        self.kill_workers();
    }

    fn kill_workers(&mut self) {
        self.stop = Stop::Killed;
        self.deadlines.clear(What::Stop);
        self.supervisor.signal_all(Signal::SIGKILL);
    }
}
