//! Rings in shared memory: how processes hand records to each other without a lock.
//!
//! ```text
//! one producer ── push ──▶ [queue]     ── next, advance ──▶ one consumer    full: refused
//! one writer   ── write ─▶ [broadcast] ── next ──▶ any number of readers    full: laps them
//! either       ── ring ──▶ [bell]      ── hear ──▶ one sleeper
//! ```
//!
//! Either process may be killed or stopped between any two instructions. So nothing here is
//! a lock, every word has one writer, and a record becomes visible by one store, after all
//! of it was written. A process that comes after a dead one continues from what was visible.
//!
//! Every word is an atomic, and all but the cursors are relaxed (of a broadcast ring also these, with
//! a fence behind: its readers may have it mapped to read alone). A broadcast ring is
//! overwritten under a slow reader, who finds out afterwards and throws its copy away. That
//! costs nothing against memcpy(3) for records of some kilobytes and is no data race.
//!
//! What is read here may have been written by a worker that was taken over. A length is
//! compared with what the cursors and the ring allow before anything is done with it, and
//! what contradicts itself is [`Corrupt`], never a panic. Nothing sleeps.

mod bell;
mod broadcast;
mod queue;
pub mod sync;
mod words;

pub use bell::Bell;
pub use broadcast::{Broadcast, BroadcastCursors, Found, Mark, Reader, Writer};
pub use queue::{Consumer, Full, Producer, Queue, QueueCursors};

use thiserror::Error;

/// A ring says what no correct program has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a ring was written over: {what}")]
pub struct Corrupt {
    /// What contradicts what.
    pub what: &'static str,
}
