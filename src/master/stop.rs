//! The two ways to stop, and what cuts them short.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::deadlines::What;
use super::owners::Master;
use super::stopping::{Fast, Stop};
use super::supervisor::FAST_STOP_MAX;

/// How much longer than `worker_shutdown_timeout` a worker may take to leave. At that
/// time it cuts its connections by itself, and counts them; one that is killed at the
/// same moment counts nothing.
pub(super) const CUT_GRACE: Duration = Duration::from_secs(1);

impl Master<'_> {
    /// The fast stop; asked for a second time it kills.
    pub(super) fn stop_fast(&mut self, by: &'static str) {
        let now = Instant::now();
        match self.stop.asked_to_be_fast(by, now) {
            Fast::Begins => {
                log::info!(target: "stop.fast", "stopping now by={by}");
                self.begin_stop(Stop::Fast { by, since: now }, FAST_STOP_MAX);
                self.supervisor.signal_all(Signal::SIGTERM);
            }
            Fast::IsTheSame => {
                log::info!(target: "stop.same", "ignoring a repeated stop signal by={by}");
            }
            Fast::Kills => {
                log::warn!(target: "stop.again", "killing the workers: second stop order by={by}");
                self.kill_workers();
            }
            Fast::IsOver => {}
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
