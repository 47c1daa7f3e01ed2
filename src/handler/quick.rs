//! Whether a handler that says that it is quick really is.
//!
//! Quick handlers run on the event loop, which serves no other connection in the
//! meantime. A handler that is found to take longer, often or for long, is *demoted*: from
//! then on the handler threads run it, until the next reload.
//!
//! Timing each call would cost as much as many handlers do. So only when a turn of the
//! loop took long are the handlers of its messages *suspect*, and their next calls timed.

use chappe_engine::{Pace, QUICK_TIME_MAX};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Loop time a quick handler may use per [`WINDOW`], in calls beyond [`QUICK_TIME_MAX`].
const LONG_CALLS_TIME_MAX: Duration = Duration::from_millis(50);
/// Time after which earlier long calls and suspicions no longer count.
const WINDOW: Duration = Duration::from_secs(10);

/// Calls that are timed at the first suspicion in a [`WINDOW`]. Each further suspicion
/// doubles the number: if one call of many is slow, it will be among the timed ones.
const TIMED_CALLS: u32 = 64;
/// The most calls that are timed per [`WINDOW`]: on a machine that is short of CPUs any
/// turn may seem long. At a microsecond a call this is a hundredth of the time.
const TIMED_CALLS_MAX: u32 = 100_000;

/// Whether one handler is quick, and what speaks against it.
#[derive(Debug)]
pub(super) struct Quickness {
    is_quick: AtomicBool,
    /// Calls that are still to be timed.
    calls_to_time: AtomicU32,
    evidence: Mutex<Evidence>,
}

/// What speaks against a handler since a [`WINDOW`] began.
#[derive(Debug, Default)]
struct Evidence {
    since: Option<Instant>,
    /// Time of the calls beyond [`QUICK_TIME_MAX`].
    long_calls_time: Duration,
    suspicions: u32,
    /// Calls that were to be timed because of these suspicions.
    timed_calls: u32,
}

impl Evidence {
    /// Drops what is older than a [`WINDOW`].
    fn refresh(&mut self, now: Instant) {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) > WINDOW) {
            *self = Self { since: Some(now), ..Self::default() };
        }
    }
}

// The atomics order nothing, and it does not matter whether one call more or less runs on
// the loop or is timed: all of them are relaxed.
impl Quickness {
    /// `is_quick` is the handler's own statement.
    pub(super) fn new(is_quick: bool) -> Self {
        let (is_quick, calls_to_time) = (AtomicBool::new(is_quick), AtomicU32::new(0));
        Self { is_quick, calls_to_time, evidence: Mutex::default() }
    }

    /// Where the handler may run now.
    pub(super) fn pace(&self) -> Pace {
        if !self.is_quick.load(Ordering::Relaxed) {
            Pace::Slow
        } else if self.calls_to_time.load(Ordering::Relaxed) == 0 {
            Pace::Quick
        } else {
            Pace::Suspect
        }
    }

    /// Makes the handler suspect: a turn with messages for it took long.
    pub(super) fn suspect(&self, now: Instant) {
        let mut evidence = self.evidence.lock();
        evidence.refresh(now);
        let calls = TIMED_CALLS.saturating_mul(1 << evidence.suspicions.min(16));
        let calls = calls.min(TIMED_CALLS_MAX - evidence.timed_calls);
        evidence.suspicions += 1;
        evidence.timed_calls += calls;
        self.calls_to_time.fetch_max(calls, Ordering::Relaxed);
    }

    /// Records the time of a call. Returns true if it demotes the handler.
    pub(super) fn record(&self, time: Duration, now: Instant) -> bool {
        if time <= QUICK_TIME_MAX {
            let left = self.calls_to_time.load(Ordering::Relaxed).saturating_sub(1);
            self.calls_to_time.store(left, Ordering::Relaxed);
            return false;
        }
        let mut evidence = self.evidence.lock();
        evidence.refresh(now);
        evidence.long_calls_time += time;
        let is_too_much = evidence.long_calls_time > LONG_CALLS_TIME_MAX;
        is_too_much && self.is_quick.swap(false, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn too_much_in_a_window_demotes_once() {
        let (quickness, now) = (Quickness::new(true), Instant::now());
        for _ in 0..25 {
            assert!(!quickness.record(2 * MS, now) && quickness.pace() == Pace::Quick);
        }
        assert!(quickness.record(2 * MS, now) && quickness.pace() == Pace::Slow);
        assert!(!quickness.record(2 * MS, now), "demoted already");
        assert!(Quickness::new(true).record(51 * MS, now), "one long call is enough");
    }

    #[test]
    fn a_little_longer_than_quick_counts_and_just_quick_does_not() {
        let (quickness, now) = (Quickness::new(true), Instant::now());
        let longer = QUICK_TIME_MAX + Duration::from_nanos(1);
        for _ in 0..LONG_CALLS_TIME_MAX.as_micros() / QUICK_TIME_MAX.as_micros() - 1 {
            assert!(!quickness.record(QUICK_TIME_MAX, now), "quick");
            assert!(!quickness.record(longer, now));
        }
        assert!(quickness.record(longer, now), "the bound in all");
    }

    #[test]
    fn one_long_call_per_window_does_not_demote() {
        let (quickness, start) = (Quickness::new(true), Instant::now());
        for nth in 0..100 {
            assert!(!quickness.record(40 * MS, start + nth * (WINDOW + MS)));
        }
        assert_ne!(quickness.pace(), Pace::Slow);
    }

    /// Whether `calls` calls in one window demote a handler. Every `slow_each`th takes 40 ms,
    /// and makes it suspect.
    fn is_found(slow_each: u32, calls: u32) -> bool {
        let (quickness, now) = (Quickness::new(true), Instant::now());
        (0..calls).any(|nth| {
            let (is_slow, pace) = (nth % slow_each == 0, quickness.pace());
            let took = if is_slow { 40 * MS } else { Duration::ZERO };
            let is_demoted = pace == Pace::Suspect && quickness.record(took, now);
            if is_slow {
                quickness.suspect(now);
            }
            is_demoted
        })
    }

    #[test]
    fn one_slow_call_of_many_is_found() {
        assert!(is_found(1, 3), "two that were timed are enough");
        assert!(is_found(100, 1000));
        assert!(is_found(2000, 100_000));
        assert!(!is_found(100_000, 1_000_000), "it is too rare to be found");
    }

    #[test]
    fn each_suspicion_doubles_the_timed_calls_up_to_a_bound() {
        let (quickness, start) = (Quickness::new(true), Instant::now());
        let timed_until_trusted = |at| {
            let mut calls = 0;
            while quickness.pace() == Pace::Suspect {
                quickness.record(QUICK_TIME_MAX, at);
                calls += 1;
            }
            calls
        };
        let mut all = 0;
        for suspicion in 0..20 {
            quickness.suspect(start);
            let timed = timed_until_trusted(start);
            let left = TIMED_CALLS_MAX - all;
            assert_eq!(timed, (TIMED_CALLS << suspicion).min(left), "suspicion {suspicion}");
            all += timed;
        }
        assert_eq!(all, TIMED_CALLS_MAX);
        let later = start + WINDOW + MS;
        quickness.suspect(later);
        assert_eq!(timed_until_trusted(later), TIMED_CALLS, "another window");
    }
}
