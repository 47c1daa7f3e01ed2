//! The queue: a ring from one producer to one consumer that loses nothing.
//!
//! ```text
//!         head                  tail
//!  ─────────┼───────────┼─────────┼──────────
//!   free    │ length    │ length  │   free      positions of words, which never go back;
//!           │ bytes …   │ bytes … │             tail - head <= the ring's words
//! ```
//!
//! The producer alone writes the tail, the consumer alone the head. A record becomes visible
//! by the store of the tail, and its place is free by the store of the head, after all that
//! follows from the record is done: a consumer that dies before has not taken it.

use crate::Corrupt;
use crate::sync::{AtomicU32, Cells, Line, Ordering, Words, cells, fence, step};
use crate::words;
use thiserror::Error;

/// The first word of a record: its length in bytes.
const HEAD_WORDS: usize = 1;

cells! {
    /// Where the two sides of a queue are.
    #[repr(align(64))]
    pub struct QueueCursors {
        /// Written by the consumer.
        head: Line,
        /// Written by the producer.
        tail: Line,
        /// Set by the producer that has found no room, taken back by the consumer that has
        /// made some.
        wants_room: AtomicU32,
    }
}

/// A queue in shared memory, as both sides have it.
#[derive(Clone, Debug)]
pub struct Queue {
    cursors: Cells<QueueCursors>,
    words: Words,
}

/// There is no room now. The consumer rings when there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the queue is full")]
pub struct Full;

impl Queue {
    /// Of zeroed memory, or of a queue that is in use. The words are a power of two.
    ///
    /// # Panics
    /// If they are not.
    #[must_use]
    pub fn new(cursors: Cells<QueueCursors>, words: Words) -> Self {
        assert!(words.len().is_power_of_two(), "{} words are no power of two", words.len());
        Self { cursors, words }
    }

    /// The longest record, in bytes.
    #[must_use]
    pub fn record_bytes_max(&self) -> usize {
        (self.words.len() - HEAD_WORDS) * size_of::<u64>()
    }

    /// The one that writes, from where the last one was.
    #[must_use]
    pub fn producer(&self) -> Producer {
        let tail = self.cursors.tail.load(Ordering::Relaxed);
        let head = self.cursors.head.load(Ordering::Acquire);
        Producer { queue: self.clone(), tail, head }
    }

    /// The one that reads, from where the last one was.
    #[must_use]
    pub fn consumer(&self) -> Consumer {
        let head = self.cursors.head.load(Ordering::Relaxed);
        Consumer { queue: self.clone(), head, end: head }
    }
}

/// The writer of a queue. There is one at a time.
#[derive(Debug)]
pub struct Producer {
    queue: Queue,
    tail: u64,
    /// As it was read last.
    head: u64,
}

impl Producer {
    /// Appends a record.
    ///
    /// # Errors
    /// [`Full`]: nothing was appended, and the consumer will say when it has made room.
    ///
    /// # Panics
    /// If it is longer than [`Queue::record_bytes_max`].
    pub fn push(&mut self, record: &[u8]) -> Result<(), Full> {
        let bytes = record.len();
        assert!(bytes <= self.queue.record_bytes_max(), "{bytes} bytes do not fit into the queue");
        let needed = (HEAD_WORDS + words::needed(bytes)) as u64;
        self.find_room(needed)?;
        let Queue { cursors, words } = &self.queue;
        step("push: words");
        words::at(words, self.tail).store(bytes as u64, Ordering::Relaxed);
        words::write(words, self.tail + HEAD_WORDS as u64, record);
        step("push: tail");
        self.tail += needed;
        // Release: who sees the tail sees the words.
        cursors.tail.store(self.tail, Ordering::Release);
        Ok(())
    }

    /// Whether a record of so many bytes can be appended. If not, the consumer will say when it
    /// has made room.
    pub fn has_room_for(&mut self, bytes: usize) -> bool {
        self.find_room((HEAD_WORDS + words::needed(bytes)) as u64).is_ok()
    }

    /// The position behind the last record.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.tail
    }

    /// Whether all that lies before a position is taken, and what has followed from it is seen. If
    /// not, the consumer will say when it has taken a record.
    pub fn is_taken(&mut self, position: u64) -> bool {
        if self.head >= position {
            return true;
        }
        self.queue.cursors.wants_room.store(1, Ordering::Relaxed);
        // As in `find_room`. The wish stays: a call for nothing costs a look.
        fence(Ordering::SeqCst);
        self.head = self.queue.cursors.head.load(Ordering::Acquire);
        self.head >= position
    }

    fn find_room(&mut self, needed: u64) -> Result<(), Full> {
        if self.has_room(needed) || self.look(needed) {
            return Ok(());
        }
        let wants_room = &self.queue.cursors.wants_room;
        wants_room.store(1, Ordering::Relaxed);
        // Either the consumer, behind its own fence, sees the wish, or this look sees the room
        // that it has made.
        fence(Ordering::SeqCst);
        if self.look(needed) {
            // If the consumer has seen it too, it rings for nothing.
            self.queue.cursors.wants_room.store(0, Ordering::Relaxed);
            return Ok(());
        }
        Err(Full)
    }

    /// The head may be anything, if the other side was taken over: then there is no room.
    fn has_room(&self, needed: u64) -> bool {
        let used = self.tail.checked_sub(self.head).and_then(|used| used.checked_add(needed));
        used.is_some_and(|used| used <= self.queue.words.len() as u64)
    }

    fn look(&mut self, needed: u64) -> bool {
        // Acquire: the consumer has read what is about to be written over.
        self.head = self.queue.cursors.head.load(Ordering::Acquire);
        self.has_room(needed)
    }
}

/// The reader of a queue. There is one at a time.
#[derive(Debug)]
pub struct Consumer {
    queue: Queue,
    head: u64,
    /// Where the record ends that was read last and not taken yet; the head, if all were taken.
    end: u64,
}

impl Consumer {
    /// Reads the oldest record that is not taken, in the place of what was in `into`. False if
    /// all are taken. The record stays until [`advance`](Self::advance).
    ///
    /// # Errors
    /// [`Corrupt`]: the producer has written what no correct one writes.
    pub fn next(&mut self, into: &mut Vec<u8>) -> Result<bool, Corrupt> {
        let Queue { cursors, words } = &self.queue;
        // Acquire: the words up to there.
        let tail = cursors.tail.load(Ordering::Acquire);
        let there = tail.wrapping_sub(self.head);
        if there == 0 {
            return Ok(false);
        }
        if there > words.len() as u64 {
            return Err(Corrupt { what: "a queue's tail and its head" });
        }
        let bytes = words::at(words, self.head).load(Ordering::Relaxed);
        let most = (there - HEAD_WORDS as u64) * size_of::<u64>() as u64;
        let bytes = usize::try_from(bytes).ok().filter(|&bytes| bytes as u64 <= most);
        let bytes = bytes.ok_or(Corrupt { what: "the length of a record" })?;
        into.clear();
        words::read(words, self.head + HEAD_WORDS as u64, bytes, into);
        self.end = self.head + (HEAD_WORDS + words::needed(bytes)) as u64;
        Ok(true)
    }

    /// Whether there is a record that is not taken.
    #[must_use]
    pub fn has_next(&self) -> bool {
        self.queue.cursors.tail.load(Ordering::Acquire) != self.head
    }

    /// Takes the record that `next` gave last: all that follows from it is done. True if the
    /// producer waits for room, and is to be called.
    #[must_use]
    pub fn advance(&mut self) -> bool {
        step("advance: head");
        self.head = self.end;
        let cursors = &self.queue.cursors;
        // Release: it was read before.
        cursors.head.store(self.head, Ordering::Release);
        // See `Producer::find_room`.
        fence(Ordering::SeqCst);
        step("advance: room");
        cursors.wants_room.load(Ordering::Relaxed) != 0
            && cursors.wants_room.swap(0, Ordering::AcqRel) != 0
    }
}

#[cfg(all(test, not(loom)))]
#[path = "queue_tests.rs"]
mod tests;
