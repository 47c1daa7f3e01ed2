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
use crate::notice::{Notice, Problem};
use crate::protocol::Opened;
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
    pub(crate) fn notice(&self, code: u16) -> Option<Notice> {
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

/// A message that waits, or has waited. Its body is a copy: what it was received in may be
/// the read buffer of the event loop, and holds its neighbours.
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
        Self { number, since, ending: None, code, checksum, length, joins, body, held }
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
        self.body.len() + ITEM_COST
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
