//! One connection, as the event loop knows it.
//!
//! What all threads share of it is its [`Mailbox`], with the table of its stages. Here are
//! socket, begun message, clocks and the place in the epoll set, which only the loop
//! touches. An idle connection owns no buffer.
//!
//! Whatever happens, an event, a call of another thread, a deadline, ends in
//! [`Connection::advance`]: it reads the shared state, makes the next step, computes what
//! epoll watches and when to look again, and says whether the connection stays.
//!
//! ```text
//! open ──end_input──▶ answering ──all handled──▶ flushing ──all sent, SHUT_WR──▶ lingering ──FIN──▶ gone
//!   └────────────────────┴────────── abort ──────────┴─────────────────────────────┴────────────────▶
//! ```

use super::clocks::{BlockedClock, Clocks, Deadline, EndingClock, PeerClock};
use super::ending::{Ending, drain_notice};
use super::framer::Framer;
use super::input::Read;
use super::interest::{Input, Interest};
use super::rates::Rates;
use super::reactor::{Fate, Key, Reactor};
use super::settings::{DRAIN_READS_MAX, DRAIN_RETRY, LINGER_BYTES_MAX, NO_BUFFERS_PAUSE};
use super::timers::Armed;
use super::transport::Transport;
use chappe_engine::{Aborted, Cause, HookCall, Hooks, Mailbox, Received, Source, Stage, View};
use chappe_shm::Counter;
use chappe_sys::clock::Moment;
use nix::sys::epoll::EpollFlags;
use std::sync::Arc;

/// One connection, as the event loop knows it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) mailbox: Arc<Mailbox>,
    /// All bytes ever received.
    pub(super) input_bytes: u64,
    pub(super) framer: Framer,
    pub(super) clocks: Clocks,
    pub(super) rates: Option<Box<Rates>>,
    pub(super) timer: Armed,
    /// What epoll watches.
    watched: Interest,
    /// As the loop saw it last.
    pub(super) stage: Stage,
    /// The inbox total had no room when this connection was to be read last.
    pub(super) is_starved: bool,
    /// The peer is gone, and what it sent before may still be in the kernel.
    is_hung_up: bool,
    pub(super) peer: PeerSide,
    pub(super) held: Held,
}

/// What the last read has shown of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerSide {
    Open,
    /// Its FIN was read.
    Finished,
    /// There is no peer any more: the connection is to be given up.
    Broken,
}

/// What a connection holds of what all workers share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// A connection permit. Only a connection that could not be let in has none, and is
    /// merely seen off.
    pub(super) permit: bool,
    /// A place in the table of addresses.
    pub(super) address: bool,
}

impl Connection {
    pub(super) fn new(
        transport: Arc<dyn Transport>,
        mailbox: Arc<Mailbox>,
        rates: Option<Box<Rates>>,
        held: Held,
        now: Moment,
    ) -> Self {
        Self {
            transport,
            mailbox,
            input_bytes: 0,
            framer: Framer::default(),
            clocks: Clocks::new(now),
            rates,
            timer: Armed::default(),
            watched: Interest::Out,
            stage: Stage::Open,
            is_starved: false,
            is_hung_up: false,
            peer: PeerSide::Open,
            held,
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.mailbox.id()
    }

    /// It can carry messages: the `connected` hook runs first.
    pub(super) fn connect(&mut self, reactor: &mut Reactor) {
        let has_gate = reactor.settings.hooks == Hooks::Gated;
        if self.mailbox.connect(has_gate) == Received::StartTurn {
            self.start_turn(reactor.leaves_to_threads(HookCall::Connected), reactor);
        }
    }

    /// SHUT_WR was sent already: the connection could not be let in, and only its peer's
    /// end is awaited.
    pub(super) fn see_off(&mut self, reactor: &Reactor) {
        let _ = self.mailbox.end_input(Cause::Refused, None, &reactor.counters);
        self.linger(reactor);
    }

    /// SHUT_WR was sent: the peer's end is awaited.
    fn linger(&mut self, reactor: &Reactor) {
        self.mailbox.linger();
        let until = reactor.now.checked_add(reactor.settings.linger);
        self.clocks.ending = Some(Box::new(EndingClock::Linger { until, discarded_bytes: 0 }));
    }

    // --- what happens ---

    /// epoll has something to say.
    pub(super) fn on_event(&mut self, key: Key, flags: EpollFlags, reactor: &mut Reactor) -> Fate {
        if self.stage == Stage::Lingering {
            return self.on_linger(key, reactor);
        }
        if flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            // Neither can be masked: out of the set, or the loop would spin.
            if !self.can_read_on_after_hangup() {
                return self.abort(key, Cause::PeerReset, reactor);
            }
            self.is_hung_up = true;
            return self.advance(key, reactor);
        }
        let has_room = flags.contains(EpollFlags::EPOLLOUT);
        if has_room {
            // It advances below in any case: it may not be blocked any more.
            let _ = self.mailbox.flush_blocked(&reactor.counters);
        }
        // Another thread may have paused the connection since its interest was set: that thread has
        // called, and one read more does no harm.
        let is_readable = flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP);
        let reads = is_readable && self.stage == Stage::Open && self.watched.reads();
        if reads && self.read(reactor) == Read::Served && !has_room {
            return Fate::Stay;
        }
        self.advance(key, reactor)
    }

    /// Another thread has changed the shared state.
    pub(super) fn on_call(&mut self, key: Key, reactor: &mut Reactor) -> Fate {
        // Before the state is read: a later change calls again.
        self.mailbox.clear_call();
        self.advance(key, reactor)
    }

    /// The inbox total has room again.
    pub(super) fn on_room(&mut self, key: Key, reactor: &mut Reactor) -> Fate {
        self.is_starved = false;
        self.advance(key, reactor)
    }

    /// The armed timer has fired: something may be due.
    pub(super) fn on_timer(&mut self, key: Key, reactor: &mut Reactor) -> Fate {
        let view = self.mailbox.view();
        match self.deadline(&view, reactor).filter(|(at, _)| *at <= reactor.now) {
            Some((_, what)) => self.on_deadline(key, what, &view, reactor),
            None => self.advance(key, reactor),
        }
    }

    /// A drain: goodbye at this time, and the end when the peer is quiet then.
    pub(super) fn drain_at(&mut self, key: Key, at: Moment, reactor: &mut Reactor) -> Fate {
        if self.stage == Stage::Open {
            self.clocks.drain_at(at);
        }
        self.advance(key, reactor)
    }

    /// Ends the input for a reason of the loop's, and tells the peer.
    pub(super) fn end(&mut self, key: Key, ending: Ending, reactor: &mut Reactor) -> Fate {
        self.end_input(ending, reactor);
        self.advance(key, reactor)
    }

    // --- the next step ---

    /// Reads the shared state and does what it asks for.
    pub(super) fn advance(&mut self, key: Key, reactor: &mut Reactor) -> Fate {
        if self.is_hung_up && self.stage == Stage::Open {
            self.read_rest(reactor);
        }
        if self.peer == PeerSide::Broken {
            return self.abort(key, Cause::PeerReset, reactor);
        }
        let mut view = self.mailbox.view();
        if view.stage == Stage::Aborted {
            return self.abort(key, view.cause.unwrap_or(Cause::PeerReset), reactor);
        }
        if view.stage == Stage::Flushing && view.is_idle {
            // Behind the last reply. An error means that the peer is gone.
            let is_gone = self.transport.finish().is_err();
            if is_gone || self.is_hung_up || self.peer == PeerSide::Finished {
                return self.abort(key, Cause::PeerClosed, reactor);
            }
            self.linger(reactor);
            view.stage = Stage::Lingering;
        }
        if view.stage > Stage::Open && self.stage != view.stage {
            self.let_framer_go(reactor);
            // It waits for no room any more.
            reactor.starved.remove(&key);
            if view.stage < Stage::Lingering {
                self.clocks.ending = None;
            }
        }
        if self.is_hung_up && view.waits_since.is_some() {
            // Out of the epoll set, and no reply reaches anybody.
            self.mailbox.void_wait();
        }
        if view.is_admitted && reactor.settings.hooks == Hooks::Gated {
            self.clocks.handshake_began_at = None;
        }
        self.stage = view.stage;
        self.note_blocked(key, &view, reactor);
        self.rearm(key, &view, reactor)
    }

    /// Brings epoll set and timer up to the state.
    fn rearm(&mut self, key: Key, view: &View, reactor: &mut Reactor) -> Fate {
        let input = self.input(view);
        let is_paused = input.stage == Stage::Open && input.is_paused;
        if self.clocks.pause(is_paused, &mut self.framer, reactor.now) {
            reactor.count(Counter::ReadsPaused, 1);
        }
        let wanted = input.interest();
        if wanted != self.watched {
            let watch = self.transport.watch(&reactor.epoll, key, self.watched, wanted);
            if let Err(error) = watch {
                // No memory or no watches left: this connection cannot go on.
                log::warn!(target: "conn.failed", "conn={} epoll_ctl failed: {error}", self.id());
                return self.abort(key, Cause::OutOfMemory, reactor);
            }
            self.watched = wanted;
        }
        if let Some((at, _)) = self.deadline(view, reactor) {
            reactor.timers.arm(key, &mut self.timer, at);
        }
        if self.is_starved && view.stage == Stage::Open {
            reactor.note_starved(key);
        }
        Fate::Stay
    }

    /// Gives the connection up: out of epoll at once, and gone as soon as no thread
    /// writes to it any more. What was queued is lost, and counted.
    pub(super) fn abort(&mut self, key: Key, cause: Cause, reactor: &mut Reactor) -> Fate {
        if self.watched != Interest::Out {
            // Fails only on a descriptor that is not in the set.
            let result = self.transport.watch(&reactor.epoll, key, self.watched, Interest::Out);
            debug_assert!(result.is_ok(), "{result:?}");
            self.watched = Interest::Out;
        }
        self.let_framer_go(reactor);
        self.stage = Stage::Aborted;
        self.clocks.ending = None;
        let aborted = match self.mailbox.abort(cause, &reactor.counters) {
            Aborted::StartTurn => {
                // If all are closed at once, no hook is to run.
                let is_slow =
                    cause == Cause::Stopping || reactor.leaves_to_threads(HookCall::Closed(cause));
                self.start_turn(is_slow, reactor);
                self.mailbox.abort(cause, &reactor.counters)
            }
            other => other,
        };
        if aborted == Aborted::Over { Fate::Gone } else { Fate::Stay }
    }

    /// Gives up a connection whose peer does not read.
    pub(super) fn abort_slow(&mut self, key: Key, reactor: &mut Reactor) -> Fate {
        // A peer whose backlog was dropped is counted already.
        let cause = self.mailbox.view().cause;
        let is_new = !matches!(cause, Some(Cause::TooSlow | Cause::Overloaded));
        reactor.count(Counter::ClosedSlow, u64::from(is_new));
        self.abort(key, Cause::TooSlow, reactor)
    }

    // --- the input's end ---

    /// Open -> answering: nothing more is read, and behind the replies to what came before the
    /// peer gets the reason.
    pub(super) fn end_input(&mut self, ending: Ending, reactor: &mut Reactor) {
        if self.stage != Stage::Open {
            return;
        }
        let begun = self.mailbox.protocol().code_of_part(self.framer.part());
        let (cause, notice, counters) = ending.parts(begun);
        for counter in counters {
            reactor.count(*counter, 1);
        }
        log::debug!(target: "conn.input_ended", "conn={} input ends cause={}", self.id(), cause.name());
        self.let_framer_go(reactor);
        self.stage = Stage::Answering;
        self.clocks.ending = None;
        if self.mailbox.end_input(cause, notice, &reactor.counters) == Received::StartTurn {
            self.start_turn(false, reactor);
        }
    }

    /// Drops the begun message, and what it is charged for.
    fn let_framer_go(&mut self, reactor: &mut Reactor) {
        reactor.engine.inbox_total().release(self.framer.held_bytes());
        self.framer.clear();
    }

    /// Starts the turn of an inbox that was empty: here, as far as its handlers are
    /// quick, or on a handler thread.
    pub(super) fn start_turn(&mut self, is_for_threads: bool, reactor: &mut Reactor) {
        if is_for_threads || !reactor.settings.fuse {
            self.mailbox.enqueue();
        } else {
            // The caller advances in any case.
            let _ = reactor.turn(&self.mailbox, Source::Inbox);
        }
    }

    // --- deadlines ---

    /// The next thing that has to happen if nothing else does.
    pub(super) fn deadline(&self, view: &View, reactor: &Reactor) -> Option<(Moment, Deadline)> {
        let (input, frame, settings) = (self.input(view), self.framer.began(), &reactor.settings);
        self.clocks.deadline(input, frame, view.waits_since, settings)
    }

    fn on_deadline(
        &mut self,
        key: Key,
        what: Deadline,
        view: &View,
        reactor: &mut Reactor,
    ) -> Fate {
        match what {
            // What came in time may still be in the kernel, if this process or the whole
            // machine stood still: so the socket is read first, and the clock is enforced
            // only if there was nothing.
            Deadline::Peer(clock) => {
                if self.read(reactor) == Read::Nothing {
                    self.enforce(clock, reactor);
                }
            }
            Deadline::Blocked => {
                let acknowledged = self.transport.acknowledged(view.sent_bytes);
                if !self.clocks.has_acknowledged(acknowledged, reactor.now) {
                    log::debug!("conn={} reads too slowly", self.id());
                    return self.abort_slow(key, reactor);
                }
            }
            Deadline::RetrySend => {
                if let Some(clock) = &mut self.clocks.blocked {
                    clock.retry_at = reactor.now + NO_BUFFERS_PAUSE;
                }
                // It advances below in any case.
                let _ = self.mailbox.flush_blocked(&reactor.counters);
            }
            Deadline::Drain => {
                // What the kernel has comes before the goodbye.
                let is_read = self.read_all(reactor);
                match self.clocks.ending.as_deref_mut() {
                    Some(EndingClock::Drain { at, by }) if !is_read && reactor.now < *by => {
                        *at = reactor.now + DRAIN_RETRY;
                    }
                    Some(EndingClock::Drain { .. }) => self.start_drain(reactor),
                    _ => {}
                }
            }
            Deadline::Deferred => {
                // The wait that the view has shown, or one that is as old by now.
                if let Some(since) = view.waits_since {
                    self.mailbox.expire(since);
                }
            }
            Deadline::Linger => return self.abort(key, Cause::PeerClosed, reactor),
        }
        self.advance(key, reactor)
    }

    /// A clock of the peer has run out, and nothing was in the kernel.
    fn enforce(&mut self, clock: PeerClock, reactor: &mut Reactor) {
        let view = self.mailbox.view();
        let ending = match clock {
            PeerClock::Handshake => Ending::HandshakeTimeout,
            PeerClock::Frame => Ending::FrameTimeout,
            // The server owes it something: not idle.
            PeerClock::Idle if view.is_idle && view.is_handled && !self.only_listens() => {
                Ending::Idle
            }
            // What is queued is flushed all the same; a peer that is pushed to without a
            // pause must not hold up the end.
            PeerClock::Quiet if view.is_handled => Ending::Drained(reactor.drain_reason),
            PeerClock::Idle | PeerClock::Quiet => {
                self.clocks.received_at = reactor.now;
                return;
            }
        };
        self.end_input(ending, reactor);
    }

    /// Nothing is expected of it: it waits for messages of topics.
    fn only_listens(&self) -> bool {
        self.mailbox.subscriptions() > 0 && self.mailbox.protocol().may_only_listen()
    }

    /// Goodbye, behind what was received so far; then it goes on until quiet.
    fn start_drain(&mut self, reactor: &mut Reactor) {
        self.clocks.ending = Some(Box::new(EndingClock::Draining));
        reactor.refresh_clock();
        self.clocks.received_at = reactor.now;
        let notice = drain_notice(reactor.drain_reason);
        if self.mailbox.receive(notice.into(), &reactor.counters) == Received::StartTurn {
            self.start_turn(false, reactor);
        }
    }

    // --- a full socket ---

    /// Keeps the clock of a peer that takes nothing.
    fn note_blocked(&mut self, key: Key, view: &View, reactor: &mut Reactor) {
        match (&mut self.clocks.blocked, view.blocked) {
            (None, None) => {}
            (Some(clock), Some(why)) => clock.why = why,
            (Some(clock), None) => {
                reactor.blocked.remove(&(clock.began, key));
                self.clocks.blocked = None;
            }
            (None, Some(why)) => {
                let acknowledged = self.transport.acknowledged(view.sent_bytes);
                self.clocks.blocked = Some(BlockedClock::new(why, acknowledged, reactor.now));
                reactor.blocked.insert((reactor.now, key));
            }
        }
    }

    // --- reading on ---

    /// All that decides what epoll watches and which clocks run.
    fn input(&self, view: &View) -> Input {
        Input::of(view, self.is_starved, self.is_hung_up)
    }

    /// Whether the socket may be read now.
    fn may_read(&self) -> bool {
        self.stage == Stage::Open && self.input(&self.mailbox.view()).reads()
    }

    /// Reads what the kernel has, as far as that is a matter of a few reads. False if
    /// reading is paused: there may be more.
    fn read_all(&mut self, reactor: &mut Reactor) -> bool {
        for _ in 0..DRAIN_READS_MAX {
            if self.stage != Stage::Open {
                return true;
            }
            if !self.may_read() {
                return false;
            }
            match self.read(reactor) {
                Read::Bytes | Read::Served => {}
                Read::Starved => return false,
                Read::Nothing | Read::Ended => return true,
            }
        }
        true
    }

    /// Whether EPOLLHUP leaves something to do: messages that the peer sent before it
    /// closed, or that are not handled yet. Replies to them reach nobody.
    fn can_read_on_after_hangup(&self) -> bool {
        let view = self.mailbox.view();
        view.stage <= Stage::Answering
            && view.blocked.is_none()
            && self.transport.has_input_behind_hangup()
    }

    /// Reads what a peer that is gone has sent, as far as there is room for it; the rest
    /// when there is room again. Out of the epoll set, there is no other event.
    fn read_rest(&mut self, reactor: &mut Reactor) {
        /// A call that a signal interrupted is worth another one, not forever.
        const FRUITLESS_MAX: usize = 8;
        let mut fruitless = 0;
        while fruitless < FRUITLESS_MAX {
            self.is_starved |= reactor.engine.inbox_total().excess() > 0;
            if !self.may_read() {
                return;
            }
            match self.read(reactor) {
                Read::Ended | Read::Starved => return,
                Read::Nothing => fruitless += 1,
                Read::Bytes | Read::Served => {}
            }
        }
        // Neither bytes nor an end: no hang-up that we know.
        self.peer = PeerSide::Broken;
    }

    /// Discards what a closing connection still sends: close(2) with unread input sends
    /// RST, and RST destroys what is on its way to the peer.
    fn on_linger(&mut self, key: Key, reactor: &mut Reactor) -> Fate {
        let is_over = match self.transport.receive(&mut reactor.buffer) {
            Ok(0) => true,
            Ok(received) => match self.clocks.ending.as_deref_mut() {
                Some(EndingClock::Linger { discarded_bytes, .. }) => {
                    *discarded_bytes += received as u64;
                    *discarded_bytes >= LINGER_BYTES_MAX
                }
                _ => true,
            },
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        };
        if is_over { self.abort(key, Cause::PeerClosed, reactor) } else { Fate::Stay }
    }
}

#[cfg(test)]
mod tests {
    use super::super::transport::KernelSocket;
    use super::*;
    use std::mem::size_of;

    /// What malloc(3) of glibc takes for an allocation of this size.
    fn allocated(bytes: usize) -> usize {
        (bytes + size_of::<usize>()).next_multiple_of(16)
    }

    /// Shared: with two counts in front.
    fn shared<T>() -> usize {
        allocated(2 * size_of::<usize>() + size_of::<T>())
    }

    /// The sum is measured by `scripts/bench`; here it is seen which part has grown.
    #[test]
    fn an_idle_connection_takes_at_most_400_bytes() {
        let in_table = size_of::<Connection>() + size_of::<u64>();
        let in_timers = size_of::<(Moment, Key)>();
        let parts = [in_table, in_timers, shared::<KernelSocket>(), shared::<Mailbox>()];
        assert!(parts.iter().sum::<usize>() <= 400, "{parts:?}");
    }
}
