//! The command line and the master, without the data path: for a program whose workers do
//! something else than serve messages, and for tests of the supervision.
//!
//! A worker gets an [`Assignment`], sends [`Message::Ready`] over its channel, and from then
//! on carries out the messages that it receives there. After each of them it reads its
//! orders in its slot: [`Slot::orders`]. It ends with an exit code that the master knows.
//!
//! ```no_run
//! use chappe::prefork::{self, Assignment, Message, ReceivedParcel, Stage};
//! use chappe_sys::process::ExitReason;
//! use chappe_sys::signals;
//! use std::os::fd::AsFd;
//!
//! fn main() -> std::process::ExitCode {
//!     prefork::run(std::env::args_os(), work) // with the command line of `chappe`
//! }
//!
//! fn work(assignment: Assignment) -> ExitReason {
//!     let Assignment { slot, channel, .. } = assignment;
//!     // Blocked since before the fork: SIGTERM and SIGINT end the process from here on.
//!     signals::unblock().expect("signals");
//!     slot.mark_ready();
//!     channel.send(Message::Ready).expect("the master lives");
//!     loop {
//!         wait_readable(channel.as_fd());
//!         if let Ok(Some(ReceivedParcel::Closed)) = channel.try_receive_parcel() {
//!             return ExitReason::Stopped; // the master is gone
//!         }
//!         match slot.orders().stage {
//!             Stage::Wait => {}
//!             Stage::Serve => slot.mark_serving(), // and begins its work
//!             Stage::Drain | Stage::DrainForReload => return ExitReason::Stopped,
//!         }
//!     }
//! }
//! # fn wait_readable(fd: std::os::fd::BorrowedFd<'_>) {
//! #     use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
//! #     let _ = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::NONE);
//! # }
//! ```

pub use crate::boot::run;
pub use crate::channel::{Message, Parcel, ReceivedParcel, WorkerEnd};
pub use crate::master::Assignment;
pub use chappe_shm::{Orders, Slot, Stage};
