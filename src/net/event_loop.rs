//! The loop itself: the epoll set, the table of connections, one turn after the
//! other. [`EventLoop::turn`] is the only place where a worker's main thread sleeps.

use super::accept::{Listeners, Refused};
use super::connection::{Connection, DrainClock, Ending};
use super::interest::Phase;
use super::listing::Listing;
use super::receive::Read;
use super::settings::{
    DRAIN_POSTPONED_MAX, EVENTS_MAX, HANDLER_LONG_MS, LOOK_PAUSE, READ_BYTES_MAX, Settings, TICK,
    TIMERS_SLACK,
};
use super::timers::Timers;
use super::transport::{Acceptor, SocketOptions, Transport};
use crate::dispatch::{
    Cut, DispatchPath, OnLoop, ReceiveHalf, run_turn_directly, run_turn_on_loop,
};
use crate::handler::Serve;
use crate::send::SendPath;
use crate::throttle::Throttle;
use chappe_shm::{Counter, Peers, Permits, Slot, ThreadCounters};
use chappe_wire::Goodbye;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use slotmap::{Key as _, KeyData, SlotMap, new_key_type};
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

new_key_type! {
    /// A place in the table and how often it was used: a late event or call for
    /// a connection that is gone finds nobody, not the next one in its place.
    pub(super) struct Key;
}

/// A descriptor of the worker's own that the loop watches: its signals, its
/// channel to the master. The number is the worker's to choose, below 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched(pub u8);

/// Epoll data of what is no connection. A [`Key`] is never below 2^32.
const BELL: u64 = 0;
const WATCHED: u64 = 8;
const LISTENERS: u64 = 16;

/// What connections and the loop both use.
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) dispatch: Arc<DispatchPath>,
    pub(super) send: Arc<SendPath>,
    pub(super) counters: ThreadCounters,
    /// For the turns that the loop runs itself.
    serve: Arc<dyn Serve>,
    on_loop: RefCell<OnLoop>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Shared {
    /// The turn of a connection that was empty: here, as far as its handlers are quick,
    /// or on a handler thread.
    pub(super) fn start_turn(&self, receive: &Arc<ReceiveHalf>) {
        if self.settings.fuse {
            run_turn_on_loop(receive, &*self.serve, &self.counters);
        } else {
            receive.list();
        }
    }

    /// The turn of what was just read, out of the loop's own buffer. False if it has to
    /// go through the inbox.
    pub(super) fn serve_directly(&self, receive: &Arc<ReceiveHalf>, read: &Cut<'_>) -> bool {
        let mut on_loop = self.on_loop.borrow_mut();
        self.settings.fuse
            && run_turn_directly(receive, read, &*self.serve, &self.counters, &mut on_loop)
    }
}

/// What stands in the table.
#[derive(Debug)]
pub(super) enum Entry {
    Connection(Connection),
    /// Was told "busy".
    Refused(Refused),
}

/// The epoll set.
#[derive(Debug)]
pub(super) struct Watch(Epoll);

/// Warnings of which there can be thousands a second.
#[derive(Debug)]
pub(super) struct Warnings {
    pub(super) accept_failed: Throttle,
    pub(super) full: Throttle,
    pub(super) largest_closed: Throttle,
    pub(super) per_ip: Throttle,
    pub(super) uncounted: Throttle,
}

impl Warnings {
    fn new() -> Self {
        Self {
            accept_failed: Throttle::new(1),
            full: Throttle::new(1),
            largest_closed: Throttle::new(5),
            per_ip: Throttle::new(1),
            uncounted: Throttle::new(1),
        }
    }

    /// Tells of what was held back and has no later warning to be told with.
    fn tick(&mut self, now: Instant) {
        let all = [
            ("accept failed", &mut self.accept_failed),
            ("at worker.max_connections", &mut self.full),
            ("total exhausted, closed the largest holders", &mut self.largest_closed),
            ("at limits.connections_per_ip, connections refused", &mut self.per_ip),
            ("table of addresses full, connections let in uncounted", &mut self.uncounted),
        ];
        for (what, throttle) in all {
            if let Some(held) = throttle.settle(now) {
                log::warn!("{what}{held}");
            }
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct EventLoop {
    pub(super) epoll: Watch,
    pub(super) table: SlotMap<Key, Entry>,
    /// How many of the table's entries are connections.
    pub(super) connections: usize,
    pub(super) refused: usize,
    pub(super) shared: Shared,
    pub(super) permits: Permits,
    pub(super) peers: Peers,
    pub(super) slot: Slot,
    pub(super) ids: std::ops::Range<u64>,
    pub(super) timers: Timers<Key>,
    pub(super) listeners: Listeners,
    /// Not read for want of room in the inbox total.
    pub(super) starved: BTreeSet<Key>,
    /// Whose socket is full, the first first.
    pub(super) blocked: BTreeSet<(Instant, Key)>,
    /// Since when the inbox total has had no room, as the ticks saw it.
    pub(super) starved_since: Option<Instant>,
    /// The most that was queued since memory was given back.
    pub(super) queued_peak: usize,
    /// How often the largest holders went since then.
    pub(super) reliefs: u32,
    /// The handler that has been running longest is known to the log.
    told_of_long_handler: bool,
    /// What epoll_wait brings.
    events: Box<[EpollEvent; EVENTS_MAX]>,
    /// One for all connections: what is read leaves it at once.
    pub(super) buffer: Box<[u8]>,
    pub(super) drain_reason: Goodbye,
    called: Vec<u64>,
    /// Lists of connections that are being written, and those that are complete.
    pub(super) listings: VecDeque<Listing>,
    pub(super) lists: VecDeque<(u64, io::Result<File>)>,
    pub(super) warnings: Warnings,
    next_tick: Instant,
    /// When to look whether work gets on, if any waits and somebody has to.
    look_at: Option<Instant>,
}

impl EventLoop {
    /// Not listening yet. `listeners` are bound and non-blocking.
    ///
    /// # Errors
    /// Those of epoll_create1(2) and epoll_ctl(2).
    pub fn new(
        settings: Settings,
        listeners: Vec<(Acceptor, SocketOptions)>,
        dispatch: Arc<DispatchPath>,
        send: Arc<SendPath>,
        serve: Arc<dyn Serve>,
        slot: Slot,
    ) -> io::Result<Self> {
        let epoll = Watch(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        epoll.add(send.calls().bell().as_fd(), EpollFlags::EPOLLIN, BELL)?;
        let counters = slot.counters(chappe_shm::ThreadRole::EventLoop);
        Ok(Self {
            epoll,
            table: SlotMap::with_key(),
            connections: 0,
            refused: 0,
            shared: Shared {
                settings,
                dispatch,
                send,
                counters,
                serve,
                on_loop: RefCell::default(),
            },
            permits: slot.permits(),
            peers: slot.peers(),
            slot,
            ids: 0..0,
            timers: Timers::new(),
            listeners: Listeners::new(listeners),
            starved: BTreeSet::new(),
            blocked: BTreeSet::new(),
            starved_since: None,
            queued_peak: 0,
            reliefs: 0,
            told_of_long_handler: false,
            events: Box::new([EpollEvent::empty(); EVENTS_MAX]),
            buffer: vec![0; READ_BYTES_MAX].into_boxed_slice(),
            drain_reason: Goodbye::Stopping,
            called: Vec::new(),
            listings: VecDeque::new(),
            lists: VecDeque::new(),
            warnings: Warnings::new(),
            next_tick: Instant::now() + TICK,
            look_at: None,
        })
    }

    /// Watches a descriptor of the worker's for input.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn watch(&self, descriptor: BorrowedFd<'_>, watched: Watched) -> io::Result<()> {
        debug_assert!(watched.0 < 8);
        self.epoll.add(descriptor, EpollFlags::EPOLLIN, WATCHED + u64::from(watched.0))
    }

    /// Stops watching it.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn unwatch(&self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        Ok(self.epoll.0.delete(descriptor)?)
    }

    /// Says goodbye to all connections, spread over a time, and stops listening
    /// for good. What waits in the backlog is accepted first.
    pub fn start_drain(&mut self, reason: Goodbye, spread: Duration) {
        let now = Instant::now();
        self.drain_reason = reason;
        self.leave_listeners(now);
        let keys: Vec<Key> = self.table.keys().collect();
        let count = u32::try_from(keys.len().max(1)).unwrap_or(u32::MAX);
        for (nth, key) in (0_u32..).zip(keys) {
            if let Some(Entry::Connection(connection)) = self.table.get_mut(key)
                && connection.phase != Phase::Lingering
            {
                let at = now + spread / count * nth;
                let clock = DrainClock { at, by: at + DRAIN_POSTPONED_MAX };
                connection.clocks.ending = Some(Box::new(Ending::Drain(clock)));
                self.look(key, now);
            }
        }
    }

    /// Closes all connections now. What was queued for them is lost, and counted.
    pub fn close_all(&mut self) {
        let now = Instant::now();
        self.leave_listeners(now);
        let keys: Vec<Key> = self.table.keys().collect();
        for key in keys {
            self.abort(key, now);
            self.end_refused(key);
        }
    }

    /// Whether no connection is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// Counts something in the event loop's own line.
    pub fn count(&self, counter: Counter, n: u64) {
        if n > 0 {
            self.shared.counters.add(counter, n);
        }
    }

    /// Sleeps until something happens, and handles it. Which of the worker's own
    /// descriptors have input is left in `woken`. `until` bounds the sleep.
    ///
    /// # Errors
    /// Those of epoll_wait(2) other than EINTR.
    pub fn turn(&mut self, until: Option<Instant>, woken: &mut Vec<Watched>) -> io::Result<()> {
        woken.clear();
        let timeout = self.timeout(until);
        let now_ms = chappe_sys::clock::monotonic_ms();
        self.slot.heartbeat(now_ms, now_ms + u64::from(timeout));
        let count = match self.epoll.0.wait(&mut *self.events, timeout) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let now = Instant::now();
        for nth in 0..count {
            let event = self.events[nth];
            let (flags, data) = (event.events(), event.data());
            if data == BELL {
                self.answer_calls(now);
            } else if (WATCHED..LISTENERS).contains(&data) {
                woken.push(Watched(u8::try_from(data - WATCHED).expect("below 8")));
            } else if data <= u64::from(u32::MAX) {
                self.accept_from(usize::try_from(data - LISTENERS).expect("32 bits"), now);
            } else {
                self.handle_event(KeyData::from_ffi(data).into(), flags, now);
            }
        }
        while let Some(fired) = self.timers.pop_due(now) {
            let is_due = match self.table.get_mut(fired.key) {
                Some(Entry::Connection(connection)) => fired.is_valid(&mut connection.timer),
                Some(Entry::Refused(_)) => true,
                None => false,
            };
            if is_due {
                self.enforce_deadline(fired.key, now);
            }
        }
        self.look_whether_to_come_back(now);
        self.look_after_work(now);
        self.go_on_listing(now);
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.tick(now);
        }
        Ok(())
    }

    /// With helpers that nobody wakes for little work: sees that work gets on.
    fn look_after_work(&mut self, now: Instant) {
        let run_list = self.shared.dispatch.run_list();
        if run_list.wants_looks() && self.look_at.is_none_or(|at| at <= now) {
            self.look_at = run_list.look().then(|| now + LOOK_PAUSE);
        }
    }

    /// In milliseconds.
    fn timeout(&self, until: Option<Instant>) -> u16 {
        if !self.listings.is_empty() {
            return 0;
        }
        let back = self.listeners.back.map(|back| back.look_at);
        let next = [self.timers.next(), until, back, self.look_at].into_iter().flatten().min();
        let next = next.map_or(self.next_tick, |next| next.min(self.next_tick));
        let left = next.saturating_duration_since(Instant::now());
        // Rounded up, or the loop would spin through the last millisecond.
        u16::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u16::MAX)
    }

    fn handle_event(&mut self, key: Key, flags: EpollFlags, now: Instant) {
        let connection = match self.table.get_mut(key) {
            Some(Entry::Connection(connection)) => connection,
            Some(Entry::Refused(_)) => return self.linger_refused(key),
            // Closed by an earlier event of the same turn.
            None => return,
        };
        if connection.phase == Phase::Lingering {
            return self.linger(key, now);
        }
        if flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            // Neither can be masked: out of the set, or the loop would spin.
            if !connection.can_read_on_after_hangup() {
                return self.abort(key, now);
            }
            connection.hung_up = true;
            return self.look(key, now);
        }
        if flags.contains(EpollFlags::EPOLLOUT) {
            connection.receive.send().clone().flush_blocked(&self.shared.counters);
        }
        if flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP) {
            let view = connection.receive.send().view();
            let room = self.room_to_read(key);
            let Some(Entry::Connection(connection)) = self.table.get_mut(key) else { return };
            // The state may have changed since epoll was told.
            if connection.state(&view).reads() {
                let buffer = &mut self.buffer[..room];
                match connection.read(buffer, &self.shared, now) {
                    Read::Broken => return self.abort(key, now),
                    // Whatever else has changed has called the loop.
                    Read::Served if !flags.contains(EpollFlags::EPOLLOUT) => return,
                    Read::Served | Read::GoOn | Read::Ended => {}
                }
            }
        }
        self.look(key, now);
    }

    /// Looks at each connection that some thread has called for.
    fn answer_calls(&mut self, now: Instant) {
        let mut called = std::mem::take(&mut self.called);
        self.shared.send.calls().take(&mut called);
        for token in called.drain(..) {
            let key = KeyData::from_ffi(token).into();
            if let Some(Entry::Connection(connection)) = self.table.get(key) {
                // Before the look: a later change calls again.
                connection.receive.send().clear_call();
                self.look(key, now);
            }
        }
        self.called = called;
        if self.shared.send.calls().take_room() {
            for key in std::mem::take(&mut self.starved) {
                if let Some(Entry::Connection(connection)) = self.table.get_mut(key) {
                    connection.starved = false;
                    self.look(key, now);
                }
            }
        }
        if self.shared.send.calls().take_overload() {
            self.shed(now);
        }
    }

    /// A handler that runs for long is told of once. It is never killed.
    fn warn_of_long_handler(&mut self) {
        let running_ms = self.slot.report().oldest_handler_ms;
        if running_ms < HANDLER_LONG_MS {
            self.told_of_long_handler = false;
        } else if !self.told_of_long_handler {
            self.told_of_long_handler = true;
            log::warn!("a handler has been running for long running_ms={running_ms}");
        }
    }

    fn tick(&mut self, now: Instant) {
        self.warnings.tick(now);
        self.tick_listeners(now);
        self.relieve_starved(now);
        self.warn_of_long_handler();
        let (inbox, outbox) =
            (self.shared.dispatch.total().used(), self.shared.send.total().used());
        self.slot.set_queued(inbox as u64, outbox as u64);
        self.give_memory_back(inbox + outbox);
        if self.timers.len() > 2 * self.table.len() + TIMERS_SLACK {
            let armed = self.table.iter().map(|(key, entry)| match entry {
                Entry::Connection(connection) => (key, connection.timer),
                Entry::Refused(refused) => (key, refused.timer()),
            });
            self.timers.rebuild(armed);
        }
    }

    /// Shows how many connections there are.
    pub(super) fn publish_connections(&self) {
        self.slot.set_connections(u32::try_from(self.connections).unwrap_or(u32::MAX));
    }
}

impl Watch {
    pub(super) fn add(&self, fd: BorrowedFd<'_>, flags: EpollFlags, data: u64) -> io::Result<()> {
        Ok(self.0.add(fd, EpollEvent::new(flags, data))?)
    }

    pub(super) fn delete(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(self.0.delete(fd)?)
    }

    pub(super) fn add_listener(&self, listener: &Acceptor, nth: usize) -> io::Result<()> {
        // EPOLLEXCLUSIVE: a connect wakes one worker and not all of them.
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE;
        self.add(listener.as_fd(), flags, LISTENERS + nth as u64)
    }

    /// Brings the set from what it watches to what it shall watch.
    pub(super) fn watch(
        &self,
        transport: &Transport,
        key: Key,
        watched: Option<EpollFlags>,
        wanted: Option<EpollFlags>,
    ) -> io::Result<()> {
        let data = key.data().as_ffi();
        match (watched, wanted) {
            (None, Some(flags)) => self.add(transport.as_fd(), flags, data),
            (Some(_), Some(flags)) => {
                Ok(self.0.modify(transport, &mut EpollEvent::new(flags, data))?)
            }
            (Some(_), None) => self.delete(transport.as_fd()),
            (None, None) => Ok(()),
        }
    }
}
