//! The event loop of a worker: accepts, reads, cuts frames, keeps the clocks,
//! writes to sockets that were full, and closes.
//!
//! It runs on the worker's main thread and never blocks but in epoll_wait(2).
//! It owns every descriptor: no other thread calls epoll_ctl(2), shutdown(2) or
//! close(2) on a connection. Others change a state and call it
//! ([`crate::send::CallList`]); it reads the state again and computes from it
//! what epoll shall watch. Two threads that changed one mask would lose updates.

mod accept;
mod balance;
mod close;
mod connection;
mod event_loop;
mod interest;
mod listing;
mod moment;
mod pressure;
mod receive;
mod settings;
mod timers;
mod token_bucket;
mod transport;

pub use event_loop::{EventLoop, Watched};
pub use settings::Settings;
pub use transport::{Acceptor, SocketOptions};
