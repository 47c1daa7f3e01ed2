//! The replies of one turn, encoded end to end in one buffer, so that they
//! leave in one piece.

use super::{Outcome, own_turn};
use bytes::{Bytes, BytesMut};
use chappe_wire::{Code, ErrorNumber, append_checked, error_frame};

/// How much larger than twice its content a queued buffer may be.
const WASTE_BYTES_MAX: usize = 256;

/// The largest buffer that is kept between two turns.
const KEPT_BYTES_MAX: usize = 256 * 1024;

/// Collects what a handler answers. Nothing leaves before the handler returns.
#[derive(Debug)]
pub struct Replies {
    encoded: BytesMut,
    frames: u32,
    /// These are the replies of a turn, and what the handler pushes to its own
    /// connection stands between them, at its place.
    joins_pushes: bool,
    /// What was pushed since the mark. A rewind leaves it: it was accepted.
    pushed: Vec<Bytes>,
    /// The request that is being answered.
    request: Option<Checked>,
}

/// A body whose checksum was found to be right, by its place: valid as long as it is
/// borrowed.
#[derive(Clone, Copy, Debug)]
struct Checked {
    address: usize,
    length: usize,
    crc32: u32,
}

impl Checked {
    /// Whether it is this very body, and not one like it.
    fn is(&self, body: &[u8]) -> bool {
        (self.address, self.length) == (body.as_ptr().addr(), body.len())
    }
}

/// A place to come back to: [`Replies::rewind`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    bytes: usize,
    frames: u32,
}

// Not `Default`: a handler that put others in the place of its own would take along what
// is known of a request that is gone.
impl Replies {
    /// Empty, for a turn: with the pushes of its handlers to their own connection.
    pub(crate) fn of_turn() -> Self {
        let encoded = BytesMut::new();
        Self { encoded, frames: 0, joins_pushes: true, pushed: Vec::new(), request: None }
    }

    /// Appends a frame for the peer. May be called any number of times.
    ///
    /// # Errors
    /// A body beyond [`crate::wire::BODY_BYTES_MAX`]; nothing was appended.
    pub fn send(&mut self, code: Code, body: &[u8]) -> Outcome {
        self.take_pushes();
        let known = self.request.filter(|request| request.is(body));
        append_checked(&mut self.encoded, code, body, known.map(|request| request.crc32))?;
        self.frames += 1;
        Ok(())
    }

    /// While a handler runs: the body of its request, and its checksum, which a reply of
    /// the same body has too. `None` after it: then the place may come to hold another.
    pub(crate) fn set_request(&mut self, checked: Option<(&[u8], u32)>) {
        self.request = checked.map(|(body, crc32)| Checked {
            address: body.as_ptr().addr(),
            length: body.len(),
            crc32,
        });
    }

    /// Appends an error frame.
    pub(crate) fn send_error(&mut self, number: ErrorNumber, caused_by: Code, text: &str) {
        self.append(&error_frame(number, Some(caused_by), text), 1);
    }

    /// Appends frames that are encoded already.
    pub(crate) fn append(&mut self, encoded: &[u8], frames: u32) {
        self.encoded.extend_from_slice(encoded);
        self.frames += frames;
    }

    /// What was collected, to be sent as it is: then [`Replies::clear`].
    pub(crate) fn encoded(&self) -> (&[u8], u32) {
        (&self.encoded, self.frames)
    }

    /// Forgets what was collected, and keeps the buffer for the next turn unless it
    /// has become large.
    pub(crate) fn clear(&mut self) {
        self.encoded.clear();
        self.frames = 0;
        self.pushed.clear();
        if self.encoded.capacity() > KEPT_BYTES_MAX {
            self.encoded = BytesMut::new();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.encoded.is_empty()
    }

    /// Bytes collected, headers included.
    pub(crate) fn bytes(&self) -> usize {
        self.encoded.len()
    }

    /// Takes in what was pushed since the last reply.
    pub(crate) fn take_pushes(&mut self) {
        if self.joins_pushes && own_turn::has_pushed() {
            for bytes in own_turn::take() {
                self.append(&bytes, 1);
                self.pushed.push(bytes);
            }
        }
    }

    pub(crate) fn mark(&mut self) -> Mark {
        self.pushed.clear();
        Mark { bytes: self.encoded.len(), frames: self.frames }
    }

    /// Takes back what was answered since the mark.
    pub(crate) fn rewind(&mut self, mark: Mark) {
        self.encoded.truncate(mark.bytes);
        self.frames = mark.frames;
        for bytes in std::mem::take(&mut self.pushed) {
            self.append(&bytes, 1);
        }
    }

    /// Hands over all that was collected: bytes and number of frames.
    pub(crate) fn take(&mut self) -> (Bytes, u32) {
        let encoded = std::mem::take(&mut self.encoded);
        let frames = std::mem::take(&mut self.frames);
        // What was rewound may have left a large buffer behind a few bytes, which
        // would be queued with them and not be counted.
        let is_wasteful = encoded.capacity() > 2 * encoded.len() + WASTE_BYTES_MAX;
        let bytes = if is_wasteful { Bytes::copy_from_slice(&encoded) } else { encoded.freeze() };
        (bytes, frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_wire::{BODY_BYTES_MAX, encode, split_first};

    #[test]
    fn replies_are_frames_end_to_end_and_leave_once() {
        let mut replies = Replies::of_turn();
        replies.send(16, b"one").unwrap();
        replies.send(17, b"").unwrap();
        let expected = [encode(16, b"one").unwrap(), encode(17, b"").unwrap()].concat();
        assert_eq!(replies.take(), (Bytes::from(expected), 2));
        assert!(replies.is_empty());
        assert_eq!(replies.take(), (Bytes::new(), 0));
    }

    #[test]
    fn what_was_rewound_is_not_queued_with_the_rest() {
        let mut replies = Replies::of_turn();
        let mark = replies.mark();
        replies.send(16, &[0; 60_000]).unwrap();
        replies.rewind(mark);
        replies.send(16, b"few").unwrap();
        let (bytes, _) = replies.take();
        assert!(bytes.try_into_mut().unwrap().capacity() < 1000);
    }

    #[test]
    fn the_checksum_of_a_request_is_not_computed_again_for_the_same_body() {
        let mut body = *b"body";
        let mut replies = Replies::of_turn();
        // A wrong one shows where it is used.
        replies.set_request(Some((&body, 7)));
        for answer in [&body[..], &body[..3], &body.clone()] {
            replies.send(16, answer).unwrap();
        }
        replies.set_request(None);
        body[0] += 1;
        replies.send(16, &body).unwrap();
        let (mut encoded, _) = replies.take();
        let right = std::iter::from_fn(|| split_first(&mut encoded))
            .map(|(header, body)| (header.crc32, header.verify(&body)));
        let right: Vec<_> = right.collect();
        assert_eq!(right[0], (7, false), "the request's own");
        assert!(right[1..].iter().all(|(_, right)| *right), "{right:?}");
    }

    #[test]
    fn a_rewind_takes_back_bytes_and_count() {
        let mut replies = Replies::of_turn();
        replies.send(16, b"stays").unwrap();
        let mark = replies.mark();
        replies.send(16, b"goes").unwrap();
        assert!(replies.send(16, &vec![0; BODY_BYTES_MAX + 1]).is_err());
        replies.rewind(mark);
        assert_eq!(replies.take(), (encode(16, b"stays").unwrap(), 1));
    }
}
