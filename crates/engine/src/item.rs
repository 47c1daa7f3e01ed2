//! What stands in an inbox.

use crate::notice::Notice;
use bytes::Bytes;

/// What an item takes beside its bytes: its place in the queue and the head of its
/// allocation.
pub const ITEM_COST: usize = 128;

/// Some whole messages that share one allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The bytes of the messages, end to end.
    pub bytes: Bytes,
    /// How many messages these are, at least one.
    pub messages: usize,
}

/// What stands in an inbox, in the order in which it is to be answered.
#[derive(Debug)]
pub enum Item {
    /// Received messages.
    Chunk {
        /// The messages that are not handled yet.
        chunk: Chunk,
        /// What the chunk is charged for until its last message is handled: its messages
        /// share one allocation.
        charged: usize,
    },
    /// Something that the server tells, at its place in the order of replies.
    Notice(Box<Notice>),
}

impl Item {
    /// Messages that came in one piece, charged with all they hold.
    #[must_use]
    pub fn chunk(chunk: Chunk) -> Self {
        let charged = chunk.bytes.len() + ITEM_COST;
        Self::Chunk { chunk, charged }
    }

    /// How many messages these are.
    #[must_use]
    pub fn messages(&self) -> usize {
        match self {
            Self::Chunk { chunk, .. } => chunk.messages,
            Self::Notice(notice) => notice.messages(),
        }
    }

    /// Bytes charged against the limits.
    #[must_use]
    pub fn charged(&self) -> usize {
        match self {
            Self::Chunk { charged, .. } => *charged,
            Self::Notice(notice) => notice.held_bytes() + ITEM_COST,
        }
    }
}

impl From<Notice> for Item {
    fn from(notice: Notice) -> Self {
        Self::Notice(Box::new(notice))
    }
}

/// What a turn has handled since it last told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    /// Messages handled.
    pub(crate) messages: usize,
    /// Bytes charged for items that are used up.
    pub(crate) bytes: usize,
}
