//! Bodies of requests, such that no two messages of a run look alike: each carries
//! the number of its connection and its own, and the bytes behind them depend on
//! both. So a reply that belongs to another message, or of which a part does, is
//! seen by comparing bytes. Or all bodies are one that was given. Pure.

use chappe_client::{BodyTooLong, Code};
use chappe_wire::{HEADER_BYTES, Header, checksum};

/// Message number (u64), then connection number (u32), little-endian: of a body that
/// is too short for both, the bytes that change most come first.
const STAMP_BYTES: usize = 12;

/// How many fillers there are. They overlap: each begins a byte after the one before.
const FILLERS: u64 = 4096;

/// Which message of which connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id {
    pub(super) connection: u32,
    pub(super) sequence: u64,
}

/// In what a body is not the one that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    Length,
    /// It is a body of this other connection.
    Connection(u32),
    /// It is another body of this connection, or so it says.
    Sequence,
    Content,
}

/// Makes and checks the bodies of one run, which are all of one length.
#[derive(Debug)]
pub(super) struct Bodies {
    length: u16,
    bytes: usize,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// A stamp of this length, then a part of the noise.
    Numbered { stamp_bytes: usize, noise: Box<[u8]> },
    /// These bytes in each.
    Given(Box<[u8]>),
}

impl Bodies {
    /// Bodies of `bytes` bytes, no two of them alike.
    pub(super) fn new(bytes: usize) -> Result<Self, BodyTooLong> {
        let fillers = usize::try_from(FILLERS).expect("4096");
        let noise = noise(bytes + fillers).into_boxed_slice();
        Self::of(bytes, Content::Numbered { stamp_bytes: bytes.min(STAMP_BYTES), noise })
    }

    /// This body each time.
    pub(super) fn given(body: &[u8]) -> Result<Self, BodyTooLong> {
        Self::of(body.len(), Content::Given(body.into()))
    }

    fn of(bytes: usize, content: Content) -> Result<Self, BodyTooLong> {
        let length = u16::try_from(HEADER_BYTES + bytes).map_err(|_| BodyTooLong(bytes))?;
        Ok(Self { length, bytes, content })
    }

    /// Appends the request with this body.
    pub(super) fn append(&self, out: &mut Vec<u8>, code: Code, id: Id) {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_BYTES]);
        match &self.content {
            Content::Numbered { stamp_bytes, noise } => {
                out.extend_from_slice(&stamp(id)[..*stamp_bytes]);
                out.extend_from_slice(filler(noise, self.bytes - stamp_bytes, id));
            }
            Content::Given(body) => out.extend_from_slice(body),
        }
        let body = start + HEADER_BYTES;
        let header = Header { length: self.length, code, crc32: checksum(&out[body..]) };
        out[start..body].copy_from_slice(&header.to_bytes());
    }

    /// Whether `body` is exactly the one that was made for `id`.
    pub(super) fn check(&self, body: &[u8], id: Id) -> Result<(), Difference> {
        if body.len() != self.bytes {
            return Err(Difference::Length);
        }
        let is_right = match &self.content {
            Content::Numbered { stamp_bytes, noise } => {
                let (found, rest) = body.split_at(*stamp_bytes);
                if *found != stamp(id)[..*stamp_bytes] {
                    return Err(difference(found, id));
                }
                rest == filler(noise, rest.len(), id)
            }
            Content::Given(given) => *body == **given,
        };
        if is_right { Ok(()) } else { Err(Difference::Content) }
    }
}

/// What stands behind the stamp.
fn filler(noise: &[u8], bytes: usize, id: Id) -> &[u8] {
    // Odd factors: neighbours in either number have different fillers.
    let mixed = id.sequence.wrapping_mul(7).wrapping_add(u64::from(id.connection) * 613);
    let start = usize::try_from(mixed % FILLERS).expect("less than 4096");
    &noise[start..start + bytes]
}

fn stamp(id: Id) -> [u8; STAMP_BYTES] {
    let mut stamp = [0; STAMP_BYTES];
    stamp[..8].copy_from_slice(&id.sequence.to_le_bytes());
    stamp[8..].copy_from_slice(&id.connection.to_le_bytes());
    stamp
}

fn difference(found: &[u8], id: Id) -> Difference {
    match found.get(8..).and_then(|connection| connection.first_chunk()) {
        Some(connection) if *connection != id.connection.to_le_bytes() => {
            Difference::Connection(u32::from_le_bytes(*connection))
        }
        _ => Difference::Sequence,
    }
}

/// Noise that is equal in each run, without a period that a body could have too.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0_u64;
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        // A step of SplitMix64.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        noise.extend_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_client::{BODY_BYTES_MAX, CODE_ECHO};

    const ID: Id = Id { connection: 3, sequence: 1000 };

    fn body(bodies: &Bodies, id: Id) -> Vec<u8> {
        let mut out = b"before".to_vec();
        bodies.append(&mut out, CODE_ECHO, id);
        let frame = out.split_off(6);
        let header = Header::read(&frame).unwrap();
        assert_eq!((header.code, usize::from(header.length)), (CODE_ECHO, frame.len()));
        assert!(header.verify(&frame[HEADER_BYTES..]));
        frame[HEADER_BYTES..].to_vec()
    }

    #[test]
    fn what_was_made_is_what_is_expected() {
        for bytes in [0, 1, 7, 8, 11, 12, 13, 64, BODY_BYTES_MAX] {
            let bodies = Bodies::new(bytes).unwrap();
            assert_eq!(bodies.check(&body(&bodies, ID), ID), Ok(()), "{bytes} bytes");
        }
        assert_eq!(Bodies::new(BODY_BYTES_MAX + 1).unwrap_err(), BodyTooLong(BODY_BYTES_MAX + 1));
    }

    #[test]
    fn a_body_that_was_given_is_in_each_message() {
        let bodies = Bodies::given(b"hello").unwrap();
        for sequence in 0..3 {
            let id = Id { connection: 1, sequence };
            assert_eq!(body(&bodies, id), b"hello");
            assert_eq!(bodies.check(b"hello", id), Ok(()));
            assert_eq!(bodies.check(b"hellO", id), Err(Difference::Content));
            assert_eq!(bodies.check(b"hell", id), Err(Difference::Length));
        }
    }

    #[test]
    fn each_changed_byte_is_seen() {
        let bodies = Bodies::new(64).unwrap();
        for at in 0..64 {
            let mut changed = body(&bodies, ID);
            changed[at] ^= 1;
            assert!(bodies.check(&changed, ID).is_err(), "byte {at}");
        }
    }

    #[test]
    fn another_message_is_told_by_what_it_is() {
        let bodies = Bodies::new(64).unwrap();
        let stranger = body(&bodies, Id { connection: 4, ..ID });
        assert_eq!(bodies.check(&stranger, ID), Err(Difference::Connection(4)));
        let early = body(&bodies, Id { sequence: 1001, ..ID });
        assert_eq!(bodies.check(&early, ID), Err(Difference::Sequence));
        assert_eq!(bodies.check(&early[1..], ID), Err(Difference::Length));
        // Half of one and half of another: the stamp is right, what follows is not.
        let mut mixed = body(&bodies, ID);
        mixed[32..].copy_from_slice(&early[32..]);
        assert_eq!(bodies.check(&mixed, ID), Err(Difference::Content));
    }

    #[test]
    fn bodies_too_short_for_a_stamp_still_differ_from_their_neighbours() {
        let bodies = Bodies::new(1).unwrap();
        let next = body(&bodies, Id { sequence: 1001, ..ID });
        assert_eq!(bodies.check(&next, ID), Err(Difference::Sequence));
    }
}
