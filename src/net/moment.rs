//! An instant in eight bytes, half of what std's takes: a connection keeps several of
//! them while it rests.

use std::num::NonZeroU64;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Nanoseconds since the process first asked, and one. `Option<Moment>` is as small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(NonZeroU64);

/// What moments count from. An earlier instant becomes this one, and one that is more
/// than five centuries away the last that can be named.
fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    *ORIGIN.get_or_init(Instant::now)
}

impl From<Instant> for Moment {
    fn from(instant: Instant) -> Self {
        let since = instant.saturating_duration_since(origin());
        let nanos = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        Self(NonZeroU64::MIN.saturating_add(nanos))
    }
}

impl From<Moment> for Instant {
    fn from(moment: Moment) -> Self {
        let since = Duration::from_nanos(moment.0.get() - 1);
        origin().checked_add(since).expect("it came from an instant")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_the_instant_that_it_came_from() {
        let now = Instant::now().max(origin());
        for nanos in [0, 1, 999, 1_000_000_007, 86_400_000_000_000] {
            let instant = now + Duration::from_nanos(nanos);
            assert_eq!(Instant::from(Moment::from(instant)), instant);
        }
        assert!(Moment::from(now) < Moment::from(now + Duration::from_nanos(1)));
        assert_eq!(size_of::<Option<Moment>>(), 8);
    }

    #[test]
    fn what_cannot_be_named_becomes_the_nearest_that_can() {
        let origin = origin();
        let before = origin.checked_sub(Duration::from_secs(1)).expect("the machine is older");
        assert_eq!(Instant::from(Moment::from(before)), origin);
        let far = origin + Duration::from_secs(600 * 366 * 86_400);
        let last = Instant::from(Moment::from(far));
        assert!(last < far && last > origin + Duration::from_secs(500 * 366 * 86_400));
    }
}
