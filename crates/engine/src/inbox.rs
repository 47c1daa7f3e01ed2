//! The inbox of a connection: a part of its state, which has the table of its phases.

use crate::effects::Received;
use crate::item::Item;
use crate::queue::Queue;

/// Which backlog a stalled inbox waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backlog {
    /// This connection's outbox.
    Own,
    /// The outboxes of all connections.
    Total,
}

/// Who handles what was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Empty,
    Queued,
    Running,
    Stalled(Backlog),
    /// The message in front waits for its ticket, or those in front for their answers.
    Waiting,
}

/// What was received and is not handled.
#[derive(Debug)]
pub(crate) struct Inbox {
    pub(crate) phase: Phase,
    /// How many messages the running turn has taken and not reported. If the connection
    /// ends under the turn, they are the turn's to account for.
    pub(crate) in_turn: u32,
    pub(crate) messages: u32,
    /// As charged. A gibibyte and what one read brings at the most.
    pub(crate) bytes: u32,
    pub(crate) items: Queue<Item>,
}

/// Of one read, or of what was read: see `Inbox::bytes`.
pub(crate) fn small(number: usize) -> u32 {
    u32::try_from(number).expect("bounded by the configuration")
}

impl Inbox {
    /// Adds an item, and charges it.
    pub(crate) fn add(&mut self, item: Item) {
        self.messages += small(item.messages());
        self.bytes += small(item.charged());
        self.items.push(item);
    }

    /// Empty -> queued.
    pub(crate) fn leave_empty(&mut self) -> Received {
        if self.phase == Phase::Empty {
            self.phase = Phase::Queued;
            Received::StartTurn
        } else {
            Received::Added
        }
    }

    /// The running turn's next item: behind the messages of this turn that are to wait.
    pub(crate) fn take_next(&mut self) -> Option<Item> {
        let has_wait = matches!(self.items.first(), Some(Item::Deferred(_)));
        let waits = if has_wait { self.items.pop() } else { None };
        let item = self.take();
        waits.into_iter().for_each(|waits| self.items.push_first(waits));
        item
    }

    /// The first item.
    pub(crate) fn take(&mut self) -> Option<Item> {
        let item = self.items.pop()?;
        self.in_turn = small(item.messages());
        Some(item)
    }
}
