//! The replies to one message. They share a buffer with the others of the same turn, so that
//! all of them leave in one piece.

use super::deferred::Kept;
use super::frames::{Way, trace};
use super::{Code, HandlerError, Outcome, own_turn};
use chappe_engine::{BATCH_BYTES_MAX, Batch, Mark, Message, Session};

/// Collects the replies of a handler. Nothing is sent before the handler returns.
#[derive(Debug)]
pub(super) struct Replies<'a> {
    batch: &'a mut Batch,
    /// What is answered: a reply of the same body has its checksum too.
    pub(super) message: &'a Message<'a>,
    /// Where the replies to it begin.
    begin: Mark,
}

impl<'a> Replies<'a> {
    /// Replies to a message whose checksum is right.
    #[inline]
    pub(super) fn new(batch: &'a mut Batch, message: &'a Message<'a>) -> Self {
        let begin = batch.mark();
        Self { batch, message, begin }
    }

    /// Appends a message for the peer. May be called any number of times.
    ///
    /// # Errors
    /// A body beyond 65527 bytes, or more than 64 MiB of replies that wait for their handler to
    /// return; nothing was appended.
    pub(super) fn send(&mut self, code: Code, body: &[u8]) -> Outcome {
        if own_turn::has_new() && !self.message.opened.joins {
            own_turn::take_new(|bytes| self.batch.append(bytes));
        }
        if self.batch.len() + body.len() > BATCH_BYTES_MAX {
            let text = format!("the replies to one message exceed {BATCH_BYTES_MAX} bytes");
            return Err(HandlerError::new(text));
        }
        let Message { mailbox, opened, protocol, .. } = self.message;
        trace(Way::Replied, mailbox.id(), code, body);
        let checksum = is_same(opened.body, body).then_some(opened.checksum);
        Ok(protocol.reply(code, body, checksum, self.batch)?)
    }

    /// Appends what was pushed since the last reply.
    #[inline]
    pub(super) fn take_pushes(&mut self) {
        if own_turn::has_new() {
            own_turn::take_new(|bytes| self.batch.append(bytes));
        }
    }

    /// Takes the replies out that were given so far, for a message that goes on later.
    pub(super) fn keep(&mut self) -> (Box<[u8]>, u32) {
        self.batch.take_since(self.begin)
    }

    /// Puts them back: the message goes on.
    pub(super) fn put_back(&mut self, kept: &Kept) {
        kept.iter().for_each(|kept| self.batch.put_back(kept));
    }

    /// Makes the replies to a message one, which was answered to its end and wants that.
    #[inline(never)]
    pub(super) fn join(&mut self, session: Option<&Session>) {
        let dialect = session.map_or(0, |session| session.dialect);
        self.message.protocol.join(dialect, self.begin, self.batch);
    }

    /// The batch, with all replies in it.
    pub(super) fn batch(&mut self) -> &mut Batch {
        self.batch
    }

    /// Removes the replies to a message that has failed. What its handler has pushed to this
    /// connection stays, since it was accepted. Returns the batch, for the error.
    pub(super) fn take_back(&mut self) -> &mut Batch {
        self.batch.rewind(self.begin);
        own_turn::take_all(|bytes| self.batch.append(bytes));
        self.batch
    }
}

/// Whether both are the same bytes in memory, and not only equal ones.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    std::ptr::eq(one, other)
}

#[cfg(test)]
mod tests {
    use super::super::tests::TestPeer;
    use super::*;
    use chappe_engine::Opened;

    #[test]
    fn the_checksum_of_a_message_is_not_computed_again_for_the_same_body() {
        let (peer, mut batch) = (TestPeer::new(1), Batch::default());
        let body = *b"body";
        // A wrong one shows where it is used.
        let answered = Opened { code: 16, body: &body, checksum: 7, length: 12, joins: false };
        let message = peer.message(answered, None);
        let mut replies = Replies::new(&mut batch, &message);
        for answer in [&body[..], &body[..3], &body.clone()] {
            replies.send(16, answer).unwrap();
        }
        let (bytes, _) = batch.take();
        let (mut rest, protocol) = (&bytes[..], peer.mailbox.protocol());
        let opened = std::iter::from_fn(|| {
            let opened = protocol.open(rest)?;
            rest = &rest[opened.length..];
            Some((opened.checksum == 7, protocol.is_intact(&opened)))
        });
        assert_eq!(opened.collect::<Vec<_>>(), [(true, false), (false, true), (false, true)]);
    }

    #[test]
    fn one_byte_more_than_may_wait_for_a_handler_is_an_error() {
        let (peer, mut batch) = (TestPeer::new(1), Batch::default());
        batch.append(&vec![0; BATCH_BYTES_MAX - 4]);
        let message = peer.empty_message();
        let mut replies = Replies::new(&mut batch, &message);
        let error = replies.send(16, b"five.").expect_err("one too many");
        assert_eq!(error.to_string(), "the replies to one message exceed 67108864 bytes");
        replies.send(16, b"four").unwrap();
        assert!(replies.send(16, b"").is_err());
    }

    #[test]
    fn what_is_taken_back_leaves_the_replies_to_other_messages() {
        let (peer, mut batch) = (TestPeer::new(1), Batch::default());
        let message = peer.empty_message();
        Replies::new(&mut batch, &message).send(16, b"stays").unwrap();
        let mut replies = Replies::new(&mut batch, &message);
        replies.send(16, b"goes").unwrap();
        assert!(replies.send(16, &vec![0; 65_528]).is_err());
        replies.take_back();
        assert_eq!(peer.bodies(&mut batch), [b"stays"]);
    }
}
