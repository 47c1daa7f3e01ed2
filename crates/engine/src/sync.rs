//! What threads of one worker share: locks, atomics, the semaphore, and the waker of
//! the event loop.
//!
//! Under `--cfg loom` the same names stand for loom's models, so that `tests/loom.rs`
//! runs the very code of this crate through every order in which its threads can meet.
//! Nothing else in the crate may name `parking_lot` or std's atomics for a hand-over
//! between threads.

#[cfg(not(loom))]
pub use native::{Condvar, Mutex, MutexGuard, Semaphore, Waker, atomic};

#[cfg(loom)]
pub use model::{Condvar, Mutex, MutexGuard, Semaphore, Waker, atomic};

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

    /// A `sem_t`. Its operations fail only on an invalid semaphore (sem_wait(3),
    /// sem_post(3): EINVAL, EOVERFLOW), which is our own fault.
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
    }

    /// Wakes the event loop out of epoll_wait(2): an eventfd(2), since a
    /// semaphore cannot be put into an epoll set.
    #[derive(Debug)]
    pub struct Waker(EventFd);

    impl Waker {
        /// # Errors
        /// Those of eventfd(2).
        pub fn new() -> io::Result<Self> {
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            Ok(Self(EventFd::from_value_and_flags(0, flags)?))
        }

        /// Makes it readable. EAGAIN would mean 2^64 - 2 calls that were not cleared:
        /// it is readable then.
        pub fn wake(&self) {
            match self.0.write(1) {
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(errno) => unreachable!("eventfd write: {errno}"),
            }
        }

        /// Makes it unreadable. To be called before the loop looks at what it was woken
        /// for, or a call in between would be lost.
        pub fn clear(&self) {
            match self.0.read() {
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(errno) => unreachable!("eventfd read: {errno}"),
            }
        }
    }

    impl AsFd for Waker {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}

#[cfg(loom)]
mod model {
    //! The same names as models. A semaphore is a count under a lock with a
    //! condition variable; so is the waker, and `wait` stands for epoll_wait(2).
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

        pub fn value(&self) -> usize {
            *self.permits.lock()
        }
    }

    #[derive(Debug)]
    pub struct Waker {
        is_set: Mutex<bool>,
        was_set: Condvar,
    }

    impl Waker {
        pub fn new() -> std::io::Result<Self> {
            Ok(Self { is_set: Mutex::new(false), was_set: Condvar::new() })
        }

        pub fn wake(&self) {
            *self.is_set.lock() = true;
            self.was_set.notify_one();
        }

        pub fn clear(&self) {
            *self.is_set.lock() = false;
        }

        /// epoll_wait(2) with nothing else in the set.
        pub fn wait(&self) {
            let mut is_set = self.is_set.lock();
            while !*is_set {
                is_set = self.was_set.wait(is_set);
            }
        }

        /// epoll_wait(2) with a time-out of zero.
        pub fn is_awake(&self) -> bool {
            *self.is_set.lock()
        }
    }
}
