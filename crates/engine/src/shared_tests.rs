//! Bytes that many outboxes have, and that the total is charged for once.

use super::*;
use crate::effects::Rejected;
use crate::engine::{Limits, SlowReader};
use crate::mailbox::{Aborted, Mailbox, Names, Place};
use crate::notice::Cause;
use crate::peer::Peer;
use crate::sync::Semaphore;
use chappe_shm::{SharedCounters, ThreadCounters};
use chappe_sys::clock::Moment;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

const BYTES: usize = 64 * 1024;
const SUBSCRIBERS: usize = 300;

pub(crate) fn engine(outbox_total_bytes_max: usize) -> Arc<Engine> {
    let permits = Semaphore::from(chappe_sys::Semaphore::new(0).expect("a semaphore"));
    let limits = Limits {
        inbox_messages_max: 1,
        inbox_bytes_max: 1,
        inbox_total_bytes_max: 1,
        outbox_bytes_max: 3 * BYTES,
        outbox_total_bytes_max,
        slow_reader: SlowReader::DropNewest,
        deferred_max: 1,
    };
    let engine = Engine::new(&limits, permits, Vec::new(), SharedCounters::detached());
    Arc::new(engine.expect("an eventfd"))
}

/// Takes so many bytes and is full then.
#[derive(Debug)]
struct Takes(AtomicUsize);

impl Socket for Takes {
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        let takes = self.0.load(Ordering::Relaxed).min(bytes);
        self.0.fetch_sub(takes, Ordering::Relaxed);
        if takes == 0 { Err(nix::errno::Errno::EAGAIN.into()) } else { Ok(takes) }
    }
}

fn subscribers(engine: &Arc<Engine>, takes: usize) -> Vec<Arc<Mailbox>> {
    let mailbox = |token| {
        let connected_at = Moment::now();
        let names = Names { id: token, token, peer: Peer::Unix, listener: 0, connected_at };
        let socket = Arc::new(Takes(AtomicUsize::new(takes)));
        Arc::new(Mailbox::new(names, socket, Arc::clone(engine)))
    };
    (0..SUBSCRIBERS as u64).map(mailbox).collect()
}

fn message(engine: &Arc<Engine>, byte: u8) -> Entry {
    Entry::shared((vec![byte; BYTES].into(), 1), engine)
}

#[test]
fn an_entry_that_may_be_missing_is_no_larger() {
    assert_eq!(size_of::<Option<Entry>>(), 24);
    assert_eq!([0, 1, 7].map(|it| Entry::new((b"x"[..].into(), it)).messages()), [0, 1, 7]);
}

#[test]
fn a_message_for_many_is_charged_once_until_the_last_of_them_is_gone() {
    let engine = engine(3 * BYTES);
    let counters = ThreadCounters::detached();
    let used = || engine.outbox_total().used();
    let subscribers = subscribers(&engine, 10);
    let entry = message(&engine, b'x');
    for mailbox in &subscribers {
        mailbox.push_shared(0, None, &entry).expect("there is room");
        assert_eq!(mailbox.view().outbox_bytes, BYTES + ENTRY_COST, "its own limit is with all");
    }
    drop(entry);
    assert_eq!(used(), BYTES + SUBSCRIBERS * ENTRY_COST);
    // What is sent of it to one is not free before it is sent to all.
    for mailbox in &subscribers {
        _ = mailbox.flush_ready(&counters, Place::Thread);
        assert_eq!(mailbox.view().outbox_bytes, BYTES + ENTRY_COST - 10);
    }
    assert_eq!(used(), BYTES + SUBSCRIBERS * ENTRY_COST);
    for (nth, mailbox) in subscribers.iter().enumerate() {
        assert_eq!(used(), BYTES + (SUBSCRIBERS - nth) * ENTRY_COST);
        assert_eq!(mailbox.abort(Cause::Kicked, &counters), Aborted::Over);
    }
    assert_eq!(used(), 0);
}

#[test]
fn what_was_sent_to_all_is_free() {
    let engine = engine(4 * BYTES);
    let counters = ThreadCounters::detached();
    let subscribers = subscribers(&engine, usize::MAX);
    let (one, two) = (message(&engine, b'1'), message(&engine, b'2'));
    for mailbox in &subscribers {
        let head = Some(Entry::new((b"gap"[..].into(), 1)));
        mailbox.push_shared(0, head, &one).expect("there is room");
        mailbox.push_shared(0, None, &two).expect("there is room");
    }
    drop((one, two));
    let each = 3 + 3 * ENTRY_COST;
    for (nth, mailbox) in subscribers.iter().enumerate() {
        let left = (SUBSCRIBERS - nth) * each;
        assert_eq!(engine.outbox_total().used(), 2 * BYTES + left);
        _ = mailbox.flush_ready(&counters, Place::Thread);
        assert!(mailbox.view().is_idle);
    }
    assert_eq!(engine.outbox_total().used(), 0);
}

#[test]
fn without_room_for_it_a_message_is_refused_by_each_and_charged_for_none() {
    let engine = engine(3 * BYTES / 2);
    let subscribers = subscribers(&engine, 0);
    let one = message(&engine, b'1');
    let two = message(&engine, b'2');
    for mailbox in &subscribers {
        assert_eq!(mailbox.push_shared(0, None, &two), Err(Rejected::Full));
    }
    drop(two);
    assert_eq!(engine.outbox_total().used(), BYTES);
    drop(one);
    assert_eq!(engine.outbox_total().used(), 0);
}
