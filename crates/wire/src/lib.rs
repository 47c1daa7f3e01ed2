//! The wire format: an 8-byte header, then the body. Pure: bytes in, values
//! out; no socket, no clock, no allocation that the caller did not ask for.
//!
//! ```text
//!  0       2       4               8
//!  +-------+-------+---------------+------------------ - -
//!  | length| code  | crc32(body)   | body: length - 8 bytes
//!  +-------+-------+---------------+------------------ - -
//!     u16     u16        u32          big-endian throughout
//! ```
//!
//! A receiver takes one frame after the other off what has arrived ([`split_first`]), and
//! checks its body ([`Header::verify`]).

mod notice;

pub use notice::{ErrorNumber, Goodbye, NO_CODE, error_frame, goodbye_frame, parse_notice};

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes before the body of each frame.
pub const HEADER_BYTES: usize = 8;

/// The largest frame that the 16-bit length can name, header included.
pub const FRAME_BYTES_MAX: usize = u16::MAX as usize;

/// The largest body: 65527 bytes.
pub const BODY_BYTES_MAX: usize = FRAME_BYTES_MAX - HEADER_BYTES;

/// The message code of a frame, which names its handler.
pub type Code = u16;

/// Answered by an empty frame of the same code: the heartbeat.
pub const CODE_PING: Code = 0;
/// Answered by the same body.
pub const CODE_ECHO: Code = 1;
/// Answered by u64 milliseconds since the Unix epoch.
pub const CODE_TIME: Code = 2;
/// Answered by UTF-8 text: worker, pid, generation, connection, peer.
pub const CODE_WHO: Code = 3;
/// Subscribe to a topic, and its confirmation.
pub const CODE_SUBSCRIBE: Code = 4;
/// A subscription's end.
pub const CODE_UNSUBSCRIBE: Code = 5;
/// Publish, and its answer.
pub const CODE_PUBLISH: Code = 6;
/// A message of a topic.
pub const CODE_MESSAGE: Code = 7;
/// Messages of topics were lost.
pub const CODE_GAP: Code = 8;
/// Publish without an answer.
pub const CODE_PUBLISH_UNANSWERED: Code = 9;
/// A message of a topic with an application's code, for who has asked for it so.
pub const CODE_APPLICATION_MESSAGE: Code = 10;
/// The first code that belongs to applications.
pub const CODE_APPLICATION_MIN: Code = 16;
/// The last code that belongs to applications.
pub const CODE_APPLICATION_MAX: Code = 65279;
/// Server to client: goodbye, see [`Goodbye`].
pub const CODE_GOODBYE: Code = 65534;
/// Server to client: error, see [`ErrorNumber`].
pub const CODE_ERROR: Code = 65535;

/// The first eight bytes of a frame, as they were sent.
///
/// ```
/// # use chappe_wire::{Header, encode};
/// let frame = encode(1, b"hello")?;
/// let header = Header::read(&frame).expect("eight bytes and more");
/// assert_eq!((header.length, header.code, header.crc32), (8 + 5, 1, 0x3610_a686));
/// # Ok::<(), chappe_wire::BodyTooLong>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Header and body, in bytes. A sender may claim less than 8.
    pub length: u16,
    /// Names the handler.
    pub code: Code,
    /// CRC-32 (IEEE 802.3, as zlib's) of the body; 0 for an empty one.
    pub crc32: u32,
}

impl Header {
    /// Reads a header; `None` while fewer than eight bytes are there.
    ///
    /// ```
    /// # use chappe_wire::Header;
    /// assert_eq!(Header::read(&[0, 8, 0, 0, 0, 0, 0]), None); // a byte is missing
    /// let header = Header::read(&[0, 7, 0, 0, 0, 0, 0, 0]).expect("eight bytes");
    /// // Less than the header: to refuse it is the caller's part.
    /// assert_eq!(header.length, 7);
    /// ```
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let [l0, l1, c0, c1, s0, s1, s2, s3] = *bytes.first_chunk::<HEADER_BYTES>()?;
        Some(Self {
            length: u16::from_be_bytes([l0, l1]),
            code: u16::from_be_bytes([c0, c1]),
            crc32: u32::from_be_bytes([s0, s1, s2, s3]),
        })
    }

    /// The eight bytes of the wire.
    ///
    /// ```
    /// # use chappe_wire::{Header, checksum};
    /// // For a frame whose body, of five bytes, goes in another write.
    /// let header = Header { length: 8 + 5, code: 1, crc32: checksum(b"hello") };
    /// assert_eq!(header.to_bytes(), [0, 13, 0, 1, 0x36, 0x10, 0xa6, 0x86]);
    /// ```
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let [l0, l1] = self.length.to_be_bytes();
        let [c0, c1] = self.code.to_be_bytes();
        let [s0, s1, s2, s3] = self.crc32.to_be_bytes();
        [l0, l1, c0, c1, s0, s1, s2, s3]
    }

    /// Whether `body` is what the sender computed the checksum of.
    ///
    /// ```
    /// # use chappe_wire::{Header, checksum};
    /// let header = Header { length: 13, code: 1, crc32: checksum(b"hello") };
    /// assert!(header.verify(b"hello") && !header.verify(b"hallo"));
    /// ```
    #[must_use]
    pub fn verify(&self, body: &[u8]) -> bool {
        checksum(body) == self.crc32
    }
}

/// A body that does not fit a 16-bit length.
///
/// ```
/// # use chappe_wire::{BodyTooLong, encode};
/// let error = encode(1, &[0; 65_528]).unwrap_err();
/// assert_eq!(error, BodyTooLong(65_528)); // the length of the body, in bytes
/// assert_eq!(error.to_string(), "a body of 65528 bytes does not fit a frame, the most is 65527");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a body of {0} bytes does not fit a frame, the most is {BODY_BYTES_MAX}")]
pub struct BodyTooLong(pub usize);

fn frame_length(body: &[u8]) -> Result<u16, BodyTooLong> {
    u16::try_from(HEADER_BYTES + body.len()).map_err(|_| BodyTooLong(body.len()))
}

/// CRC-32 of a body; 0 for an empty one, which is also what the polynomial gives.
///
/// ```
/// # use chappe_wire::checksum;
/// assert_eq!(checksum(b"123456789"), 0xcbf4_3926); // as zlib's crc32
/// assert_eq!(checksum(b""), 0);
/// ```
#[must_use]
pub fn checksum(body: &[u8]) -> u32 {
    crc32fast::hash(body)
}

/// Appends a whole frame to `out`.
///
/// ```
/// # use chappe_wire::append_frame;
/// let mut out = Vec::new();
/// append_frame(&mut out, 16, b"one")?;
/// append_frame(&mut out, 16, b"two")?; // both go in one write
/// assert!(append_frame(&mut out, 16, &[0; 65_528]).is_err());
/// assert_eq!(out.len(), 2 * (8 + 3));
/// # Ok::<(), chappe_wire::BodyTooLong>(())
/// ```
///
/// # Errors
/// [`BodyTooLong`]; `out` is then as it was.
pub fn append_frame(out: &mut impl BufMut, code: Code, body: &[u8]) -> Result<(), BodyTooLong> {
    append_checked(out, code, body, None)
}

/// Appends a whole frame to `out`. The checksum of the body is computed unless it is known
/// already; a wrong one is sent as it is.
///
/// ```
/// # use chappe_wire::{append_checked, append_frame, split_first};
/// // An echo has the body that was received, and so its checksum.
/// let mut received = chappe_wire::encode(1, b"hello")?;
/// let (header, body) = split_first(&mut received).expect("a whole frame");
/// let mut out = Vec::new();
/// append_checked(&mut out, header.code, &body, Some(header.crc32))?;
/// # assert_eq!(out, chappe_wire::encode(1, b"hello")?);
/// # Ok::<(), chappe_wire::BodyTooLong>(())
/// ```
///
/// # Errors
/// [`BodyTooLong`]; `out` is then as it was.
// For the server, which is another crate of the workspace.
#[doc(hidden)]
pub fn append_checked(
    out: &mut impl BufMut,
    code: Code,
    body: &[u8],
    known: Option<u32>,
) -> Result<(), BodyTooLong> {
    let length = frame_length(body)?;
    let crc32 = known.unwrap_or_else(|| checksum(body));
    let header = Header { length, code, crc32 };
    out.put_slice(&header.to_bytes());
    out.put_slice(body);
    Ok(())
}

/// A whole frame in a buffer of its own.
///
/// ```
/// # use chappe_wire::encode;
/// assert_eq!(&encode(0, b"")?[..], [0, 8, 0, 0, 0, 0, 0, 0]); // a ping
/// assert_eq!(encode(16, &[0; 65_527])?.len(), 65_535); // the largest frame
/// # Ok::<(), chappe_wire::BodyTooLong>(())
/// ```
///
/// # Errors
/// [`BodyTooLong`].
pub fn encode(code: Code, body: &[u8]) -> Result<Bytes, BodyTooLong> {
    let mut out = BytesMut::with_capacity(HEADER_BYTES + body.len());
    append_frame(&mut out, code, body)?;
    Ok(out.freeze())
}

/// Takes the first frame off a chunk, and returns its header and its body, which shares the
/// chunk's allocation. `None` if the chunk does not begin with a whole frame. The body is not
/// compared with its checksum: [`Header::verify`].
///
/// ```
/// # use chappe_wire::{encode, split_first};
/// let received = [&encode(16, b"one")?[..], &encode(17, b"two")?[..10]].concat();
/// let mut chunk = received.into(); // a frame, and a part of the next one
/// let (header, body) = split_first(&mut chunk).expect("a whole frame");
/// assert!(header.verify(&body));
/// assert_eq!((header.code, &body[..]), (16, &b"one"[..]));
/// assert_eq!(split_first(&mut chunk), None);
/// assert_eq!(chunk.len(), 10); // what waits for the rest
/// # Ok::<(), chappe_wire::BodyTooLong>(())
/// ```
pub fn split_first(chunk: &mut Bytes) -> Option<(Header, Bytes)> {
    let header = Header::read(chunk)?;
    let body = chunk.get(HEADER_BYTES..usize::from(header.length))?;
    let body = chunk.slice_ref(body);
    chunk.advance(usize::from(header.length));
    Some((header, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_bytes_are_big_endian_and_round_trip() {
        let header = Header { length: 0x0102, code: 0x0304, crc32: 0x0506_0708 };
        assert_eq!(header.to_bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(Header::read(&header.to_bytes()), Some(header));
        assert_eq!(Header::read(&[0; 7]), None);
    }

    #[test]
    fn checksum_is_zlibs() {
        // The check value of CRC-32/ISO-HDLC.
        assert_eq!(checksum(b"123456789"), 0xCBF4_3926);
        assert_eq!(checksum(b""), 0);
    }

    #[test]
    fn the_largest_body_fits_and_one_more_does_not() {
        let body = vec![7; BODY_BYTES_MAX + 1];
        assert_eq!(encode(1, &body[1..]).unwrap().len(), FRAME_BYTES_MAX);
        let mut out = BytesMut::new();
        assert_eq!(append_frame(&mut out, 1, &body), Err(BodyTooLong(BODY_BYTES_MAX + 1)));
        assert!(out.is_empty());
    }

    #[test]
    fn each_flipped_bit_of_a_body_is_noticed() {
        let body = b"a semaphore counts".to_vec();
        let header = Header { length: 26, code: 1, crc32: checksum(&body) };
        assert!(header.verify(&body));
        for bit in 0..body.len() * 8 {
            let mut flipped = body.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!header.verify(&flipped), "bit {bit}");
        }
    }

    #[test]
    fn split_first_takes_whole_frames_only() {
        let mut chunk = BytesMut::new();
        append_frame(&mut chunk, 5, b"one").unwrap();
        append_frame(&mut chunk, 6, b"").unwrap();
        chunk.put_slice(&[0, 9, 0, 0]);
        let mut chunk = chunk.freeze();
        let (header, body) = split_first(&mut chunk).unwrap();
        assert_eq!((header.code, &body[..]), (5, &b"one"[..]));
        let (header, body) = split_first(&mut chunk).unwrap();
        assert_eq!((header.code, body.len()), (6, 0));
        assert_eq!(split_first(&mut chunk), None);
        // A length below 8 never yields a frame either.
        assert_eq!(split_first(&mut Bytes::from_static(&[0, 7, 0, 0, 0, 0, 0, 0])), None);
    }
}
