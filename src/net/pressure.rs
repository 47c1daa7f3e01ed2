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
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// How often connections that wait for room are looked at.
const RELIEF_PAUSE: Duration = Duration::from_millis(10);
/// How many of them at a time.
const RELIEF_LOOKS: usize = 64;
/// How many connections are ended at a time.
const CLOSED_AT_ONCE: usize = 64;

/// What the loop remembers of a shortage of memory.
#[derive(Debug)]
pub(super) struct Pressure {
    /// Since when connections have waited for room in the inbox total.
    starved_since: Option<Moment>,
    next_relief: Option<Moment>,
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
            starved_since: None,
            next_relief: None,
            next_closing: None,
            cursor: None,
            closings: 0,
            queued_peak: 0,
            closed: Throttle::new(5),
        }
    }
}

/// The largest of those that are added, up to a number: no more is ever sorted.
#[derive(Debug, Default)]
struct Largest(BinaryHeap<Reverse<(usize, Key)>>);

impl Largest {
    fn add(&mut self, bytes: usize, key: Key) {
        if !self.wants(bytes) {
            return;
        }
        self.0.push(Reverse((bytes, key)));
        if self.0.len() > CLOSED_AT_ONCE {
            self.0.pop();
        }
    }

    /// Whether this is larger than the smallest of a full set.
    fn wants(&self, bytes: usize) -> bool {
        let smallest = self.0.peek().map_or(0, |Reverse((bytes, _))| *bytes);
        bytes > 0 && (self.0.len() < CLOSED_AT_ONCE || bytes > smallest)
    }

    fn into_sorted(self) -> impl Iterator<Item = (usize, Key)> {
        self.0.into_sorted_vec().into_iter().map(|Reverse(holder)| holder)
    }
}

impl Pressure {
    /// When the connections that wait for room are looked at again.
    pub(super) fn next_relief(&self) -> Option<Moment> {
        self.next_relief
    }

    /// After a storm of bytes the allocator has them all, and would keep them.
    pub(super) fn tick(&mut self, engine: &Engine, now: Moment) {
        if let Some(held) = self.closed.settle(now) {
            log::warn!("total exhausted, closed the largest holders{held}");
        }
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
            self.pressure.starved_since = None;
            self.pressure.next_relief = None;
            self.pressure.closings = 0;
            return;
        }
        if self.pressure.starved_since.is_none() {
            self.pressure.starved_since = Some(now);
            self.pressure.next_closing = Some(now + STARVED_MAX);
        }
        if self.pressure.next_relief.is_some_and(|at| now < at) {
            return;
        }
        self.pressure.next_relief = Some(now + RELIEF_PAUSE);
        self.read_beyond();
        if self.pressure.next_closing.is_some_and(|at| at <= now) {
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
        let stalled = self.largest_holders(|connection| connection.transport.unread_bytes() == 0);
        self.close_holders(stalled, wanted);
        let excess = self.reactor.engine.inbox_total().excess();
        if excess > READ_BYTES_MAX {
            let others = self.largest_holders(|_| true);
            self.close_holders(others, excess - READ_BYTES_MAX);
        }
    }

    /// The connections that hold most of the inbox total and have brought nothing for a
    /// while: begun messages, as far as `is_wanted`, and requests whose replies nobody
    /// reads.
    fn largest_holders(&self, is_wanted: impl Fn(&Connection) -> bool) -> Largest {
        let now = self.reactor.now;
        let mut largest = Largest::default();
        for (key, connection) in &self.table {
            if connection.clocks.blocked.is_some() {
                continue;
            }
            let held = connection.framer.held_bytes();
            let is_silent = connection.clocks.silent_for(now) >= STARVED_MAX;
            if connection.stage == Stage::Open
                && is_silent
                && largest.wants(held)
                && is_wanted(connection)
            {
                largest.add(held, key);
            }
        }
        for (began, key) in &self.reactor.blocked {
            let is_long = now.since(*began) >= STARVED_MAX;
            let connection = self.table.get(*key).filter(|_| is_long);
            let held = connection.map_or(0, |connection| {
                connection.mailbox.view().inbox_bytes + connection.framer.held_bytes()
            });
            largest.add(held, *key);
        }
        largest
    }

    fn close_holders(&mut self, largest: Largest, wanted: usize) {
        self.close_each(largest, "inbox", wanted, |connection, key, held, reactor| {
            let is_blocked = connection.clocks.blocked.is_some();
            let fate = if connection.stage == Stage::Open && !is_blocked {
                // It holds a begun message, no more: it can be told.
                connection.end(key, Ending::HoldsMemory, reactor)
            } else {
                connection.abort_slow(key, reactor)
            };
            (fate, held)
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
        let mut largest = Largest::default();
        for (_, key) in &self.reactor.blocked {
            let connection = self.table.get(*key).filter(|it| it.stage < Stage::Aborted);
            let queued = connection.map_or(0, |it| it.mailbox.view().outbox_bytes);
            // A backlog so small that closing it would not help is not to blame.
            if queued * 2 * CLOSED_AT_ONCE >= shortage {
                largest.add(queued, *key);
            }
        }
        let closed =
            self.close_each(largest, "outbox", shortage, |connection, key, held, reactor| {
                // Memory first: its backlog goes now, the connection when its peer has read
                // the goodbye. A peer that had that chance is not given another.
                match connection.mailbox.drop_backlog(Cause::Overloaded, &reactor.counters) {
                    Some(freed) => (connection.advance(key, reactor), freed),
                    None => (connection.abort_slow(key, reactor), held),
                }
            });
        if closed == CLOSED_AT_ONCE && self.reactor.engine.outbox_total().excess() > 0 {
            // Perhaps there are more than are ended at a time.
            self.reactor.engine.calls().report_overload();
        }
    }

    /// Ends the largest, until `wanted` bytes of the total are free. `end` says how many each
    /// has freed. Returns how many were ended.
    fn close_each(
        &mut self,
        largest: Largest,
        name: &str,
        wanted: usize,
        mut end: impl FnMut(&mut Connection, Key, usize, &mut Reactor) -> (Fate, usize),
    ) -> usize {
        let (mut freed, mut closed) = (0, 0);
        for (held, key) in largest.into_sorted() {
            if freed >= wanted {
                break;
            }
            self.with(key, |connection, reactor| {
                let (fate, bytes) = end(connection, key, held, reactor);
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
                "{name} total exhausted, closed the largest holders connections={closed} \
                 bytes={freed}{held}"
            );
        }
        closed
    }
}
