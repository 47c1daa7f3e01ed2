//! What a server says of topics, as typed values. Pure.

use std::fmt;

use bytes::Bytes;
use chappe_wire::{CODE_APPLICATION_MESSAGE, CODE_GAP, CODE_MESSAGE, Code};

use super::received::{Frame, ServerError};

/// A client wants messages of the application with their topic and offset, as code 10.
pub(super) const FLAG_WITH_TOPIC: u8 = 1;

/// The answer to a subscribe.
///
/// ```
/// # use chappe_client::*;
/// /// Whether messages were missed since the last connection.
/// fn has_missed(answer: &Subscribed) -> bool {
///     answer.recovered == Recovered::No
/// }
///
/// let answer = Subscribed { subscriptions: 2, recovered: Recovered::No, epoch: 7, offset: 1200 };
/// assert!(has_missed(&answer));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscribed {
    /// How many subscriptions the connection has now.
    pub subscriptions: u32,
    /// Whether it goes on where it was to resume.
    pub recovered: Recovered,
    /// Which log the offset is of. It changes when the server is started again.
    pub epoch: u64,
    /// Of the last message before the subscription.
    pub offset: u64,
}

/// What has become of a subscription at a [`reconnect`](super::Connection::reconnect).
///
/// ```
/// # use chappe_client::*;
/// /// Topics that may have missed something.
/// fn incomplete(resumed: &[Resumed]) -> Vec<&str> {
///     let is_whole = |answer: &Subscribed| answer.recovered == Recovered::Yes;
///     let incomplete = resumed.iter().filter(|it| !it.answer.as_ref().is_ok_and(is_whole));
///     incomplete.map(|it| &*it.topic).collect()
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// As it was subscribed to.
    pub topic: String,
    /// The server's answer, or its refusal.
    pub answer: Result<Subscribed, ServerError>,
}

/// Whether a subscription goes on where it was to resume.
///
/// ```
/// # use chappe_client::Recovered;
/// fn says(recovered: Recovered) -> &'static str {
///     match recovered {
///         Recovered::NotAsked => "from here on",
///         Recovered::Yes => "nothing was missed",
///         Recovered::No => "something may have been missed",
///     }
/// }
///
/// assert_eq!(says(Recovered::Yes), "nothing was missed");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// It was not to resume.
    NotAsked,
    /// Each message since then comes now.
    Yes,
    /// Too much has been published since then, or the server was started again: it begins with
    /// the offset of the answer.
    No,
}

/// The answer to a publish.
///
/// ```
/// # use chappe_client::Published;
/// let answer = Published { offset: 42, subscribers: 3 };
/// assert!(answer.subscribers > 0, "somebody hears it");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The number of the message, among those of all topics.
    pub offset: u64,
    /// How many subscriptions match, of all workers.
    pub subscribers: u32,
}

/// A message of a topic.
///
/// ```
/// # use chappe_client::TopicMessage;
/// # use bytes::Bytes;
/// let (topic, body) = ("room".to_owned(), Bytes::from_static(b"hello"));
/// // `None`: a client has published it.
/// let message = TopicMessage { offset: 42, topic, code: None, body };
/// assert_eq!(message.to_string(), "message 42 of \"room\", 5 bytes");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicMessage {
    /// The number of the message, among those of all topics.
    pub offset: u64,
    /// What it was published to.
    pub topic: String,
    /// The code that the application has published it with; `None` if a client has published it.
    pub code: Option<Code>,
    /// What was published.
    pub body: Bytes,
}

impl fmt::Display for TopicMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, topic, code, body } = self;
        write!(f, "message {offset} of {topic:?}, ")?;
        if let Some(code) = code {
            write!(f, "code {code}, ")?;
        }
        write!(f, "{} bytes", body.len())
    }
}

/// What [`Connection::next_message`](super::Connection::next_message) returns.
///
/// ```
/// # use chappe_client::*;
/// fn show(incoming: &Incoming) -> String {
///     match incoming {
///         Incoming::Message(message) => format!("{}: {:?}", message.topic, message.body),
///         Incoming::Gap { lost } => format!("at most {lost} messages are lost"),
///         Incoming::Frame(frame) => format!("a frame of code {}", frame.code),
///     }
/// }
///
/// assert_eq!(show(&Incoming::Gap { lost: 3 }), "at most 3 messages are lost");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A message of a topic.
    Message(TopicMessage),
    /// Messages were lost before the next one: this connection, or its worker, was too slow.
    Gap {
        /// At most so many.
        lost: u64,
    },
    /// Any other frame: what the application sends without a topic, a reply, a goodbye, the
    /// error of a publish without an answer.
    Frame(Frame),
}

/// Whether frames of this code belong to a subscription, and are no reply.
pub(super) fn is_of_topics(code: Code) -> bool {
    matches!(code, CODE_MESSAGE | CODE_GAP | CODE_APPLICATION_MESSAGE)
}

impl Incoming {
    pub(super) fn of(frame: Frame) -> Self {
        let read = match frame.code {
            CODE_MESSAGE | CODE_APPLICATION_MESSAGE => message_of(&frame).map(Self::Message),
            CODE_GAP => take(&mut &frame.body[..]).map(|lost| Self::Gap { lost: number(lost) }),
            _ => None,
        };
        read.unwrap_or(Self::Frame(frame))
    }
}

/// The offset and the topic of a message's frame.
pub(super) fn place_of(frame: &Frame) -> Option<(u64, &str)> {
    if !matches!(frame.code, CODE_MESSAGE | CODE_APPLICATION_MESSAGE) {
        return None;
    }
    let mut rest = &frame.body[..];
    let (offset, [length]) = (number(take(&mut rest)?), take(&mut rest)?);
    let topic = std::str::from_utf8(rest.get(..usize::from(length))?).ok()?;
    Some((offset, topic))
}

fn message_of(frame: &Frame) -> Option<TopicMessage> {
    let (offset, topic) = place_of(frame)?;
    let mut rest = &frame.body[8 + 1 + topic.len()..];
    let code = match frame.code {
        CODE_MESSAGE => None,
        _ => Some(Code::from_be_bytes(take(&mut rest)?)),
    };
    Some(TopicMessage { offset, topic: topic.to_owned(), code, body: frame.body.slice_ref(rest) })
}

impl Subscribed {
    pub(super) fn read(mut body: &[u8]) -> Option<Self> {
        let subscriptions = u32::from_be_bytes(take(&mut body)?);
        let recovered = match take(&mut body)? {
            [0] => Recovered::NotAsked,
            [1] => Recovered::Yes,
            [_] => Recovered::No,
        };
        let (epoch, offset) = (number(take(&mut body)?), number(take(&mut body)?));
        Some(Self { subscriptions, recovered, epoch, offset })
    }
}

impl Published {
    pub(super) fn read(mut body: &[u8]) -> Option<Self> {
        let offset = number(take(&mut body)?);
        Some(Self { offset, subscribers: u32::from_be_bytes(take(&mut body)?) })
    }
}

/// How many subscriptions are left, out of the answer to an unsubscribe.
pub(super) fn left_of(mut body: &[u8]) -> Option<u32> {
    take(&mut body).map(u32::from_be_bytes)
}

fn number(bytes: [u8; 8]) -> u64 {
    u64::from_be_bytes(bytes)
}

/// Takes so many bytes off the front.
fn take<const BYTES: usize>(rest: &mut &[u8]) -> Option<[u8; BYTES]> {
    let (front, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(*front)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(code: Code, parts: &[&[u8]]) -> Frame {
        Frame { code, body: parts.concat().into() }
    }

    #[test]
    fn each_frame_of_the_manual_becomes_a_value() {
        let front: &[u8] = &[0, 0, 0, 0, 0, 0, 1, 2, 2, b'a', b'b'];
        let message = |code, body: &[u8]| {
            let (topic, body) = ("ab".to_owned(), Bytes::copy_from_slice(body));
            Incoming::Message(TopicMessage { offset: 258, topic, code, body })
        };
        assert_eq!(Incoming::of(frame(7, &[front, b"x"])), message(None, b"x"));
        assert_eq!(Incoming::of(frame(7, &[front])), message(None, b""));
        assert_eq!(Incoming::of(frame(10, &[front, &[1, 44], b"x"])), message(Some(300), b"x"));
        let gap = frame(8, &[&[0, 0, 0, 0, 0, 0, 0, 5]]);
        assert_eq!(Incoming::of(gap), Incoming::Gap { lost: 5 });
        let answer = [0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4];
        let recovered = Recovered::Yes;
        let expected = Subscribed { subscriptions: 2, recovered, epoch: 3, offset: 4 };
        assert_eq!(Subscribed::read(&answer), Some(expected));
        let answer = [0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 7];
        assert_eq!(Published::read(&answer), Some(Published { offset: 258, subscribers: 7 }));
        assert_eq!(left_of(&[0, 0, 1, 0]), Some(256));
    }

    #[test]
    fn what_is_malformed_stays_a_frame() {
        let front: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 1];
        for bad in [
            frame(7, &[&front[..7]]),
            frame(7, &[front]),
            frame(7, &[front, &[2, b'a']]),
            frame(7, &[front, &[2, 0xC3, 0x28]]),
            frame(10, &[front, &[1, b'a', 1]]),
            frame(8, &[&front[..7]]),
            frame(18, &[front, &[1, b'a']]),
        ] {
            assert_eq!(Incoming::of(bad.clone()), Incoming::Frame(bad));
        }
        assert_eq!((Subscribed::read(&[0; 20]), Published::read(&[0; 11])), (None, None));
        assert_eq!(left_of(&[0; 3]), None);
    }
}
