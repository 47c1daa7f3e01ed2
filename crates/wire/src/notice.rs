//! The two frames that a server sends on its own account: an error has two numbers, a
//! goodbye has one, and both have a text for people.

use super::{CODE_ERROR, CODE_GOODBYE, Code, encode};
use bytes::Bytes;

/// The code an error names when no frame caused it.
pub const NO_CODE: Code = 65535;

/// The longest text of a notice in bytes; a longer one is cut at a character.
const TEXT_BYTES_MAX: usize = 512;

/// Why a frame or a connection was refused: the first field of an error frame.
///
/// ```
/// # use chappe_wire::ErrorNumber;
/// /// Whether the connection always ends with this error.
/// fn ends(number: ErrorNumber) -> bool {
///     use ErrorNumber::{BadChecksum, BadLength, Busy, Denied, FrameTimeout};
///     matches!(number, BadLength | BadChecksum | Busy | FrameTimeout | Denied)
/// }
///
/// assert!(ends(ErrorNumber::Denied) && !ends(ErrorNumber::UnknownCode));
/// assert_eq!(ErrorNumber::Denied as u16, 8); // on the wire
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[non_exhaustive]
pub enum ErrorNumber {
    /// Below 8 or above the configured maximum. The connection is closed.
    BadLength = 1,
    /// The checksum is not that of the body. The connection is closed.
    BadChecksum = 2,
    /// There is no handler. The connection stays open.
    UnknownCode = 3,
    /// The handler returned an error, or its deferred reply was dropped or came too late
    /// (stays open), or it panicked (closed).
    HandlerFailed = 4,
    /// A rate limit. The frame is refused, the connection stays open unless the peer
    /// keeps exceeding it.
    TooFast = 5,
    /// No connection permit is left. Sent once on accept, then closed.
    Busy = 6,
    /// A begun frame did not complete. The connection is closed.
    FrameTimeout = 7,
    /// The application has denied the peer something. The connection is closed.
    Denied = 8,
    /// Too much is under way inside the server, as deferred replies. The connection stays
    /// open.
    BusyInside = 9,
    /// The peer may not do that: topics are off, or it is not its topic. The connection stays
    /// open.
    NotAllowed = 10,
}

/// Why the server leaves: the first field of a goodbye frame.
///
/// ```
/// # use chappe_wire::Goodbye;
/// /// Whether a client should connect again at once.
/// fn is_moved(reason: u16) -> bool {
///     // A number of a newer server is no reason to fail.
///     reason == Goodbye::Reloading as u16
/// }
///
/// assert!(is_moved(2) && !is_moved(1) && !is_moved(99));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[non_exhaustive]
pub enum Goodbye {
    /// The server stops.
    Stopping = 1,
    /// The server reloads: connect again now.
    Reloading = 2,
    /// Nothing was received for `timeouts.idle`.
    Idle = 3,
    /// The peer reads too slowly.
    TooSlow = 4,
    /// An operator closed the connection.
    Kicked = 5,
    /// No complete frame within `timeouts.handshake`, or no admission where the application
    /// asks for one.
    HandshakeTimeout = 6,
    /// The application closes the connection.
    ByApplication = 7,
    /// What has become of a message is not known: it was not answered in time.
    OutcomeUnknown = 8,
}

/// An error frame: number, the code of the frame that caused it, text.
///
/// Of the text 512 bytes are sent at most; a longer one is cut at a character.
///
/// ```
/// # use chappe_wire::{CODE_ERROR, ErrorNumber, error_frame, split_first};
/// let mut frame = error_frame(ErrorNumber::UnknownCode, Some(77), "no handler");
/// let (header, body) = split_first(&mut frame).expect("a whole frame");
/// assert_eq!(header.code, CODE_ERROR);
/// assert_eq!(&body[..], b"\x00\x03\x00\x4dno handler");
/// ```
#[must_use]
pub fn error_frame(number: ErrorNumber, caused_by: Option<Code>, text: &str) -> Bytes {
    let [n0, n1] = (number as u16).to_be_bytes();
    let [c0, c1] = caused_by.unwrap_or(NO_CODE).to_be_bytes();
    notice(CODE_ERROR, &[n0, n1, c0, c1], text)
}

/// A goodbye frame: reason, text.
///
/// Of the text 512 bytes are sent at most; a longer one is cut at a character.
///
/// ```
/// # use chappe_wire::{Goodbye, goodbye_frame, split_first};
/// let mut frame = goodbye_frame(Goodbye::Idle, &"é".repeat(300));
/// let (_, body) = split_first(&mut frame).expect("a whole frame");
/// assert_eq!(&body[..4], b"\x00\x03\xc3\xa9");
/// assert_eq!(body.len(), 2 + 512); // the number, and 256 of the letters
/// ```
#[must_use]
pub fn goodbye_frame(reason: Goodbye, text: &str) -> Bytes {
    notice(CODE_GOODBYE, &(reason as u16).to_be_bytes(), text)
}

fn notice(code: Code, numbers: &[u8], text: &str) -> Bytes {
    // No boundary of a character is more than three bytes before.
    let end = (0..=TEXT_BYTES_MAX.min(text.len())).rfind(|at| text.is_char_boundary(*at));
    let text = &text[..end.unwrap_or(0)];
    let body = [numbers, text.as_bytes()].concat();
    encode(code, &body).expect("a notice is at most 516 bytes")
}

/// The numbers and the text of a notice's body; `None` if it is too short.
/// Bytes of the text that are not UTF-8 are replaced.
///
/// ```
/// # use chappe_wire::parse_notice;
/// // The body of an error: two numbers.
/// let error = parse_notice(b"\x00\x03\x00\x4dno handler");
/// assert_eq!(error, Some(([3, 77], "no handler".to_owned())));
/// let goodbye = parse_notice(b"\x00\x01stop"); // of a goodbye: one
/// assert_eq!(goodbye, Some(([1], "stop".to_owned())));
/// assert_eq!(parse_notice::<2>(b"\x00\x03\x00"), None);
/// ```
#[must_use]
pub fn parse_notice<const NUMBERS: usize>(body: &[u8]) -> Option<([u16; NUMBERS], String)> {
    let (numbers, text) = body.split_at_checked(NUMBERS * 2)?;
    let mut parsed = [0; NUMBERS];
    for (number, pair) in parsed.iter_mut().zip(numbers.chunks_exact(2)) {
        *number = u16::from_be_bytes([pair[0], pair[1]]);
    }
    Some((parsed, String::from_utf8_lossy(text).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::split_first;
    use super::*;

    #[test]
    fn an_error_frame_says_number_code_and_text() {
        let (header, body) =
            split_first(&mut error_frame(ErrorNumber::UnknownCode, Some(77), "no handler"))
                .unwrap();
        assert_eq!(header.code, CODE_ERROR);
        assert!(header.verify(&body));
        assert_eq!(parse_notice(&body), Some(([3, 77], "no handler".to_owned())));
        let (_, body) = split_first(&mut error_frame(ErrorNumber::Busy, None, "")).unwrap();
        assert_eq!(parse_notice(&body), Some(([6, 65535], String::new())));
    }

    #[test]
    fn a_goodbye_says_reason_and_text_and_cuts_long_text_at_a_character() {
        let long = "é".repeat(400);
        let (header, body) = split_first(&mut goodbye_frame(Goodbye::Idle, &long)).unwrap();
        assert_eq!(header.code, CODE_GOODBYE);
        assert_eq!(parse_notice(&body), Some(([3], "é".repeat(256))));
        assert_eq!(parse_notice::<1>(&[0]), None);
    }
}
