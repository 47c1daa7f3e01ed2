//! The blocking client: what `chappe send` and the tests talk to a server with,
//! and what a program of your own may use.
//!
//! A [`Connection`] is a [`Sender`] and a [`Receiver`] over one socket. Used as a
//! whole it runs on one thread; [`Connection::split`] gives the halves to two, so
//! that one can write without end while the other reads. A single thread that
//! writes much before it reads can deadlock against any server that pushes
//! back: it stops reading us, because we don't read it.
//!
//! It never retries, never reconnects and starts no thread.

mod connection;
mod error;
mod received;
mod receiver;
mod sender;

pub use connection::Connection;
pub use error::ClientError;
pub use received::{Frame, ServerError, ServerGoodbye};
pub use receiver::Receiver;
pub use sender::Sender;

// So that a program that only has this crate can name codes and bounds.
pub use chappe_wire::{
    BODY_BYTES_MAX, BodyTooLong, CODE_ECHO, CODE_ERROR, CODE_GOODBYE, CODE_PING, CODE_TIME,
    CODE_WHO, Code, ErrorNumber, Goodbye,
};
