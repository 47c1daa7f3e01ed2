//! The tests' server: the real program, started in a directory of its own.
//! Nothing here knows more of it than an operator does: files, signals, sockets
//! and what the kernel tells of a process.

pub(crate) mod client;
pub(crate) mod proc;
pub(crate) mod server;
pub(crate) mod wait;

pub(crate) use client::{
    Numbered, connect_from, drain, receive_error, reset_on_close, small_buffers, try_connect_from,
};
pub(crate) use server::{Finished, TestServer, fresh_dir, while_stopped};
pub(crate) use wait::{DEADLINE, wait_for, wait_until};
