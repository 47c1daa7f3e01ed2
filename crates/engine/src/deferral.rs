//! Messages whose answer is deferred: their handler has returned, and a ticket continues them
//! from any thread.
//!
//! Such a message stands in its inbox, in front of all others, from when its handler takes
//! the ticket until it is continued or its connection ends. So there is no second place that
//! could disagree with the inbox: what happens to a message that waits, and what of it first,
//! is decided under the lock of its connection.

use crate::budget::Budget;
use crate::engine::Engine;
use crate::item::ITEM_COST;
use crate::mailbox::Mailbox;
use crate::notice::{Goodbye, Notice, Problem};
use crate::protocol::Opened;
use crate::queue::Queue;
use crate::writer::{Entries, Entry};
use chappe_sys::clock::Moment;
use std::any::Any;
use std::sync::{Arc, Weak};

/// What a ticket names: unique in a worker, so that a late one never meets another wait.
pub(crate) type Number = usize;

/// How a message is continued that has waited.
pub enum Ending {
    /// The application goes on with it. The value is the application's own.
    Resumed(Box<dyn Any + Send>),
    /// Its ticket is gone, and nobody can resume it any more.
    Dropped,
    /// It has waited for longer than it may.
    Expired,
    /// There is nobody to answer any more.
    Void,
}

impl Ending {
    /// The notice to the peer, if nothing else follows the message.
    pub(crate) fn notice(&self, code: u16, is_submitted: bool) -> Option<Notice> {
        if is_submitted && matches!(self, Self::Expired) {
            let text = "no answer came within timeouts.deferred".into();
            return Some(Notice::Goodbye { reason: Goodbye::OutcomeUnknown, text });
        }
        let text = match self {
            Self::Resumed(_) | Self::Void => return None,
            Self::Dropped => "the deferred reply was dropped",
            Self::Expired => "the deferred reply was not given within timeouts.deferred",
        };
        let (problem, code) = (Problem::HandlerFailed, Some(code));
        Some(Notice::Error { problem, code, text: text.into() })
    }
}

impl std::fmt::Debug for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Resumed(_) => "Resumed",
            Self::Dropped => "Dropped",
            Self::Expired => "Expired",
            Self::Void => "Void",
        })
    }
}

/// What a message asks of somebody else, who answers it: called once, when the message waits
/// and all replies in front of it are handed over, without a lock and in the messages' order.
pub(crate) struct Submission(Box<dyn FnOnce() + Send>);

impl Submission {
    /// That calls this.
    pub(crate) fn new(submit: impl FnOnce() + Send + 'static) -> Self {
        Self(Box::new(submit))
    }

    pub(crate) fn submit(self) {
        (self.0)();
    }
}

impl std::fmt::Debug for Submission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Submission")
    }
}

/// One message of those that wait together.
#[derive(Debug)]
struct Part {
    number: Number,
    /// Answers that are still to come.
    answers: u32,
    /// What has come while one in front of it was not answered: charged to the outbox total, and
    /// queued when it has its turn.
    early: Entries,
}

/// What an answer leads to.
#[derive(Debug, Default)]
pub(crate) struct Answered {
    /// What is to be queued now.
    pub(crate) replies: Entries,
    /// Messages that wait no longer.
    pub(crate) messages: usize,
    /// None waits any more.
    pub(crate) is_all: bool,
}

/// A message that waits, or has waited. Its body is a copy: what it was received in may be
/// the read buffer of the event loop, and holds its neighbours. Those that were submitted wait
/// together with their neighbours, and have no body: they are not continued.
#[derive(Debug)]
pub struct Deferred {
    pub(crate) number: Number,
    /// When its handler took the ticket.
    pub(crate) since: Moment,
    /// `None`: it waits.
    pub(crate) ending: Option<Ending>,
    code: u16,
    checksum: u32,
    length: usize,
    joins: bool,
    body: Box<[u8]>,
    held: Option<Held>,
    /// What was submitted and is not answered, in the order of the requests. Empty: it waits
    /// for a ticket.
    parts: Queue<Part>,
    /// What is to be submitted.
    pub(crate) submissions: Vec<Submission>,
    messages: usize,
}

/// A place of `worker.deferred_max`. It goes back once, when this is dropped.
#[derive(Debug)]
pub(crate) struct Held(Arc<Engine>);

impl Held {
    /// `None`: as many wait as may.
    pub(crate) fn take(engine: &Arc<Engine>) -> Option<Self> {
        engine.deferred.try_charge(1).then(|| Self(Arc::clone(engine)))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.deferred.release(1);
    }
}

impl Deferred {
    pub(crate) fn new(number: Number, opened: &Opened<'_>, held: Option<Held>) -> Self {
        let Opened { code, body, checksum, length, joins } = *opened;
        let (since, body) = (Moment::now(), body.into());
        let (parts, submissions) = (Queue::default(), Vec::new());
        Self {
            number,
            since,
            ending: None,
            code,
            checksum,
            length,
            joins,
            body,
            held,
            parts,
            submissions,
            messages: 1,
        }
    }

    /// One that is answered by whom it is submitted to, and not continued.
    pub(crate) fn submitted(
        number: Number,
        opened: &Opened<'_>,
        answers: u32,
        submission: Submission,
    ) -> Self {
        let opened = Opened { body: &[], ..*opened };
        let mut parts = Queue::default();
        parts.push(Part { number, answers, early: Entries::default() });
        Self { parts, submissions: vec![submission], ..Self::new(number, &opened, None) }
    }

    /// Has another one that is submitted wait together with this one, behind it.
    pub(crate) fn join(&mut self, other: &mut Self) {
        debug_assert!(self.is_submitted() && other.is_submitted(), "a ticket is for one message");
        self.messages += other.messages;
        self.submissions.append(&mut other.submissions);
        self.parts.append(std::mem::take(&mut other.parts));
    }

    /// Whether it waits for whom it was submitted to, and for no ticket.
    pub(crate) fn is_submitted(&self) -> bool {
        !self.parts.is_empty()
    }

    /// Notes an answer. Replies are queued in the order of the requests, whatever the order of
    /// the answers. `None`: nobody waits for it.
    pub(crate) fn answer(&mut self, number: Number, replies: Option<Entry>) -> Option<Answered> {
        let is_it = |part: &&mut Part| part.number == number && part.answers > 0;
        let part = self.parts.iter_mut().find(is_it)?;
        part.answers -= 1;
        replies.into_iter().for_each(|replies| part.early.push(replies));
        let mut answered = Answered::default();
        while let Some(first) = self.parts.first_mut() {
            answered.replies.append(std::mem::take(&mut first.early));
            if first.answers > 0 {
                break;
            }
            self.parts.pop();
            answered.messages += 1;
        }
        self.messages -= answered.messages;
        answered.is_all = self.parts.is_empty();
        Some(answered)
    }

    /// The cost of replies that it keeps, until its wait has ended: they are queued, or given up.
    pub(crate) fn early_cost(&self) -> usize {
        if self.ending.is_some() {
            return 0;
        }
        self.parts.iter().flat_map(|part| part.early.iter()).map(Entry::charged).sum()
    }

    /// Of each message that was submitted and is not answered: its number, how many answers are
    /// to come, and how many came early.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn parts(&self) -> Vec<(Number, u32, usize)> {
        self.parts.iter().map(|part| (part.number, part.answers, part.early.len())).collect()
    }

    /// How many messages wait.
    pub(crate) fn messages(&self) -> usize {
        self.messages
    }

    /// How its wait has ended. It gives its place back: what continues it may let it wait once
    /// more.
    pub(crate) fn end(&mut self) -> Ending {
        self.held = None;
        self.ending.take().expect("a message that waits is on no list")
    }

    /// The message, as its handler has had it.
    pub(crate) fn opened(&self) -> Opened<'_> {
        let Self { code, checksum, length, joins, .. } = *self;
        Opened { code, body: &self.body, checksum, length, joins }
    }

    /// Bytes charged against the limits of the inbox.
    pub(crate) fn charged(&self) -> usize {
        self.body.len() + self.messages * ITEM_COST
    }
}

/// Which wait is to end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Which {
    /// That of this ticket.
    Of(Number),
    /// One that began at this time or before.
    BegunBy(Moment),
    /// Any.
    Any,
}

impl Which {
    pub(crate) fn is(self, deferred: &Deferred) -> bool {
        match self {
            Self::Of(number) => deferred.number == number,
            Self::BegunBy(moment) => deferred.since <= moment,
            Self::Any => true,
        }
    }
}

/// The right to continue a message that waits, once, from any thread. Dropped without that,
/// its message is answered with an error.
///
/// It keeps no connection: when that is gone the ticket is void, and costs the memory of an
/// empty mailbox until it is dropped.
#[derive(Debug)]
pub struct Ticket {
    mailbox: Weak<Mailbox>,
    number: Number,
}

impl Ticket {
    /// One that continues nothing.
    #[must_use]
    pub fn void() -> Self {
        Self { mailbox: Weak::new(), number: 0 }
    }

    pub(crate) fn new(mailbox: &Arc<Mailbox>, number: Number) -> Self {
        Self { mailbox: Arc::downgrade(mailbox), number }
    }

    /// Whether there is nothing to continue any more. It can become void at any time.
    #[must_use]
    pub fn is_void(&self) -> bool {
        !self.mailbox.upgrade().is_some_and(|mailbox| mailbox.is_awaited(self.number))
    }

    /// Has a handler thread continue the message with this value of the application's.
    /// Returns whether it will, unless its connection ends before: a void ticket does nothing.
    pub fn resume(mut self, value: Box<dyn Any + Send>) -> bool {
        // Nothing is left to be dropped.
        let mailbox = std::mem::take(&mut self.mailbox).upgrade();
        mailbox.is_some_and(|it| it.end_wait(Which::Of(self.number), Ending::Resumed(value)))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(mailbox) = self.mailbox.upgrade() {
            mailbox.end_wait(Which::Of(self.number), Ending::Dropped);
        }
    }
}

impl Engine {
    /// Messages that wait, of all connections.
    #[must_use]
    pub fn deferred(&self) -> &Budget {
        &self.deferred
    }
}
