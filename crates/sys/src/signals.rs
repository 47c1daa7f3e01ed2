//! Signals as data: a handler writes one byte into a pipe, and the process's one
//! sleeping place reads which signals came.
//!
//! Every process makes its own [`Signals`]. A fork copies handlers and pipe: a
//! process that went on with the copy would steal the other's wake-ups. So the
//! order is: block, fork; the new process drops the copy before anything else and
//! later makes its own; the old one unblocks. Main threads only.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

/// The signals that a process of this program has an answer to.
pub const USED: [Signal; 9] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGCHLD,
];

/// This process's delivery of signals.
pub struct Signals {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
}

impl Signals {
    /// Starts to collect `signals` (of [`USED`]).
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn new(signals: &[Signal]) -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        let numbers = signals.iter().map(|&signal| signal as i32);
        let delivery = SignalDelivery::with_pipe(read, write, SignalOnly, numbers)?;
        Ok(Self { delivery })
    }

    /// Signals that came since the last call, each once, in the order of their
    /// numbers. Never sleeps.
    pub fn pending(&mut self) -> Vec<Signal> {
        self.delivery.pending().filter_map(|number| Signal::try_from(number).ok()).collect()
    }
}

/// Readable when [`Signals::pending`] has something.
impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.delivery.get_read().as_fd()
    }
}

impl fmt::Debug for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signals").finish_non_exhaustive()
    }
}

/// A file that has reached RLIMIT_FSIZE is then an error of write like a full disk, and
/// not the end of the process. Inherited over fork.
///
/// # Errors
/// None that Linux reports for a valid signal.
pub fn ignore_file_size_signal() -> io::Result<()> {
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: sigaction wants a handler that is safe to run at any point: none runs.
    unsafe { sigaction(Signal::SIGXFSZ, &ignore) }?;
    Ok(())
}

/// Blocks the used signals in this thread and in all that it starts or forks.
///
/// # Errors
/// None that Linux reports for valid signals.
pub fn block() -> io::Result<()> {
    Ok(used().thread_block()?)
}

/// Lets the used signals through to this thread.
///
/// # Errors
/// None that Linux reports for valid signals.
pub fn unblock() -> io::Result<()> {
    Ok(used().thread_unblock()?)
}

fn used() -> SigSet {
    USED.into_iter().collect()
}
