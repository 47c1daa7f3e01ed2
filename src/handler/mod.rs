//! What an application sees: its service, its peers and their messages. Never a socket,
//! never a thread, never a queue.
//!
//! A handler runs on one of its worker's handler threads, or on its event loop if it is
//! quick. One connection is on at most one of them at a time, so its messages are
//! handled and answered in order; different connections run in parallel, so a service
//! must be `Sync`.

#[cfg(feature = "testing")]
pub(crate) mod alone;
mod application;
mod call;
mod client;
mod counter;
mod deferred;
mod definition;
mod frames;
mod handle;
mod jobs;
mod other;
mod outcome;
mod own_turn;
mod pace;
mod registered;
mod replies;
mod routes;
mod service;
mod stock;
#[cfg(test)]
mod tests;
mod timers;
mod topics;
mod topics_by_name;
mod watch;
mod worker;

pub use call::Call;
pub use client::Client;
pub use counter::Counter;
pub use deferred::Deferred;
pub use handle::{Handle, Message, SendError};
pub use outcome::{Deny, HandlerError, Outcome, StartError};
pub use routes::Routes;
pub use service::{CloseReason, NoConfig, Service};
pub use worker::Worker;

pub(crate) use definition::{Born, Defined, Definition, Running};

pub use chappe_engine::Peer;

/// A message code. It selects the handler of a message.
pub type Code = u16;
