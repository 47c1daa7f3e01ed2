//! Sending to a connection at any time: what a chat, a feed or a timer needs.
//!
//! A handle belongs to one connection of one worker process and works on any thread of
//! it. It holds nothing open: a connection goes when its peer goes, and the handle
//! then says so. It never names another connection, however often the place in the
//! table and the descriptor are used again. No call here blocks.

use super::own_turn;
use crate::send::{Entry, Refused, SendHalf};
use bytes::Bytes;
use chappe_wire::{BodyTooLong, Code, encode};
use std::sync::{Arc, Weak};

/// A way to send to one connection. Cheap to clone, to keep and to give to other
/// threads.
///
/// What one thread sends through handles of a connection arrives in that order; what
/// a handler sends to the connection whose message it handles stands between its
/// replies, at its place. Between different threads there is no order.
#[derive(Clone, Debug)]
pub struct Handle {
    id: u64,
    send: Weak<SendHalf>,
}

/// A frame, encoded once, that can go to any number of connections: they share its
/// memory.
#[derive(Clone, Debug)]
pub struct Message(Bytes);

/// Why a message was not queued. It was not sent, not even in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The peer is owed `send.outbox_max_bytes` already, or all peers of the worker
    /// together `send.outbox_total_max_bytes`: it may fit again later.
    #[error("too much is queued already")]
    Full,
    /// The connection is about to end and takes no more: its peer has said its last,
    /// the server stops, or the peer read so slowly that its backlog was given up
    /// (`send.slow_reader = "close"`).
    #[error("the connection is closing")]
    Closed,
    /// The connection is gone.
    #[error("the connection is gone")]
    Expired,
    /// The body does not fit into a frame.
    #[error(transparent)]
    TooLong(#[from] BodyTooLong),
}

impl Message {
    /// # Errors
    /// A body beyond [`crate::wire::BODY_BYTES_MAX`].
    pub fn new(code: Code, body: &[u8]) -> Result<Self, BodyTooLong> {
        encode(code, body).map(Self)
    }
}

impl Handle {
    pub(super) fn new(send: &Arc<SendHalf>) -> Self {
        Self { id: send.id(), send: Arc::downgrade(send) }
    }

    /// The connection's id, as in logs and `chappe connections`: unique over workers
    /// and reloads.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Queues a frame for the peer. Never blocks.
    ///
    /// Queued is not delivered: if the connection breaks, what was queued is lost and
    /// counted as `messages_expired`.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send(&self, code: Code, body: &[u8]) -> Result<(), SendError> {
        self.send_message(&Message::new(code, body)?)
    }

    /// The same with a frame that is encoded already.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send_message(&self, message: &Message) -> Result<(), SendError> {
        let send = self.send.upgrade().ok_or(SendError::Expired)?;
        let bytes = message.0.clone();
        let entry = Entry { bytes, frames: 1 };
        if own_turn::is_of(self.id) {
            let cost = entry.cost();
            send.join_replies(own_turn::cost(), cost)?;
            own_turn::push(entry.bytes, cost);
        } else {
            send.push(entry)?;
        }
        Ok(())
    }

    /// Whether a message would be taken now, room provided. It can end at any time:
    /// this is to drop handles of those who are gone.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.send.upgrade().is_some_and(|send| send.is_open().is_ok())
    }
}

impl From<Refused> for SendError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full => Self::Full,
            Refused::Finishing => Self::Closed,
            Refused::Gone => Self::Expired,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::application::tests::peer;
    use super::super::own_turn::OwnTurn;
    use super::super::{Outcome, Replies};
    use super::*;
    use crate::send::{ENTRY_COST, sink};
    use chappe_wire::{BODY_BYTES_MAX, split_first};

    fn bodies(replies: &mut Replies) -> Vec<Vec<u8>> {
        let (mut encoded, _) = replies.take();
        std::iter::from_fn(|| split_first(&mut encoded)).map(|(_, body)| body.to_vec()).collect()
    }

    #[test]
    fn one_more_byte_than_the_limit_is_full() {
        let peer = peer(3);
        let handle = Handle::new(peer.origin().send);
        // Two messages to the byte.
        let half = vec![0; sink::BYTES_MAX / 2 - 8 - ENTRY_COST];
        assert_eq!(handle.send(16, &half), Ok(()));
        let rest = [&half[..], &[0]].concat();
        assert_eq!(handle.send(16, &rest), Err(SendError::Full));
        assert_eq!(handle.send(16, &half), Ok(()));
        assert_eq!(handle.send(16, &[]), Err(SendError::Full));
        assert!(handle.is_open());
    }

    #[test]
    fn a_handlers_own_pushes_have_the_same_limit() {
        let own = peer(3);
        let handle = Handle::new(own.origin().send);
        let half = vec![0; sink::BYTES_MAX / 2 - 8 - ENTRY_COST];
        for _message in 0..2 {
            let mut replies = Replies::of_turn();
            let _turn = OwnTurn::begin(3);
            assert_eq!(handle.send(16, &half), Ok(()));
            assert_eq!(handle.send(16, &[&half[..], &[0]].concat()), Err(SendError::Full));
            assert_eq!(handle.send(16, &half), Ok(()));
            assert_eq!(handle.send(16, &[]), Err(SendError::Full));
            replies.take_pushes();
        }
    }

    #[test]
    fn who_ends_or_is_gone_takes_nothing() {
        let ending = peer(3);
        let handle = Handle::new(ending.origin().send);
        ending.origin().send.finish();
        assert_eq!(handle.send(16, &[]), Err(SendError::Closed));
        sink::abort(ending.origin().send);
        assert_eq!(handle.send(16, &[]), Err(SendError::Expired));
        drop(ending);
        assert_eq!(handle.send(16, &[]), Err(SendError::Expired));
        assert!(!handle.is_open());
        let too_long = vec![0; BODY_BYTES_MAX + 1];
        assert!(matches!(handle.send(16, &too_long), Err(SendError::TooLong(_))));
    }

    #[test]
    fn pushes_of_a_handler_stand_between_its_replies() -> Outcome {
        let (own, other) = (peer(3), peer(4));
        let handle = Handle::new(own.origin().send);
        let mut replies = Replies::of_turn();
        {
            let _turn = OwnTurn::begin(3);
            replies.send(16, b"1")?;
            assert_eq!(handle.send(16, b"2"), Ok(()));
            assert_eq!(handle.send(16, b"3"), Ok(()));
            replies.send(16, b"4")?;
            assert_eq!(handle.clone().send(16, b"5"), Ok(()));
            let other = Handle::new(other.origin().send);
            assert_eq!(other.send(16, b"not here"), Ok(()));
            replies.take_pushes();
        }
        assert_eq!(bodies(&mut replies), [b"1", b"2", b"3", b"4", b"5"]);
        assert_eq!(own.origin().send.view().queued_bytes, 0);
        assert!(other.origin().send.view().queued_bytes > 0);
        Ok(())
    }

    #[test]
    fn a_failed_message_keeps_its_pushes_and_loses_its_replies() -> Outcome {
        let own = peer(3);
        let handle = Handle::new(own.origin().send);
        let mut replies = Replies::of_turn();
        for round in [b"a", b"b"] {
            let mark = replies.mark();
            let _turn = OwnTurn::begin(3);
            replies.send(16, b"a reply")?;
            assert_eq!(handle.send(16, round), Ok(()));
            replies.send(16, b"a reply")?;
            replies.rewind(mark);
        }
        assert_eq!(bodies(&mut replies), [b"a", b"b"]);
        Ok(())
    }
}
