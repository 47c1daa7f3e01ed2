//! The run list: connections with something to handle, in the order in which they
//! became so. Handler threads sleep here.

use crate::sync::{Condvar, Mutex};
use std::collections::VecDeque;

/// A queue that threads sleep on. Bounded by the number of connections: each is on it
/// at most once, by the phases of its inbox.
#[derive(Debug)]
pub struct RunList<T> {
    state: Mutex<State<T>>,
    not_empty: Condvar,
}

#[derive(Debug)]
struct State<T> {
    queue: VecDeque<T>,
    sleeping: usize,
    is_stopping: bool,
}

impl<T> Default for RunList<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> RunList<T> {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        let state = State { queue: VecDeque::new(), sleeping: 0, is_stopping: false };
        Self { state: Mutex::new(state), not_empty: Condvar::new() }
    }

    /// Appends, and wakes a thread if one sleeps.
    pub fn push(&self, item: T) {
        let mut state = self.state.lock();
        if state.is_stopping {
            drop(state);
            return;
        }
        state.queue.push_back(item);
        let wakes = state.sleeping > 0;
        // Unlocked first, or the woken thread only wakes to wait again.
        drop(state);
        if wakes {
            self.not_empty.notify_one();
        }
    }

    /// The oldest; sleeps until there is one. `None` once stopped.
    ///
    /// One at a time: a thread that took several would keep all but the first
    /// waiting behind a handler that blocks.
    pub fn pop(&self) -> Option<T> {
        let mut state = self.state.lock();
        loop {
            if state.is_stopping {
                return None;
            }
            if let Some(item) = state.queue.pop_front() {
                return Some(item);
            }
            state.sleeping += 1;
            state = self.not_empty.wait(state);
            state.sleeping -= 1;
        }
    }

    /// Ends the threads, after the turn that each is in, and drops what is listed: a
    /// listed connection holds the engine that holds this list.
    pub fn stop(&self) {
        let listed = {
            let mut state = self.state.lock();
            state.is_stopping = true;
            std::mem::take(&mut state.queue)
        };
        self.not_empty.notify_all();
        drop(listed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_comes_first_and_nothing_after_a_stop() {
        let list = RunList::new();
        (0..3).for_each(|nth| list.push(nth));
        assert_eq!((list.pop(), list.pop()), (Some(0), Some(1)));
        list.stop();
        list.push(3);
        assert_eq!(list.pop(), None);
    }
}
