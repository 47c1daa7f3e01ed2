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

    /// Subscribes the connection. The command waits, and is answered with an event for each
    /// name: it has to be left with [`Served::Submitted`].
    ///
    /// # Errors
    /// Why it may not; nothing has changed.
    fn subscribe(
        &mut self,
        opened: &Opened<'_>,
        kind: TopicKind,
        names: &[&[u8]],
    ) -> Result<(), Refusal>;

    /// Ends these subscriptions, without a name all of the kind. Answered as
    /// [`Host::subscribe`]; without a name, with one event.
    ///
    /// # Errors
    /// As there.
    fn unsubscribe(
        &mut self,
        opened: &Opened<'_>,
        kind: Option<TopicKind>,
        names: &[&[u8]],
    ) -> Result<(), Refusal>;

    /// Publishes to a topic or a shard channel. Answered as [`Host::subscribe`].
    ///
    /// # Errors
    /// As there.
    fn publish(
        &mut self,
        opened: &Opened<'_>,
        kind: TopicKind,
        topic: &[u8],
        payload: &[u8],
    ) -> Result<(), Refusal>;

    /// Asks about topics. Answered as [`Host::subscribe`], with one event.
    ///
    /// # Errors
    /// As there.
    fn query(&mut self, opened: &Opened<'_>, query: TopicQuery<'_>) -> Result<(), Refusal>;
}

/// What a command may ask of all topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicQuery<'a> {
    /// Which topics, or shard channels, have subscribers.
    Listed {
        /// A topic or a shard channel.
        kind: TopicKind,
        /// Those that are like it.
        pattern: Option<&'a [u8]>,
    },
    /// How many subscribers these have.
    Counts {
        /// A topic or a shard channel.
        kind: TopicKind,
        /// Their names.
        names: &'a [&'a [u8]],
    },
    /// How many patterns there are.
    Patterns,
}

/// What messages ask for of which neighbours wait together. They are submitted, or answered at
/// once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// To publish.
    Publish,
    /// To subscribe, or to end that.
    Subscription,
}

/// What a subscription names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicKind {
    /// A topic.
    Topic,
    /// All topics that are like it.
    Pattern,
    /// A shard channel.
    Shard,
}

/// Why something cannot be asked of topics; the text is for the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// What it names is wrong.
    Invalid(String),
    /// This peer may not.
    NotAllowed(String),
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

/// What topics have to tell a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A subscription has begun, behind this offset.
    Subscribed {
        /// What it names.
        kind: TopicKind,
        /// The name, as the peer has written it.
        name: &'a str,
        /// Subscriptions that the connection has now: topics and patterns, or shard channels.
        count: u32,
        /// 0: it was not asked for; 1: nothing was lost since the place to resume from; 2:
        /// something may have been.
        recovered: u8,
        /// What offsets belong to.
        epoch: u64,
        /// Of the last message before.
        offset: u64,
    },
    /// Subscriptions have ended.
    Unsubscribed {
        /// All of this kind were to end; `None`: of any kind, or those that are named.
        all: Option<TopicKind>,
        /// Those that have ended or were named, each with what was left, counted as above.
        ended: &'a [Ended<'a>],
        /// How many the connection has left, of any kind.
        left: u32,
    },
    /// It has published.
    Published {
        /// Of its message.
        offset: u64,
        /// Subscriptions that matched.
        subscribers: u32,
    },
    /// A message for it.
    Message {
        /// Its place in the log.
        offset: u64,
        /// What the subscription names that it comes by.
        kind: TopicKind,
        /// The name, as the peer has written it.
        name: &'a str,
        /// Where it was published.
        topic: &'a str,
        /// 0: of a client; else the application's.
        code: u16,
        /// What it says.
        body: &'a [u8],
        /// How the connection wants its messages: the protocol's own.
        flags: u8,
    },
    /// The names that a query has asked for.
    Listed {
        /// With their subscribers, if these were asked for.
        names: &'a [(&'a str, Option<u32>)],
    },
    /// How many patterns there are.
    Patterns(u64),
    /// So many messages at the most were lost, before the next one.
    Gap {
        /// How many.
        lost: u64,
    },
}

/// A subscription that has ended, or was none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended<'a> {
    /// What it names.
    pub kind: TopicKind,
    /// The name, as the peer has written it.
    pub name: &'a str,
    /// How many are left that are counted with it.
    pub count: u32,
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

    /// What a message asks for, if neighbours that ask for the same wait together.
    fn asks(&self, opened: &Opened<'_>) -> Option<Asks> {
        _ = opened;
        None
    }

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

    /// Appends what topics have to tell; nothing if the protocol has no word for it.
    fn event(&self, dialect: u8, event: &Event<'_>, out: &mut Batch) {
        _ = (dialect, event, out);
    }

    /// A message of a topic is encoded for each subscription that it comes by, and not once.
    fn names_subscription(&self) -> bool {
        false
    }

    /// Whether a connection with subscriptions may be idle.
    fn may_only_listen(&self) -> bool {
        false
    }

    /// Why a connection with this dialect and with subscriptions may not call a handler, if
    /// [`Opened::joins`].
    fn refuses_call(&self, dialect: u8) -> Option<&'static str> {
        _ = dialect;
        None
    }

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
