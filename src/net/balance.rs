//! Even shares: which worker takes the next connection of a shared socket.
//!
//! The kernel wakes the worker that has been in the socket's queue for the longest, and
//! that is the same one again and again: it would take nearly all that come one by one.
//! And of a burst, who wakes first takes most. So
//!
//! - **whoever has accepted goes to the end of the queue**, out of the epoll set and
//!   into it again. Adding looks at the socket, so no wake-up is lost in between;
//! - **who has more than the mean and some slack stands back**: it leaves the socket
//!   to the others as long as one of them who listens has fewer than the mean.
//!
//! Leaving has the trap of `accept`: a wake-up that this worker has had, and nobody
//! else, is gone with it. So while it stands back it looks every few milliseconds, takes
//! what the others have left, and comes back as soon as its share has become right,
//! nobody else listens, or so much was left that the others cannot keep up. A connect never waits for longer than such a
//! pause, which is short while connections come and go, and doubles while they do not.
//! A worker that is overdue does not count, so a stopped one stops nobody.

use std::time::{Duration, Instant};

use super::accept::Accepted;
use super::event_loop::EventLoop;
use crate::shm::{Accepting, Load};

/// Accepts between two looks at the others.
pub(super) const ACCEPTS_PER_LOOK: usize = 4;
/// The shortest pause of a worker that stands back: others may be about to come.
const PAUSE_MIN: Duration = Duration::from_millis(3);
/// The longest, when nothing comes.
const PAUSE_MAX: Duration = Duration::from_millis(80);
/// For each connection that the others have to have first, when some come: as long as
/// it takes them at the least. Who came back late would find another one far ahead.
const PAUSE_PER_CONNECTION: Duration = Duration::from_micros(25);

/// Connects that the others have left waiting for a whole pause: so many, and they
/// need help more than shares need to be even.
const LEFT_OVER_MAX: usize = 16;

/// A worker's time away from the shared sockets.
#[derive(Clone, Copy, Debug)]
pub(super) struct StandingBack {
    pub(super) look_at: Instant,
    pause: Duration,
    /// Connections of all workers at the last look.
    seen: u64,
}

/// How long a worker stands back until its next look, after a pause in which the
/// connections became as many as `load` says.
fn next_pause(before: &StandingBack, load: &Load, own: u64) -> Duration {
    if load.connections == before.seen {
        return (before.pause * 2).min(PAUSE_MAX);
    }
    let ahead = (own * load.workers).saturating_sub(load.connections);
    let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
    PAUSE_PER_CONNECTION.saturating_mul(ahead).clamp(PAUSE_MIN, PAUSE_MAX)
}

/// What a worker may have beyond the mean: at a few connections some, at many a part.
fn slack(load: &Load) -> u64 {
    4 + load.mean() / 32
}

impl EventLoop {
    fn own_connections(&self) -> u64 {
        self.connections as u64
    }

    /// Whether others shall have the next connection.
    pub(super) fn is_above_its_share(&self) -> bool {
        let load = self.slot.load();
        load.leaves_to_others(self.own_connections(), slack(&load))
    }

    /// At the end of a turn in which connections were accepted: makes place for others.
    pub(super) fn give_way(&mut self, nth: usize, now: Instant) {
        let load = self.slot.load();
        if load.leaves_to_others(self.own_connections(), slack(&load)) {
            self.stand_back(&load, now);
        } else if load.least_listening.is_some() {
            self.disarm_listener(nth);
            self.arm_or_wait(now);
        }
    }

    /// Leaves the shared sockets to the others for a while.
    fn stand_back(&mut self, load: &Load, now: Instant) {
        for nth in 0..self.listeners.sockets.len() {
            if self.listeners.sockets[nth].options.shared {
                self.disarm_listener(nth);
            }
        }
        let (look_at, seen) = (now + PAUSE_MIN, load.connections);
        self.listeners.back = Some(StandingBack { look_at, pause: PAUSE_MIN, seen });
        self.slot.set_accepting(Accepting::StandsBack);
    }

    /// While it stands back, from time to time.
    pub(super) fn look_whether_to_come_back(&mut self, now: Instant) {
        let Some(back) = self.listeners.back.filter(|back| back.look_at <= now) else { return };
        let load = self.slot.load();
        if !load.leaves_to_others(self.own_connections(), slack(&load) / 2) {
            self.arm_or_wait(now);
            return;
        }
        let mut is_long = false;
        for nth in 0..self.listeners.sockets.len() {
            is_long |= self.accept_left_over(nth, now);
        }
        if is_long && self.listeners.back.is_some() {
            self.arm_or_wait(now);
        } else if let Some(standing) = &mut self.listeners.back {
            let pause = next_pause(&back, &load, self.connections as u64);
            *standing = StandingBack { look_at: now + pause, pause, seen: load.connections };
        }
    }

    /// Takes what has waited for a whole pause. True if that was much.
    fn accept_left_over(&mut self, nth: usize, now: Instant) -> bool {
        let is_shared = self.listeners.sockets[nth].options.shared;
        // A connection may have been the last there was room for.
        let goes_on = |event_loop: &Self| is_shared && event_loop.listeners.back.is_some();
        let mut accepted = 0;
        while accepted < LEFT_OVER_MAX
            && goes_on(self)
            && self.accept_next(nth, now) == Accepted::One
        {
            accepted += 1;
        }
        accepted == LEFT_OVER_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_short_while_connections_come_and_double_while_they_do_not() {
        let load = |connections| Load { workers: 4, connections, least_listening: Some(0) };
        let mut back = StandingBack { look_at: Instant::now(), pause: PAUSE_MIN, seen: 400 };
        let mut pauses = Vec::new();
        for _ in 0..7 {
            back.pause = next_pause(&back, &load(400), 200);
            pauses.push(back.pause.as_millis());
        }
        assert_eq!(pauses, [6, 12, 24, 48, 80, 80, 80]);
        assert_eq!(next_pause(&back, &load(401), 200), Duration::from_micros(399 * 25));
        assert_eq!(next_pause(&back, &load(790), 200), PAUSE_MIN);
        assert_eq!(next_pause(&back, &load(900), 1_000_000), PAUSE_MAX);
        assert_eq!(next_pause(&back, &load(0), 0), PAUSE_MIN);
    }

    #[test]
    fn the_slack_is_a_part_of_the_mean_and_at_least_some() {
        let slack_at =
            |connections| slack(&Load { workers: 4, connections, least_listening: None });
        assert_eq!([0, 128, 1000, 400_000].map(slack_at), [4, 5, 11, 3129]);
    }
}
