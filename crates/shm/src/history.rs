//! What a reader in another process learns of the master: which generation serves,
//! and how reloads went. The master alone writes it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use chappe_sys::process::Forked;

use super::slot::{Slot, SlotReport, SlotState};
use super::zone::Zone;

/// The master's own part of the zone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The generation that serves.
    pub generation: u64,
    /// Reloads, successful or not.
    pub reloads: u64,
    /// Those that failed.
    pub reloads_failed: u64,
    /// How the last one went, and when, in milliseconds since 1970; `None`: there was
    /// none.
    pub last: Option<(bool, u64)>,
}

const NONE: u64 = 0;
const OK: u64 = 1;
const FAILED: u64 = 2;

impl Zone {
    /// Brings it up to date. Master only.
    pub fn tell_history(&self, history: &History) {
        let cells = &self.layout().history;
        cells.generation.store(history.generation, Ordering::Relaxed);
        cells.reloads.store(history.reloads, Ordering::Relaxed);
        cells.reloads_failed.store(history.reloads_failed, Ordering::Relaxed);
        let (outcome, at_ms) = match history.last {
            None => (NONE, 0),
            Some((true, at_ms)) => (OK, at_ms),
            Some((false, at_ms)) => (FAILED, at_ms),
        };
        cells.last_at_ms.store(at_ms, Ordering::Relaxed);
        cells.last_outcome.store(outcome, Ordering::Relaxed);
        // A worker that has written over it would keep all readers from the totals.
        self.publish_sequence();
    }

    /// What the master wrote last.
    #[must_use]
    pub fn history(&self) -> History {
        let cells = &self.layout().history;
        let at_ms = cells.last_at_ms.load(Ordering::Relaxed);
        History {
            generation: cells.generation.load(Ordering::Relaxed),
            reloads: cells.reloads.load(Ordering::Relaxed),
            reloads_failed: cells.reloads_failed.load(Ordering::Relaxed),
            last: match cells.last_outcome.load(Ordering::Relaxed) {
                OK => Some((true, at_ms)),
                FAILED => Some((false, at_ms)),
                _ => None,
            },
        }
    }

    /// In a process that only reads: makes sure of it.
    ///
    /// # Errors
    /// Of the kernel.
    pub fn forbid_writes(&self, forked: &Forked) -> io::Result<()> {
        if let Some(tables) = self.peer_tables().mapped() {
            tables.forbid_writes(forked)?;
        }
        self.mapping().forbid_writes(forked)
    }

    /// The workers that there are, for a reader that has no handles to them.
    #[must_use]
    pub fn reports(self: &Arc<Self>) -> Vec<SlotReport> {
        let slots: Vec<usize> = self.live_slots().collect();
        let reports = slots.into_iter().map(|index| Slot::new(Arc::clone(self), index).report());
        // One may have been freed in between.
        reports.filter(|report| report.state != SlotState::Free).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_read_back() {
        let zone = Zone::create(7).unwrap();
        assert_eq!(zone.history(), History::default());
        for last in [None, Some((true, 5)), Some((false, 6))] {
            let history = History { generation: 3, reloads: 2, reloads_failed: 1, last };
            zone.tell_history(&history);
            assert_eq!(zone.history(), history);
        }
    }

    #[test]
    fn each_worker_that_lives_is_reported() {
        let zone = Zone::create(7).unwrap();
        let slots: Vec<_> = (0..3).map(|n| zone.claim_slot(n, 4).unwrap()).collect();
        zone.free(&slots[1]);
        let workers: Vec<_> = zone.reports().iter().map(|report| report.worker).collect();
        assert_eq!(workers, [0, 2]);
    }
}
