//! The send thread's part: it alone has the subscriptions, and hands every message to them.

use super::{Question, Request, Tells, Topics, Waiter, kind_of};
use chappe_engine::{Aside, Batch, Ended, Entry, Event, Mailbox, Notice, Problem, Rejected};
use chappe_shm::{Count, Counter};
use chappe_topics::{
    Answered, Came, Delivered, Filter, Inlet, Mark, Message, Published, Resumed, Sink, Wish,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

type Connection = Arc<Mailbox>;

/// What the send thread does beside sending.
#[derive(Debug)]
pub(crate) struct Speaker {
    inlet: Inlet<Connection, Question, Waiter>,
    voice: Voice,
    /// Wishes that wait for what was published before them, the first one first.
    held: VecDeque<(Mark, Connection, Wish, Question)>,
    /// There was more than a look does.
    is_more: bool,
}

/// How connections are told.
#[derive(Debug)]
struct Voice {
    topics: Arc<Topics>,
    batch: Batch,
    /// The messages that are being delivered, as they were encoded.
    encoded: Vec<Encoded>,
    /// Of the first of them.
    encoded_offset: u64,
    /// The subscription that those name which name one.
    encoded_for: Option<Filter>,
}

/// Messages for all connections of a listener with this dialect and these flags.
#[derive(Debug)]
struct Encoded {
    listener: u8,
    dialect: u8,
    flags: u8,
    names_filter: bool,
    entry: Entry,
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl Speaker {
    pub(super) fn new(topics: Arc<Topics>, inlet: Inlet<Connection, Question, Waiter>) -> Self {
        let (batch, encoded) = (Batch::default(), Vec::new());
        let voice = Voice { topics, batch, encoded, encoded_offset: 0, encoded_for: None };
        Self { inlet, voice, held: VecDeque::new(), is_more: true }
    }
}

impl Aside for Speaker {
    fn look(&mut self) -> bool {
        let has_requests = self.voice.topics.has_requests.load(Ordering::Acquire);
        let waits = has_requests || self.is_more || !self.held.is_empty();
        if !waits && !self.inlet.has_news() {
            return false;
        }
        self.inlet.hear();
        if !self.inlet.is_delivering() {
            if has_requests {
                self.carry_out_requests();
            }
            self.carry_out_held();
        }
        match self.inlet.look(&mut self.voice) {
            Ok(is_more) => self.is_more = is_more,
            Err(corrupt) => {
                log::error!(target: "topics.corrupt", "the hub has written over the ring: {corrupt}");
                std::process::abort();
            }
        }
        if !self.inlet.is_delivering() {
            // It is charged for.
            self.voice.encoded.clear();
        }
        self.is_more |= self.voice.topics.has_requests.load(Ordering::Acquire) || self.has_due();
        self.is_more
    }
}

impl Speaker {
    fn carry_out_requests(&mut self) {
        // Before the look: what is added after it asks for another one.
        self.voice.topics.has_requests.swap(false, Ordering::AcqRel);
        while let Some(request) = self.voice.topics.next_request() {
            match request {
                Request::Gone(id) => self.inlet.gone(id),
                Request::List(mailbox, wanted, question) => {
                    self.inlet.list(&mailbox, wanted, question);
                }
                Request::Wish(mailbox, wish, question) => self.wish(&mailbox, wish, question),
                Request::WishBehind(mark, mailbox, wish, question) => {
                    self.held.push_back((mark, mailbox, wish, question));
                }
            }
        }
    }

    fn carry_out_held(&mut self) {
        while self.has_due()
            && let Some((_, mailbox, wish, question)) = self.held.pop_front()
        {
            self.wish(&mailbox, wish, question);
        }
    }

    /// Whether what the first one that is held waits for has come.
    fn has_due(&mut self) -> bool {
        self.held.front_mut().is_some_and(|(mark, ..)| self.inlet.has_passed(mark))
    }

    fn wish(&mut self, mailbox: &Connection, wish: Wish, question: Question) {
        // Who is gone by now has said so before, or will not.
        if mailbox.takes_messages().is_ok() {
            self.inlet.wish(mailbox.id(), mailbox, wish, question, &mut self.voice);
        }
    }
}

impl Voice {
    fn answer(&mut self, mailbox: &Connection, number: usize, event: &Event<'_>) {
        mailbox.protocol().event(mailbox.dialect(), event, &mut self.batch);
        mailbox.answer(number, Some(Entry::new(self.batch.take())));
    }

    fn refuse(
        &mut self,
        mailbox: &Connection,
        (number, code): (usize, u16),
        problem: Problem,
        text: String,
    ) {
        let notice = Notice::Error { problem, code: Some(code), text: text.into() };
        let notice = mailbox.protocol().notice_alone(&notice);
        mailbox.answer(number, notice.map(Entry::new));
    }

    /// The messages, encoded once for all who want them so.
    fn encode(&mut self, of: &Connection, dialect: u8, it: &Delivered<'_>) -> Entry {
        let Delivered { filter, flags, messages, .. } = *it;
        let names_filter = of.protocol().names_subscription();
        if self.encoded_offset != messages.first() {
            self.encoded.clear();
            self.encoded_offset = messages.first();
        } else if names_filter && self.encoded_for.as_ref() != Some(filter) {
            self.encoded.retain(|encoded| !encoded.names_filter);
        }
        let listener = u8::try_from(of.listener()).unwrap_or(u8::MAX);
        let is_same =
            |it: &&Encoded| (it.listener, it.dialect, it.flags) == (listener, dialect, flags);
        if let Some(encoded) = self.encoded.iter().find(is_same) {
            return encoded.entry.clone();
        }
        let (kind, name) = (kind_of(filter.kind()), filter.written());
        for (offset, Message { code, topic, body }) in messages.each() {
            let topic = topic.as_str();
            let event = Event::Message { offset, kind, name: &name, topic, code, body, flags };
            of.protocol().event(dialect, &event, &mut self.batch);
        }
        let entry = Entry::shared(self.batch.take(), &self.topics.engine);
        if names_filter {
            self.encoded_for = Some(filter.clone());
        }
        let entry_too = entry.clone();
        self.encoded.push(Encoded { listener, dialect, flags, names_filter, entry: entry_too });
        entry
    }

    fn push(&mut self, of: &Connection, dialect: u8, it: &Delivered<'_>) -> Result<(), Rejected> {
        let entry = self.encode(of, dialect, it);
        if it.lost > 0 {
            of.protocol().event(dialect, &Event::Gap { lost: it.lost }, &mut self.batch);
        }
        // With the message or not at all, or it would be told twice.
        let gap = (!self.batch.is_empty()).then(|| Entry::new(self.batch.take()));
        of.push_shared(dialect, gap, &entry)
    }
}

impl Sink<Connection, Question, Waiter> for Voice {
    fn published(&mut self, waiter: Waiter, answer: Option<Published>) {
        let Waiter { mailbox, number, .. } = waiter;
        match answer {
            Some(Published { offset, subscribers }) => {
                self.answer(&mailbox, number, &Event::Published { offset, subscribers });
            }
            None => {
                let text = "the message was left out, two hubs have died on it".to_owned();
                let code = crate::protocol::CODE_PUBLISH;
                self.refuse(&mailbox, (number, code), Problem::HandlerFailed, text);
            }
        }
    }

    fn taken(&mut self, waiter: Waiter) {
        waiter.mailbox.answer(waiter.number, None);
    }

    fn answered(&mut self, answered: Answered<Connection, Question>, offset: u64) {
        let Answered { to, answer: question, subscriptions, flags, came } = answered;
        to.note_subscriptions(number(subscriptions));
        if let Some(kept) = question.kept {
            let refused = match came {
                Came::Refused(why) => Some(why.to_string()),
                Came::Subscribed { .. } | Came::Unsubscribed { .. } => None,
            };
            kept.note(&to, (question.number, question.code), refused);
            return;
        }
        match came {
            Came::Subscribed { filter, count, resumed } => {
                let (kind, name) = (kind_of(filter.kind()), &filter.written());
                let (count, epoch) = (number(count), self.topics.epoch);
                let (recovered, missed) = match resumed {
                    Resumed::NotAsked => (0, Vec::new()),
                    Resumed::Yes(missed) => {
                        self.topics.counters.add(Counter::ResumesWhole, 1);
                        (1, missed)
                    }
                    Resumed::No => {
                        self.topics.counters.add(Counter::ResumesRefused, 1);
                        (2, Vec::new())
                    }
                };
                let event = Event::Subscribed { kind, name, count, recovered, epoch, offset };
                let (protocol, dialect) = (to.protocol(), to.dialect());
                protocol.event(dialect, &event, &mut self.batch);
                for it in &missed {
                    let Message { code, topic, body } = it.message();
                    let (offset, topic) = (it.offset(), topic.as_str());
                    let event = Event::Message { offset, kind, name, topic, code, body, flags };
                    protocol.event(dialect, &event, &mut self.batch);
                }
                self.topics.counters.add(Counter::MessagesDelivered, missed.len() as u64);
                to.answer(question.number, Some(Entry::new(self.batch.take())));
            }
            Came::Unsubscribed { ended, left } => {
                let names: Vec<_> = ended
                    .iter()
                    .map(|(filter, count)| (filter, filter.written(), *count))
                    .collect();
                let ended: Vec<_> = names
                    .iter()
                    .map(|(filter, name, count)| Ended {
                        kind: kind_of(filter.kind()),
                        name,
                        count: number(*count),
                    })
                    .collect();
                let (all, left) = (question.all, number(left));
                // The end of all is one answer.
                let ended = if question.is_end { &[] } else { &*ended };
                let event = Event::Unsubscribed { all, ended, left };
                self.answer(&to, question.number, &event);
            }
            Came::Refused(why) => {
                let question = (question.number, question.code);
                self.refuse(&to, question, Problem::BusyInside, why.to_string());
            }
        }
    }

    fn deliver(&mut self, of: &Connection, it: Delivered<'_>) -> bool {
        // A dialect that changes in the same moment is the other one then.
        let pushed = match self.push(of, of.dialect(), &it) {
            Err(Rejected::Dialect) => self.push(of, of.dialect(), &it),
            pushed => pushed,
        };
        if pushed.is_ok() {
            self.topics.counters.add(Counter::MessagesDelivered, it.messages.count() as u64);
            self.topics.counters.add(Counter::MessagesLost, it.lost);
        }
        pushed.is_ok()
    }

    fn listed(&mut self, of: &Connection, question: Question, list: &[u8]) {
        let mut names = chappe_topics::listing::names(list);
        if question.tells == Tells::Patterns {
            let count = names.next().map_or(0, |(_, count)| count);
            return self.answer(of, question.number, &Event::Patterns(count.into()));
        }
        let has_counts = question.tells == Tells::Counts;
        let names: Vec<_> =
            names.map(|(name, count)| (name, has_counts.then_some(count))).collect();
        self.answer(of, question.number, &Event::Listed { names: &names });
    }

    fn lapped(&mut self, lost: u64) {
        log::warn!(target: "topics.lapped", "this worker was too slow for the topics messages={lost}");
        self.topics.counters.add(Counter::MessagesLapped, lost);
    }

    fn post(&mut self) {
        self.topics.post();
    }
}
