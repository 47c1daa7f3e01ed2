//! What threads of one worker share: locks, atomics, the semaphore and the
//! event loop's bell.
//!
//! Under `--cfg loom` the same names stand for loom's models, so that
//! `tests/loom.rs` runs the very code of `send` and `dispatch` through every
//! order in which its threads can meet. Nothing else in the crate may name
//! `parking_lot` or std's atomics for a hand-over between threads.

#[cfg(not(loom))]
pub use native::{Bell, Condvar, Mutex, MutexGuard, Semaphore, atomic};

#[cfg(loom)]
pub use model::{Bell, Condvar, Mutex, MutexGuard, Semaphore, atomic};

#[cfg(not(loom))]
mod native {
    use nix::errno::Errno;
    use nix::sys::eventfd::{EfdFlags, EventFd};
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd};

    pub use parking_lot::{Mutex, MutexGuard};
    pub use std::sync::atomic;

    /// `parking_lot`'s condition variable, in the by-value form that loom has.
    #[derive(Debug, Default)]
    pub struct Condvar(parking_lot::Condvar);

    impl Condvar {
        /// Nobody waits yet.
        #[must_use]
        pub fn new() -> Self {
            Self::default()
        }

        /// Sleeps until notified. May return without: check the condition again.
        pub fn wait<'a, T>(&self, mut guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
            self.0.wait(&mut guard);
            guard
        }

        /// Wakes one sleeper, if there is one.
        pub fn notify_one(&self) {
            self.0.notify_one();
        }

        /// Wakes all sleepers.
        pub fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    /// A `sem_t`.
    #[derive(Debug)]
    pub struct Semaphore(chappe_sys::Semaphore);

    impl From<chappe_sys::Semaphore> for Semaphore {
        fn from(semaphore: chappe_sys::Semaphore) -> Self {
            Self(semaphore)
        }
    }

    impl Semaphore {
        /// One permit more; wakes a sleeper. Never blocks.
        pub fn post(&self) {
            self.0.post();
        }

        /// Takes a permit, sleeping until there is one.
        pub fn wait(&self) {
            self.0.wait();
        }

        /// Takes a permit if there is one.
        #[must_use]
        pub fn try_wait(&self) -> bool {
            self.0.try_wait()
        }
    }

    /// Wakes the event loop out of epoll_wait(2): an eventfd(2), since a
    /// semaphore cannot be put into an epoll set.
    #[derive(Debug)]
    pub struct Bell(EventFd);

    impl Bell {
        /// # Errors
        /// Those of eventfd(2).
        pub fn new() -> io::Result<Self> {
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            Ok(Self(EventFd::from_value_and_flags(0, flags)?))
        }

        /// Makes the bell readable. EAGAIN would mean 2^64 - 2 rings unheard:
        /// it is readable then.
        pub fn ring(&self) {
            match self.0.write(1) {
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(errno) => unreachable!("eventfd write: {errno}"),
            }
        }

        /// Makes the bell unreadable. To be called before the loop looks at
        /// what it was rung for, or a ring in between would be lost.
        pub fn silence(&self) {
            match self.0.read() {
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(errno) => unreachable!("eventfd read: {errno}"),
            }
        }
    }

    impl AsFd for Bell {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}

#[cfg(loom)]
mod model {
    //! The same names as models. A semaphore is a count under a lock with a
    //! condition variable; the bell likewise, and `wait` stands for epoll_wait.
    #![allow(missing_docs, missing_debug_implementations, reason = "seen by the models only")]

    pub use loom::sync::{MutexGuard, atomic};

    #[derive(Debug)]
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("no model panics under a lock")
        }
    }

    #[derive(Debug)]
    pub struct Condvar(loom::sync::Condvar);

    impl Condvar {
        pub fn new() -> Self {
            Self(loom::sync::Condvar::new())
        }

        pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
            self.0.wait(guard).expect("no model panics under a lock")
        }

        pub fn notify_one(&self) {
            self.0.notify_one();
        }

        pub fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    #[derive(Debug)]
    pub struct Semaphore {
        permits: Mutex<usize>,
        posted: Condvar,
    }

    impl Semaphore {
        pub fn new(permits: usize) -> Self {
            Self { permits: Mutex::new(permits), posted: Condvar::new() }
        }

        pub fn post(&self) {
            *self.permits.lock() += 1;
            self.posted.notify_one();
        }

        pub fn wait(&self) {
            let mut permits = self.permits.lock();
            while *permits == 0 {
                permits = self.posted.wait(permits);
            }
            *permits -= 1;
        }

        pub fn try_wait(&self) -> bool {
            let mut permits = self.permits.lock();
            let is_there = *permits > 0;
            *permits -= usize::from(is_there);
            is_there
        }

        pub fn value(&self) -> usize {
            *self.permits.lock()
        }
    }

    #[derive(Debug)]
    pub struct Bell {
        rung: Mutex<bool>,
        ringing: Condvar,
    }

    impl Bell {
        pub fn new() -> std::io::Result<Self> {
            Ok(Self { rung: Mutex::new(false), ringing: Condvar::new() })
        }

        pub fn ring(&self) {
            *self.rung.lock() = true;
            self.ringing.notify_one();
        }

        pub fn silence(&self) {
            *self.rung.lock() = false;
        }

        /// epoll_wait with nothing but the bell in the set.
        pub fn wait(&self) {
            let mut rung = self.rung.lock();
            while !*rung {
                rung = self.ringing.wait(rung);
            }
        }

        /// epoll_wait with a time-out of zero.
        pub fn is_ringing(&self) -> bool {
            *self.rung.lock()
        }
    }
}

/// Faults that the models plant, to show that they would be found.
///
/// Outside of `--cfg loom` [`is_planted`](fault::is_planted) is the constant
/// `false` and the planted branches are not in the program.
pub mod fault {
    /// A way to break the hand-over between threads.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Fault {
        /// The permit is there before the outbox is ready.
        PostBeforeState,
        /// At EPOLLOUT the permit is posted before the outbox is unblocked.
        PostBeforeUnblock,
        /// A permit that stands for no connection.
        PostTooMany,
        /// Reading is paused after the lock under which the level was read.
        PauseOutsideLock,
        /// The loop takes a call off after it has read the state.
        ClearCallLate,
        /// A turn ends as stalled after it has parked.
        StallAfterPark,
        /// The end of the input is noted without looking if the inbox is empty.
        EndWithoutLook,
        /// A waiter for room is listed after the lock under which there was none.
        WaitOutsideLock,
        /// The loop closes a socket although a thread still has the writer.
        CloseUnderWriter,
        /// The send thread is woken to stop before it is told to.
        StopPostsFirst,
        /// A connection with more than its fair share is not listed again.
        ShareNotListed,
        /// A backlog is given up with the message that is half sent.
        CutBegun,
        /// A push looks whether the connection still takes messages, and queues
        /// under another lock.
        PushAfterLook,
        /// A message that went out whole is settled without looking what was queued
        /// meanwhile.
        SettleWithoutLook,
    }

    /// Never, outside of the models.
    #[cfg(not(loom))]
    #[must_use]
    #[inline]
    pub const fn is_planted(_: Fault) -> bool {
        false
    }

    #[cfg(loom)]
    pub use model::{is_planted, plant};

    #[cfg(loom)]
    mod model {
        use super::Fault;

        // One model runs at a time, on threads of loom's; not part of any model.
        static PLANTED: std::sync::Mutex<Option<Fault>> = std::sync::Mutex::new(None);

        /// Plants one fault, or takes it out again.
        pub fn plant(fault: Option<Fault>) {
            *PLANTED.lock().expect("never poisoned") = fault;
        }

        /// Whether it is planted.
        #[must_use]
        pub fn is_planted(fault: Fault) -> bool {
            *PLANTED.lock().expect("never poisoned") == Some(fault)
        }
    }
}
