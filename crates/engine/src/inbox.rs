//! The inbox of a connection: a part of its state, which has the table of its phases.

use crate::effects::Received;
use crate::item::Item;
use std::collections::VecDeque;

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
}

/// What was received and is not handled.
#[derive(Debug)]
pub(crate) struct Inbox {
    pub(crate) phase: Phase,
    /// How many messages the running turn has taken and not told of. If the connection
    /// ends under the turn, they are the turn's to account for.
    pub(crate) in_turn: u32,
    pub(crate) messages: u32,
    /// As charged. A gibibyte and what one read brings at the most.
    pub(crate) bytes: u32,
    pub(crate) items: VecDeque<Item>,
}

/// Of one read, or of what was read: see `Inbox::bytes`.
pub(crate) fn small(number: usize) -> u32 {
    u32::try_from(number).expect("bounded by the configuration")
}

impl Inbox {
    /// Charges an item.
    pub(crate) fn add(&mut self, item: &Item) {
        self.messages += small(item.messages());
        self.bytes += small(item.charged());
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

    /// Running -> empty: at rest it owns no buffer.
    pub(crate) fn rest(&mut self) {
        self.phase = Phase::Empty;
        if self.items.capacity() > 0 {
            self.items = VecDeque::new();
        }
    }

    /// The running turn's next item.
    pub(crate) fn take(&mut self) -> Option<Item> {
        let item = self.items.pop_front()?;
        self.in_turn = small(item.messages());
        Some(item)
    }
}
