//! What the service manager is told, if one has started us: that we are ready or
//! stopping, and signs of life. What it doesn't hear is logged, and that is all.

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

/// See the module; without a service manager it does nothing.
#[derive(Debug)]
pub(super) struct Manager {
    notifier: Option<Notifier>,
    /// Signs of life that were not heard.
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
            log::warn!(target: "manager.failed", "the service manager did not hear the watchdog's ping: {error}{held}");
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
