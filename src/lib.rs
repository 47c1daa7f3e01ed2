//! Chappe, a pre-forked message server for Linux.
#![warn(missing_docs)]

#[cfg(not(loom))]
pub mod boot;
#[cfg(not(loom))]
mod channel;
#[cfg(not(loom))]
mod cli;
#[cfg(not(loom))]
pub mod client;
#[cfg(not(loom))]
pub mod config;
#[doc(hidden)]
pub mod dispatch;
pub mod frame;
pub mod handler;
#[cfg(not(loom))]
mod listen;
#[cfg(not(loom))]
mod logging;
#[cfg(not(loom))]
mod master;
#[cfg(not(loom))]
mod net;
#[doc(hidden)]
pub mod send;
#[doc(hidden)]
pub mod shm;
#[doc(hidden)]
pub mod sync;
#[expect(
    unsafe_code,
    reason = "the one place that talks to the operating system without a safe crate in between"
)]
#[doc(hidden)]
pub mod sys;
#[cfg(not(loom))]
mod worker;
