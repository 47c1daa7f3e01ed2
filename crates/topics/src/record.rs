//! What the hub and the workers say to each other, as bytes in the rings.
//!
//! What is read here may come from a worker that was taken over: each length is checked, and
//! bytes that say nothing are [`Corrupt`].

use crate::name::{Filter, Topic, TopicName};
use chappe_rings::Corrupt;

const NONSENSE: Corrupt = Corrupt { what: "a record that says nothing" };

/// Reads a record from its front.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Corrupt> {
        let (front, rest) = self.0.split_at_checked(bytes).ok_or(NONSENSE)?;
        self.0 = rest;
        Ok(front)
    }

    fn array<const BYTES: usize>(&mut self) -> Result<[u8; BYTES], Corrupt> {
        self.take(BYTES)?.try_into().map_err(|_| NONSENSE)
    }

    fn u8(&mut self) -> Result<u8, Corrupt> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Result<u16, Corrupt> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Corrupt> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Corrupt> {
        self.array().map(u64::from_le_bytes)
    }

    fn listed(&mut self) -> Result<Listed, Corrupt> {
        match self.u8()? {
            kind @ 0..=3 => {
                let pattern = (kind & 2 != 0).then(|| self.0.into());
                Ok(Listed::Like { is_shard: kind & 1 != 0, pattern })
            }
            4 => {
                let mut names = Vec::new();
                while !self.0.is_empty() {
                    let bytes = self.u8()?.into();
                    let topic = Topic::read(self.take(bytes)?).map_err(|_| NONSENSE)?;
                    names.push(topic.to_name());
                }
                Ok(Listed::Named(names))
            }
            5 => self.end(Listed::Patterns),
            _ => Err(NONSENSE),
        }
    }

    fn end<T>(&self, value: T) -> Result<T, Corrupt> {
        if self.0.is_empty() { Ok(value) } else { Err(NONSENSE) }
    }
}

/// What is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// 0: of a client, the body is its payload. Else of the service: an application's code.
    pub code: u16,
    /// To whom.
    pub topic: Topic<'a>,
    /// What.
    pub body: &'a [u8],
}

/// The most bytes that a client publishes, topic and payload: with an offset and a length they
/// fit a frame of 65535 bytes.
pub const CLIENT_BYTES_MAX: usize = 65_518;
/// The most bytes that a service publishes: a code fits as well.
pub const SERVICE_BYTES_MAX: usize = 65_516;
/// The codes that are an application's.
const CODES: std::ops::RangeInclusive<u16> = 16..=65_279;

impl Message<'_> {
    /// Whether every client can be sent it.
    #[must_use]
    pub fn fits(&self) -> bool {
        let bytes = self.topic.raw().len() + self.body.len();
        match self.code {
            0 => bytes <= CLIENT_BYTES_MAX,
            code => CODES.contains(&code) && bytes <= SERVICE_BYTES_MAX,
        }
    }
}

/// What a worker asks the hub to publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request<'a> {
    /// One more than that of the request before, from the same life of a worker. From 1.
    pub number: u64,
    /// Somebody waits for the answer.
    pub is_awaited: bool,
    /// What is published.
    pub message: Message<'a>,
}

/// The bytes of a request beside its topic and its body.
#[cfg(test)]
pub(crate) const REQUEST_BYTES: usize = 12;

impl<'a> Request<'a> {
    /// Appends it.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let Message { code, topic, body } = self.message;
        let topic = topic.raw().as_bytes();
        out.extend(self.number.to_le_bytes());
        out.push(self.is_awaited.into());
        out.push(u8::try_from(topic.len()).expect("a topic has at most 255 bytes"));
        out.extend(code.to_le_bytes());
        out.extend(topic);
        out.extend(body);
    }

    /// Of all these bytes.
    ///
    /// # Errors
    /// [`Corrupt`]: they are no request.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, Corrupt> {
        let mut parts = Parts(bytes);
        let number = parts.u64()?;
        let is_awaited = parts.u8()? != 0;
        let topic_bytes = parts.u8()?;
        let code = parts.u16()?;
        let topic = Topic::read(parts.take(topic_bytes.into())?).map_err(|_| NONSENSE)?;
        let message = Message { code, topic, body: parts.0 };
        message.fits().then_some(Self { number, is_awaited, message }).ok_or(NONSENSE)
    }
}

/// A record of the broadcast ring: a request, and what the hub has added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// The life of the worker that has asked.
    pub life: u64,
    /// The places of the workers with a subscriber, modulo 64.
    pub concerned: u64,
    /// Subscriptions that matched, of all workers.
    pub subscribers: u32,
    /// What it has asked for.
    pub request: Request<'a>,
}

/// The bytes of a record beside its request.
#[cfg(test)]
pub(crate) const RECORD_BYTES: usize = 20;

impl<'a> Record<'a> {
    /// Appends it.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.life.to_le_bytes());
        out.extend(self.concerned.to_le_bytes());
        out.extend(self.subscribers.to_le_bytes());
        self.request.write(out);
    }

    /// Of all these bytes.
    ///
    /// # Errors
    /// [`Corrupt`]: they are no record.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, Corrupt> {
        let mut parts = Parts(bytes);
        let (life, concerned, subscribers) = (parts.u64()?, parts.u64()?, parts.u32()?);
        Ok(Self { life, concerned, subscribers, request: Request::read(parts.0)? })
    }
}

/// What decides whether a worker has to look at a record at all: the first part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// See [`Record`].
    pub life: u64,
    /// See [`Record`].
    pub concerned: u64,
    /// See [`Request`].
    pub number: u64,
    /// See [`Request`].
    pub is_awaited: bool,
}

impl Origin {
    /// Of a record with more behind it.
    ///
    /// # Errors
    /// [`Corrupt`]: it is no record.
    pub(crate) fn read(record: &[u8]) -> Result<Self, Corrupt> {
        let mut parts = Parts(record);
        let (life, concerned, _) = (parts.u64()?, parts.u64()?, parts.u32()?);
        let (number, is_awaited) = (parts.u64()?, parts.u8()? != 0);
        Ok(Self { life, concerned, number, is_awaited })
    }
}

/// What a worker tells the hub of its cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// The cell counts the subscribers of this filter.
    Add {
        /// Its place.
        cell: u32,
        /// The how many-th name of the cell this is.
        turn: u32,
        /// What for.
        filter: Filter,
    },
    /// The cell counts nothing any more.
    Remove {
        /// Its place.
        cell: u32,
        /// The how many-th name of the cell this was.
        turn: u32,
    },
    /// All cells were named that the worker has: what a new hub has asked for.
    AllNamed {
        /// Which one.
        hub: u64,
    },
    /// Which names have subscribers, and how many: for one of its clients.
    List {
        /// Of the question.
        number: u64,
        /// Which of them.
        wanted: Listed,
    },
}

/// Which names are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// All topics, or shard channels, with subscribers, but those of the service; those that are
    /// like a pattern of Redis, if there is one.
    Like {
        /// Shard channels.
        is_shard: bool,
        /// See there.
        pattern: Option<Box<[u8]>>,
    },
    /// These, with subscribers or without.
    Named(Vec<TopicName>),
    /// None: the one count says how many patterns there are.
    Patterns,
}

impl Interest {
    /// Appends it.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Add { cell, turn, filter } => {
                out.push(match filter {
                    Filter::Exact(_) => 0,
                    Filter::Prefix(_) => 1,
                    Filter::Glob(_) => 4,
                });
                out.extend(cell.to_le_bytes());
                out.extend(turn.to_le_bytes());
                out.extend(filter.text().as_bytes());
            }
            Self::Remove { cell, turn } => {
                out.push(2);
                out.extend(cell.to_le_bytes());
                out.extend(turn.to_le_bytes());
            }
            Self::AllNamed { hub } => {
                out.push(3);
                out.extend(hub.to_le_bytes());
            }
            Self::List { number, wanted } => {
                out.push(5);
                out.extend(number.to_le_bytes());
                match wanted {
                    Listed::Like { is_shard, pattern } => {
                        out.push(u8::from(*is_shard) + 2 * u8::from(pattern.is_some()));
                        out.extend(pattern.iter().flatten());
                    }
                    Listed::Patterns => out.push(5),
                    Listed::Named(names) => {
                        out.push(4);
                        for name in names {
                            let text = name.topic().raw().as_bytes();
                            out.push(u8::try_from(text.len()).expect("at most 255 bytes"));
                            out.extend(text);
                        }
                    }
                }
            }
        }
    }

    /// Of all these bytes.
    ///
    /// # Errors
    /// [`Corrupt`]: they say nothing.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Corrupt> {
        let mut parts = Parts(bytes);
        match parts.u8()? {
            0 => {
                let (cell, turn) = (parts.u32()?, parts.u32()?);
                let filter = Topic::read(parts.0).map_err(|_| NONSENSE)?.into();
                Ok(Self::Add { cell, turn, filter })
            }
            1 => {
                let (cell, turn) = (parts.u32()?, parts.u32()?);
                let prefix = std::str::from_utf8(parts.0).map_err(|_| NONSENSE)?;
                if prefix.len() > crate::name::TOPIC_BYTES_MAX {
                    return Err(NONSENSE);
                }
                Ok(Self::Add { cell, turn, filter: Filter::Prefix(prefix.into()) })
            }
            2 => {
                let (cell, turn) = (parts.u32()?, parts.u32()?);
                parts.end(Self::Remove { cell, turn })
            }
            3 => {
                let hub = parts.u64()?;
                parts.end(Self::AllNamed { hub })
            }
            4 => {
                let (cell, turn) = (parts.u32()?, parts.u32()?);
                let pattern = Topic::new(parts.0).map_err(|_| NONSENSE)?.as_str();
                Ok(Self::Add { cell, turn, filter: Filter::Glob(pattern.into()) })
            }
            5 => {
                let number = parts.u64()?;
                Ok(Self::List { number, wanted: parts.listed()? })
            }
            _ => Err(NONSENSE),
        }
    }
}

/// What the hub answers a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer<'a> {
    /// It was published.
    Published {
        /// Of the request.
        number: u64,
        /// Of the message.
        offset: u64,
        /// Subscriptions that matched, of all workers.
        subscribers: u32,
    },
    /// Two hubs have died on the request: it was left out.
    Skipped {
        /// Of the request.
        number: u64,
    },
    /// The cell is known: what is published behind this offset concerns its worker.
    Added {
        /// Its place.
        cell: u32,
        /// As it was told.
        turn: u32,
        /// Of the last message before.
        offset: u64,
    },
    /// There are as many names as may be.
    Refused {
        /// Of the cell.
        cell: u32,
        /// As it was told.
        turn: u32,
    },
    /// The cell is known no longer, and can be used for another filter.
    Removed {
        /// Its place.
        cell: u32,
        /// As it was told.
        turn: u32,
    },
    /// A new hub asks for all cells.
    NameAll {
        /// Which one.
        hub: u64,
    },
    /// A part of a list; each name is a length, its bytes, and a count.
    Part {
        /// Of the question.
        number: u64,
        /// It is the last one.
        is_last: bool,
        /// At most [`PART_BYTES_MAX`].
        bytes: &'a [u8],
    },
}

/// The longest part of a list, in bytes.
pub(crate) const PART_BYTES_MAX: usize = 4096;
/// The longest answer but a part of a list, in bytes.
pub(crate) const ANSWER_BYTES_MAX: usize = 21;
/// The longest part with what is in front of it.
pub(crate) const PART_ANSWER_BYTES_MAX: usize = PART_BYTES_MAX + 10;

impl<'a> Answer<'a> {
    /// Appends it.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Published { number, offset, subscribers } => {
                out.push(0);
                out.extend(number.to_le_bytes());
                out.extend(offset.to_le_bytes());
                out.extend(subscribers.to_le_bytes());
            }
            Self::Skipped { number } => {
                out.push(1);
                out.extend(number.to_le_bytes());
            }
            Self::Added { cell, turn, offset } => {
                out.push(2);
                out.extend(cell.to_le_bytes());
                out.extend(turn.to_le_bytes());
                out.extend(offset.to_le_bytes());
            }
            Self::Refused { cell, turn } => {
                out.push(3);
                out.extend(cell.to_le_bytes());
                out.extend(turn.to_le_bytes());
            }
            Self::Removed { cell, turn } => {
                out.push(4);
                out.extend(cell.to_le_bytes());
                out.extend(turn.to_le_bytes());
            }
            Self::NameAll { hub } => {
                out.push(5);
                out.extend(hub.to_le_bytes());
            }
            Self::Part { number, is_last, bytes } => {
                out.push(6);
                out.extend(number.to_le_bytes());
                out.push(is_last.into());
                out.extend(bytes);
            }
        }
    }

    /// Of all these bytes.
    ///
    /// # Errors
    /// [`Corrupt`]: they say nothing.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, Corrupt> {
        let mut parts = Parts(bytes);
        let answer = match parts.u8()? {
            0 => Self::Published {
                number: parts.u64()?,
                offset: parts.u64()?,
                subscribers: parts.u32()?,
            },
            1 => Self::Skipped { number: parts.u64()? },
            2 => Self::Added { cell: parts.u32()?, turn: parts.u32()?, offset: parts.u64()? },
            3 => Self::Refused { cell: parts.u32()?, turn: parts.u32()? },
            4 => Self::Removed { cell: parts.u32()?, turn: parts.u32()? },
            5 => Self::NameAll { hub: parts.u64()? },
            6 => {
                let (number, is_last) = (parts.u64()?, parts.u8()? != 0);
                return Ok(Self::Part { number, is_last, bytes: parts.0 });
            }
            _ => return Err(NONSENSE),
        };
        parts.end(answer)
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
