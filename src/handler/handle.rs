//! Sending to a connection at any time: what a chat, a feed or a timer needs.
//!
//! A handle belongs to one connection of one worker process and works on any thread of
//! it. It keeps nothing open: when the peer leaves, the connection closes, and sending
//! returns an error. A handle never refers to another connection, even when the place in
//! the table and the descriptor are used again. No call here blocks.

use super::frames::{Way, trace};
use super::{Code, own_turn};
use crate::protocol::Encoded;
use chappe_engine::{BodyTooLong, Cause, Entry, Goodbye, Mailbox, Notice, Rejected};
use std::sync::{Arc, Weak};

/// A way to send to one connection. Cheap to clone, to keep and to give to other
/// threads.
///
/// What one thread sends through handles of a connection arrives in that order; what
/// a handler sends to the connection whose message it handles stands between its
/// replies, at its place. Between different threads there is no order.
///
/// ```
/// # use chappe::*;
/// # use std::thread;
/// fn count_down(peer: Handle) -> thread::JoinHandle<Result<(), SendError>> {
///     thread::spawn(move || (1..=3_u8).rev().try_for_each(|left| peer.send(18, &[left])))
/// }
///
/// let client = testing::client();
/// assert_eq!(count_down(client.handle()).join().unwrap(), Ok(()));
/// ```
#[derive(Clone, Debug)]
pub struct Handle {
    id: u64,
    mailbox: Weak<Mailbox>,
}

/// A message that can go to any number of connections: encoded once for each protocol that they
/// speak, and they share its memory.
///
/// ```
/// # use chappe::{Handle, HandlerError, Message};
/// /// Returns how many have room for it.
/// fn tell(room: &[Handle]) -> Result<usize, HandlerError> {
///     let message = Message::new(18, b"good morning")?;
///     Ok(room.iter().filter(|handle| handle.send_message(&message).is_ok()).count())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Message(Arc<Encoded>);

/// Why a message was not queued. It was not sent, not even in part.
///
/// ```
/// # use chappe::*;
/// /// Whether to keep the handle.
/// fn tell(peer: &Handle, news: &[u8]) -> Result<bool, SendError> {
///     match peer.send(18, news) {
///         Ok(()) => Ok(true),
///         // This one is lost, the next may have room.
///         Err(SendError::Full) => Ok(true),
///         // Ours: no peer could have it.
///         Err(SendError::TooLong(error)) => Err(error.into()),
///         Err(_) => Ok(false), // closed or gone
///     }
/// }
///
/// let client = testing::client();
/// assert_eq!(tell(&client.handle(), b"rain"), Ok(true));
/// assert!(matches!(tell(&client.handle(), &[0; 65_528]), Err(SendError::TooLong(_))));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The message does not fit into `send.outbox_max_bytes` of this peer, or into
    /// `send.outbox_total_max_bytes` of the worker, with what is queued now. There may be
    /// room later.
    #[error("too much is queued already")]
    Full,
    /// The connection is about to close and takes no more messages: its peer has shut
    /// down its sending side, the server stops, or the peer read so slowly that its
    /// backlog was dropped (`send.slow_reader = "close"`).
    #[error("the connection is closing")]
    Closed,
    /// The connection is closed.
    #[error("the connection is gone")]
    Expired,
    /// The connection's protocol has no messages that answer nothing: RESP 2. RESP 3 has them
    /// (`HELLO 3`).
    #[error("the connection's protocol cannot carry pushed messages")]
    Unsupported,
    /// The body does not fit into a frame.
    #[error(transparent)]
    TooLong(#[from] BodyTooLong),
}

impl Message {
    /// Encodes a message. The code is not checked: a peer takes what it knows.
    ///
    /// ```
    /// # use chappe::*;
    /// assert!(Message::new(18, &[0; 65_527]).is_ok());
    /// let error = Message::new(18, &[0; 65_528]).unwrap_err();
    /// assert_eq!((error.bytes, error.max), (65_528, 65_527));
    /// ```
    ///
    /// # Errors
    /// A body beyond 65527 bytes ([`crate::wire::BODY_BYTES_MAX`]).
    pub fn new(code: Code, body: &[u8]) -> Result<Self, BodyTooLong> {
        Encoded::new(code, body).map(Arc::new).map(Self)
    }
}

impl Handle {
    pub(super) fn new(mailbox: &Arc<Mailbox>) -> Self {
        Self { id: mailbox.id(), mailbox: Arc::downgrade(mailbox) }
    }

    /// The connection's id, as in logs and `chappe connections`: unique over workers
    /// and reloads.
    ///
    /// ```
    /// # use chappe::*;
    /// # use std::collections::BTreeMap;
    /// # let client = testing::client();
    /// let mut room = BTreeMap::from([(client.id(), client.handle())]);
    /// // In `closed`, which has the client:
    /// let left = room.remove(&client.id());
    /// assert_eq!(left.map(|handle| handle.id()), Some(client.id()));
    /// ```
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Queues a message for the peer, with a body of 0 to 65527 bytes. Never blocks.
    ///
    /// ```
    /// # use chappe::{Handle, SendError};
    /// fn tick(feed: &mut Vec<Handle>) {
    ///     feed.retain(|peer| match peer.send(18, b"tick") {
    ///         Ok(()) | Err(SendError::Full) => true, // it may read again
    ///         Err(_) => false,
    ///     });
    /// }
    /// ```
    ///
    /// Queued is not delivered: if the connection breaks, what was queued is lost and
    /// counted as `messages_expired`.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send(&self, code: Code, body: &[u8]) -> Result<(), SendError> {
        self.send_encoded(&Encoded::new(code, body)?)
    }

    /// Queues a message for the peer that others may get too. Never blocks.
    ///
    /// Queued is not delivered: if the connection breaks, what was queued is lost and
    /// counted as `messages_expired`.
    ///
    /// ```
    /// # use chappe::*;
    /// # fn test() -> Result<(), HandlerError> {
    /// let (one, other) = (testing::client(), testing::client());
    /// let message = Message::new(18, b"news")?; // encoded once, for both
    /// one.handle().send_message(&message)?;
    /// other.handle().send_message(&message)?;
    /// # Ok(())
    /// # }
    /// # test().unwrap();
    /// ```
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send_message(&self, message: &Message) -> Result<(), SendError> {
        self.send_encoded(&message.0)
    }

    fn send_encoded(&self, message: &Encoded) -> Result<(), SendError> {
        let mailbox = self.mailbox.upgrade().ok_or(SendError::Expired)?;
        let dialect = mailbox.dialect();
        let form = mailbox.protocol().push_form(dialect).ok_or(SendError::Unsupported)?;
        let bytes = Arc::clone(message.form(form));
        let entry = Entry::new((Arc::clone(&bytes), 1));
        if own_turn::is_of(self.id) {
            let cost = entry.cost();
            mailbox.join_replies(own_turn::cost(), cost)?;
            own_turn::push(bytes, cost);
        } else {
            mailbox.push_as(dialect, entry)?;
        }
        trace(Way::Pushed, self.id, message.code(), message.body());
        Ok(())
    }

    /// Ends the connection: what it has sent so far is answered, then its peer gets the text in
    /// a goodbye (reason 7), of which 512 bytes are sent at most, and nothing that it sends from
    /// now on is handled. Does nothing to a connection that ends already. Never blocks.
    ///
    /// ```
    /// # use chappe::*;
    /// # use std::collections::BTreeMap;
    /// /// Each user has one connection: the new one takes the place of the old one.
    /// fn seat(seats: &mut BTreeMap<String, Handle>, user: &str, peer: Handle) {
    ///     if let Some(old) = seats.insert(user.to_owned(), peer) {
    ///         old.close("you have logged in elsewhere");
    ///     }
    /// }
    /// # let mut seats = BTreeMap::new();
    /// # let clients = [testing::client(), testing::client()];
    /// # clients.iter().for_each(|client| seat(&mut seats, "ada", client.handle()));
    /// # assert_eq!(seats["ada"].id(), clients[1].id());
    /// ```
    pub fn close(&self, text: impl Into<String>) {
        if let Some(mailbox) = self.mailbox.upgrade() {
            let (reason, text) = (Goodbye::ByApplication, text.into().into());
            mailbox.end_from_thread(Cause::ByApplication, Notice::Goodbye { reason, text });
        }
    }

    /// Whether the connection takes messages, as long as there is room. It can close at any
    /// time, so this only serves to drop the handles of closed connections.
    ///
    /// ```
    /// # use chappe::*;
    /// # let client = testing::client();
    /// let mut room = vec![client.handle()];
    /// drop(client); // in a test this ends the connection
    /// room.retain(Handle::is_open);
    /// assert!(room.is_empty());
    /// ```
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.mailbox.upgrade().is_some_and(|mailbox| mailbox.takes_messages().is_ok())
    }
}

impl From<Rejected> for SendError {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Full => Self::Full,
            Rejected::Ending => Self::Closed,
            Rejected::Gone => Self::Expired,
            // It has changed since it was looked at: by a peer that does not want messages of
            // the old one any more, or did not of the new one.
            Rejected::Dialect => Self::Unsupported,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::own_turn::OwnTurn;
    use super::super::tests::{OUTBOX_BYTES_MAX, TestPeer};
    use super::super::{Outcome, replies::Replies};
    use super::*;
    use chappe_engine::{Batch, Cause, ENTRY_COST, PushForm};

    /// Two messages of this body fill the outbox to the byte.
    const HALF: [u8; OUTBOX_BYTES_MAX / 2 - 8 - ENTRY_COST] =
        [0; OUTBOX_BYTES_MAX / 2 - 8 - ENTRY_COST];

    #[test]
    fn one_more_byte_than_the_limit_is_full() {
        let peer = TestPeer::new(3);
        let handle = Handle::new(&peer.mailbox);
        assert_eq!(handle.send(16, &HALF), Ok(()));
        let rest = [&HALF[..], &[0]].concat();
        assert_eq!(handle.send(16, &rest), Err(SendError::Full));
        assert_eq!(handle.send(16, &HALF), Ok(()));
        assert_eq!(handle.send(16, &[]), Err(SendError::Full));
        assert!(handle.is_open());
    }

    #[test]
    fn a_message_to_many_is_encoded_once() {
        let peers = [TestPeer::new(3), TestPeer::new(4)];
        let message = Message::new(16, b"for all").unwrap();
        for peer in &peers {
            assert_eq!(Handle::new(&peer.mailbox).send_message(&message), Ok(()));
        }
        // What is queued for each of them is the memory of the message.
        assert_eq!(Arc::strong_count(message.0.form(PushForm::Message)), 1 + peers.len());
    }

    #[test]
    fn a_handlers_own_pushes_have_the_same_limit() {
        let own = TestPeer::new(3);
        let handle = Handle::new(&own.mailbox);
        for _message in 0..2 {
            let mut batch = Batch::default();
            let message = own.empty_message();
            let mut replies = Replies::new(&mut batch, &message);
            let _turn = OwnTurn::begin(3);
            assert_eq!(handle.send(16, &HALF), Ok(()));
            assert_eq!(handle.send(16, &[&HALF[..], &[0]].concat()), Err(SendError::Full));
            assert_eq!(handle.send(16, &HALF), Ok(()));
            assert_eq!(handle.send(16, &[]), Err(SendError::Full));
            replies.take_pushes();
        }
    }

    #[test]
    fn a_connection_that_ends_or_is_gone_takes_nothing() {
        let ending = TestPeer::new(3);
        let handle = Handle::new(&ending.mailbox);
        let _ = ending.mailbox.end_input(Cause::PeerClosed, None, &ending.counters);
        assert_eq!(handle.send(16, &[]), Err(SendError::Closed));
        let aborted = ending.mailbox.abort(Cause::Kicked, &ending.counters);
        assert_eq!(aborted, chappe_engine::Aborted::Over, "no thread is writing");
        assert_eq!(handle.send(16, &[]), Err(SendError::Expired));
        drop(ending);
        assert_eq!(handle.send(16, &[]), Err(SendError::Expired));
        assert!(!handle.is_open());
        assert!(matches!(handle.send(16, &vec![0; 65_528]), Err(SendError::TooLong(_))));
    }

    #[test]
    fn pushes_of_a_handler_stand_between_its_replies() -> Outcome {
        let (own, other) = (TestPeer::new(3), TestPeer::new(4));
        let handle = Handle::new(&own.mailbox);
        let mut batch = Batch::default();
        {
            let message = own.empty_message();
            let mut replies = Replies::new(&mut batch, &message);
            let _turn = OwnTurn::begin(3);
            replies.send(16, b"1")?;
            assert_eq!(handle.send(16, b"2"), Ok(()));
            assert_eq!(handle.send(16, b"3"), Ok(()));
            replies.send(16, b"4")?;
            assert_eq!(handle.clone().send(16, b"5"), Ok(()));
            let other = Handle::new(&other.mailbox);
            assert_eq!(other.send(16, b"not here"), Ok(()));
            replies.take_pushes();
        }
        assert_eq!(own.bodies(&mut batch), [b"1", b"2", b"3", b"4", b"5"]);
        assert_eq!(own.mailbox.view().outbox_bytes, 0);
        assert!(other.mailbox.view().outbox_bytes > 0);
        Ok(())
    }

    #[test]
    fn a_failed_message_keeps_its_pushes_and_loses_its_replies() -> Outcome {
        let own = TestPeer::new(3);
        let handle = Handle::new(&own.mailbox);
        let mut batch = Batch::default();
        for round in [b"a", b"b"] {
            let message = own.empty_message();
            let mut replies = Replies::new(&mut batch, &message);
            let _turn = OwnTurn::begin(3);
            replies.send(16, b"a reply")?;
            assert_eq!(handle.send(16, round), Ok(()));
            replies.send(16, b"a reply")?;
            replies.take_back();
        }
        assert_eq!(own.bodies(&mut batch), [b"a", b"b"]);
        Ok(())
    }
}
