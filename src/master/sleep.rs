//! The one place where the master sleeps, and what wakes it.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use chappe_sys::clock::Moment;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use super::hub::HubKeeper;
use super::owners::Master;

/// How often everything is checked while poll fails.
const BLIND_TICK: Duration = Duration::from_millis(100);
/// How many of these failures are logged in ten seconds.
pub(super) const WARNINGS_LOGGED: u32 = 1;

impl Master<'_> {
    /// The only place that sleeps. Returns the pids of the workers that said
    /// something; signals and clients are looked at in any case.
    pub(super) fn sleep(&self) -> io::Result<BTreeSet<Pid>> {
        let mut pids = Vec::new();
        let mut fds = Vec::new();
        for (pid, channel) in self.supervisor.channels() {
            pids.push(pid);
            fds.push(PollFd::new(channel, PollFlags::POLLIN));
        }
        let hub = self.supervisor.hub().and_then(HubKeeper::channel);
        fds.extend(hub.map(|channel| PollFd::new(channel.as_fd(), PollFlags::POLLIN)));
        fds.push(PollFd::new(self.signals.as_fd(), PollFlags::POLLIN));
        fds.extend(self.desk.interests().into_iter().map(|(fd, flags)| PollFd::new(fd, flags)));
        match poll(&mut fds, self.poll_timeout()) {
            Ok(_) => {}
            // The signal that interrupted is in the pipe.
            Err(Errno::EINTR) => return Ok(BTreeSet::new()),
            Err(error) => return Err(error.into()),
        }
        let woken = pids.into_iter().zip(&fds).filter(|(_, fd)| fd.any() == Some(true));
        Ok(woken.map(|(pid, _)| pid).collect())
    }

    /// Instead of [`sleep`](Self::sleep) when that has failed: for lack of memory, or by
    /// a limit that somebody has lowered from outside. A server that serves is not ended
    /// by it: the master checks everybody, after a pause instead of an event.
    pub(super) fn sleep_blindly(&mut self, cause: &io::Error) -> BTreeSet<Pid> {
        if let Some(held) = self.poll_warnings.admit(Moment::now()) {
            log::error!(target: "master.blind", "cannot wait for events, polling every {BLIND_TICK:?}: {cause}{held}");
        }
        std::thread::sleep(BLIND_TICK);
        self.supervisor.pids().into_iter().collect()
    }

    fn poll_timeout(&self) -> PollTimeout {
        let Some(deadline) = self.deadlines.next() else { return PollTimeout::NONE };
        let wait = deadline.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return PollTimeout::ZERO;
        }
        // poll counts whole milliseconds; rounded down it would spin for the rest.
        PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
    }
}
