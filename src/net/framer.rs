//! A connection's begun message. Between two reads a connection keeps the bytes of the
//! one incomplete message and nothing else, so an idle connection has no buffer.
//!
//! A byte is copied at most once on its way: out of the shared read buffer, into the chunk
//! that goes to the inbox.

use chappe_engine::{Chunk, Progress, Protocol, Rest};
use chappe_sys::clock::Moment;

/// The least that a begun message's buffer grows to, if the message is that long.
const GROWTH_BYTES_MIN: usize = 512;

/// The begun message of one connection.
#[derive(Debug, Default)]
pub(super) struct Framer {
    /// The begun message, if there is one; boxed, since most connections have none.
    part: Option<Box<Part>>,
}

/// A begun message.
#[derive(Debug, Default)]
struct Part {
    /// What has arrived of it. The buffer doubles as bytes arrive, up to the message's size.
    bytes: Vec<u8>,
    /// When it began; the clock stands still while reading is paused.
    began: Option<Moment>,
    /// How far it has been looked at.
    progress: Progress,
}

/// Bytes that no message begins with, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) String);

impl Framer {
    /// Bytes allocated for the begun message: at most 512, or twice what has arrived of it.
    pub(super) fn held_bytes(&self) -> usize {
        self.part.as_ref().map_or(0, |part| part.bytes.capacity())
    }

    /// Whether a message has begun and is not complete.
    pub(super) fn is_inside_message(&self) -> bool {
        self.part.is_some()
    }

    /// What has arrived of it.
    pub(super) fn part(&self) -> &[u8] {
        self.part.as_ref().map_or(&[], |part| &part.bytes)
    }

    /// When the begun message began, if there is one.
    pub(super) fn began(&self) -> Option<Moment> {
        self.part.as_ref()?.began
    }

    /// If a message has begun just now, this is when.
    pub(super) fn note_begun(&mut self, now: Moment) {
        if let Some(part) = &mut self.part {
            part.began.get_or_insert(now);
        }
    }

    /// Moves that time.
    pub(super) fn shift(&mut self, shift: impl FnOnce(Moment) -> Moment) {
        if let Some(part) = &mut self.part {
            part.began = part.began.map(shift);
        }
    }

    /// Drops the begun message.
    pub(super) fn clear(&mut self) {
        self.part = None;
    }

    /// Takes in what one read brought, and passes on each chunk of whole messages (at
    /// most two: the begun message completed, then the messages behind it).
    ///
    /// # Errors
    /// What came before was passed on; what follows has no meaning any more.
    pub(super) fn take_in(
        &mut self,
        mut input: &[u8],
        protocol: &dyn Protocol,
        mut pass_on: impl FnMut(Chunk),
    ) -> Result<(), Malformed> {
        while let Some(Part { bytes: part, progress, .. }) = self.part.as_deref_mut() {
            // Complete the begun message: its header first, then its body.
            match protocol.frame_on(part, input, progress) {
                Rest::Malformed(text) => {
                    self.clear();
                    return Err(Malformed(text));
                }
                Rest::Part { wanted } => {
                    let missing = wanted - part.len();
                    let (now, later) = input.split_at(missing.min(input.len()));
                    let is_all = *progress == Progress::default();
                    grow(part, now.len(), if is_all { missing } else { usize::MAX });
                    part.extend_from_slice(now);
                    input = later;
                    if now.len() < missing {
                        return Ok(());
                    }
                }
                // Exactly one message.
                Rest::Nothing => {
                    let message = Chunk::new(part, 1);
                    self.clear();
                    pass_on(message);
                }
            }
        }
        let framed = protocol.frame(input);
        let (whole, part) = input.split_at(framed.whole_bytes);
        if framed.messages > 0 {
            pass_on(Chunk::new(whole, framed.messages));
        }
        match framed.rest {
            Rest::Nothing => {}
            Rest::Malformed(text) => return Err(Malformed(text)),
            Rest::Part { wanted } => {
                let begun = &mut self.part.insert(Box::default()).bytes;
                grow(begun, part.len(), wanted);
                begun.extend_from_slice(part);
            }
        }
        Ok(())
    }
}

/// Makes room for `arrived` bytes of the `missing` ones, if it is known how many these are. By
/// doubling, and never beyond the message: eight bytes that claim a large message must not cost
/// a large buffer.
fn grow(part: &mut Vec<u8>, arrived: usize, missing: usize) {
    if part.capacity() - part.len() < arrived {
        let least = GROWTH_BYTES_MIN.saturating_sub(part.len());
        let wanted = arrived.max(part.len()).max(least);
        part.reserve_exact(wanted.min(missing));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{self, encode};
    use std::collections::BTreeSet;
    use std::sync::Arc;

    fn protocol(max: usize) -> Arc<dyn Protocol> {
        Arc::clone(&protocol::all(max)[0])
    }

    fn stream(bodies: &[&[u8]]) -> Vec<u8> {
        bodies.iter().flat_map(|body| encode(1, body).unwrap().to_vec()).collect()
    }

    fn feed(pieces: &[&[u8]]) -> (Vec<u8>, usize, bool) {
        let protocol = protocol(64);
        let (mut framer, mut bytes, mut messages) = (Framer::default(), vec![], 0);
        for piece in pieces {
            let end = framer.take_in(piece, &*protocol, |chunk| {
                assert_eq!(protocol.frame(chunk.bytes()).messages, chunk.messages());
                bytes.extend_from_slice(chunk.bytes());
                messages += chunk.messages();
            });
            if end.is_err() {
                return (bytes, messages, false);
            }
        }
        (bytes, messages, true)
    }

    #[test]
    fn every_split_of_a_stream_gives_the_same_messages() {
        let stream = stream(&[b"", b"x", b"hello", b"", &[9; 56]]);
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
                assert_eq!(feed(&pieces), (stream.clone(), 5, true), "{first}, {second}");
            }
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(feed(&bytes), (stream.clone(), 5, true));
    }

    #[test]
    fn messages_before_malformed_bytes_are_passed_on_for_every_split() {
        let mut bad = stream(&[b"good", b"too"]);
        let whole = bad.len();
        bad.extend_from_slice(&[0, 65, 1, 2, 3]);
        for at in 0..=bad.len() {
            let (bytes, messages, is_well) = feed(&[&bad[..at], &bad[at..]]);
            assert_eq!((&bytes[..], messages, is_well), (&bad[..whole], 2, false), "{at}");
        }
    }

    #[test]
    fn a_command_whose_length_is_not_known_is_copied_a_few_times() {
        let protocol = protocol::resp();
        let command = [
            &b"*2048\r\n"[..],
            &b"$50\r\n01234567890123456789012345678901234567890123456789\r\n".repeat(2048),
        ]
        .concat();
        for stream in [&command[..], &[&vec![b'x'; 60_000][..], b"\n"].concat()] {
            let (mut framer, mut whole, mut sizes) = (Framer::default(), 0, BTreeSet::new());
            for (nth, piece) in stream.chunks(100).enumerate() {
                framer.take_in(piece, &*protocol, |chunk| whole += chunk.bytes().len()).unwrap();
                let arrived = stream.len().min((nth + 1) * 100);
                assert!(framer.held_bytes() <= (2 * arrived).max(512), "{arrived}");
                sizes.insert(framer.held_bytes());
            }
            assert_eq!(whole, stream.len());
            assert!(sizes.len() < 16, "{sizes:?}");
        }
    }

    #[test]
    fn a_claim_costs_nothing_before_its_bytes_arrive() {
        let protocol = protocol(65_535);
        let message = encode(1, &[1; 60_000]).unwrap();
        let (mut framer, mut at) = (Framer::default(), 0);
        for piece in [8, 100, 404, 1, 1000, 20_000, 38_494] {
            let piece = &message[at..at + piece];
            framer.take_in(piece, &*protocol, |_| panic!("not whole")).unwrap();
            at += piece.len();
            assert!(framer.held_bytes() <= (2 * at).max(512), "{} at {at}", framer.held_bytes());
        }
        let rest = &message[at..];
        framer.take_in(rest, &*protocol, |chunk| assert_eq!(chunk.bytes(), &message[..])).unwrap();
    }

    #[test]
    fn an_incomplete_message_holds_its_own_size_and_a_whole_one_nothing() {
        let protocol = protocol(64);
        let message = encode(1, &[1; 40]).unwrap();
        let mut framer = Framer::default();
        framer.take_in(&message[..20], &*protocol, |_| panic!("not whole yet")).unwrap();
        assert_eq!((framer.part().len(), framer.held_bytes()), (20, 48));
        framer
            .take_in(&message[20..], &*protocol, |chunk| assert_eq!(chunk.bytes(), &message[..]))
            .unwrap();
        assert_eq!(framer.held_bytes(), 0);
        assert!(!framer.is_inside_message());
    }
}
