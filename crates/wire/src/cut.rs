//! Cutting a stream into whole frames by their lengths. Nothing is copied and no body is
//! looked at: that is done for each byte received.

use super::HEADER_BYTES;

/// What [`cut`] found at the front of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Bytes that are whole frames.
    pub whole_bytes: usize,
    /// Number of these frames.
    pub frames: usize,
    /// What begins behind them.
    pub rest: Rest,
}

/// What begins behind the whole frames of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nothing: the buffer ends with a frame.
    Nothing,
    /// A frame that is not complete yet. More can be said of it when it has this many bytes:
    /// those of its length, of its header, or all.
    Part {
        /// More than there are.
        wanted: usize,
    },
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
            break Rest::Part { wanted: 2 };
        };
        let claimed = u16::from_be_bytes([*high, *low]);
        let length = usize::from(claimed);
        if !(HEADER_BYTES..=frame_bytes_max).contains(&length) {
            break Rest::BadLength(claimed);
        }
        if left.len() < length {
            let wanted = if left.len() < HEADER_BYTES { HEADER_BYTES } else { length };
            break Rest::Part { wanted };
        }
        at += length;
        frames += 1;
    };
    Cut { whole_bytes: at, frames, rest }
}

#[cfg(test)]
mod tests {
    use super::super::{FRAME_BYTES_MAX, encode};
    use super::*;

    const BODIES: [&[u8]; 5] = [b"", b"x", b"hello", b"", &[9; 56]];

    #[test]
    fn each_part_of_a_stream_has_its_whole_frames_and_what_is_begun() {
        let frames = BODIES.map(|body| encode(1, body).unwrap());
        let stream = frames.concat();
        for end in 0..=stream.len() {
            let (mut whole_bytes, mut whole) = (0, 0);
            while whole < frames.len() && whole_bytes + frames[whole].len() <= end {
                whole_bytes += frames[whole].len();
                whole += 1;
            }
            let rest = match end - whole_bytes {
                0 => Rest::Nothing,
                1 => Rest::Part { wanted: 2 },
                2..HEADER_BYTES => Rest::Part { wanted: HEADER_BYTES },
                _ => Rest::Part { wanted: frames[whole].len() },
            };
            assert_eq!(cut(&stream[..end], 64), Cut { whole_bytes, frames: whole, rest }, "{end}");
        }
    }

    #[test]
    fn frames_before_a_bad_length_are_whole() {
        let mut bad = BODIES.map(|body| encode(1, body).unwrap()).concat();
        let whole_bytes = bad.len();
        bad.extend_from_slice(&[0, 65, 1, 2, 3]);
        for end in whole_bytes + 2..=bad.len() {
            let expected = Cut { whole_bytes, frames: BODIES.len(), rest: Rest::BadLength(65) };
            assert_eq!(cut(&bad[..end], 64), expected, "{end}");
        }
    }

    #[test]
    fn a_length_is_judged_at_its_second_byte() {
        for max in [8, 9, 64, 1000, FRAME_BYTES_MAX] {
            for claimed in [0, 1, 7, 8, 9, 63, 64, 65, 999, 1000, 1001, 65534, 65535_u16] {
                let legal = (8..=max).contains(&usize::from(claimed));
                let rest = cut(&claimed.to_be_bytes(), max).rest;
                let part = Rest::Part { wanted: HEADER_BYTES };
                let expected = if legal { part } else { Rest::BadLength(claimed) };
                assert_eq!(rest, expected, "{claimed} of {max}");
            }
        }
        assert_eq!(cut(&[0], 64).rest, Rest::Part { wanted: 2 });
    }
}
