//! How a message comes to wait, and how its wait ends.

use super::State;
use crate::deferral::{Deferred, Ending, Which};
use crate::effects::Effects;
use crate::inbox::{Phase, small};
use crate::item::Item;

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
        let waits = self.first_deferred().is_some_and(|deferred| deferred.ending.is_none());
        if waits {
            self.inbox.phase = Phase::Waiting;
            effects.call = true;
        }
        waits
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

    fn first_deferred(&mut self) -> Option<&mut Deferred> {
        match self.inbox.items.first_mut() {
            Some(Item::Deferred(deferred)) => Some(deferred),
            _ => None,
        }
    }
}
