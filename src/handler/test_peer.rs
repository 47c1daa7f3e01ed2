//! A connection whose peer takes everything, for tests of handlers. There is no send thread
//! and no event loop: what is queued stays queued.

use crate::protocol;
use chappe_engine::sync::Semaphore;
use chappe_engine::{
    Batch, Chunk, Engine, Limits, Mailbox, Message, Names, Opened, Peer, SlowReader, Socket,
};
use chappe_shm::{SharedCounters, ThreadCounters};
use std::io::{self, IoSlice};
use std::sync::Arc;

pub(super) const OUTBOX_BYTES_MAX: usize = 1000;

#[derive(Debug)]
struct Sink;

impl Socket for Sink {
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(slices.iter().map(|slice| slice.len()).sum())
    }
}

pub(super) struct TestPeer {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) counters: ThreadCounters,
}

impl TestPeer {
    pub(super) fn new(id: u64) -> Self {
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
    pub(super) fn message<'a>(
        &'a self,
        opened: Opened<'a>,
        chunk: Option<&'a Chunk>,
    ) -> Message<'a> {
        Message { opened, mailbox: &self.mailbox, protocol: self.mailbox.protocol(), chunk }
    }

    /// What was answered: code and body of each message.
    pub(super) fn answers(&self, batch: &mut Batch) -> Vec<(u16, Vec<u8>)> {
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

    pub(super) fn bodies(&self, batch: &mut Batch) -> Vec<Vec<u8>> {
        self.answers(batch).into_iter().map(|(_, body)| body).collect()
    }
}
