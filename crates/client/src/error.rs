//! What can go wrong between a client and its server, told apart by what the
//! caller can do about it. Pure.

use std::io;
use std::time::Duration;

use chappe_wire::{BODY_BYTES_MAX, BodyTooLong, Code};

use super::received::ServerError;

/// Why a call of [`Connection`](super::Connection) gave no result.
///
/// An error *frame* of the server is no such error: it is received like any
/// other frame, see [`Frame::as_error`](super::Frame::as_error). Only calls whose result is no
/// frame, as [`Connection::subscribe`](super::Connection::subscribe), make an error of it.
///
/// ```
/// # use chappe_client::{ClientError, Connection, Frame};
/// /// The next push; `None` if nothing has come yet.
/// fn poll(connection: &mut Connection) -> Result<Option<Frame>, ClientError> {
///     match connection.receive() {
///         Ok(frame) => Ok(Some(frame)),
///         Err(ClientError::TimedOut(_)) => Ok(None), // a receive can be repeated
///         // By `is_disconnect`: connect again, or give up.
///         Err(error) => Err(error),
///     }
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No connection came about.
    #[error("cannot connect to {address}")]
    Connect {
        /// The last address that was tried.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Nothing, or no whole frame, within the time-out. What did arrive is
    /// kept: the call can be repeated when it was a receive. After a send a
    /// part of a frame may be on its way, so nothing more can be sent.
    #[error("nothing within {0:?}")]
    TimedOut(Duration),
    /// The server has closed the connection, between two frames.
    #[error("the server closed the connection")]
    Closed,
    /// The server has closed the connection inside a frame.
    #[error("the server closed the connection inside a frame, {missing_bytes} bytes are missing")]
    Truncated {
        /// How many bytes are still missing, as far as is known: to the end
        /// of the frame, or of its header when even that is incomplete.
        missing_bytes: usize,
    },
    /// A body and its checksum do not go together. The frame is skipped, so
    /// the next one can be received.
    #[error("a frame of code {code} has checksum {claimed:#010x} and should have {computed:#010x}")]
    Checksum {
        /// The code in the frame's header.
        code: Code,
        /// The checksum in the frame's header.
        claimed: u32,
        /// The checksum of the body.
        computed: u32,
    },
    /// A length below 8: the stream has lost its frame boundaries for good.
    #[error("a frame claims a length of {0} bytes, less than its header has")]
    BadLength(u16),
    /// The body does not fit a frame; nothing was sent.
    #[error("a body of {} bytes is too long for a frame, {BODY_BYTES_MAX} is the most", .0.0)]
    BodyTooLong(BodyTooLong),
    /// The server has answered by an error frame.
    #[error("{0}")]
    Refused(ServerError),
    /// The server has answered by a frame of the right code with a wrong body: its topics are
    /// other ones than this client's.
    #[error("the answer of code {0} is malformed")]
    Malformed(Code),
    /// A topic of so many bytes is too long to be named in a frame; nothing was sent.
    #[error("a topic of {0} bytes is too long, 255 is the most")]
    TopicTooLong(usize),
    /// Any other error of the system, usually a reset by the server.
    #[error("the connection failed")]
    Io(#[source] io::Error),
}

impl ClientError {
    /// Whether the server has left: by a clean end, within a frame, or by a reset.
    ///
    /// ```
    /// # use chappe_client::ClientError;
    /// assert!(ClientError::Closed.is_disconnect());
    /// assert!(ClientError::Truncated { missing_bytes: 5 }.is_disconnect());
    /// assert!(!ClientError::BadLength(7).is_disconnect()); // it is still there
    /// ```
    #[must_use]
    pub fn is_disconnect(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        match self {
            Self::Closed | Self::Truncated { .. } => true,
            Self::Io(e) => matches!(e.kind(), BrokenPipe | ConnectionAborted | ConnectionReset),
            _ => false,
        }
    }
}

impl From<BodyTooLong> for ClientError {
    fn from(too_long: BodyTooLong) -> Self {
        Self::BodyTooLong(too_long)
    }
}

/// A socket whose time-out is over.
pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
