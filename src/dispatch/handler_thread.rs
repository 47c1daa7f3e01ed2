//! A handler thread: takes a connection off the run list, runs its turn, and
//! shows in the worker's slot since when it has been busy, and how long turns took.

use super::receive_half::DispatchPath;
use super::turn::run_turn;
use crate::handler::Serve;
use chappe_shm::{Slot, ThreadCounters, ThreadRole};
use std::sync::Arc;

/// What one handler thread needs.
#[derive(Debug)]
pub struct HandlerThread {
    number: u16,
    path: Arc<DispatchPath>,
    slot: Slot,
    counters: ThreadCounters,
}

impl HandlerThread {
    /// The thread of this number in the worker of this slot.
    #[must_use]
    pub fn new(number: u16, path: Arc<DispatchPath>, slot: Slot) -> Self {
        let counters = slot.counters(ThreadRole::Handler(number));
        Self { number, path, slot, counters }
    }

    /// Runs turns until the run list is stopped. The clock is in microseconds.
    pub fn run(&self, serve: &dyn Serve, now_us: impl Fn() -> u64) {
        let mut last_us = None;
        while let Some(connection) = self.path.run_list().pop(self.number, last_us) {
            let begun_us = now_us();
            self.slot.handler_started(self.number, begun_us / 1000);
            run_turn(&connection, serve, &self.counters);
            let taken_us = now_us().saturating_sub(begun_us);
            self.slot.handler_finished(self.number, taken_us);
            last_us = Some(taken_us);
        }
    }
}
