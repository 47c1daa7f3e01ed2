//! The one place where the master sleeps, and what wakes it.

use chappe_sys::clock::Moment;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use super::{ControlSocket, Master, Phase};

/// How often the slots are looked at while workers begin to accept: they say it in
/// their slot only, and it takes them no longer than a wake-up.
const ARMING_TICK: Duration = Duration::from_millis(1);

/// How often everything is looked at while poll fails.
const BLIND_TICK: Duration = Duration::from_millis(100);
/// How many of these failures are told in ten seconds.
pub(super) const WARNINGS_TOLD: u32 = 1;

impl Master<'_> {
    /// The only place that sleeps. Returns the pids of the workers that said
    /// something; signals and clients are looked at in any case.
    pub(super) fn sleep(&self) -> io::Result<Vec<Pid>> {
        let mut pids = Vec::new();
        let mut fds = Vec::new();
        for worker in &self.workers {
            if let Some(channel) = &worker.channel {
                pids.push(worker.pid);
                fds.push(PollFd::new(channel.as_fd(), PollFlags::POLLIN));
            }
        }
        let signals = std::iter::once((self.signals.as_fd(), PollFlags::POLLIN));
        let control = self.control.iter().flat_map(ControlSocket::interests);
        fds.extend(signals.chain(control).map(|(fd, flags)| PollFd::new(fd, flags)));
        match poll(&mut fds, self.poll_timeout()) {
            Ok(_) => {}
            // The signal that interrupted is in the pipe.
            Err(Errno::EINTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        Ok(pids
            .into_iter()
            .zip(&fds)
            .filter(|(_, fd)| fd.any() == Some(true))
            .map(|p| p.0)
            .collect())
    }

    /// Instead of [`sleep`](Self::sleep) when that has failed: for lack of memory, or by
    /// a limit that somebody has lowered from outside. A server that serves is not ended
    /// by it: the master looks at everybody, after a pause instead of an event.
    pub(super) fn look_at_all(&mut self, cause: &io::Error) -> Vec<Pid> {
        if let Some(held) = self.poll_warnings.admit(Moment::now()) {
            log::error!("cannot wait for events, looking every {BLIND_TICK:?}: {cause}{held}");
        }
        std::thread::sleep(BLIND_TICK);
        self.workers.iter().map(|worker| worker.pid).collect()
    }

    fn poll_timeout(&self) -> PollTimeout {
        let arming = match self.phase {
            Phase::Arming { .. } => Some(Instant::now() + ARMING_TICK),
            Phase::Starting | Phase::Running => None,
        };
        let deadline = [
            self.vacancies.iter().map(|vacancy| vacancy.due).min(),
            self.workers.iter().filter_map(|worker| worker.ready_by).min(),
            self.workers.iter().filter_map(|worker| worker.leaves_by).min(),
            self.workers.iter().filter_map(|worker| worker.ring_at).min(),
            self.workers.iter().filter_map(|worker| worker.log.due()).min(),
            self.candidate.as_ref().map(|candidate| candidate.ready_by),
            self.control.as_ref().and_then(ControlSocket::next_deadline),
            self.stop.deadline(),
            self.settle_at,
            self.watchdog.next_look(),
            self.next_rotation(),
            self.orders.iter().map(super::orders::Order::deadline).min(),
            self.manager.next_ping(),
            self.metrics.due(),
            arming,
        ];
        let Some(deadline) = deadline.into_iter().flatten().min() else {
            return PollTimeout::NONE;
        };
        // poll counts whole milliseconds; rounded down it would spin for the rest.
        let wait = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
    }
}
