//! A connection as the event loop knows it: what only the loop touches.
//!
//! The two shared halves ([`ReceiveHalf`], [`crate::send::SendHalf`]) have the
//! queues; here are descriptor, begun frame, clocks and the place in the epoll
//! set. An idle connection owns no buffer.

use super::interest::{Input, Phase, State};
use super::moment::Moment;
use super::settings::{DRAIN_QUIET, Settings};
use super::timers::Armed;
use super::token_bucket::TokenBucket;
use super::transport::Transport;
use crate::dispatch::ReceiveHalf;
use crate::send::{Blocked, View};
use chappe_wire::Cutter;
use nix::sys::epoll::EpollFlags;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) transport: Arc<Transport>,
    pub(super) receive: Arc<ReceiveHalf>,
    pub(super) connected_at: Moment,
    pub(super) phase: Phase,
    pub(super) input: Input,
    pub(super) cutter: Cutter,
    /// What the begun frame is charged for in the inbox total.
    pub(super) cutter_charged: usize,
    /// All bytes ever received.
    pub(super) input_bytes: u64,
    /// The inbox was empty and has something now: it is this connection's turn, which
    /// nobody else knows of yet.
    pub(super) is_queued: bool,
    /// The inbox total had no room when this connection was read last.
    pub(super) starved: bool,
    /// The peer is gone, and what it sent before may still be in the kernel.
    pub(super) hung_up: bool,
    /// What epoll watches now; `None`: it is not in the set.
    pub(super) watched: Option<EpollFlags>,
    pub(super) timer: Armed,
    pub(super) clocks: Clocks,
    pub(super) rates: Option<Box<Rates>>,
    /// It stands in the worker's table of addresses.
    pub(super) is_counted: bool,
}

/// Since when. Clocks of the peer stand still while the server pauses reading:
/// they are shifted by that time when it goes on.
#[derive(Debug)]
pub(super) struct Clocks {
    /// Until a whole frame has come.
    handshake_began_at: Option<Moment>,
    received_at: Moment,
    /// When the frame that is not complete began.
    frame_began_at: Option<Moment>,
    paused_at: Option<Moment>,
    pub(super) blocked: Option<Box<BlockedClock>>,
    pub(super) ending: Option<Box<Ending>>,
}

/// What a connection that shall end waits for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ending {
    /// A drain that is to begin.
    Drain(DrainClock),
    /// The peer's end, after ours.
    Linger(LingerClock),
}

/// When a connection is told goodbye.
#[derive(Clone, Copy, Debug)]
pub(super) struct DrainClock {
    pub(super) at: Instant,
    /// Reading may be paused at that time; the goodbye, which stands behind what was
    /// received, waits for it until then.
    pub(super) by: Instant,
}

/// What is left of a connection that is over for us.
#[derive(Clone, Copy, Debug)]
pub(super) struct LingerClock {
    pub(super) until: Option<Instant>,
    pub(super) discarded_bytes: u64,
}

/// Since when a peer has taken nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockedClock {
    /// When the socket became full.
    pub(super) began: Instant,
    /// When it became full, or the peer was last seen to acknowledge something.
    pub(super) since: Instant,
    pub(super) why: Blocked,
    /// How many bytes it had acknowledged then.
    pub(super) acknowledged: u64,
    /// When to try again if the kernel had no memory.
    pub(super) retry_at: Instant,
}

/// The rate limits of a connection, and since when it is above them.
#[derive(Debug)]
pub(super) struct Rates {
    pub(super) messages: Option<TokenBucket>,
    pub(super) bytes: Option<TokenBucket>,
    pub(super) too_fast_since: Option<Instant>,
    pub(super) refused_at: Option<Instant>,
}

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deadline {
    Handshake,
    Frame,
    Idle,
    /// The peer took nothing for `send.outbox_max_age`.
    Blocked,
    /// The kernel may have memory again.
    RetrySend,
    /// It is this connection's turn to be drained.
    Drain,
    /// A draining peer has been quiet.
    DrainQuiet,
    Linger,
}

impl Clocks {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            handshake_began_at: Some(now.into()),
            received_at: now.into(),
            frame_began_at: None,
            paused_at: None,
            blocked: None,
            ending: None,
        }
    }

    /// The peer has given a sign of life, or the clock of its silence starts anew.
    pub(super) fn received(&mut self, now: Instant) {
        self.received_at = now.into();
    }

    /// Whole frames have come, and what had begun is complete.
    pub(super) fn frame_is_complete(&mut self) {
        self.handshake_began_at = None;
        self.frame_began_at = None;
    }

    /// A frame has begun, now or before.
    pub(super) fn frame_has_begun(&mut self, now: Instant) {
        self.frame_began_at.get_or_insert(now.into());
    }

    /// There will be no rest of the begun frame.
    pub(super) fn no_frame(&mut self) {
        self.frame_began_at = None;
    }

    /// Notes that reading is or is not paused now. True when a pause begins.
    pub(super) fn pause(&mut self, paused: bool, now: Instant) -> bool {
        match (self.paused_at, paused) {
            (None, true) => {
                self.paused_at = Some(now.into());
                return true;
            }
            (Some(at), false) => {
                let stood = now.saturating_duration_since(at.into());
                // Never into the future: what was set during the pause stays.
                let shift = |since: Moment| (Instant::from(since) + stood).min(now).into();
                self.handshake_began_at = self.handshake_began_at.map(shift);
                self.received_at = shift(self.received_at);
                self.frame_began_at = self.frame_began_at.map(shift);
                self.paused_at = None;
            }
            (None, false) | (Some(_), true) => {}
        }
        false
    }
}

impl Connection {
    pub(super) fn new(transport: Arc<Transport>, receive: Arc<ReceiveHalf>, now: Instant) -> Self {
        Self {
            transport,
            receive,
            connected_at: now.into(),
            phase: Phase::Open,
            input: Input::Open,
            cutter: Cutter::default(),
            cutter_charged: 0,
            input_bytes: 0,
            is_queued: false,
            starved: false,
            hung_up: false,
            watched: None,
            timer: Armed::default(),
            clocks: Clocks::new(now),
            rates: None,
            is_counted: false,
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.receive.info().id
    }

    /// Where it comes from; `None`: a process of this machine.
    pub(super) fn peer_address(&self) -> Option<IpAddr> {
        self.receive.info().peer.address()
    }

    /// All that decides what epoll watches.
    pub(super) fn state(&self, view: &View) -> State {
        State {
            phase: self.phase,
            input: self.input,
            hung_up: self.hung_up,
            paused: self.starved || view.paused || self.receive.view().paused,
            blocked: view.blocked,
        }
    }

    /// The next thing that has to happen if nothing else does.
    pub(super) fn deadline(&self, view: &View, settings: &Settings) -> Option<(Instant, Deadline)> {
        let clocks = &self.clocks;
        let mut next: Option<(Instant, Deadline)> = None;
        let mut at_latest = |since: Instant, after: Option<Duration>, what: Deadline| {
            // A deadline beyond what the clock can name never comes.
            let at = after.and_then(|after| since.checked_add(after));
            if let Some(at) = at
                && next.is_none_or(|(next, _)| at < next)
            {
                next = Some((at, what));
            }
        };
        match clocks.ending.as_deref() {
            Some(Ending::Drain(clock)) => {
                at_latest(clock.at, Some(Duration::ZERO), Deadline::Drain);
            }
            Some(Ending::Linger(LingerClock { until: Some(at), .. })) => {
                at_latest(*at, Some(Duration::ZERO), Deadline::Linger);
            }
            Some(Ending::Linger(LingerClock { until: None, .. })) | None => {}
        }
        if let Some(clock) = &clocks.blocked {
            at_latest(clock.since, Some(settings.outbox_age_max), Deadline::Blocked);
            if clock.why == Blocked::Buffers {
                at_latest(clock.retry_at, Some(Duration::ZERO), Deadline::RetrySend);
            }
        }
        if !self.state(view).reads() || self.phase == Phase::Lingering {
            // The peer's clocks stand still.
            return next;
        }
        if let Some(began) = clocks.handshake_began_at {
            at_latest(began.into(), settings.handshake, Deadline::Handshake);
        }
        if let Some(began) = clocks.frame_began_at {
            at_latest(began.into(), Some(settings.frame), Deadline::Frame);
        }
        if self.phase == Phase::Draining {
            at_latest(clocks.received_at.into(), Some(DRAIN_QUIET), Deadline::DrainQuiet);
        } else {
            at_latest(clocks.received_at.into(), settings.idle, Deadline::Idle);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::super::event_loop::{Entry, Key};
    use super::*;
    use crate::send::SendHalf;
    use std::mem::size_of;

    /// What malloc(3) of glibc takes for so many bytes.
    fn allocated(bytes: usize) -> usize {
        (bytes + size_of::<usize>()).next_multiple_of(16)
    }

    /// Shared: with two counts in front.
    fn shared<T>() -> usize {
        allocated(2 * size_of::<usize>() + size_of::<T>())
    }

    /// The sum is measured by `scripts/bench`; here it is seen which part has grown.
    #[test]
    fn an_idle_connection_takes_at_most_512_bytes() {
        let in_table = size_of::<Entry>() + size_of::<u64>();
        let in_timers = size_of::<(Moment, Key)>();
        let parts = [
            in_table,
            in_timers,
            shared::<Transport>(),
            shared::<ReceiveHalf>(),
            shared::<SendHalf>(),
        ];
        assert!(parts.iter().sum::<usize>() <= 512, "{parts:?}");
    }
}
