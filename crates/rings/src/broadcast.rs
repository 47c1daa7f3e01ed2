//! The broadcast ring: one writer, and any number of readers that it never waits for.
//!
//! ```text
//!            reader                          tail       intent
//!  ────────────┼──────────┼─────────┼──────────┼──────────┼─────
//!   over-      │ record   │ record  │ record   │ is being │ still
//!   written    │          │         │          │ written  │ the lap before
//!
//!  record: bytes │ offset │ what it says … │ bytes
//! ```
//!
//! Positions count words and never go back. The writer says with *intent* how far it will
//! write, then writes, then moves the *tail*. A reader copies a record first and then looks
//! at the intent: if that has come a whole ring beyond where the record began, the copy may
//! be of two laps, and is thrown away.
//!
//! A record says its length at both ends. So from the tail alone one finds the last record,
//! and with it the last offset: that is where a reader begins, and where the successor of a
//! dead writer goes on. What the dead one had begun and not shown is written over; the intent
//! stays where it was, or a reader could believe words of both.

use crate::Corrupt;
use crate::sync::{AtomicU64, Cells, Line, Ordering, Words, cells, fence, spin_loop, step};
use crate::words;

/// Marks by which an offset is found.
const MARKS: usize = if cfg!(loom) { 1 } else { 64 };
/// Words in front of what a record says: its length in bytes, its offset.
const HEAD_WORDS: usize = 2;
/// Words behind it: its length again.
const TAIL_WORDS: usize = 1;
/// A record has at most this part of the ring, so that a reader who is a little behind is not
/// lapped by one. The rings of models are too small for that.
const SHARE: usize = if cfg!(loom) { 2 } else { 8 };

cells! {
    /// Where the record of an offset begins.
    pub struct Mark {
        offset: AtomicU64,
        position: AtomicU64,
    }
}

cells! {
    /// Where the writer of a broadcast ring is. Written by it alone.
    #[repr(align(64))]
    pub struct BroadcastCursors {
        /// How far it will have written.
        intent: Line,
        /// Up to where there are whole records.
        tail: Line,
        /// One for each 64th of the ring: a record that begins there.
        marks: [Mark; MARKS],
    }
}

/// A broadcast ring in shared memory, as its writer and its readers have it.
#[derive(Clone, Debug)]
pub struct Broadcast {
    cursors: Cells<BroadcastCursors>,
    words: Words,
}

impl Broadcast {
    /// Of zeroed memory, or of a ring that is in use. The words are a power of two.
    ///
    /// # Panics
    /// If they are not, or too few for marks.
    #[must_use]
    pub fn new(cursors: Cells<BroadcastCursors>, words: Words) -> Self {
        let count = words.len();
        assert!(count.is_power_of_two() && count >= MARKS, "a ring cannot have {count} words");
        Self { cursors, words }
    }

    /// The longest record, in bytes.
    #[must_use]
    pub fn record_bytes_max(&self) -> usize {
        (self.words.len() / SHARE - HEAD_WORDS - TAIL_WORDS) * size_of::<u64>()
    }

    /// How many words there are. Positions count on over them.
    #[must_use]
    pub fn words(&self) -> usize {
        self.words.len()
    }

    /// The position behind the last record. What is written up to there is seen.
    #[must_use]
    pub fn position(&self) -> u64 {
        // Readers have the ring mapped to read alone: a load that is more than relaxed may be
        // compiled to something that writes (std::sync::atomic, read-only memory).
        let tail = self.cursors.tail.load(Ordering::Relaxed);
        // The words up to there.
        fence(Ordering::Acquire);
        tail
    }

    /// The writer, from where the last one was.
    ///
    /// # Errors
    /// [`Corrupt`]: no writer leaves a ring so.
    pub fn writer(&self) -> Result<Writer, Corrupt> {
        let tail = self.position();
        let (_, offset) = self.record_before(tail)?;
        // Where a dead writer has marked a record, that one is the first of its part.
        let part = self.part(tail);
        let mark = self.mark(part);
        let is_marked = mark.offset.load(Ordering::Relaxed) > 0
            && self.part(mark.position.load(Ordering::Relaxed)) == part;
        Ok(Writer { ring: self.clone(), tail, offset, marked: is_marked.then_some(part) })
    }

    /// A reader of what is written from now on.
    ///
    /// # Errors
    /// [`Corrupt`]: no writer leaves a ring so.
    pub fn reader(&self) -> Result<Reader, Corrupt> {
        loop {
            let position = self.position();
            let last = self.record_before(position);
            // If the writer has come round in the meantime, what was read may be anything.
            let begins = last.map_or_else(|_| position - 1, |(begins, _)| begins);
            if !self.is_lapped(begins) {
                let (_, offset) = last?;
                return Ok(Reader { ring: self.clone(), position, offset });
            }
            // It has, so the tail has moved: a dead writer never leaves it so far behind.
            spin_loop();
        }
    }

    /// A reader of what comes behind this offset. `None` if that is no longer there, or was
    /// never written.
    ///
    /// # Errors
    /// [`Corrupt`]: no writer leaves a ring so.
    pub fn reader_behind(&self, offset: u64) -> Result<Option<Reader>, Corrupt> {
        let newest = self.reader()?;
        if offset >= newest.offset {
            return Ok((offset == newest.offset).then_some(newest));
        }
        // The first record that is wanted, or one before it. A mark that is just being written
        // may name an offset and the position of another one: then what is there differs.
        let first = offset + 1;
        let marks = self.cursors.marks.iter().filter_map(|mark| {
            let offset = mark.offset.load(Ordering::Relaxed);
            let position = mark.position.load(Ordering::Relaxed);
            let is_there = position < newest.position
                && words::at(&self.words, position + 1).load(Ordering::Relaxed) == offset
                && !self.is_lapped(position);
            (is_there && offset > 0 && offset <= first).then_some((offset, position))
        });
        let Some((marked, position)) = marks.max() else { return Ok(None) };
        let mut reader = Reader { ring: self.clone(), position, offset: marked - 1 };
        while reader.offset < offset {
            if reader.step_over()? != Found::Record {
                return Ok(None);
            }
        }
        Ok(Some(reader))
    }

    /// Where the record begins that ends at a position, and its offset.
    fn record_before(&self, position: u64) -> Result<(u64, u64), Corrupt> {
        if position == 0 {
            return Ok((0, 0));
        }
        let bytes = words::at(&self.words, position - 1).load(Ordering::Relaxed);
        let begins = self.record_words(bytes).and_then(|words| position.checked_sub(words));
        let begins = begins.ok_or(Corrupt { what: "the length behind the last record" })?;
        Ok((begins, words::at(&self.words, begins + 1).load(Ordering::Relaxed)))
    }

    /// How many words a record of `bytes` bytes has; `None` if no record is that long.
    fn record_words(&self, bytes: u64) -> Option<u64> {
        let bytes =
            usize::try_from(bytes).ok().filter(|&bytes| bytes <= self.record_bytes_max())?;
        Some((HEAD_WORDS + words::needed(bytes) + TAIL_WORDS) as u64)
    }

    /// Whether the writer has begun to write over what is at this position, or may have. To
    /// be asked after it was read.
    fn is_lapped(&self, position: u64) -> bool {
        // Behind the reads: if one of them saw a word of the next lap, this load sees the
        // intent that was stored before that word.
        fence(Ordering::Acquire);
        let intent = self.cursors.intent.load(Ordering::Relaxed);
        position.wrapping_add(self.words.len() as u64) < intent
    }

    /// Which of the parts that have a mark each a position lies in, counted on over the laps.
    fn part(&self, position: u64) -> u64 {
        position / (self.words.len() / MARKS) as u64
    }

    #[expect(clippy::cast_possible_truncation, reason = "less than the number of marks")]
    fn mark(&self, part: u64) -> &Mark {
        &self.cursors.marks[(part % MARKS as u64) as usize]
    }
}

/// The writer of a broadcast ring. There is one at a time.
#[derive(Debug)]
pub struct Writer {
    ring: Broadcast,
    tail: u64,
    offset: u64,
    /// The part that it has marked last.
    marked: Option<u64>,
}

impl Writer {
    /// The offset of the last record; 0 if there was none.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The position behind the last record.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.tail
    }

    /// What the last record says. `None` if there was none.
    ///
    /// The successor of a dead writer asks for it: the last record may be what the dead one
    /// was about to take off somebody's queue, and must not be written again.
    ///
    /// # Errors
    /// [`Corrupt`]: no writer leaves a ring so.
    pub fn last(&self) -> Result<Option<Vec<u8>>, Corrupt> {
        let Some(offset) = self.offset.checked_sub(1) else { return Ok(None) };
        let (position, _) = self.ring.record_before(self.tail)?;
        let mut record = Vec::new();
        let mut reader = Reader { ring: self.ring.clone(), position, offset };
        Ok((reader.next(&mut record)? == Found::Record).then_some(record))
    }

    /// Appends a record, and returns its offset: 1 more than that of the one before.
    ///
    /// # Panics
    /// If it is longer than [`Broadcast::record_bytes_max`].
    pub fn write(&mut self, record: &[u8]) -> u64 {
        let bytes = record.len();
        assert!(bytes <= self.ring.record_bytes_max(), "{bytes} bytes do not fit into the ring");
        let (begins, part) = (self.tail, self.ring.part(self.tail));
        let ends = begins + (HEAD_WORDS + words::needed(bytes) + TAIL_WORDS) as u64;
        let offset = self.offset + 1;
        let Broadcast { cursors, words } = &self.ring;
        step("write: intent");
        // One that has died may have meant to write more, and may have begun to.
        let intent = cursors.intent.load(Ordering::Relaxed).max(ends);
        cursors.intent.store(intent, Ordering::Relaxed);
        // See `is_lapped`.
        fence(Ordering::Release);
        step("write: words");
        words::at(words, begins).store(bytes as u64, Ordering::Relaxed);
        words::at(words, begins + 1).store(offset, Ordering::Relaxed);
        words::write(words, begins + HEAD_WORDS as u64, record);
        step("write: length");
        words::at(words, ends - 1).store(bytes as u64, Ordering::Relaxed);
        if self.marked.replace(part) != Some(part) {
            let mark = self.ring.mark(part);
            mark.offset.store(offset, Ordering::Relaxed);
            mark.position.store(begins, Ordering::Relaxed);
        }
        step("write: tail");
        // Release: who sees the tail sees the words.
        cursors.tail.store(ends, Ordering::Release);
        (self.tail, self.offset) = (ends, offset);
        offset
    }
}

/// What a reader has come upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A record.
    Record,
    /// It has read all there is.
    Nothing,
    /// The writer has overtaken it: this many records were lost, and it continues behind the last
    /// one.
    Lapped(u64),
}

/// A reader of a broadcast ring. It writes nothing there.
#[derive(Clone, Debug)]
pub struct Reader {
    ring: Broadcast,
    position: u64,
    offset: u64,
}

impl Reader {
    /// The offset of the record that it read last, or that was the last when it began.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The position of the next record.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether there is a record that it has not read.
    #[must_use]
    pub fn has_next(&self) -> bool {
        self.ring.position() != self.position
    }

    /// The next record, in the place of what was in `into`, if there is one.
    ///
    /// # Errors
    /// [`Corrupt`]: the writer has written what no correct one writes.
    pub fn next(&mut self, into: &mut Vec<u8>) -> Result<Found, Corrupt> {
        into.clear();
        self.pass(Some(into))
    }

    /// Leaves one record out.
    fn step_over(&mut self) -> Result<Found, Corrupt> {
        self.pass(None)
    }

    fn pass(&mut self, into: Option<&mut Vec<u8>>) -> Result<Found, Corrupt> {
        let words = &self.ring.words;
        let there = self.ring.position().wrapping_sub(self.position);
        if there == 0 {
            return Ok(Found::Nothing);
        }
        let bytes = words::at(words, self.position).load(Ordering::Relaxed);
        let offset = words::at(words, self.position + 1).load(Ordering::Relaxed);
        let length = self.ring.record_words(bytes).filter(|&length| length <= there);
        if let (Some(into), Some(_)) = (into, length) {
            let bytes = usize::try_from(bytes).unwrap_or(0);
            words::read(words, self.position + HEAD_WORDS as u64, bytes, into);
            step("next: copied");
        }
        if self.ring.is_lapped(self.position) {
            return self.skip();
        }
        // Not before: what was read may be of the next lap, and anything.
        let length = length.ok_or(Corrupt { what: "the length of a record" })?;
        if offset != self.offset + 1 {
            return Err(Corrupt { what: "the offset of a record" });
        }
        (self.position, self.offset) = (self.position + length, offset);
        Ok(Found::Record)
    }

    #[cold]
    fn skip(&mut self) -> Result<Found, Corrupt> {
        let before = self.offset;
        *self = self.ring.reader()?;
        Ok(Found::Lapped(self.offset.saturating_sub(before)))
    }
}

#[cfg(all(test, not(loom)))]
#[path = "broadcast_tests.rs"]
mod tests;
