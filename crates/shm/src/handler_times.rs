//! How long handler threads are busy with a turn: one count a turn, in fixed buckets.
//!
//! A turn is some messages of one connection, and ends after a millisecond; one that
//! took much longer had one handler that did. So this costs one look at the clock a
//! turn, and slow handlers show all the same. Each handler thread writes a cache line
//! of its own; anybody reads. What the event loop runs itself is not counted: those
//! handlers are quick, and a look at the clock for each would cost as much as they do.

use std::sync::atomic::Ordering;

use super::buckets::bucket_of;
use super::layout::HANDLER_BUCKETS;
use super::slot::Slot;

/// The upper bounds of the buckets in microseconds; what took longer is in one more.
pub const HANDLER_BOUNDS_US: [u64; HANDLER_BUCKETS - 1] =
    [10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000];

/// Turns in each bucket, of all handler threads of a worker together.
pub type HandlerTimes = [u64; HANDLER_BUCKETS];

impl Slot {
    /// A handler thread's turn is over; it took `took_us`.
    pub fn handler_finished(&self, thread: u16, took_us: u64) {
        self.handler_idle(thread);
        let times = &self.layout().handler_times[usize::from(thread)];
        let count = &times.counts[bucket_of(&HANDLER_BOUNDS_US, took_us)];
        // Relaxed, and no addition: nobody else writes it.
        count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    pub(super) fn handler_times(&self) -> HandlerTimes {
        let mut sums = HandlerTimes::default();
        for times in &self.layout().handler_times[..self.used_handlers()] {
            for (sum, count) in sums.iter_mut().zip(&times.counts) {
                *sum = sum.wrapping_add(count.load(Ordering::Relaxed));
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ThreadRole, Zone};

    #[test]
    fn turns_of_all_threads_are_added_up_and_the_next_worker_begins_with_none() {
        let zone = Zone::create(1).unwrap();
        for _ in 0..2 {
            let slot = zone.claim_slot(0, 1).unwrap();
            assert_eq!(slot.report().handler_times, [0; HANDLER_BUCKETS]);
            let _lines = [0, 127].map(|thread| slot.counters(ThreadRole::Handler(thread)));
            slot.handler_finished(0, 5);
            slot.handler_finished(127, 5);
            slot.handler_finished(127, 2_000_000);
            assert_eq!(slot.report().handler_times, [2, 0, 0, 0, 0, 0, 1, 0]);
            zone.free(&slot);
            assert_eq!(slot.report().handler_times, [0; HANDLER_BUCKETS]);
        }
    }
}
