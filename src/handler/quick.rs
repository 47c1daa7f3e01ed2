//! Whether a handler that says it is quick is.
//!
//! Quick handlers run on the event loop, where every millisecond is one in which no
//! other connection is served. One that is found to take longer, again and again or
//! for long, is run by the handler threads from then on, until the next reload.
//!
//! To time each call would cost more than many a handler does. The loop looks at the
//! clock once a turn; when the messages of a turn took long, their handlers are
//! *doubted*, and only then are calls timed, so that what is counted is the handler's
//! own doing and not that of a machine which gave the CPU to somebody else.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A quick handler that takes longer is none.
pub const QUICK_TIME_MAX: Duration = Duration::from_micros(200);

/// So much time a quick handler may take from the loop, in calls beyond
/// [`QUICK_TIME_MAX`], in [`WINDOW`].
const STOLEN_MAX: Duration = Duration::from_millis(50);
const WINDOW: Duration = Duration::from_secs(10);

/// So many calls of a doubted handler have to be quick, one after the other, until it
/// is trusted again.
const DOUBTED_CALLS: u32 = 64;

/// How a handler is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// It may run on the event loop.
    Quick,
    /// Likewise, and its calls are timed.
    Doubted,
    /// It does not say that it is quick, or it was demoted.
    Slow,
}

/// See the module. One a handler.
#[derive(Debug)]
pub(super) struct Quickness {
    is_quick: AtomicBool,
    /// How many calls are still to be timed.
    doubted_calls: AtomicU32,
    stolen: Mutex<Stolen>,
}

#[derive(Debug)]
struct Stolen {
    since: Option<Instant>,
    time: Duration,
}

// The atomics order nothing, and a call more or less on the loop, or timed, does not
// matter: all of them are relaxed.
impl Quickness {
    /// As the handler says.
    pub(super) fn new(is_quick: bool) -> Self {
        let stolen = Mutex::new(Stolen { since: None, time: Duration::ZERO });
        let (is_quick, doubted_calls) = (AtomicBool::new(is_quick), AtomicU32::new(0));
        Self { is_quick, doubted_calls, stolen }
    }

    pub(super) fn pace(&self) -> Pace {
        if !self.is_quick.load(Ordering::Relaxed) {
            Pace::Slow
        } else if self.doubted_calls.load(Ordering::Relaxed) == 0 {
            Pace::Quick
        } else {
            Pace::Doubted
        }
    }

    /// A turn with messages of this handler took long.
    pub(super) fn doubt(&self) {
        self.doubted_calls.store(DOUBTED_CALLS, Ordering::Relaxed);
    }

    /// Notes what a call took. True if that was the one too many.
    pub(super) fn took(&self, time: Duration, now: Instant) -> bool {
        if time <= QUICK_TIME_MAX {
            let left = self.doubted_calls.load(Ordering::Relaxed).saturating_sub(1);
            self.doubted_calls.store(left, Ordering::Relaxed);
            return false;
        }
        self.doubt();
        let mut stolen = self.stolen.lock();
        if stolen.since.is_none_or(|since| now.saturating_duration_since(since) > WINDOW) {
            *stolen = Stolen { since: Some(now), time: Duration::ZERO };
        }
        stolen.time += time;
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
            assert!(!quickness.took(2 * MS, now) && quickness.pace() == Pace::Doubted);
        }
        assert!(quickness.took(2 * MS, now) && quickness.pace() == Pace::Slow);
        assert!(!quickness.took(2 * MS, now), "told already");
        assert!(Quickness::new(true).took(51 * MS, now), "one long call is enough");
    }

    #[test]
    fn a_little_longer_than_quick_counts_and_just_quick_does_not() {
        let (quickness, now) = (Quickness::new(true), Instant::now());
        let longer = QUICK_TIME_MAX + Duration::from_nanos(1);
        for _ in 0..STOLEN_MAX.as_micros() / QUICK_TIME_MAX.as_micros() - 1 {
            assert!(!quickness.took(QUICK_TIME_MAX, now), "quick");
            assert!(!quickness.took(longer, now));
        }
        assert!(quickness.took(longer, now), "the bound in all");
    }

    #[test]
    fn now_and_then_is_forgiven() {
        let (quickness, start) = (Quickness::new(true), Instant::now());
        for nth in 0..100 {
            assert!(!quickness.took(40 * MS, start + nth * (WINDOW + MS)));
        }
        assert_ne!(quickness.pace(), Pace::Slow);
    }

    #[test]
    fn doubt_ends_with_so_many_quick_calls_in_a_row() {
        let (quickness, now) = (Quickness::new(true), Instant::now());
        assert_eq!(quickness.pace(), Pace::Quick);
        quickness.doubt();
        for calls in [DOUBTED_CALLS - 1, DOUBTED_CALLS] {
            for _ in 0..calls {
                assert_eq!(quickness.pace(), Pace::Doubted);
                quickness.took(QUICK_TIME_MAX, now);
            }
            if calls < DOUBTED_CALLS {
                quickness.took(QUICK_TIME_MAX + MS, now);
            }
        }
        assert_eq!(quickness.pace(), Pace::Quick);
    }
}
