//! Connection permits: a counting semaphore that all workers take from, and how
//! the master finds out what a dead one had.
//!
//! A worker can be killed right before or right after its `try_wait`, and no order
//! of two words in memory tells which. So the event loop brackets each operation:
//!
//! ```text
//! sequence odd │ try_wait or take a credit, post or pay a debt │ held ± 1 │ sequence even
//! ```
//!
//! While every live worker's sequence is even and unchanged, the sum
//! `value + balance + Σ held(live) + (what the dead had) = limit` holds exactly, and
//! so the master can solve it for the dead. `Permits` belongs to the event loop;
//! `settle` and `set_limit` to the master. Neither ever sleeps.
//!
//! **The master never posts.** The C library keeps in a `sem_t` whether somebody sleeps and
//! how to wake him, and believes it: `sem_post` of glibc 2.36 makes the futex call that the
//! words of the semaphore say, so a worker that overwrites them can abort the master (an
//! operation that the kernel does not know) or put it to sleep (FUTEX_WAIT). What the master
//! gives back goes into the *balance* beside the semaphore, by one addition however much it
//! is; a worker that finds the semaphore empty takes from there. The balance is negative
//! while there is a debt: permits that were lent under a higher limit, which vanish when
//! they come back. Of the semaphore the master uses only what makes no system call:
//! `sem_trywait` and `sem_getvalue`.
//!
//! The limit and who is alive are the master's own figures. It sums without overflow, believes
//! no worker to hold more than it may, and where the sum can't be right it makes it right and
//! notes the damage (`Zone::take_damage`).

use std::sync::atomic::{AtomicI64, Ordering, fence};

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
    /// What workers can take: the semaphore's value, and the credit beside it.
    pub free: u64,
    /// The credit alone: what the master has given back, and nobody has taken since.
    pub credit: u64,
    /// What the workers hold that are not freed.
    pub held: u64,
}

/// What the worker in each slot holds, by the slot's index.
pub type PermitShares = Vec<(usize, u64)>;

impl PermitBooks {
    /// What is in no account, since dead workers held it. Negative when there is more than
    /// the limit, which no correct program comes to.
    #[must_use]
    pub fn missing(&self) -> i64 {
        let sum = |one: u64, two: u64| i64::try_from(one.saturating_add(two)).unwrap_or(i64::MAX);
        sum(self.limit, self.debt).saturating_sub(sum(self.free, self.held))
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
    /// limit left, or to the semaphore. True if it was posted to the semaphore.
    pub fn give_back(&mut self) -> bool {
        debug_assert!(self.held() > 0, "a permit is given back once");
        self.enter();
        let is_posted = self.put();
        self.set_held(self.held().saturating_sub(1));
        self.leave();
        is_posted
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
        // A thread that sees what follows sees the odd number too: pairs with the
        // acquire fence in `permit_books`.
        fence(Ordering::Release);
    }

    fn take(&self) -> bool {
        let taken = self.permits.try_wait() || take_credit(&self.pool.balance);
        step(if taken { "permits: taken" } else { "permits: none" });
        taken
    }

    fn put(&self) -> bool {
        let pays_debt = pay_debt(&self.pool.balance);
        if pays_debt {
            step("permits: debt paid");
        } else {
            self.permits.post();
            step("permits: posted");
        }
        !pays_debt
    }

    fn set_held(&self, held: u64) {
        self.own.held.store(held, Ordering::Relaxed);
        step("permits: held changed");
    }

    fn leave(&self) {
        let sequence = self.own.sequence.load(Ordering::Relaxed);
        // Release: a thread that sees this even number sees all of the operation.
        self.own.sequence.store(sequence.wrapping_add(1), Ordering::Release);
        step("permits: left");
    }
}

/// Takes one of the permits beside the semaphore, if there is any.
fn take_credit(balance: &AtomicI64) -> bool {
    let take = |balance: i64| (balance > 0).then(|| balance - 1);
    balance.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok()
}

/// Takes one off the debt, if there is any. Event loops and the master compete.
fn pay_debt(balance: &AtomicI64) -> bool {
    let pay = |balance: i64| (balance < 0).then(|| balance + 1);
    balance.fetch_update(Ordering::AcqRel, Ordering::Acquire, pay).is_ok()
}

impl Zone {
    /// Gives back what dead workers held, after their slots were freed. Returns how
    /// many permits that were, or `None` when a live worker was just taking or
    /// giving back one: the master tries again a little later. Master only.
    pub fn settle(&self) -> Option<u32> {
        let ((books, _), limit_max) = self.own_books()?;
        let missing = books.missing();
        match u32::try_from(missing) {
            Ok(lost) if lost <= limit_max && self.connection_permits().is_intact() => {
                step("settle: before the permits");
                self.change_balance(missing);
                step("settle: after the permits");
                Some(lost)
            }
            // Somebody has written over the figures: they begin again, from those that
            // are the master's and what the living say that they hold.
            _ => {
                self.parts().own.is_damaged = true;
                self.begin_again(&books);
                Some(0)
            }
        }
    }

    /// Empties the semaphore, and makes the balance what the workers do not hold.
    fn begin_again(&self, books: &PermitBooks) {
        let emptied = self.mapping().init_semaphore(|layout| &layout.permit_pool.permits, 0);
        emptied.expect("every semaphore may have no permit");
        let held = i64::try_from(books.held).unwrap_or(i64::MAX);
        let limit = i64::try_from(books.limit).unwrap_or(i64::MAX);
        self.layout().permit_pool.balance.store(limit.saturating_sub(held), Ordering::Release);
    }

    fn change_balance(&self, by: i64) {
        // Wraps around, which only a balance that was overwritten can come to.
        self.layout().permit_pool.balance.fetch_add(by, Ordering::AcqRel);
    }

    /// Where the permits are, and what the worker in each slot holds of
    /// [`PermitBooks::held`], if no live worker was inside its bracket from the first to
    /// the last of these reads. Anybody may look.
    #[must_use]
    pub fn permit_books(&self) -> Option<(PermitBooks, PermitShares)> {
        let limit = self.limit();
        let live = self.live_slots().map(|index| (index, u64::MAX)).collect();
        self.books_of(limit, live)
    }

    /// As [`permit_books`](Self::permit_books), by the master's own figures. Master only.
    #[must_use]
    pub fn own_permit_books(&self) -> Option<(PermitBooks, PermitShares)> {
        self.own_books().map(|(books, _)| books)
    }

    /// With the highest limit that there ever was.
    fn own_books(&self) -> Option<((PermitBooks, PermitShares), u32)> {
        let (limit, limit_max, live) = {
            let own = &self.parts().own;
            let live = own.claims.iter().map(|(&index, claim)| (index, claim.held_max)).collect();
            (own.limit, own.limit_max, live)
        };
        Some((self.books_of(limit, live)?, limit_max))
    }

    /// `live`: the slots of the workers that live, each with the most that it can hold.
    fn books_of(&self, limit: u32, live: Vec<(usize, u64)>) -> Option<(PermitBooks, PermitShares)> {
        let line_of = |index: usize| &self.layout().slots[index].event_loop;
        // Acquire: an even number brings all of its operation with it.
        let sequence_of =
            |(index, _): &(usize, u64)| (*index, line_of(*index).sequence.load(Ordering::Acquire));
        let sequences: Vec<(usize, u64)> = live.iter().map(sequence_of).collect();
        if sequences.iter().any(|(_, sequence)| sequence % 2 == 1) {
            return None;
        }
        let held_by = |(index, held_max): (usize, u64)| {
            (index, line_of(index).held.load(Ordering::Relaxed).min(held_max))
        };
        let shares: PermitShares = live.into_iter().map(held_by).collect();
        let balance = self.layout().permit_pool.balance.load(Ordering::Relaxed);
        let credit = u64::try_from(balance).unwrap_or(0);
        let books = PermitBooks {
            limit: u64::from(limit),
            debt: if balance < 0 { balance.unsigned_abs() } else { 0 },
            free: u64::from(self.sound(self.connection_permits().checked_value())?)
                .saturating_add(credit),
            credit,
            held: shares.iter().map(|(_, held)| *held).fold(0, u64::saturating_add),
        };
        // If one of the reads above saw a later operation of a live worker, this
        // fence makes its odd number visible to the reads below.
        fence(Ordering::Acquire);
        let is_unchanged = |(index, sequence): &(usize, u64)| {
            line_of(*index).sequence.load(Ordering::Relaxed) == *sequence
        };
        sequences.iter().all(is_unchanged).then_some((books, shares))
    }

    /// Changes how many connections all workers may have together. Upwards it holds
    /// at once; downwards free permits vanish now, and lent ones when they come
    /// back. Master only.
    ///
    /// # Panics
    /// Beyond [`Semaphore::VALUE_MAX`].
    pub fn set_limit(&self, limit: u32) {
        assert!(limit <= Semaphore::VALUE_MAX, "a limit of {limit} is no semaphore's");
        let before = {
            let own = &mut self.parts().own;
            own.limit_max = own.limit_max.max(limit);
            std::mem::replace(&mut own.limit, limit)
        };
        step("limit: before");
        self.layout().permit_pool.limit.store(limit, Ordering::Relaxed);
        step("limit: stored");
        self.change_balance(i64::from(limit) - i64::from(before));
        step("limit: balance changed");
        let balance = &self.layout().permit_pool.balance;
        // What is free pays the debt. A permit too many, since a worker has paid the last
        // of it in between, is a credit.
        for _ in limit..before {
            if balance.load(Ordering::Acquire) >= 0
                || self.sound(self.connection_permits().checked_try_wait()) != Some(true)
            {
                break;
            }
            step("limit: permit taken");
            self.change_balance(1);
        }
    }

    /// How many connections all workers may have together.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.layout().permit_pool.limit.load(Ordering::Relaxed)
    }

    /// How many lent permits are to vanish when they come back.
    #[must_use]
    pub fn debt(&self) -> u64 {
        let balance = self.layout().permit_pool.balance.load(Ordering::Relaxed);
        if balance < 0 { balance.unsigned_abs() } else { 0 }
    }

    /// How many permits workers can take: the semaphore's value, and the credit beside it.
    #[must_use]
    pub fn free_permits(&self) -> u32 {
        let value = i64::from(self.connection_permits().checked_value().unwrap_or(0));
        let balance = self.layout().permit_pool.balance.load(Ordering::Relaxed).max(0);
        u32::try_from(value.saturating_add(balance)).unwrap_or(u32::MAX)
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
                Operation::GiveBack => *taken = permits.put(),
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
        let (books, _) = zone.permit_books().expect("quiet");
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
                    assert_eq!(zone.free_permits(), after, "{context}");
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
                    assert_eq!(zone.free_permits(), after, "{context}");
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
        assert_eq!((zone.debt(), zone.free_permits()), (5, 0));
        permits.give_back();
        assert_eq!(zone.debt(), 4);
        assert!(!permits.try_take());
        zone.set_limit(9);
        assert_eq!((zone.debt(), zone.free_permits()), (0, 2));
        assert_sum(&zone, "after the change back");
    }

    /// A worker that was taken over has written into the zone what it liked, and dies. The
    /// master lives on, has little to do, and the limit holds again.
    #[test]
    fn whatever_is_written_over_the_books_the_limit_holds_again() {
        type Attack = fn(&Zone, &Permits);
        let attacks: [Attack; 9] = [
            |zone, _| zone.layout().permit_pool.limit.store(u32::MAX, Ordering::Relaxed),
            |zone, _| zone.layout().permit_pool.limit.store(0, Ordering::Relaxed),
            |zone, _| zone.layout().permit_pool.balance.store(i64::MAX, Ordering::Relaxed),
            |zone, _| zone.layout().permit_pool.balance.store(i64::MIN, Ordering::Relaxed),
            |zone, _| zone.layout().permit_pool.balance.store(-3, Ordering::Relaxed),
            |zone, _| (0..1000).for_each(|_| zone.connection_permits().post()),
            |zone, _| while zone.connection_permits().try_wait() {},
            |_, own| own.set_held(u64::MAX),
            |_, own| own.set_held(0),
        ];
        for (nth, attack) in attacks.into_iter().enumerate() {
            let zone = Zone::create(10).unwrap();
            let (_alive, mut living) = spawn(&zone, 2);
            let (dead, dying) = spawn(&zone, 5);
            attack(&zone, &dying);
            zone.free(&dead);
            let begun = std::time::Instant::now();
            assert!(zone.settle().is_some(), "{nth}");
            assert!(begun.elapsed() < std::time::Duration::from_secs(1), "{nth}");
            assert_eq!((zone.free_permits(), zone.debt()), (8, 0), "{nth}");
            let took = (0..20).filter(|_| living.try_take()).count();
            assert_eq!(took, 8, "{nth}");
            while living.held() > 0 {
                living.give_back();
            }
            assert_eq!(zone.free_permits(), 10, "{nth}");
            zone.set_limit(20);
            assert_eq!((zone.limit(), zone.free_permits()), (20, 20), "{nth}");
        }
    }

    #[test]
    fn damage_is_noted_once() {
        let zone = Zone::create(10).unwrap();
        assert!(!zone.take_damage());
        zone.layout().permit_pool.balance.store(7, Ordering::Relaxed);
        assert_eq!(zone.settle(), Some(0));
        assert!(zone.take_damage());
        assert_eq!(zone.settle(), Some(0));
        assert!(!zone.take_damage());
    }

    #[test]
    fn nobody_is_believed_to_hold_more_than_it_may() {
        let zone = Zone::create(10).unwrap();
        let ((_one, _alive), (two, liar)) = (spawn(&zone, 1), spawn(&zone, 1));
        zone.bound_held(&two, 4);
        liar.set_held(u64::MAX);
        assert_eq!(zone.settle(), Some(0));
        assert_eq!(zone.free_permits(), 5, "all but what the one has and the other may have");
    }

    #[test]
    #[should_panic(expected = "is no semaphore's")]
    fn a_limit_that_no_semaphore_can_have_is_a_fault_of_ours() {
        Zone::create(1).unwrap().set_limit(Semaphore::VALUE_MAX + 1);
    }
}
