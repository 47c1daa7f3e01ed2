//! What goes into a change of a connection's state, and what comes out of it.

use crate::deferral::Submission;
use crate::item::{Done, Item};
use crate::notice::Cause;
use crate::queue::Queue;
use crate::session::Session;
use crate::writer::{Entries, Entry};

/// Why a push was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// It would pass the high mark, or the worker's total.
    Full,
    /// The connection is about to end: it takes no new message.
    Ending,
    /// It is gone.
    Gone,
    /// The connection has another dialect than the message.
    Dialect,
}

/// The state's answer to something that the loop has received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Received {
    /// The inbox was empty: the caller starts a turn.
    StartTurn,
    /// A turn is on its way.
    Added,
    /// The connection takes nothing any more.
    Discarded,
}

/// How a turn ends.
#[derive(Debug, Default)]
pub(crate) struct Leaving {
    pub(crate) done: Done,
    /// What it has begun and not handled to its end.
    pub(crate) rest: Option<Item>,
    /// What it has answered and not handed over.
    pub(crate) replies: Option<Entry>,
    /// The connection has to end, and why.
    pub(crate) end: Option<Cause>,
    /// What it was given at its begin.
    pub(crate) session: Option<Box<Session>>,
}

/// What a change asks for, to be done without the lock.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Effects {
    /// The inbox became queued: put it on the run list, once.
    pub(crate) enqueue: bool,
    /// The outbox became ready: put it on the send list, once.
    pub(crate) list: bool,
    /// The loop has something to do.
    pub(crate) call: bool,
    /// The inbox is stalled for the total: wait there.
    pub(crate) wait_for_total: bool,
    /// The socket is full.
    pub(crate) became_blocked: bool,
    /// Bytes to take off the inbox total.
    pub(crate) inbox_released: usize,
    /// Bytes to take off the outbox total.
    pub(crate) outbox_released: usize,
    /// Messages that were received or queued, and are lost.
    pub(crate) lost: u64,
    /// Replies that were not queued, since the connection ends.
    pub(crate) rejected: u64,
    /// What the messages that wait from now on ask for.
    pub(crate) submissions: Vec<Submission>,
    /// Dropped without the lock.
    pub(crate) remains: Option<Box<Remains>>,
}

/// What is gone from the queues and not freed yet.
#[derive(Debug, Default)]
pub(crate) struct Remains {
    pub(crate) items: Queue<Item>,
    pub(crate) unsent: [Entries; 2],
}

impl Effects {
    /// Whether nothing is asked for.
    #[inline]
    pub(crate) fn is_nothing(&self) -> bool {
        let flags = self.enqueue | self.list | self.call | self.wait_for_total;
        let bytes = self.inbox_released | self.outbox_released;
        !(flags | self.became_blocked) && bytes == 0 && self.lost | self.rejected == 0
    }

    pub(crate) fn remains(&mut self) -> &mut Remains {
        self.remains.get_or_insert_default()
    }
}
