//! Topics, and what is subscribed to: one topic, or all that begin alike.

use crate::glob;
use std::borrow::Cow;
use thiserror::Error;

/// The longest topic, in bytes.
pub const TOPIC_BYTES_MAX: usize = 255;

/// What the topics of the service begin with.
const RESERVED: char = '$';

/// What ends the text of a prefix filter, as clients write it.
const ANY: u8 = b'*';

/// What the names of shard channels begin with, where it matters: no topic does.
const SHARD: char = '\u{1}';

/// Why bytes are no topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidTopic {
    /// There are none.
    #[error("a topic has at least one byte")]
    Empty,
    /// There are too many.
    #[error("a topic has at most {TOPIC_BYTES_MAX} bytes, not {0}")]
    TooLong(usize),
    /// They are no text.
    #[error("a topic is UTF-8")]
    NotUtf8,
    /// They have a byte below 32, or 127, or one of U+0080 to U+009F.
    #[error("a topic has no control characters")]
    ControlCharacter,
}

/// A topic: 1 to 255 bytes of UTF-8 without control characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Topic<'a>(&'a str);

impl<'a> Topic<'a> {
    /// These bytes as a topic.
    ///
    /// # Errors
    /// [`InvalidTopic`] says what is wrong with them.
    pub fn new(bytes: &'a [u8]) -> Result<Self, InvalidTopic> {
        match bytes.len() {
            0 => Err(InvalidTopic::Empty),
            1..=TOPIC_BYTES_MAX => text(bytes).map(Self),
            bytes => Err(InvalidTopic::TooLong(bytes)),
        }
    }

    /// As it lies in a ring: also a shard channel, as [`Topic::shard`] names it.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, InvalidTopic> {
        match bytes.split_first() {
            Some((first, name)) if char::from(*first) == SHARD => {
                Self::new(name)?;
                if bytes.len() > TOPIC_BYTES_MAX {
                    return Err(InvalidTopic::TooLong(bytes.len()));
                }
                std::str::from_utf8(bytes).map(Self).map_err(|_| InvalidTopic::NotUtf8)
            }
            _ => Self::new(bytes),
        }
    }

    /// The text of a shard channel of this name: these have names of their own, so that who
    /// publishes to a topic of the same name does not reach it.
    ///
    /// # Errors
    /// [`InvalidTopic`]: as of a topic, and one byte less than those have.
    pub fn shard(name: &[u8]) -> Result<TopicName, InvalidTopic> {
        let text = Topic::new(name)?.0;
        if name.len() >= TOPIC_BYTES_MAX {
            return Err(InvalidTopic::TooLong(name.len()));
        }
        Ok(TopicName(format!("{SHARD}{text}").into()))
    }

    /// Its text; that of a shard channel is its name.
    #[must_use]
    pub fn as_str(self) -> &'a str {
        self.0.strip_prefix(SHARD).unwrap_or(self.0)
    }

    /// As it lies in a ring.
    pub(crate) fn raw(self) -> &'a str {
        self.0
    }

    /// It, to be kept.
    #[must_use]
    pub fn to_name(self) -> TopicName {
        TopicName(self.0.into())
    }

    /// How many bytes it takes in a message; a shard channel takes one more than its name.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.0.len()
    }

    /// It is a shard channel.
    #[must_use]
    pub fn is_shard(self) -> bool {
        self.0.starts_with(SHARD)
    }

    /// No pattern of a client's is for it.
    fn is_apart(self) -> bool {
        self.is_reserved() || self.is_shard()
    }

    /// The service alone publishes it and subscribes connections to it.
    #[must_use]
    pub fn is_reserved(self) -> bool {
        self.0.starts_with(RESERVED)
    }
}

fn text(bytes: &[u8]) -> Result<&str, InvalidTopic> {
    let text = std::str::from_utf8(bytes).map_err(|_| InvalidTopic::NotUtf8)?;
    if text.chars().any(char::is_control) {
        return Err(InvalidTopic::ControlCharacter);
    }
    Ok(text)
}

/// A topic that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicName(Box<str>);

impl TopicName {
    /// It, to be looked at.
    #[must_use]
    pub fn topic(&self) -> Topic<'_> {
        Topic(&self.0)
    }
}

/// Which topics a subscription is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Filter {
    /// This one, or this shard channel.
    Exact(Box<str>),
    /// All that begin with this text, which may be empty.
    Prefix(Box<str>),
    /// All that are like this pattern of Redis, but those of the service.
    Glob(Box<str>),
}

/// The filters that a connection counts and ends together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Topics.
    Topic,
    /// Prefixes and globs.
    Pattern,
    /// Shard channels.
    Shard,
}

impl Filter {
    /// As clients write it: a `*` at the end makes it a prefix.
    ///
    /// # Errors
    /// [`InvalidTopic`]; what is in front of the `*` may be empty.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidTopic> {
        let topic = Topic::new(bytes)?;
        Ok(match bytes.split_last() {
            Some((&ANY, prefix)) => Self::Prefix(text(prefix)?.into()),
            _ => topic.into(),
        })
    }

    /// As clients of Redis write it. One that says no more than a prefix is that.
    ///
    /// # Errors
    /// [`InvalidTopic`]: its length and its bytes are those of a topic.
    pub fn glob(bytes: &[u8]) -> Result<Self, InvalidTopic> {
        let text = Topic::new(bytes)?.0;
        Ok(match text.strip_suffix('*') {
            Some(prefix) if !prefix.contains(['*', '?', '[', '\\']) => Self::Prefix(prefix.into()),
            _ => Self::Glob(text.into()),
        })
    }

    /// What it says, without the `*` of a prefix.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Exact(text) | Self::Prefix(text) | Self::Glob(text) => text,
        }
    }

    /// As its client has written it.
    #[must_use]
    pub fn written(&self) -> Cow<'_, str> {
        match self {
            Self::Exact(text) => Topic(text).as_str().into(),
            Self::Prefix(text) => format!("{text}*").into(),
            Self::Glob(text) => (&**text).into(),
        }
    }

    /// With what it is counted.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Exact(text) if Topic(text).is_shard() => Kind::Shard,
            Self::Exact(_) => Kind::Topic,
            Self::Prefix(_) | Self::Glob(_) => Kind::Pattern,
        }
    }

    /// Whether it is for topics of the service.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.text().starts_with(RESERVED)
    }

    /// Whether it is for this topic. A prefix that does not begin as the topics of the service
    /// is for none of them, and no glob is. No pattern is for a shard channel.
    #[must_use]
    pub fn matches(&self, topic: Topic<'_>) -> bool {
        match self {
            Self::Exact(text) => **text == *topic.raw(),
            Self::Prefix(prefix) => {
                topic.raw().starts_with(&**prefix)
                    && self.is_reserved() == topic.is_reserved()
                    && !topic.is_shard()
            }
            Self::Glob(pattern) => is_glob_for(pattern, topic),
        }
    }
}

/// See [`Filter::matches`].
pub(crate) fn is_glob_for(pattern: &str, topic: Topic<'_>) -> bool {
    !topic.is_apart() && glob::is_like(pattern.as_bytes(), topic.raw().as_bytes())
}

impl From<Topic<'_>> for Filter {
    fn from(topic: Topic<'_>) -> Self {
        Self::Exact(topic.raw().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_has_one_to_255_bytes_of_text() {
        let long = "x".repeat(TOPIC_BYTES_MAX + 1);
        assert_eq!(Topic::new(b""), Err(InvalidTopic::Empty));
        assert!(Topic::new(b"x").is_ok());
        assert!(Topic::new(&long.as_bytes()[1..]).is_ok());
        assert_eq!(Topic::new(long.as_bytes()), Err(InvalidTopic::TooLong(256)));
        assert_eq!(Topic::new(b"a\xFF"), Err(InvalidTopic::NotUtf8));
        for control in ["a\0", "\n", "a\u{7f}", "\u{85}"] {
            assert_eq!(Topic::new(control.as_bytes()), Err(InvalidTopic::ControlCharacter));
        }
        assert!(Topic::new("f\u{fc}r alle *".as_bytes()).is_ok(), "a star is a plain character");
    }

    #[test]
    fn a_star_at_the_end_makes_a_prefix() {
        assert_eq!(Filter::parse(b"chat.*"), Ok(Filter::Prefix("chat.".into())));
        assert_eq!(Filter::parse(b"*"), Ok(Filter::Prefix("".into())));
        assert_eq!(Filter::parse(b"a*b"), Ok(Filter::Exact("a*b".into())));
        assert_eq!(Filter::parse(b"**"), Ok(Filter::Prefix("*".into())));
        assert_eq!(Filter::parse(b""), Err(InvalidTopic::Empty));
    }

    #[test]
    fn topics_of_the_service_are_matched_by_its_own_filters_only() {
        let topic = |text: &'static str| Topic::new(text.as_bytes()).unwrap();
        let filter = |text: &str| Filter::parse(text.as_bytes()).unwrap();
        assert!(filter("chat.*").matches(topic("chat.")));
        assert!(filter("chat.*").matches(topic("chat.1")));
        assert!(!filter("chat.*").matches(topic("chat")));
        assert!(filter("*").matches(topic("chat")));
        assert!(!filter("*").matches(topic("$user.42")));
        assert!(filter("$user.*").matches(topic("$user.42")));
        assert!(filter("$*").matches(topic("$user.42")));
        assert!(filter("$user.42").matches(topic("$user.42")));
        assert!(filter("$u").is_reserved() && !filter("u$").is_reserved());
        let glob = |text: &str| Filter::glob(text.as_bytes()).unwrap();
        assert!(!glob("?user.[4]2").matches(topic("$user.42")));
        assert!(!glob("[$]user.42").matches(topic("$user.42")));
        assert!(glob("$u*").is_reserved());
    }

    #[test]
    fn a_glob_that_says_no_more_is_a_prefix() {
        let glob = |text: &str| Filter::glob(text.as_bytes()).unwrap();
        assert_eq!(glob("news.*"), Filter::Prefix("news.".into()));
        assert_eq!(glob("*"), Filter::Prefix("".into()));
        assert_eq!(glob("n?ws.*"), Filter::Glob("n?ws.*".into()));
        assert_eq!(glob("news"), Filter::Glob("news".into()));
        assert_eq!(glob("a\\*"), Filter::Glob("a\\*".into()), "a star that is meant literally");
        assert!(glob("n?ws.*").matches(Topic::new(b"news.1").unwrap()));
        assert!(!glob("a\\*").matches(Topic::new(b"ab").unwrap()));
        assert_eq!(glob("news.*").written(), "news.*");
        assert_eq!(glob("n?ws").written(), "n?ws");
    }

    #[test]
    fn shard_channels_have_names_of_their_own() {
        let name = Topic::shard(b"a").unwrap();
        let (shard, topic) = (name.topic(), Topic::new(b"a").unwrap());
        assert_eq!((shard.as_str(), shard.is_shard(), topic.is_shard()), ("a", true, false));
        let filter = Filter::from(shard);
        assert_eq!((filter.kind(), &*filter.written()), (Kind::Shard, "a"));
        assert!(filter.matches(shard) && !filter.matches(topic));
        assert!(!Filter::parse(b"*").unwrap().matches(shard));
        assert!(!Filter::glob(b"?").unwrap().matches(shard));
        assert_eq!(Topic::read(shard.raw().as_bytes()), Ok(shard));
        assert_eq!(Topic::read(b"\x01"), Err(InvalidTopic::Empty));
        assert_eq!(Topic::read(b"\x01\x01"), Err(InvalidTopic::ControlCharacter));
        assert!(Topic::shard(&[b'x'; 254]).is_ok());
        assert_eq!(Topic::shard(&[b'x'; 255]), Err(InvalidTopic::TooLong(255)));
    }
}
