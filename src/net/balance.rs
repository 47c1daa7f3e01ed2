//! Even shares: which worker takes the next connection of a shared socket.
//!
//! The kernel wakes the worker that has been in the socket's queue for the longest, and
//! that is the same one again and again: it would take nearly all that come one by one.
//! And of a burst, who wakes first takes most. So
//!
//! - **whoever has accepted goes to the end of the queue**, out of the epoll set and
//!   into it again. Adding looks at the socket, so no wake-up is lost in between;
//! - **who has more than the mean and some slack stands back**: it leaves the socket
//!   to the others as long as one of them has no more than the mean and listens, or was to
//!   look by now whether it should.
//!
//! Leaving has the trap of `accept`: a wake-up that this worker has had, and nobody
//! else, is gone with it. And a worker that was woken may not run for a while, on a busy
//! machine. So who stands back looks every few milliseconds, and comes back as soon as
//! its share has become right or nobody else listens. Until then it takes what fills more
//! than half of the queue, which must not overflow, and after some patience whatever
//! waits; of a Unix socket, which does not tell how much that is, some at each look. Half a queue is what evens out the shares of a worker that was late: it finds
//! its part waiting. A worker that is overdue for a second does not count, so a stopped
//! one stops nobody.

use std::time::{Duration, Instant};

use chappe_shm::{Accepting, Load};
use chappe_sys::socket::AcceptQueue;

use super::accept::Accepted;
use super::event_loop::EventLoop;
use super::settings::ACCEPTS_MAX;

/// Accepts between two looks at the others.
pub(super) const ACCEPTS_PER_LOOK: usize = 4;
/// The shortest pause of a worker that stands back: others may be about to come.
const PAUSE_MIN: Duration = Duration::from_millis(3);
/// The longest, when nothing comes.
const PAUSE_MAX: Duration = Duration::from_millis(80);
/// For each connection that the others have to have first, when some come: as long as
/// it takes them at the least. Who came back late would find another one far ahead.
const PAUSE_PER_CONNECTION: Duration = Duration::from_micros(25);

/// How long the others may leave connects waiting, without a sign of work.
const PATIENCE: Duration = Duration::from_millis(100);

/// How many connects one look takes of those that the others leave waiting, where it is
/// not known how full the queue is.
const LEFT_OVER_MAX: usize = 16;

/// A worker's time away from the shared sockets.
#[derive(Clone, Copy, Debug)]
pub(super) struct StandingBack {
    pub(super) look_at: Instant,
    pause: Duration,
    /// Connections of all workers at the last look.
    seen: u64,
    /// What the others had when they were last seen to work, and when that was.
    progress: (u64, Instant),
}

impl StandingBack {
    fn new(load: &Load, own: u64, now: Instant) -> Self {
        let progress = (load.connections.saturating_sub(own), now);
        Self { look_at: now + PAUSE_MIN, pause: PAUSE_MIN, seen: load.connections, progress }
    }

    /// At a look: whether the others have done nothing for longer than our patience,
    /// while something waits for them.
    fn is_tired_of_waiting(&mut self, load: &Load, own: u64, waiting: bool, now: Instant) -> bool {
        let others = load.connections.saturating_sub(own);
        if !waiting || others > self.progress.0 {
            self.progress = (others, now);
        }
        // What others have closed is no sign that they accept.
        self.progress.0 = others;
        now.duration_since(self.progress.1) >= PATIENCE
    }

    /// How long it stands back until its next look, after a pause in which the
    /// connections became as many as `load` says.
    fn next_pause(&self, load: &Load, own: u64, waiting: bool) -> Duration {
        if waiting {
            return PAUSE_MIN;
        }
        if load.connections == self.seen {
            return (self.pause * 2).min(PAUSE_MAX);
        }
        let ahead = (own * load.workers).saturating_sub(load.connections);
        let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
        PAUSE_PER_CONNECTION.saturating_mul(ahead).clamp(PAUSE_MIN, PAUSE_MAX)
    }
}

/// What a worker may have beyond the mean: at a few connections some, at many a part.
fn slack(load: &Load) -> u64 {
    4 + load.mean() / 32
}

/// Whether a queue is so long that it may overflow before long.
fn is_long(queue: AcceptQueue) -> bool {
    queue.waiting > queue.max / 2
}

/// How many of those that wait a worker takes that stands back.
fn left_over(queue: Option<AcceptQueue>, is_tired: bool) -> usize {
    // A Unix socket does not tell: as if they had waited for long.
    let Some(queue) = queue else { return LEFT_OVER_MAX };
    let beyond_half = (queue.waiting as usize).saturating_sub(queue.max as usize / 2);
    let waited = if is_tired { (queue.waiting as usize).min(LEFT_OVER_MAX) } else { 0 };
    beyond_half.max(waited).min(ACCEPTS_MAX)
}

impl EventLoop {
    fn own_connections(&self) -> u64 {
        self.connections as u64
    }

    /// Whether others shall have the next connection.
    pub(super) fn is_above_its_share(&self, nth: usize) -> bool {
        self.shall_leave(nth, &self.slot.load())
    }

    /// Nobody leaves a queue that is more than half full.
    fn shall_leave(&self, nth: usize, load: &Load) -> bool {
        let keeps_up = || self.listeners.sockets[nth].queue().is_none_or(|queue| !is_long(queue));
        load.leaves_to_others(self.own_connections(), slack(load)) && keeps_up()
    }

    /// At the end of a turn in which connections were accepted: makes place for others.
    pub(super) fn give_way(&mut self, nth: usize, now: Instant) {
        let load = self.slot.load();
        if self.shall_leave(nth, &load) {
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
        self.listeners.back = Some(StandingBack::new(load, self.own_connections(), now));
        self.slot.set_accepting(Accepting::StandsBack);
    }

    /// While it stands back, from time to time.
    pub(super) fn look_whether_to_come_back(&mut self, now: Instant) {
        let Some(mut back) = self.listeners.back.filter(|back| back.look_at <= now) else { return };
        let load = self.slot.load();
        let own = self.own_connections();
        if !load.leaves_to_others(own, slack(&load) / 2) {
            self.arm_or_wait(now);
            return;
        }
        let sockets = self.listeners.sockets.iter().enumerate();
        let shared = sockets.filter(|(_, socket)| socket.options.shared);
        let queues: Vec<_> = shared.map(|(nth, socket)| (nth, socket.queue())).collect();
        let waiting = queues.iter().any(|(_, queue)| queue.is_some_and(|it| it.waiting > 0));
        let is_tired = back.is_tired_of_waiting(&load, own, waiting, now);
        let mut is_flooded = false;
        for (nth, queue) in queues {
            let take = left_over(queue, is_tired);
            let taken = self.accept_left_over(nth, take, now);
            // As many as one look takes at most: more than the others can keep up with.
            is_flooded |= taken == if queue.is_some() { ACCEPTS_MAX } else { LEFT_OVER_MAX };
        }
        // Accepting may have ended for another reason.
        let Some(standing) = &mut self.listeners.back else { return };
        back.pause = back.next_pause(&load, own, waiting);
        back.seen = load.connections;
        back.look_at = now + back.pause;
        *standing = back;
        if is_flooded {
            self.arm_or_wait(now);
        }
    }

    /// Takes so many of what waits for others, if there are as many; how many it took.
    fn accept_left_over(&mut self, nth: usize, take: usize, now: Instant) -> usize {
        let mut accepted = 0;
        // A connection may have been the last there was room for.
        while accepted < take
            && self.listeners.back.is_some()
            && self.accept_next(nth, now) == Accepted::One
        {
            accepted += 1;
        }
        accepted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(connections: u64) -> Load {
        Load { workers: 4, connections, least_listening: Some(0) }
    }

    #[test]
    fn pauses_are_short_while_connections_come_and_double_while_they_do_not() {
        let mut back = StandingBack::new(&load(400), 200, Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..7 {
            back.pause = back.next_pause(&load(400), 200, false);
            pauses.push(back.pause.as_millis());
        }
        assert_eq!(pauses, [6, 12, 24, 48, 80, 80, 80]);
        let next_pause = |load, own| back.next_pause(&load, own, false);
        assert_eq!(next_pause(load(401), 200), Duration::from_micros(399 * 25));
        assert_eq!(next_pause(load(790), 200), PAUSE_MIN);
        assert_eq!(next_pause(load(900), 1_000_000), PAUSE_MAX);
        assert_eq!(next_pause(load(0), 0), PAUSE_MIN);
        assert_eq!(back.next_pause(&load(400), 200, true), PAUSE_MIN, "somebody waits");
    }

    #[test]
    fn patience_ends_when_others_do_nothing_about_what_waits() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut back = StandingBack::new(&load(400), 200, start);
        let after = |ms| start + PATIENCE + Duration::from_millis(ms);
        assert!(!back.is_tired_of_waiting(&load(400), 200, true, at(99)));
        assert!(back.is_tired_of_waiting(&load(400), 200, true, after(0)));
        assert!(back.is_tired_of_waiting(&load(416), 216, true, after(3)), "its own are no sign");
        assert!(back.is_tired_of_waiting(&load(406), 216, true, after(4)), "nor is a close");
        assert!(!back.is_tired_of_waiting(&load(407), 216, true, after(6)), "another one works");
        assert!(!back.is_tired_of_waiting(&load(417), 216, true, after(105)));
        assert!(!back.is_tired_of_waiting(&load(417), 216, false, after(107)), "nobody waits");
        assert!(!back.is_tired_of_waiting(&load(417), 216, true, after(206)));
        assert!(back.is_tired_of_waiting(&load(417), 216, true, after(207)));
    }

    #[test]
    fn what_fills_half_of_the_queue_is_taken_at_once_and_the_rest_after_patience() {
        let take = |waiting, is_tired| left_over(Some(AcceptQueue { waiting, max: 511 }), is_tired);
        assert_eq!([0, 1, 255, 256, 300].map(|waiting| take(waiting, false)), [0, 0, 0, 1, 45]);
        assert_eq!([0, 1, 255, 256, 300].map(|waiting| take(waiting, true)), [0, 1, 16, 16, 45]);
        assert_eq!(take(511, false), ACCEPTS_MAX);
        assert_eq!(left_over(None, false), LEFT_OVER_MAX);
    }

    #[test]
    fn the_slack_is_a_part_of_the_mean_and_at_least_some() {
        let slack_at =
            |connections| slack(&Load { workers: 4, connections, least_listening: None });
        assert_eq!([0, 128, 1000, 400_000].map(slack_at), [4, 5, 11, 3129]);
    }
}
