//! What is counted, and by whom.
//!
//! A count is made on the hot path of every thread, so it is one load and one
//! store in a cache line that no other thread writes.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::Ordering;

use chappe_sys::Shared;

use super::layout::{COUNTERS_MAX, Line};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What is counted; the index into a counter line.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter { $($(#[doc = $doc])+ $variant,)+ }

        impl Counter {
            /// All of them, in the order of `status`.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in `status`, for good.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// What is counted, in a sentence or two.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii()),+ }
            }
        }
    };
}

counters! {
    /// Connections that were accepted and got a permit.
    ConnectionsAccepted = "connections_accepted",
    /// Connections that were refused as busy: for lack of a permit, or because their
    /// address had enough.
    ConnectionsRefused = "connections_refused",
    /// Accepted connections that are gone, for whatever reason.
    ConnectionsClosed = "connections_closed",
    /// Complete frames cut from the stream.
    FramesReceived = "frames_received",
    /// Frames of which the last byte was given to the kernel.
    FramesSent = "frames_sent",
    /// Bytes read from connections.
    BytesReceived = "bytes_received",
    /// Bytes that the kernel took.
    BytesSent = "bytes_sent",
    /// Messages received or queued whose connection was gone before they were
    /// handled or sent, or that went with the backlog of a slow reader.
    MessagesExpired = "messages_expired",
    /// Messages of topics published, by clients and services. Counted by the master, once a
    /// second.
    MessagesPublished = "messages_published",
    /// Messages of topics that were left out, since two hubs have died on them: the peer got
    /// error 4. Counted by the master, once a second.
    MessagesSkipped = "messages_skipped",
    /// Messages of topics handed to subscribers.
    MessagesDelivered = "messages_delivered",
    /// Messages of topics that the worker was too slow for.
    MessagesLapped = "messages_lapped",
    /// Messages that an outbox refused because it was full, or its connection gone or
    /// closing.
    MessagesDropped = "messages_dropped",
    /// Times that a socket was full and the event loop had to take over.
    SendsBlocked = "sends_blocked",
    /// Messages that were queued through a handle.
    MessagesPushed = "messages_pushed",
    /// Frames or streams that broke the protocol.
    ProtocolErrors = "protocol_errors",
    /// Handlers and timers that returned an error.
    HandlerErrors = "handler_errors",
    /// Handlers, hooks and timers that panicked.
    HandlerPanics = "handler_panics",
    /// Handlers whose calls had been short, and that took long on the event loop.
    HandlersDemoted = "handlers_demoted",
    /// Permits posted to the send semaphore.
    SemaphorePosts = "semaphore_posts",
    /// Calls of sendmsg.
    SendCalls = "send_calls",
    /// Calls of sendmsg that took only a part.
    PartialSends = "partial_sends",
    /// Times that reading from a connection was paused.
    ReadsPaused = "reads_paused",
    /// Errors of accept other than "try again".
    AcceptErrors = "accept_errors",
    /// Connections closed because the peer did not read, or so slowly that its
    /// backlog was given up.
    ClosedSlow = "closed_slow",
    /// Connections closed because nothing came.
    ClosedIdle = "closed_idle",
    /// Connections closed because the first frame did not come in time.
    ClosedHandshake = "closed_handshake",
    /// Connections closed because a begun frame was not completed in time.
    ClosedFrameTimeout = "closed_frame_timeout",
    /// Frames refused by a rate limit.
    FramesRateLimited = "frames_rate_limited",
    /// Log lines that could not be written.
    LogLinesLost = "log_lines_lost",
    /// Old generations whose drain was cut short to make room for a reload. Counted by
    /// the master.
    DrainsCut = "drains_cut",
    /// Workers that were killed because they made no progress; they are in
    /// `workers_died` too. Counted by the master.
    WorkersStuck = "workers_stuck",
    /// Workers that ended without being told to. Counted by the master.
    WorkersDied = "workers_died",
    /// Connections that an operator closed.
    ConnectionsKicked = "connections_kicked",
    /// Connections that a drain did not see to their end: `worker_shutdown_timeout`, or
    /// the drain was ended for another reload.
    ConnectionsCut = "connections_cut",
    /// Of those refused: their address had `limits.connections_per_ip` already.
    ConnectionsRefusedPerIp = "connections_refused_per_ip",
    /// Connections that no address was charged for, because the table of addresses
    /// was full.
    ConnectionsUncounted = "connections_uncounted",
    /// Posts of the hub to send semaphores: times that it had something for a worker that was
    /// not called already. Counted by the master, once a second.
    HubBells = "hub_bells",
    /// Posts to `worker_ready`: workers that were prepared and waited to serve.
    WorkerReadyPosts = "worker_ready_posts",
    /// Posts to `connection_permits`: connections that gave their permit back to the
    /// semaphore. One that pays a debt is not posted, and neither is what the master
    /// gives back for the dead.
    ConnectionPermitPosts = "connection_permit_posts",
    /// Ticks of an application's timers that were skipped: the run before had not ended, or
    /// the worker was late.
    TimerTicksMissed = "timer_ticks_missed",
    /// Messages whose handler has deferred its reply, each time.
    MessagesDeferred = "messages_deferred",
    /// Deferred replies that were dropped: the peer got error 4.
    DeferredDropped = "deferred_dropped",
    /// Deferred replies that were not given within `timeouts.deferred`: the peer got error 4.
    DeferredExpired = "deferred_expired",
    /// Replies that could not be deferred, since `worker.deferred_max` were: the peer got
    /// error 9.
    DeferredRefused = "deferred_refused",
    /// Messages of topics that subscribers have missed, as gaps say: at most so many, one for
    /// each subscriber.
    MessagesLost = "messages_lost",
    /// Subscriptions that were resumed with all that they had missed.
    ResumesWhole = "resumes_whole",
    /// Subscriptions that could not be resumed, since something that they had missed is no
    /// longer there, or it is too much.
    ResumesRefused = "resumes_refused",
    /// What clients may not do with topics, by `listen.topics`, `Service::may_subscribe` or
    /// `Service::may_publish`: the peer got error 10.
    TopicsDenied = "topics_denied",
}

const _: () = assert!(Counter::ALL.len() <= COUNTERS_MAX);

impl Counter {
    pub(super) const fn index(self) -> usize {
        self as usize
    }
}

/// Something that counts.
pub trait Count {
    /// Adds `n`; wraps around after 2^64.
    fn add(&self, counter: Counter, n: u64);
}

/// One thread's pen. It can go to that thread, but not be shared or copied: a
/// second writer would lose counts.
#[derive(Debug)]
pub struct ThreadCounters {
    line: Shared<Line>,
    /// Not `Sync`: `add` is a load and a store, not one step.
    one_thread: PhantomData<Cell<()>>,
}

impl ThreadCounters {
    pub(super) fn new(line: Shared<Line>) -> Self {
        Self { line, one_thread: PhantomData }
    }

    /// Counters that no status shows, for tests and models.
    #[must_use]
    pub fn detached() -> Self {
        Self::new(Shared::private(Line::zeroed()))
    }

    /// Adds `n`; wraps around after 2^64.
    pub fn add(&self, counter: Counter, n: u64) {
        if cfg!(feature = "uncounted") {
            return;
        }
        let cell = &self.line.counters[counter.index()];
        // Relaxed: readers need no more than some value of each counter, and
        // nobody else writes it.
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// What this thread has counted since its worker's slot was claimed.
    #[must_use]
    pub fn value(&self, counter: Counter) -> u64 {
        self.line.counters[counter.index()].load(Ordering::Relaxed)
    }
}

impl Count for ThreadCounters {
    fn add(&self, counter: Counter, n: u64) {
        Self::add(self, counter, n);
    }
}

/// A line that all threads of an application write: it may have any number of them,
/// and a line each cannot be had. Each count is an atomic addition, so this is not
/// for the path of replies.
#[derive(Debug)]
pub struct SharedCounters {
    line: Shared<Line>,
}

impl SharedCounters {
    pub(super) fn new(line: Shared<Line>) -> Self {
        Self { line }
    }

    /// Counters that no status shows, for tests and models.
    #[must_use]
    pub fn detached() -> Self {
        Self::new(Shared::private(Line::zeroed()))
    }

    /// What was counted since the worker's slot was claimed.
    #[must_use]
    pub fn value(&self, counter: Counter) -> u64 {
        self.line.counters[counter.index()].load(Ordering::Relaxed)
    }
}

impl Count for SharedCounters {
    fn add(&self, counter: Counter, n: u64) {
        if n > 0 && !cfg!(feature = "uncounted") {
            self.line.counters[counter.index()].fetch_add(n, Ordering::Relaxed);
        }
    }
}

/// A sum of counter lines: one value for each [`Counter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterValues {
    values: [u64; COUNTERS_MAX],
}

impl Default for CounterValues {
    fn default() -> Self {
        Self { values: [0; COUNTERS_MAX] }
    }
}

impl CounterValues {
    /// One value.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.values[counter.index()]
    }

    /// Name and value of each, in the order of `status`.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Counter::ALL.iter().map(|&counter| (counter.name(), self.get(counter)))
    }

    pub(super) fn add_line(&mut self, line: &[std::sync::atomic::AtomicU64; COUNTERS_MAX]) {
        for (sum, cell) in self.values.iter_mut().zip(line) {
            *sum = sum.wrapping_add(cell.load(Ordering::Relaxed));
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (sum, value) in self.values.iter_mut().zip(&other.values) {
            *sum = sum.wrapping_add(*value);
        }
    }

    /// Returns the sum.
    pub(super) fn add_one(&mut self, counter: Counter, n: u64) -> u64 {
        let sum = &mut self.values[counter.index()];
        *sum = sum.wrapping_add(n);
        *sum
    }

    pub(super) fn as_array(&self) -> &[u64; COUNTERS_MAX] {
        &self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_snake_case_and_unique() {
        let mut names: Vec<_> = Counter::ALL.iter().map(|counter| counter.name()).collect();
        for name in &names {
            assert!(name.bytes().all(|b| b == b'_' || b.is_ascii_lowercase()), "{name}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Counter::ALL.len());
    }

    #[test]
    fn each_counter_is_in_the_operators_manual() {
        let manual = include_str!("../../../docs/OPERATIONS.md");
        for counter in Counter::ALL {
            assert!(manual.contains(&format!("| `{}` |", counter.name())), "{counter:?}");
        }
    }

    #[test]
    fn detached_counters_count() {
        let counters = ThreadCounters::detached();
        counters.add(Counter::FramesSent, 2);
        counters.add(Counter::FramesSent, 3);
        assert_eq!(counters.value(Counter::FramesSent), 5);
        assert_eq!(counters.value(Counter::FramesReceived), 0);
    }
}
