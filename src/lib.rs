//! Chappe, a pre-forked message server for Linux.
//!
//! Clients hold long TCP connections and exchange length-prefixed binary messages.
//! A *master* process looks after *worker* processes; each worker has an event
//! loop, handler threads, and one send thread that sleeps on a process-shared
//! semaphore. [`Server`] puts handlers of your own behind it; [`client`] talks to it.
//!
//! The data path, in one worker:
//!
//! ```text
//! socket -> net (event loop) -> dispatch (inbox, handler threads) -> handler
//!                                                                      |
//! socket <---- send (outbox, send thread asleep on the semaphore) <----+
//!    ^-- net: EPOLLOUT, for a socket that was full
//! ```
//!
//! The control path: `cli` -> `boot` -> `master` (fork, watch, replace) -> `worker`
//! (wires the data path); `chappe-shm` is the memory that both sides share. Imports
//! point down these paths only; `tests/tidy.rs` holds the table.
//!
//! The client and the wire format are crates of their own, `chappe-client` and
//! `chappe-wire`, for programs that want nothing else.
//!
//! Public and documented are [`Server`], [`client`], [`config`], [`handler`] and
//! [`wire`]; the other modules are public for the models and tests only.

#[cfg(not(loom))]
#[doc(hidden)]
pub mod boot;
#[cfg(not(loom))]
#[doc(hidden)]
pub mod channel;
#[cfg(not(loom))]
#[doc(hidden)]
pub mod cli;
#[cfg(not(loom))]
pub mod config;
#[doc(hidden)]
pub mod dispatch;
pub mod handler;
#[cfg(not(loom))]
#[doc(hidden)]
pub mod listen;
#[cfg(not(loom))]
#[doc(hidden)]
pub mod logging;
#[cfg(not(loom))]
#[doc(hidden)]
pub mod master;
#[cfg(not(loom))]
mod metrics;
#[cfg(not(loom))]
#[doc(hidden)]
pub mod net;
#[doc(hidden)]
pub mod send;
#[cfg(not(loom))]
mod server;
#[doc(hidden)]
pub mod sync;
#[doc(hidden)]
pub mod throttle;
#[cfg(not(loom))]
#[doc(hidden)]
pub mod worker;

pub use chappe_client as client;
pub use chappe_wire as wire;
pub use handler::{
    ConnectionInfo, Handle, Handler, HandlerError, Message, Outcome, Peer, Replies, Request,
    SendError,
};
#[cfg(not(loom))]
pub use server::Server;
