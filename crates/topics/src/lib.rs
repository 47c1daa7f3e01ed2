//! Topics over all workers of a machine: one log, which the hub writes and every worker reads.
//!
//! ```text
//! any thread ─ Outlet ──▶ [publish queue] ── bell ──▶ Hub ── number, copy ──▶ [broadcast ring]
//!                                                      │ └──▶ [answer queue]
//! send thread ─ Inlet ◀── bell, one for each worker concerned ──┘
//!      └── first and last subscriber of a name ──▶ [interest queue] ──▶ the hub's Registry
//! ```
//!
//! The rings lie in the memory of a [`Life`], one for each process of a worker, and in the one
//! broadcast ring of the machine. What is here knows no process, no thread and no connection:
//! it is the same code in the hub, in a worker, and in a test that has both.
//!
//! Either side may die between any two instructions. The rings (`chappe-rings`) see to it that
//! what was written is whole; [`Hub`] and [`Table`] to it that nothing is done twice, or what
//! is done twice changes nothing.

mod board;
mod cells;
mod delivery;
pub mod glob;
mod hub;
mod index;
mod inlet;
mod life;
pub mod listing;
mod lists;
mod name;
mod outlet;
mod record;
mod registry;
mod replay;
mod ring;
mod table;
mod wish;

pub use chappe_rings::Corrupt;

pub use board::{Board, Figures, Pen};
pub use cells::Counts;
pub use delivery::{Delivered, Messages};
pub use hub::{Hub, Round};
pub use inlet::{Inlet, Sink};
pub use life::{CELLS, Life};
pub use name::{Filter, InvalidTopic, Kind, TOPIC_BYTES_MAX, Topic, TopicName};
pub use outlet::{Full, Mark, Outlet, Published, Submitted};
pub use record::{CLIENT_BYTES_MAX, Listed, Message, SERVICE_BYTES_MAX};
pub use registry::{NameLimits, Registry};
pub use replay::{Missed, ReplayLimits};
pub use ring::Ring;
pub use table::Table;
pub use wish::{Answered, Came, EACH, Refused, Resumed, TableLimits, Wish};
