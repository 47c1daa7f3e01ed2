//! The seam between the data path and a wire format.
//!
//! A protocol is pure: bytes in, values out, and values in, bytes out; no socket, no
//! clock, no state. The event loop asks it where messages end ([`Protocol::frame`]), a
//! turn asks it what a message says ([`Protocol::open`]), and whatever leaves is encoded
//! by it at the last moment.

use crate::batch::Batch;
use crate::notice::Notice;
use std::sync::Arc;

/// The front of a stream, as [`Protocol::frame`] found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Framed {
    /// How many bytes are whole messages.
    pub whole_bytes: usize,
    /// How many messages these are.
    pub messages: usize,
    /// What begins behind them.
    pub rest: Rest,
}

/// What begins behind the whole messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nothing: the bytes ended with a message.
    Nothing,
    /// A message that is not complete. More can be said of it when it has this many
    /// bytes: perhaps that it is whole, perhaps only how long it is.
    Part {
        /// More than there are.
        wanted: usize,
    },
    /// Bytes that no message begins with; the text says why. Nothing behind them has a
    /// meaning any more.
    Malformed(String),
}

/// One whole message, opened.
#[derive(Clone, Copy, Debug)]
pub struct Opened<'a> {
    /// What it is for: which handler.
    pub code: u16,
    /// What it says.
    pub body: &'a [u8],
    /// The body's checksum as the peer sent it, if the protocol has one.
    pub checksum: u32,
    /// How many bytes the message has on the wire.
    pub length: usize,
}

/// A body that does not fit into a message of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a body of {bytes} bytes does not fit a message, the most is {max}")]
pub struct BodyTooLong {
    /// Its size.
    pub bytes: usize,
    /// What fits.
    pub max: usize,
}

/// A wire format. One value for each worker and listener protocol.
pub trait Protocol: Send + Sync + std::fmt::Debug {
    /// One pass over the front of a stream. Judges a length as soon as it can be read: a
    /// peer that announces too much is refused before its bytes are buffered.
    fn frame(&self, stream: &[u8]) -> Framed;

    /// The code of a message of which only a part is there, if it can be told.
    fn code_of_part(&self, part: &[u8]) -> Option<u16>;

    /// The first of these messages, its header read; `None` if there is no whole one.
    fn open<'a>(&self, messages: &'a [u8]) -> Option<Opened<'a>>;

    /// Whether the body is what the peer computed the checksum of.
    fn is_intact(&self, opened: &Opened<'_>) -> bool;

    /// Appends a message. `checksum` is the body's, if it is known.
    ///
    /// # Errors
    /// [`BodyTooLong`]; the batch is then as it was.
    fn reply(
        &self,
        code: u16,
        body: &[u8],
        checksum: Option<u32>,
        out: &mut Batch,
    ) -> Result<(), BodyTooLong>;

    /// Appends a notice, of as many messages as it says.
    fn notice(&self, notice: &Notice, out: &mut Batch);

    /// A notice by itself.
    fn notice_alone(&self, notice: &Notice) -> (Arc<[u8]>, u32) {
        let mut batch = Batch::default();
        self.notice(notice, &mut batch);
        batch.take()
    }
}
