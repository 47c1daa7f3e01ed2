//! What the master wants of a worker, as it stands in the worker's slot.
//!
//! The slot is the truth, and a message on the worker's channel only the bell: the master
//! stores the orders and rings, and the worker reads them after whatever message has come.
//! A channel that is too full to ring holds messages that the worker has not read, and it
//! reads the orders after those. So of many orders the last one holds, and none is lost.
//! The master alone writes them, from its own figures, and never reads them back.

use std::sync::atomic::{Ordering, fence};

use super::slot::Slot;

/// How far a worker is to go. It never goes back: a worker takes no notice of a stage that
/// it is beyond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Stage {
    /// Prepare, and wait.
    #[default]
    Wait = 0,
    /// Accept connections.
    Serve = 1,
    /// Stop gracefully.
    Drain = 2,
    /// Another generation serves now: stop gracefully, spread over `worker_drain_spread`,
    /// and tell clients to connect again.
    DrainForReload = 3,
}

impl Stage {
    /// Whether the worker is to stop gracefully.
    #[must_use]
    pub fn is_drain(self) -> bool {
        self >= Self::Drain
    }

    /// What no master has written is no order.
    fn from_cell(value: u32) -> Self {
        match value {
            1 => Self::Serve,
            2 => Self::Drain,
            3 => Self::DrainForReload,
            _ => Self::Wait,
        }
    }
}

/// All that a worker is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// How far it is to go.
    pub stage: Stage,
    /// Which log level it is to have, by a number of the master's; `None`: the one that it
    /// was born with.
    pub log_level: Option<u8>,
}

impl Slot {
    /// Writes down what the worker is to do. Master only, which then rings.
    pub fn set_orders(&self, orders: Orders) {
        let cells = &self.layout().orders;
        let level = orders.log_level.map_or(0, |level| u32::from(level) + 1);
        cells.log_level.store(level, Ordering::Relaxed);
        cells.stage.store(orders.stage as u32, Ordering::Release);
        // Before the bell: of a master that finds the channel full and a worker that
        // empties it, one at least sees what the other has done.
        fence(Ordering::SeqCst);
    }

    /// What the worker is to do. To be read after each message that has come.
    #[must_use]
    pub fn orders(&self) -> Orders {
        fence(Ordering::SeqCst);
        let cells = &self.layout().orders;
        let stage = Stage::from_cell(cells.stage.load(Ordering::Acquire));
        let level = cells.log_level.load(Ordering::Relaxed).checked_sub(1);
        Orders { stage, log_level: level.and_then(|level| u8::try_from(level).ok()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SlotState, Zone};

    #[test]
    fn the_last_order_holds_and_a_new_worker_has_none() {
        let zone = Zone::create(1).unwrap();
        let slot = zone.claim_slot(0, 1).unwrap();
        assert_eq!(slot.orders(), Orders::default());
        for stage in [Stage::Serve, Stage::Drain, Stage::DrainForReload, Stage::Wait] {
            for log_level in [None, Some(0), Some(5), Some(u8::MAX)] {
                slot.set_orders(Orders { stage, log_level });
                assert_eq!(slot.orders(), Orders { stage, log_level });
            }
        }
        slot.set_orders(Orders { stage: Stage::Drain, log_level: Some(1) });
        for _ in 0..=crate::SLOTS {
            zone.free(&slot);
            let next = zone.claim_slot(0, 1).unwrap();
            assert_eq!(next.orders(), Orders::default());
            zone.free(&next);
        }
    }

    #[test]
    fn what_no_master_writes_is_no_order() {
        let zone = Zone::create(1).unwrap();
        let slot = zone.claim_slot(0, 1).unwrap();
        slot.layout().orders.stage.store(77, Ordering::Relaxed);
        slot.layout().orders.log_level.store(u32::MAX, Ordering::Relaxed);
        assert_eq!(slot.orders(), Orders::default());
    }

    #[test]
    fn a_worker_that_is_told_to_drain_drains_to_everybody_else() {
        let zone = Zone::create(1).unwrap();
        let slot = zone.claim_slot(0, 1).unwrap();
        slot.set_orders(Orders { stage: Stage::Drain, log_level: None });
        assert_eq!(slot.state(), SlotState::Starting, "its death is judged by that");
        slot.mark_serving();
        assert_eq!(slot.state(), SlotState::Draining);
        assert!(!slot.has_left_listeners(), "it was only told to");
        slot.set_orders(Orders { stage: Stage::Serve, log_level: None });
        assert_eq!(slot.state(), SlotState::Serving);
        slot.mark_draining();
        assert!(slot.has_left_listeners());
    }
}
