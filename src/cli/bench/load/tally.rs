//! What a run counts: the latencies of the measured window, replies, faults. Pure.

use hdrhistogram::Histogram;

use super::fault::{Fault, Faults};

/// The longest latency that is distinguished from longer ones: an hour, in nanoseconds.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;
/// Three digits: 1.234 ms and 1.235 ms are two values.
const DIGITS: u8 = 3;

/// Counted as it goes.
#[derive(Debug)]
pub(super) struct Tally {
    /// Nanoseconds, of requests that started in the window.
    pub(super) latencies: Histogram<u64>,
    pub(super) faults: Faults,
    /// Right replies, since the tally was made.
    pub(super) answered: u64,
    /// Right replies to requests of the window.
    pub(super) replies: u64,
    /// Frames of another code than replies have: what an application pushes.
    pub(super) unasked: u64,
    /// Requests that start from here on are measured.
    pub(super) window_from: u64,
    /// The latest that a request was sent after it was due, in the window.
    pub(super) late_ns_max: u64,
}

impl Tally {
    pub(super) fn new() -> Self {
        let latencies = Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS);
        Self {
            latencies: latencies.expect("bounds that a histogram can have"),
            faults: Faults::default(),
            answered: 0,
            replies: 0,
            unasked: 0,
            // Nothing is measured before the window is known.
            window_from: u64::MAX,
            late_ns_max: 0,
        }
    }

    /// A request was sent that should have been sent at `start`.
    pub(super) fn sent(&mut self, start: u64, now: u64) {
        if start >= self.window_from {
            self.late_ns_max = self.late_ns_max.max(now.saturating_sub(start));
        }
    }

    /// A right reply came at `now`, to a request that started at `start`.
    pub(super) fn reply(&mut self, start: u64, now: u64) {
        self.answered += 1;
        self.replies += u64::from(start >= self.window_from);
        self.time(start, now);
    }

    /// The window ended, and a reply had not come by `now`: it takes that long at
    /// least. To leave it out would be to leave out the worst.
    pub(super) fn unanswered(&mut self, start: u64, now: u64) {
        self.faults.add(Fault::Unanswered, || "no reply before the run's end".to_owned());
        self.time(start, now);
    }

    pub(super) fn fault(&mut self, fault: Fault, text: impl FnOnce() -> String) {
        self.faults.add(fault, text);
    }

    fn time(&mut self, start: u64, now: u64) {
        if start >= self.window_from {
            self.latencies.saturating_record(now.saturating_sub(start).max(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_of_the_window_are_timed() {
        let mut tally = Tally::new();
        tally.reply(1, 5);
        tally.window_from = 100;
        tally.reply(99, 300);
        assert_eq!(tally.latencies.len(), 0);
        tally.reply(100, 300);
        tally.reply(150, 1150);
        assert_eq!((tally.latencies.len(), tally.replies, tally.answered), (2, 2, 4));
        assert_eq!((tally.latencies.min(), tally.latencies.max()), (200, 1000));
    }

    #[test]
    fn a_reply_that_never_came_counts_as_long_as_it_was_waited_for() {
        let mut tally = Tally::new();
        tally.window_from = 0;
        tally.unanswered(1_000, 5_000_001_000);
        assert!(tally.latencies.max() >= 5_000_000_000);
        let faults: Vec<_> = tally.faults.iter().map(|(fault, count, _)| (fault, count)).collect();
        assert_eq!(faults, [(Fault::Unanswered, 1)]);
        assert_eq!(tally.answered, 0);
    }

    #[test]
    fn how_late_requests_were_sent_is_kept() {
        let mut tally = Tally::new();
        tally.sent(0, 1_000);
        tally.window_from = 10;
        tally.sent(20, 25);
        tally.sent(30, 130);
        tally.sent(40, 41);
        assert_eq!(tally.late_ns_max, 100);
    }
}
