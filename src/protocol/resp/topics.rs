//! Publish and subscribe: the commands, and what topics tell a client.

use super::RESP3;
use super::answer::{Arguments, Ask};
use super::table::{Command, Hint};
use super::write::Out;
use chappe_engine::{Asks, Batch, Ended, Event, Opened, Refusal, Served, TopicKind, TopicQuery};

/// What a client of version 2 is told that has subscriptions.
const ONLY_LISTENS: &str = "only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are \
                            allowed in this context";

/// What it is answered for a `CHAPPE.CALL`.
pub(super) const NO_CALL: &str = "Can't execute 'chappe.call': only (P|S)SUBSCRIBE / \
                                  (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this \
                                  context";

/// Whether a client of version 2 with subscriptions may use it.
pub(super) fn is_for_listeners(command: Command) -> bool {
    matches!(
        command,
        Command::Subscribe
            | Command::SubscribePattern
            | Command::SubscribeShard
            | Command::Unsubscribe
            | Command::UnsubscribePattern
            | Command::UnsubscribeShard
            | Command::Ping
            | Command::Quit
            | Command::Reset
    )
}

/// What of that a command asks for.
pub(super) fn asks(opened: &Opened<'_>) -> Option<Asks> {
    match Hint::unpack(opened.checksum).command {
        Command::Publish | Command::PublishShard => Some(Asks::Publish),
        Command::Subscribe
        | Command::SubscribePattern
        | Command::SubscribeShard
        | Command::Unsubscribe
        | Command::UnsubscribePattern
        | Command::UnsubscribeShard => Some(Asks::Subscription),
        _ => None,
    }
}

pub(super) fn only_listens(name: &str) -> String {
    format!("Can't execute '{name}': {ONLY_LISTENS}")
}

impl Ask<'_> {
    pub(super) fn subscribe(&mut self, kind: TopicKind, names: &Arguments<'_>) -> Served {
        let names: Vec<&[u8]> = names.iter().map(|name| &**name).collect();
        let asked = self.host.subscribe(self.opened, kind, &names);
        self.asked(asked)
    }

    pub(super) fn unsubscribe(&mut self, kind: TopicKind, names: &Arguments<'_>) -> Served {
        let names: Vec<&[u8]> = names.iter().map(|name| &**name).collect();
        let asked = self.host.unsubscribe(self.opened, Some(kind), &names);
        self.asked(asked)
    }

    pub(super) fn publish(&mut self, kind: TopicKind, arguments: &Arguments<'_>) -> Served {
        let asked = self.host.publish(self.opened, kind, &arguments[0], &arguments[1]);
        self.asked(asked)
    }

    pub(super) fn about_topics(&mut self, arguments: &Arguments<'_>) -> Served {
        let (subcommand, rest) = (&*arguments[0], &arguments[1..]);
        let names: Vec<&[u8]> = rest.iter().map(|name| &**name).collect();
        let (topic, shard) = (TopicKind::Topic, TopicKind::Shard);
        let query = match (&*subcommand.to_ascii_uppercase(), &names[..]) {
            (b"CHANNELS", []) => TopicQuery::Listed { kind: topic, pattern: None },
            (b"CHANNELS", [pattern]) => TopicQuery::Listed { kind: topic, pattern: Some(pattern) },
            (b"SHARDCHANNELS", []) => TopicQuery::Listed { kind: shard, pattern: None },
            (b"SHARDCHANNELS", [pattern]) => {
                TopicQuery::Listed { kind: shard, pattern: Some(pattern) }
            }
            (b"NUMSUB", names) => TopicQuery::Counts { kind: topic, names },
            (b"SHARDNUMSUB", names) => TopicQuery::Counts { kind: shard, names },
            (b"NUMPAT", []) => TopicQuery::Patterns,
            (b"NUMPAT", _) => return self.wrong_count("pubsub|numpat"),
            (b"CHANNELS" | b"SHARDCHANNELS", _) => {
                let name = String::from_utf8_lossy(subcommand);
                let text = format!(
                    "unknown subcommand or wrong number of arguments for '{name}'. Try PUBSUB HELP."
                );
                return self.refuse("ERR", &text);
            }
            _ => return self.unknown_subcommand("PUBSUB", subcommand),
        };
        let asked = self.host.query(self.opened, query);
        self.asked(asked)
    }

    pub(super) fn asked(&mut self, asked: Result<(), Refusal>) -> Served {
        match asked {
            Ok(()) => Served::Submitted,
            Err(Refusal::Invalid(text)) => self.refuse("ERR", &text),
            Err(Refusal::NotAllowed(text)) => self.refuse("NOPERM", &text),
        }
    }
}

/// Appends what topics tell a client.
pub(super) fn event(dialect: u8, event: &Event<'_>, batch: &mut Batch) {
    let mut out = Out { bytes: batch.buffer(), is_resp3: dialect == RESP3 };
    let mut messages = 1;
    match *event {
        Event::Subscribed { kind, name, count, .. } => {
            let word = match kind {
                TopicKind::Topic => "subscribe",
                TopicKind::Pattern => "psubscribe",
                TopicKind::Shard => "ssubscribe",
            };
            out.told(3, word);
            out.bulk(name.as_bytes());
            out.integer(count);
        }
        // Only a RESET ends all kinds.
        Event::Unsubscribed { all: None, ended: [], .. } => out.simple("RESET"),
        Event::Unsubscribed { all, ended: [], left } => {
            let kind = all.unwrap_or(TopicKind::Topic);
            out.told(3, ended_word(kind));
            out.null();
            out.integer(left);
        }
        Event::Unsubscribed { ended, .. } => {
            messages = ended.len();
            for Ended { kind, name, count } in ended {
                out.told(3, ended_word(*kind));
                out.bulk(name.as_bytes());
                out.integer(count);
            }
        }
        Event::Published { subscribers, .. } => out.integer(subscribers),
        Event::Message { kind, name, topic, body, .. } => {
            match kind {
                TopicKind::Topic => out.told(3, "message"),
                TopicKind::Shard => out.told(3, "smessage"),
                TopicKind::Pattern => {
                    out.told(4, "pmessage");
                    out.bulk(name.as_bytes());
                }
            }
            out.bulk(topic.as_bytes());
            out.bulk(body);
        }
        Event::Listed { names } => {
            out.array(names.iter().map(|(_, count)| 1 + usize::from(count.is_some())).sum());
            for (name, count) in names {
                out.bulk(name.as_bytes());
                if let Some(count) = count {
                    out.integer(count);
                }
            }
        }
        Event::Patterns(count) => out.integer(count),
        // There is no word for it; the loss is counted.
        Event::Gap { .. } => return,
    }
    (0..messages).for_each(|_| batch.count());
}

fn ended_word(kind: TopicKind) -> &'static str {
    match kind {
        TopicKind::Topic => "unsubscribe",
        TopicKind::Pattern => "punsubscribe",
        TopicKind::Shard => "sunsubscribe",
    }
}

impl Out<'_> {
    /// So many values follow, of which this word is the first: a push in version 3.
    fn told(&mut self, count: usize, word: &str) {
        match self.is_resp3 {
            true => self.push(count),
            false => self.array(count),
        }
        self.bulk(word.as_bytes());
    }
}

/// The answer to a PING of a client of version 2 with subscriptions.
pub(super) fn pong(out: &mut Out<'_>, text: &[u8]) {
    out.array(2);
    out.bulk(b"pong");
    out.bulk(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(dialect: u8, it: &Event<'_>) -> (String, u32) {
        let mut batch = Batch::default();
        event(dialect, it, &mut batch);
        let (bytes, count) = batch.take();
        (String::from_utf8(bytes.to_vec()).unwrap(), count)
    }

    #[test]
    fn events_have_the_words_of_redis() {
        let (count, recovered, epoch, offset) = (2, 0, 1, 1);
        let subscribed =
            |kind, name| Event::Subscribed { kind, name, count, recovered, epoch, offset };
        let cases = [
            (subscribed(TopicKind::Topic, "a"), "*3|$9|subscribe|$1|a|:2|"),
            (subscribed(TopicKind::Pattern, "a*"), "*3|$10|psubscribe|$2|a*|:2|"),
            (subscribed(TopicKind::Shard, "a"), "*3|$10|ssubscribe|$1|a|:2|"),
            (Event::Published { offset: 3, subscribers: 4 }, ":4|"),
        ];
        for (event, text) in cases {
            assert_eq!(told(0, &event), (text.replace('|', "\r\n"), 1));
        }
        let message = |kind, name| Event::Message {
            offset: 9,
            kind,
            name,
            topic: "ab",
            code: 0,
            body: b"x",
            flags: 0,
        };
        let cases = [
            (message(TopicKind::Topic, "ab"), "*3|$7|message|$2|ab|$1|x|"),
            (message(TopicKind::Pattern, "a*"), "*4|$8|pmessage|$2|a*|$2|ab|$1|x|"),
            (message(TopicKind::Shard, "ab"), "*3|$8|smessage|$2|ab|$1|x|"),
        ];
        for (event, text) in cases {
            assert_eq!(told(0, &event), (text.replace('|', "\r\n"), 1));
            assert_eq!(told(RESP3, &event), (text.replacen('*', ">", 1).replace('|', "\r\n"), 1));
        }
    }

    #[test]
    fn each_end_is_told_by_itself() {
        let ended = [
            Ended { kind: TopicKind::Topic, name: "a", count: 1 },
            Ended { kind: TopicKind::Topic, name: "b", count: 0 },
        ];
        let all = Some(TopicKind::Topic);
        let text = "*3|$11|unsubscribe|$1|a|:1|*3|$11|unsubscribe|$1|b|:0|";
        let event = Event::Unsubscribed { all, ended: &ended, left: 0 };
        assert_eq!(told(0, &event), (text.replace('|', "\r\n"), 2));
        let event = Event::Unsubscribed { all: Some(TopicKind::Pattern), ended: &[], left: 0 };
        let text = "*3|$12|punsubscribe|$-1|:0|";
        assert_eq!(told(0, &event), (text.replace('|', "\r\n"), 1));
        let text = ">3|$12|punsubscribe|_|:0|";
        assert_eq!(told(RESP3, &event), (text.replace('|', "\r\n"), 1));
    }

    #[test]
    fn a_gap_has_no_word() {
        assert_eq!(told(0, &Event::Gap { lost: 3 }), (String::new(), 0));
    }
}
