//! All that the master has to do at some time, in one queue: the loop sleeps until the
//! first of them, takes what is due, and does it. What is not in here is never forgotten
//! and never spins, since there is no second place to look.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use nix::unistd::Pid;

/// What is to be done. Each has one time at most. The order is that in which they are done
/// when they are due together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    /// The service manager gets a sign of life.
    Ping,
    /// The server has taken too long to stop.
    Stop,
    /// This worker was told to leave, and is killed if it is still there.
    Leave(Pid),
    /// A reload tries once more to have an address.
    Address,
    /// The workers of the generation that a reload makes ready have had their time.
    Candidate,
    /// This worker has had its time to get ready.
    Ready(Pid),
    /// The start looks whether all workers have begun to accept.
    Start,
    /// The hub is forked, or looked at.
    Hub,
    /// The metrics process is forked.
    Metrics,
    /// This worker's bell is rung once more.
    Ring(Pid),
    /// This worker is offered its new log once more.
    Log(Pid),
    /// All workers are checked for progress.
    Progress,
    /// The permits of dead workers are settled once more.
    Settle,
    /// The next worker of this number is forked.
    Vacancy(u16),
    /// The logs' sizes are checked.
    Rotation,
    /// The logs are reopened, since a worker has asked for it.
    Reopen,
    /// The clients of the control socket that have had their time go.
    Control,
    /// The order with this number is over, even if not all workers have answered.
    Order(u64),
}

/// The times at which something is to be done.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    queue: BTreeSet<(Instant, What)>,
    /// When each thing is to be done.
    times: BTreeMap<What, Instant>,
}

impl Deadlines {
    /// Another time for the same takes the place of the one before.
    pub(super) fn set(&mut self, what: What, at: Instant) {
        if let Some(before) = self.times.insert(what, at) {
            self.queue.remove(&(before, what));
        }
        self.queue.insert((at, what));
    }

    /// As [`set`](Self::set), or [`clear`](Self::clear) without a time.
    pub(super) fn set_or_clear(&mut self, what: What, at: Option<Instant>) {
        match at {
            Some(at) => self.set(what, at),
            None => self.clear(what),
        }
    }

    /// It is not to be done any more, if it was.
    pub(super) fn clear(&mut self, what: What) {
        if let Some(at) = self.times.remove(&what) {
            self.queue.remove(&(at, what));
        }
    }

    /// Clears all that fit.
    pub(super) fn clear_all(&mut self, fits: impl Fn(What) -> bool) {
        self.queue.retain(|(_, what)| !fits(*what));
        self.times.retain(|what, _| !fits(*what));
    }

    /// When it is to be done.
    pub(super) fn at(&self, what: What) -> Option<Instant> {
        self.times.get(&what).copied()
    }

    /// Worker numbers that wait for their next worker, and when that is forked.
    pub(super) fn vacancies(&self) -> impl Iterator<Item = (u16, Instant)> {
        self.times.iter().filter_map(|(what, at)| match what {
            What::Vacancy(number) => Some((*number, *at)),
            _ => None,
        })
    }

    /// The first time of all.
    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Takes out the first thing that is due, in the order of [`What`]. One at a time, since
    /// doing it may clear others that are due as well.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<What> {
        let due = self.queue.iter().take_while(|(at, _)| *at <= now);
        let what = due.map(|(_, what)| *what).min()?;
        self.clear(what);
        Some(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_due_comes_once_in_its_order() {
        let (mut deadlines, now) = (Deadlines::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        assert_eq!(deadlines.next(), None);
        deadlines.set(What::Vacancy(3), now);
        deadlines.set(What::Stop, later);
        deadlines.set(What::Ping, now);
        deadlines.set(What::Order(1), later + Duration::from_secs(1));
        assert_eq!(deadlines.next(), Some(now));
        assert_eq!(deadlines.take_due(now), Some(What::Ping));
        assert_eq!(deadlines.take_due(now), Some(What::Vacancy(3)));
        assert_eq!(deadlines.take_due(now), None);
        assert_eq!(deadlines.take_due(later), Some(What::Stop));
        assert_eq!(deadlines.at(What::Stop), None);
        assert!(deadlines.next() > Some(later));
    }

    #[test]
    fn what_is_cleared_by_what_was_due_with_it_is_not_done() {
        let (mut deadlines, now) = (Deadlines::default(), Instant::now());
        deadlines.set(What::Candidate, now);
        deadlines.set(What::Vacancy(1), now);
        assert_eq!(deadlines.take_due(now), Some(What::Candidate));
        // It has committed.
        deadlines.clear_all(|what| matches!(what, What::Vacancy(_)));
        assert_eq!(deadlines.take_due(now), None);
    }

    #[test]
    fn another_time_takes_the_place_of_the_one_before() {
        let (mut deadlines, now) = (Deadlines::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        deadlines.set(What::Settle, now);
        deadlines.set(What::Settle, later);
        assert_eq!((deadlines.next(), deadlines.at(What::Settle)), (Some(later), Some(later)));
        deadlines.set_or_clear(What::Settle, Some(now));
        assert_eq!(deadlines.next(), Some(now));
        deadlines.set_or_clear(What::Settle, None);
        deadlines.clear(What::Settle);
        assert_eq!(deadlines.next(), None);
    }

    #[test]
    fn all_of_a_kind_are_cleared() {
        let (mut deadlines, now) = (Deadlines::default(), Instant::now());
        (0..5).for_each(|number| deadlines.set(What::Vacancy(number), now));
        deadlines.set(What::Stop, now);
        let numbers: Vec<_> = deadlines.vacancies().map(|(number, _)| number).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4]);
        deadlines.clear_all(|what| matches!(what, What::Vacancy(number) if number >= 2));
        let due: Vec<_> = std::iter::from_fn(|| deadlines.take_due(now)).collect();
        assert_eq!(due, [What::Stop, What::Vacancy(0), What::Vacancy(1)]);
    }
}
