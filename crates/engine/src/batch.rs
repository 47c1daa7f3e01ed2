//! Encoded messages end to end in one buffer, so that they leave in one piece.

use std::sync::Arc;

/// The most that a turn may answer, what its handlers have pushed not counted. One handler
/// can answer as often as it likes, and nothing leaves before it returns.
pub const BATCH_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The largest buffer that is kept for the next batch.
const KEPT_BYTES_MAX: usize = 256 * 1024;

/// Encoded messages of one turn, end to end. The protocol appends, the turn takes. The buffer
/// is used again for the next turn, unless it has become large.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    messages: u32,
}

/// A place in a batch to come back to.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    bytes: usize,
    messages: u32,
}

impl Batch {
    /// Where the next message is appended: then [`Batch::count`] it.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// One message more was appended.
    pub fn count(&mut self) {
        self.messages += 1;
    }

    /// Appends a message that is encoded already.
    pub fn append(&mut self, encoded: &[u8]) {
        self.append_some(encoded, 1);
    }

    /// Appends so many messages that are encoded already.
    pub fn append_some(&mut self, encoded: &[u8], messages: u32) {
        self.bytes.extend_from_slice(encoded);
        self.messages += messages;
    }

    /// Whether nothing was appended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How many bytes were appended.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The present end.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark { bytes: self.bytes.len(), messages: self.messages }
    }

    /// How many messages were appended since the mark.
    #[must_use]
    pub fn messages_since(&self, mark: Mark) -> u32 {
        self.messages - mark.messages
    }

    /// Makes one message of all that were appended since the mark, with `head` in front.
    pub fn join_since(&mut self, mark: Mark, head: &[u8]) {
        self.bytes.splice(mark.bytes..mark.bytes, head.iter().copied());
        self.messages = mark.messages + 1;
    }

    /// Copies out what was appended since the mark, and forgets it: bytes and number of
    /// messages.
    #[must_use]
    pub fn take_since(&mut self, mark: Mark) -> (Box<[u8]>, u32) {
        let taken = (self.bytes[mark.bytes..].into(), self.messages_since(mark));
        self.rewind(mark);
        taken
    }

    /// Appends what [`Batch::take_since`] has given.
    pub fn put_back(&mut self, (bytes, messages): &(Box<[u8]>, u32)) {
        self.bytes.extend_from_slice(bytes);
        self.messages += messages;
    }

    /// Forgets what was appended since the mark.
    pub fn rewind(&mut self, mark: Mark) {
        self.bytes.truncate(mark.bytes);
        self.messages = mark.messages;
    }

    /// Copies out what was appended, and forgets it: bytes and number of messages.
    #[must_use]
    pub fn take(&mut self) -> (Arc<[u8]>, u32) {
        let bytes = Arc::from(&self.bytes[..]);
        (bytes, self.clear())
    }

    /// What was appended, to be sent as it is: then [`Batch::clear`].
    #[must_use]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets what was appended, and keeps the buffer for the next time unless it has
    /// become large. Returns how many messages it was.
    pub(crate) fn clear(&mut self) -> u32 {
        self.bytes.clear();
        if self.bytes.capacity() > KEPT_BYTES_MAX {
            self.bytes = Vec::new();
        }
        std::mem::take(&mut self.messages)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_was_rewound_is_not_queued_with_the_rest() {
        let mut batch = Batch::default();
        let mark = batch.mark();
        batch.append(&[0; 60_000]);
        batch.rewind(mark);
        batch.append(b"few");
        let (bytes, messages) = batch.take();
        assert_eq!((&bytes[..], messages), (&b"few"[..], 1));
    }

    #[test]
    fn a_cleared_buffer_is_used_again_unless_it_is_large() {
        let mut batch = Batch::default();
        batch.append(&[1; 64]);
        let address = batch.bytes().as_ptr();
        assert_eq!(batch.clear(), 1);
        batch.append(&[2; 64]);
        assert_eq!((batch.bytes().as_ptr(), batch.len()), (address, 64));
        batch.append(&vec![3; KEPT_BYTES_MAX]);
        assert_eq!((batch.clear(), batch.bytes.capacity()), (2, 0));
    }
}
