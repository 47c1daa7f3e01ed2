//! A received frame, and the two frames a server sends on its own account as
//! typed values. Pure.

use std::fmt;

use bytes::Bytes;
use chappe_wire::{CODE_ERROR, CODE_GOODBYE, Code, ErrorNumber, Goodbye, NO_CODE, parse_notice};

/// One received frame whose checksum was right.
///
/// ```
/// # use chappe_client::*;
/// # use bytes::Bytes;
/// # let body = Bytes::from_static(b"\0\x03\0\x63no handler");
/// # let error = Frame { code: CODE_ERROR, body };
/// # let goodbye = Frame { code: CODE_GOODBYE, body: Bytes::from_static(b"\0\x02") };
/// fn show(frame: &Frame) -> String {
///     match (frame.as_error(), frame.as_goodbye()) {
///         (Some(error), _) => error.to_string(),
///         (_, Some(goodbye)) => goodbye.to_string(),
///         _ => format!("{} bytes of code {}", frame.body.len(), frame.code),
///     }
/// }
///
/// assert_eq!(show(&error), "error 3 (unknown code) for code 99: no handler");
/// assert_eq!(show(&goodbye), "goodbye 2 (reloading, connect again)");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The message code.
    pub code: Code,
    /// The body, 0..=65527 bytes.
    pub body: Bytes,
}

/// An error frame of the server: it stands where the reply would have been.
///
/// Its display is for a terminal: control characters of the text are escaped there.
///
/// ```
/// # use chappe_client::*;
/// # use bytes::Bytes;
/// # let body = Bytes::from_static(b"\0\x03\0\x63no handler");
/// # let error = Frame { code: CODE_ERROR, body };
/// # let goodbye = Frame { code: CODE_GOODBYE, body: Bytes::from_static(b"\0\x02") };
/// // To a frame of code 99, which has no handler:
/// let error = error.as_error().expect("an error");
/// assert_eq!((error.number, error.caused_by, &*error.text), (3, Some(99), "no handler"));
/// assert_eq!(error.to_string(), "error 3 (unknown code) for code 99: no handler");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    /// The error number, see [`ErrorNumber`]. Newer servers may know more.
    pub number: u16,
    /// The code of the frame that caused it, if a frame did.
    pub caused_by: Option<Code>,
    /// What the server says to people.
    pub text: String,
}

/// A goodbye frame of the server: after it comes the end of the stream.
///
/// Its display is for a terminal: control characters of the text are escaped there.
///
/// ```
/// # use chappe_client::*;
/// # use bytes::Bytes;
/// # let body = Bytes::from_static(b"\0\x03\0\x63no handler");
/// # let error = Frame { code: CODE_ERROR, body };
/// # let goodbye = Frame { code: CODE_GOODBYE, body: Bytes::from_static(b"\0\x02") };
/// // From a server that reloads:
/// let goodbye = goodbye.as_goodbye().expect("a goodbye");
/// assert_eq!((goodbye.reason, &*goodbye.text), (2, ""));
/// assert_eq!(goodbye.to_string(), "goodbye 2 (reloading, connect again)");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerGoodbye {
    /// The reason, see [`Goodbye`]. Newer servers may know more.
    pub reason: u16,
    /// What the server says to people.
    pub text: String,
}

impl Frame {
    /// The error that this frame reports; `None` if it is another frame, or malformed.
    ///
    /// ```
    /// # use chappe_client::*;
    /// # use bytes::Bytes;
    /// # let body = Bytes::from_static(b"\0\x03\0\x63no handler");
    /// # let error = Frame { code: CODE_ERROR, body };
    /// # let goodbye = Frame { code: CODE_GOODBYE, body: Bytes::from_static(b"\0\x02") };
    /// assert_eq!(error.as_error().map(|error| error.number), Some(3));
    /// assert_eq!(goodbye.as_error(), None);
    /// ```
    #[must_use]
    pub fn as_error(&self) -> Option<ServerError> {
        if self.code != CODE_ERROR {
            return None;
        }
        let ([number, code], text) = parse_notice(&self.body)?;
        Some(ServerError { number, caused_by: (code != NO_CODE).then_some(code), text })
    }

    /// The goodbye in this frame; `None` if it is another frame, or malformed.
    ///
    /// ```
    /// # use chappe_client::*;
    /// # use bytes::Bytes;
    /// # let body = Bytes::from_static(b"\0\x03\0\x63no handler");
    /// # let error = Frame { code: CODE_ERROR, body };
    /// # let goodbye = Frame { code: CODE_GOODBYE, body: Bytes::from_static(b"\0\x02") };
    /// assert_eq!(goodbye.as_goodbye().map(|goodbye| goodbye.reason), Some(2));
    /// assert_eq!(error.as_goodbye(), None);
    /// ```
    #[must_use]
    pub fn as_goodbye(&self) -> Option<ServerGoodbye> {
        if self.code != CODE_GOODBYE {
            return None;
        }
        let ([reason], text) = parse_notice(&self.body)?;
        Some(ServerGoodbye { reason, text })
    }
}

impl ServerError {
    /// Whether it is this error.
    ///
    /// ```
    /// # use chappe_client::*;
    /// # use bytes::Bytes;
    /// # let body = Bytes::from_static(b"\0\x03\0\x63no handler");
    /// # let error = Frame { code: CODE_ERROR, body };
    /// # let goodbye = Frame { code: CODE_GOODBYE, body: Bytes::from_static(b"\0\x02") };
    /// let error = error.as_error().expect("an error");
    /// assert!(error.is(ErrorNumber::UnknownCode) && !error.is(ErrorNumber::Denied));
    /// ```
    #[must_use]
    pub fn is(&self, number: ErrorNumber) -> bool {
        self.number == number as u16
    }

    /// The number in words.
    ///
    /// ```
    /// # use chappe_client::*;
    /// # use bytes::Bytes;
    /// # let body = Bytes::from_static(b"\0\x03\0\x63no handler");
    /// # let error = Frame { code: CODE_ERROR, body };
    /// # let goodbye = Frame { code: CODE_GOODBYE, body: Bytes::from_static(b"\0\x02") };
    /// let mut error = error.as_error().expect("an error");
    /// assert_eq!(error.name(), "unknown code");
    /// error.number = 99; // of a newer server
    /// assert_eq!(error.name(), "unknown error");
    /// ```
    #[must_use]
    pub fn name(&self) -> &'static str {
        const NAMES: [(ErrorNumber, &str); 10] = [
            (ErrorNumber::BadLength, "bad length"),
            (ErrorNumber::BadChecksum, "bad checksum"),
            (ErrorNumber::UnknownCode, "unknown code"),
            (ErrorNumber::HandlerFailed, "handler failed"),
            (ErrorNumber::TooFast, "too fast"),
            (ErrorNumber::Busy, "busy"),
            (ErrorNumber::FrameTimeout, "frame time-out"),
            (ErrorNumber::Denied, "denied"),
            (ErrorNumber::BusyInside, "busy inside"),
            (ErrorNumber::NotAllowed, "not allowed"),
        ];
        NAMES.iter().find(|(number, _)| self.is(*number)).map_or("unknown error", |(_, name)| name)
    }
}

impl ServerGoodbye {
    /// Whether it is for this reason.
    ///
    /// ```
    /// # use chappe_client::*;
    /// # use bytes::Bytes;
    /// # let body = Bytes::from_static(b"\0\x03\0\x63no handler");
    /// # let error = Frame { code: CODE_ERROR, body };
    /// # let goodbye = Frame { code: CODE_GOODBYE, body: Bytes::from_static(b"\0\x02") };
    /// let goodbye = goodbye.as_goodbye().expect("a goodbye");
    /// let connects_again = goodbye.is(Goodbye::Reloading);
    /// assert!(connects_again);
    /// ```
    #[must_use]
    pub fn is(&self, reason: Goodbye) -> bool {
        self.reason == reason as u16
    }

    /// The reason in words.
    ///
    /// ```
    /// # use chappe_client::*;
    /// # use bytes::Bytes;
    /// # let body = Bytes::from_static(b"\0\x03\0\x63no handler");
    /// # let error = Frame { code: CODE_ERROR, body };
    /// # let goodbye = Frame { code: CODE_GOODBYE, body: Bytes::from_static(b"\0\x02") };
    /// let mut goodbye = goodbye.as_goodbye().expect("a goodbye");
    /// assert_eq!(goodbye.name(), "reloading, connect again");
    /// goodbye.reason = 99; // of a newer server
    /// assert_eq!(goodbye.name(), "unknown reason");
    /// ```
    #[must_use]
    pub fn name(&self) -> &'static str {
        const NAMES: [(Goodbye, &str); 8] = [
            (Goodbye::Stopping, "stopping"),
            (Goodbye::Reloading, "reloading, connect again"),
            (Goodbye::Idle, "idle"),
            (Goodbye::TooSlow, "too slow"),
            (Goodbye::Kicked, "kicked"),
            (Goodbye::HandshakeTimeout, "handshake time-out"),
            (Goodbye::ByApplication, "closed by the application"),
            (Goodbye::OutcomeUnknown, "outcome unknown"),
        ];
        NAMES.iter().find(|(reason, _)| self.is(*reason)).map_or("unknown reason", |(_, name)| name)
    }
}

/// A text of somebody else's, for a terminal: what would steer it, or turn the order of
/// letters around, is written as an escape.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '\t' | '\r' | '\n' => write!(f, "{}", letter.escape_default())?,
                letter if letter.is_control() => write!(f, "\\x{:02x}", u32::from(letter))?,
                '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{202a}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}' => write!(f, "{}", letter.escape_unicode())?,
                letter => write!(f, "{letter}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error {} ({})", self.number, self.name())?;
        if let Some(code) = self.caused_by {
            write!(f, " for code {code}")?;
        }
        if self.text.is_empty() { Ok(()) } else { write!(f, ": {}", Shown(&self.text)) }
    }
}

impl fmt::Display for ServerGoodbye {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "goodbye {} ({})", self.reason, self.name())?;
        if self.text.is_empty() { Ok(()) } else { write!(f, ": {}", Shown(&self.text)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_wire::{error_frame, goodbye_frame, split_first};

    fn received(mut encoded: Bytes) -> Frame {
        let (header, body) = split_first(&mut encoded).unwrap();
        Frame { code: header.code, body }
    }

    #[test]
    fn an_error_frame_becomes_a_value() {
        let frame = received(error_frame(ErrorNumber::UnknownCode, Some(99), "no handler"));
        let error = frame.as_error().unwrap();
        assert!(error.is(ErrorNumber::UnknownCode));
        assert_eq!(error.caused_by, Some(99));
        assert_eq!(error.to_string(), "error 3 (unknown code) for code 99: no handler");
        assert_eq!(frame.as_goodbye(), None);

        let error = received(error_frame(ErrorNumber::Busy, None, "")).as_error().unwrap();
        assert_eq!((error.caused_by, error.to_string()), (None, "error 6 (busy)".to_owned()));
    }

    #[test]
    fn a_goodbye_becomes_a_value() {
        let frame = received(goodbye_frame(Goodbye::Idle, "nothing came"));
        let goodbye = frame.as_goodbye().unwrap();
        assert!(goodbye.is(Goodbye::Idle));
        assert_eq!(goodbye.to_string(), "goodbye 3 (idle): nothing came");
        assert_eq!(frame.as_error(), None);
    }

    #[test]
    fn a_servers_text_cannot_steer_a_terminal() {
        let text = "\x1b[2Jred\x1b[0m\r\n\tline\u{7f}\u{9b}1m\u{202e}lmx\u{61c} \u{e4}";
        let shown = r"\x1b[2Jred\x1b[0m\r\n\tline\x7f\x9b1m\u{202e}lmx\u{61c} \u{e4}";
        let shown = shown.replace(r"\u{e4}", "\u{e4}");
        let error = received(error_frame(ErrorNumber::Busy, None, text)).as_error().unwrap();
        assert_eq!(error.text, text);
        assert_eq!(error.to_string(), format!("error 6 (busy): {shown}"));
        let goodbye = received(goodbye_frame(Goodbye::Idle, text)).as_goodbye().unwrap();
        assert_eq!(goodbye.to_string(), format!("goodbye 3 (idle): {shown}"));
    }

    #[test]
    fn a_malformed_or_newer_notice_is_no_trap() {
        let short = Frame { code: CODE_ERROR, body: Bytes::from_static(&[0, 1, 0]) };
        assert_eq!(short.as_error(), None);
        let newer = Frame { code: CODE_GOODBYE, body: Bytes::from_static(&[1, 0]) };
        assert_eq!(newer.as_goodbye().unwrap().to_string(), "goodbye 256 (unknown reason)");
    }
}
