//! Whether a handler that says it is quick is.
//!
//! Quick handlers run on the event loop, where every millisecond is one in which no
//! other connection is served. One that is found to take longer, again and again or
//! once for long, is run by the handler threads from then on, until the next reload.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// So much time a quick handler may take from the loop, in calls beyond a millisecond,
/// in [`WINDOW`]. A thread that the kernel puts aside in the middle of a handler looks
/// slow too, so once is not enough.
const STOLEN_MAX: Duration = Duration::from_millis(50);
const WINDOW: Duration = Duration::from_secs(10);

/// See the module. One a handler.
#[derive(Debug)]
pub(super) struct Quickness {
    is_quick: AtomicBool,
    stolen: Mutex<Stolen>,
}

#[derive(Debug)]
struct Stolen {
    since: Option<Instant>,
    time: Duration,
}

impl Quickness {
    /// As the handler says.
    pub(super) fn new(is_quick: bool) -> Self {
        let stolen = Mutex::new(Stolen { since: None, time: Duration::ZERO });
        Self { is_quick: AtomicBool::new(is_quick), stolen }
    }

    pub(super) fn is_quick(&self) -> bool {
        // Relaxed: it orders nothing, a call or two more on the loop do not matter.
        self.is_quick.load(Ordering::Relaxed)
    }

    /// Notes a call that took long. True if that was the one too many.
    pub(super) fn was_slow(&self, took: Duration, now: Instant) -> bool {
        let mut stolen = self.stolen.lock();
        if stolen.since.is_none_or(|since| now.saturating_duration_since(since) > WINDOW) {
            *stolen = Stolen { since: Some(now), time: Duration::ZERO };
        }
        stolen.time += took;
        stolen.time > STOLEN_MAX && self.is_quick.swap(false, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn too_much_in_a_window_is_the_end_and_is_told_once() {
        let (quickness, now) = (Quickness::new(true), Instant::now());
        for _ in 0..25 {
            assert!(!quickness.was_slow(2 * MS, now) && quickness.is_quick());
        }
        assert!(quickness.was_slow(2 * MS, now) && !quickness.is_quick());
        assert!(!quickness.was_slow(2 * MS, now), "told already");
        assert!(Quickness::new(true).was_slow(51 * MS, now), "one long call is enough");
    }

    #[test]
    fn now_and_then_is_forgiven() {
        let (quickness, start) = (Quickness::new(true), Instant::now());
        for nth in 0..100 {
            assert!(!quickness.was_slow(40 * MS, start + nth * (WINDOW + MS)));
        }
        assert!(quickness.is_quick());
    }
}
