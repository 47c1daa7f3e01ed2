//! The native protocol: an 8-byte header with length, code and checksum, then the body.
//! The bytes are those of [`chappe_wire`]; docs/PROTOCOL.md describes them.

mod events;

pub(crate) use events::FLAG_WITH_TOPIC;

use chappe_engine::{
    Asks, Batch, BodyTooLong, Event, Framed, Goodbye, Notice, Opened, Problem, Protocol, Rest,
};
use chappe_wire::{
    self as wire, BODY_BYTES_MAX, CODE_PUBLISH, CODE_PUBLISH_UNANSWERED, CODE_SUBSCRIBE,
    CODE_UNSUBSCRIBE, ErrorNumber, HEADER_BYTES, Header,
};

/// The text for a peer whose message a rate limit has refused.
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
        let (mut whole_bytes, mut messages) = (0, 0);
        let rest = loop {
            let left = &stream[whole_bytes..];
            if left.is_empty() {
                break Rest::Nothing;
            }
            // A length is judged as soon as its two bytes are there: a peer that announces
            // too much is refused at once and not after its bytes were buffered.
            let Some([high, low]) = left.first_chunk() else {
                break Rest::Part { wanted: 2 };
            };
            let (length, max) = (u16::from_be_bytes([*high, *low]).into(), self.frame_bytes_max);
            if !(HEADER_BYTES..=max).contains(&length) {
                let text = format!("a frame has 8 to {max} bytes, this one claims {length}");
                break Rest::Malformed(text);
            }
            if left.len() < length {
                let wanted = if left.len() < HEADER_BYTES { HEADER_BYTES } else { length };
                break Rest::Part { wanted };
            }
            whole_bytes += length;
            messages += 1;
        };
        Framed { whole_bytes, messages, rest }
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
        Some(Opened { code, body, checksum: crc32, length, joins: false })
    }

    fn is_intact(&self, opened: &Opened<'_>) -> bool {
        wire::checksum(opened.body) == opened.checksum
    }

    fn asks(&self, opened: &Opened<'_>) -> Option<Asks> {
        match opened.code {
            CODE_PUBLISH | CODE_PUBLISH_UNANSWERED => Some(Asks::Publish),
            CODE_SUBSCRIBE | CODE_UNSUBSCRIBE => Some(Asks::Subscription),
            _ => None,
        }
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

    fn event(&self, _: u8, event: &Event<'_>, out: &mut Batch) {
        events::append(event, out);
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
        Problem::NotAdmitted | Problem::Denied => ErrorNumber::Denied,
        Problem::BusyInside => ErrorNumber::BusyInside,
        Problem::NotAllowed => ErrorNumber::NotAllowed,
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
        Goodbye::ByApplication => wire::Goodbye::ByApplication,
        Goodbye::OutcomeUnknown => wire::Goodbye::OutcomeUnknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use wire::{FRAME_BYTES_MAX, encode, parse_notice, split_first};

    const BODIES: [&[u8]; 5] = [b"", b"x", b"hello", b"", &[9; 56]];

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
            let (bytes, messages) = Chappe::new(FRAME_BYTES_MAX).notice_alone(&notice).unwrap();
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
            .notice_alone(&Notice::Goodbye { reason: Goodbye::Kicked, text: "by hand".into() })
            .unwrap();
        let (_, body) = split_first(&mut Bytes::from_owner(bytes)).unwrap();
        assert_eq!(parse_notice(&body), Some(([5], "by hand".to_owned())));
    }

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
            assert_eq!(
                Chappe::new(64).frame(&stream[..end]),
                Framed { whole_bytes, messages: whole, rest },
                "{end}"
            );
        }
    }

    #[test]
    fn frames_before_a_bad_length_are_whole() {
        let mut bad = BODIES.map(|body| encode(1, body).unwrap()).concat();
        let whole_bytes = bad.len();
        bad.extend_from_slice(&[0, 65, 1, 2, 3]);
        for end in whole_bytes + 2..=bad.len() {
            let framed = Chappe::new(64).frame(&bad[..end]);
            assert_eq!((framed.whole_bytes, framed.messages), (whole_bytes, BODIES.len()), "{end}");
            assert!(matches!(framed.rest, Rest::Malformed(_)), "{end}");
        }
    }

    #[test]
    fn a_length_is_judged_at_its_second_byte() {
        for max in [8, 9, 64, 1000, FRAME_BYTES_MAX] {
            for claimed in [0, 1, 7, 8, 9, 63, 64, 65, 999, 1000, 1001, 65534, 65535_u16] {
                let legal = (8..=max).contains(&usize::from(claimed));
                let rest = Chappe::new(max).frame(&claimed.to_be_bytes()).rest;
                let is_begun = rest == Rest::Part { wanted: HEADER_BYTES };
                let is_refused = matches!(rest, Rest::Malformed(_));
                assert_eq!((is_begun, is_refused), (legal, !legal), "{claimed} of {max}");
            }
        }
        assert_eq!(Chappe::new(64).frame(&[0]).rest, Rest::Part { wanted: 2 });
    }
}
