//! What topics tell a client: codes 4 to 10. The bodies are those of docs/PROTOCOL.md.

use chappe_engine::{Batch, Event};
use chappe_wire::{
    self as wire, CODE_APPLICATION_MESSAGE, CODE_GAP, CODE_MESSAGE, CODE_PUBLISH, CODE_SUBSCRIBE,
    CODE_UNSUBSCRIBE, Code,
};

/// A client wants messages of the service with their topic and offset, as code 10.
pub(crate) const FLAG_WITH_TOPIC: u8 = 1;

/// Appends one frame.
pub(super) fn append(event: &Event<'_>, out: &mut Batch) {
    match *event {
        Event::Subscribed { count, recovered, epoch, offset, .. } => {
            let (epoch, offset) = (epoch.to_be_bytes(), offset.to_be_bytes());
            frame(out, CODE_SUBSCRIBE, &[&count.to_be_bytes(), &[recovered], &epoch, &offset]);
        }
        Event::Unsubscribed { left, .. } => frame(out, CODE_UNSUBSCRIBE, &[&left.to_be_bytes()]),
        Event::Published { offset, subscribers } => {
            frame(out, CODE_PUBLISH, &[&offset.to_be_bytes(), &subscribers.to_be_bytes()]);
        }
        Event::Message { offset, topic, code, body, flags, .. } => {
            let (offset, length) = (offset.to_be_bytes(), [length_of(topic)]);
            let topic = topic.as_bytes();
            if code == 0 {
                frame(out, CODE_MESSAGE, &[&offset, &length, topic, body]);
            } else if flags & FLAG_WITH_TOPIC != 0 {
                let code = code.to_be_bytes();
                frame(out, CODE_APPLICATION_MESSAGE, &[&offset, &length, topic, &code, body]);
            } else {
                frame(out, code, &[body]);
            }
        }
        // No code of this protocol asks for that.
        Event::Listed { .. } | Event::Patterns(_) => {}
        Event::Gap { lost } => frame(out, CODE_GAP, &[&lost.to_be_bytes()]),
    }
}

fn length_of(topic: &str) -> u8 {
    u8::try_from(topic.len()).expect("a topic has at most 255 bytes")
}

fn frame(out: &mut Batch, code: Code, parts: &[&[u8]]) {
    let body = parts.concat();
    // What is published is bounded so that it fits, see `chappe_topics`.
    match wire::append_checked(out.buffer(), code, &body, None) {
        Ok(()) => out.count(),
        Err(wire::BodyTooLong(bytes)) => {
            log::error!(target: "topics.too_long", "a message of {bytes} bytes is lost")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use chappe_engine::TopicKind;

    fn encoded(event: &Event<'_>) -> (Code, Vec<u8>) {
        let mut batch = Batch::default();
        append(event, &mut batch);
        let mut bytes = Bytes::from_owner(batch.take().0);
        let (header, body) = wire::split_first(&mut bytes).unwrap();
        assert!(header.verify(&body) && bytes.is_empty());
        (header.code, body.to_vec())
    }

    #[test]
    fn each_has_the_bytes_of_the_manual() {
        let kind = TopicKind::Topic;
        let (count, recovered) = (2, 1);
        let subscribed =
            Event::Subscribed { kind, name: "ab", count, recovered, epoch: 3, offset: 4 };
        let body = [0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4];
        assert_eq!(encoded(&subscribed), (4, body.to_vec()));
        assert_eq!(
            encoded(&Event::Unsubscribed { all: None, ended: &[], left: 1 }),
            (5, vec![0, 0, 0, 1])
        );
        let published = Event::Published { offset: 258, subscribers: 7 };
        assert_eq!(encoded(&published), (6, vec![0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 7]));
        let message = |code, flags| {
            let (name, topic) = ("a*", "ab");
            Event::Message { offset: 1, kind, name, topic, code, body: b"x", flags }
        };
        let front = [0, 0, 0, 0, 0, 0, 0, 1, 2, b'a', b'b'];
        assert_eq!(encoded(&message(0, 0)), (7, [&front[..], b"x"].concat()));
        assert_eq!(encoded(&message(0, 1)).0, 7, "the flag is for messages of the service");
        assert_eq!(encoded(&message(300, 1)), (10, [&front[..], &[1, 44], b"x"].concat()));
        assert_eq!(encoded(&message(300, 0)), (300, b"x".to_vec()));
        assert_eq!(encoded(&Event::Gap { lost: 5 }), (8, vec![0, 0, 0, 0, 0, 0, 0, 5]));
    }
}
