//! The way out: from a handler's reply to the socket.
//!
//! ```text
//!  handler thread          send thread                 event loop
//!  --------------          -----------                 ----------
//!  append to outbox
//!  idle -> ready
//!  list, then post  --->   wait, pop
//!                          ready -> sending
//!                          sendmsg …
//!                          all sent: -> idle
//!                          socket full: -> blocked --> call list: EPOLLOUT on
//!                                                      EPOLLOUT: blocked -> sending
//!                                                      sendmsg …
//!                                                      all sent: -> idle, EPOLLOUT off
//!                   <---------------- post ----------  more came: -> ready, EPOLLOUT off
//! ```
//!
//! Queued are *connections*, never messages: each has an outbox of its own, is
//! on the send list at most once, and the semaphore counts the listed ones. A
//! connection whose socket is full is on no list and costs the others nothing.
//!
//! This module sees bytes, not a protocol, and sockets it is given, not who
//! accepted them. No lock is held over a system call.

mod budget;
mod call_list;
mod flush;
mod outbox;
mod send_half;
mod send_list;
mod send_path;
pub mod send_thread;
#[cfg(all(test, not(loom)))]
pub(crate) mod sink;
mod writer;

pub use budget::{Budget, Resume, Room};
pub use call_list::CallList;
pub use flush::{FLUSH_BYTES_MAX, Flushed, IO_SLICES_MAX, Socket, flush};
pub use outbox::{Appended, Blocked, Closed, Marks, Outbox, Parking, Refused, Settled, View};
pub use send_half::{Level, SendHalf};
pub use send_list::SendList;
pub use send_path::{SendLimits, SendPath, SlowReader};
pub use writer::{ENTRY_COST, Entry, Writer};
