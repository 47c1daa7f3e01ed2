//! The two ways to stop, and what cuts them short.

use std::time::{Duration, Instant};

use chappe_shm::Stage;
use nix::sys::signal::Signal;

use super::Master;
use super::plan::Event;

/// How long workers may take for the fast stop; they only have sockets to close.
pub(super) const FAST_STOP_MAX: Duration = Duration::from_secs(5);

/// How much longer than `worker_shutdown_timeout` a worker may take to leave. At that
/// time it cuts its connections by itself, and counts them; one that is killed at the
/// same moment counts nothing.
pub(super) const CUT_GRACE: Duration = Duration::from_secs(1);

/// Whether, and how, the server is going down. It only ever gets more urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It is not.
    No,
    /// Workers answer what they have; at `deadline` the rest is cut.
    Graceful { deadline: Instant },
    /// Workers close and go; at `deadline` they are killed.
    Fast { deadline: Instant },
    /// Workers were killed; the kernel does the rest.
    Killed,
}

impl Stop {
    pub(super) fn is_stopping(self) -> bool {
        self != Self::No
    }

    pub(super) fn deadline(self) -> Option<Instant> {
        match self {
            Self::Graceful { deadline } | Self::Fast { deadline } => Some(deadline),
            Self::No | Self::Killed => None,
        }
    }
}

impl Master<'_> {
    /// The fast stop; asked for a second time it kills.
    pub(super) fn stop_fast(&mut self, by: &str) {
        match self.stop {
            Stop::No | Stop::Graceful { .. } => {
                log::info!("stopping now by={by}");
                self.begin_stop(Stop::Fast { deadline: Instant::now() + FAST_STOP_MAX });
                for worker in &self.workers {
                    worker.signal(Signal::SIGTERM);
                }
            }
            Stop::Fast { .. } => {
                log::warn!("killing the workers: told to stop a second time by={by}");
                self.kill_workers();
            }
            Stop::Killed => {}
        }
    }

    /// The graceful stop. It does nothing to a stop that is on its way.
    pub(super) fn stop_gracefully(&mut self, by: &str) {
        if self.stop.is_stopping() {
            log::info!("already stopping, nothing changes by={by}");
            return;
        }
        log::info!("stopping gracefully by={by}");
        let deadline = Instant::now() + self.config.worker_shutdown_timeout + CUT_GRACE;
        self.begin_stop(Stop::Graceful { deadline });
        for worker in &mut self.workers {
            worker.order(Stage::Drain);
        }
    }

    fn begin_stop(&mut self, stop: Stop) {
        self.manager.stopping(stop.deadline());
        self.stop = stop;
        self.plan.note(Event::Stop);
        self.abandon_reload();
        self.vacancies.clear();
        for worker in &mut self.workers {
            worker.ready_by = None;
        }
        // The port is free as soon as the workers let go of it, too.
        self.listeners.clear();
    }

    pub(super) fn enforce_stop(&mut self, now: Instant) {
        if self.stop.deadline().is_some_and(|deadline| deadline <= now) {
            log::warn!("killing {} workers that took too long to stop", self.workers.len());
            self.kill_workers();
        }
    }

    fn kill_workers(&mut self) {
        self.stop = Stop::Killed;
        for worker in &self.workers {
            worker.signal(Signal::SIGKILL);
        }
    }
}
