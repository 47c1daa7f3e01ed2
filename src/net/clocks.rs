//! The clocks of one connection, and the next thing that is due. Pure.
//!
//! The peer's clocks (handshake, frame, idle, quiet) stand still while the server itself
//! pauses reading: they are shifted by that time when it goes on.

use super::framer::Framer;
use super::interest::Input;
use super::settings::{DRAIN_POSTPONED_MAX, DRAIN_QUIET, NO_BUFFERS_PAUSE, Settings};
use chappe_engine::{Blocked, Hooks, Stage, View};
use chappe_sys::clock::Moment;
use std::time::Duration;

/// Since when.
#[derive(Debug)]
pub(super) struct Clocks {
    /// Until a whole message has come.
    pub(super) handshake_began_at: Option<Moment>,
    /// The peer's last sign of life, or when the clock of its silence started again.
    pub(super) received_at: Moment,
    paused_at: Option<Moment>,
    pub(super) blocked: Option<Box<BlockedClock>>,
    pub(super) ending: Option<Box<EndingClock>>,
}

/// What a connection that is to end waits for.
#[derive(Clone, Copy, Debug)]
pub(super) enum EndingClock {
    /// A drain that is to begin.
    Drain {
        at: Moment,
        /// Reading may be paused at that time; the goodbye, which stands behind what was
        /// received, waits for it until then.
        by: Moment,
    },
    /// Goodbye was said; it goes on until the peer is quiet.
    Draining,
    /// The peer's end, after ours.
    Linger { until: Option<Moment>, discarded_bytes: u64 },
}

/// Since when a peer has taken nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockedClock {
    /// When the socket became full.
    pub(super) began: Moment,
    /// When it became full, or the peer was last seen to acknowledge something.
    pub(super) since: Moment,
    pub(super) why: Blocked,
    /// How many bytes it had acknowledged then.
    pub(super) acknowledged: u64,
    /// When to try again if the kernel had no memory.
    pub(super) retry_at: Moment,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deadline {
    /// One of the peer's clocks.
    Peer(PeerClock),
    /// The peer took nothing for `send.outbox_max_age`.
    Blocked,
    /// The kernel may have memory again.
    RetrySend,
    /// It is this connection's turn to be drained.
    Drain,
    /// A lingering peer has not closed.
    Linger,
    /// A deferred reply was not given.
    Deferred,
}

/// The peer has not sent what it should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerClock {
    Handshake,
    Frame,
    Idle,
    /// A draining peer is quiet.
    Quiet,
}

impl BlockedClock {
    pub(super) fn new(why: Blocked, acknowledged: u64, now: Moment) -> Box<Self> {
        let retry_at = now + NO_BUFFERS_PAUSE;
        Box::new(Self { began: now, since: now, why, acknowledged, retry_at })
    }
}

impl Clocks {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            handshake_began_at: Some(now),
            received_at: now,
            paused_at: None,
            blocked: None,
            ending: None,
        }
    }

    /// Whole messages have come: the end of the handshake, unless the peer has yet to be
    /// admitted.
    pub(super) fn message_is_complete(&mut self, hooks: Hooks) {
        if hooks != Hooks::Gated {
            self.handshake_began_at = None;
        }
    }

    /// Notes whether reading is paused now. True when a pause begins.
    pub(super) fn pause(&mut self, is_paused: bool, framer: &mut Framer, now: Moment) -> bool {
        if is_paused {
            let begins = self.paused_at.is_none();
            self.paused_at.get_or_insert(now);
            return begins;
        }
        if let Some(at) = self.paused_at.take() {
            let stood = now.since(at);
            // Never into the future: what was set during the pause stays.
            let shift = |since: Moment| (since + stood).min(now);
            self.handshake_began_at = self.handshake_began_at.map(shift);
            self.received_at = shift(self.received_at);
            framer.shift(shift);
        }
        false
    }

    /// Schedules the goodbye of a drain.
    pub(super) fn drain_at(&mut self, at: Moment) {
        let by = at + DRAIN_POSTPONED_MAX;
        self.ending = Some(Box::new(EndingClock::Drain { at, by }));
    }

    pub(super) fn is_draining(&self) -> bool {
        matches!(self.ending.as_deref(), Some(EndingClock::Draining))
    }

    /// Whether a blocked peer has acknowledged anything since its clock started. If so the
    /// clock starts again: slow, but honest.
    pub(super) fn has_acknowledged(&mut self, acknowledged: u64, now: Moment) -> bool {
        let Some(clock) = &mut self.blocked else { return true };
        let has = acknowledged > clock.acknowledged;
        if has {
            (clock.since, clock.acknowledged) = (now, acknowledged);
        }
        has
    }

    /// The next thing that has to happen if nothing else does. `frame` is when the message
    /// began that is not complete, `waits` since when one waits for its deferred reply.
    pub(super) fn deadline(
        &self,
        input: Input,
        frame: Option<Moment>,
        waits: Option<Moment>,
        settings: &Settings,
    ) -> Option<(Moment, Deadline)> {
        // A deadline beyond what the clock can name never comes.
        let after = |since: Moment, time: Option<Duration>, what: Deadline| {
            Some((since.checked_add(time?)?, what))
        };
        let mut next = [None; 7];
        next[0] = match self.ending.as_deref() {
            Some(EndingClock::Drain { at, .. }) => Some((*at, Deadline::Drain)),
            Some(EndingClock::Linger { until, .. }) => until.map(|at| (at, Deadline::Linger)),
            Some(EndingClock::Draining) | None => None,
        };
        if let Some(clock) = &self.blocked {
            next[1] = after(clock.since, Some(settings.outbox_age_max), Deadline::Blocked);
            let retries = clock.why == Blocked::Buffers;
            next[2] = retries.then_some((clock.retry_at, Deadline::RetrySend));
        }
        // The application's clock, and not the peer's: it never stands still.
        next[6] = waits.and_then(|since| after(since, Some(settings.deferred), Deadline::Deferred));
        // Otherwise the peer's clocks stand still.
        if input.stage == Stage::Open && input.reads() {
            let peer = |since, time, clock| after(since, time, Deadline::Peer(clock));
            let handshake = self.handshake_began_at;
            next[3] = handshake.and_then(|at| peer(at, settings.handshake, PeerClock::Handshake));
            next[4] = frame.and_then(|at| peer(at, Some(settings.frame), PeerClock::Frame));
            next[5] = match self.is_draining() {
                true => peer(self.received_at, Some(DRAIN_QUIET), PeerClock::Quiet),
                false => peer(self.received_at, settings.idle, PeerClock::Idle),
            };
        }
        next.into_iter().flatten().min_by_key(|(at, _)| *at)
    }
}

/// What a list of connections shows as the state of one.
pub(super) fn state_name(view: &View, is_draining: bool) -> &'static str {
    match view.stage {
        Stage::Open if is_draining => "draining",
        Stage::Open | Stage::Answering => "open",
        Stage::Flushing => "finishing",
        Stage::Lingering => "lingering",
        Stage::Aborted => "aborting",
    }
}
