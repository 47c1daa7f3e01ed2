//! POSIX semaphores (`sem_t`), in this process or in a shared mapping.
//!
//! A semaphore is a counter with a queue of sleepers: `post` adds one permit and
//! wakes a sleeper, `wait` takes one permit and sleeps until there is one. An
//! uncontended `post` or `try_wait` is one atomic instruction and no system call.
//!
//! Any thread may use a handle. `wait` sleeps; the event loop and the master
//! therefore call `try_wait` only.
//!
//! On a semaphore that only correct programs touch, no operation can fail: `EINVAL` (no
//! semaphore) and `EOVERFLOW` (more than [`Semaphore::VALUE_MAX`] permits) are faults of
//! ours, and end the thread by a panic. The master must not be ended by a fault of
//! somebody else's: a worker that was taken over can write anything into memory that it
//! shares. What the master does to a semaphore there is therefore one of the `checked_`
//! operations, which report the same instead.

use std::cell::UnsafeCell;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use nix::time::{ClockId, clock_gettime};

use super::shared::Shared;
use super::shared_layout::{LayoutDigest, SharedLayout};

unsafe extern "C" {
    /// glibc 2.30 and later; the `libc` crate does not declare it. Unlike
    /// `sem_timedwait` it can measure by a clock that nobody sets.
    fn sem_clockwait(
        sem: *mut libc::sem_t,
        clock: libc::clockid_t,
        deadline: *const libc::timespec,
    ) -> libc::c_int;
}

/// What `SemaphorePlace::ready` holds once `sem_init` has run.
const READY: u32 = 0x5E3A_9409;

/// Room for one `sem_t`. It stays where it was initialised: POSIX forbids the
/// use of a copy, so nothing outside `sys` can make, move or open one; it is
/// reached by a [`Semaphore`] handle only.
#[repr(C)]
pub struct SemaphorePlace {
    semaphore: UnsafeCell<libc::sem_t>,
    /// `READY` after `sem_init`: a handle to a place that was never initialised
    /// is refused instead of being undefined behaviour.
    ready: AtomicU32,
}

// SAFETY: sem_wait, sem_post and their kin may be called on one sem_t from any
// thread, and no method hands out a reference to it.
unsafe impl Sync for SemaphorePlace {}

// SAFETY: any bytes are a valid `UnsafeCell<sem_t>` (integers only) and a valid atomic.
// In memory that nobody has written `ready` is 0, so no operation touches the `sem_t`
// before `init`.
unsafe impl SharedLayout for SemaphorePlace {
    const DIGEST: u64 = LayoutDigest::of::<Self>("semaphore").finish();
}

impl fmt::Debug for SemaphorePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SemaphorePlace").finish_non_exhaustive()
    }
}

/// Who may use a semaphore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    /// The threads of this process.
    Threads,
    /// Every process that has the mapping.
    Processes,
}

impl SemaphorePlace {
    fn unused() -> Self {
        // SAFETY: `sem_t` is a C union of integers, for which zero bytes are valid.
        let zero: libc::sem_t = unsafe { std::mem::zeroed() };
        Self { semaphore: UnsafeCell::new(zero), ready: AtomicU32::new(0) }
    }

    /// Sets the value and forgets every sleeper.
    ///
    /// The caller sees to it that nobody waits. A broken promise costs a sleeper
    /// its wake-up, and no memory: a `sem_t` holds two counters, no pointer.
    pub(super) fn init(&self, sharing: Sharing, value: u32) -> io::Result<()> {
        let shared = libc::c_int::from(sharing == Sharing::Processes);
        // SAFETY: sem_init writes the 32 bytes of the place, which live as long
        // as `self`. That nobody waits is the caller's promise, see above.
        check(unsafe { libc::sem_init(self.semaphore.get(), shared, value) })?;
        self.ready.store(READY, Ordering::Release);
        Ok(())
    }

    /// Whether everything in it but its value is as [`init`](Self::init) leaves it, of a
    /// semaphore on which nobody ever sleeps. Anything else was written by somebody who should
    /// not have, and a post would act on it.
    fn is_as_initialised(&self) -> bool {
        /// The value may change between two looks.
        const TRIES: usize = 8;
        (0..TRIES).any(|_| {
            let pristine = Self::unused();
            let mut value: libc::c_int = 0;
            // SAFETY: sem_getvalue reads the 32 bytes of the place, whatever is in them, and
            // writes a local.
            let code = unsafe { libc::sem_getvalue(self.semaphore.get(), &raw mut value) };
            let value = u32::try_from(value).unwrap_or(u32::MAX);
            code == 0
                && pristine.init(Sharing::Processes, value).is_ok()
                && pristine.words() == self.words()
        })
    }

    /// The bytes of the `sem_t`.
    fn words(&self) -> [u64; size_of::<libc::sem_t>() / 8] {
        const { assert!(size_of::<libc::sem_t>().is_multiple_of(8)) };
        const { assert!(align_of::<libc::sem_t>() >= align_of::<AtomicU64>()) };
        let first = self.semaphore.get().cast::<AtomicU64>();
        std::array::from_fn(|nth| {
            // SAFETY: the words lie in the `sem_t`, by the length of the array.
            let word = unsafe { first.add(nth) };
            // SAFETY: aligned as asserted above, alive as long as `self`, and all who write
            // it at the same time do so by atomic operations.
            unsafe { &*word }.load(Ordering::Relaxed)
        })
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) == READY
    }
}

/// A handle to a semaphore. A clone is a handle to the same semaphore; the memory
/// lives until the last handle is gone.
#[derive(Clone)]
pub struct Semaphore {
    place: Shared<SemaphorePlace>,
}

/// The owner of a semaphore that lives in this process alone.
struct Private(SemaphorePlace);

impl Drop for Private {
    fn drop(&mut self) {
        // SAFETY: sem_destroy asks for an initialised semaphore on which nobody waits:
        // it was initialised in `Semaphore::new`, and a thread that waits or posts holds a
        // handle, and so this would not be dropped.
        let _always_zero = unsafe { libc::sem_destroy(self.0.semaphore.get()) };
    }
}

impl Semaphore {
    /// The most permits that a semaphore can have: `SEM_VALUE_MAX` of limits.h.
    pub const VALUE_MAX: u32 = i32::MAX.unsigned_abs();

    /// A semaphore for the threads of this process, destroyed with its last handle.
    ///
    /// # Errors
    /// `InvalidInput` when `value` is beyond [`VALUE_MAX`](Self::VALUE_MAX).
    pub fn new(value: u32) -> io::Result<Self> {
        // The Arc first: its memory does not move any more, as `init` demands.
        let owner = Arc::new(Private(SemaphorePlace::unused()));
        owner.0.init(Sharing::Threads, value)?;
        Ok(Self { place: Shared::new(owner, |private| &private.0) })
    }

    /// A handle to a place in a mapping, which it keeps mapped. The semaphore is
    /// not destroyed with it: other processes may still use it. `None` if it was never
    /// initialised.
    pub(super) fn in_mapping(place: Shared<SemaphorePlace>) -> Option<Self> {
        place.is_ready().then_some(Self { place })
    }

    /// False if somebody has written over a semaphore on which nobody ever sleeps, and more
    /// than its value. Such a semaphore must not be posted to.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.place.is_ready() && self.place.is_as_initialised()
    }

    fn raw(&self) -> *mut libc::sem_t {
        self.place.semaphore.get()
    }

    /// Takes a permit, sleeping until there is one.
    ///
    /// # Panics
    /// On EINVAL or EOVERFLOW, which a correct program never meets.
    pub fn wait(&self) {
        loop {
            // SAFETY: sem_wait asks for an initialised semaphore; every handle is made
            // after `init`.
            match check(unsafe { libc::sem_wait(self.raw()) }) {
                Ok(()) => return,
                // A signal is not a permit: go back to sleep.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => fault("sem_wait", &error),
            }
        }
    }

    /// Takes a permit, sleeping until there is one or the deadline has passed.
    /// `false` means that time ran out and nothing was taken.
    ///
    /// # Panics
    /// On EINVAL or EOVERFLOW, which a correct program never meets.
    #[must_use]
    pub fn wait_until(&self, deadline: Instant) -> bool {
        let deadline = monotonic_timespec(deadline);
        loop {
            // SAFETY: sem_clockwait asks for an initialised semaphore, which every handle
            // is made after, and a readable timespec: a local that outlives the call.
            let code =
                unsafe { sem_clockwait(self.raw(), libc::CLOCK_MONOTONIC, &raw const deadline) };
            match check(code) {
                Ok(()) => return true,
                // The deadline is absolute, so a signal does not prolong the wait.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return false,
                Err(error) => fault("sem_clockwait", &error),
            }
        }
    }

    /// Takes a permit if there is one; never sleeps.
    ///
    /// # Panics
    /// On EINVAL or EOVERFLOW, which a correct program never meets.
    #[must_use]
    pub fn try_wait(&self) -> bool {
        self.take().unwrap_or_else(|error| fault("sem_trywait", &error))
    }

    /// Takes a permit if there is one, without sleeping; `None` where [`try_wait`](Self::try_wait)
    /// would panic.
    #[must_use]
    pub fn checked_try_wait(&self) -> Option<bool> {
        self.take().ok()
    }

    fn take(&self) -> io::Result<bool> {
        loop {
            // SAFETY: sem_trywait asks for an initialised semaphore; every handle is made
            // after `init`.
            match check(unsafe { libc::sem_trywait(self.raw()) }) {
                Ok(()) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Adds a permit and wakes a sleeper, if there is one; never sleeps.
    ///
    /// # Panics
    /// On EINVAL or EOVERFLOW, which a correct program never meets.
    pub fn post(&self) {
        self.add().unwrap_or_else(|error| fault("sem_post", &error));
    }

    /// Adds a permit and wakes a sleeper if there is one; `None` where [`post`](Self::post) would
    /// panic, and no permit was added then.
    ///
    /// It is about the number of permits only. The C library also keeps there how many
    /// sleep and how they are woken, and believes it: with glibc 2.36 a post to a
    /// semaphore of which somebody has overwritten both can abort the process.
    #[must_use]
    pub fn checked_post(&self) -> Option<()> {
        self.add().ok()
    }

    fn add(&self) -> io::Result<()> {
        // SAFETY: sem_post asks for an initialised semaphore; every handle is made after
        // `init`. The handle keeps the memory until sem_post has returned, also when the
        // sleeper it woke drops its own handle in the meantime.
        check(unsafe { libc::sem_post(self.raw()) })
    }

    /// The permits there are now. Another thread may change it at once.
    ///
    /// # Panics
    /// On EINVAL or EOVERFLOW, which a correct program never meets.
    #[must_use]
    pub fn value(&self) -> u32 {
        self.count().unwrap_or_else(|error| fault("sem_getvalue", &error))
    }

    /// The number of permits; `None` where [`value`](Self::value) would panic.
    #[must_use]
    pub fn checked_value(&self) -> Option<u32> {
        self.count().ok()
    }

    fn count(&self) -> io::Result<u32> {
        let mut value: libc::c_int = 0;
        // SAFETY: sem_getvalue asks for an initialised semaphore, which every handle is
        // made after, and an int that it may write: a local.
        check(unsafe { libc::sem_getvalue(self.raw(), &raw mut value) })?;
        // POSIX allows a negative count of sleepers; Linux says 0 then.
        Ok(u32::try_from(value).unwrap_or(0))
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore").field("value", &self.checked_value()).finish()
    }
}

fn check(code: libc::c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The end of a thread that has broken the contract of a semaphore.
#[cold]
fn fault(call: &str, error: &io::Error) -> ! {
    panic!("{call} failed on a semaphore of ours: {error}")
}

/// `Instant` keeps its number to itself, so the way is by what remains.
fn monotonic_timespec(deadline: Instant) -> libc::timespec {
    let remaining = deadline.saturating_duration_since(Instant::now());
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("each Linux has this clock");
    let nanos = now.tv_nsec() + i64::from(remaining.subsec_nanos());
    let seconds = i64::try_from(remaining.as_secs()).unwrap_or(i64::MAX);
    let carry = nanos / 1_000_000_000;
    libc::timespec {
        tv_sec: now.tv_sec().saturating_add(seconds).saturating_add(carry),
        tv_nsec: nanos % 1_000_000_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn try_wait_takes_what_is_there_and_no_more() {
        let semaphore = Semaphore::new(2).unwrap();
        assert!(semaphore.try_wait());
        assert_eq!(semaphore.value(), 1);
        assert_eq!(semaphore.checked_try_wait(), Some(true));
        assert!(!semaphore.try_wait());
        assert_eq!(semaphore.checked_try_wait(), Some(false));
        semaphore.post();
        assert!(semaphore.try_wait());
        assert_eq!((semaphore.checked_post(), semaphore.checked_value()), (Some(()), Some(1)));
    }

    #[test]
    fn wait_until_a_past_deadline_still_takes_a_permit() {
        let semaphore = Semaphore::new(1).unwrap();
        let past = Instant::now();
        assert!(semaphore.wait_until(past));
        assert!(!semaphore.wait_until(past));
    }

    #[test]
    fn wait_until_gives_up_at_the_deadline_and_not_before() {
        let semaphore = Semaphore::new(0).unwrap();
        let deadline = Instant::now() + Duration::from_millis(20);
        assert!(!semaphore.wait_until(deadline));
        assert!(Instant::now() >= deadline);
    }

    #[test]
    fn post_wakes_a_sleeper() {
        let semaphore = Semaphore::new(0).unwrap();
        let sleeper = semaphore.clone();
        let thread = thread::spawn(move || sleeper.wait());
        semaphore.post();
        thread.join().unwrap();
        assert_eq!(semaphore.value(), 0);
    }

    #[test]
    fn values_beyond_the_maximum_are_refused() {
        assert!(Semaphore::new(Semaphore::VALUE_MAX + 1).is_err());
        let full = Semaphore::new(Semaphore::VALUE_MAX).unwrap();
        assert_eq!(full.checked_post(), None);
        assert_eq!(full.value(), Semaphore::VALUE_MAX);
        assert!(full.try_wait());
        full.post();
    }

    #[test]
    #[should_panic(expected = "sem_post failed on a semaphore of ours")]
    fn one_post_beyond_the_maximum_is_a_fault_of_ours() {
        Semaphore::new(Semaphore::VALUE_MAX).unwrap().post();
    }

    /// What is behind the value is not ours to know, so each word is tried.
    #[test]
    fn a_semaphore_that_was_written_over_is_not_intact() {
        let place = SemaphorePlace::unused();
        for value in [0, 1, Semaphore::VALUE_MAX] {
            place.init(Sharing::Processes, value).unwrap();
            assert!(place.is_as_initialised());
        }
        let words = place.words().len();
        let damaged = (0..words * 2).filter(|nth| {
            place.init(Sharing::Processes, 5).unwrap();
            let first = place.semaphore.get().cast::<u32>();
            // SAFETY: a half of a word of the `sem_t`.
            let half = unsafe { first.add(*nth) };
            // SAFETY: as above; nobody else has this semaphore.
            unsafe { half.write(7) };
            !place.is_as_initialised()
        });
        assert_eq!(damaged.count(), words * 2 - 1, "all but the value");
    }
}
