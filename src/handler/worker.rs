//! The worker that a service runs in.

use super::timers::Timers;
use super::{Counter, Outcome, Service};
use chappe_engine::Engine;
use chappe_shm::AppFigures;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The worker that a service runs in. Cheap to clone, and for any thread.
pub struct Worker<S: Service> {
    inner: Arc<Inner<S>>,
}

struct Inner<S: Service> {
    number: u16,
    generation: u64,
    config: S::Config,
    is_stopping: AtomicBool,
    timers: Timers<S>,
    engine: Arc<Engine>,
    figures: AppFigures,
}

impl<S: Service> Clone for Worker<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<S: Service> std::fmt::Debug for Worker<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Inner { number, generation, .. } = &*self.inner;
        f.debug_struct("Worker").field("number", number).field("generation", generation).finish()
    }
}

impl<S: Service> Worker<S> {
    pub(crate) fn new(
        number: u16,
        generation: u64,
        config: S::Config,
        engine: Arc<Engine>,
        figures: AppFigures,
    ) -> Self {
        let (is_stopping, timers) = (AtomicBool::new(false), Timers::new());
        let inner = Inner { number, generation, config, is_stopping, timers, engine, figures };
        Self { inner: Arc::new(inner) }
    }

    /// Its number, from 0. A worker that replaces another one has its number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.inner.number
    }

    /// Which generation of workers it belongs to, from 1: each reload makes one.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.inner.generation
    }

    /// The `[application]` table of its generation.
    #[must_use]
    pub fn config(&self) -> &S::Config {
        &self.inner.config
    }

    /// The counter that [`Service::routes`] has named so. Looks the name up, so that what
    /// counts often has it once and keeps it.
    ///
    /// # Panics
    /// If no counter has this name: a mistake in the program.
    #[must_use]
    #[track_caller]
    pub fn counter(&self, name: &str) -> Counter {
        let figures = &self.inner.figures;
        let inner = figures.counter(name).unwrap_or_else(|| {
            let names = figures.catalog().counters();
            panic!("no counter {name:?} is named in `routes`, which has {names:?}")
        });
        Counter { inner }
    }

    /// Whether it has begun to drain.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.inner.is_stopping.load(Ordering::Relaxed)
    }

    /// Runs `action` each `period`, for the first time a period from now, or, if the worker
    /// does not serve yet, from when it does. It runs on a handler thread, in each worker that
    /// asks for it, until the worker begins to drain.
    ///
    /// There is never more than one run of it at a time: a tick that comes while it runs is
    /// skipped, and counted as `timer_ticks_missed`. So are ticks that the worker was too late
    /// for. An error or a panic is logged and counted (`handler_errors`, `handler_panics`), and
    /// the next tick comes as usual. The shortest period is a millisecond.
    ///
    /// ```
    /// # use chappe::{Service, StartError, Worker};
    /// # use std::time::Duration;
    /// fn start<S: Service>(worker: &Worker<S>) {
    ///     if worker.number() == 0 {
    ///         worker.every(Duration::from_secs(60), |_service, worker| {
    ///             println!("a minute more of generation {}", worker.generation());
    ///             Ok(())
    ///         });
    ///     }
    /// }
    /// ```
    pub fn every<F>(&self, period: Duration, action: F)
    where
        F: Fn(&S, &Self) -> Outcome + Send + Sync + 'static,
    {
        if self.inner.timers.every(period, Box::new(action)) {
            self.wake_loop();
        }
    }

    /// Runs `action` once, after `delay`; else as [`Worker::every`]. What is still to come
    /// when the worker begins to drain does not run.
    pub fn after<F>(&self, delay: Duration, action: F)
    where
        F: Fn(&S, &Self) -> Outcome + Send + Sync + 'static,
    {
        if self.inner.timers.after(delay, Box::new(action)) {
            self.wake_loop();
        }
    }

    pub(super) fn timers(&self) -> &Timers<S> {
        &self.inner.timers
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    /// The event loop looks at what has changed.
    pub(super) fn wake_loop(&self) {
        self.inner.engine.calls().waker().wake();
    }

    pub(super) fn begin_stopping(&self) {
        self.inner.is_stopping.store(true, Ordering::Relaxed);
        self.inner.timers.stop();
    }
}
