//! What stands in an inbox.

use crate::deferral::Deferred;
use crate::notice::Notice;
use crate::session::{Hook, HookCall};
use std::sync::Arc;

/// What an item takes beside its bytes: its place in the queue and the head of its
/// allocation.
pub const ITEM_COST: usize = 128;

/// Some whole messages, end to end in one allocation. At least one is not handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    bytes: Arc<[u8]>,
    /// Where the messages begin that are not handled.
    at: u32,
    /// How many these are.
    messages: u32,
}

impl Chunk {
    /// `bytes` are this many messages.
    ///
    /// # Panics
    /// At four gibibytes: it is what one read brings, or one message.
    #[must_use]
    pub fn new(bytes: &[u8], messages: usize) -> Self {
        debug_assert!(messages > 0 && bytes.len() <= u32::MAX as usize);
        let messages = u32::try_from(messages).expect("of one read");
        Self { bytes: bytes.into(), at: 0, messages }
    }

    /// The messages that are not handled, end to end.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.at as usize..]
    }

    /// How many these are.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.messages as usize
    }

    /// The allocation that all its messages share.
    #[must_use]
    pub fn shared(&self) -> &Arc<[u8]> {
        &self.bytes
    }

    /// Bytes charged against the limits, until the last message is handled.
    #[must_use]
    pub fn charged(&self) -> usize {
        self.bytes.len() + ITEM_COST
    }

    /// Some messages were handled, not all: `rest_bytes` are left.
    pub(crate) fn advance(&mut self, handled: usize, rest_bytes: usize) {
        let at = self.bytes.len() - rest_bytes;
        self.at = u32::try_from(at).expect("within the chunk");
        self.messages -= u32::try_from(handled).expect("at most all");
    }
}

/// What stands in an inbox, in the order in which it is to be answered.
#[derive(Debug)]
pub enum Item {
    /// Received messages.
    Chunk(Chunk),
    /// Something that the server tells, at its place in the order of replies.
    Notice(Box<Notice>),
    /// A hook of the application: no message, and charged nothing.
    Hook(HookCall),
    /// A message that waits, or is to be continued: in front of all others. Or several that wait
    /// together.
    Deferred(Box<Deferred>),
}

impl Item {
    /// How many messages these are.
    #[must_use]
    pub fn messages(&self) -> usize {
        match self {
            Self::Chunk(chunk) => chunk.messages(),
            Self::Notice(notice) => notice.messages(),
            Self::Hook(_) => 0,
            Self::Deferred(deferred) => deferred.messages(),
        }
    }

    /// Bytes charged against the limits.
    #[must_use]
    pub fn charged(&self) -> usize {
        match self {
            Self::Chunk(chunk) => chunk.charged(),
            Self::Notice(notice) => notice.held_bytes() + ITEM_COST,
            Self::Hook(_) => 0,
            Self::Deferred(deferred) => deferred.charged(),
        }
    }
}

impl From<Chunk> for Item {
    fn from(chunk: Chunk) -> Self {
        Self::Chunk(chunk)
    }
}

impl From<Notice> for Item {
    fn from(notice: Notice) -> Self {
        Self::Notice(Box::new(notice))
    }
}

/// What a turn has handled since it last reported.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    /// Messages handled.
    pub(crate) messages: usize,
    /// Bytes charged for items that are used up.
    pub(crate) bytes: usize,
    /// What its hook has come to, if it has called one.
    pub(crate) hook: Option<Hook>,
}
