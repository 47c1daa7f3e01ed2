//! The send list: connections with something to send, and the semaphore that the send
//! thread sleeps on.
//!
//! A permit is a *reason to look*: each connection that is listed comes with one, and
//! so does a stop. Fewer permits than reasons is a bug: the send thread would sleep
//! beside work. One too many is harmless: it looks, finds nothing and sleeps again. So
//! any process that maps the semaphore may post it.

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, Semaphore};
use std::collections::VecDeque;

/// How many permits the send thread takes at one look.
pub const PERMITS_PER_LOOK: usize = 64;

/// Ready connections, in the order in which they became so.
///
/// Invariant: the semaphore's value plus the permits that the send thread has taken and
/// not used is at least the number of listed connections (plus one for a stop), except
/// between the two steps of [`SendList::push`].
#[derive(Debug)]
pub struct SendList<T> {
    ready: Mutex<VecDeque<T>>,
    permits: Semaphore,
    is_stopping: AtomicBool,
}

/// Why [`SendList::wait`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// There was a permit, and perhaps a connection behind it.
    Look,
    /// [`SendList::stop`] was called.
    Stop,
}

impl<T> SendList<T> {
    /// An empty list.
    #[must_use]
    pub fn new(permits: Semaphore) -> Self {
        let ready = Mutex::new(VecDeque::new());
        Self { ready, permits, is_stopping: AtomicBool::new(false) }
    }

    /// Lists a connection whose outbox has just become ready. Called exactly once for
    /// each time, after that change, without any lock held.
    ///
    /// The post comes last: a permit that is there before the connection would be spent
    /// on an empty list, and the connection would wait for the next one. After a stop the
    /// connection is dropped.
    pub fn push(&self, connection: T) {
        let mut ready = self.ready.lock();
        if self.is_stopping.load(Ordering::Acquire) {
            drop(ready);
            return;
        }
        ready.push_back(connection);
        drop(ready);
        self.permits.post();
    }

    /// Sleeps until there is a permit, then takes as many connections as there are
    /// permits, [`PERMITS_PER_LOOK`] at most, into `out`.
    pub fn wait(&self, out: &mut Vec<T>) -> Wakeup {
        self.permits.wait();
        let mut permits = 1;
        while permits < PERMITS_PER_LOOK && self.permits.try_wait() {
            permits += 1;
        }
        if self.is_stopping.load(Ordering::Acquire) {
            return Wakeup::Stop;
        }
        let mut ready = self.ready.lock();
        let take = permits.min(ready.len());
        out.extend(ready.drain(..take));
        Wakeup::Look
    }

    /// A reason to look that is no connection: what other processes have for the send
    /// thread.
    pub fn post(&self) {
        self.permits.post();
    }

    /// Ends the send thread: the flag first, then one permit to wake it.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
        self.permits.post();
    }

    /// Drops what is listed, once the send thread has ended: a listed connection holds
    /// the engine that holds this list.
    pub fn clear(&self) {
        let listed = std::mem::take(&mut *self.ready.lock());
        drop(listed);
    }
}
