//! Whether a handler that says it is quick is.
//!
//! Quick handlers run on the event loop, where every millisecond is one in which no
//! other connection is served. One that is found to take longer, again and again or
//! for long, is run by the handler threads from then on, until the next reload.
//!
//! To time each call would cost as much as many a handler. So only when a turn of the
//! loop took long are the handlers of its messages *doubted*, and their next calls timed.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A quick handler that takes longer is none.
pub const QUICK_TIME_MAX: Duration = Duration::from_micros(200);

/// So much time a quick handler may take from the loop, in calls beyond
/// [`QUICK_TIME_MAX`], in [`WINDOW`].
const STOLEN_MAX: Duration = Duration::from_millis(50);
const WINDOW: Duration = Duration::from_secs(10);

/// So many calls are timed at the first doubt in [`WINDOW`], and twice as many at each
/// further one: who is slow in one call of many is met by one of them.
const DOUBTED_CALLS: u32 = 64;
/// And no more than that in [`WINDOW`]: on a machine that is short of CPUs any turn may
/// seem long. It is a hundredth of the time, at a microsecond a call.
const DOUBTED_CALLS_MAX: u32 = 100_000;

/// Where a handler may run.
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
    record: Mutex<Record>,
}

/// What has been held against it since a window began.
#[derive(Debug, Default)]
struct Record {
    since: Option<Instant>,
    stolen: Duration,
    doubts: u32,
    doubted_calls: u32,
}

impl Record {
    fn begin_window(&mut self, now: Instant) {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) > WINDOW) {
            *self = Self { since: Some(now), ..Self::default() };
        }
    }

    /// How many calls are to be timed.
    fn doubt(&mut self) -> u32 {
        let calls = DOUBTED_CALLS.saturating_mul(1 << self.doubts.min(16));
        let calls = calls.min(DOUBTED_CALLS_MAX - self.doubted_calls);
        self.doubts += 1;
        self.doubted_calls += calls;
        calls
    }
}

// The atomics order nothing, and a call more or less on the loop, or timed, does not
// matter: all of them are relaxed.
impl Quickness {
    /// As the handler says.
    pub(super) fn new(is_quick: bool) -> Self {
        let (is_quick, doubted_calls) = (AtomicBool::new(is_quick), AtomicU32::new(0));
        Self { is_quick, doubted_calls, record: Mutex::default() }
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
    pub(super) fn doubt(&self, now: Instant) {
        let mut record = self.record.lock();
        record.begin_window(now);
        let calls = record.doubt();
        self.doubted_calls.fetch_max(calls, Ordering::Relaxed);
    }

    /// Notes what a call took. True if that was the one too many.
    pub(super) fn took(&self, time: Duration, now: Instant) -> bool {
        if time <= QUICK_TIME_MAX {
            let left = self.doubted_calls.load(Ordering::Relaxed).saturating_sub(1);
            self.doubted_calls.store(left, Ordering::Relaxed);
            return false;
        }
        let mut record = self.record.lock();
        record.begin_window(now);
        record.stolen += time;
        record.stolen > STOLEN_MAX && self.is_quick.swap(false, Ordering::Relaxed)
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
            assert!(!quickness.took(2 * MS, now) && quickness.pace() == Pace::Quick);
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

    /// Whether it is demoted by so many calls in one window, of which every `slow_each`th
    /// takes 40 ms, and a turn with it seems long.
    fn is_found(slow_each: u32, calls: u32) -> bool {
        let (quickness, now) = (Quickness::new(true), Instant::now());
        (0..calls).any(|nth| {
            let (is_slow, pace) = (nth % slow_each == 0, quickness.pace());
            let took = if is_slow { 40 * MS } else { Duration::ZERO };
            let is_demoted = pace == Pace::Doubted && quickness.took(took, now);
            if is_slow {
                quickness.doubt(now);
            }
            is_demoted
        })
    }

    #[test]
    fn one_slow_call_of_many_is_met() {
        assert!(is_found(1, 3), "two that were timed are enough");
        assert!(is_found(100, 1000));
        assert!(is_found(2000, 100_000));
        assert!(!is_found(100_000, 1_000_000), "as rare as that it is not looked for");
    }

    #[test]
    fn doubts_double_within_a_window_and_have_a_bound() {
        let (quickness, start) = (Quickness::new(true), Instant::now());
        let timed_until_trusted = |at| {
            let mut calls = 0;
            while quickness.pace() == Pace::Doubted {
                quickness.took(QUICK_TIME_MAX, at);
                calls += 1;
            }
            calls
        };
        let mut all = 0;
        for doubts in 0..20 {
            quickness.doubt(start);
            let timed = timed_until_trusted(start);
            let left = DOUBTED_CALLS_MAX - all;
            assert_eq!(timed, (DOUBTED_CALLS << doubts).min(left), "doubt {doubts}");
            all += timed;
        }
        assert_eq!(all, DOUBTED_CALLS_MAX);
        let later = start + WINDOW + MS;
        quickness.doubt(later);
        assert_eq!(timed_until_trusted(later), DOUBTED_CALLS, "another window");
    }
}
