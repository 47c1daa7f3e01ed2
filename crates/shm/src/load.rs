//! How connections are spread over the workers that accept from the same sockets.
//!
//! Each event loop says in its own line how many connections it has and whether it
//! listens; the others read it, once in a few accepts. Nothing is decided here, and
//! nobody waits for anybody.

use std::sync::atomic::Ordering;

use chappe_sys::clock::monotonic_ms;

use super::slot::{Slot, SlotState};

/// A worker that is overdue for so long is left out: it may be stopped or stuck, and
/// nobody shall leave connections to it.
const OVERDUE_MAX_MS: u64 = 1000;

/// What a worker does with its shared sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Accepting {
    /// It takes none: it does not serve, or has all it can have.
    No = 0,
    /// It waits for connects.
    Listens = 1,
    /// It leaves them to those with fewer connections, and will be back.
    StandsBack = 2,
}

/// The connections of all workers of a generation that take part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// How many workers.
    pub workers: u64,
    /// How many connections they have together.
    pub connections: u64,
    /// The fewest of those among the others that listen, or should look by now whether
    /// they do.
    pub least_listening: Option<u64>,
}

impl Load {
    /// Whether a worker with `own` connections has more than the mean and `slack`, and
    /// there is one with no more than the mean who hears of new ones.
    #[must_use]
    pub fn leaves_to_others(&self, own: u64, slack: u64) -> bool {
        let is_next = |least: u64| least * self.workers <= self.connections;
        own * self.workers > self.connections + slack * self.workers
            && self.least_listening.is_some_and(is_next)
    }

    /// The mean, rounded down.
    #[must_use]
    pub fn mean(&self) -> u64 {
        self.connections.checked_div(self.workers).unwrap_or(0)
    }
}

impl Slot {
    /// Says what the worker does with its shared sockets. Event loop only.
    pub fn set_accepting(&self, accepting: Accepting) {
        self.layout().event_loop.accepting.store(accepting as u32, Ordering::Relaxed);
    }

    /// The load of the workers of this one's generation, itself included.
    #[must_use]
    pub fn load(&self) -> Load {
        let now_ms = monotonic_ms();
        let layout = self.zone().layout();
        let generation = self.layout().identity.generation.load(Ordering::Relaxed);
        let mut load = Load::default();
        for index in self.zone().live_slots() {
            let state = SlotState::from_cell(layout.states[index].load(Ordering::Acquire));
            let slot = &layout.slots[index];
            let line = &slot.event_loop;
            let accepting = line.accepting.load(Ordering::Relaxed);
            let wakes_by_ms = line.wakes_by_ms.load(Ordering::Relaxed);
            if state != SlotState::Serving
                || accepting == Accepting::No as u32
                || slot.identity.generation.load(Ordering::Relaxed) != generation
                || now_ms > wakes_by_ms + OVERDUE_MAX_MS
            {
                continue;
            }
            let connections = u64::from(line.connections.load(Ordering::Relaxed));
            load.workers += 1;
            load.connections += connections;
            // On a busy machine one that was to look may be late for longer than a burst
            // of connects takes: without it, who comes first would take them all.
            let is_late = wakes_by_ms < now_ms;
            let hears = accepting == Accepting::Listens as u32 || is_late;
            if index != self.index() && hears {
                let least = load.least_listening.unwrap_or(u64::MAX).min(connections);
                load.least_listening = Some(least);
            }
        }
        load
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Zone;
    use std::sync::Arc;

    fn serving(zone: &Arc<Zone>, generation: u64, connections: u32) -> Slot {
        let slot = zone.claim(0, generation).unwrap().unwrap();
        slot.mark_serving();
        slot.heartbeat(monotonic_ms(), monotonic_ms() + 1000);
        slot.set_accepting(Accepting::Listens);
        slot.set_connections(connections);
        slot
    }

    #[test]
    fn only_those_who_take_part_count() {
        let zone = Zone::create(1).unwrap();
        let own = serving(&zone, 2, 50);
        let (other, back) = (serving(&zone, 2, 30), serving(&zone, 2, 10));
        back.set_accepting(Accepting::StandsBack);
        let all = Load { workers: 3, connections: 90, least_listening: Some(30) };
        assert_eq!(own.load(), all);
        // Late.
        back.heartbeat(monotonic_ms() - 10, monotonic_ms() - 1);
        assert_eq!(own.load(), Load { least_listening: Some(10), ..all });
        back.heartbeat(monotonic_ms(), monotonic_ms() + 1000);
        // Of another generation, full, draining, overdue, dead.
        serving(&zone, 1, 1000);
        serving(&zone, 2, 1000).set_accepting(Accepting::No);
        serving(&zone, 2, 1000).mark_draining();
        let now = monotonic_ms();
        serving(&zone, 2, 1000).heartbeat(now, now.saturating_sub(OVERDUE_MAX_MS + 1));
        zone.free(&serving(&zone, 2, 1000));
        assert_eq!(own.load(), all);
        assert_eq!(other.load().least_listening, Some(50));
    }

    #[test]
    fn connections_are_left_to_those_who_have_fewer_and_listen() {
        let load = |least_listening| Load { workers: 4, connections: 400, least_listening };
        assert!(load(Some(90)).leaves_to_others(111, 10));
        assert!(!load(Some(90)).leaves_to_others(110, 10), "within the slack");
        assert!(load(Some(100)).leaves_to_others(111, 10));
        assert!(!load(Some(101)).leaves_to_others(111, 10), "the others have more than the mean");
        assert!(!load(None).leaves_to_others(400, 10), "nobody listens");
        assert!(!Load::default().leaves_to_others(0, 0));
        assert_eq!((load(None).mean(), Load::default().mean()), (100, 0));
    }
}
