//! The connections that have something to handle, in the order in which they
//! came. Handler threads sleep here.

use super::receive_half::ReceiveHalf;
use crate::sync::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;

/// See the module. Bounded by the number of connections: each is on it once.
#[derive(Debug)]
pub struct RunList {
    state: Mutex<State>,
    not_empty: Condvar,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Arc<ReceiveHalf>>,
    sleeping: usize,
    stopping: bool,
}

impl RunList {
    pub(super) fn new() -> Self {
        let state = State { queue: VecDeque::new(), sleeping: 0, stopping: false };
        Self { state: Mutex::new(state), not_empty: Condvar::new() }
    }

    /// Appends a connection that has just become queued.
    pub fn push(&self, connection: Arc<ReceiveHalf>) {
        let mut state = self.state.lock();
        state.queue.push_back(connection);
        let wake = state.sleeping > 0;
        // Unlocked first, or the woken thread only wakes to wait again.
        drop(state);
        if wake {
            self.not_empty.notify_one();
        }
    }

    /// The next connection; sleeps until there is one. `None` once stopped.
    ///
    /// One at a time: a thread that took several would keep all but the first
    /// waiting behind a handler that blocks.
    pub fn pop(&self) -> Option<Arc<ReceiveHalf>> {
        let mut state = self.state.lock();
        loop {
            if state.stopping {
                return None;
            }
            if let Some(connection) = state.queue.pop_front() {
                return Some(connection);
            }
            state.sleeping += 1;
            state = self.not_empty.wait(state);
            state.sleeping -= 1;
        }
    }

    /// Ends the handler threads, after the turn each is in. What is listed is let
    /// go: a connection also holds the way to this list.
    pub fn stop(&self) {
        let listed = {
            let mut state = self.state.lock();
            state.stopping = true;
            std::mem::take(&mut state.queue)
        };
        self.not_empty.notify_all();
        drop(listed);
    }
}
