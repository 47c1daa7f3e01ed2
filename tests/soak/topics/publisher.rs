//! Clients that publish, and what they know of each message.

use std::net::SocketAddr;

use chappe_client::{CODE_PING, ClientError, Connection, ErrorNumber};
use chappe_testkit::{Numbered, pause};

use super::{NOBODY, TOPICS, connect};
use crate::random::Random;

/// Bytes of a body in front of what its number decides.
const HEAD_BYTES: usize = 12;
const BODY_BYTES_MAX: usize = 200;
/// Messages in one piece, without an answer for each.
const BURST_MAX: usize = 16;
/// Each publishes 64 messages of a worker; what waits in one is far less.
const ROUNDS_OF_THE_HUB: u32 = 100;

// What the messages of nobody are for: their connection.
const WAITS: u32 = 1;
const ENDS: u32 = 0;

/// What a message is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) publisher: u32,
    /// The how many-th of the publisher's connections it was sent on.
    pub(super) connection: u32,
    pub(super) number: u32,
}

impl Name {
    /// Whether it is the last one of its topic in this round.
    pub(super) fn ends(self, round: u32) -> bool {
        self == Self { publisher: NOBODY, connection: ENDS, number: round }
    }
}

/// What its publisher knows of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It was published; at this offset, if it was answered.
    Known(Option<u64>),
    /// The connection ended before it was answered.
    Unknown,
    /// An error stood in the place of the answer.
    Refused,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) name: Name,
    pub(super) topic: usize,
    pub(super) fate: Fate,
}

impl Sent {
    pub(super) fn is_unknown(&self) -> bool {
        self.fate == Fate::Unknown
    }
}

fn body(name: Name, bytes: usize) -> Vec<u8> {
    let Name { publisher, connection, number } = name;
    let mut body = Vec::with_capacity(HEAD_BYTES + bytes);
    for part in [publisher, connection, number] {
        body.extend_from_slice(&part.to_be_bytes());
    }
    body.extend(Numbered { stream: publisher, number, bytes }.body());
    body
}

/// The name of a message; `None`: nobody has published this.
pub(super) fn name_of(found: &[u8]) -> Option<Name> {
    let part = |nth: usize| {
        let bytes = found.get(4 * nth..4 * nth + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    };
    let name = Name { publisher: part(0)?, connection: part(1)?, number: part(2)? };
    (body(name, found.len().checked_sub(HEAD_BYTES)?) == found).then_some(name)
}

/// Publishes the last message of a round to each topic, behind all that was taken and not published
/// yet: each answer before it is of another round of the hub, which has served everybody in between.
pub(super) fn end_round(address: SocketAddr, round: u32) -> Result<(), String> {
    let mut client = connect(address)?;
    let mut publish = |topic, connection, number| {
        let name = Name { publisher: NOBODY, connection, number };
        let published = client.publish(topic, &body(name, 0));
        published.map_err(|error| format!("the last: {error}"))
    };
    for number in 0..ROUNDS_OF_THE_HUB {
        publish(TOPICS[0], WAITS, number)?;
    }
    for topic in TOPICS {
        publish(topic, ENDS, round)?;
    }
    Ok(())
}

pub(super) struct Publisher {
    address: SocketAddr,
    random: Random,
    client: Option<Connection>,
    next: Name,
    sent: Vec<Sent>,
}

impl Publisher {
    pub(super) fn new(address: SocketAddr, publisher: u32, random: Random) -> Self {
        let next = Name { publisher, connection: 0, number: 0 };
        Self { address, random, client: None, next, sent: Vec::new() }
    }

    pub(super) fn into_sent(self) -> Vec<Sent> {
        self.sent
    }

    /// Publishes until it is over.
    pub(super) fn work(&mut self, is_over: impl Fn() -> bool) -> Result<(), String> {
        while !is_over() {
            let mut client = match self.client.take() {
                Some(client) => client,
                None => {
                    self.next.connection += 1;
                    connect(self.address)?
                }
            };
            let is_there = if self.random.one_in(2) {
                self.publish_one(&mut client)?
            } else {
                self.publish_some(&mut client)?
            };
            if is_there {
                self.client = Some(client);
            }
            pause(self.random.ms(1, 12), "a publisher has something to say now and then");
        }
        Ok(())
    }

    fn draw(&mut self) -> (Name, usize, Vec<u8>) {
        let name = self.next;
        self.next.number += 1;
        let topic = self.random.size(0, TOPICS.len() - 1);
        (name, topic, body(name, self.random.size(0, BODY_BYTES_MAX)))
    }

    /// False: the connection has ended.
    fn publish_one(&mut self, client: &mut Connection) -> Result<bool, String> {
        let (name, topic, body) = self.draw();
        let (fate, is_there) = match client.publish(TOPICS[topic], &body) {
            Ok(published) => (Fate::Known(Some(published.offset)), true),
            Err(ClientError::Refused(error))
                if error.is(ErrorNumber::HandlerFailed) || error.is(ErrorNumber::BusyInside) =>
            {
                (Fate::Refused, true)
            }
            Err(error) if error.is_disconnect() => (Fate::Unknown, false),
            Err(error) => return Err(format!("{name:?} is not answered: {error}")),
        };
        self.sent.push(Sent { name, topic, fate });
        Ok(is_there)
    }

    /// Some without an answer, and a ping behind them, whose answer says that all were taken.
    fn publish_some(&mut self, client: &mut Connection) -> Result<bool, String> {
        let first = self.sent.len();
        let mut outcome = Ok(());
        for _ in 0..self.random.size(1, BURST_MAX) {
            let (name, topic, body) = self.draw();
            self.sent.push(Sent { name, topic, fate: Fate::Unknown });
            outcome = client.publish_unanswered(TOPICS[topic], &body);
            if outcome.is_err() {
                break;
            }
        }
        match outcome.and_then(|()| ping(client)) {
            Ok(()) => {
                self.sent[first..].iter_mut().for_each(|sent| sent.fate = Fate::Known(None));
                Ok(true)
            }
            Err(error) if error.is_disconnect() => Ok(false),
            Err(error) => Err(format!("a burst from {:?} on: {error}", self.sent[first].name)),
        }
    }
}

/// A goodbye may come before the answer.
fn ping(client: &mut Connection) -> Result<(), ClientError> {
    client.send(CODE_PING, b"")?;
    loop {
        let frame = client.receive()?;
        if let Some(error) = frame.as_error() {
            return Err(ClientError::Refused(error));
        }
        if frame.code == CODE_PING {
            return Ok(());
        }
    }
}
