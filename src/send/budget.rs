//! A bound on bytes over all connections of a worker, and who waits for room.
//!
//! Used twice: for what was received and is not handled, and for what is
//! queued and not sent. A lock and not an atomic, since "is there room" and
//! "wake me when there is" must be one decision: else a release between the
//! two wakes nobody. It is taken once a turn and once a flush, not per message.

use crate::sync::Mutex;
use crate::sync::fault::{Fault, is_planted};
use std::sync::Arc;

/// Something that waits until there is room again, and is told once.
pub trait Resume: Send + Sync {
    /// Called without any lock held. Must not block.
    fn resume(self: Arc<Self>);
}

/// Whether a budget still has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Go on.
    Free,
    /// The bound is passed: stop producing.
    Exhausted,
}

/// Bytes held by all connections of a worker together.
pub struct Budget {
    max: usize,
    state: Mutex<State>,
}

struct State {
    used: usize,
    /// The most that was held since the last [`Budget::take_peak`].
    peak: usize,
    /// The most that was refused since the last [`Budget::take_shortage`].
    refused: usize,
    /// Told when `used` is within the bound again.
    waiting: Vec<Arc<dyn Resume>>,
}

impl Budget {
    /// An empty budget of `max` bytes.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { max, state: Mutex::new(State { used: 0, peak: 0, refused: 0, waiting: Vec::new() }) }
    }

    /// Adds bytes that are held already: never refuses, but says if it is enough.
    pub fn charge(&self, bytes: usize) -> Room {
        let mut state = self.state.lock();
        state.hold(bytes);
        if state.used > self.max { Room::Exhausted } else { Room::Free }
    }

    /// Adds bytes that nobody holds yet, if they fit; into an empty budget they
    /// always do. Whether they did.
    #[must_use]
    pub fn try_charge(&self, bytes: usize) -> bool {
        let mut state = self.state.lock();
        let fits = state.used == 0 || state.used + bytes <= self.max;
        if fits {
            state.hold(bytes);
        } else {
            state.refused = state.refused.max(bytes);
        }
        fits
    }

    /// How many bytes would have to go so that the bound holds and the largest
    /// refused charge fits. Refusals before are forgotten.
    #[must_use]
    pub fn take_shortage(&self) -> usize {
        let mut state = self.state.lock();
        let refused = std::mem::take(&mut state.refused);
        (state.used + refused).saturating_sub(self.max).min(state.used)
    }

    /// Takes bytes off, and tells all who wait if there is room now.
    pub fn release(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let woken = {
            let mut state = self.state.lock();
            state.used = state.used.checked_sub(bytes).expect("released only what was charged");
            // Room at the bound and not below it: whoever brings the total back
            // to its bound may be the last to release anything for a long time.
            if state.used > self.max { Vec::new() } else { std::mem::take(&mut state.waiting) }
        };
        for waiter in woken {
            waiter.resume();
        }
    }

    /// Waits for room, unless there is some already: then the waiter comes
    /// back unused and the caller goes on by itself.
    #[must_use]
    pub fn wait_for_room(&self, waiter: Arc<dyn Resume>) -> Room {
        let mut state = self.state.lock();
        if state.used <= self.max {
            return Room::Free;
        }
        if is_planted(Fault::WaitOutsideLock) {
            drop(state);
            state = self.state.lock();
        }
        state.waiting.push(waiter);
        Room::Exhausted
    }

    /// Whether the bound is passed, and by how much: bytes above it.
    #[must_use]
    pub fn excess(&self) -> usize {
        self.state.lock().used.saturating_sub(self.max)
    }

    /// The most that was held since this was asked last.
    #[must_use]
    pub fn take_peak(&self) -> usize {
        let mut state = self.state.lock();
        let used = state.used;
        std::mem::replace(&mut state.peak, used)
    }

    /// The bound.
    #[must_use]
    pub fn max(&self) -> usize {
        self.max
    }

    /// Bytes held now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.state.lock().used
    }
}

impl State {
    fn hold(&mut self, bytes: usize) {
        self.used += bytes;
        self.peak = self.peak.max(self.used);
    }
}

impl std::fmt::Debug for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Budget").field("max", &self.max).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

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
        assert_eq!((budget.charge(0), budget.used()), (Room::Free, 800));
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
    fn a_waiter_is_told_once_as_soon_as_the_bound_holds() {
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
