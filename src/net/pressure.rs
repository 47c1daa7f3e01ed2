//! What the loop does when all connections together hold too much: who may still read,
//! who has to go, and when the allocator is asked to give memory back.

use super::connection::Connection;
use super::event_loop::{Entry, EventLoop, Key};
use super::interest::Phase;
use super::settings::{GIVE_BACK_MIN, READ_BYTES_MAX, SCARCE_READ_BYTES, STARVED_MAX};
use crate::send::Room;
use chappe_wire::ErrorNumber;
use std::sync::Arc;
use std::time::Instant;

impl EventLoop {
    /// Notes that a connection waits for room in the inbox total.
    pub(super) fn note_starved(&mut self, key: Key) {
        let is_first = self.starved.is_empty();
        self.starved.insert(key);
        let waiter = Arc::clone(&self.shared.send);
        if is_first && self.shared.dispatch.total().wait_for_room(waiter) == Room::Free {
            self.shared.send.calls().report_room();
        }
    }

    /// Ends the connections with the largest backlogs until the outbox total is within
    /// its bound and has room for what was refused: not the next innocent one that
    /// has a reply to get.
    pub(super) fn shed(&mut self, now: Instant) {
        let shortage = self.shared.send.total().take_shortage();
        if shortage > 0 {
            let owed = |connection: &Connection| connection.receive.send().view().queued_bytes;
            self.close_largest("outbox", shortage, owed, now);
        }
    }

    /// How many bytes a connection may bring now. Looked at before each read, so
    /// that all connections together go no further beyond the inbox total than one
    /// read, and then [`SCARCE_READ_BYTES`] each.
    ///
    /// Those few bytes are for who holds nothing: what fits into them, a ping above
    /// all, is handled and gone, however much memory begun frames hold.
    pub(super) fn room_to_read(&mut self, key: Key) -> usize {
        let Some(Entry::Connection(connection)) = self.table.get_mut(key) else { return 0 };
        if self.shared.dispatch.total().excess() == 0 {
            return READ_BYTES_MAX;
        }
        connection.starved |= connection.cutter.is_inside_frame();
        SCARCE_READ_BYTES
    }

    /// The inbox total can be held by connections that will not go on: begun frames
    /// that never end, replies that nobody reads. If connections wait for room for
    /// [`STARVED_MAX`], the largest holders go until an eighth of it is free. What is
    /// free can be taken by more of the same; so it is a quarter the next time, then
    /// a half, then all.
    pub(super) fn relieve_starved(&mut self, now: Instant) {
        let total = self.shared.dispatch.total();
        let excess = total.excess();
        if self.starved.is_empty() || excess == 0 {
            self.starved_since = None;
            self.reliefs = 0;
            return;
        }
        let wanted = excess + ((total.max() / 8) << self.reliefs.min(3));
        let since = *self.starved_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= STARVED_MAX {
            let held = |connection: &Connection| {
                connection.receive.view().bytes + connection.cutter_charged
            };
            self.close_largest("inbox", wanted, held, now);
            self.reliefs += 1;
        }
    }

    /// Ends the connections with the most bytes, until `wanted` bytes are free.
    fn close_largest(
        &mut self,
        total: &str,
        wanted: usize,
        bytes: impl Fn(&Connection) -> usize,
        now: Instant,
    ) {
        let of_entry = |(key, entry): (Key, &Entry)| match entry {
            Entry::Connection(connection) if connection.phase != Phase::Aborting => {
                Some((bytes(connection), key)).filter(|(bytes, _)| *bytes > 0)
            }
            _ => None,
        };
        let mut holders: Vec<(usize, Key)> = self.table.iter().filter_map(of_entry).collect();
        holders.sort_unstable_by(|a, b| b.cmp(a));
        let (mut freed, mut closed) = (0, 0);
        for (held, key) in holders {
            if freed >= wanted {
                break;
            }
            let Some(Entry::Connection(connection)) = self.table.get_mut(key) else { continue };
            if total == "outbox" {
                // Memory first: its backlog goes now, the connection when its peer
                // has read the goodbye. Who had that chance is not given another.
                match connection.receive.send().clone().cut(&self.shared.counters) {
                    Some(of_it) => {
                        freed += of_it;
                        closed += 1;
                        self.look(key, now);
                        continue;
                    }
                    None => self.give_up_slow(key, now),
                }
            } else if connection.cutter_charged >= connection.receive.view().bytes {
                // It holds a begun frame, no more: it can be told.
                let text = "no memory is left for begun frames (inbox.total_max_bytes)";
                connection.refuse(ErrorNumber::FrameTimeout, text, &self.shared);
                self.look(key, now);
            } else {
                self.give_up_slow(key, now);
            }
            freed += held;
            closed += 1;
        }
        if let Some(held) = self.warnings.largest_closed.admit(now) {
            log::warn!(
                "{total} total exhausted, closed the largest holders connections={closed} \
                 bytes={freed}{held}"
            );
        }
    }

    /// After a storm of bytes the allocator has them all, and would keep them.
    pub(super) fn give_memory_back(&mut self, queued: usize) {
        let peaks =
            [self.shared.dispatch.total().take_peak(), self.shared.send.total().take_peak()];
        self.queued_peak = self.queued_peak.max(peaks.iter().sum());
        if self.queued_peak >= GIVE_BACK_MIN && queued <= self.queued_peak / 8 {
            self.queued_peak = queued;
            chappe_sys::memory::give_back();
        }
    }
}
