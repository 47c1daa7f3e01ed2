//! What the server tells a peer on its own account, as values: a protocol encodes them
//! when they leave. And why a connection ends.

use std::borrow::Cow;

/// Why a message was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The stream has lost its boundaries. The connection is closed.
    Malformed,
    /// The checksum is not that of the body. The connection is closed.
    BadChecksum,
    /// There is no handler. The connection stays open.
    UnknownCode,
    /// The handler returned an error, or its deferred reply was dropped or came too late (the
    /// connection stays open), or it panicked (closed).
    HandlerFailed,
    /// A rate limit. The connection stays open unless it goes on.
    TooFast,
    /// There is no room for one more connection. Sent once on accept, then closed.
    Busy,
    /// A begun message did not complete. The connection is closed.
    Incomplete,
    /// The peer has to be admitted first. What follows is the protocol's
    /// ([`crate::Protocol::ends_unadmitted`]).
    NotAdmitted,
    /// The application has denied the peer something. The connection is closed.
    Denied,
    /// Too much is under way inside the server. The connection stays open.
    BusyInside,
    /// The peer may not do that. The connection stays open.
    NotAllowed,
}

/// Why the server leaves a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goodbye {
    /// The server stops.
    Stopping,
    /// The server reloads: connect again now.
    Reloading,
    /// Nothing was received for `timeouts.idle`.
    Idle,
    /// The peer reads too slowly.
    TooSlow,
    /// An operator closed the connection.
    Kicked,
    /// No complete message within `timeouts.handshake`.
    HandshakeTimeout,
    /// The application closes the connection.
    ByApplication,
    /// What has become of a message is not known: it was not answered in time.
    OutcomeUnknown,
}

/// What is sent to the peer, at its place in the order of replies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A message, or the stream itself, was refused.
    Error {
        /// Why.
        problem: Problem,
        /// The code of the message that caused it, if it is known.
        code: Option<u16>,
        /// For people.
        text: Cow<'static, str>,
    },
    /// Neighbouring messages were refused by a rate limit: an error for each.
    TooFast {
        /// Their codes, at least one.
        codes: Vec<u16>,
    },
    /// The server leaves.
    Goodbye {
        /// Why.
        reason: Goodbye,
        /// For people.
        text: Cow<'static, str>,
    },
}

impl Notice {
    /// How many messages it becomes.
    #[must_use]
    pub fn messages(&self) -> usize {
        match self {
            Self::Error { .. } | Self::Goodbye { .. } => 1,
            Self::TooFast { codes } => codes.len(),
        }
    }

    /// Bytes that it holds beside itself.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        match self {
            Self::Error { text, .. } | Self::Goodbye { text, .. } => text.len(),
            Self::TooFast { codes } => codes.len() * size_of::<u16>(),
        }
    }
}

/// Why a connection ends: the first cause is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The peer has sent its FIN, perhaps inside of a message.
    PeerClosed,
    /// The peer has reset the connection, or it broke.
    PeerReset,
    /// `timeouts.idle`.
    Idle,
    /// `timeouts.handshake`.
    HandshakeTimeout,
    /// `timeouts.frame`.
    FrameTimeout,
    /// The peer reads too slowly: `send.outbox_max_bytes`, `send.outbox_max_age`.
    TooSlow,
    /// `limits.*`, for too long.
    TooFast,
    /// Bytes that the protocol does not have.
    ProtocolError,
    /// A handler or a hook panicked.
    HandlerPanicked,
    /// The application has denied the peer something.
    Denied,
    /// The application has closed it.
    ByApplication,
    /// `chappe kick`.
    Kicked,
    /// It held too much of a total: `inbox.total_max_bytes`, `send.outbox_total_max_bytes`.
    Overloaded,
    /// It could not be let in.
    Refused,
    /// The kernel has no memory for another epoll entry.
    OutOfMemory,
    /// What has become of a message is not known: it was not answered in time.
    OutcomeUnknown,
    /// The worker stops or is drained.
    Stopping,
    /// A reload has replaced the worker.
    Reloading,
}

impl Cause {
    /// For the log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PeerClosed => "peer_closed",
            Self::PeerReset => "peer_reset",
            Self::Idle => "idle",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::FrameTimeout => "frame_timeout",
            Self::TooSlow => "too_slow",
            Self::TooFast => "too_fast",
            Self::ProtocolError => "protocol_error",
            Self::HandlerPanicked => "handler_panicked",
            Self::Denied => "denied",
            Self::ByApplication => "closed_by_application",
            Self::Kicked => "kicked",
            Self::Overloaded => "overloaded",
            Self::Refused => "refused",
            Self::OutOfMemory => "out_of_memory",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::Stopping => "stopping",
            Self::Reloading => "reloading",
        }
    }
}
