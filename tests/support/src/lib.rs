//! What the tests share.
//!
//! A [`Site`] is a directory with a configuration, and a [`TestServer`] the real program,
//! started there. They know no more of it than an operator does: files, signals, sockets,
//! and what the kernel says of a process. [`wait_until`] and the like wait for what
//! happens there, with a deadline; [`pause`] is for tests whose subject is time.
//!
//! Servers that only tests need are in [`application`], [`clock`], [`desk`],
//! [`diary`] and [`players`].

pub mod application;
pub mod client;
pub mod clock;
pub mod daemon;
pub mod desk;
pub mod diary;
pub mod gate;
pub mod players;
pub mod proc;
pub mod resp;
pub mod server;
pub mod site;
pub mod wait;

pub use client::{
    Numbered, connect_from, drain, receive_error, reset_on_close, small_buffers, try_connect_from,
};
pub use daemon::Daemon;
pub use gate::Gate;
pub use server::{TestServer, while_stopped};
pub use site::{Finished, Site, TestDir, fresh_dir};
pub use wait::{DEADLINE, pause, wait_for, wait_until};
