//! The native protocol: an 8-byte header with length, code and checksum, then the body.
//! The bytes are those of [`chappe_wire`]; docs/PROTOCOL.md describes them.

use chappe_engine::{Batch, BodyTooLong, Framed, Goodbye, Notice, Opened, Problem, Protocol, Rest};
use chappe_wire::{self as wire, BODY_BYTES_MAX, ErrorNumber, HEADER_BYTES, Header};

/// What a peer is told whose message a rate limit has refused.
const TOO_FAST: &str = "above the rate limit";

/// The native protocol, with its configured bound.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chappe {
    frame_bytes_max: usize,
}

impl Chappe {
    /// `frame_bytes_max` is `frame.max_bytes`, of received frames.
    pub(super) fn new(frame_bytes_max: usize) -> Self {
        Self { frame_bytes_max }
    }
}

impl Protocol for Chappe {
    fn frame(&self, stream: &[u8]) -> Framed {
        let wire::Cut { whole_bytes, frames, rest } = wire::cut(stream, self.frame_bytes_max);
        let rest = match rest {
            wire::Rest::Nothing => Rest::Nothing,
            wire::Rest::Part { wanted } => Rest::Part { wanted },
            wire::Rest::BadLength(claimed) => {
                let max = self.frame_bytes_max;
                let text = format!("a frame has 8 to {max} bytes, this one claims {claimed}");
                Rest::Malformed(text)
            }
        };
        Framed { whole_bytes, messages: frames, rest }
    }

    fn code_of_part(&self, part: &[u8]) -> Option<u16> {
        Header::read(part).map(|header| header.code)
    }

    #[inline]
    fn open<'a>(&self, messages: &'a [u8]) -> Option<Opened<'a>> {
        let Header { length, code, crc32 } = Header::read(messages)?;
        let length = usize::from(length);
        if length > self.frame_bytes_max {
            return None;
        }
        let body = messages.get(HEADER_BYTES..length)?;
        Some(Opened { code, body, checksum: crc32, length })
    }

    fn is_intact(&self, opened: &Opened<'_>) -> bool {
        wire::checksum(opened.body) == opened.checksum
    }

    fn reply(
        &self,
        code: u16,
        body: &[u8],
        checksum: Option<u32>,
        out: &mut Batch,
    ) -> Result<(), BodyTooLong> {
        wire::append_checked(out.buffer(), code, body, checksum)
            .map_err(|wire::BodyTooLong(bytes)| BodyTooLong { bytes, max: BODY_BYTES_MAX })?;
        out.count();
        Ok(())
    }

    fn notice(&self, notice: &Notice, out: &mut Batch) {
        match notice {
            Notice::Error { problem, code, text } => {
                out.append(&wire::error_frame(number_of(*problem), *code, text));
            }
            Notice::TooFast { codes } => {
                for code in codes {
                    out.append(&wire::error_frame(ErrorNumber::TooFast, Some(*code), TOO_FAST));
                }
            }
            Notice::Goodbye { reason, text } => {
                out.append(&wire::goodbye_frame(reason_of(*reason), text));
            }
        }
    }
}

fn number_of(problem: Problem) -> ErrorNumber {
    match problem {
        Problem::Malformed => ErrorNumber::BadLength,
        Problem::BadChecksum => ErrorNumber::BadChecksum,
        Problem::UnknownCode => ErrorNumber::UnknownCode,
        Problem::HandlerFailed => ErrorNumber::HandlerFailed,
        Problem::TooFast => ErrorNumber::TooFast,
        Problem::Busy => ErrorNumber::Busy,
        Problem::Incomplete => ErrorNumber::FrameTimeout,
    }
}

fn reason_of(goodbye: Goodbye) -> wire::Goodbye {
    match goodbye {
        Goodbye::Stopping => wire::Goodbye::Stopping,
        Goodbye::Reloading => wire::Goodbye::Reloading,
        Goodbye::Idle => wire::Goodbye::Idle,
        Goodbye::TooSlow => wire::Goodbye::TooSlow,
        Goodbye::Kicked => wire::Goodbye::Kicked,
        Goodbye::HandshakeTimeout => wire::Goodbye::HandshakeTimeout,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use wire::{FRAME_BYTES_MAX, encode, parse_notice, split_first};

    #[test]
    fn what_it_opens_is_what_it_frames() {
        let protocol = Chappe::new(64);
        let stream = [encode(1, b"one").unwrap(), encode(2, b"").unwrap()].concat();
        for end in 0..=stream.len() {
            let (mut rest, mut opened) = (&stream[..end], 0);
            while let Some(message) = protocol.open(rest) {
                assert!(protocol.is_intact(&message));
                rest = &rest[message.length..];
                opened += 1;
            }
            let framed = protocol.frame(&stream[..end]);
            assert_eq!((framed.messages, framed.whole_bytes), (opened, end - rest.len()), "{end}");
        }
    }

    #[test]
    fn a_length_that_no_frame_has_is_not_opened_and_is_malformed() {
        let protocol = Chappe::new(64);
        for length in [0_u8, 7, 65] {
            let mut bad = vec![0; 100];
            bad[1] = length;
            assert!(protocol.open(&bad).is_none());
            let Rest::Malformed(text) = protocol.frame(&bad).rest else { panic!("{length}") };
            assert_eq!(text, format!("a frame has 8 to 64 bytes, this one claims {length}"));
        }
        assert_eq!(protocol.frame(&[0]).rest, Rest::Part { wanted: 2 });
        assert_eq!(protocol.frame(&[0, 9]).rest, Rest::Part { wanted: 8 });
        assert_eq!(protocol.frame(&[0, 9, 0, 0, 0, 0, 0, 0]).rest, Rest::Part { wanted: 9 });
    }

    #[test]
    fn notices_have_their_numbers() {
        let numbers = |notice: Notice| {
            let (bytes, messages) = Chappe::new(FRAME_BYTES_MAX).notice_alone(&notice);
            let mut bytes = Bytes::from_owner(bytes);
            let frames: Vec<_> = std::iter::from_fn(|| split_first(&mut bytes))
                .map(|(_, body)| parse_notice::<2>(&body).unwrap().0)
                .collect();
            assert_eq!(frames.len(), messages as usize);
            frames
        };
        let problem = Problem::Incomplete;
        let error = Notice::Error { problem, code: Some(77), text: "late".into() };
        assert_eq!(numbers(error), [[7, 77]]);
        assert_eq!(numbers(Notice::TooFast { codes: vec![16, 17] }), [[5, 16], [5, 17]]);
        let (bytes, _) = Chappe::new(FRAME_BYTES_MAX)
            .notice_alone(&Notice::Goodbye { reason: Goodbye::Kicked, text: "by hand".into() });
        let (_, body) = wire::first_frame(&bytes).unwrap();
        assert_eq!(parse_notice(body), Some(([5], "by hand".to_owned())));
    }
}
