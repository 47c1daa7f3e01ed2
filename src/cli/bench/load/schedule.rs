//! When requests are due. Pure.
//!
//! In a closed loop a reply makes room for the next request: a server that stalls is
//! asked less, and what it did to requests that would have come in that time is not seen.
//! In an open loop requests are due by the clock, whatever the server does, and each
//! is timed from the moment it was due and not from when it could be sent: a stall of
//! a second shows in every request that fell into it.

/// How requests follow one another. Times are nanoseconds of the run's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Schedule {
    /// As soon as there is room.
    Closed,
    /// At a rate a second over all connections, in turn, from a moment on.
    Open { rate: u64, from: u64 },
}

/// A connection's place among the connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub(super) lane: u64,
    pub(super) lanes: u64,
}

const SECOND: u128 = 1_000_000_000;

impl Schedule {
    /// The moment from which request number `sequence` of a connection is timed;
    /// `None` if it is not to be sent yet, or is due after the end.
    pub(super) fn start(self, turn: Turn, sequence: u64, now: u64, end: u64) -> Option<u64> {
        match self {
            Self::Closed => (now < end).then_some(now),
            Self::Open { .. } => {
                let due = self.due(sequence.saturating_mul(turn.lanes) + turn.lane);
                (due <= now && due < end).then_some(due)
            }
        }
    }

    /// When the request of this number, of all connections together, is due.
    pub(super) fn due(self, index: u64) -> u64 {
        match self {
            Self::Closed => 0,
            Self::Open { rate, from } => {
                let after = u128::from(index) * SECOND / u128::from(rate);
                from.saturating_add(u64::try_from(after).unwrap_or(u64::MAX))
            }
        }
    }

    /// The number of the first request, of all connections together, that is due later
    /// than now.
    pub(super) fn first_after(self, now: u64) -> u64 {
        match self {
            Self::Closed => 0,
            Self::Open { from, .. } if now < from => 0,
            Self::Open { rate, from } => {
                let before = u128::from(now - from) * u128::from(rate) / SECOND;
                let mut index = u64::try_from(before).unwrap_or(u64::MAX);
                // A due time is rounded down, so that one more may be due already.
                while self.due(index) <= now {
                    index += 1;
                }
                index
            }
        }
    }

    /// When the requests of a connection were due, from number `sequence` on, that are
    /// due before `end`.
    pub(super) fn missed(self, turn: Turn, sequence: u64, end: u64) -> impl Iterator<Item = u64> {
        let is_open = matches!(self, Self::Open { .. });
        (sequence..)
            .take_while(move |_| is_open)
            .map(move |sequence| self.due(sequence.saturating_mul(turn.lanes) + turn.lane))
            .take_while(move |due| *due < end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Schedule = Schedule::Open { rate: 1000, from: 5_000_000 };
    const FIRST: Turn = Turn { lane: 0, lanes: 2 };
    const SECOND: Turn = Turn { lane: 1, lanes: 2 };

    #[test]
    fn a_closed_loop_starts_at_once_and_not_after_the_end() {
        assert_eq!(Schedule::Closed.start(FIRST, 9, 41, 42), Some(41));
        assert_eq!(Schedule::Closed.start(FIRST, 9, 42, 42), None);
        assert_eq!(Schedule::Closed.missed(FIRST, 0, u64::MAX).count(), 0);
    }

    #[test]
    fn connections_take_turns() {
        let end = u64::MAX;
        assert_eq!(OPEN.start(FIRST, 0, 5_000_000, end), Some(5_000_000));
        assert_eq!(OPEN.start(SECOND, 0, 5_000_000, end), None);
        assert_eq!(OPEN.start(SECOND, 0, 6_000_000, end), Some(6_000_000));
        assert_eq!(OPEN.start(FIRST, 1, 6_999_999, end), None);
    }

    #[test]
    fn a_late_request_is_timed_from_when_it_was_due() {
        // Nothing could be sent for a second: the third request of the second
        // connection was due at 5 ms + 5 × 1 ms all the same.
        assert_eq!(OPEN.start(SECOND, 2, 1_005_000_000, u64::MAX), Some(10_000_000));
        // Due at the end or later: not sent at all.
        assert_eq!(OPEN.start(SECOND, 2, 1_005_000_000, 10_000_000), None);
    }

    #[test]
    fn what_was_due_and_never_sent_can_be_told() {
        let missed: Vec<_> = OPEN.missed(SECOND, 1, 12_000_001).collect();
        assert_eq!(missed, [8_000_000, 10_000_000, 12_000_000]);
        assert_eq!(OPEN.missed(SECOND, 4, 12_000_001).count(), 0);
    }

    #[test]
    fn the_first_that_is_not_due_yet_can_be_found() {
        assert_eq!(OPEN.first_after(0), 0);
        for rate in [1, 3, 7, 30_000, 10_000_000] {
            let schedule = Schedule::Open { rate, from: 11 };
            for now in [11, 12, 100_000, 333_333_344, 1_000_000_011, 77_777_777_777] {
                let index = schedule.first_after(now);
                assert!(schedule.due(index) > now, "rate {rate}, now {now}");
                assert!(schedule.due(index - 1) <= now, "rate {rate}, now {now}");
            }
        }
    }

    #[test]
    fn no_rate_and_no_number_overflows() {
        let slow = Schedule::Open { rate: 1, from: 7 };
        assert_eq!(slow.due(3), 3_000_000_007);
        assert_eq!(slow.due(u64::MAX), u64::MAX);
        assert_eq!(Schedule::Open { rate: 10_000_000, from: 0 }.due(3), 300);
    }
}
