//! What is reported to the service manager, if one has started us: that we are ready or
//! stopping, and signs of life. A report that fails is logged, and nothing else follows.

use std::time::{Duration, Instant};

use chappe_sys::clock::{self, Moment};
use chappe_sys::notify::Notifier;

use super::deadlines::{Deadlines, What};
use crate::config::Address;
use crate::throttle::Throttle;

/// How many failures are logged in ten seconds.
const WARNINGS_LOGGED: u32 = 2;

/// What it gets beside the deadline of a stop, for the master to clean up.
const STOP_SLACK: Duration = Duration::from_secs(5);

/// The way to the service manager; without one it does nothing.
#[derive(Debug)]
pub(super) struct Manager {
    notifier: Option<Notifier>,
    /// Throttles the warnings about signs of life that could not be sent.
    warnings: Throttle,
}

impl Manager {
    pub(super) fn new(notifier: Option<Notifier>, deadlines: &mut Deadlines) -> Self {
        deadlines.set_or_clear(What::Ping, notifier.as_ref().and_then(Notifier::next_ping));
        Self { notifier, warnings: Throttle::new(WARNINGS_LOGGED) }
    }

    /// Every worker serves.
    pub(super) fn ready(&self, addresses: &[Address], workers: usize) {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let pid = std::process::id();
        let addresses = addresses.join(" ");
        self.tell(&format!(
            "READY=1\nMAINPID={pid}\nSTATUS=serving on {addresses} with {workers} workers\n"
        ));
    }

    /// A reload begins; `ready` is told again when that is over. The manager asked for it
    /// before this time, or else takes this for the end of the one before.
    pub(super) fn reloading(&self) {
        let micros = clock::monotonic_us();
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS=reloading\n"));
    }

    /// The server goes, within this time at the most: it may take longer than the
    /// manager would wait by itself.
    pub(super) fn stopping(&self, within: Duration) {
        let micros = (within + STOP_SLACK).as_micros();
        self.tell(&format!(
            "STOPPING=1\nEXTEND_TIMEOUT_USEC={micros}\nSTATUS=stopping, {}s at most\n",
            within.as_secs()
        ));
    }

    /// A sign of life: the master's loop goes round.
    pub(super) fn ping(&mut self, now: Instant, deadlines: &mut Deadlines) {
        let Some(notifier) = &mut self.notifier else { return };
        if let Err(error) = notifier.ping(now)
            && let Some(held) = self.warnings.admit(Moment::now())
        {
            log::warn!(target: "manager.failed", "cannot ping the service manager's watchdog: {error}{held}");
        }
        deadlines.set_or_clear(What::Ping, notifier.next_ping());
    }

    fn tell(&self, lines: &str) {
        if let Some(notifier) = &self.notifier
            && let Err(error) = notifier.tell(lines)
        {
            log::warn!(target: "manager.absent", "the service manager does not listen: {error}");
        }
    }
}
