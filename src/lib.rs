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
//! socket -> net (event loop) -> engine (inbox, turns on handler threads) -> handler
//!                                                                            |
//! socket <--- engine (outbox, send thread asleep on the semaphore) <---------+
//!    ^-- net: EPOLLOUT, for a socket that was full
//! ```
//!
//! What the bytes at both ends mean is defined by `protocol`.
//!
//! The control path: `cli` -> `boot` -> `master` (fork, watch, replace) -> `worker`
//! (wires the data path); `chappe-shm` is the memory that both sides share. Imports
//! point down these paths only; `tests/tidy` holds the table.
//!
//! The client and the wire format are crates of their own, `chappe-client` and
//! `chappe-wire`, for programs that want nothing else.
//!
//! [`handler`] is what handlers use. [`control`] is what the master and a program that
//! operates it say to each other. [`prefork`] has the command line and the master alone, for
//! workers that are something else.

mod boot;
mod channel;
mod cli;
mod config;
pub mod control;
pub mod handler;
mod listen;
mod logging;
mod master;
mod metrics;
mod net;
pub mod prefork;
mod protocol;
mod server;
#[cfg(feature = "testing")]
pub mod testing;
mod throttle;
mod worker;

pub use chappe_client as client;
pub use chappe_wire as wire;
pub use handler::{
    ConnectionInfo, Handle, Handler, HandlerError, Message, Outcome, Peer, Replies, Request,
    SendError,
};
pub use server::Server;
