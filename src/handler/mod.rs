//! What an application sees: requests, replies, handlers. Never a socket, never
//! a thread, never a queue.
//!
//! A handler runs on one of its worker's handler threads, or on its event loop if it is
//! quick. One connection is on at most one of them at a time, so its messages are
//! handled and answered in order; different connections run in parallel, so a handler
//! must be `Sync`.

mod application;
mod handle;
mod own_turn;
mod quick;
mod replies;
mod stock;

pub use application::{
    Application, Found, Handlers, Messages, Origin, Serve, Served, SharedChunk, WorkerInfo,
};
pub use handle::{Handle, Message, SendError};
pub use quick::{Pace, QUICK_TIME_MAX};
pub use replies::Replies;

use bytes::Bytes;
use chappe_wire::{BodyTooLong, Code};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Unique over workers and generations.
    pub id: u64,
    /// Where it comes from.
    pub peer: Peer,
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Peer {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A process of this machine, through a Unix socket: clients have no name there.
    Unix,
}

impl Peer {
    /// The address without the port; `None` through a Unix socket.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) => Some(address.ip()),
            Self::Unix => None,
        }
    }
}

/// `127.0.0.1:40000`, `[::1]:40000` or `unix:`.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("unix:"),
        }
    }
}

/// One received message, checked against its checksum.
#[derive(Debug)]
pub struct Request<'a> {
    code: Code,
    body: &'a [u8],
    /// What the body is a part of, if it can be kept.
    chunk: Option<SharedChunk<'a>>,
    origin: Origin<'a>,
}

impl<'a> Request<'a> {
    pub(crate) fn new(
        code: Code,
        body: &'a [u8],
        chunk: Option<SharedChunk<'a>>,
        origin: Origin<'a>,
    ) -> Self {
        Self { code, body, chunk, origin }
    }

    /// The message code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// The body, 0 to 65527 bytes.
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// The body, to keep beyond the handler's return. Shares the memory it was
    /// received in, unless that is more than four times as large: then it is
    /// copied, so that a few kept bytes do not hold on to many.
    #[must_use]
    pub fn body_to_keep(&self) -> Bytes {
        match self.chunk {
            Some(chunk) if self.body.len() >= chunk.allocated / 4 => {
                chunk.bytes.slice_ref(self.body)
            }
            _ => Bytes::copy_from_slice(self.body),
        }
    }

    /// Whose message it is.
    #[must_use]
    pub fn connection(&self) -> &'a ConnectionInfo {
        self.origin.info
    }

    /// A way to send to this connection later, from any thread of this worker.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(self.origin.send)
    }
}

/// What a handler returns: an error is told to the peer (error 4) in place of
/// the replies of this message, and the connection stays open.
pub type Outcome = Result<(), HandlerError>;

/// Why a handler failed; its text goes to the peer and into the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HandlerError(String);

impl HandlerError {
    /// With a text for people.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl From<BodyTooLong> for HandlerError {
    fn from(error: BodyTooLong) -> Self {
        Self(error.to_string())
    }
}

/// Handles the messages of one code.
///
/// Closures `Fn(&Request, &mut Replies) -> Outcome` are handlers. A panic costs
/// the message and its connection, not the worker.
pub trait Handler: Send + Sync {
    /// Called for each message, in the order of its connection.
    ///
    /// # Errors
    /// Whatever the peer shall be told as "handler failed".
    fn handle(&self, request: &Request<'_>, replies: &mut Replies) -> Outcome;

    /// Whether it never blocks and computes for microseconds at most. Asked once, when
    /// a worker starts.
    ///
    /// Quick handlers run on the event loop itself (`worker.fuse`), and the replies of
    /// neighbouring messages leave together. While one runs its worker serves nobody
    /// else: one that takes 50 ms in ten seconds from the others, in calls of more than
    /// [`QUICK_TIME_MAX`], is demoted, with a warning in the log, and run by the handler
    /// threads like any other.
    fn is_quick(&self) -> bool {
        false
    }
}

impl<F> Handler for F
where
    F: Fn(&Request<'_>, &mut Replies) -> Outcome + Send + Sync,
{
    fn handle(&self, request: &Request<'_>, replies: &mut Replies) -> Outcome {
        self(request, replies)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_kept_body_shares_its_chunk_unless_it_is_a_small_part_of_it() {
        let peer = application::tests::peer(1);
        let chunk = Bytes::from(vec![5; 400]);
        let shared = Some(SharedChunk { bytes: &chunk, allocated: chunk.len() });
        let quarter = Request::new(16, &chunk[..100], shared, peer.origin());
        assert_eq!(quarter.body_to_keep().as_ptr(), chunk.as_ptr());
        let less = Request::new(16, &chunk[..99], shared, peer.origin());
        assert_ne!(less.body_to_keep().as_ptr(), chunk.as_ptr());
        assert_eq!(less.body_to_keep(), less.body());
    }
}
