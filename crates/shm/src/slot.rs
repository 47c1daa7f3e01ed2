//! A worker's place in the zone: who it is, how far it is, what it counts.
//!
//! The worker's threads write what is theirs; the master reads. The state is the
//! truth about a worker's readiness, and `worker_ready` only the bell. What the worker is
//! to do stands here as well, written by the master: see `orders`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use chappe_sys::crash::step;
use chappe_sys::{Semaphore, clock};

use super::counter::{CounterValues, SharedCounters, ThreadCounters};
use super::handler_times::HandlerTimes;
use super::layout::{HANDLER_THREADS_MAX, LINES, SlotLayout};
use super::peers::Peers;
use super::permits::Permits;
use super::zone::Zone;

/// How far the worker in a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SlotState {
    /// Nobody lives here.
    Free = 0,
    /// Claimed; the worker is being forked or prepares itself.
    Starting = 1,
    /// The worker waits for `serve`.
    Ready = 2,
    /// The worker accepts.
    Serving = 3,
    /// The worker accepts no more and finishes what it has, or has the order to.
    Draining = 4,
}

impl SlotState {
    pub(super) fn from_cell(value: u32) -> Self {
        match value {
            1 => Self::Starting,
            2 => Self::Ready,
            3 => Self::Serving,
            4 => Self::Draining,
            _ => Self::Free,
        }
    }

    /// The word in `status`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Starting | Self::Ready => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }
}

/// Which thread of a worker writes a counter line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadRole {
    /// The worker's main thread.
    EventLoop,
    /// The thread asleep on the send semaphore.
    SendThread,
    /// A handler thread, by its number from 0 to `HANDLER_THREADS_MAX - 1`.
    Handler(u16),
}

impl ThreadRole {
    fn line(self) -> usize {
        match self {
            Self::EventLoop => 0,
            Self::SendThread => 1,
            Self::Handler(thread) => {
                let thread = usize::from(thread);
                assert!(thread < HANDLER_THREADS_MAX, "handler thread {thread} has no line");
                3 + thread
            }
        }
    }
}

/// A handle to a worker's slot.
#[derive(Clone)]
pub struct Slot {
    zone: Arc<Zone>,
    index: usize,
}

/// What the connections of a worker hold, as its event loop last said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Received and not handled, at its cost.
    pub inbox_bytes: u64,
    /// Queued and not sent, at its cost.
    pub outbox_bytes: u64,
    /// Messages that wait for a deferred reply.
    pub waiting: u32,
    /// Connections whose socket is full.
    pub blocked: u32,
    /// For how long the one has been that has been for the longest.
    pub oldest_blocked_ms: u64,
}

/// What the master knows of a worker by looking into its slot.
#[derive(Clone, Debug)]
pub struct SlotReport {
    /// The number of the slot among all, from 0.
    pub slot: usize,
    /// The worker's number, from 0.
    pub worker: u16,
    /// Its process; 0 until the fork.
    pub pid: u32,
    /// Which reload it belongs to.
    pub generation: u64,
    /// How far it is.
    pub state: SlotState,
    /// When the slot was claimed, by [`clock::monotonic_ms`].
    pub started_at_ms: u64,
    /// When its event loop last said that it runs; 0 for never.
    pub heartbeat_ms: u64,
    /// Its open connections.
    pub connections: u32,
    /// What its connections hold.
    pub gauges: Gauges,
    /// Published to topics, and not read by it yet.
    pub behind_bytes: u64,
    /// Handler threads inside a turn.
    pub handlers_busy: u32,
    /// For how long the oldest of these turns has been running.
    pub oldest_handler_ms: u64,
    /// How long its handler threads' turns took.
    pub handler_times: HandlerTimes,
    /// The value of its send semaphore; `None` if it can't be read, since somebody has
    /// written over it.
    pub send_permits: Option<u32>,
    /// The sum over its threads.
    pub counters: CounterValues,
    /// Those of its application, in the order of the catalog.
    pub app_counters: Vec<u64>,
}

impl Slot {
    pub(super) fn new(zone: Arc<Zone>, index: usize) -> Self {
        Self { zone, index }
    }

    /// Its number among all slots, from 0.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    pub(super) fn layout(&self) -> &SlotLayout {
        &self.zone.layout().slots[self.index]
    }

    /// The zone that the slot is part of.
    #[must_use]
    pub fn zone(&self) -> &Arc<Zone> {
        &self.zone
    }

    /// A thread's counters. Each thread asks once and keeps them; a second one for
    /// the same role would lose counts.
    ///
    /// # Panics
    /// For a handler number beyond `HANDLER_THREADS_MAX`.
    #[must_use]
    pub fn counters(&self, role: ThreadRole) -> ThreadCounters {
        let line = role.line();
        let used = u32::try_from(line + 1).expect("LINES fits");
        self.layout().identity.lines_used.fetch_max(used, Ordering::Release);
        let index = self.index;
        ThreadCounters::new(self.zone.mapping().part(|layout| &layout.slots[index].lines[line]))
    }

    /// The counters of threads that the application has started.
    #[must_use]
    pub fn shared_counters(&self) -> SharedCounters {
        const LINE: usize = 2;
        let used = u32::try_from(LINE + 1).expect("LINES fits");
        self.layout().identity.lines_used.fetch_max(used, Ordering::Release);
        let index = self.index;
        SharedCounters::new(self.zone.mapping().part(|layout| &layout.slots[index].lines[LINE]))
    }

    /// Access to the connection permits, for the event loop only.
    #[must_use]
    pub fn permits(&self) -> Permits {
        let index = self.index;
        Permits::new(
            self.zone.mapping().part(|layout| &layout.slots[index].event_loop),
            self.zone.mapping().part(|layout| &layout.permit_pool),
            self.zone.connection_permits().clone(),
        )
    }

    /// Access to the connections of each address, for the event loop only.
    #[must_use]
    pub fn peers(&self) -> Peers {
        Peers::new(Arc::clone(&self.zone), self.peer_table())
    }

    /// The semaphore that this worker's send thread sleeps on.
    #[must_use]
    pub fn send_semaphore(&self) -> Semaphore {
        let index = self.index;
        self.zone.mapping().semaphore(|layout| &layout.slots[index].send.semaphore)
    }

    fn send_permits(&self) -> Option<u32> {
        let semaphore =
            self.zone.mapping().find_semaphore(|layout| &layout.slots[self.index].send.semaphore);
        semaphore?.checked_value()
    }

    /// The worker is prepared and waits for `serve`: first the state, then the bell.
    pub fn mark_ready(&self) {
        self.set_state(SlotState::Ready);
        self.zone.worker_ready().post();
        step("slot: bell rung");
    }

    /// The worker accepts.
    pub fn mark_serving(&self) {
        self.set_state(SlotState::Serving);
    }

    /// The worker has closed its listening sockets.
    pub fn mark_draining(&self) {
        self.set_state(SlotState::Draining);
    }

    pub(super) fn set_state(&self, state: SlotState) {
        step("slot: before a state");
        // Release: a thread that sees the state sees what was prepared before it.
        self.zone.layout().states[self.index].store(state as u32, Ordering::Release);
        step("slot: after a state");
    }

    /// How far the worker is. One that serves and has the order to stop gracefully counts as
    /// draining, whether or not it has read the order.
    #[must_use]
    pub fn state(&self) -> SlotState {
        match self.reached() {
            SlotState::Serving if self.orders().stage.is_drain() => SlotState::Draining,
            state => state,
        }
    }

    /// Whether the worker has closed its listening sockets, not only has the order to.
    #[must_use]
    pub fn has_left_listeners(&self) -> bool {
        self.reached() == SlotState::Draining
    }

    fn reached(&self) -> SlotState {
        SlotState::from_cell(self.zone.layout().states[self.index].load(Ordering::Acquire))
    }

    /// Notes the process that was forked into the slot. Master only.
    pub fn set_pid(&self, pid: u32) {
        self.layout().identity.pid.store(pid, Ordering::Relaxed);
    }

    /// The first of `count` connection IDs that no connection of this zone has or
    /// had. The first ID of all is 1.
    #[must_use]
    pub fn connection_ids(&self, count: u64) -> u64 {
        // Relaxed: an ID orders nothing, it only has to be unique.
        self.zone.layout().connection_ids.next.fetch_add(count, Ordering::Relaxed)
    }

    /// A handler thread begins a turn at `now_ms` ([`clock::monotonic_ms`]).
    pub fn handler_started(&self, thread: u16, now_ms: u64) {
        let line = ThreadRole::Handler(thread).line();
        self.layout().lines[line].busy_since_ms.store(now_ms.max(1), Ordering::Relaxed);
    }

    /// It has nothing to do.
    pub fn handler_idle(&self, thread: u16) {
        let line = ThreadRole::Handler(thread).line();
        self.layout().lines[line].busy_since_ms.store(0, Ordering::Relaxed);
    }

    /// The event loop has come round at `now_ms` ([`clock::monotonic_ms`]) and sleeps
    /// until `wakes_by_ms` at the longest.
    pub fn heartbeat(&self, now_ms: u64, wakes_by_ms: u64) {
        let line = &self.layout().event_loop;
        line.wakes_by_ms.store(wakes_by_ms, Ordering::Relaxed);
        line.heartbeat_ms.store(now_ms, Ordering::Relaxed);
    }

    /// When the event loop came round last, and when it must come round again; 0
    /// before the first time.
    #[must_use]
    pub fn heartbeats(&self) -> (u64, u64) {
        let line = &self.layout().event_loop;
        let last = line.heartbeat_ms.load(Ordering::Relaxed);
        (last, line.wakes_by_ms.load(Ordering::Relaxed))
    }

    /// How many connections the worker has. Event loop only.
    pub fn set_connections(&self, n: u32) {
        self.layout().event_loop.connections.store(n, Ordering::Relaxed);
    }

    /// How many connections have a full socket, and since when
    /// ([`clock::monotonic_ms`]) the first of them has had one; 0 for none. Event loop
    /// only.
    pub fn set_blocked(&self, n: u32, since_ms: u64) {
        let line = &self.layout().event_loop;
        line.blocked.store(n, Ordering::Relaxed);
        line.blocked_since_ms.store(since_ms, Ordering::Relaxed);
    }

    /// What is received and not handled, queued and not sent, and how many messages wait for a
    /// deferred reply. Event loop only.
    pub fn set_queued(&self, inbox_bytes: u64, outbox_bytes: u64, waiting: u32) {
        let line = &self.layout().event_loop;
        line.inbox_bytes.store(inbox_bytes, Ordering::Relaxed);
        line.outbox_bytes.store(outbox_bytes, Ordering::Relaxed);
        line.waiting.store(waiting, Ordering::Relaxed);
    }

    /// The number of its table of addresses, if it has one.
    pub(super) fn peer_table(&self) -> Option<usize> {
        let number = self.layout().identity.peer_table.load(Ordering::Relaxed);
        usize::try_from(number).ok()?.checked_sub(1)
    }

    fn gauges(&self, now_ms: u64) -> Gauges {
        let line = &self.layout().event_loop;
        let since_ms = line.blocked_since_ms.load(Ordering::Relaxed);
        Gauges {
            inbox_bytes: line.inbox_bytes.load(Ordering::Relaxed),
            outbox_bytes: line.outbox_bytes.load(Ordering::Relaxed),
            waiting: line.waiting.load(Ordering::Relaxed),
            blocked: line.blocked.load(Ordering::Relaxed),
            oldest_blocked_ms: if since_ms == 0 { 0 } else { now_ms.saturating_sub(since_ms) },
        }
    }

    pub(super) fn used_lines(&self) -> usize {
        let used = self.layout().identity.lines_used.load(Ordering::Acquire);
        usize::try_from(used).unwrap_or(LINES).min(LINES)
    }

    pub(super) fn used_handlers(&self) -> usize {
        self.used_lines().saturating_sub(ThreadRole::Handler(0).line())
    }

    /// The sum over the worker's threads.
    #[must_use]
    pub fn counter_values(&self) -> CounterValues {
        let mut values = CounterValues::default();
        for line in &self.layout().lines[..self.used_lines()] {
            values.add_line(&line.counters);
        }
        values
    }

    /// Everything about the worker, for `status` and for the log of its death.
    #[must_use]
    pub fn report(&self) -> SlotReport {
        let slot = self.layout();
        let now = clock::monotonic_ms();
        let busy = slot.lines[..self.used_lines()]
            .iter()
            .map(|line| line.busy_since_ms.load(Ordering::Relaxed))
            .filter(|&since| since > 0);
        let (handlers_busy, oldest) =
            busy.fold((0, now), |(count, oldest), since| (count + 1, oldest.min(since)));
        SlotReport {
            slot: self.index,
            worker: u16::try_from(slot.identity.worker.load(Ordering::Relaxed)).unwrap_or(u16::MAX),
            pid: slot.identity.pid.load(Ordering::Relaxed),
            generation: slot.identity.generation.load(Ordering::Relaxed),
            state: self.state(),
            started_at_ms: slot.identity.started_at_ms.load(Ordering::Relaxed),
            heartbeat_ms: slot.event_loop.heartbeat_ms.load(Ordering::Relaxed),
            connections: slot.event_loop.connections.load(Ordering::Relaxed),
            gauges: self.gauges(now),
            behind_bytes: slot.orders.behind_bytes.load(Ordering::Relaxed),
            handlers_busy,
            oldest_handler_ms: now.saturating_sub(oldest),
            handler_times: self.handler_times(),
            send_permits: self.send_permits(),
            counters: self.counter_values(),
            app_counters: self.app_counters(),
        }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("index", &self.index).field("state", &self.state()).finish()
    }
}
