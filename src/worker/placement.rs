//! On which CPU the threads of a worker run, and how the kernel schedules them.
//!
//! A thread that is woken on another CPU costs more than most of what it then does. At
//! *home*, event loop, send thread and the first handler thread share the worker's CPU and
//! take turns on it; the other handler threads may run anywhere.

use chappe_sys::limits;

use crate::config::{Config, ThreadPlacement};
use crate::dispatch::Wake;

/// What [`ThreadPlacement`] and `sched_batch` mean for this worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placement {
    home: Option<usize>,
    batch: bool,
}

/// Where a thread belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Home,
    Anywhere,
}

impl Placement {
    /// Of worker `number`. Where the kernel says no, it places the threads itself.
    pub(super) fn new(config: &Config, number: u16) -> Self {
        let home = match config.worker.thread_placement {
            ThreadPlacement::Free => None,
            ThreadPlacement::Home => limits::cpu_of(number).map_or_else(
                |error| {
                    log::warn!("worker.thread_placement has no effect: {error}");
                    None
                },
                Some,
            ),
        };
        Self { home, batch: config.worker.sched_batch }
    }

    /// Whether helpers have to be worth it.
    pub(super) fn wake(&self) -> Wake {
        if self.home.is_some() { Wake::Home } else { Wake::Any }
    }

    /// Puts this thread in its place.
    pub(super) fn settle(&self, place: Place) {
        let bound = match (self.home, place) {
            (Some(cpu), Place::Home) => limits::bind_to_cpu(cpu),
            (Some(_), Place::Anywhere) | (None, _) => Ok(()),
        };
        if let Err(error) = bound {
            log::warn!("worker.thread_placement has no effect on a thread: {error}");
        }
        if self.batch
            && let Err(error) = limits::schedule_as_batch()
        {
            log::warn!("worker.sched_batch has no effect on a thread: {error}");
        }
    }
}
