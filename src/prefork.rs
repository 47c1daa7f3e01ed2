//! The command line and the master, without the data path: for a program whose workers do
//! something else than serve messages, and for tests of the supervision.
//!
//! A worker gets an [`Assignment`], sends [`Message::Ready`] over its channel, and from then
//! on carries out the messages that it receives there. After each of them it reads its
//! orders in its slot: [`Slot::orders`].

pub use crate::boot::run;
pub use crate::channel::{Message, Parcel, ReceivedParcel, WorkerEnd};
pub use crate::master::Assignment;
pub use chappe_shm::{Orders, Slot, Stage};
