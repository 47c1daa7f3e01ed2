//! The loop itself: it composes the owners, the table of connections, the reactor, the
//! acceptor, the admission, and runs one turn after the other. [`EventLoop::turn`] is the
//! only place where a worker's main thread sleeps.

use super::acceptor::{Acceptor, Listening};
use super::admission::Admission;
use super::connection::Connection;
use super::ending::Ending;
use super::pressure::Pressure;
use super::rates::Rates;
use super::reactor::{
    CALLS, CONNECTIONS, EpollSet, Fate, Key, LISTENERS, Reactor, Table, WATCHED, Watched,
};
use super::report::Reports;
use super::settings::{
    ACCEPTS_MAX, EVENTS_MAX, HANDLER_LONG_MS, LAST_ACCEPTS_MAX, REFUSED_LINGERING_MAX, Settings,
    TICK, TIMERS_SLACK,
};
use super::transport::{KernelSocket, ListenSocket, SocketOptions, Transport};
use chappe_engine::{
    Cause, Engine, Goodbye, Hooks, Mailbox, Names, Notice, Peer, Problem, Serve, Socket, Stage,
};
use chappe_shm::{Counter, Slot, ThreadRole};
use chappe_sys::clock::Moment;
use nix::sys::epoll::EpollEvent;
use std::io::{self, IoSlice};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// The event loop of a worker.
pub(crate) struct EventLoop {
    pub(super) table: Table,
    pub(super) reactor: Reactor,
    acceptor: Acceptor,
    admission: Admission,
    pub(super) pressure: Pressure,
    pub(super) reports: Reports,
    slot: Slot,
    /// How many connections that could not be let in are seen off.
    refused: usize,
    /// A connection was removed: a descriptor, and perhaps a place, has become free.
    has_removed: bool,
    /// The handler that has been running longest was logged.
    has_warned_of_handler: bool,
    /// What epoll_wait(2) brings.
    events: Box<[EpollEvent; EVENTS_MAX]>,
    called: Vec<u64>,
    next_tick: Moment,
}

impl EventLoop {
    /// Not listening yet. `listeners` are bound and non-blocking.
    ///
    /// # Errors
    /// Those of epoll_create1(2) and epoll_ctl(2).
    pub(crate) fn new(
        settings: Settings,
        listeners: Vec<(ListenSocket, SocketOptions)>,
        engine: Arc<Engine>,
        serve: Arc<dyn Serve>,
        slot: Slot,
    ) -> io::Result<Self> {
        let epoll = EpollSet::new(&engine)?;
        let counters = slot.counters(ThreadRole::EventLoop);
        let admission = Admission::new(slot.clone(), settings.connections_per_ip);
        Ok(Self {
            table: Table::with_key(),
            reactor: Reactor::new(epoll, settings, engine, serve, counters),
            acceptor: Acceptor::new(listeners, slot.clone()),
            admission,
            pressure: Pressure::default(),
            reports: Reports::new(slot.report().worker),
            slot,
            refused: 0,
            has_removed: false,
            has_warned_of_handler: false,
            events: Box::new([EpollEvent::empty(); EVENTS_MAX]),
            called: Vec::new(),
            next_tick: Moment::now() + TICK,
        })
    }

    /// Watches a descriptor of the worker's for input.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(crate) fn watch(&self, descriptor: BorrowedFd<'_>, watched: Watched) -> io::Result<()> {
        self.reactor.epoll.watch_own(descriptor, watched)
    }

    /// Stops watching it.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(crate) fn unwatch(&self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.reactor.epoll.remove(descriptor)
    }

    /// Starts to accept.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(crate) fn serve(&mut self) -> io::Result<()> {
        self.acceptor.listen(&self.reactor.epoll)
    }

    /// Says goodbye to all connections, spread over a time, and stops listening for good.
    /// What waits in the backlog is accepted first.
    pub(crate) fn start_drain(&mut self, reason: Goodbye, spread: Duration) {
        self.reactor.refresh_clock();
        self.reactor.drain_reason = reason;
        self.leave_listeners();
        let keys: Vec<Key> = self.table.keys().collect();
        let count = u32::try_from(keys.len().max(1)).unwrap_or(u32::MAX);
        let began = self.reactor.now;
        for (nth, key) in (0_u32..).zip(keys) {
            let at = began + spread / count * nth;
            self.with(key, |connection, reactor| connection.drain_at(key, at, reactor));
        }
    }

    /// Closes all connections now. What was queued for them is lost, and counted.
    pub(crate) fn close_all(&mut self) {
        self.reactor.refresh_clock();
        self.leave_listeners();
        let keys: Vec<Key> = self.table.keys().collect();
        for key in keys {
            self.with(key, |connection, reactor| connection.abort(key, Cause::Stopping, reactor));
        }
    }

    /// Whether no connection is left.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// How many connections there are.
    #[must_use]
    pub(crate) fn connections(&self) -> usize {
        self.admission.connections()
    }

    /// Counts something in the event loop's own line.
    pub(crate) fn count(&self, counter: Counter, n: u64) {
        if n > 0 {
            self.reactor.count(counter, n);
        }
    }

    // --- one turn ---

    /// Sleeps until something happens, and handles it. Which of the worker's own
    /// descriptors have input is left in `woken`. `until` bounds the sleep.
    ///
    /// # Errors
    /// Those of epoll_wait(2) other than EINTR.
    pub(crate) fn turn(
        &mut self,
        until: Option<Moment>,
        woken: &mut Vec<Watched>,
    ) -> io::Result<()> {
        woken.clear();
        let now = Moment::now();
        let timeout = self.timeout(until, now);
        self.slot.heartbeat(now.millis(), now.millis() + u64::from(timeout));
        let count = self.reactor.epoll.wait(&mut self.events[..], timeout)?;
        self.reactor.woken();
        self.reactor.refresh_clock();
        for nth in 0..count {
            let event = self.events[nth];
            match event.data() {
                CALLS => {
                    self.answer_calls();
                    self.reactor.refresh_clock();
                }
                own @ WATCHED..LISTENERS => woken.push(Watched(own - WATCHED)),
                listener @ LISTENERS..CONNECTIONS => {
                    self.accept_from(usize::try_from(listener - LISTENERS).expect("32 bits"));
                    self.reactor.refresh_clock();
                }
                token => {
                    let (key, flags) = (Key::of_token(token), event.events());
                    self.with(key, |connection, reactor| connection.on_event(key, flags, reactor));
                }
            }
        }
        self.fire_timers();
        self.come_back();
        self.relieve();
        self.reports.go_on(&self.table, self.reactor.now);
        if self.reactor.now >= self.next_tick {
            self.next_tick = self.reactor.now + TICK;
            self.tick();
        }
        if std::mem::take(&mut self.has_removed) && self.acceptor.listening == Listening::Later {
            self.try_listeners();
        }
        self.admission.show_blocked(&self.reactor);
        Ok(())
    }

    /// How long to sleep, in milliseconds.
    fn timeout(&self, until: Option<Moment>, now: Moment) -> u16 {
        if self.reports.is_writing() {
            return 0;
        }
        let comes_back = self.acceptor.comes_back_at();
        let relief = self.pressure.next_relief;
        let next = [self.reactor.timers.next(), until, comes_back, relief];
        let next = next.into_iter().flatten().min().unwrap_or(self.next_tick).min(self.next_tick);
        let left = next.since(now);
        // Rounded up, or the loop would spin through the last millisecond.
        u16::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u16::MAX)
    }

    /// Does something with a connection, and removes it if that was its end. Does nothing
    /// if it is gone: an earlier event of the same turn may have closed it.
    pub(super) fn with(
        &mut self,
        key: Key,
        act: impl FnOnce(&mut Connection, &mut Reactor) -> Fate,
    ) {
        let Some(connection) = self.table.get_mut(key) else { return };
        if act(connection, &mut self.reactor) == Fate::Gone {
            self.remove(key);
        }
    }

    /// The end: the permit goes back, then the descriptor is closed.
    fn remove(&mut self, key: Key) {
        let Some(connection) = self.table.remove(key) else { return };
        self.reactor.forget(key, &connection);
        let (held, peer) = (connection.held, connection.mailbox.peer());
        if held.permit {
            connection.mailbox.protocol().gone(connection.id());
        }
        self.admission.give_back(held, peer, &self.reactor);
        if log::log_enabled!(log::Level::Debug) {
            let cause = connection.mailbox.view().cause.map_or("none", Cause::name);
            let (id, held) = (connection.id(), self.admission.permits_held());
            log::debug!(target: "conn.closed", "conn={id} closed cause={cause} permits_held={held}");
        }
        self.refused -= usize::from(!held.permit);
        if connection.mailbox.listens() {
            self.reactor.tell_gone(connection.id());
        }
        drop(connection);
        self.has_removed = true;
    }

    fn fire_timers(&mut self) {
        while let Some((at, key)) = self.reactor.timers.pop_due(self.reactor.now) {
            self.with(key, |connection, reactor| match connection.timer.fires(at) {
                true => connection.on_timer(key, reactor),
                false => Fate::Stay,
            });
        }
    }

    /// Advances each connection that some thread has called for.
    fn answer_calls(&mut self) {
        let mut called = std::mem::take(&mut self.called);
        self.reactor.engine.calls().take(&mut called);
        for token in called.drain(..) {
            let key = Key::of_token(token);
            self.with(key, |connection, reactor| connection.on_call(key, reactor));
        }
        self.called = called;
        if self.reactor.engine.calls().take_room() {
            for key in std::mem::take(&mut self.reactor.starved) {
                self.with(key, |connection, reactor| connection.on_room(key, reactor));
            }
        }
        if self.reactor.engine.calls().take_overload() {
            self.shed();
        }
    }

    fn tick(&mut self) {
        let now = self.reactor.now;
        self.acceptor.tick(now);
        self.admission.tick(now);
        self.try_listeners();
        self.warn_of_long_handler();
        let engine = &self.reactor.engine;
        let (inbox, outbox) = (engine.inbox_total().used(), engine.outbox_total().used());
        let waiting = u32::try_from(engine.deferred().used()).unwrap_or(u32::MAX);
        self.slot.set_queued(inbox as u64, outbox as u64, waiting);
        self.pressure.tick(engine, now);
        if self.reactor.timers.len() > 2 * self.table.len() + TIMERS_SLACK {
            let armed = self.table.iter().map(|(key, connection)| (key, connection.timer));
            self.reactor.timers.rebuild(armed);
        }
    }

    /// A handler that runs for long is logged once. It is never killed.
    fn warn_of_long_handler(&mut self) {
        let running_ms = self.slot.report().oldest_handler_ms;
        if running_ms < HANDLER_LONG_MS {
            self.has_warned_of_handler = false;
        } else if !self.has_warned_of_handler {
            self.has_warned_of_handler = true;
            log::warn!(target: "handler.slow", "a handler has been running for a long time running_ms={running_ms}");
        }
    }

    // --- accepting ---

    fn accept_from(&mut self, nth: usize) {
        let mut accepted = 0;
        // An event of this turn may be of a time before the listener left the set.
        while accepted < ACCEPTS_MAX && self.acceptor.is_armed(nth) && self.accept_one(nth) {
            accepted += 1;
            let connections = self.connections();
            self.acceptor.stand_back_if_ahead(nth, connections, &self.reactor);
        }
        if accepted > 0 {
            self.acceptor.go_to_the_end(nth, &self.reactor);
        }
    }

    /// Accepts what waits at listeners that have left the set. Returns how many it took.
    fn accept_waiting(&mut self, most: usize) -> usize {
        let mut taken = 0;
        for nth in 0..self.acceptor.count() {
            while taken < most
                && self.has_place()
                && !self.acceptor.is_armed(nth)
                && self.accept_one(nth)
            {
                taken += 1;
            }
        }
        taken
    }

    /// Accepts one, and stops listening if there cannot be another. False if there was
    /// none.
    fn accept_one(&mut self, nth: usize) -> bool {
        let Some((fd, peer, options)) = self.acceptor.accept(nth, &self.reactor) else {
            return false;
        };
        self.let_in(fd, peer, &options);
        if !self.has_place() && self.acceptor.listening == Listening::Yes {
            self.acceptor.is_full(&self.reactor);
        }
        true
    }

    fn has_place(&self) -> bool {
        self.connections() < self.reactor.settings.connections_max
    }

    /// Puts a connection into the table, and advances it for the first time.
    fn let_in(&mut self, fd: OwnedFd, peer: Peer, options: &SocketOptions) {
        let transport = match KernelSocket::new(fd, peer, options) {
            Ok(transport) => Arc::new(transport),
            Err(error) => {
                log::debug!("cannot set up the socket of {peer}: {error}");
                return self.reactor.count(Counter::AcceptErrors, 1);
            }
        };
        let listener = options.listener;
        let admitted = self.admission.admit(peer, &self.reactor);
        match admitted {
            Ok((id, _)) => {
                let held = self.admission.permits_held();
                log::debug!(target: "conn.accepted", "conn={id} accepted peer={peer} permits_held={held}");
            }
            Err(why) => {
                log::debug!("refused peer={peer}: {why}");
                if !self.refuse(&transport, listener, why) {
                    return;
                }
            }
        }
        let (id, held) = admitted.unwrap_or_default();
        let Reactor { engine, settings, now, .. } = &self.reactor;
        let key = self.table.insert_with_key(|key| {
            let names = Names { id, token: key.token(), peer, listener, connected_at: *now };
            let socket = Arc::clone(&transport) as Arc<dyn Socket>;
            let mailbox = Arc::new(Mailbox::new(names, socket, Arc::clone(engine)));
            Connection::new(transport, mailbox, Rates::new(settings, *now), held, *now)
        });
        self.with(key, |connection, reactor| {
            if !held.permit {
                connection.see_off(reactor);
                return connection.advance(key, reactor);
            }
            connection.mailbox.protocol().accepted(&connection.mailbox);
            if reactor.settings.hooks != Hooks::None {
                connection.connect(reactor);
            }
            connection.advance(key, reactor)
        });
    }

    /// Tells a peer why it cannot stay. Whether it is to be seen off.
    fn refuse(&mut self, transport: &KernelSocket, listener: u8, why: &'static str) -> bool {
        let notice = Notice::Error { problem: Problem::Busy, code: None, text: why.into() };
        let encoded = self.reactor.engine.protocol(listener).notice_alone(&notice);
        // A fresh socket has room for so little; if not, the close must do.
        let is_told =
            encoded.is_none_or(|(bytes, _)| transport.send(&[IoSlice::new(&bytes)]).is_ok());
        let lingers = is_told && transport.finish().is_ok() && self.refused < REFUSED_LINGERING_MAX;
        self.refused += usize::from(lingers);
        lingers
    }

    /// The pause of a worker that stands back may be over.
    fn come_back(&mut self) {
        let take = self.acceptor.come_back(self.connections(), &self.reactor);
        if take > 0 {
            let taken = self.accept_waiting(take);
            self.acceptor.has_taken(taken, &self.reactor);
        }
    }

    /// Listens again if that is possible by now, and accepts what waits.
    fn try_listeners(&mut self) {
        if self.acceptor.listening == Listening::Later && self.has_place() {
            self.acceptor.listen_or_wait(&self.reactor);
        }
        for nth in 0..self.acceptor.count() {
            self.accept_from(nth);
        }
    }

    /// Stops listening for good, after what already waits was accepted.
    fn leave_listeners(&mut self) {
        let was_listening = self.acceptor.listening == Listening::Yes;
        self.acceptor.cease(Listening::No, &self.reactor.epoll);
        if was_listening {
            self.accept_waiting(LAST_ACCEPTS_MAX);
        }
        self.acceptor.close();
    }

    // --- for an operator ---

    /// Closes a connection with a goodbye, or at once if nothing gets through to its peer.
    /// False if it is not here. It looks at all of them: an operator is rare.
    pub(crate) fn kick(&mut self, id: u64) -> bool {
        let is_wanted = |connection: &Connection| connection.held.permit && connection.id() == id;
        let found = self.table.iter().find(|(_, connection)| is_wanted(connection));
        let Some((key, connection)) = found else { return false };
        let view = connection.mailbox.view();
        log::info!(target: "conn.kicked", "conn={id} kicked peer={}", connection.mailbox.peer());
        self.reactor.refresh_clock();
        // One that was kicked may linger: the next kick only ends that.
        let is_new = view.cause != Some(Cause::Kicked);
        self.reactor.count(Counter::ConnectionsKicked, u64::from(is_new));
        let gets_through = view.stage <= Stage::Answering && view.blocked.is_none();
        self.with(key, |connection, reactor| match gets_through {
            true => connection.end(key, Ending::Kicked, reactor),
            false => connection.abort(key, Cause::Kicked, reactor),
        });
        true
    }

    /// Begins a list of the connections, or of those that are blocked.
    /// [`EventLoop::take_list`] has it when it is complete.
    pub(crate) fn list(&mut self, ticket: u64, only_slow: bool) {
        self.reports.begin(ticket, only_slow, self.table.keys().collect());
    }

    /// A complete list and its ticket.
    pub(crate) fn take_list(&mut self) -> Option<(u64, io::Result<std::fs::File>)> {
        self.reports.take()
    }
}
