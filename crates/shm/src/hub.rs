//! What a reader in another process learns of the hub, through which topics go. The master alone
//! writes it.

use std::sync::atomic::Ordering;

use super::slot::Slot;
use super::zone::Zone;

/// What the hub has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HubFigures {
    /// What tells its offsets from those of another log; never 0.
    pub epoch: u64,
    /// Of the last message.
    pub offset: u64,
    /// Topics and patterns that somebody subscribes to.
    pub topics: u64,
    /// The patterns among them.
    pub patterns: u64,
}

impl Zone {
    /// Brings it up to date; `None`: there is no hub. Master only.
    pub fn tell_hub(&self, hub: Option<HubFigures>) {
        let HubFigures { epoch, offset, topics, patterns } = hub.unwrap_or_default();
        let cells = &self.layout().hub;
        cells.epoch.store(epoch, Ordering::Relaxed);
        cells.offset.store(offset, Ordering::Relaxed);
        cells.topics.store(topics, Ordering::Relaxed);
        cells.patterns.store(patterns, Ordering::Relaxed);
    }

    /// What the master wrote last.
    #[must_use]
    pub fn hub(&self) -> Option<HubFigures> {
        let cells = &self.layout().hub;
        let hub = HubFigures {
            epoch: cells.epoch.load(Ordering::Relaxed),
            offset: cells.offset.load(Ordering::Relaxed),
            topics: cells.topics.load(Ordering::Relaxed),
            patterns: cells.patterns.load(Ordering::Relaxed),
        };
        Some(hub).filter(|hub| hub.epoch != 0)
    }
}

impl Slot {
    /// So much was published to topics that its worker has yet to read. Master only.
    pub fn tell_behind(&self, bytes: u64) {
        self.layout().orders.behind_bytes.store(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_master_tells_of_the_hub_is_there_until_there_is_none() {
        let zone = Zone::create(1).unwrap();
        assert_eq!(zone.hub(), None);
        let hub = HubFigures { epoch: 1, offset: 2, topics: 3, patterns: 4 };
        zone.tell_hub(Some(hub));
        assert_eq!(zone.hub(), Some(hub));
        zone.tell_hub(None);
        assert_eq!(zone.hub(), None);
    }

    #[test]
    fn a_worker_is_as_far_behind_as_the_master_says() {
        let zone = Zone::create(1).unwrap();
        let slot = zone.claim_slot(0, 1).unwrap();
        assert_eq!(slot.report().behind_bytes, 0);
        slot.tell_behind(7);
        assert_eq!(slot.report().behind_bytes, 7);
    }
}
