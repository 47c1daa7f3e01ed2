//! How any thread calls the event loop: put the connection on a list, ring the
//! bell. The loop alone owns descriptors and the epoll set; others change a
//! state and call, and the loop reads the state again and acts.

use crate::sync::Bell;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
use std::io;

/// Connections, by the loop's own names for them, whose state has changed.
#[derive(Debug)]
pub struct CallList {
    calls: Mutex<Vec<u64>>,
    /// Somebody saw the outbox total above its bound.
    overloaded: AtomicBool,
    /// The inbox total has room again.
    has_room: AtomicBool,
    bell: Bell,
}

/// A connection's own part of the list: whether it is on it.
#[derive(Debug)]
pub struct Called(AtomicBool);

impl Called {
    /// Not on the list.
    #[must_use]
    pub fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// To be cleared by the loop *before* it reads the connection's state: a
    /// change after that read then lists the connection again. Acquire: what
    /// was changed before the call is seen by the read.
    pub fn clear(&self) {
        self.0.swap(false, Ordering::AcqRel);
    }
}

impl CallList {
    /// # Errors
    /// Those of eventfd(2).
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            calls: Mutex::new(Vec::new()),
            overloaded: AtomicBool::new(false),
            has_room: AtomicBool::new(false),
            bell: Bell::new()?,
        })
    }

    /// Puts a connection on the list unless it is there, and rings if it is the
    /// first: the loop takes the whole list at once.
    ///
    /// The state that the loop shall see must have been changed before.
    pub fn call(&self, called: &Called, token: u64) {
        // A read-modify-write even where the flag was set: it is ordered
        // against the loop's clearing, so one of both sees the other.
        if called.0.swap(true, Ordering::AcqRel) {
            return;
        }
        let first = {
            let mut calls = self.calls.lock();
            calls.push(token);
            calls.len() == 1
        };
        if first {
            self.bell.ring();
        }
    }

    /// Tells the loop that the outbox total is above its bound.
    pub fn report_overload(&self) {
        if !self.overloaded.swap(true, Ordering::AcqRel) {
            self.bell.ring();
        }
    }

    /// Whether that was reported since the last look.
    pub fn take_overload(&self) -> bool {
        self.overloaded.swap(false, Ordering::AcqRel)
    }

    /// Tells the loop that connections may be read again that were not read
    /// for want of room in the inbox total.
    pub fn report_room(&self) {
        if !self.has_room.swap(true, Ordering::AcqRel) {
            self.bell.ring();
        }
    }

    /// Whether that was reported since the last look.
    pub fn take_room(&self) -> bool {
        self.has_room.swap(false, Ordering::AcqRel)
    }

    /// Takes all that is listed, into `out`. The bell is silenced first.
    pub fn take(&self, out: &mut Vec<u64>) {
        self.bell.silence();
        std::mem::swap(&mut *self.calls.lock(), out);
    }

    /// What the loop puts into its epoll set.
    #[must_use]
    pub fn bell(&self) -> &Bell {
        &self.bell
    }
}
