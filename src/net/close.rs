//! Ends of a connection. Every way out goes through [`Loop::look`]: it reads
//! the shared state, makes the next step, and computes what epoll watches.
//!
//! ```text
//! open, draining --finish--> finishing --all sent, SHUT_WR--> lingering --FIN--> closed
//!        \________________________\_____________abort____________________________/
//! ```

use super::connection::{BlockedClock, Connection, Deadline, Ending, LingerClock};
use super::event_loop::{Entry, EventLoop, Key, Shared};
use super::interest::{Input, Phase};
use super::receive::Read;
use super::settings::{DRAIN_READS_MAX, DRAIN_RETRY, LINGER_BYTES_MAX, NO_BUFFERS_PAUSE};
use crate::dispatch::Then;
use crate::send::View;
use chappe_shm::Counter;
use chappe_sys::clock::monotonic_ms;
use chappe_sys::crash::step;
use chappe_wire::{ErrorNumber, Goodbye};
use std::sync::Arc;
use std::time::Instant;

impl EventLoop {
    /// Reads the shared state of a connection and does what it asks for.
    pub(super) fn look(&mut self, key: Key, now: Instant) {
        let Some(Entry::Connection(connection)) = self.table.get_mut(key) else { return };
        let is_over =
            connection.hung_up && !connection.read_rest(&mut self.buffer, &self.shared, now);
        if std::mem::take(&mut connection.is_queued) {
            let receive = Arc::clone(&connection.receive);
            self.shared.start_turn(&receive);
        }
        let view = connection.receive.send().view();
        if is_over || view.aborted || connection.phase == Phase::Aborting {
            self.abort(key, now);
            return;
        }
        if view.finishing && matches!(connection.phase, Phase::Open | Phase::Draining) {
            if connection.input == Input::Open {
                connection.end_input(Input::Refused, &self.shared);
            }
            connection.clocks.ending = None;
            connection.phase = Phase::Finishing;
        }
        if connection.phase == Phase::Finishing && view.is_idle {
            // Behind the last reply. An error means that the peer is gone.
            let is_gone = connection.transport.finish().is_err();
            if is_gone || connection.hung_up || connection.input == Input::Ended {
                self.abort(key, now);
                return;
            }
            connection.phase = Phase::Lingering;
            let until = now.checked_add(self.shared.settings.linger);
            let ending = Ending::Linger(LingerClock { until, discarded_bytes: 0 });
            connection.clocks.ending = Some(Box::new(ending));
        }
        let before = connection.clocks.blocked.as_ref().map(|clock| clock.began);
        connection.note_blocked(&view, now);
        let after = connection.clocks.blocked.as_ref().map(|clock| clock.began);
        if before != after {
            self.count_blocked(key, before, after, now);
        }
        self.rearm(key, now);
    }

    /// Keeps the order in which sockets became full, for the operator to see.
    fn count_blocked(
        &mut self,
        key: Key,
        before: Option<Instant>,
        after: Option<Instant>,
        now: Instant,
    ) {
        if let Some(began) = before {
            self.blocked.remove(&(began, key));
        }
        if let Some(began) = after {
            self.blocked.insert((began, key));
        }
        let oldest = self.blocked.first().map(|(began, _)| now.saturating_duration_since(*began));
        let since_ms = oldest.map_or(0, |age| {
            let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
            monotonic_ms().saturating_sub(age_ms).max(1)
        });
        self.slot.set_blocked(u32::try_from(self.blocked.len()).unwrap_or(u32::MAX), since_ms);
    }

    /// Brings epoll set and timer up to the connection's state.
    fn rearm(&mut self, key: Key, now: Instant) {
        let Some(Entry::Connection(connection)) = self.table.get_mut(key) else { return };
        let view = connection.receive.send().view();
        let state = connection.state(&view);
        let is_live = matches!(state.phase, Phase::Open | Phase::Draining);
        let paused = is_live && state.input == Input::Open && state.paused;
        if connection.clocks.pause(paused, now) {
            self.shared.counters.add(Counter::ReadsPaused, 1);
        }
        let wanted = state.interest();
        if wanted != connection.watched {
            let transport = &connection.transport;
            if let Err(error) = self.epoll.watch(transport, key, connection.watched, wanted) {
                // No memory or no watches left: this connection cannot go on.
                log::warn!("conn={} epoll_ctl failed: {error}", connection.id());
                self.abort(key, now);
                return;
            }
            connection.watched = wanted;
        }
        if let Some((at, _)) = connection.deadline(&view, &self.shared.settings) {
            self.timers.arm(key, &mut connection.timer, at);
        }
        if connection.starved {
            self.note_starved(key);
        }
    }

    /// Gives a connection up: out of epoll at once, and closed as soon as no
    /// thread writes to it any more. What was queued is lost, and counted.
    pub(super) fn abort(&mut self, key: Key, now: Instant) {
        let Some(Entry::Connection(connection)) = self.table.get_mut(key) else { return };
        if connection.watched.is_some() {
            // Fails only on a descriptor that is not in the set.
            let transport = &connection.transport;
            let result = self.epoll.watch(transport, key, connection.watched, None);
            debug_assert!(result.is_ok(), "{result:?}");
            connection.watched = None;
        }
        connection.phase = Phase::Aborting;
        connection.receive.close(&self.shared.counters);
        connection.end_input(connection.input, &self.shared);
        if connection.receive.send().clone().abort(&self.shared.counters) {
            self.remove(key, now);
        }
    }

    /// Gives up a connection whose peer does not read.
    pub(super) fn give_up_slow(&mut self, key: Key, now: Instant) {
        let Some(Entry::Connection(connection)) = self.table.get(key) else { return };
        // Who was cut before is counted already.
        let is_new = !connection.receive.send().view().cut;
        self.shared.counters.add(Counter::ClosedSlow, u64::from(is_new));
        self.abort(key, now);
    }

    /// The end: the permit goes back, then the descriptor is closed.
    fn remove(&mut self, key: Key, now: Instant) {
        let Some(Entry::Connection(connection)) = self.table.remove(key) else { return };
        log::debug!("conn={} closed", connection.id());
        self.permits.give_back();
        if let (true, Some(address)) = (connection.is_counted, connection.peer_address()) {
            self.peers.give_back(address);
        }
        step("close: given back");
        // Nobody shall be closed to make room for who is gone.
        self.starved.remove(&key);
        self.shared.counters.add(Counter::ConnectionsClosed, 1);
        step("close: counted");
        if let Some(clock) = &connection.clocks.blocked {
            self.count_blocked(key, Some(clock.began), None, now);
        }
        drop(connection);
        self.connections -= 1;
        self.publish_connections();
        self.room_for_connections(now);
    }

    /// What is due for a connection whose timer has fired.
    pub(super) fn enforce_deadline(&mut self, key: Key, now: Instant) {
        let Some(Entry::Connection(connection)) = self.table.get_mut(key) else {
            self.end_refused(key);
            return;
        };
        let view = connection.receive.send().view();
        let due = connection.deadline(&view, &self.shared.settings);
        if let Some((at, what)) = due
            && at <= now
        {
            self.act_on(key, what, &view, now);
        }
        self.look(key, now);
    }

    fn act_on(&mut self, key: Key, what: Deadline, view: &View, now: Instant) {
        let Some(Entry::Connection(connection)) = self.table.get_mut(key) else { return };
        let shared = &self.shared;
        match what {
            Deadline::Handshake => {
                shared.counters.add(Counter::ClosedHandshake, 1);
                let text = "no complete frame within timeouts.handshake";
                connection.say_goodbye(Goodbye::HandshakeTimeout, text, Then::Finish, shared);
            }
            Deadline::Frame => {
                shared.counters.add(Counter::ClosedFrameTimeout, 1);
                let text = "a begun frame was not complete within timeouts.frame";
                connection.refuse(ErrorNumber::FrameTimeout, text, shared);
            }
            Deadline::Idle if !view.is_idle || !connection.receive.view().is_empty => {
                // We owe it something: not idle.
                connection.clocks.received(now);
            }
            Deadline::Idle => {
                shared.counters.add(Counter::ClosedIdle, 1);
                let text = "nothing was received within timeouts.idle";
                connection.say_goodbye(Goodbye::Idle, text, Then::Finish, shared);
            }
            Deadline::Blocked => {
                if !connection.has_acknowledged(view, now) {
                    log::debug!("conn={} reads too slowly", connection.id());
                    self.give_up_slow(key, now);
                }
            }
            Deadline::RetrySend => {
                if let Some(clock) = &mut connection.clocks.blocked {
                    clock.retry_at = now + NO_BUFFERS_PAUSE;
                }
                connection.receive.send().clone().flush_blocked(&shared.counters);
            }
            Deadline::Drain => {
                // What the kernel has comes before the goodbye.
                let is_read = connection.read_all(&mut self.buffer, shared, now);
                match connection.clocks.ending.as_deref_mut() {
                    Some(Ending::Drain(clock)) if !is_read && now < clock.by => {
                        clock.at = now + DRAIN_RETRY;
                    }
                    _ => {
                        connection.clocks.ending = None;
                        connection.start_drain(self.drain_reason, shared);
                    }
                }
            }
            // What is queued is flushed all the same; who is pushed to without a pause
            // must not hold up the end.
            Deadline::DrainQuiet if !connection.receive.view().is_empty => {
                connection.clocks.received(now);
            }
            Deadline::DrainQuiet => {
                // One last look, so that between it and SHUT_WR there is no
                // wait in which a frame could come and stay unanswered.
                let before = connection.input_bytes;
                match connection.read(&mut self.buffer, shared, now) {
                    Read::Broken => self.abort(key, now),
                    Read::GoOn if connection.input_bytes == before => {
                        connection.end_input(Input::Refused, shared);
                        connection.receive.end();
                    }
                    Read::Served | Read::GoOn | Read::Ended => {}
                }
            }
            Deadline::Linger => self.abort(key, now),
        }
    }

    /// Discards what a closing connection still sends: close(2) with unread
    /// input sends RST, and RST destroys what is on its way to the peer.
    pub(super) fn linger(&mut self, key: Key, now: Instant) {
        let Some(Entry::Connection(connection)) = self.table.get_mut(key) else { return };
        let is_over = match connection.transport.receive(&mut self.buffer) {
            Ok(0) => true,
            Ok(received) => match connection.clocks.ending.as_deref_mut() {
                Some(Ending::Linger(clock)) => {
                    clock.discarded_bytes += received as u64;
                    clock.discarded_bytes >= LINGER_BYTES_MAX
                }
                _ => true,
            },
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        };
        if is_over {
            self.abort(key, now);
        }
    }
}

impl Connection {
    /// Reads what the kernel has, as far as that is a matter of a few reads. False
    /// if reading is paused: there may be more.
    fn read_all(&mut self, buffer: &mut [u8], shared: &Shared, now: Instant) -> bool {
        for _ in 0..DRAIN_READS_MAX {
            if self.input != Input::Open {
                return true;
            }
            let view = self.receive.send().view();
            if !self.state(&view).reads() {
                return false;
            }
            let before = self.input_bytes;
            let read = self.read(buffer, shared, now);
            if !matches!(read, Read::GoOn | Read::Served) || self.input_bytes == before {
                return true;
            }
        }
        true
    }

    /// Whether EPOLLHUP leaves something to do: messages that the peer sent before it
    /// closed, or that are not handled yet. Replies to them reach nobody.
    pub(super) fn can_read_on_after_hangup(&self) -> bool {
        let is_live = matches!(self.phase, Phase::Open | Phase::Draining);
        let is_blocked = self.receive.send().view().blocked.is_some();
        is_live && !is_blocked && self.transport.has_input_behind_hangup()
    }

    /// Reads what a peer that is gone has sent, as far as there is room for it; the
    /// rest when there is room again. Out of the epoll set, there is no other event.
    /// False if the connection is broken.
    fn read_rest(&mut self, buffer: &mut [u8], shared: &Shared, now: Instant) -> bool {
        /// A call that a signal interrupted is worth another one, not for ever.
        const FRUITLESS_MAX: usize = 8;
        let mut fruitless = 0;
        while fruitless < FRUITLESS_MAX {
            if shared.dispatch.total().excess() > 0 {
                self.starved = true;
            }
            let view = self.receive.send().view();
            let is_live = matches!(self.phase, Phase::Open | Phase::Draining);
            if !is_live || !self.state(&view).reads() {
                return true;
            }
            let before = self.input_bytes;
            match self.read(buffer, shared, now) {
                Read::Ended => return true,
                Read::GoOn if self.input_bytes == before => fruitless += 1,
                Read::GoOn | Read::Served => {}
                Read::Broken => return false,
            }
        }
        // Neither bytes nor an end: no hang-up that we know.
        false
    }

    /// Keeps the clock of a peer that takes nothing.
    fn note_blocked(&mut self, view: &View, now: Instant) {
        match (&mut self.clocks.blocked, view.blocked) {
            (clock, None) => *clock = None,
            (Some(clock), Some(why)) => clock.why = why,
            (clock @ None, Some(why)) => {
                let acknowledged = self.transport.acknowledged(view.sent_bytes);
                let retry_at = now + NO_BUFFERS_PAUSE;
                let new = BlockedClock { began: now, since: now, why, acknowledged, retry_at };
                *clock = Some(Box::new(new));
            }
        }
    }

    /// Whether a blocked peer has acknowledged anything since its clock
    /// started. If so the clock starts again: slow, but honest.
    fn has_acknowledged(&mut self, view: &View, now: Instant) -> bool {
        let acknowledged = self.transport.acknowledged(view.sent_bytes);
        let Some(clock) = &mut self.clocks.blocked else { return true };
        let has = acknowledged > clock.acknowledged;
        if has {
            (clock.since, clock.acknowledged) = (now, acknowledged);
        }
        has
    }

    /// Goodbye, behind what was received so far; then it goes on until quiet.
    pub(super) fn start_drain(&mut self, reason: Goodbye, shared: &Shared) {
        if self.phase != Phase::Open {
            return;
        }
        self.phase = Phase::Draining;
        if self.input == Input::Open {
            let text = match reason {
                Goodbye::Reloading => "reloading, connect again now",
                _ => "stopping",
            };
            // Not the turn's time: what was read behind that was received later.
            self.clocks.received(Instant::now());
            self.say_goodbye(reason, text, Then::GoOn, shared);
        }
    }
}
