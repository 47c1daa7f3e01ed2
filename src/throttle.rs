//! Limits how often the same warning is logged: the first ones are logged at once, of the
//! others only the number. A storm of equal lines hides all other lines, and fills a disk.
//!
//! Callers pass the time, and log what is admitted. Each warning has a throttle of its own.

use chappe_sys::clock::Moment;
use std::fmt;
use std::time::Duration;

/// How long equal warnings are held back after the first ones.
pub(crate) const WINDOW: Duration = Duration::from_secs(10);

/// Limits how often one warning is logged: in each [`WINDOW`] the first few are admitted,
/// the others are counted.
#[derive(Debug)]
pub(crate) struct Throttle {
    /// Warnings that are admitted in a window.
    burst: u32,
    /// When the window began.
    since: Option<Moment>,
    /// Warnings of this window that were admitted.
    admitted: u32,
    /// Warnings of this window that were held back.
    held: u64,
}

/// How many warnings were held back, and in which time. Displayed as
/// ` (17 more in the last 10 s)`, or as nothing if there were none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    count: u64,
    seconds: u64,
}

impl Throttle {
    /// Lets `burst` warnings through in each window.
    #[must_use]
    pub(crate) const fn new(burst: u32) -> Self {
        Self { burst, since: None, admitted: 0, held: 0 }
    }

    /// One more warning. `Some`: log it, with what was held back in the last window.
    pub(crate) fn admit(&mut self, now: Moment) -> Option<Held> {
        let held = self.settle(now);
        let since = *self.since.get_or_insert(now);
        if self.admitted < self.burst {
            self.admitted += 1;
            let seconds = now.since(since).as_secs();
            return Some(held.unwrap_or(Held { count: 0, seconds }));
        }
        self.held += 1;
        None
    }

    /// Logs how many warnings were held back, once their time is over.
    pub(crate) fn tell_held(&mut self, event: &str, what: &str, now: Moment) {
        if let Some(held) = self.settle(now) {
            log::warn!(target: event, "{what}{held}");
        }
    }

    /// Ends a window that is over. Returns how many warnings were held back in it, if any.
    fn settle(&mut self, now: Moment) -> Option<Held> {
        let elapsed = now.since(self.since?);
        if elapsed < WINDOW {
            return None;
        }
        let held = Held { count: self.held, seconds: elapsed.as_secs() };
        (self.since, self.admitted, self.held) = (None, 0, 0);
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
    fn the_first_are_admitted_and_the_others_are_counted() {
        let start = Moment::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut throttle = Throttle::new(2);
        let admitted: Vec<_> = (0..19).filter_map(|_| throttle.admit(start)).collect();
        assert_eq!(admitted.len(), 2);
        assert!(admitted.iter().all(|held| held.to_string().is_empty()));
        assert_eq!(throttle.settle(at(9)), None);
        let held = throttle.settle(at(10)).unwrap();
        assert_eq!(held.to_string(), " (17 more in the last 10 s)");
        assert_eq!(throttle.settle(at(20)), None, "reported already");
        assert!(throttle.admit(at(20)).unwrap().to_string().is_empty());
    }

    #[test]
    fn a_warning_after_the_window_has_the_number_of_those_held_back() {
        let start = Moment::now();
        let mut throttle = Throttle::new(1);
        assert!(throttle.admit(start).is_some());
        assert!(throttle.admit(start + Duration::from_secs(3)).is_none());
        let next = throttle.admit(start + Duration::from_secs(12)).unwrap();
        assert_eq!(next.to_string(), " (1 more in the last 12 s)");
        assert!(throttle.admit(start + Duration::from_secs(13)).is_none());
    }
}
