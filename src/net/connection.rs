//! A connection as the event loop knows it: what only the loop touches.
//!
//! The two shared halves ([`ReceiveHalf`], [`crate::send::SendHalf`]) have the
//! queues; here are descriptor, begun frame, clocks and the place in the epoll
//! set. An idle connection owns no buffer.

use super::interest::{Input, Phase, State};
use super::settings::{DRAIN_QUIET, Settings};
use super::timers::Armed;
use super::token_bucket::TokenBucket;
use super::transport::Transport;
use crate::dispatch::ReceiveHalf;
use crate::frame::Cutter;
use crate::send::{Blocked, View};
use nix::sys::epoll::EpollFlags;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) transport: Arc<Transport>,
    pub(super) receive: Arc<ReceiveHalf>,
    pub(super) connected_at: Instant,
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
    accepted_at: Instant,
    /// Whether a whole frame has come: ends the handshake.
    pub(super) has_frame: bool,
    pub(super) received_at: Instant,
    /// When the frame that is not complete began.
    pub(super) frame_began_at: Option<Instant>,
    paused_at: Option<Instant>,
    pub(super) blocked: Option<BlockedClock>,
    pub(super) lingers_until: Option<Instant>,
    /// How much was discarded while lingering.
    pub(super) lingered_bytes: u64,
    /// A drain that is to begin.
    pub(super) drain: Option<DrainClock>,
}

/// When a connection is told goodbye.
#[derive(Clone, Copy, Debug)]
pub(super) struct DrainClock {
    pub(super) at: Instant,
    /// Reading may be paused at that time; the goodbye, which stands behind what was
    /// received, waits for it until then.
    pub(super) by: Instant,
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
            accepted_at: now,
            has_frame: false,
            received_at: now,
            frame_began_at: None,
            paused_at: None,
            blocked: None,
            lingers_until: None,
            lingered_bytes: 0,
            drain: None,
        }
    }

    /// Notes that reading is or is not paused now. True when a pause begins.
    pub(super) fn pause(&mut self, paused: bool, now: Instant) -> bool {
        match (self.paused_at, paused) {
            (None, true) => {
                self.paused_at = Some(now);
                return true;
            }
            (Some(at), false) => {
                let stood = now.saturating_duration_since(at);
                // Never into the future: what was set during the pause stays.
                let shift = |since: Instant| (since + stood).min(now);
                self.accepted_at = shift(self.accepted_at);
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
            connected_at: now,
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
        if let Some(at) = clocks.lingers_until {
            at_latest(at, Some(Duration::ZERO), Deadline::Linger);
        }
        if let Some(clock) = &clocks.drain {
            at_latest(clock.at, Some(Duration::ZERO), Deadline::Drain);
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
        if !clocks.has_frame {
            at_latest(clocks.accepted_at, settings.handshake, Deadline::Handshake);
        }
        if let Some(began) = clocks.frame_began_at {
            at_latest(began, Some(settings.frame), Deadline::Frame);
        }
        if self.phase == Phase::Draining {
            at_latest(clocks.received_at, Some(DRAIN_QUIET), Deadline::DrainQuiet);
        } else {
            at_latest(clocks.received_at, settings.idle, Deadline::Idle);
        }
        next
    }
}
