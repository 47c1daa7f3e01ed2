//! How often one and the same warning is said: the first ones at once, the others
//! as a number. A storm of equal lines hides all the other lines, and fills a disk.
//!
//! Pure: it is told what time it is, and says what to do. Whoever warns holds one,
//! for each warning its own.

use std::fmt;
use std::time::{Duration, Instant};

/// How long equal warnings are held back after the first ones.
pub const WINDOW: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub struct Throttle {
    /// How many are said in a window.
    burst: u32,
    since: Option<Instant>,
    said: u32,
    held: u64,
}

/// How many were held back, and in which time. Shows as ` (17 more in the last 10 s)`,
/// or as nothing if there were none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    count: u64,
    seconds: u64,
}

impl Throttle {
    /// Lets `burst` warnings through in each window.
    #[must_use]
    pub const fn new(burst: u32) -> Self {
        Self { burst, since: None, said: 0, held: 0 }
    }

    /// One more. `Some`: say it, and how many were not said before it.
    pub fn admit(&mut self, now: Instant) -> Option<Held> {
        let told = self.settle(now);
        let since = *self.since.get_or_insert(now);
        if self.said < self.burst {
            self.said += 1;
            let seconds = now.saturating_duration_since(since).as_secs();
            return Some(told.unwrap_or(Held { count: 0, seconds }));
        }
        self.held += 1;
        None
    }

    /// At the end of a window: how many were held back in it, if any.
    pub fn settle(&mut self, now: Instant) -> Option<Held> {
        let elapsed = now.saturating_duration_since(self.since?);
        if elapsed < WINDOW {
            return None;
        }
        let held = Held { count: self.held, seconds: elapsed.as_secs() };
        (self.since, self.said, self.held) = (None, 0, 0);
        (held.count > 0).then_some(held)
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            0 => Ok(()),
            count => write!(f, " ({count} more in the last {} s)", self.seconds),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_said_and_the_others_are_a_number() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut throttle = Throttle::new(2);
        let said: Vec<_> = (0..19).filter_map(|_| throttle.admit(start)).collect();
        assert_eq!(said.len(), 2);
        assert!(said.iter().all(|held| held.to_string().is_empty()));
        assert_eq!(throttle.settle(at(9)), None);
        let held = throttle.settle(at(10)).unwrap();
        assert_eq!(held.to_string(), " (17 more in the last 10 s)");
        assert_eq!(throttle.settle(at(20)), None, "told once");
        assert!(throttle.admit(at(20)).unwrap().to_string().is_empty());
    }

    #[test]
    fn a_warning_after_the_window_tells_what_was_held() {
        let start = Instant::now();
        let mut throttle = Throttle::new(1);
        assert!(throttle.admit(start).is_some());
        assert!(throttle.admit(start + Duration::from_secs(3)).is_none());
        let next = throttle.admit(start + Duration::from_secs(12)).unwrap();
        assert_eq!(next.to_string(), " (1 more in the last 12 s)");
        assert!(throttle.admit(start + Duration::from_secs(13)).is_none());
    }
}
