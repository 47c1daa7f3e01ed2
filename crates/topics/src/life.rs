//! The memory that one life of a worker shares with the hub: from the fork of the worker until
//! the hub has read what it left. It is never used for another one, so nothing in it has to
//! be reset under a reader.
//!
//! | part | written by | read by |
//! |---|---|---|
//! | publish queue: [`Request`](crate::Request) | the worker | the hub |
//! | interest queue: [`Interest`](crate::Interest) | the worker | the hub |
//! | answer queue: [`Answer`](crate::Answer) | the hub | the worker |
//! | cells: subscribers of a name | the worker | the hub |
//! | how far it has read the broadcast ring, and its progress | the worker | the hub |

use chappe_rings::{Bell, Queue, QueueCursors};
use chappe_sys::{SharedArray, SharedFile, SharedMapping, shared_layout};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Names that a worker may have at a time.
pub const CELLS: usize = 1 << 18;

const PUBLISH_BYTES: usize = 1 << 20;
const INTEREST_BYTES: usize = 1 << 18;
const ANSWER_BYTES: usize = 1 << 20;

shared_layout! {
    /// What the two sides say to each other without a queue.
    #[derive(Debug)]
    #[repr(align(4096))]
    struct Front {
        to_hub: Bell,
        to_worker: Bell,
        read: AtomicU64,
        progress: AtomicU64,
        working: AtomicU64,
        deaths: AtomicU32,
        process: AtomicU32,
        left: AtomicU32,
    }
}

const PAGE: usize = 4096;
const _: () = assert!(size_of::<Front>() == PAGE && size_of::<QueueCursors>() <= PAGE);

// The cursors of each queue have a page, and are followed by the words of all.
const PUBLISH_AT: usize = 4 * PAGE;
const INTEREST_AT: usize = PUBLISH_AT + PUBLISH_BYTES;
const ANSWERS_AT: usize = INTEREST_AT + INTEREST_BYTES;
const CELLS_AT: usize = ANSWERS_AT + ANSWER_BYTES;
const BYTES: usize = CELLS_AT + CELLS * size_of::<AtomicU32>();

/// The memory of one life.
#[derive(Clone, Debug)]
pub struct Life {
    front: Arc<SharedMapping<Front>>,
    publish: Queue,
    interest: Queue,
    answers: Queue,
    cells: Arc<SharedArray<AtomicU32>>,
}

impl Life {
    /// New memory for a worker that is about to be forked, as a file that only its owner's
    /// processes can open.
    ///
    /// # Errors
    /// Of memfd_create(2) and fchmod(2): no descriptor or no memory left.
    pub fn create() -> io::Result<SharedFile> {
        let file = SharedFile::create("chappe-life", BYTES as u64)?;
        file.forbid_others()?;
        Ok(file)
    }

    /// Of a descriptor that this process was handed.
    ///
    /// # Errors
    /// `InvalidInput`: it is something else. Otherwise of mmap(2).
    pub fn from_descriptor(descriptor: OwnedFd) -> io::Result<Self> {
        Self::map(&SharedFile::from_descriptor(descriptor)?)
    }

    /// Maps it.
    ///
    /// # Errors
    /// `InvalidInput`: it is something else. Otherwise of mmap(2).
    pub fn map(file: &SharedFile) -> io::Result<Self> {
        if file.bytes() != BYTES as u64 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let queue = |place: usize, at: usize, bytes: usize| {
            let cursors = file.map((place * PAGE) as u64)?;
            let words = file.map_array(at as u64, bytes / size_of::<u64>())?;
            Ok::<_, io::Error>(Queue::new(cursors, words))
        };
        Ok(Self {
            publish: queue(1, PUBLISH_AT, PUBLISH_BYTES)?,
            interest: queue(2, INTEREST_AT, INTEREST_BYTES)?,
            answers: queue(3, ANSWERS_AT, ANSWER_BYTES)?,
            cells: file.map_array(CELLS_AT as u64, CELLS)?,
            front: file.map(0)?,
        })
    }

    /// What the worker asks to be published.
    #[must_use]
    pub fn publish(&self) -> &Queue {
        &self.publish
    }

    /// What the worker tells of its cells.
    #[must_use]
    pub fn interest(&self) -> &Queue {
        &self.interest
    }

    /// What the hub answers.
    #[must_use]
    pub fn answers(&self) -> &Queue {
        &self.answers
    }

    /// The worker's, for the hub.
    #[must_use]
    pub fn to_hub(&self) -> &Bell {
        &self.front.to_hub
    }

    /// The hub's, for the worker.
    #[must_use]
    pub fn to_worker(&self) -> &Bell {
        &self.front.to_worker
    }

    /// The subscribers that a cell counts. `None`: there is no such cell.
    #[must_use]
    pub fn cell(&self, cell: u32) -> Option<&AtomicU32> {
        self.cells.get(cell as usize)
    }

    // The worker's notes.

    /// The worker has read the broadcast ring up to this position.
    pub fn note_read(&self, position: u64) {
        // Nothing follows from it but how long the hub waits.
        self.front.read.store(position, Ordering::Relaxed);
    }

    /// How far it has read.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.front.read.load(Ordering::Relaxed)
    }

    /// As [`read`](Self::read), of a life that is not mapped.
    ///
    /// # Errors
    /// `InvalidInput`: it is something else. Otherwise of mmap(2).
    pub fn read_of(file: &SharedFile) -> io::Result<u64> {
        Ok(file.map::<Front>(0)?.read.load(Ordering::Relaxed))
    }

    /// The worker is this process.
    pub fn note_process(&self, pid: u32) {
        self.front.process.store(pid, Ordering::Relaxed);
    }

    /// See [`note_process`](Self::note_process); 0: it has not come so far.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.front.process.load(Ordering::Relaxed)
    }

    /// The worker needs the hub no more.
    pub fn note_left(&self) {
        // Release: with all that it has published.
        self.front.left.store(1, Ordering::Release);
    }

    /// See [`note_left`](Self::note_left).
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.front.left.load(Ordering::Acquire) != 0
    }

    /// The worker is at work, if this is another number than before.
    pub fn note_progress(&self) {
        self.front.progress.store(self.progress().wrapping_add(1), Ordering::Relaxed);
    }

    /// See [`note_progress`](Self::note_progress).
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.front.progress.load(Ordering::Relaxed)
    }
}

/// The hub's notes, for its successor.
impl Life {
    /// The hub begins with this request. How many hubs have died while they worked on it, if
    /// `is_first`: this hub has not worked on another one of this life.
    pub(crate) fn begin_work(&self, number: u64, is_first: bool) -> u32 {
        let (working, deaths) = (&self.front.working, &self.front.deaths);
        if is_first {
            let died_on_it = working.load(Ordering::Relaxed) == number;
            let before = if died_on_it { deaths.load(Ordering::Relaxed) } else { 0 };
            deaths.store(before.saturating_add(u32::from(died_on_it)), Ordering::Relaxed);
        }
        working.store(number, Ordering::Relaxed);
        if is_first { deaths.load(Ordering::Relaxed) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_mean_the_same_memory_and_nothing_else_is_taken() {
        let file = Life::create().unwrap();
        let worker = Life::map(&file).unwrap();
        let hub = Life::from_descriptor(file.descriptor().unwrap()).unwrap();
        worker.cell(7).unwrap().store(3, Ordering::Relaxed);
        assert_eq!(hub.cell(7).unwrap().load(Ordering::Relaxed), 3);
        let end = u32::try_from(CELLS).unwrap();
        assert!(hub.cell(end - 1).is_some() && hub.cell(end).is_none());
        for (queue, other) in [
            (worker.publish(), hub.publish()),
            (worker.interest(), hub.interest()),
            (hub.answers(), worker.answers()),
        ] {
            queue.producer().push(b"one").unwrap();
            let mut found = Vec::new();
            assert_eq!(other.consumer().next(&mut found), Ok(true));
            assert_eq!(found, b"one");
        }
        worker.note_read(12);
        worker.note_progress();
        assert_eq!((hub.read(), hub.progress(), hub.has_left()), (12, 1, false));
        worker.note_process(7);
        assert_eq!(hub.process(), 7);
        worker.note_left();
        assert!(hub.has_left());
        assert_eq!(Life::read_of(&file).unwrap(), 12);
        let other = SharedFile::create("other", BYTES as u64 - 1).unwrap();
        assert!(Life::map(&other).is_err());
    }
}
