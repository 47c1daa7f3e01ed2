//! The seam between the data path and a wire format.
//!
//! A protocol is pure: bytes in, values out, and values in, bytes out; no socket, no
//! clock. The event loop asks it where messages end ([`Protocol::frame`]), a
//! turn asks it what a message says ([`Protocol::open`]), and whatever leaves is encoded
//! by it at the last moment.
//!
//! A protocol may have *commands*: messages that it answers itself, in their turn
//! ([`Protocol::command`]), for which no handler is called. What it has to know of a connection
//! when it encodes is a byte, the *dialect*: 0 at first, and a command may change it. The
//! session has it, and the state a copy, so that a thread that pushes sees it under the lock.

use crate::batch::{Batch, Mark};
use crate::mailbox::Mailbox;
use crate::notice::Notice;
use crate::turn::Served;
use std::sync::Arc;

/// The code of a command: no message has it.
pub const CODE_COMMAND: u16 = 65_531;
/// The code of a command that may wait or take long: it is not for the event loop.
pub const CODE_SLOW_COMMAND: u16 = 65_530;

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

/// How far a begun message has been looked at; the protocol's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that need no second look.
    pub at: u32,
    /// How many parts of the message are to come behind them.
    pub parts: u32,
}

/// One whole message, opened.
#[derive(Clone, Copy, Debug)]
pub struct Opened<'a> {
    /// What it is for: which handler.
    pub code: u16,
    /// What it says.
    pub body: &'a [u8],
    /// The body's checksum as the peer sent it, if the protocol has one. Of a command: what
    /// the protocol has found out of it already.
    pub checksum: u32,
    /// How many bytes the message has on the wire.
    pub length: usize,
    /// The replies to it are one on the wire: [`Protocol::join`] makes them that.
    pub joins: bool,
}

/// What a command may ask of its connection and of the application.
pub trait Host {
    /// The connection.
    fn mailbox(&self) -> &Arc<Mailbox>;

    /// Whether the peer may do more than what comes before the gate.
    fn is_admitted(&self) -> bool;

    /// Shuts the gate, if there is one.
    fn shut_gate(&mut self);

    /// What the protocol has noted of the connection.
    fn dialect(&self) -> u8;

    /// Notes it. [`Served::Switched`] has to follow.
    fn set_dialect(&mut self, dialect: u8);

    /// Asks the application whether this is who it says, and admits it then.
    fn authenticate(&mut self, user: &[u8], password: &[u8]) -> Login;
}

/// What has come of [`Host::authenticate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// The peer is admitted.
    Admitted,
    /// The application knows no passwords.
    Unknown,
    /// It is not; the text is for the peer.
    Denied(String),
    /// The application panicked.
    Panicked,
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

    /// Frames one begun message, like [`Protocol::frame`], that was perhaps looked at before: what
    /// that has shown needs no second look. `input` has come behind it, and may say how many
    /// bytes are wanted, which are never more than the message has.
    ///
    /// A protocol that changes `progress` says how many bytes it wants next, and not how many
    /// the message has.
    fn frame_on(&self, begun: &[u8], input: &[u8], progress: &mut Progress) -> Rest {
        _ = (input, progress);
        self.frame(begun).rest
    }

    /// The code of a message of which only a part is there, if it is known.
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

    /// Makes one reply of what was appended since `begin` for a message that asks for that.
    fn join(&self, dialect: u8, begin: Mark, out: &mut Batch) {
        _ = (dialect, begin, out);
    }

    /// Appends a notice, of as many messages as it says, or nothing if the protocol has no
    /// word for it.
    fn notice(&self, notice: &Notice, out: &mut Batch);

    /// A notice by itself; `None` if the protocol has no word for it.
    fn notice_alone(&self, notice: &Notice) -> Option<(Arc<[u8]>, u32)> {
        let mut batch = Batch::default();
        self.notice(notice, &mut batch);
        (!batch.is_empty()).then(|| batch.take())
    }

    /// Whether commands change the dialect; it is 0 otherwise.
    fn has_dialects(&self) -> bool {
        false
    }

    /// Which of its forms a message has that answers nothing: those of one form are the same
    /// bytes. `None`: this dialect has no such form.
    fn push_form(&self, dialect: u8) -> Option<PushForm> {
        _ = dialect;
        Some(PushForm::Message)
    }

    /// Does what a command asks for, and appends the answer. `None`: the message
    /// is no command.
    fn command(&self, opened: &Opened<'_>, host: &mut dyn Host, out: &mut Batch) -> Option<Served> {
        _ = (opened, host, out);
        None
    }

    /// Whether a message that comes before the gate and is not for there ends the connection.
    fn ends_unadmitted(&self) -> bool {
        true
    }

    /// A connection was accepted.
    fn accepted(&self, mailbox: &Arc<Mailbox>) {
        _ = mailbox;
    }

    /// It is gone.
    fn gone(&self, id: u64) {
        _ = id;
    }
}

/// The forms of messages that answer nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushForm {
    /// As a native message.
    Message,
    /// As RESP3 has it.
    Resp3,
}
