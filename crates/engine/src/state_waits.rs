//! How a message comes to wait, or an inbox for room, and how that ends.

use super::State;
use crate::budget::Room;
use crate::deferral::{Answered, Deferred, Ending, Number, Which};
use crate::effects::Effects;
use crate::engine::Bounds;
use crate::inbox::{Backlog, Phase, small};
use crate::item::{Done, ITEM_COST, Item};
use crate::writer::Entry;

impl State {
    /// The message that the running turn handles is to wait: it stands in front of all that
    /// came behind it. Given back if the connection ends: then nothing waits any more.
    pub(crate) fn defer(&mut self, deferred: Box<Deferred>) -> Result<(), Box<Deferred>> {
        let phase = self.inbox.phase;
        debug_assert!(
            matches!(phase, Phase::Running | Phase::Empty),
            "a handler runs, in a turn or in a test of its own"
        );
        if !self.is_open() {
            return Err(deferred);
        }
        let item = Item::Deferred(deferred);
        self.inbox.messages += small(item.messages());
        self.inbox.bytes += small(item.charged());
        self.inbox.items.push_first(item);
        Ok(())
    }

    /// As [`State::defer`], of one that is to be submitted: it waits together with those in front
    /// of it that the turn has submitted already. What is given back then is of no more use.
    pub(crate) fn submit(&mut self, mut deferred: Box<Deferred>) -> Result<(), Box<Deferred>> {
        let is_first = !self.first_deferred().is_some_and(|first| first.is_submitted());
        if is_first || !self.is_open() {
            return self.defer(deferred);
        }
        self.inbox.messages += small(deferred.messages());
        self.inbox.bytes += small(deferred.charged());
        if let Some(first) = self.first_deferred() {
            first.join(&mut deferred);
        }
        Ok(())
    }

    /// The message is not to wait after all: its handler has failed.
    pub(crate) fn withdraw(&mut self) -> Option<Item> {
        debug_assert_eq!(self.inbox.phase, Phase::Running);
        self.first_deferred()?;
        let item = self.inbox.items.pop()?;
        self.inbox.messages -= small(item.messages());
        self.inbox.bytes -= small(item.charged());
        Some(item)
    }

    /// Ends a wait. If its turn has ended already: waiting -> queued; if not, the turn finds
    /// that it has. Given back if there is no such wait: it is void.
    pub(crate) fn end_wait(
        &mut self,
        which: Which,
        ending: Ending,
        effects: &mut Effects,
    ) -> Result<(), Ending> {
        match self.first_deferred() {
            Some(deferred) if deferred.ending.is_none() && which.is(deferred) => {
                effects.outbox_released += deferred.early_cost();
                deferred.ending = Some(ending);
            }
            _ => return Err(ending),
        }
        if self.inbox.phase == Phase::Waiting {
            self.inbox.phase = Phase::Queued;
            effects.enqueue = true;
        }
        Ok(())
    }

    /// Running -> waiting, if the turn's last message is to wait and still does. The loop is
    /// called: it keeps the clock.
    #[inline]
    pub(super) fn wait(&mut self, effects: &mut Effects) -> bool {
        let Some(deferred) = self.first_deferred().filter(|it| it.ending.is_none()) else {
            return false;
        };
        effects.submissions = std::mem::take(&mut deferred.submissions);
        self.inbox.phase = Phase::Waiting;
        effects.call = true;
        true
    }

    /// One of the answers to a message that was submitted. The last one of those that wait
    /// together ends their wait: waiting -> empty, queued or stalled. False: there is no such wait,
    /// and `replies` are not queued.
    pub(crate) fn answer(
        &mut self,
        number: Number,
        replies: Option<Entry>,
        total: Room,
        bounds: &Bounds,
        effects: &mut Effects,
    ) -> bool {
        let waits = self.first_deferred().filter(|deferred| deferred.ending.is_none());
        let Some(answered) = waits.and_then(|waits| waits.answer(number, replies)) else {
            return false;
        };
        debug_assert_eq!(self.inbox.phase, Phase::Waiting, "it was submitted");
        let Answered { mut replies, messages, is_all } = answered;
        while let Some(replies) = replies.pop() {
            self.append(replies, total, bounds, effects);
        }
        let done = Done { messages, bytes: messages * ITEM_COST, hook: None };
        self.inbox.in_turn = small(messages);
        self.take_off(done, bounds, effects);
        if is_all {
            self.inbox.items.pop();
            self.settle_inbox(total, bounds, effects);
        }
        true
    }

    /// Stalled for the total -> queued. Any other phase stays what it is.
    pub(crate) fn resume(&mut self) -> Effects {
        let is_stalled = self.inbox.phase == Phase::Stalled(Backlog::Total);
        if is_stalled {
            self.inbox.phase = Phase::Queued;
        }
        Effects { enqueue: is_stalled, ..Effects::default() }
    }

    /// What a turn has begun and not handled to its end comes back: behind the message of
    /// that turn that is to wait.
    pub(super) fn put_back(&mut self, rest: Item) {
        let waits = self.first_deferred().is_some();
        let deferred = if waits { self.inbox.items.pop() } else { None };
        self.inbox.items.push_first(rest);
        if let Some(deferred) = deferred {
            self.inbox.items.push_first(deferred);
        }
    }

    /// Whether this wait goes on.
    pub(crate) fn is_awaited(&self, which: Which) -> bool {
        let Some(Item::Deferred(deferred)) = self.inbox.items.first() else { return false };
        deferred.ending.is_none() && which.is(deferred)
    }

    pub(super) fn first_deferred(&mut self) -> Option<&mut Deferred> {
        match self.inbox.items.first_mut() {
            Some(Item::Deferred(deferred)) => Some(deferred),
            _ => None,
        }
    }
}
