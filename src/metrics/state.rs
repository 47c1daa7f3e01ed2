//! What the page asks for each second, as it goes out. What `chappe status --json` says as
//! well has the same types here, and so the same keys. The rest is the page's own.

use serde::Serialize;

use super::history::Sample;
use crate::control::{CodeStatus, Counters, Permits, ReloadOutcome, WorkerStatus};

/// Everything of now, and the samples that the page does not have yet.
#[derive(Debug, Serialize)]
pub(super) struct State<'a> {
    pub(super) version: &'a str,
    pub(super) started_at_ms: u64,
    pub(super) now_ms: u64,
    pub(super) generation: u64,
    pub(super) reloads: u64,
    pub(super) reloads_failed: u64,
    /// Why one has failed only the master knows.
    pub(super) last_reload: Option<ReloadOutcome>,
    pub(super) permits: Option<Permits>,
    pub(super) semaphores: [SemaphoreRow; 3],
    pub(super) totals: Counters,
    pub(super) codes: Vec<CodeStatus>,
    /// Of the buckets of [`WorkerRow::turns`]; the last has none.
    pub(super) handler_bounds_us: &'a [u64],
    pub(super) workers: Vec<WorkerRow>,
    pub(super) processes: Vec<ProcessRow>,
    pub(super) every_ms: u64,
    pub(super) samples_max: usize,
    /// Samples are numbered since then: another process numbers its own.
    pub(super) epoch_ms: u64,
    /// The number of the next sample.
    pub(super) next: u64,
    /// What a sample has, in its order.
    pub(super) series: &'a [&'a str],
    pub(super) samples: Vec<&'a Sample>,
}

/// A semaphore in shared memory.
#[derive(Debug, Serialize)]
pub(super) struct SemaphoreRow {
    pub(super) name: &'static str,
    /// Of the send semaphores the sum.
    pub(super) value: Option<u32>,
    /// Since the start.
    pub(super) posts: u64,
}

/// A worker, with what it did in the second before the last look. Rates are `None` where
/// it was not there at the look before.
#[derive(Debug, Serialize)]
pub(super) struct WorkerRow {
    #[serde(flatten)]
    pub(super) status: WorkerStatus,
    #[serde(flatten)]
    pub(super) process: ProcessFigures,
    pub(super) messages_in: Option<f64>,
    pub(super) messages_out: Option<f64>,
    pub(super) bytes_in: Option<f64>,
    pub(super) bytes_out: Option<f64>,
    pub(super) posts: Option<f64>,
    /// Turns of handler threads by how long they took.
    pub(super) turns: Vec<u64>,
    /// Since its fork.
    pub(super) errors: u64,
    /// Messages, since its fork.
    pub(super) lost: u64,
}

/// A process that is no worker.
#[derive(Debug, Serialize)]
pub(super) struct ProcessRow {
    pub(super) name: &'static str,
    pub(super) pid: u32,
    #[serde(flatten)]
    pub(super) process: ProcessFigures,
}

/// What the kernel says of a process.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct ProcessFigures {
    /// Of one CPU, in percent, in the second before the last look.
    pub(super) cpu: Option<f64>,
    /// Anonymous memory.
    pub(super) memory_bytes: Option<u64>,
}
