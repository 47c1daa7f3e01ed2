//! What a process does to itself: fork, descriptors, threads, standard streams.
//!
//! The master calls `fork_worker` and a forked worker the rest. Nothing here runs
//! in a process that has more than one thread, except the names of threads.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::unistd::{self, ForkResult, Pid};

/// Why a worker left, as its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum ExitReason {
    /// It was ordered to stop, and did.
    Stopped = 0,
    /// It could not go on; its log says why.
    Failed = 1,
    /// It never got as far as being ready.
    CannotBoot = 2,
    /// A panic outside of a handler.
    Panic = 101,
}

impl ExitReason {
    /// The code that `wait` reports.
    #[must_use]
    pub fn code(self) -> i32 {
        self as i32
    }
}

/// Proof of being in a forked process whose end is `_exit`: what the stack it was
/// forked from owns is never dropped here.
#[derive(Debug)]
pub struct Forked(());

/// Forks. The new process runs `body` and exits: it never returns to this stack.
///
/// # Errors
/// Of fork itself (`EAGAIN`, `ENOMEM`); `EBUSY` when this process has more than one
/// thread, whose locks would stay locked forever in the new process.
pub fn fork_worker(body: impl FnOnce(Forked) -> ExitReason) -> nix::Result<Pid> {
    if current_thread_count().map_err(|error| errno_of(&error))? != 1 {
        return Err(Errno::EBUSY);
    }
    // SAFETY: the process has one thread (counted above, and only this thread
    // could start another), so no lock is copied while somebody holds it and the
    // new process may call anything.
    match unsafe { unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let reason =
                catch_unwind(AssertUnwindSafe(|| body(Forked(())))).unwrap_or(ExitReason::Panic);
            exit_now(reason)
        }
    }
}

/// Ends the process here and now: no destructor, no exit handler runs. A forked
/// process must leave so, or the first worker that ends would remove the master's
/// pid file and write the master's buffered output once more.
pub fn exit_now(reason: ExitReason) -> ! {
    // SAFETY: `_exit` takes no pointer and does not return.
    unsafe { libc::_exit(reason.code()) }
}

/// The rest of a process that somebody else has forked, as a daemon is: runs `body` and
/// ends the process as [`exit_now`] does, whatever is on the stack.
pub fn run_daemon(body: impl FnOnce(Forked) -> ExitReason) -> ! {
    exit_now(body(Forked(())))
}

/// Closes every descriptor of this process that is not in `keep`. CLOEXEC does not
/// act on fork: without this a worker would keep the master's ends of every
/// channel open, and the master's death would close nothing.
///
/// # Errors
/// Of close_range, which can only lack a permission of a sandbox.
pub fn close_all_except(_forked: &Forked, keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> =
        keep.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).collect();
    kept.sort_unstable();
    let mut first = 0;
    for fd in kept {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = first.max(fd + 1);
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: closing a descriptor that somebody owns is what I/O safety forbids.
    // Here the owners are on the stack of the process that forked us, which this
    // one never returns to (`Forked`), so none of them can use or close it again.
    if unsafe { libc::close_range(first, last, 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A process that somebody else started, held by a descriptor: unlike its number it
/// can't come to mean another process.
#[derive(Debug)]
pub struct WatchedProcess {
    pidfd: OwnedFd,
}

impl WatchedProcess {
    /// Takes hold of a running process.
    ///
    /// # Errors
    /// `ESRCH` when there is none with this number.
    pub fn open(pid: Pid) -> io::Result<Self> {
        // SAFETY: pidfd_open takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
        let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor; nobody else has it.
        Ok(Self { pidfd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Sleeps until the process has ended.
    ///
    /// # Errors
    /// Of poll.
    pub fn wait(&self) -> io::Result<()> {
        loop {
            let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The number of threads of this process, from the kernel: a runtime may have
/// started some that this crate knows nothing of.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn current_thread_count() -> io::Result<usize> {
    let mut threads = 0;
    for entry in std::fs::read_dir("/proc/self/task")? {
        entry?;
        threads += 1;
    }
    Ok(threads)
}

/// Names the calling thread, as `top -H` and `/proc/PID/task/*/comm` show it; the
/// kernel keeps the first 15 bytes.
pub fn set_thread_name(name: &str) {
    if let Ok(name) = std::ffi::CString::new(name) {
        // A name is a comfort: there is nothing to do if it can't be set.
        let _ = prctl::set_name(&name);
    }
}

/// The name of the calling thread, for logs; that of a process's first thread, which runs
/// its loop, is `event-loop`.
#[must_use]
pub fn current_thread_name() -> String {
    let is_first = unistd::gettid() == unistd::getpid();
    let thread = std::thread::current();
    if is_first { "event-loop" } else { thread.name().unwrap_or("-") }.to_owned()
}

/// Points standard input and output at `/dev/null`. A worker has no business with
/// the terminal, and the stdout of a foreground server belongs to the ready line.
///
/// # Errors
/// When `/dev/null` can't be opened.
pub fn redirect_stdin_stdout_to_null() -> io::Result<()> {
    let null = open_null()?;
    unistd::dup2_stdin(&null)?;
    unistd::dup2_stdout(&null)?;
    Ok(())
}

/// Points standard error at `/dev/null` as well.
///
/// # Errors
/// When `/dev/null` can't be opened.
pub fn redirect_stderr_to_null() -> io::Result<()> {
    unistd::dup2_stderr(open_null()?)?;
    Ok(())
}

fn open_null() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/null")
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_reasons_have_the_codes_of_the_documentation() {
        let codes = [
            ExitReason::Stopped.code(),
            ExitReason::Failed.code(),
            ExitReason::CannotBoot.code(),
            ExitReason::Panic.code(),
        ];
        assert_eq!(codes, [0, 1, 2, 101]);
    }

    #[test]
    fn fork_is_refused_while_there_are_other_threads() {
        // The test runner has at least its own thread and this one.
        let running = std::thread::spawn(|| fork_worker(|_| ExitReason::Stopped));
        assert_eq!(running.join().unwrap(), Err(Errno::EBUSY));
    }
}
