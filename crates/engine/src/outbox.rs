//! The outbox of a connection: a part of its state, which has the table of its seats.

use crate::effects::Effects;
use crate::writer::{Entry, Resting, Unsent, Writer};

/// Why a connection waits without being on the send list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// The socket is full: until EPOLLOUT.
    Socket,
    /// The kernel had no memory: until a timer.
    Buffers,
}

/// Who may write to the socket.
#[derive(Debug)]
pub(crate) enum Seat {
    Idle(Resting),
    Ready(Resting),
    Sending,
    Blocked(Resting, Blocked),
    Closed,
}

/// What is queued and not sent.
#[derive(Debug)]
pub(crate) struct Outbox {
    pub(crate) seat: Seat,
    /// The cost of `waiting` and of the writer's entries; what is in flight is accounted
    /// for when the writer returns.
    pub(crate) bytes: usize,
    pub(crate) sent_bytes: u64,
    /// Queued since the writer was last taken.
    pub(crate) waiting: Vec<Entry>,
}

impl Outbox {
    /// Queues an entry. Idle -> ready.
    pub(crate) fn append(&mut self, entry: Entry, effects: &mut Effects) {
        self.bytes += entry.cost();
        self.waiting.push(entry);
        self.seat = match std::mem::replace(&mut self.seat, Seat::Sending) {
            Seat::Idle(writer) => {
                effects.list = true;
                Seat::Ready(writer)
            }
            other => other,
        };
    }

    /// To sending, with all that is queued.
    pub(crate) fn take(&mut self) -> Option<Writer> {
        let resting = std::mem::replace(&mut self.seat, Seat::Sending).into_resting()?;
        let mut writer = resting.into_writer();
        if !self.waiting.is_empty() {
            writer.load(std::mem::take(&mut self.waiting));
        }
        Some(writer)
    }

    /// Takes entries that will not be sent off the accounts.
    pub(crate) fn drop_entries(&mut self, entries: Unsent, effects: &mut Effects) {
        if entries.is_empty() {
            return;
        }
        let cost: usize = entries.iter().map(Entry::cost).sum();
        self.bytes -= cost;
        effects.outbox_released += cost;
        effects.lost += entries.iter().map(|entry| u64::from(entry.messages())).sum::<u64>();
        let [first, second] = &mut effects.remains().unsent;
        if first.is_empty() { *first = entries } else { *second = entries }
    }

    /// The writer's hold on the socket has ended, under this lock: the loop, which sees
    /// this state by the same lock, then closes it.
    pub(crate) fn close(&mut self, unsent: Unsent, effects: &mut Effects) {
        self.seat = Seat::Closed;
        // Half of the first one may be sent: its rest is released with the others.
        let rest = std::mem::take(&mut self.bytes);
        let waiting = std::mem::take(&mut self.waiting);
        let lost = unsent.iter().chain(&waiting).map(|entry| u64::from(entry.messages()));
        effects.lost += lost.sum::<u64>();
        effects.outbox_released += rest;
        if !(unsent.is_empty() && waiting.is_empty()) {
            effects.remains().unsent = [unsent, waiting];
        }
    }
}

impl Seat {
    pub(crate) fn into_resting(self) -> Option<Resting> {
        match self {
            Self::Idle(resting) | Self::Ready(resting) | Self::Blocked(resting, _) => Some(resting),
            Self::Sending | Self::Closed => None,
        }
    }
}
