//! What connections ask for, and what they are answered.

use crate::name::{Filter, Kind};
use crate::replay::Missed;

/// Among the flags of a connection: it gets a message once for each subscription that matches,
/// and not once. The other flags are the caller's own.
pub const EACH: u8 = 0x80;

/// How much there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableLimits {
    /// Subscriptions of a connection.
    pub per_connection_max: usize,
    /// Patterns among them.
    pub patterns_per_connection_max: usize,
    /// Bytes of all subscriptions of the worker.
    pub bytes_max: usize,
    /// Names that the worker has subscribers of.
    pub names_max: usize,
}

/// Why somebody cannot subscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// `topics.max_per_connection`.
    #[error("a connection has at most {0} subscriptions (topics.max_per_connection)")]
    Subscriptions(usize),
    /// `topics.max_patterns_per_connection`.
    #[error("a connection has at most {0} patterns (topics.max_patterns_per_connection)")]
    Patterns(usize),
    /// `topics.total_max_bytes`.
    #[error("the subscriptions of a worker take at most {0} bytes (topics.total_max_bytes)")]
    Bytes(usize),
    /// `topics.max_topics`, or `topics.max_globs`.
    #[error("there are as many names as may be (topics.max_topics, topics.max_globs)")]
    Names,
}

/// What a connection asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// To get what is published there.
    Subscribe {
        /// Where.
        filter: Filter,
        /// How, if that is said: for all subscriptions of the connection.
        flags: Option<u8>,
        /// The offset of the last message that it has: it wants what was published since.
        resume: Option<u64>,
    },
    /// To get it no longer.
    Unsubscribe(Filter),
    /// To get nothing of this kind any more; of any, without one.
    UnsubscribeAll(Option<Kind>),
}

/// What has come of a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Came {
    /// It gets what is published from now on.
    Subscribed {
        /// Where.
        filter: Filter,
        /// Subscriptions that the connection has, counted as the filter's kind is: topics and
        /// patterns together, shard channels by themselves.
        count: usize,
        /// What it has missed.
        resumed: Resumed,
    },
    /// It does no longer.
    Unsubscribed {
        /// Where, and how many it had left, counted as above. A filter that it did not have is
        /// among them if it has named it.
        ended: Vec<(Filter, usize)>,
        /// How many it has left: of all kinds, or counted as above if one kind was to end.
        left: usize,
    },
    /// It has not begun.
    Refused(Refused),
}

/// Whether a subscription goes on where another one has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resumed {
    /// It was not asked for.
    NotAsked,
    /// It does: these messages were missed.
    Yes(Vec<Missed>),
    /// Messages may be lost.
    No,
}

/// An answer to a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered<C, T> {
    /// Whom.
    pub to: C,
    /// What came with the wish.
    pub answer: T,
    /// Subscriptions that it has now, of all kinds.
    pub subscriptions: usize,
    /// How it wants its messages.
    pub flags: u8,
    /// What has come of it.
    pub came: Came,
}
