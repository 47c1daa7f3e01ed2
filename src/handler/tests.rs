//! What the unit tests of this folder share: a connection without a worker.

use super::topics::OfWorker;
use super::worker::Worker;
use super::{Call, NoConfig};
use crate::protocol;
use chappe_engine::sync::Semaphore;
use chappe_engine::{
    self as engine, Batch, Chunk, Engine, ITEM_COST, Limits, Mailbox, Names, Opened, Peer,
    SlowReader, Socket,
};
use chappe_shm::{AppFigures, Catalog, SharedCounters, ThreadCounters};
use chappe_sys::clock::Moment;
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

/// A connection whose peer takes everything, for tests of handlers. There is no send
/// thread and no event loop: what is queued stays queued.
pub(super) struct TestPeer {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) counters: ThreadCounters,
}

pub(super) fn engine() -> Arc<Engine> {
    let limits = Limits {
        inbox_messages_max: 100,
        inbox_bytes_max: 10_000,
        inbox_total_bytes_max: 10_000,
        outbox_bytes_max: OUTBOX_BYTES_MAX,
        outbox_total_bytes_max: 2 * OUTBOX_BYTES_MAX,
        slow_reader: SlowReader::DropNewest,
        deferred_max: 1,
    };
    let permits: Semaphore = chappe_sys::Semaphore::new(0).expect("a semaphore").into();
    let protocols = protocol::all(65_535);
    let engine = Engine::new(&limits, permits, protocols, SharedCounters::detached());
    Arc::new(engine.expect("an eventfd"))
}

impl TestPeer {
    pub(super) fn new(id: u64) -> Self {
        let peer = Peer::Tcp(([127, 0, 0, 1], 40000).into());
        let connected_at = Moment::now();
        let names = Names { id, token: 1, peer, listener: 0, connected_at };
        let mailbox = Arc::new(Mailbox::new(names, Arc::new(Sink), engine()));
        Self { mailbox, counters: ThreadCounters::detached() }
    }

    /// A message from this peer, as a turn gives it to its handler.
    pub(super) fn message<'a>(
        &'a self,
        opened: Opened<'a>,
        chunk: Option<&'a Chunk>,
    ) -> engine::Message<'a> {
        engine::Message { opened, mailbox: &self.mailbox, protocol: self.mailbox.protocol(), chunk }
    }

    /// A message without a body.
    pub(super) fn empty_message(&self) -> engine::Message<'_> {
        self.message(Opened { code: 16, body: &[], checksum: 0, length: 8, joins: false }, None)
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

#[test]
fn a_kept_body_shares_its_chunk_unless_it_is_a_small_part_of_it() {
    let peer = TestPeer::new(1);
    let chunk = Chunk::new(&[5; 400 - ITEM_COST], 1);
    let figures = AppFigures::detached(Catalog::default());
    let worker = Worker::<()>::new(0, 1, NoConfig {}, engine(), figures, OfWorker::Off);
    let kept = |body| {
        let opened = Opened { code: 16, body, checksum: 0, length: 0, joins: false };
        let (message, mut batch) = (peer.message(opened, Some(&chunk)), Batch::default());
        Call::new(&message, &worker, &Arc::default(), &mut batch).body_to_keep()
    };
    let quarter = kept(&chunk.bytes()[..100]);
    assert_eq!((quarter.len(), quarter.as_ptr()), (100, chunk.bytes().as_ptr()));
    let less = kept(&chunk.bytes()[..99]);
    assert_ne!(less.as_ptr(), chunk.bytes().as_ptr());
    assert_eq!(less, chunk.bytes()[..99]);
}
