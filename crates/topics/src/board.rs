//! What the hub tells all processes, and what it sleeps on. Both are mapped before the first
//! worker is forked, so that every process has them.
//!
//! Anybody posts the semaphore. The figures lie in memory of their own, which every process but
//! the hub has mapped to read: what the master judges the hub by, no worker can write.

use chappe_sys::{Semaphore, SemaphorePlace, SharedFile, SharedMapping, shared_layout};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

shared_layout! {
    #[derive(Debug)]
    #[repr(align(64))]
    struct Call {
        semaphore: SemaphorePlace,
    }
}

shared_layout! {
    /// Each number is true by itself; together they may be a moment apart.
    #[derive(Debug)]
    #[repr(align(4096))]
    struct Page {
        rounds: AtomicU64,
        offset: AtomicU64,
        names: AtomicU64,
        patterns: AtomicU64,
        published: AtomicU64,
        skipped: AtomicU64,
        bells: AtomicU64,
        asleep: AtomicU64,
    }
}

/// The hub's board, for all.
#[derive(Clone, Debug)]
pub struct Board {
    call: Arc<SharedMapping<Call>>,
    /// Made once: a worker can write over what would tell that it is one.
    semaphore: Semaphore,
    page: Arc<SharedMapping<Page>>,
}

/// What stands on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Rounds that hubs have made: none for a while, while there is work, is a standstill.
    pub rounds: u64,
    /// The offset of the last message.
    pub offset: u64,
    /// Names with subscribers, patterns among them.
    pub names: u64,
    /// Patterns with subscribers.
    pub patterns: u64,
    /// Messages published.
    pub published: u64,
    /// Requests left out, since two hubs have died on them.
    pub skipped: u64,
    /// Times that a hub has posted a worker's send semaphore.
    pub bells: u64,
}

impl Board {
    /// A new one, and the file by which alone the figures can be [written](Pen::map).
    ///
    /// # Errors
    /// No descriptor or no memory is left, or `/proc` is not mounted.
    pub fn create() -> io::Result<(Self, SharedFile)> {
        let call: Arc<SharedMapping<Call>> = SharedMapping::create("chappe-hub")?;
        call.init_semaphore(|call| &call.semaphore, 0)?;
        let semaphore = call.semaphore(|call| &call.semaphore);
        let file = SharedFile::create("chappe-figures", size_of::<Page>() as u64)?;
        file.forbid_others()?;
        let page = file.to_read()?.map(0)?;
        Ok((Self { call, semaphore, page }, file))
    }

    /// Before a hub begins, while none sleeps: one that was killed asleep has left its mark on
    /// the semaphore, and each post would be a system call for good.
    ///
    /// # Errors
    /// None for this value.
    pub fn reset(&self) -> io::Result<()> {
        self.call.init_semaphore(|call| &call.semaphore, 0)
    }

    /// What the hub sleeps on.
    #[must_use]
    pub fn semaphore(&self) -> Semaphore {
        self.semaphore.clone()
    }

    /// Whether the hub has something to do, or is at it. A worker can write over what says that
    /// it has, but not over what says that it is.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.page.asleep.load(Relaxed) == 0 || self.semaphore.checked_value() != Some(0)
    }

    /// What stands on it.
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures {
            rounds: self.page.rounds.load(Relaxed),
            offset: self.page.offset.load(Relaxed),
            names: self.page.names.load(Relaxed),
            patterns: self.page.patterns.load(Relaxed),
            published: self.page.published.load(Relaxed),
            skipped: self.page.skipped.load(Relaxed),
            bells: self.page.bells.load(Relaxed),
        }
    }
}

/// The hub's hand, which writes the figures.
#[derive(Debug)]
pub struct Pen(Arc<SharedMapping<Page>>);

impl Pen {
    /// For the figures of the board that this file was made with.
    ///
    /// # Errors
    /// `InvalidInput`: it is something else. Otherwise of mmap(2).
    pub fn map(file: &SharedFile) -> io::Result<Self> {
        Ok(Self(file.map(0)?))
    }

    /// The hub goes to sleep, or is awake.
    pub fn note_asleep(&self, is_asleep: bool) {
        self.0.asleep.store(is_asleep.into(), Relaxed);
    }

    /// The hub has made a round: what has grown in it is added, the rest is as it is now.
    pub fn note(&self, round: Figures) {
        let Self(page) = self;
        page.offset.store(round.offset, Relaxed);
        page.names.store(round.names, Relaxed);
        page.patterns.store(round.patterns, Relaxed);
        // One hub at a time writes them.
        let add = |cell: &AtomicU64, n: u64| {
            cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed);
        };
        add(&page.rounds, 1);
        add(&page.published, round.published);
        add(&page.skipped, round.skipped);
        add(&page.bells, round.bells);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_hub_notes_its_successor_goes_on_with() {
        let (board, file) = Board::create().unwrap();
        let figures =
            |offset, names, published| Figures { offset, names, published, ..Figures::default() };
        Pen::map(&file).unwrap().note(figures(3, 7, 2));
        Pen::map(&file).unwrap().note(Figures { bells: 1, ..figures(4, 5, 1) });
        let expected = Figures { rounds: 2, bells: 1, ..figures(4, 5, 3) };
        assert_eq!(board.figures(), expected);
        let other = SharedFile::create("other", 1).unwrap();
        assert!(Pen::map(&other).is_err());
    }

    #[test]
    fn a_hub_has_work_while_it_is_awake_or_called() {
        let (board, file) = Board::create().unwrap();
        let pen = Pen::map(&file).unwrap();
        assert!(board.has_work(), "it has yet to begin");
        pen.note_asleep(true);
        assert!(!board.has_work());
        board.semaphore().post();
        assert!(board.has_work());
        board.semaphore().wait();
        assert!(!board.has_work());
        pen.note_asleep(false);
        assert!(board.has_work());
    }

    #[test]
    fn a_new_hub_finds_no_permit_of_the_one_before() {
        let (board, _) = Board::create().unwrap();
        let semaphore = board.semaphore();
        semaphore.post();
        board.reset().unwrap();
        assert_eq!(semaphore.value(), 0);
        semaphore.post();
        assert_eq!(board.semaphore().value(), 1, "it is the same one");
    }
}
