//! What the loop does when all connections together hold too much: which may still read,
//! which have to go, and when the allocator is asked to give memory back.
//!
//! The inbox total can be held by connections that do not go on: begun messages that never
//! end, requests whose replies nobody reads. While connections wait for room,
//!
//! - a connection whose next bytes are in the kernel goes on: it is read beyond the total,
//!   as long as that is exceeded by no more than one read. A message that is completed is
//!   handled and gone, so honest progress never ends;
//! - after [`STARVED_MAX`] those that have brought nothing for that time, and have nothing
//!   in the kernel, are ended, the largest first, until an eighth of the total is free. What
//!   is free can be taken by more of the same; so it is a quarter the next time, then a
//!   half, then all;
//! - if the total is then exceeded by more than one read, so that nobody can go on, the
//!   largest of the others are ended until that is over.

use super::connection::Connection;
use super::ending::Ending;
use super::event_loop::EventLoop;
use super::reactor::{Fate, Key, Reactor};
use super::settings::{GIVE_BACK_MIN, READ_BYTES_MAX, STARVED_MAX, TICK};
use crate::throttle::Throttle;
use chappe_engine::{Cause, Engine, Stage};
use chappe_sys::clock::Moment;
use std::collections::BinaryHeap;
use std::time::Duration;

/// How often connections that wait for room are looked at.
const RELIEF_PAUSE: Duration = Duration::from_millis(10);
/// How many of them at a time.
const RELIEF_LOOKS: usize = 64;
/// How many connections are ended at a time.
const CLOSED_AT_ONCE: usize = 64;

/// How much connections hold. All are added, in no order, and few are taken out again.
type Largest = BinaryHeap<(usize, Key)>;

/// What the loop remembers of a shortage of memory.
#[derive(Debug)]
pub(super) struct Pressure {
    /// When the connections that wait for room are looked at again.
    pub(super) next_relief: Option<Moment>,
    /// When the largest holders go, if connections wait for room in the inbox total.
    next_closing: Option<Moment>,
    /// Where the last look at the waiting connections ended.
    cursor: Option<Key>,
    /// How often the largest holders went since there was room last.
    closings: u32,
    /// The most that was queued since memory was given back.
    queued_peak: usize,
    closed: Throttle,
}

impl Default for Pressure {
    fn default() -> Self {
        Self {
            next_relief: None,
            next_closing: None,
            cursor: None,
            closings: 0,
            queued_peak: 0,
            closed: Throttle::new(5),
        }
    }
}

impl Pressure {
    /// After a storm of bytes the allocator has them all, and would keep them.
    pub(super) fn tick(&mut self, engine: &Engine, now: Moment) {
        self.closed.tell_held(
            "memory.exhausted",
            "total exhausted, closed the largest holders",
            now,
        );
        let totals = [engine.inbox_total(), engine.outbox_total()];
        let queued: usize = totals.iter().map(|total| total.used()).sum();
        let peak = totals.iter().map(|total| total.take_peak()).sum();
        self.queued_peak = self.queued_peak.max(peak);
        if self.queued_peak >= GIVE_BACK_MIN && queued <= self.queued_peak / 8 {
            self.queued_peak = queued;
            chappe_sys::memory::give_back();
        }
    }
}

impl EventLoop {
    /// Connections may wait for room in the inbox total.
    pub(super) fn relieve(&mut self) {
        let now = self.reactor.now;
        if self.reactor.starved.is_empty() || self.reactor.engine.inbox_total().excess() == 0 {
            self.pressure.next_relief = None;
            self.pressure.next_closing = None;
            self.pressure.closings = 0;
            return;
        }
        let closing = *self.pressure.next_closing.get_or_insert(now + STARVED_MAX);
        if self.pressure.next_relief.is_some_and(|at| now < at) {
            return;
        }
        self.pressure.next_relief = Some(now + RELIEF_PAUSE);
        self.read_beyond();
        if closing <= now {
            self.pressure.next_closing = Some(now + TICK);
            self.close_stalled();
        }
    }

    /// Lets some of the waiting connections go on whose next bytes are in the kernel.
    fn read_beyond(&mut self) {
        let after = self.pressure.cursor;
        let starved = &self.reactor.starved;
        let behind = starved.iter().filter(|key| Some(**key) > after);
        let before = starved.iter().filter(|key| Some(**key) <= after);
        let keys: Vec<Key> = behind.chain(before).copied().take(RELIEF_LOOKS).collect();
        for key in keys {
            if self.reactor.engine.inbox_total().excess() > READ_BYTES_MAX {
                return;
            }
            self.pressure.cursor = Some(key);
            self.with(key, |connection, reactor| {
                // Its own limits hold all the same.
                let waits_for_others = connection.stage == Stage::Open
                    && !connection.mailbox.view().is_paused
                    && connection.transport.unread_bytes() > 0;
                if !waits_for_others {
                    return Fate::Stay;
                }
                let _ = connection.read_at_most(READ_BYTES_MAX, reactor);
                connection.advance(key, reactor)
            });
        }
    }

    /// Ends connections that hold memory of the inbox total and do not go on.
    fn close_stalled(&mut self) {
        let total = self.reactor.engine.inbox_total();
        let wanted = total.excess() + ((total.max() / 8) << self.pressure.closings.min(3));
        self.pressure.closings += 1;
        self.close_holders(wanted, |connection| connection.transport.unread_bytes() == 0);
        let excess = self.reactor.engine.inbox_total().excess();
        if excess > READ_BYTES_MAX {
            self.close_holders(excess - READ_BYTES_MAX, |_| true);
        }
    }

    /// Ends the connections that hold most of the inbox total and have brought nothing for a
    /// while: those with a begun message, if they are `stalled`, and those with requests
    /// whose replies nobody reads.
    fn close_holders(&mut self, wanted: usize, stalled: impl Fn(&Connection) -> bool) {
        let now = self.reactor.now;
        let begins = |it: &Connection| {
            it.stage == Stage::Open && it.clocks.blocked.is_none() && it.framer.is_inside_message()
        };
        let mut largest = Largest::new();
        for (key, connection) in self.table.iter().filter(|(_, it)| begins(it)) {
            if now.since(connection.clocks.received_at) >= STARVED_MAX {
                largest.push((connection.framer.held_bytes(), key));
            }
        }
        for (began, key) in &self.reactor.blocked {
            let is_long = now.since(*began) >= STARVED_MAX;
            if let Some(connection) = self.table.get(*key).filter(|_| is_long) {
                let requests = connection.mailbox.view().inbox_bytes;
                largest.push((requests + connection.framer.held_bytes(), *key));
            }
        }
        self.close_each(largest, "inbox", wanted, |connection, key, held, reactor| {
            if !begins(connection) {
                return Some((connection.abort_slow(key, reactor), held));
            }
            // It holds a begun message, no more: a notice can be sent.
            let ends = stalled(connection);
            ends.then(|| (connection.end(key, Ending::HoldsMemory, reactor), held))
        });
    }

    /// Ends the connections with the largest backlogs until the outbox total is within its
    /// bound and has room for what was refused: not the next innocent one that has a reply
    /// to get. Only of a socket that is full a backlog can be large for long.
    pub(super) fn shed(&mut self) {
        let shortage = self.reactor.engine.outbox_total().take_shortage();
        if shortage == 0 {
            return;
        }
        let mut largest = Largest::new();
        for (_, key) in &self.reactor.blocked {
            let connection = self.table.get(*key).filter(|it| it.stage < Stage::Aborted);
            let queued = connection.map_or(0, |it| it.mailbox.view().outbox_bytes);
            // A backlog so small that closing it would not help is not to blame.
            if queued * 2 * CLOSED_AT_ONCE >= shortage {
                largest.push((queued, *key));
            }
        }
        let closed =
            self.close_each(largest, "outbox", shortage, |connection, key, _held, reactor| {
                let before = reactor.engine.outbox_total().used();
                // Memory first: its backlog goes now, the connection when its peer has read
                // the goodbye. A peer that had that chance is not given another.
                let is_first =
                    connection.mailbox.drop_backlog(Cause::Overloaded, &reactor.counters);
                let fate = if is_first {
                    connection.advance(key, reactor)
                } else {
                    connection.abort_slow(key, reactor)
                };
                // What others have queued as well stays.
                Some((fate, before.saturating_sub(reactor.engine.outbox_total().used())))
            });
        if closed == CLOSED_AT_ONCE && self.reactor.engine.outbox_total().excess() > 0 {
            // Perhaps there are more than are ended at a time.
            self.reactor.engine.calls().report_overload();
        }
    }

    /// Ends the largest, until `wanted` bytes of the total are free. `end` says how many each
    /// has freed, `None` if it is not to end. Returns how many were ended.
    fn close_each(
        &mut self,
        mut largest: Largest,
        name: &str,
        wanted: usize,
        mut end: impl FnMut(&mut Connection, Key, usize, &mut Reactor) -> Option<(Fate, usize)>,
    ) -> usize {
        let (mut freed, mut closed) = (0, 0);
        while freed < wanted && closed < CLOSED_AT_ONCE {
            let Some((held, key)) = largest.pop().filter(|(held, _)| *held > 0) else { break };
            self.with(key, |connection, reactor| {
                let Some((fate, bytes)) = end(connection, key, held, reactor) else {
                    return Fate::Stay;
                };
                freed += bytes;
                closed += 1;
                fate
            });
        }
        if closed == 0 {
            return 0;
        }
        if let Some(held) = self.pressure.closed.admit(self.reactor.now) {
            log::warn!(
                target: "memory.exhausted", "{name} total exhausted, closed the largest holders connections={closed} \
                 bytes={freed}{held}"
            );
        }
        closed
    }
}
