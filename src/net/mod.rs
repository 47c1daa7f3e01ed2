//! The event loop of a worker: accepts, reads, keeps the clocks, writes to sockets that
//! were full, and closes.
//!
//! It runs on the worker's main thread and never blocks but in epoll_wait(2). It owns every
//! descriptor: no other thread calls epoll_ctl(2), shutdown(2) or close(2) on a connection.
//! Others change a state and call it ([`chappe_engine::CallList`]); it reads the state again
//! and computes from it what epoll is to watch. Two threads that changed one mask would
//! lose updates.
//!
//! | owner | of |
//! |---|---|
//! | `event_loop` | the turns of the loop; composes the others |
//! | `reactor` | the epoll set, timers, clock, read buffer: what a connection needs of its loop |
//! | `connection` | one socket: its stages, its deadlines; `input` reads, `framer` keeps the begun message |
//! | `acceptor` | the listeners, and how workers share them |
//! | `admission` | permits, addresses, names: what all workers share |
//! | `pressure` | which connections go when all together hold too much |
//! | `report` | lists of connections for an operator |
//!
//! Pure parts: `interest`, `clocks`, `ending`, `rates`, `timers`, `moment`.

mod acceptor;
mod admission;
mod clocks;
mod connection;
#[cfg(test)]
mod connection_tests;
mod ending;
mod event_loop;
mod framer;
mod input;
mod interest;
mod pressure;
mod rates;
mod reactor;
mod report;
mod settings;
mod timers;
mod token_bucket;
mod transport;

pub(crate) use event_loop::EventLoop;
pub(crate) use reactor::Watched;
pub(crate) use settings::Settings;
pub(crate) use transport::{ListenSocket, SocketOptions};
