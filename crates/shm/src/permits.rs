//! Connection permits: a counting semaphore that all workers take from, and how
//! the master finds out what a dead one had.
//!
//! A worker can be killed right before or right after its `try_wait`, and no order
//! of two words in memory tells which. So the event loop brackets each operation:
//!
//! ```text
//! sequence odd │ try_wait, or pay debt, or post │ held ± 1 │ sequence even
//! ```
//!
//! While every live worker's sequence is even and unchanged, the sum
//! `value + Σ held(live) + (what the dead had) = limit + debt` holds exactly, and
//! so the master can solve it for the dead. `Permits` belongs to the event loop;
//! `settle` and `set_limit` to the master. Neither ever sleeps.
//!
//! Workers take and give back by operations that panic where a correct program cannot
//! come. The master must live on whatever a worker has written over: it sums without
//! overflow, uses the `checked_` operations, and notes a refusal (`Zone::take_damage`).

use std::sync::atomic::{AtomicU32, Ordering, fence};

use chappe_sys::crash::step;
use chappe_sys::{Semaphore, Shared};

use super::layout::{EventLoopLine, PermitPool};
use super::zone::Zone;

/// Where all permits are, at a moment at which no live worker was moving one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PermitBooks {
    /// How many connections all workers may have together.
    pub limit: u64,
    /// Lent permits that are to vanish when they come back.
    pub debt: u64,
    /// What the semaphore has.
    pub free: u64,
    /// What the workers hold that are not freed.
    pub held: u64,
}

impl PermitBooks {
    /// What is in no account: dead workers held it.
    #[must_use]
    pub fn missing(&self) -> u64 {
        (self.limit + self.debt).saturating_sub(self.free.saturating_add(self.held))
    }
}

/// A worker's access to the permits; its event loop has the only one.
#[derive(Debug)]
pub struct Permits {
    own: Shared<EventLoopLine>,
    pool: Shared<PermitPool>,
    permits: Semaphore,
}

impl Permits {
    pub(super) fn new(
        own: Shared<EventLoopLine>,
        pool: Shared<PermitPool>,
        permits: Semaphore,
    ) -> Self {
        Self { own, pool, permits }
    }

    /// Takes the permit for one more connection, if there is one.
    pub fn try_take(&mut self) -> bool {
        self.enter();
        let taken = self.take();
        if taken {
            self.set_held(self.held() + 1);
        }
        self.leave();
        taken
    }

    /// Gives back the permit of a closed connection: to the debt that a lowered
    /// limit left, or to the semaphore.
    pub fn give_back(&mut self) {
        debug_assert!(self.held() > 0, "a permit is given back once");
        self.enter();
        self.put();
        self.set_held(self.held().saturating_sub(1));
        self.leave();
    }

    /// How many this worker has.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.own.held.load(Ordering::Relaxed)
    }

    // The steps of the bracket, one by one, so that the tests can be killed
    // between any two of them.

    fn enter(&self) {
        let sequence = self.own.sequence.load(Ordering::Relaxed);
        step("permits: outside");
        self.own.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        step("permits: inside");
        // Whoever sees what follows sees the odd number too: pairs with the
        // acquire fence in `permit_books`.
        fence(Ordering::Release);
    }

    fn take(&self) -> bool {
        let taken = self.permits.try_wait();
        step(if taken { "permits: taken" } else { "permits: none" });
        taken
    }

    fn put(&self) {
        if pay_debt(&self.pool.debt) {
            step("permits: debt paid");
        } else {
            self.permits.post();
            step("permits: posted");
        }
    }

    fn set_held(&self, held: u64) {
        self.own.held.store(held, Ordering::Relaxed);
        step("permits: held changed");
    }

    fn leave(&self) {
        let sequence = self.own.sequence.load(Ordering::Relaxed);
        // Release: whoever sees this even number sees all of the operation.
        self.own.sequence.store(sequence.wrapping_add(1), Ordering::Release);
        step("permits: left");
    }
}

/// Takes one off the debt, if there is any. Event loops and the master compete.
fn pay_debt(debt: &AtomicU32) -> bool {
    debt.fetch_update(Ordering::AcqRel, Ordering::Acquire, |owed| owed.checked_sub(1)).is_ok()
}

impl Zone {
    /// Gives back what dead workers held, after their slots were freed. Returns how
    /// many permits that were, or `None` when a live worker was just taking or
    /// giving back one: the master tries again a little later. Master only.
    pub fn settle(&self) -> Option<u32> {
        let lost = u32::try_from(self.permit_books()?.missing()).unwrap_or(u32::MAX);
        for returned in 0..lost {
            step("settle: before a permit");
            if self.lend_again().is_none() {
                return Some(returned);
            }
            step("settle: after a permit");
        }
        Some(lost)
    }

    /// One permit more for the living, or one less of the debt. `None` if the semaphore
    /// has no room for it.
    fn lend_again(&self) -> Option<()> {
        if pay_debt(&self.layout().permit_pool.debt) {
            return Some(());
        }
        self.sound(self.connection_permits().checked_post())
    }

    /// Where the permits are, if no live worker was inside its bracket from the first to
    /// the last of these reads. Anybody may look.
    #[must_use]
    pub fn permit_books(&self) -> Option<PermitBooks> {
        let pool = &self.layout().permit_pool;
        let live: Vec<(&EventLoopLine, u64)> = self
            .live_slots()
            .map(|index| &self.layout().slots[index].event_loop)
            // Acquire: an even number brings all of its operation with it.
            .map(|line| (line, line.sequence.load(Ordering::Acquire)))
            .collect();
        if live.iter().any(|(_, sequence)| sequence % 2 == 1) {
            return None;
        }
        let held = live.iter().map(|(line, _)| line.held.load(Ordering::Relaxed));
        let books = PermitBooks {
            limit: u64::from(pool.limit.load(Ordering::Relaxed)),
            debt: u64::from(pool.debt.load(Ordering::Relaxed)),
            free: u64::from(self.sound(self.connection_permits().checked_value())?),
            held: held.fold(0, u64::saturating_add),
        };
        // If one of the reads above saw a later operation of a live worker, this
        // fence makes its odd number visible to the reads below.
        fence(Ordering::Acquire);
        let unchanged =
            live.iter().all(|(line, sequence)| line.sequence.load(Ordering::Relaxed) == *sequence);
        unchanged.then_some(books)
    }

    /// Changes how many connections all workers may have together. Upwards it holds
    /// at once; downwards free permits vanish now, and lent ones when they come
    /// back. Master only.
    ///
    /// # Panics
    /// Beyond [`Semaphore::VALUE_MAX`].
    pub fn set_limit(&self, limit: u32) {
        assert!(limit <= Semaphore::VALUE_MAX, "a limit of {limit} is no semaphore's");
        let pool = &self.layout().permit_pool;
        let before = pool.limit.load(Ordering::Relaxed);
        step("limit: before");
        pool.limit.store(limit, Ordering::Relaxed);
        step("limit: stored");
        for _ in before..limit {
            // A debt is a permit that is still lent: forgiving it is the cheapest
            // way to lend one more.
            if self.lend_again().is_none() {
                return;
            }
        }
        if limit < before {
            pool.debt.fetch_add(before - limit, Ordering::AcqRel);
            step("limit: debt made");
            let permits = self.connection_permits();
            while pool.debt.load(Ordering::Acquire) > 0
                && self.sound(permits.checked_try_wait()) == Some(true)
            {
                step("limit: permit taken");
                if !pay_debt(&pool.debt) {
                    // A worker paid the last of it in between.
                    self.sound(permits.checked_post());
                    break;
                }
            }
        }
    }

    /// How many connections all workers may have together.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.layout().permit_pool.limit.load(Ordering::Relaxed)
    }

    /// How many lent permits are to vanish when they come back.
    #[must_use]
    pub fn debt(&self) -> u32 {
        self.layout().permit_pool.debt.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Slot, SlotState};
    use std::sync::Arc;

    /// Operations that a worker can be in the middle of when it is killed.
    #[derive(Clone, Copy, Debug)]
    enum Operation {
        Take,
        GiveBack,
    }

    const STEPS: usize = 4;

    /// The bracket up to and with step `killed_after`, and no further.
    fn run_until_killed(permits: &Permits, operation: Operation, killed_after: usize) {
        let mut taken = true;
        let steps: [&mut dyn FnMut(&mut bool); STEPS] = [
            &mut |_| permits.enter(),
            &mut |taken| match operation {
                Operation::Take => *taken = permits.take(),
                Operation::GiveBack => permits.put(),
            },
            &mut |taken| match operation {
                Operation::Take if *taken => permits.set_held(permits.held() + 1),
                Operation::Take => {}
                Operation::GiveBack => permits.set_held(permits.held() - 1),
            },
            &mut |_| permits.leave(),
        ];
        for step in steps.into_iter().take(killed_after) {
            step(&mut taken);
        }
    }

    fn spawn(zone: &Arc<Zone>, held: u32) -> (Slot, Permits) {
        let slot = zone.claim_slot(0, 1).expect("a free slot");
        let mut permits = slot.permits();
        for _ in 0..held {
            assert!(permits.try_take());
        }
        (slot, permits)
    }

    /// `limit + debt` is what the semaphore has and what the living hold.
    fn assert_sum(zone: &Zone, context: &str) {
        let books = zone.permit_books().expect("quiet");
        assert_eq!(books.limit + books.debt, books.free + books.held, "{context}: {books:?}");
    }

    const OPERATIONS: [Operation; 2] = [Operation::Take, Operation::GiveBack];
    /// Limits before and after: no debt, some debt, a debt smaller and larger than
    /// what the dead have, and no permit left to take.
    const LIMITS: [(u32, u32); 5] = [(20, 20), (20, 11), (20, 6), (20, 1), (9, 9)];

    #[test]
    fn settle_returns_what_one_worker_held_whenever_it_was_killed() {
        for (before, after) in LIMITS {
            for operation in OPERATIONS {
                for killed_after in 0..=STEPS {
                    let zone = Zone::create(before).unwrap();
                    let (alive, mut living) = spawn(&zone, 2);
                    let (dead, dying) = spawn(&zone, 5);
                    zone.set_limit(after);
                    run_until_killed(&dying, operation, killed_after);
                    zone.free(&dead);

                    let context = format!("{before}→{after} {operation:?} at {killed_after}");
                    let lost = zone.settle().expect("quiet");
                    assert!((4..=6).contains(&lost), "{context}: {lost}");
                    assert_sum(&zone, &context);
                    assert_eq!(zone.settle(), Some(0), "{context}: twice");
                    living.give_back();
                    living.give_back();
                    assert_sum(&zone, &context);
                    assert_eq!(zone.debt(), 0, "{context}");
                    assert_eq!(zone.connection_permits().value(), after, "{context}");
                    assert_eq!(alive.state(), SlotState::Starting);
                }
            }
        }
    }

    #[test]
    fn settle_returns_what_two_workers_held_whenever_they_were_killed() {
        for (before, after) in LIMITS {
            for (first, second) in OPERATIONS.iter().flat_map(|a| OPERATIONS.map(|b| (*a, b))) {
                for (first_step, second_step) in
                    (0..=STEPS).flat_map(|a| (0..=STEPS).map(move |b| (a, b)))
                {
                    let zone = Zone::create(before).unwrap();
                    let (_alive, mut living) = spawn(&zone, 1);
                    let (one, one_permits) = spawn(&zone, 3);
                    let (two, two_permits) = spawn(&zone, 4);
                    zone.set_limit(after);
                    run_until_killed(&one_permits, first, first_step);
                    run_until_killed(&two_permits, second, second_step);

                    let context = format!(
                        "{before}→{after} {first:?} at {first_step}, {second:?} at {second_step}"
                    );
                    // The second death is not known yet: the sum must wait for it
                    // if it died inside the bracket, and be right if not.
                    zone.free(&one);
                    let inside = (1..STEPS).contains(&second_step);
                    assert_eq!(zone.settle().is_none(), inside, "{context}");
                    zone.free(&two);
                    assert!(zone.settle().is_some(), "{context}");
                    assert_sum(&zone, &context);
                    living.give_back();
                    assert_eq!(zone.debt(), 0, "{context}");
                    assert_eq!(zone.connection_permits().value(), after, "{context}");
                }
            }
        }
    }

    #[test]
    fn settle_waits_while_a_live_worker_is_inside() {
        let zone = Zone::create(4).unwrap();
        let (_alive, living) = spawn(&zone, 1);
        for step in 1..STEPS {
            run_until_killed(&living, Operation::Take, step);
            assert_eq!(zone.settle(), None);
            // Out of the bracket again, whatever the step was.
            if step < 2 {
                assert!(living.take());
            }
            if step < 3 {
                living.set_held(living.held() + 1);
            }
            living.leave();
            assert_eq!(zone.settle(), Some(0));
        }
    }

    #[test]
    fn no_permit_beyond_the_limit() {
        let zone = Zone::create(2).unwrap();
        let (_one, mut first) = spawn(&zone, 1);
        let (_two, mut second) = spawn(&zone, 1);
        assert!(!first.try_take());
        second.give_back();
        assert!(first.try_take());
        assert!(!second.try_take());
    }

    #[test]
    fn a_lowered_limit_is_paid_by_closing_and_a_raised_one_forgives_the_rest() {
        let zone = Zone::create(10).unwrap();
        let (_slot, mut permits) = spawn(&zone, 8);
        zone.set_limit(3);
        assert_eq!((zone.debt(), zone.connection_permits().value()), (5, 0));
        permits.give_back();
        assert_eq!(zone.debt(), 4);
        assert!(!permits.try_take());
        zone.set_limit(9);
        assert_eq!((zone.debt(), zone.connection_permits().value()), (0, 2));
        assert_sum(&zone, "after the change back");
    }

    /// A worker that was taken over has written into the zone what it liked.
    #[test]
    fn the_master_lives_on_whatever_the_books_say() {
        let full = || Zone::create(Semaphore::VALUE_MAX).unwrap();
        let zone = full();
        zone.layout().permit_pool.limit.store(u32::MAX, Ordering::Relaxed);
        assert_eq!(zone.settle(), Some(0), "there is no room for what seems to be missing");
        assert!(zone.take_damage(), "and it is noted");
        assert_eq!(zone.settle(), Some(0));
        assert!(!zone.take_damage(), "once");

        let zone = full();
        zone.layout().permit_pool.limit.store(0, Ordering::Relaxed);
        zone.set_limit(10);
        assert!(zone.take_damage());

        let zone = Zone::create(10).unwrap();
        let ((_one, first), (_two, second)) = (spawn(&zone, 1), spawn(&zone, 1));
        first.set_held(u64::MAX);
        second.set_held(u64::MAX);
        assert_eq!(zone.settle(), Some(0));
        assert!(!zone.take_damage(), "nothing was refused");
    }

    #[test]
    #[should_panic(expected = "is no semaphore's")]
    fn a_limit_that_no_semaphore_can_have_is_a_fault_of_ours() {
        Zone::create(1).unwrap().set_limit(Semaphore::VALUE_MAX + 1);
    }
}
