//! The clock that processes share: `CLOCK_MONOTONIC`.
//!
//! `std::time::Instant` can't be written into shared memory; these numbers can, and they
//! mean the same in the master and in every worker. Any thread may call this.

use nix::time::{ClockId, clock_gettime};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A time in nanoseconds of `CLOCK_MONOTONIC`, clock_gettime(2), which begins near the
/// machine's start and never goes backwards. `Option<Moment>` has the same size.
///
/// A connection keeps several of them; an `Instant` has twice the size, and its arithmetic
/// takes longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(NonZeroU64);

impl Moment {
    /// The present.
    #[must_use]
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
            .expect("CLOCK_MONOTONIC exists on every Linux that can run this program");
        let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
        let nanos = u64::try_from(now.tv_nsec()).unwrap_or(0);
        Self(NonZeroU64::MIN.saturating_add(seconds * 1_000_000_000 + nanos))
    }

    /// The moment that is `later` after this one; `None` beyond some five centuries.
    #[must_use]
    pub fn checked_add(self, later: Duration) -> Option<Self> {
        self.0.checked_add(u64::try_from(later.as_nanos()).ok()?).map(Self)
    }

    /// The time from an earlier moment to this one; zero if `earlier` is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.get().saturating_sub(earlier.0.get()))
    }

    /// The part below a second.
    #[must_use]
    pub fn subsec_nanos(self) -> u32 {
        u32::try_from(self.0.get() % 1_000_000_000).unwrap_or(0)
    }

    /// Whole milliseconds since the clock began.
    #[must_use]
    pub fn millis(self) -> u64 {
        self.0.get() / 1_000_000
    }
}

/// The moment that is `later` after this one, or the last one that can be represented.
impl std::ops::Add<Duration> for Moment {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        self.checked_add(later).unwrap_or(Self(NonZeroU64::MAX))
    }
}

/// A moment that threads share, or none.
#[derive(Debug, Default)]
pub struct SharedMoment(AtomicU64);

impl SharedMoment {
    /// What was set last. Acquire: with what was done before that.
    #[must_use]
    pub fn get(&self) -> Option<Moment> {
        NonZeroU64::new(self.0.load(Ordering::Acquire)).map(Moment)
    }

    /// Sets it.
    pub fn set(&self, moment: Option<Moment>) {
        self.0.store(moment.map_or(0, |moment| moment.0.get()), Ordering::Release);
    }
}

/// Milliseconds since the machine started, never going backwards.
///
/// Never 0, so that shared memory can use 0 for "no time".
#[must_use]
pub fn monotonic_ms() -> u64 {
    Moment::now().millis().max(1)
}

/// Microseconds since the machine started, never going backwards.
#[must_use]
pub fn monotonic_us() -> u64 {
    Moment::now().0.get() / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_ordered_and_exact_to_the_nanosecond() {
        let now = Moment::now();
        assert!(Moment::now() >= now);
        for nanos in [0, 1, 999, 1_000_000_007, 86_400_000_000_000] {
            let time = Duration::from_nanos(nanos);
            assert_eq!((now + time).since(now), time);
            assert_eq!(now.since(now + time), Duration::ZERO);
        }
        let second = Duration::from_secs(1);
        assert_eq!((now + second).subsec_nanos(), now.subsec_nanos());
        let next = (now.subsec_nanos() + 1) % 1_000_000_000;
        assert_eq!((now + Duration::from_nanos(1)).subsec_nanos(), next);
        assert_eq!(size_of::<Option<Moment>>(), 8);
        assert_eq!(now.checked_add(Duration::MAX), None);
        let shared = SharedMoment::default();
        assert_eq!(shared.get(), None);
        shared.set(Some(now));
        assert_eq!(shared.get(), Some(now));
        assert!(now + Duration::MAX > now + Duration::from_secs(500 * 366 * 86_400));
    }
}
