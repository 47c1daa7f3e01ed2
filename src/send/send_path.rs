//! What all send halves of a worker share: the send list, the call list, the
//! total, and the limits.

use super::budget::{Budget, Resume};
use super::call_list::CallList;
use super::outbox::Marks;
use super::send_list::SendList;
use super::writer::Entry;
use chappe_shm::SharedCounters;
use std::sync::Arc;

/// What a push beyond a connection's limit does beside being refused:
/// `send.slow_reader`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowReader {
    /// The connection ends: its backlog is dropped, and it is told why.
    Close,
    /// Nothing: older messages are kept, this one is lost.
    DropNewest,
}

/// The configured bounds of the way out.
#[derive(Clone, Copy, Debug)]
pub struct SendLimits {
    /// Queued for one connection.
    pub bytes_max: usize,
    /// Queued for all together.
    pub total_bytes_max: usize,
    /// What becomes of who is pushed more than that.
    pub slow_reader: SlowReader,
}

/// See the module.
#[derive(Debug)]
pub struct SendPath {
    list: SendList,
    calls: CallList,
    total: Budget,
    limits: SendLimits,
    marks: Arc<Marks>,
    too_slow: Entry,
    pushers: SharedCounters,
}

impl SendPath {
    /// `too_slow` is what a connection is told whose backlog is given up; `pushers`
    /// is where pushes are counted, which any thread may make.
    #[must_use]
    pub fn new(
        list: SendList,
        calls: CallList,
        limits: SendLimits,
        too_slow: Entry,
        pushers: SharedCounters,
    ) -> Self {
        let total = Budget::new(limits.total_bytes_max);
        let marks = Arc::new(Marks { high: limits.bytes_max, low: limits.bytes_max / 2 });
        Self { list, calls, total, limits, marks, too_slow, pushers }
    }

    /// The ready connections.
    #[must_use]
    pub fn list(&self) -> &SendList {
        &self.list
    }

    /// The event loop's call list.
    #[must_use]
    pub fn calls(&self) -> &CallList {
        &self.calls
    }

    /// Bytes queued on all connections.
    #[must_use]
    pub fn total(&self) -> &Budget {
        &self.total
    }

    pub(super) fn marks(&self) -> Arc<Marks> {
        Arc::clone(&self.marks)
    }

    pub(super) fn slow_reader(&self) -> SlowReader {
        self.limits.slow_reader
    }

    pub(super) fn too_slow(&self) -> Entry {
        self.too_slow.clone()
    }

    pub(super) fn pushers(&self) -> &SharedCounters {
        &self.pushers
    }
}

/// Resuming the send path means: the event loop may read again.
impl Resume for SendPath {
    fn resume(self: Arc<Self>) {
        self.calls.report_room();
    }
}
