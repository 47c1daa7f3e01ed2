//! The send list: connections with something to send, and the semaphore that the send
//! thread sleeps on.
//!
//! A permit is a *reason to look*: while a connection is listed there is one, and a stop
//! brings one. It is not posted for each connection: from its first post until it runs, a
//! sleeper counts as asleep, and each post in the meantime would be a system call that
//! wakes nothing. Without a permit where there is a reason, the send thread would sleep
//! beside work: a bug. One too many is harmless: it looks, finds nothing and sleeps again.
//! So any process that maps the semaphore may post it.

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, Semaphore};
use std::collections::VecDeque;

/// How many connections the send thread takes at one look; one in a model.
pub const CONNECTIONS_PER_LOOK: usize = if cfg!(loom) { 1 } else { 64 };

/// Ready connections, in the order in which they became so.
///
/// Invariant: while a connection is listed, the semaphore has a permit, or the thread that
/// changed the list is about to post it (in [`SendList::push`], which found it empty, or in
/// [`SendList::wait`], which left some on it).
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
    /// each time, after that change, without any lock held. Returns whether it posted:
    /// what was listed before has brought a permit already.
    ///
    /// The post comes last: a permit that is there before the connection would be spent
    /// on an empty list, and the connection would wait for the next one. After a stop the
    /// connection is dropped.
    pub fn push(&self, connection: T) -> bool {
        let mut ready = self.ready.lock();
        if self.is_stopping.load(Ordering::Acquire) {
            drop(ready);
            return false;
        }
        let is_first = ready.is_empty();
        ready.push_back(connection);
        drop(ready);
        if is_first {
            self.permits.post();
        }
        is_first
    }

    /// Sleeps until there is a permit, then takes the oldest connections,
    /// [`CONNECTIONS_PER_LOOK`] at most, into `out`. If more are listed it gives the permit
    /// back, for its next look.
    pub fn wait(&self, out: &mut Vec<T>) -> Wakeup {
        self.permits.wait();
        if self.is_stopping.load(Ordering::Acquire) {
            return Wakeup::Stop;
        }
        let mut ready = self.ready.lock();
        let take = ready.len().min(CONNECTIONS_PER_LOOK);
        out.extend(ready.drain(..take));
        let is_more = !ready.is_empty();
        drop(ready);
        if is_more {
            self.permits.post();
        }
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
