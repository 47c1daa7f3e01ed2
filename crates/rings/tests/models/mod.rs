//! What models share: small rings, and a semaphore that can be looked at.

mod bell;
mod broadcast;
mod queue;

use chappe_rings::sync::{AtomicU64, Words};
use loom::sync::{Condvar, Mutex};
use std::sync::Arc;

/// Runs a model with at most `preemptions`: what goes wrong, goes wrong with few.
fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(model);
}

fn words(count: usize) -> Words {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

/// A semaphore as processes share it.
#[derive(Default)]
struct Semaphore {
    permits: Mutex<usize>,
    posted: Condvar,
}

impl Semaphore {
    fn new() -> Arc<Self> {
        Arc::new(Self { permits: Mutex::new(0), posted: Condvar::new() })
    }

    fn post(&self) {
        *self.permits.lock().expect("no model panics under a lock") += 1;
        self.posted.notify_one();
    }

    /// Sleeps forever if no permit comes, which loom reports as a deadlock.
    fn wait(&self) {
        let mut permits = self.permits.lock().expect("no model panics under a lock");
        while *permits == 0 {
            permits = self.posted.wait(permits).expect("no model panics under a lock");
        }
        *permits -= 1;
    }

    fn try_wait(&self) -> bool {
        let mut permits = self.permits.lock().expect("no model panics under a lock");
        let is_there = *permits > 0;
        *permits -= usize::from(is_there);
        is_there
    }
}
