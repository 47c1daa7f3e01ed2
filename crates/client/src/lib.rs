//! The blocking client: what `chappe send` and the tests talk to a server with,
//! and what a program of your own may use.
//!
//! A [`Connection`] is a [`Sender`] and a [`Receiver`] over one socket. Used as a
//! whole it runs on one thread; [`Connection::split`] gives the halves to two, so
//! that one can write without end while the other reads. A single thread that
//! writes much before it reads can deadlock against any server that pushes
//! back: it stops reading us, because we don't read it.
//!
//! With [`Connection::subscribe`] a connection listens to topics; [`Connection::next_message`]
//! returns what is published there, and [`Connection::reconnect`] goes on behind the last message
//! that has come.
//!
//! It never retries, does not reconnect unless it is told to, and starts no thread.

mod connection;
mod error;
mod kept;
mod received;
mod receiver;
mod sender;
mod server;
mod subscriptions;
mod topic_frames;
mod topics;

pub use connection::Connection;
pub use error::ClientError;
pub use received::{Frame, ServerError, ServerGoodbye};
pub use receiver::Receiver;
pub use sender::Sender;
pub use topic_frames::{Incoming, Published, Recovered, Resumed, Subscribed, TopicMessage};

// So that a program that only has this crate can name codes and bounds.
pub use chappe_wire::{
    BODY_BYTES_MAX, BodyTooLong, CODE_APPLICATION_MESSAGE, CODE_ECHO, CODE_ERROR, CODE_GAP,
    CODE_GOODBYE, CODE_MESSAGE, CODE_PING, CODE_PUBLISH, CODE_PUBLISH_UNANSWERED, CODE_SUBSCRIBE,
    CODE_TIME, CODE_UNSUBSCRIBE, CODE_WHO, Code, ErrorNumber, Goodbye,
};
