//! The worker that a service runs in.

use super::timers::Timers;
use super::topics::OfWorker;
use super::{Counter, Outcome, Service};
use chappe_engine::Engine;
use chappe_shm::AppFigures;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The worker that a service runs in. Cheap to clone, and for any thread.
///
/// ```
/// # use chappe::*;
/// /// For `start`: a thread of the service's own, beside those of the server.
/// fn watch<S: Service>(worker: &Worker<S>) {
///     let worker = worker.clone();
///     std::thread::spawn(move || {
///         while !worker.is_stopping() {
///             // … waits for something, for a second at most
/// #           break;
///         }
///     });
/// }
/// # watch(&testing::worker::<()>(NoConfig {}));
/// ```
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
    topics: OfWorker,
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
        topics: OfWorker,
    ) -> Self {
        let (is_stopping, timers) = (AtomicBool::new(false), Timers::new());
        let inner =
            Inner { number, generation, config, is_stopping, timers, engine, figures, topics };
        Self { inner: Arc::new(inner) }
    }

    /// Its number, from 0. A worker that replaces another one has its number.
    ///
    /// While a reload goes on two workers have it: the new one, and the one that drains.
    ///
    /// ```
    /// # use chappe::*;
    /// # let worker = testing::worker::<()>(NoConfig {});
    /// // A file of its own for each worker, in a reload too.
    /// let path = format!("journal-{}-{}.log", worker.generation(), worker.number());
    /// assert_eq!(path, "journal-1-0.log");
    /// ```
    #[must_use]
    pub fn number(&self) -> u16 {
        self.inner.number
    }

    /// Which generation of workers it belongs to, from 1: each reload makes one.
    ///
    /// ```
    /// # use chappe::*;
    /// # let worker = testing::worker::<()>(NoConfig {});
    /// log::info!("worker {} of generation {} starts", worker.number(), worker.generation());
    /// assert_eq!(worker.generation(), 1);
    /// ```
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.inner.generation
    }

    /// The `[application]` table of its generation.
    ///
    /// ```
    /// # use chappe::*;
    /// # #[derive(serde::Deserialize)]
    /// # struct Config { greeting: String }
    /// # struct App;
    /// # impl Service for App {
    /// #     type Config = Config;
    /// #     type State = ();
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
    /// #     fn routes(routes: &mut Routes<Self>) { routes.on(16, greet); }
    /// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
    /// # }
    /// fn greet(_: &App, _: &mut (), call: &mut Call<'_, App>) -> Outcome {
    ///     call.reply(16, call.worker().config().greeting.as_bytes())
    /// }
    ///
    /// testing::worker::<App>(Config { greeting: "hello".to_owned() });
    /// assert_eq!(testing::call(&App, &mut (), 16, b"").replies, [(16, b"hello".to_vec())]);
    /// ```
    #[must_use]
    pub fn config(&self) -> &S::Config {
        &self.inner.config
    }

    /// The counter that [`Service::routes`] has named so. Looks the name up, so that what
    /// counts often has it once and keeps it.
    ///
    /// ```should_panic
    /// # use chappe::*;
    /// # struct App;
    /// # impl Service for App {
    /// #     type Config = NoConfig;
    /// #     type State = ();
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
    /// #     fn routes(routes: &mut Routes<Self>) { routes.counter("logins"); }
    /// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
    /// # }
    /// let worker = testing::worker::<App>(NoConfig {});
    /// // Named in `routes`, by `routes.counter("logins")`.
    /// worker.counter("logins").add(1);
    /// let _ = worker.counter("login"); // misspelt: panics
    /// ```
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
    ///
    /// ```
    /// # use chappe::*;
    /// fn compact<S: Service>(worker: &Worker<S>, files: &[&str]) {
    ///     for file in files {
    ///         if worker.is_stopping() {
    ///             return; // the rest is for the worker that comes next
    ///         }
    ///         // … takes some seconds for each
    ///     }
    /// }
    /// # compact(&testing::worker::<()>(NoConfig {}), &["a"]);
    /// ```
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
    /// A timer cannot be taken back, and there is no limit to their number: make them in `start`;
    /// one that may end is an [`after`](Worker::after) that makes the next.
    ///
    /// ```
    /// # use chappe::{Service, StartError, Worker};
    /// # use std::time::Duration;
    /// fn start<S: Service>(worker: &Worker<S>) {
    ///     if worker.number() == 0 {
    ///         worker.every(Duration::from_secs(60), |_service, worker| {
    ///             log::info!("a minute more of generation {}", worker.generation());
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
    /// when the worker begins to drain does not run. A delay of zero runs it as soon as a handler
    /// thread is free.
    ///
    /// ```
    /// # use chappe::*;
    /// # use std::time::Duration;
    /// /// Tries again later, twice as late each time.
    /// fn ask<S: Service>(worker: &Worker<S>, pause: Duration) {
    ///     worker.after(pause, move |_service, worker| {
    ///         log::info!("asks the other server");
    ///         ask(worker, pause * 2);
    ///         Ok(())
    ///     });
    /// }
    /// # ask(&testing::worker::<()>(NoConfig {}), Duration::from_millis(100));
    /// ```
    pub fn after<F>(&self, delay: Duration, action: F)
    where
        F: Fn(&S, &Self) -> Outcome + Send + Sync + 'static,
    {
        if self.inner.timers.after(delay, Box::new(action)) {
            self.wake_loop();
        }
    }

    pub(super) fn topics(&self) -> &OfWorker {
        &self.inner.topics
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
