//! Deadlines of connections, one armed entry each.
//!
//! Most deadlines move away before they are due: each byte received pushes the
//! idle time-out. So an entry is not moved; when it fires, the connection is
//! asked for its real deadline, and an entry is armed for that. Only a deadline
//! that comes *closer* arms a second entry, and the first is stale then.

use chappe_sys::clock::Moment;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Armed entries, the earliest first. `K` names a connection.
#[derive(Debug)]
pub(super) struct Timers<K: Ord> {
    heap: BinaryHeap<Reverse<(Moment, K)>>,
}

/// A connection's own part: when its armed entry fires.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Armed(Option<Moment>);

impl<K: Ord + Copy> Timers<K> {
    pub(super) fn new() -> Self {
        Self { heap: BinaryHeap::new() }
    }

    /// Makes sure that an entry fires at `deadline` or before.
    pub(super) fn arm(&mut self, key: K, armed: &mut Armed, deadline: Moment) {
        if armed.0.is_none_or(|at| deadline < at) {
            armed.0 = Some(deadline);
            self.heap.push(Reverse((deadline, key)));
        }
    }

    /// How many entries there are, stale ones included.
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Throws the stale entries away; `armed` are all that are not.
    pub(super) fn rebuild(&mut self, armed: impl Iterator<Item = (K, Armed)>) {
        self.heap = armed.filter_map(|(key, Armed(at))| Some(Reverse((at?, key)))).collect();
    }

    /// When the next entry fires.
    pub(super) fn next(&self) -> Option<Moment> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes an entry that is due: its time, and of whom.
    pub(super) fn pop_due(&mut self, now: Moment) -> Option<(Moment, K)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }
}

impl Armed {
    /// Whether this entry is the armed one and no stale one; disarms it.
    pub(super) fn fires(&mut self, at: Moment) -> bool {
        let is_armed = self.0 == Some(at);
        if is_armed {
            self.0 = None;
        }
        is_armed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn an_entry_fires_once_at_the_earliest_deadline() {
        let start = Moment::now();
        let at = |s| start + Duration::from_secs(s);
        let (mut timers, mut armed) = (Timers::new(), Armed::default());
        timers.arm(1, &mut armed, at(30));
        timers.arm(1, &mut armed, at(60));
        assert_eq!(timers.heap.len(), 1, "a later deadline needs no entry");
        timers.arm(1, &mut armed, at(10));
        assert!(timers.pop_due(at(9)).is_none());
        assert!(armed.fires(timers.pop_due(at(10)).unwrap().0));
        assert!(timers.pop_due(at(29)).is_none());
        timers.arm(1, &mut armed, at(40));
        let stale = timers.pop_due(at(30)).unwrap();
        assert!(!armed.fires(stale.0));
        assert!(armed.fires(timers.pop_due(at(40)).unwrap().0));
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn a_rebuild_keeps_what_is_armed() {
        let start = Moment::now();
        let at = |s| start + Duration::from_secs(s);
        let (mut timers, mut one, mut two) = (Timers::new(), Armed::default(), Armed::default());
        for seconds in (10..60).rev() {
            timers.arm(1, &mut one, at(seconds));
        }
        timers.arm(2, &mut two, at(5));
        assert_eq!(timers.len(), 51);
        timers.rebuild([(1, one), (2, two), (3, Armed::default())].into_iter());
        assert_eq!(timers.len(), 2);
        assert!(two.fires(timers.pop_due(at(60)).unwrap().0));
        assert!(one.fires(timers.pop_due(at(60)).unwrap().0));
    }

    #[test]
    fn fires_in_the_order_of_a_sorted_list() {
        let start = Moment::now();
        let mut timers = Timers::new();
        let mut seed = 7_u64;
        let mut expected: Vec<(Moment, u64)> = (0..500)
            .map(|key| {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (start + Duration::from_millis(seed >> 54), key)
            })
            .collect();
        for (at, key) in &expected {
            timers.arm(*key, &mut Armed::default(), *at);
        }
        expected.sort();
        let far = start + Duration::from_secs(3600);
        let fired: Vec<u64> =
            std::iter::from_fn(|| timers.pop_due(far)).map(|(_, key)| key).collect();
        assert_eq!(fired, expected.iter().map(|(_, key)| *key).collect::<Vec<_>>());
    }
}
