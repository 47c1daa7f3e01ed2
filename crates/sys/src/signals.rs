//! Signals as data: a handler writes one byte into a pipe, and the process's one
//! sleeping place reads which signals came.
//!
//! Every process makes its own [`Signals`]. A fork copies handlers and pipe: a
//! process that went on with the copy would steal the other's wake-ups. So a process
//! that has one forks by [`Signals::fork`] only, in this order: block, fork; the new
//! process drops the copy before anything else and later makes its own; the old one
//! unblocks. Main threads only.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::Pid;
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use super::process::{ExitReason, Forked, fork_worker};

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
    /// `None` only in a process that was forked by [`Signals::fork`], in the copy that it
    /// never uses.
    delivery: Option<SignalDelivery<UnixStream, SignalOnly>>,
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
        Ok(Self { delivery: Some(delivery) })
    }

    /// Forks, as [`fork_worker`]. In the new process the used signals are blocked, and
    /// neither handlers nor pipe of this one are left; `body` makes its own and unblocks.
    ///
    /// # Errors
    /// Those of [`fork_worker`]; the signals are unblocked then as well.
    pub fn fork(&mut self, body: impl FnOnce(Forked) -> ExitReason) -> io::Result<Pid> {
        block()?;
        let forked = fork_worker(|forked| {
            self.delivery = None;
            body(forked)
        });
        unblock()?;
        Ok(forked?)
    }

    /// Signals that came since the last call, each once, in the order of their
    /// numbers. Never sleeps.
    pub fn pending(&mut self) -> Vec<Signal> {
        let pending = self.delivery.iter_mut().flat_map(SignalDelivery::pending);
        pending.filter_map(|number| Signal::try_from(number).ok()).collect()
    }
}

/// Readable when [`Signals::pending`] has something.
impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let delivery = self.delivery.as_ref();
        delivery.expect("a forked process has no use for the copy").get_read().as_fd()
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

/// Ends of children are reported from now on, even if the parent process ignored SIGCHLD: that
/// is inherited over exec, and waitpid(2) then finds no child that has ended.
///
/// # Errors
/// None that Linux reports for a valid signal.
pub fn report_children() -> io::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: sigaction wants a handler that is safe to run at any point: none runs.
    unsafe { sigaction(Signal::SIGCHLD, &default) }?;
    Ok(())
}

/// Blocks the used signals in this thread and in all that it starts or forks.
fn block() -> io::Result<()> {
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
