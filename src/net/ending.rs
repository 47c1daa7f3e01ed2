//! Why the server ends a connection's input: one table of what the peer is sent, why, and
//! what is counted.

use chappe_engine::{Cause, Goodbye, Notice, Problem};
use chappe_shm::Counter;

/// An end of a connection's input, by the event loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The peer has sent its FIN.
    PeerClosed,
    /// The peer has sent its FIN inside of a message.
    PeerClosedInside,
    /// Bytes that no message begins with, and why.
    Malformed(String),
    /// `timeouts.frame`.
    FrameTimeout,
    /// `timeouts.handshake`.
    HandshakeTimeout,
    /// `timeouts.idle`.
    Idle,
    /// Above a rate limit for too long; the codes of the last messages that were refused.
    TooFast(Vec<u16>),
    /// A begun message holds memory that others need.
    HoldsMemory,
    /// `chappe kick`.
    Kicked,
    /// A draining peer was quiet.
    Drained(Goodbye),
}

impl Ending {
    /// What it comes to. `begun` is the code of the begun message, if there is one and it is
    /// known.
    pub(super) fn parts(self, begun: Option<u16>) -> (Cause, Option<Notice>, &'static [Counter]) {
        let incomplete = |text: &'static str| {
            Some(Notice::Error { problem: Problem::Incomplete, code: begun, text: text.into() })
        };
        let goodbye =
            |reason, text: &'static str| Some(Notice::Goodbye { reason, text: text.into() });
        match self {
            Self::PeerClosed => (Cause::PeerClosed, None, &[]),
            // It cannot be answered, but the peer may still read why.
            Self::PeerClosedInside => {
                let notice = incomplete("the stream ended inside a frame");
                (Cause::PeerClosed, notice, &[Counter::ProtocolErrors])
            }
            Self::Malformed(text) => {
                let (problem, text) = (Problem::Malformed, text.into());
                let notice = Some(Notice::Error { problem, code: None, text });
                (Cause::ProtocolError, notice, &[Counter::ProtocolErrors])
            }
            Self::FrameTimeout => {
                let notice = incomplete("a begun frame was not complete within timeouts.frame");
                let counters = &[Counter::ClosedFrameTimeout, Counter::ProtocolErrors];
                (Cause::FrameTimeout, notice, counters)
            }
            Self::HandshakeTimeout => {
                let text = "no complete frame within timeouts.handshake";
                let notice = goodbye(Goodbye::HandshakeTimeout, text);
                (Cause::HandshakeTimeout, notice, &[Counter::ClosedHandshake])
            }
            Self::Idle => {
                let notice = goodbye(Goodbye::Idle, "nothing was received within timeouts.idle");
                (Cause::Idle, notice, &[Counter::ClosedIdle])
            }
            Self::TooFast(codes) => (Cause::TooFast, Some(Notice::TooFast { codes }), &[]),
            Self::HoldsMemory => {
                let text = "no memory is left for begun frames (inbox.total_max_bytes)";
                (Cause::Overloaded, incomplete(text), &[Counter::ProtocolErrors])
            }
            Self::Kicked => (Cause::Kicked, goodbye(Goodbye::Kicked, "closed by an operator"), &[]),
            Self::Drained(Goodbye::Reloading) => (Cause::Reloading, None, &[]),
            Self::Drained(_) => (Cause::Stopping, None, &[]),
        }
    }
}

/// The notice that a connection gets when its drain begins.
pub(super) fn drain_notice(reason: Goodbye) -> Notice {
    let text = match reason {
        Goodbye::Reloading => "reloading, connect again now",
        _ => "stopping",
    };
    Notice::Goodbye { reason, text: text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_begun_message_and_a_goodbye_none() {
        let problem = |ending: Ending| match ending.parts(Some(77)).1 {
            Some(Notice::Error { problem, code, .. }) => Some((problem, code)),
            _ => None,
        };
        for ending in [Ending::PeerClosedInside, Ending::FrameTimeout, Ending::HoldsMemory] {
            assert_eq!(problem(ending), Some((Problem::Incomplete, Some(77))));
        }
        let malformed = Ending::Malformed("why".to_owned());
        assert_eq!(problem(malformed), Some((Problem::Malformed, None)), "judged before its code");
        for ending in [Ending::Idle, Ending::HandshakeTimeout, Ending::Kicked] {
            assert!(matches!(ending.parts(Some(77)).1, Some(Notice::Goodbye { .. })));
        }
        for ending in [Ending::PeerClosed, Ending::Drained(Goodbye::Stopping)] {
            assert!(ending.parts(Some(77)).1.is_none());
        }
    }
}
