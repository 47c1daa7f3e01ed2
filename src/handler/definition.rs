//! A service without its type: what the command line, the master and a worker need of it.

use super::application::{Application, panic_text};
use super::topics::OfWorker;
use super::{Routes, Service, Worker};
use crate::config::{self, Config, ConfigErrors, Loaded};
use crate::topics::Topics;
use chappe_engine::{Engine, Hooks, Serve};
use chappe_shm::{AppFigures, Catalog, SharedCounters};
use chappe_sys::clock::Moment;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// An application, before there is a worker.
pub(crate) trait Definition: Sync {
    /// Checks `[application]`.
    ///
    /// # Errors
    /// What is wrong, with its place.
    fn check(&self, loaded: &Loaded) -> Result<(), ConfigErrors>;

    /// What is counted of it: the same in all processes, from before the first fork.
    fn catalog(&self) -> Catalog;

    /// Makes the service, in a worker.
    ///
    /// # Errors
    /// Why it cannot start.
    fn start(&self, born: Born<'_>) -> Result<Arc<dyn Running>, String>;
}

/// What an application is started with.
pub(crate) struct Born<'a> {
    pub(crate) number: u16,
    pub(crate) generation: u64,
    pub(crate) config: &'a Config,
    pub(crate) counters: SharedCounters,
    pub(crate) figures: AppFigures,
    pub(crate) engine: &'a Arc<Engine>,
    pub(crate) topics: Option<Arc<Topics>>,
}

/// The application of one worker.
pub(crate) trait Running: Serve {
    /// What it wants to know of connections.
    fn hooks(&self) -> Hooks;

    /// The worker serves.
    fn serving(&self);

    /// When its first timer is due.
    fn next_timer(&self) -> Option<Moment>;

    /// Has the timers run that are due.
    fn run_timers(self: Arc<Self>);

    /// The worker begins to drain.
    fn stopping(self: Arc<Self>);

    /// Whether the application has done what it does then. The loop is woken for it.
    fn has_stopped(&self) -> bool;

    /// What the event loop needs of it.
    fn serve(self: Arc<Self>) -> Arc<dyn Serve>;
}

/// A service with its routes.
pub(crate) struct Defined<S: Service> {
    /// Copied into each worker by the fork.
    pub(crate) routes: Routes<S>,
    /// Without, it is a server that has handlers only.
    pub(crate) has_hooks: bool,
}

impl<S: Service> Definition for Defined<S> {
    fn check(&self, loaded: &Loaded) -> Result<(), ConfigErrors> {
        // A reload checks in the master, which does not end for it.
        let checked = catch_unwind(AssertUnwindSafe(|| {
            let config = loaded.application()?;
            S::check(&config).map_err(|error| loaded.application_fault(&error.to_string()))
        }));
        checked.unwrap_or_else(|panic| {
            let text = format!("its check panicked: {}", panic_text(&*panic));
            Err(loaded.application_fault(&text))
        })
    }

    fn catalog(&self) -> Catalog {
        self.routes.catalog()
    }

    fn start(&self, born: Born<'_>) -> Result<Arc<dyn Running>, String> {
        let Born { number, generation, config, counters, figures, engine, topics } = born;
        let application = config::application(config).map_err(|error| error.to_string())?;
        let engine = Arc::clone(engine);
        let figures_too = figures.clone();
        let worker = {
            let topics = topics.map_or(OfWorker::Off, OfWorker::Hub);
            Worker::new(number, generation, application, engine, figures_too, topics)
        };
        let started = catch_unwind(AssertUnwindSafe(|| S::start(&worker)));
        let service = match started {
            Ok(started) => started.map_err(|error| error.to_string())?,
            Err(panic) => return Err(format!("start panicked: {}", panic_text(&*panic))),
        };
        let listeners = config.listen.iter().map(|listen| listen.address.to_string()).collect();
        let (routes, has_hooks) = (self.routes.clone(), self.has_hooks);
        Ok(Arc::new(Application::new(
            service, routes, worker, listeners, has_hooks, counters, figures,
        )))
    }
}

impl<S: Service> Running for Application<S> {
    fn hooks(&self) -> Hooks {
        match (self.has_hooks, self.has_gate) {
            (false, _) => Hooks::None,
            (true, false) => Hooks::Called,
            (true, true) => Hooks::Gated,
        }
    }

    fn serving(&self) {
        self.worker().timers().begin(Moment::now());
    }

    fn next_timer(&self) -> Option<Moment> {
        self.worker().timers().next()
    }

    fn run_timers(self: Arc<Self>) {
        Self::submit_timers(&self);
    }

    fn stopping(self: Arc<Self>) {
        Self::stop(&self);
    }

    fn has_stopped(&self) -> bool {
        Application::has_stopped(self)
    }

    fn serve(self: Arc<Self>) -> Arc<dyn Serve> {
        self
    }
}
