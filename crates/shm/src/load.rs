//! How connections are spread over the workers that accept from the same sockets.
//!
//! Each event loop publishes, in a cache line of its own, how many connections it has and
//! whether it accepts; the others read that after an accept. Nothing is decided here, and
//! no worker waits for another.

use std::sync::atomic::Ordering;

use super::slot::{Slot, SlotState};
use chappe_sys::clock::monotonic_ms;

/// A worker whose loop is overdue for longer than this is left out: it may be stopped or
/// stuck, so the others leave no connections to it.
const OVERDUE_MAX_MS: u64 = 1000;

/// The workers of a generation that accept, and their connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Number of these workers.
    pub workers: u64,
    /// Number of connections that they have together.
    pub connections: u64,
}

impl Load {
    /// Whether a worker with `own` connections has more than the mean and some slack: two
    /// connections and a 32nd of the mean.
    #[must_use]
    pub fn is_ahead(&self, own: u64) -> bool {
        let mean = self.connections.checked_div(self.workers).unwrap_or(0);
        own * self.workers > self.connections + (2 + mean / 32) * self.workers
    }
}

impl Slot {
    /// Publishes whether the worker accepts connections. Event loop only.
    pub fn set_accepts(&self, accepts: bool) {
        self.layout().event_loop.accepting.store(u32::from(accepts), Ordering::Relaxed);
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
            let takes_part = state == SlotState::Serving
                && line.accepting.load(Ordering::Relaxed) != 0
                && slot.identity.generation.load(Ordering::Relaxed) == generation
                && now_ms
                    <= line.wakes_by_ms.load(Ordering::Relaxed).saturating_add(OVERDUE_MAX_MS);
            if takes_part {
                load.workers += 1;
                load.connections += u64::from(line.connections.load(Ordering::Relaxed));
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
        let slot = zone.claim_slot(0, generation).unwrap();
        slot.mark_serving();
        slot.heartbeat(monotonic_ms(), monotonic_ms() + 1000);
        slot.set_accepts(true);
        slot.set_connections(connections);
        slot
    }

    #[test]
    fn only_workers_that_take_part_count() {
        let zone = Zone::create(1).unwrap();
        let own = serving(&zone, 2, 50);
        let _other = serving(&zone, 2, 30);
        // Of another generation, full, draining, overdue, dead.
        serving(&zone, 1, 1000);
        serving(&zone, 2, 1000).set_accepts(false);
        serving(&zone, 2, 1000).mark_draining();
        serving(&zone, 2, 1000).heartbeat(0, monotonic_ms() - OVERDUE_MAX_MS - 1);
        zone.free(&serving(&zone, 2, 1000));
        assert_eq!(own.load(), Load { workers: 2, connections: 80 });
    }

    #[test]
    fn a_worker_is_ahead_one_connection_beyond_the_slack() {
        let load = |connections| Load { workers: 2, connections };
        assert!(!load(4).is_ahead(4) && load(5).is_ahead(5));
        assert!(!load(50).is_ahead(27) && load(50).is_ahead(28));
        assert!(!load(1000).is_ahead(517) && load(1000).is_ahead(518));
        assert!(!Load { workers: 1, connections: 1000 }.is_ahead(1000), "alone");
    }
}
