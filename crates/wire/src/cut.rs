//! Cutting a stream into whole frames by their lengths. Runs on the event loop,
//! for each byte received, so it looks at lengths only and copies a byte at
//! most once: out of the shared read buffer into the chunk that travels on.

use super::{HEADER_BYTES, Header};
use bytes::Bytes;

/// The least that a begun frame's buffer grows by, if the frame is that long.
const GROWTH_BYTES_MIN: usize = 512;

/// What [`cut`] found at the front of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// How many bytes are whole frames.
    pub whole_bytes: usize,
    /// How many frames these are.
    pub frames: usize,
    /// What begins behind them.
    pub rest: Rest,
}

/// What begins behind the whole frames of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nothing: the buffer ended with a frame.
    Nothing,
    /// A frame of which the header is not complete yet.
    PartHeader,
    /// A frame of so many bytes, header included, not complete yet.
    PartFrame(usize),
    /// A length that no frame can have. The stream has lost its boundaries.
    BadLength(u16),
}

/// Finds how many whole frames `buffer` begins with.
///
/// A length is judged as soon as its two bytes are there: a peer that announces
/// too much is refused at once and not after its bytes were buffered.
#[must_use]
pub fn cut(buffer: &[u8], frame_bytes_max: usize) -> Cut {
    let mut at = 0;
    let mut frames = 0;
    let rest = loop {
        let left = &buffer[at..];
        if left.is_empty() {
            break Rest::Nothing;
        }
        let Some([high, low]) = left.first_chunk::<2>() else {
            break Rest::PartHeader;
        };
        let claimed = u16::from_be_bytes([*high, *low]);
        let length = usize::from(claimed);
        if !(HEADER_BYTES..=frame_bytes_max).contains(&length) {
            break Rest::BadLength(claimed);
        }
        if left.len() < HEADER_BYTES {
            break Rest::PartHeader;
        }
        if left.len() < length {
            break Rest::PartFrame(length);
        }
        at += length;
        frames += 1;
    };
    Cut { whole_bytes: at, frames, rest }
}

/// Cuts one connection's stream. Between two reads it keeps the bytes of the
/// one incomplete frame and nothing else, so an idle connection has no buffer.
#[derive(Debug, Default)]
pub struct Cutter {
    /// The begun frame. Its buffer doubles as bytes arrive, up to the frame's size.
    partial: Vec<u8>,
}

/// Some whole frames that share one allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The bytes of the frames, end to end.
    pub bytes: Bytes,
    /// How many frames these are, at least one.
    pub frames: usize,
}

impl Cutter {
    /// Bytes allocated here for the begun frame: at most 512, or twice what has
    /// arrived of it.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.partial.capacity()
    }

    /// Whether a frame has begun and is not complete.
    #[must_use]
    pub fn is_inside_frame(&self) -> bool {
        !self.partial.is_empty()
    }

    /// The begun frame's header, if it is complete already.
    #[must_use]
    pub fn begun(&self) -> Option<Header> {
        Header::read(&self.partial)
    }

    /// Lets go of the begun frame.
    pub fn clear(&mut self) {
        self.partial = Vec::new();
    }

    /// Takes in what one read brought, and passes on each chunk of whole frames
    /// (at most two: the begun frame completed, then the frames behind it).
    ///
    /// # Errors
    /// The claimed length, if it is none that a frame may have. What came
    /// before it was passed on; what follows has no meaning any more.
    pub fn take_in(
        &mut self,
        mut input: &[u8],
        frame_bytes_max: usize,
        mut pass_on: impl FnMut(Chunk),
    ) -> Result<(), u16> {
        if !self.partial.is_empty() {
            // Complete the begun frame: its length first, then its body.
            loop {
                let wanted = match cut(&self.partial, frame_bytes_max).rest {
                    Rest::BadLength(claimed) => {
                        self.clear();
                        return Err(claimed);
                    }
                    Rest::PartHeader if self.partial.len() < 2 => 2,
                    Rest::PartHeader => HEADER_BYTES,
                    Rest::PartFrame(length) => length,
                    // `partial` is whole: exactly one frame.
                    Rest::Nothing => {
                        let bytes = Bytes::from(std::mem::take(&mut self.partial));
                        pass_on(Chunk { bytes, frames: 1 });
                        break;
                    }
                };
                let missing = wanted - self.partial.len();
                let (now, later) = input.split_at(missing.min(input.len()));
                self.grow(now.len(), missing);
                self.partial.extend_from_slice(now);
                input = later;
                if now.len() < missing {
                    return Ok(());
                }
            }
        }
        let found = cut(input, frame_bytes_max);
        if found.frames > 0 {
            let bytes = Bytes::copy_from_slice(&input[..found.whole_bytes]);
            pass_on(Chunk { bytes, frames: found.frames });
        }
        let left = &input[found.whole_bytes..];
        match found.rest {
            Rest::Nothing => return Ok(()),
            Rest::BadLength(claimed) => return Err(claimed),
            Rest::PartHeader => self.grow(left.len(), HEADER_BYTES),
            Rest::PartFrame(length) => self.grow(left.len(), length),
        }
        self.partial.extend_from_slice(left);
        Ok(())
    }

    /// Makes room for `arrived` bytes of the `missing` ones. By doubling, and never
    /// beyond the frame: eight bytes that claim a large frame must not cost a large
    /// buffer.
    fn grow(&mut self, arrived: usize, missing: usize) {
        if self.partial.capacity() - self.partial.len() < arrived {
            let wanted = arrived.max(self.partial.len()).max(GROWTH_BYTES_MIN);
            self.partial.reserve_exact(wanted.min(missing));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FRAME_BYTES_MAX, encode};
    use super::*;

    fn stream(bodies: &[&[u8]]) -> Vec<u8> {
        bodies.iter().flat_map(|body| encode(1, body).unwrap()).collect()
    }

    fn feed(pieces: &[&[u8]]) -> (Vec<u8>, usize, Result<(), u16>) {
        let (mut cutter, mut bytes, mut frames, mut end) = (Cutter::default(), vec![], 0, Ok(()));
        for piece in pieces {
            end = cutter.take_in(piece, 64, |chunk| {
                assert_eq!(cut(&chunk.bytes, 64).frames, chunk.frames);
                bytes.extend_from_slice(&chunk.bytes);
                frames += chunk.frames;
            });
            if end.is_err() {
                break;
            }
        }
        (bytes, frames, end)
    }

    #[test]
    fn every_cut_of_a_stream_gives_the_same_frames() {
        let stream = stream(&[b"", b"x", b"hello", b"", &[9; 56]]);
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
                assert_eq!(feed(&pieces), (stream.clone(), 5, Ok(())), "{first}, {second}");
            }
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(feed(&bytes), (stream.clone(), 5, Ok(())));
    }

    #[test]
    fn a_length_is_judged_at_its_second_byte() {
        for max in [8, 9, 64, 1000, FRAME_BYTES_MAX] {
            for claimed in [0, 1, 7, 8, 9, 63, 64, 65, 999, 1000, 1001, 65534, 65535_u16] {
                let legal = (8..=max).contains(&usize::from(claimed));
                let rest = cut(&claimed.to_be_bytes(), max).rest;
                let expected = if legal { Rest::PartHeader } else { Rest::BadLength(claimed) };
                assert_eq!(rest, expected, "{claimed} of {max}");
            }
        }
        assert_eq!(cut(&[0], 64).rest, Rest::PartHeader);
    }

    #[test]
    fn frames_before_a_bad_length_are_passed_on_for_every_cut() {
        let mut bad = stream(&[b"good", b"too"]);
        let whole = bad.len();
        bad.extend_from_slice(&[0, 65, 1, 2, 3]);
        for at in 0..=bad.len() {
            let (bytes, frames, end) = feed(&[&bad[..at], &bad[at..]]);
            assert_eq!((&bytes[..], frames, end), (&bad[..whole], 2, Err(65)), "{at}");
        }
    }

    #[test]
    fn a_claim_costs_nothing_before_its_bytes_arrive() {
        let frame = encode(1, &[1; 60_000]).unwrap();
        let mut cutter = Cutter::default();
        let mut at = 0;
        for piece in [8, 100, 404, 1, 1000, 20_000, 38_494] {
            cutter
                .take_in(&frame[at..at + piece], FRAME_BYTES_MAX, |_| panic!("not whole"))
                .unwrap();
            at += piece;
            assert!(cutter.held_bytes() <= (2 * at).max(512), "{} at {at}", cutter.held_bytes());
        }
        cutter
            .take_in(&frame[at..], FRAME_BYTES_MAX, |chunk| assert_eq!(chunk.bytes, frame))
            .unwrap();
    }

    #[test]
    fn an_incomplete_frame_holds_its_own_size_and_a_whole_one_nothing() {
        let frame = encode(1, &[1; 40]).unwrap();
        let mut cutter = Cutter::default();
        cutter.take_in(&frame[..20], 64, |_| panic!("not whole yet")).unwrap();
        assert_eq!((cutter.partial.len(), cutter.held_bytes()), (20, 48));
        assert!(cutter.is_inside_frame());
        assert_eq!(cutter.begun().unwrap().length, 48);
        cutter.take_in(&frame[20..], 64, |chunk| assert_eq!(chunk.bytes, frame)).unwrap();
        assert_eq!(cutter.held_bytes(), 0);
        assert!(!cutter.is_inside_frame());
    }
}
