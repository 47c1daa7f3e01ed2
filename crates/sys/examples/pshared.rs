//! What `pshared` and the kind of memory decide, each apart: a semaphore in memory that a
//! fork copies or shares, initialised with `pshared` 0 or 1. In each of the four cases a
//! child waits, and its parent posts. The program to part 9 of docs/SEMAPHORES.md.
//!
//! ```sh
//! cargo run -p chappe-sys --example pshared
//! ```
//!
//! It calls the C library itself, because the server's own types cannot be used wrongly in
//! this way: `Semaphore::new` is for threads, and a semaphore in a mapping always has
//! `pshared` 1.

#![expect(unsafe_code, reason = "it shows the calls of the C library as they are")]

use std::fs;
use std::io;
use std::mem::size_of;
use std::process::ExitCode;
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use libc::{c_int, sem_t};

/// How long the child waits for the wake-up.
const PATIENCE: Duration = Duration::from_secs(1);

/// A case is tried again if this machine was too busy to post in time.
const ATTEMPTS_MAX: usize = 10;

const CASES: [(&str, c_int, c_int); 4] = [
    ("private memory, pshared = 0", libc::MAP_PRIVATE, 0),
    ("private memory, pshared = 1", libc::MAP_PRIVATE, 1),
    ("shared memory, pshared = 0", libc::MAP_SHARED, 0),
    ("shared memory, pshared = 1", libc::MAP_SHARED, 1),
];

/// What the child saw of its parent's post; an exit code.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    Nothing = 10,
    /// The value was 1 when the wait had timed out.
    Number = 11,
    /// The post ended the wait.
    WakeUp = 12,
}

/// Visible to the test that runs this file.
pub(crate) fn main() -> ExitCode {
    for (case, memory, pshared) in CASES {
        match try_case(memory, pshared) {
            Ok(Seen::Nothing) => println!("{case}: the post does not arrive"),
            Ok(Seen::Number) => println!("{case}: the number arrives, the wake-up does not"),
            Ok(Seen::WakeUp) => println!("{case}: the number arrives, and wakes the sleeper"),
            Err(error) => {
                eprintln!("pshared: {case}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn try_case(memory: c_int, pshared: c_int) -> io::Result<Seen> {
    for _ in 0..ATTEMPTS_MAX {
        let semaphore = new_semaphore(memory, pshared)?;
        let deadline = Instant::now() + PATIENCE;
        let child = fork_waiter(semaphore, deadline)?;
        while Instant::now() < deadline && !is_asleep(child) {
            thread::yield_now();
        }
        // SAFETY: sem_post asks for an initialised semaphore, and the mapping is never undone.
        check(unsafe { libc::sem_post(semaphore) })?;
        let was_in_time = Instant::now() < deadline - PATIENCE / 4;
        let seen = result_of(child)?;
        if was_in_time {
            return Ok(seen);
        }
    }
    Err(io::Error::other("this machine is too busy"))
}

/// A semaphore of value 0 in a mapping of its own.
fn new_semaphore(memory: c_int, pshared: c_int) -> io::Result<*mut sem_t> {
    let flags = memory | libc::MAP_ANONYMOUS;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, at an address that the kernel chooses, touches nothing else.
    let place =
        unsafe { libc::mmap(ptr::null_mut(), size_of::<sem_t>(), protection, flags, -1, 0) };
    if place == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let semaphore = place.cast();
    // SAFETY: sem_init writes one `sem_t`, for which the mapping has room; a page is aligned.
    check(unsafe { libc::sem_init(semaphore, pshared, 0) })?;
    Ok(semaphore)
}

fn fork_waiter(semaphore: *mut sem_t, deadline: Instant) -> io::Result<c_int> {
    // SAFETY: this process has one thread, so the child may do all that this one may.
    let child = unsafe { libc::fork() };
    match child {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let seen = wait(semaphore, deadline);
            // SAFETY: _exit takes a number and does not return.
            unsafe { libc::_exit(seen as c_int) }
        }
        child => Ok(child),
    }
}

/// In the child.
fn wait(semaphore: *mut sem_t, deadline: Instant) -> Seen {
    let deadline = time_of_day(deadline.saturating_duration_since(Instant::now()));
    // SAFETY: the semaphore is initialised, and the time is a local that outlives the call.
    if unsafe { libc::sem_timedwait(semaphore, &raw const deadline) } == 0 {
        return Seen::WakeUp;
    }
    // SAFETY: the semaphore is initialised.
    if unsafe { libc::sem_trywait(semaphore) } == 0 { Seen::Number } else { Seen::Nothing }
}

fn time_of_day(from_now: Duration) -> libc::timespec {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime writes one timespec: a local.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now) };
    let nanos = now.tv_nsec + i64::from(from_now.subsec_nanos());
    let seconds = i64::try_from(from_now.as_secs()).expect("a second at most");
    libc::timespec {
        tv_sec: now.tv_sec + seconds + nanos / 1_000_000_000,
        tv_nsec: nanos % 1_000_000_000,
    }
}

fn result_of(child: c_int) -> io::Result<Seen> {
    let mut status = 0;
    // SAFETY: waitpid writes one int: a local.
    if unsafe { libc::waitpid(child, &raw mut status, 0) } == -1 {
        return Err(io::Error::last_os_error());
    }
    let code = libc::WEXITSTATUS(status);
    let all = [Seen::Nothing, Seen::Number, Seen::WakeUp];
    let seen = all.into_iter().find(|seen| *seen as c_int == code);
    seen.ok_or_else(|| io::Error::other(format!("the child ended with {code}")))
}

/// Whether a process sleeps in the kernel.
fn is_asleep(process: c_int) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('S'))
}

fn check(code: c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
