//! The connections that have something to handle, in the order in which they
//! came. Handler threads sleep here.
//!
//! With [`Wake::Home`] the first of them, which shares a CPU with the event loop, does what
//! there is, and the others are *helpers*: to wake one on another CPU costs more than many a
//! turn. So they are woken only for a backlog that is worth it, for what nobody would come
//! for otherwise, and when the first gets nowhere, because a handler blocks it.

use super::receive_half::ReceiveHalf;
use crate::sync::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;

/// So much work must wait for a helper to be woken: several times what the wake-up costs.
const BACKLOG_US: u64 = 200;

/// Which threads are woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Any that sleeps.
    Any,
    /// Thread 0, and the others when it cannot keep up.
    Home,
}

/// Who lists a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// The event loop. It looks again while work waits ([`RunList::look`]).
    Loop,
    /// Another thread.
    Other,
}

/// See the module. Bounded by the number of connections: each is on it once.
#[derive(Debug)]
pub struct RunList {
    wake: Wake,
    state: Mutex<State>,
    not_empty: Condvar,
    /// Helpers sleep on their own.
    needs_help: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Arc<ReceiveHalf>>,
    sleeping: usize,
    helpers_sleeping: usize,
    stopping: bool,
    /// What a turn takes, in microseconds: the mean, of which old turns fade away.
    turn_us: u64,
    /// How many connections were taken, ever, and by the last look.
    taken: u64,
    taken_at_look: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    Nobody,
    One,
    Helper,
}

/// `sleeping` and `helpers_sleeping` threads could be woken for `backlog_us` of work.
fn to_wake(by: By, backlog_us: u64, sleeping: usize, helpers_sleeping: usize) -> Woken {
    if sleeping > 0 {
        Woken::One
    } else if helpers_sleeping > 0 && (by == By::Other || backlog_us > BACKLOG_US) {
        Woken::Helper
    } else {
        Woken::Nobody
    }
}

impl RunList {
    pub(super) fn new(wake: Wake) -> Self {
        let state = Mutex::new(State::default());
        Self { wake, state, not_empty: Condvar::new(), needs_help: Condvar::new() }
    }

    /// Appends a connection that has just become queued.
    pub(super) fn push(&self, connection: Arc<ReceiveHalf>, by: By) {
        let mut state = self.state.lock();
        state.queue.push_back(connection);
        let backlog_us = (state.queue.len() as u64).saturating_mul(state.turn_us);
        let woken = to_wake(by, backlog_us, state.sleeping, state.helpers_sleeping);
        // Unlocked first, or the woken thread only wakes to wait again.
        drop(state);
        self.notify(woken);
    }

    fn notify(&self, woken: Woken) {
        match woken {
            Woken::Nobody => {}
            Woken::One => self.not_empty.notify_one(),
            Woken::Helper => self.needs_help.notify_one(),
        }
    }

    /// The next connection for this thread; sleeps until there is one. `None` once
    /// stopped. `last_us` is how long its last turn took, if it had one.
    ///
    /// One at a time: a thread that took several would keep all but the first
    /// waiting behind a handler that blocks.
    pub fn pop(&self, thread: u16, last_us: Option<u64>) -> Option<Arc<ReceiveHalf>> {
        let is_helper = self.wake == Wake::Home && thread > 0;
        let mut state = self.state.lock();
        if let Some(last_us) = last_us {
            state.turn_us = (state.turn_us * 7).saturating_add(last_us) / 8;
        }
        loop {
            if state.stopping {
                return None;
            }
            if let Some(connection) = state.queue.pop_front() {
                state.taken += 1;
                return Some(connection);
            }
            if is_helper {
                state.helpers_sleeping += 1;
                state = self.needs_help.wait(state);
                state.helpers_sleeping -= 1;
            } else {
                state.sleeping += 1;
                state = self.not_empty.wait(state);
                state.sleeping -= 1;
            }
        }
    }

    /// Whether the event loop has to look from time to time while work waits.
    #[must_use]
    pub fn wants_looks(&self) -> bool {
        self.wake == Wake::Home
    }

    /// Wakes a helper if nothing was taken since the last look. False if nothing waits.
    pub fn look(&self) -> bool {
        let mut state = self.state.lock();
        if state.queue.is_empty() {
            return false;
        }
        let taken = state.taken;
        let stands = std::mem::replace(&mut state.taken_at_look, taken) == taken;
        let wakes = stands && state.helpers_sleeping > 0;
        drop(state);
        if wakes {
            self.notify(Woken::Helper);
        }
        true
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
        self.needs_help.notify_all();
        drop(listed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_is_woken_for_a_backlog_and_for_what_nobody_would_come_for() {
        assert_eq!(to_wake(By::Loop, 50, 1, 1), Woken::One);
        assert_eq!(to_wake(By::Loop, BACKLOG_US, 0, 1), Woken::Nobody);
        assert_eq!(to_wake(By::Loop, BACKLOG_US + 1, 0, 1), Woken::Helper);
        assert_eq!(to_wake(By::Loop, BACKLOG_US + 1, 0, 0), Woken::Nobody, "all of them work");
        assert_eq!(to_wake(By::Other, 0, 0, 1), Woken::Helper);
        assert_eq!(to_wake(By::Other, 0, 1, 1), Woken::One);
    }
}
