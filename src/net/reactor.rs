//! What a connection needs of its event loop: the epoll set, the timers, the clock, the
//! read buffer, and turns. The connections themselves stand beside it in the table, so that
//! one can be advanced with the reactor in hand.

use super::connection::Connection;
use super::interest::Interest;
use super::settings::{READ_BYTES_MAX, SCARCE_READ_BYTES, Settings};
use super::timers::Timers;
use super::transport::ListenSocket;
use chappe_engine::{
    Batch, Engine, Goodbye, HookCall, Mailbox, Place, Resume, Room, Serve, Source, Turned, Turns,
};
use chappe_shm::{Counter, ThreadCounters};
use chappe_sys::clock::Moment;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use slotmap::{Key as _, KeyData, SlotMap, new_key_type};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

new_key_type! {
    /// A place in the table and how often it was used: a late event or call for a
    /// connection that is gone finds nobody, not the next one in its place.
    pub(super) struct Key;
}

impl Key {
    /// As epoll and the call list carry it. Never below 2^32.
    pub(super) fn token(self) -> u64 {
        self.data().as_ffi()
    }

    pub(super) fn of_token(token: u64) -> Self {
        KeyData::from_ffi(token).into()
    }
}

/// The connections of a worker, by their keys.
pub(super) type Table = SlotMap<Key, Connection>;

/// Whether a connection is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Fate {
    /// It goes on.
    Stay,
    /// Nothing is left to do: its owner removes it, which closes the socket.
    Gone,
}

/// The loop without its connections.
pub(super) struct Reactor {
    pub(super) epoll: EpollSet,
    pub(super) settings: Settings,
    pub(super) engine: Arc<Engine>,
    pub(super) counters: ThreadCounters,
    pub(super) timers: Timers<Key>,
    /// The time, as the loop read it last: when it woke, or when a turn ended.
    pub(super) now: Moment,
    /// One for all connections: what is read leaves it at once.
    pub(super) buffer: Box<[u8]>,
    /// Connections that are not read for want of room in the inbox total.
    pub(super) starved: BTreeSet<Key>,
    /// Connections whose socket is full, the first first.
    pub(super) blocked: BTreeSet<(Moment, Key)>,
    /// The reason in the goodbye of a drained connection.
    pub(super) drain_reason: Goodbye,
    /// The handlers, for the turns that the loop runs itself.
    serve: Arc<dyn Serve>,
    batch: Batch,
}

impl Reactor {
    pub(super) fn new(
        epoll: EpollSet,
        settings: Settings,
        engine: Arc<Engine>,
        serve: Arc<dyn Serve>,
        counters: ThreadCounters,
    ) -> Self {
        Self {
            epoll,
            settings,
            engine,
            counters,
            timers: Timers::new(),
            now: Moment::now(),
            buffer: vec![0; READ_BYTES_MAX].into_boxed_slice(),
            starved: BTreeSet::new(),
            blocked: BTreeSet::new(),
            drain_reason: Goodbye::Stopping,
            serve,
            batch: Batch::default(),
        }
    }

    /// Runs a turn on the loop.
    pub(super) fn turn(&mut self, mailbox: &Arc<Mailbox>, source: Source<'_>) -> Turned {
        let mut turns = Turns::new(&*self.serve, &self.counters, Place::Loop, &mut self.batch);
        let turned = turns.run(mailbox, source, self.now);
        self.now = turned.ended;
        turned
    }

    /// A connection is gone that has asked for topics.
    pub(super) fn tell_gone(&self, id: u64) {
        self.serve.gone(id);
    }

    /// Whether a hook is not for the loop.
    pub(super) fn leaves_to_threads(&self, hook: HookCall) -> bool {
        self.serve.hook_pace(hook).is_for_threads()
    }

    /// It has slept.
    pub(super) fn woken(&self) {
        self.serve.woken();
    }

    /// Reads the clock, where the last time that it was read may be long ago.
    pub(super) fn refresh_clock(&mut self) {
        self.now = Moment::now();
    }

    /// How many bytes a connection may bring now; `None`: it has to wait for room in the
    /// inbox total. Asked before each read, so that all connections together go no further
    /// beyond the total than one read, and then [`SCARCE_READ_BYTES`] each.
    ///
    /// Those few bytes are for connections that hold nothing: what fits into them, a ping
    /// above all, is handled and gone, however much memory begun messages hold.
    pub(super) fn room_to_read(&self, connection: &Connection) -> Option<usize> {
        if self.engine.inbox_total().room() == Room::Free {
            return Some(READ_BYTES_MAX);
        }
        (!connection.framer.is_inside_message()).then_some(SCARCE_READ_BYTES)
    }

    /// A connection waits for room in the inbox total.
    pub(super) fn note_starved(&mut self, key: Key) {
        let is_first = self.starved.is_empty();
        self.starved.insert(key);
        let waiter = Arc::clone(&self.engine) as Arc<dyn Resume>;
        if is_first && self.engine.inbox_total().wait_for_room(waiter) == Room::Free {
            self.engine.calls().report_room();
        }
    }

    /// A connection is gone.
    pub(super) fn forget(&mut self, key: Key, connection: &Connection) {
        // No connection is closed to make room for one that is gone.
        self.starved.remove(&key);
        if let Some(clock) = &connection.clocks.blocked {
            self.blocked.remove(&(clock.began, key));
        }
    }

    pub(super) fn count(&self, counter: Counter, n: u64) {
        self.counters.add(counter, n);
    }
}

/// Epoll data: what an event is for.
pub(super) const CALLS: u64 = 0;
/// The worker's own descriptors.
pub(super) const WATCHED: u64 = 8;
/// The listeners, by their numbers.
pub(super) const LISTENERS: u64 = 16;
/// The tokens of connections.
pub(super) const CONNECTIONS: u64 = 1 << 32;

/// A descriptor of the worker's own that the loop watches: its signals, its channel to the
/// master. The number is the worker's to choose, below 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watched(pub u64);

/// The epoll set.
#[derive(Debug)]
pub(super) struct EpollSet(Epoll);

impl EpollSet {
    /// With the call list in it.
    ///
    /// # Errors
    /// Those of epoll_create1(2) and epoll_ctl(2).
    pub(super) fn new(engine: &Engine) -> io::Result<Self> {
        let set = Self(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        set.add(engine.calls().waker().as_fd(), EpollFlags::EPOLLIN, CALLS)?;
        Ok(set)
    }

    /// epoll_wait(2). EINTR counts as no event: nothing is said of what is ready.
    ///
    /// # Errors
    /// Those of epoll_wait(2), other than EINTR.
    pub(super) fn wait(&self, events: &mut [EpollEvent], timeout: u16) -> io::Result<usize> {
        match self.0.wait(events, timeout) {
            Ok(count) => Ok(count),
            Err(nix::errno::Errno::EINTR) => Ok(0),
            Err(errno) => Err(errno.into()),
        }
    }

    pub(super) fn watch_own(&self, fd: BorrowedFd<'_>, watched: Watched) -> io::Result<()> {
        debug_assert!(watched.0 < 8);
        self.add(fd, EpollFlags::EPOLLIN, WATCHED + watched.0)
    }

    pub(super) fn watch_listener(&self, listener: &ListenSocket, nth: usize) -> io::Result<()> {
        // EPOLLEXCLUSIVE: a connect wakes one worker and not all of them.
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE;
        self.add(listener.as_fd(), flags, LISTENERS + nth as u64)
    }

    fn add(&self, fd: BorrowedFd<'_>, flags: EpollFlags, data: u64) -> io::Result<()> {
        Ok(self.0.add(fd, EpollEvent::new(flags, data))?)
    }

    pub(super) fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(self.0.delete(fd)?)
    }

    /// Brings the set from what it watches for a connection to what it is to watch.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(super) fn watch(
        &self,
        fd: BorrowedFd<'_>,
        key: Key,
        from: Interest,
        to: Interest,
    ) -> io::Result<()> {
        match (from.flags(), to.flags()) {
            (None, Some(flags)) => self.add(fd, flags, key.token()),
            (Some(_), Some(flags)) => {
                Ok(self.0.modify(fd, &mut EpollEvent::new(flags, key.token()))?)
            }
            (Some(_), None) => self.remove(fd),
            (None, None) => Ok(()),
        }
    }
}
