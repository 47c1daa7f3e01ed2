//! The call list: how any thread asks the event loop to advance a connection. The loop
//! alone owns descriptors and the epoll set; other threads change a state and call, and
//! the loop reads the state again and acts.

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, Waker};
use std::io;

/// Connections, by the loop's own names for them, whose state has changed.
#[derive(Debug)]
pub struct CallList {
    calls: Mutex<Vec<u64>>,
    /// The outbox total was seen above its bound.
    is_overloaded: AtomicBool,
    /// The inbox total has room again.
    has_room: AtomicBool,
    waker: Waker,
}

/// A connection's own part of the list: whether it is on it.
#[derive(Debug)]
pub struct Called(AtomicBool);

impl Default for Called {
    fn default() -> Self {
        Self::new()
    }
}

impl Called {
    /// Not on the list.
    #[must_use]
    pub fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// To be cleared by the loop *before* it reads the connection's state: a change
    /// after that read then lists the connection again. Acquire: what was changed
    /// before the call is seen by the read.
    pub fn clear(&self) {
        self.0.swap(false, Ordering::AcqRel);
    }
}

impl CallList {
    /// An empty list with a waker of its own.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            calls: Mutex::new(Vec::new()),
            is_overloaded: AtomicBool::new(false),
            has_room: AtomicBool::new(false),
            waker: Waker::new()?,
        })
    }

    /// Puts a connection on the list unless it is there, and wakes the loop if it is the
    /// first: the loop takes the whole list at once.
    ///
    /// The state that the loop is to see must have been changed before.
    pub fn call(&self, called: &Called, token: u64) {
        // A read-modify-write even where the flag was set: it is ordered against the
        // loop's clearing, so one of the two sees the other.
        if called.0.swap(true, Ordering::AcqRel) {
            return;
        }
        let is_first = {
            let mut calls = self.calls.lock();
            calls.push(token);
            calls.len() == 1
        };
        if is_first {
            self.waker.wake();
        }
    }

    /// Reports that the outbox total is above its bound.
    pub fn report_overload(&self) {
        if !self.is_overloaded.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// Whether that was reported since this was asked last.
    pub fn take_overload(&self) -> bool {
        self.is_overloaded.swap(false, Ordering::AcqRel)
    }

    /// Reports that the inbox total has room again: connections that were not read for
    /// want of it may be read.
    pub fn report_room(&self) {
        if !self.has_room.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// Whether that was reported since this was asked last.
    pub fn take_room(&self) -> bool {
        self.has_room.swap(false, Ordering::AcqRel)
    }

    /// Takes all that is listed, into `out`, which must be empty. The waker is cleared
    /// first, or a call in between would wake nobody.
    pub fn take(&self, out: &mut Vec<u64>) {
        debug_assert!(out.is_empty());
        self.waker.clear();
        std::mem::swap(&mut *self.calls.lock(), out);
    }

    /// What the loop puts into its epoll set.
    #[must_use]
    pub fn waker(&self) -> &Waker {
        &self.waker
    }
}
