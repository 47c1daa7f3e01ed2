//! What an application sees: requests, replies, handlers. Never a socket, never
//! a thread, never a queue.
//!
//! A handler runs on one of its worker's handler threads, or on its event loop if it is
//! quick. One connection is on at most one of them at a time, so its messages are
//! handled and answered in order; different connections run in parallel, so a handler
//! must be `Sync`.

mod application;
mod frames;
mod handle;
mod own_turn;
mod quick;
mod replies;
mod stock;

pub use handle::{Handle, Message, SendError};
pub use replies::Replies;

pub(crate) use application::{Application, Handlers, WorkerInfo};

use bytes::Bytes;
use chappe_engine::{self as engine, BodyTooLong};
use std::sync::Arc;

pub use chappe_engine::Peer;

/// A message code. It selects the handler of a message.
pub type Code = u16;

/// The connection that a message came from.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Unique over workers and generations.
    pub id: u64,
    /// The peer's address.
    pub peer: Peer,
}

/// One received message, checked against its checksum.
#[derive(Debug)]
pub struct Request<'a> {
    message: &'a engine::Message<'a>,
}

impl<'a> Request<'a> {
    /// The message code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.message.opened.code
    }

    /// The body, 0 to 65527 bytes.
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        self.message.opened.body
    }

    /// The body, to keep beyond the handler's return. Shares the memory it was
    /// received in, unless that is more than four times as large: then it is
    /// copied, so that a few bytes that are kept do not keep many allocated.
    #[must_use]
    pub fn body_to_keep(&self) -> Bytes {
        match self.message.chunk {
            Some(chunk) if self.body().len() >= chunk.charged() / 4 => {
                Bytes::from_owner(Arc::clone(chunk.shared())).slice_ref(self.body())
            }
            _ => Bytes::copy_from_slice(self.body()),
        }
    }

    /// The connection that the message came from.
    #[must_use]
    pub fn connection(&self) -> ConnectionInfo {
        let mailbox = self.message.mailbox;
        ConnectionInfo { id: mailbox.id(), peer: mailbox.peer() }
    }

    /// A way to send to this connection later, from any thread of this worker.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(self.message.mailbox)
    }
}

/// What a handler returns: an error is sent to the peer (error 4) in place of
/// the replies to this message, and the connection stays open.
pub type Outcome = Result<(), HandlerError>;

/// Why a handler failed; its text goes to the peer and into the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HandlerError(String);

impl HandlerError {
    /// An error with a text for people to read.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl From<BodyTooLong> for HandlerError {
    fn from(error: BodyTooLong) -> Self {
        Self(error.to_string())
    }
}

/// Handles the messages of one code.
///
/// Closures `Fn(&Request, &mut Replies) -> Outcome` are handlers. A panic costs
/// the message and its connection, not the worker.
pub trait Handler: Send + Sync {
    /// Called for each message, in the order of its connection.
    ///
    /// # Errors
    /// The peer gets its text as error 4, "handler failed", instead of the replies.
    fn handle(&self, request: &Request<'_>, replies: &mut Replies<'_>) -> Outcome;

    /// Whether the handler never blocks and computes for microseconds at most. Called once,
    /// when a worker starts.
    ///
    /// Quick handlers run on the event loop itself (`worker.fuse`), and the replies to
    /// neighbouring messages leave together. While one runs, the loop serves no other
    /// connection. A handler that takes more than 50 ms of the loop within ten seconds, in
    /// calls of more than 200 microseconds, is demoted: a warning is logged, and the
    /// handler threads run it like any other.
    fn is_quick(&self) -> bool {
        false
    }
}

impl<F> Handler for F
where
    F: Fn(&Request<'_>, &mut Replies<'_>) -> Outcome + Send + Sync,
{
    fn handle(&self, request: &Request<'_>, replies: &mut Replies<'_>) -> Outcome {
        self(request, replies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol;
    use chappe_engine::sync::Semaphore;
    use chappe_engine::{
        Batch, Chunk, Engine, ITEM_COST, Limits, Mailbox, Names, Opened, SlowReader, Socket,
    };
    use chappe_shm::{SharedCounters, ThreadCounters};
    use std::io::{self, IoSlice};

    pub(in crate::handler) const OUTBOX_BYTES_MAX: usize = 1000;

    #[derive(Debug)]
    struct Sink;

    impl Socket for Sink {
        fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            Ok(slices.iter().map(|slice| slice.len()).sum())
        }
    }

    /// A connection whose peer takes everything, for tests of handlers. There is no send
    /// thread and no event loop: what is queued stays queued.
    pub(in crate::handler) struct TestPeer {
        pub(in crate::handler) mailbox: Arc<Mailbox>,
        pub(in crate::handler) counters: ThreadCounters,
    }

    impl TestPeer {
        pub(in crate::handler) fn new(id: u64) -> Self {
            let limits = Limits {
                inbox_messages_max: 100,
                inbox_bytes_max: 10_000,
                inbox_total_bytes_max: 10_000,
                outbox_bytes_max: OUTBOX_BYTES_MAX,
                outbox_total_bytes_max: 2 * OUTBOX_BYTES_MAX,
                slow_reader: SlowReader::DropNewest,
            };
            let permits: Semaphore = chappe_sys::Semaphore::new(0).expect("a semaphore").into();
            let protocols = protocol::all(65_535);
            let engine = Engine::new(&limits, permits, protocols, SharedCounters::detached());
            let peer = Peer::Tcp(([127, 0, 0, 1], 40000).into());
            let names = Names { id, token: 1, peer, protocol: 0 };
            let engine = Arc::new(engine.expect("an eventfd"));
            let mailbox = Arc::new(Mailbox::new(names, Arc::new(Sink), engine));
            Self { mailbox, counters: ThreadCounters::detached() }
        }

        /// A message from this peer, as a turn gives it to its handler.
        pub(in crate::handler) fn message<'a>(
            &'a self,
            opened: Opened<'a>,
            chunk: Option<&'a Chunk>,
        ) -> engine::Message<'a> {
            engine::Message {
                opened,
                mailbox: &self.mailbox,
                protocol: self.mailbox.protocol(),
                chunk,
            }
        }

        /// What was answered: code and body of each message.
        pub(in crate::handler) fn answers(&self, batch: &mut Batch) -> Vec<(u16, Vec<u8>)> {
            let (protocol, (bytes, messages)) = (self.mailbox.protocol(), batch.take());
            let (mut rest, mut answers) = (&bytes[..], Vec::new());
            while let Some(opened) = protocol.open(rest) {
                assert!(protocol.is_intact(&opened));
                answers.push((opened.code, opened.body.to_vec()));
                rest = &rest[opened.length..];
            }
            assert_eq!(answers.len(), messages as usize);
            answers
        }

        pub(in crate::handler) fn bodies(&self, batch: &mut Batch) -> Vec<Vec<u8>> {
            self.answers(batch).into_iter().map(|(_, body)| body).collect()
        }
    }

    #[test]
    fn a_kept_body_shares_its_chunk_unless_it_is_a_small_part_of_it() {
        let peer = TestPeer::new(1);
        let chunk = Chunk::new(&[5; 400 - ITEM_COST], 1);
        let opened = |body| Opened { code: 16, body, checksum: 0, length: 0 };
        let quarter = peer.message(opened(&chunk.bytes()[..100]), Some(&chunk));
        assert_eq!(Request { message: &quarter }.body_to_keep().as_ptr(), chunk.bytes().as_ptr());
        let less = peer.message(opened(&chunk.bytes()[..99]), Some(&chunk));
        let kept = Request { message: &less }.body_to_keep();
        assert_ne!(kept.as_ptr(), chunk.bytes().as_ptr());
        assert_eq!(kept, Request { message: &less }.body());
    }
}
