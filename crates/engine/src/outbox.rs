//! The outbox of a connection: a part of its state, which has the table of its seats.

use crate::effects::Effects;
use crate::flush::Socket;
use crate::writer::{Entries, Entry, Writer};
use std::sync::Arc;

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
    Idle(Arc<dyn Socket>),
    Ready(Arc<dyn Socket>),
    Sending,
    Blocked(Arc<dyn Socket>, Blocked),
    Closed,
}

/// What is queued and not sent.
#[derive(Debug)]
pub(crate) struct Outbox {
    pub(crate) seat: Seat,
    /// The cost of `entries` and of the writer's; what is in flight is accounted for when
    /// the writer returns.
    pub(crate) bytes: usize,
    pub(crate) sent_bytes: u64,
    /// What the writer does not have: all, or what was queued since it was taken.
    pub(crate) entries: Entries,
}

impl Outbox {
    /// Queues an entry. Idle -> ready.
    pub(crate) fn append(&mut self, entry: Entry, effects: &mut Effects) {
        self.bytes += entry.cost();
        self.entries.push(entry);
        self.seat = match std::mem::replace(&mut self.seat, Seat::Sending) {
            Seat::Idle(socket) => {
                effects.list = true;
                Seat::Ready(socket)
            }
            other => other,
        };
    }

    /// To sending, with all that is queued.
    pub(crate) fn take(&mut self) -> Option<Writer> {
        let socket = match std::mem::replace(&mut self.seat, Seat::Sending) {
            Seat::Idle(socket) | Seat::Ready(socket) | Seat::Blocked(socket, _) => socket,
            other @ (Seat::Sending | Seat::Closed) => {
                self.seat = other;
                return None;
            }
        };
        Some(Writer::new(socket, std::mem::take(&mut self.entries)))
    }

    /// The writer's entries come back: they are the oldest.
    pub(crate) fn put_in_front(&mut self, unsent: Entries) {
        if !unsent.is_empty() {
            let queued = std::mem::replace(&mut self.entries, unsent);
            self.entries.append(queued);
        }
    }

    /// Takes entries that will not be sent off the accounts.
    pub(crate) fn drop_entries(&mut self, entries: Entries, effects: &mut Effects) {
        if entries.is_empty() {
            return;
        }
        let cost: usize = entries.iter().map(Entry::cost).sum();
        self.bytes -= cost;
        effects.outbox_released += entries.iter().map(Entry::charged).sum::<usize>();
        effects.lost += entries.iter().map(|entry| u64::from(entry.messages())).sum::<u64>();
        let [first, second] = &mut effects.remains().unsent;
        if first.is_empty() { *first = entries } else { *second = entries }
    }

    /// The writer's hold on the socket has ended, under this lock: the loop, which sees
    /// this state by the same lock, then closes it.
    pub(crate) fn close(&mut self, unsent: Entries, effects: &mut Effects) {
        self.seat = Seat::Closed;
        // Half of the first one may be sent: its rest is released with the others.
        let rest = std::mem::take(&mut self.bytes);
        let waiting = std::mem::take(&mut self.entries);
        let shared: usize = unsent.iter().chain(waiting.iter()).map(Entry::unsent_shared).sum();
        let lost = unsent.iter().chain(waiting.iter()).map(|entry| u64::from(entry.messages()));
        effects.lost += lost.sum::<u64>();
        effects.outbox_released += rest - shared;
        if !(unsent.is_empty() && waiting.is_empty()) {
            effects.remains().unsent = [unsent, waiting];
        }
    }
}
