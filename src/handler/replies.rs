//! The replies to one message. They share a buffer with the others of the same turn, so that
//! all of them leave in one piece.

use super::frames::{Way, trace};
use super::{Code, HandlerError, Outcome, own_turn};
use chappe_engine::{BATCH_BYTES_MAX, Batch, Mark, Opened, Protocol};
use std::sync::Arc;

/// Collects the replies of a handler. Nothing is sent before the handler returns.
#[derive(Debug)]
pub struct Replies<'a> {
    batch: &'a mut Batch,
    protocol: &'a dyn Protocol,
    /// The message that is answered: a reply of the same body has its checksum too.
    answered: Option<Opened<'a>>,
    /// Where the replies to it begin.
    begin: Mark,
    /// Frames that its handler has pushed to this connection; they stand between the
    /// replies. They are sent even if the message fails, since they were accepted.
    pushed: Vec<Arc<[u8]>>,
}

impl<'a> Replies<'a> {
    /// Replies to `answered`, a message whose checksum is right.
    pub(super) fn new(
        batch: &'a mut Batch,
        protocol: &'a dyn Protocol,
        answered: Option<Opened<'a>>,
    ) -> Self {
        let begin = batch.mark();
        Self { batch, protocol, answered, begin, pushed: Vec::new() }
    }

    /// Appends a message for the peer. May be called any number of times.
    ///
    /// # Errors
    /// A body beyond 65527 bytes, or more than 64 MiB of replies that wait for their handler to
    /// return; nothing was appended.
    pub fn send(&mut self, code: Code, body: &[u8]) -> Outcome {
        self.take_pushes();
        if self.batch.len() + body.len() > BATCH_BYTES_MAX {
            let text = format!("the replies to one message exceed {BATCH_BYTES_MAX} bytes");
            return Err(HandlerError::new(text));
        }
        trace(Way::Replied, own_turn::connection(), code, body);
        let known = self.answered.as_ref().filter(|opened| is_same(opened.body, body));
        let checksum = known.map(|opened| opened.checksum);
        Ok(self.protocol.reply(code, body, checksum, self.batch)?)
    }

    /// Appends what was pushed since the last reply.
    #[inline]
    pub(super) fn take_pushes(&mut self) {
        if own_turn::has_pushed() {
            self.append_pushes();
        }
    }

    fn append_pushes(&mut self) {
        for bytes in own_turn::take() {
            self.batch.append(&bytes);
            self.pushed.push(bytes);
        }
    }

    /// Removes the replies to a message that has failed. Returns the batch, for the error.
    pub(super) fn take_back(mut self) -> &'a mut Batch {
        self.take_pushes();
        self.batch.rewind(self.begin);
        for bytes in self.pushed {
            self.batch.append(&bytes);
        }
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

    #[test]
    fn the_checksum_of_a_message_is_not_computed_again_for_the_same_body() {
        let (peer, mut batch) = (TestPeer::new(1), Batch::default());
        let body = *b"body";
        // A wrong one shows where it is used.
        let answered = Opened { code: 16, body: &body, checksum: 7, length: 12 };
        let mut replies = Replies::new(&mut batch, peer.mailbox.protocol(), Some(answered));
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
        let mut replies = Replies::new(&mut batch, peer.mailbox.protocol(), None);
        let error = replies.send(16, b"five.").expect_err("one too many");
        assert_eq!(error.to_string(), "the replies to one message exceed 67108864 bytes");
        replies.send(16, b"four").unwrap();
        assert!(replies.send(16, b"").is_err());
    }

    #[test]
    fn what_is_taken_back_leaves_the_replies_to_other_messages() {
        let (peer, mut batch) = (TestPeer::new(1), Batch::default());
        let protocol = peer.mailbox.protocol();
        Replies::new(&mut batch, protocol, None).send(16, b"stays").unwrap();
        let mut replies = Replies::new(&mut batch, protocol, None);
        replies.send(16, b"goes").unwrap();
        assert!(replies.send(16, &vec![0; 65_528]).is_err());
        replies.take_back();
        assert_eq!(peer.bodies(&mut batch), [b"stays"]);
    }
}
