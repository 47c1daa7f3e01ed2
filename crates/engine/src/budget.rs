//! A bound on bytes over all connections of a worker, and the queue of those that
//! wait for room.
//!
//! Used twice: for what was received and is not handled, and for what is queued and
//! not sent. The level is one atomic, so that a message costs no lock.
//!
//! "Is there room" and "wake me when there is" must be one decision, or a release
//! between the two would wake nobody. A waiter first makes itself known and then adds
//! zero to the level; a release first takes its bytes off the level and then looks for
//! waiters. Both touch the level by a read-modify-write, and these have one order: if
//! the waiter's comes first, the release sees the waiter; if the release's comes first,
//! the waiter sees the room.

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;

/// Something that waits until there is room again, and is resumed once.
pub trait Resume: Send + Sync {
    /// Called without any lock held. Must not block. May be called without need.
    fn resume(self: Arc<Self>);
}

/// Whether a budget still has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Within the bound.
    Free,
    /// Beyond the bound: stop producing.
    Exhausted,
}

/// Bytes held by all connections of a worker together.
pub struct Budget {
    max: usize,
    used: AtomicUsize,
    /// The highest level since the last [`Budget::take_peak`].
    peak: AtomicUsize,
    /// The largest charge that was refused since the last [`Budget::take_shortage`].
    refused: AtomicUsize,
    /// Whether `waiting` has anybody; set before a waiter looks at the level.
    has_waiting: AtomicBool,
    /// Resumed when the level is within the bound again.
    waiting: Mutex<Vec<Arc<dyn Resume>>>,
}

impl Budget {
    /// An empty budget of `max` bytes.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            max,
            used: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            has_waiting: AtomicBool::new(false),
            waiting: Mutex::new(Vec::new()),
        }
    }

    /// Adds bytes that are held already: never refuses, but says whether there is room.
    pub fn charge(&self, bytes: usize) -> Room {
        let used = self.used.fetch_add(bytes, Ordering::AcqRel) + bytes;
        self.note_peak(used);
        self.room_at(used)
    }

    /// Adds bytes that nobody holds yet, if they fit; into an empty budget they
    /// always do. Returns whether they did.
    #[must_use]
    pub fn try_charge(&self, bytes: usize) -> bool {
        let fits = |used: usize| (used == 0 || used + bytes <= self.max).then_some(used + bytes);
        match self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits) {
            Ok(before) => {
                self.note_peak(before + bytes);
                true
            }
            Err(_) => {
                self.refused.fetch_max(bytes, Ordering::AcqRel);
                false
            }
        }
    }

    /// How many bytes would have to go so that the bound holds and the largest
    /// refused charge fits. Forgets the refusals.
    #[must_use]
    pub fn take_shortage(&self) -> usize {
        let refused = self.refused.swap(0, Ordering::AcqRel);
        let used = self.used();
        (used + refused).saturating_sub(self.max).min(used)
    }

    /// Takes bytes off, and resumes all waiters if there is room now.
    #[inline]
    pub fn release(&self, bytes: usize) {
        if bytes > 0 {
            self.take_off(bytes);
        }
    }

    fn take_off(&self, bytes: usize) {
        let before = self.used.fetch_sub(bytes, Ordering::AcqRel);
        assert!(before >= bytes, "released only what was charged");
        // Room at the bound and not below it: the release that brings the level back
        // to its bound may be the last one for a long time.
        if before - bytes <= self.max && self.has_waiting.load(Ordering::Acquire) {
            self.resume_all();
        }
    }

    fn resume_all(&self) {
        let waiting = {
            let mut waiting = self.waiting.lock();
            self.has_waiting.store(false, Ordering::Release);
            std::mem::take(&mut *waiting)
        };
        for waiter in waiting {
            waiter.resume();
        }
    }

    /// Queues a waiter until there is room. If there is some already, it is not queued
    /// and the caller goes on by itself.
    #[must_use]
    pub fn wait_for_room(&self, waiter: Arc<dyn Resume>) -> Room {
        let mut waiting = self.waiting.lock();
        self.has_waiting.store(true, Ordering::Release);
        if self.room_at(self.used.fetch_add(0, Ordering::AcqRel)) == Room::Free {
            self.has_waiting.store(!waiting.is_empty(), Ordering::Release);
            return Room::Free;
        }
        waiting.push(waiter);
        Room::Exhausted
    }

    /// Whether the level is within the bound.
    #[must_use]
    pub fn room(&self) -> Room {
        self.room_at(self.used())
    }

    /// By how many bytes the level is above the bound.
    #[must_use]
    pub fn excess(&self) -> usize {
        self.used().saturating_sub(self.max)
    }

    /// The highest level since this was asked last.
    #[must_use]
    pub fn take_peak(&self) -> usize {
        let used = self.used();
        self.peak.swap(used, Ordering::Relaxed).max(used)
    }

    /// The bound.
    #[must_use]
    pub fn max(&self) -> usize {
        self.max
    }

    /// Bytes held now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    fn room_at(&self, used: usize) -> Room {
        if used > self.max { Room::Exhausted } else { Room::Free }
    }

    /// A figure for the operator and the allocator: it orders nothing.
    fn note_peak(&self, used: usize) {
        if used > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(used, Ordering::Relaxed);
        }
    }
}

impl std::fmt::Debug for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Budget").field("max", &self.max).field("used", &self.used()).finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    struct Count(AtomicUsize);

    impl Resume for Count {
        fn resume(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn room_ends_one_byte_beyond_the_bound() {
        let budget = Budget::new(800);
        assert_eq!(budget.charge(800), Room::Free);
        assert_eq!(budget.charge(1), Room::Exhausted);
        assert_eq!(budget.excess(), 1);
        budget.release(1);
        assert_eq!((budget.room(), budget.used()), (Room::Free, 800));
    }

    #[test]
    fn what_is_not_held_yet_fits_to_the_byte_or_is_refused() {
        let budget = Budget::new(800);
        assert!(budget.try_charge(900), "one message always fits");
        assert_eq!(budget.take_shortage(), 100);
        budget.release(900);
        assert!(budget.try_charge(300) && budget.try_charge(500));
        assert!(!budget.try_charge(1) && !budget.try_charge(50) && !budget.try_charge(2));
        assert_eq!((budget.used(), budget.take_shortage(), budget.take_shortage()), (800, 50, 0));
        budget.release(800);
        assert_eq!((budget.take_peak(), budget.take_peak()), (900, 0));
    }

    #[test]
    fn a_waiter_is_resumed_once_as_soon_as_the_bound_holds() {
        let budget = Budget::new(800);
        let waiter = Arc::new(Count(AtomicUsize::new(0)));
        assert_eq!(budget.wait_for_room(waiter.clone()), Room::Free);
        assert_eq!(budget.charge(801), Room::Exhausted);
        assert_eq!(budget.wait_for_room(waiter.clone()), Room::Exhausted);
        assert_eq!(budget.charge(1), Room::Exhausted);
        budget.release(1);
        assert_eq!(waiter.0.load(Ordering::Relaxed), 0, "801 is above the bound");
        budget.release(1);
        assert_eq!(waiter.0.load(Ordering::Relaxed), 1);
        budget.release(800);
        assert_eq!(waiter.0.load(Ordering::Relaxed), 1);
    }
}
