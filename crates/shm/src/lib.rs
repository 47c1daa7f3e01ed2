//! The zone: the memory that the master shares with its workers, and the safe
//! names for what is in it.
//!
//! ```text
//! header │ tables of addresses: secret, which are used │ worker_ready
//!        │ connection_permits, debt, limit │ ids │ totals │ history │ hub │ live, states
//!        │ totals of the application's figures
//!        │ slot 0 … slot 4095 ║ tables of addresses, mapped as far as they are needed
//! slot = identity │ orders │ event loop's own line │ send semaphore │ one counter line a thread
//!        │ where handlers run │ the application's figures
//! ```
//!
//! A worker may be killed between any two instructions, so nothing here is a lock
//! and everything is either written by one thread only or can be worked out again
//! by the master. Every thread of a worker counts here and its event loop takes
//! permits; the master claims and frees slots. No function here ever sleeps.
//!
//! Every worker can write everything here. What the master has decided is therefore
//! written out to the zone and never read back from it, see `own`.

mod buckets;
mod catalog;
mod counter;
mod figures;
mod handler_times;
mod header;
mod history;
mod hub;
mod layout;
mod load;
mod orders;
mod own;
mod peer_tables;
mod peers;
mod permits;
mod slot;
mod zone;

pub use catalog::{APP_COUNTERS_MAX, CODES_MAX, Catalog, CodeRow};
pub use counter::{Count, Counter, CounterValues, SharedCounters, ThreadCounters};
pub use figures::{AppCounter, AppFigures, CODE_BOUNDS_US, CodeReport, CodeValues, Figures, Runs};
pub use handler_times::{HANDLER_BOUNDS_US, HandlerTimes};
pub use header::ZoneError;
pub use history::History;
pub use hub::HubFigures;
pub use layout::{GENERATIONS, HANDLER_THREADS_MAX, SLOTS};
pub use load::Load;
pub use orders::{Orders, Stage};
pub use peers::{Admission, Peers};
pub use permits::{PermitBooks, PermitShares, Permits};
pub use slot::{Gauges, Slot, SlotReport, SlotState, ThreadRole};
pub use zone::Zone;
