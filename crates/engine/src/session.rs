//! What an application has of a connection: its own value, and how far its hooks have come.

use crate::notice::Cause;
use std::any::Any;

/// What an application attaches to a connection, from its `connected` hook to its `closed`
/// hook. A running turn has it; else it rests in the state.
pub struct Session {
    /// The application's own value.
    pub value: Box<dyn Any + Send>,
    /// The peer has been admitted: all messages are for it, and not only those that come
    /// before the gate.
    pub is_admitted: bool,
    /// What the protocol has noted of the connection ([`crate::Protocol::command`]).
    pub dialect: u8,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("is_admitted", &self.is_admitted).finish_non_exhaustive()
    }
}

/// How far the hooks of a connection have come.
///
/// | hook | means | leaves when |
/// |---|---|---|
/// | none | nothing is to be called: no service, denied, or all is done | |
/// | connecting | `connected` is in the inbox, or is running | it returns: connected or none; the inbox is let go: none |
/// | connected | `closed` is owed | the connection is aborted and no turn runs: closing |
/// | closing | `closed` is in the inbox, alone, or is running | it returns: none |
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hook {
    None,
    Connecting,
    Connected,
    Closing,
}

/// A hook that stands in an inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookCall {
    /// The connection can carry messages.
    Connected,
    /// It is over, for this reason.
    Closed(Cause),
}

/// What an application wants to know of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hooks {
    /// Nothing: it has handlers only.
    None,
    /// Their begins and ends.
    Called,
    /// These; and until it has admitted a peer, that one is in its handshake.
    Gated,
}
