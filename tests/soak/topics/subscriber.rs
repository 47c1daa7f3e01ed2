//! Clients that subscribe, lose their connection, connect again and resume.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use chappe_client::{Connection, Incoming, Recovered, Resumed, TopicMessage};
use chappe_testkit::wait_for;

use super::publisher::{Name, name_of};
use super::{TOPICS, connect, matches};
use crate::random::Random;

/// One message in so many has its subscriber connect again without a reason.
const LEAVES_ONE_IN: u64 = 3000;

/// What one subscriber has got.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) wanted: &'static [&'static str],
    /// Of the last message before its first subscription.
    pub(super) begin: u64,
    /// In the order in which they have come: offset, topic, name.
    pub(super) messages: Vec<(u64, usize, Name)>,
    /// After how many of them it has resumed, and behind which offset each subscription began.
    pub(super) resumed: Vec<(usize, Vec<u64>)>,
}

pub(super) struct Subscriber {
    client: Connection,
    random: Random,
    heard: Heard,
}

impl Subscriber {
    /// Connects and subscribes.
    pub(super) fn begin(
        address: SocketAddr,
        wanted: &'static [&'static str],
        random: Random,
    ) -> Result<Self, String> {
        let mut client = connect(address)?;
        let mut begin = u64::MAX;
        for topic in wanted {
            let answer = client.subscribe(topic).map_err(|error| error.to_string())?;
            begin = begin.min(answer.offset);
        }
        let heard = Heard { wanted, begin, messages: Vec::new(), resumed: Vec::new() };
        Ok(Self { client, random, heard })
    }

    /// Listens until the last message of the round has come in each topic.
    pub(super) fn hear(mut self, round: u32, resumed: &AtomicU64) -> Result<Heard, String> {
        let wanted = self.heard.wanted;
        let is_wanted = |topic: &&&str| wanted.iter().any(|it| matches(it, topic));
        let mut open: BTreeSet<&str> = TOPICS.iter().filter(is_wanted).copied().collect();
        while !open.is_empty() {
            if self.random.one_in(LEAVES_ONE_IN) {
                self.resume(resumed)?;
            }
            match self.client.next_message() {
                Ok(Incoming::Message(message)) => {
                    let topic = self.note(&message)?;
                    let (.., name) = self.heard.messages.last().expect("it was noted");
                    if name.ends(round) {
                        open.remove(topic);
                    }
                }
                Ok(Incoming::Gap { lost }) => return Err(self.tell(&format!("a gap of {lost}"))),
                Ok(Incoming::Frame(frame)) if frame.as_goodbye().is_some() => {}
                Ok(Incoming::Frame(frame)) => return Err(self.tell(&format!("{frame:?}"))),
                Err(error) if error.is_disconnect() => self.resume(resumed)?,
                Err(error) => return Err(self.tell(&format!("{error}, {open:?} are open"))),
            }
        }
        Ok(self.heard)
    }

    fn note(&mut self, message: &TopicMessage) -> Result<&'static str, String> {
        let topic = TOPICS.iter().position(|topic| *topic == message.topic);
        let (Some(topic), Some(name), None) = (topic, name_of(&message.body), message.code) else {
            return Err(self.tell(&format!("nobody has published {message:?}")));
        };
        self.heard.messages.push((message.offset, topic, name));
        Ok(TOPICS[topic])
    }

    /// Connects again, until somebody is there who goes on where it was.
    fn resume(&mut self, resumed: &AtomicU64) -> Result<(), String> {
        let mut last = None;
        let answers = wait_for(|| match self.client.reconnect() {
            Ok(answers) => Some(answers),
            Err(error) => {
                last = Some(error);
                None
            }
        });
        let answers = answers.ok_or_else(|| self.tell(&format!("cannot resume: {last:?}")))?;
        let is_whole = |it: &Resumed| {
            it.answer.as_ref().is_ok_and(|answer| answer.recovered == Recovered::Yes)
        };
        if answers.len() != self.heard.wanted.len() || !answers.iter().all(is_whole) {
            return Err(self.tell(&format!("resumed with {answers:?}")));
        }
        resumed.fetch_add(1, Ordering::Relaxed);
        let offsets = answers.iter().filter_map(|it| Some(it.answer.as_ref().ok()?.offset));
        self.heard.resumed.push((self.heard.messages.len(), offsets.collect()));
        Ok(())
    }

    fn tell(&self, what: &str) -> String {
        let Heard { wanted, begin, messages, .. } = &self.heard;
        let (count, last) = (messages.len(), messages.last());
        format!("subscriber of {wanted:?} from {begin} on, {count} messages to {last:?}: {what}")
    }
}
