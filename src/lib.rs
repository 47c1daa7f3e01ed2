//! Chappe, a pre-forked message server for Linux.
#![warn(missing_docs)]

pub mod boot;
mod channel;
mod cli;
pub mod client;
pub mod config;
pub mod dispatch;
pub mod frame;
pub mod handler;
mod listen;
mod logging;
mod master;
mod net;
pub mod send;
pub mod shm;
pub mod sync;
#[allow(
    unsafe_code,
    reason = "the one place that talks to the operating system without a safe crate in between"
)]
pub mod sys;
mod worker;
