//! The worker that a service runs in.

use super::Service;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The worker that a service runs in. Cheap to clone, and for any thread.
pub struct Worker<S: Service> {
    inner: Arc<Inner<S>>,
}

struct Inner<S: Service> {
    number: u16,
    generation: u64,
    config: S::Config,
    is_stopping: AtomicBool,
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
    pub(crate) fn new(number: u16, generation: u64, config: S::Config) -> Self {
        let is_stopping = AtomicBool::new(false);
        Self { inner: Arc::new(Inner { number, generation, config, is_stopping }) }
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

    /// Whether it has begun to drain.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.inner.is_stopping.load(Ordering::Relaxed)
    }

    pub(crate) fn begin_stopping(&self) {
        self.inner.is_stopping.store(true, Ordering::Relaxed);
    }
}
