//! The bell alone: nobody sleeps over something that was stored.

use super::{Semaphore, check};
use chappe_rings::Bell;
use chappe_rings::sync::{AtomicU64, Ordering};
use loom::thread;
use std::sync::Arc;

/// One that rings, one that sleeps until it has seen all.
#[test]
fn what_is_stored_before_a_ring_is_seen_after_it() {
    check(3, || {
        let (bell, semaphore) = (Arc::new(Bell::default()), Semaphore::new());
        let stored = Arc::new(AtomicU64::new(0));
        let rings = {
            let (bell, semaphore, stored) = (bell.clone(), semaphore.clone(), stored.clone());
            thread::spawn(move || {
                for value in 1..=2 {
                    stored.store(value, Ordering::Relaxed);
                    bell.ring(|| semaphore.post());
                }
            })
        };
        // A sleep without an end is a deadlock, which loom reports.
        let mut seen = 0;
        while seen != 2 {
            semaphore.wait();
            bell.hear();
            seen = stored.load(Ordering::Relaxed);
        }
        rings.join().expect("it returns");
    });
}

/// As many rings as there are, one permit: a burst costs one wake-up.
#[test]
fn a_bell_that_is_not_heard_posts_once() {
    check(3, || {
        let (bell, semaphore) = (Arc::new(Bell::default()), Semaphore::new());
        bell.ring(|| semaphore.post());
        bell.ring(|| semaphore.post());
        assert!(semaphore.try_wait());
        assert!(!semaphore.try_wait());
        assert!(bell.hear());
        assert!(!bell.hear());
    });
}
