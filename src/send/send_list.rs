//! The connections that have something to send, and the semaphore that counts
//! them. The send thread sleeps on nothing else.

use super::send_half::SendHalf;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::fault::{Fault, is_planted};
use crate::sync::{Mutex, Semaphore};
use std::collections::VecDeque;
use std::sync::Arc;

/// How many connections the send thread takes at one look.
pub(super) const PERMITS_PER_LOOK: usize = 64;

/// Ready connections, in the order in which they became so.
///
/// Invariant: the semaphore's value plus the permits that the send thread has
/// taken and not used is the number of listed connections (plus one for
/// stop), except between the two steps of [`SendList::push`].
#[derive(Debug)]
pub struct SendList {
    ready: Mutex<VecDeque<Arc<SendHalf>>>,
    listed: Semaphore,
    stopping: AtomicBool,
}

/// What a look at the list found.
#[derive(Debug)]
pub enum Look {
    /// This many connections, at most as many as there were permits.
    Taken,
    /// [`SendList::stop`] was called.
    Stopped,
}

impl SendList {
    /// An empty list; the semaphore must have no permits.
    #[must_use]
    pub fn new(listed: Semaphore) -> Self {
        Self { ready: Mutex::new(VecDeque::new()), listed, stopping: AtomicBool::new(false) }
    }

    /// Lists a connection whose outbox has just become ready. Called exactly
    /// once for each time, after that change, without any lock held.
    ///
    /// The post comes last: a permit that is there before the connection would
    /// be spent on an empty list, and the connection would wait for the next.
    pub fn push(&self, connection: Arc<SendHalf>) {
        self.ready.lock().push_back(connection);
        self.listed.post();
    }

    /// Sleeps until a connection is listed, then takes as many as there are
    /// permits, [`PERMITS_PER_LOOK`] at most.
    pub fn wait(&self, out: &mut Vec<Arc<SendHalf>>) -> Look {
        self.listed.wait();
        let mut permits = 1;
        while permits < PERMITS_PER_LOOK && self.listed.try_wait() {
            permits += 1;
        }
        if self.stopping.load(Ordering::Acquire) {
            return Look::Stopped;
        }
        let mut ready = self.ready.lock();
        let take = permits.min(ready.len());
        assert_eq!(take, permits, "each permit stands for a listed connection");
        out.extend(ready.drain(..take));
        Look::Taken
    }

    /// A planted fault: a permit that stands for nothing.
    pub(super) fn post_without_connection(&self) {
        self.listed.post();
    }

    /// Ends the send thread: the flag first, then one permit to wake it.
    pub fn stop(&self) {
        if is_planted(Fault::StopPostsFirst) {
            self.listed.post();
        }
        self.stopping.store(true, Ordering::Release);
        self.listed.post();
    }
}
