//! What all connections of a worker share: the lists between its threads, the totals,
//! and the bounds.

use crate::budget::Budget;
use crate::call_list::CallList;
use crate::mailbox::{Mailbox, Place};
use crate::notice::{Goodbye, Notice};
use crate::protocol::Protocol;
use crate::run_list::RunList;
use crate::send_list::{CONNECTIONS_PER_LOOK, SendList, Wakeup};
use crate::sync::Semaphore;
use crate::sync::atomic::AtomicUsize;
use chappe_shm::{SharedCounters, ThreadCounters};
use std::io;
use std::sync::Arc;

/// What a push beyond a connection's limit does besides being refused:
/// `send.slow_reader`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowReader {
    /// The connection ends: its backlog is dropped, and the peer gets the reason.
    Close,
    /// Nothing: older messages are kept, this one is lost.
    DropNewest,
}

/// The configured bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Messages received and not handled, of one connection. What the last read brings
    /// beyond it is kept, so one message always fits.
    pub inbox_messages_max: usize,
    /// Bytes received and not handled, as allocated, of one connection.
    pub inbox_bytes_max: usize,
    /// Bytes received and not handled, of all connections together.
    pub inbox_total_bytes_max: usize,
    /// Bytes queued to be sent, of one connection.
    pub outbox_bytes_max: usize,
    /// Bytes queued to be sent, of all connections together.
    pub outbox_total_bytes_max: usize,
    /// What happens to a peer whose backlog exceeds the limit.
    pub slow_reader: SlowReader,
    /// Messages whose reply is deferred, of all connections together; at least one.
    pub deferred_max: usize,
}

/// The bounds of one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) inbox_messages_max: usize,
    pub(crate) inbox_bytes_max: usize,
    /// Above it reading pauses and the inbox stalls.
    pub(crate) outbox_high: usize,
    /// At or below it both go on.
    pub(crate) outbox_low: usize,
}

/// What a handler thread does next.
pub enum Work {
    /// The turn of a connection's inbox.
    Turn(Arc<Mailbox>),
    /// Something of the application's that belongs to no connection.
    Job(Box<dyn FnOnce() + Send>),
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Turn(mailbox) => f.debug_tuple("Turn").field(&mailbox.id()).finish(),
            Self::Job(_) => f.write_str("Job"),
        }
    }
}

/// What the send thread does beside sending: a little at each look, between connections.
pub trait Aside {
    /// Does some of it. True: there is more, and the thread comes again after the connections
    /// that are listed by then.
    fn look(&mut self) -> bool;
}

/// Nothing.
impl Aside for () {
    fn look(&mut self) -> bool {
        false
    }
}

/// The lists, totals and bounds of one worker.
#[derive(Debug)]
pub struct Engine {
    pub(crate) run_list: RunList<Work>,
    pub(crate) send_list: SendList<Arc<Mailbox>>,
    pub(crate) calls: CallList,
    pub(crate) inbox_total: Budget,
    pub(crate) outbox_total: Budget,
    /// In messages. Nobody waits for room in it.
    pub(crate) deferred: Budget,
    /// How many tickets there were: the next one's number.
    pub(crate) tickets: AtomicUsize,
    pub(crate) bounds: Bounds,
    pub(crate) slow_reader: SlowReader,
    /// Pushes and tickets are counted here, which any thread may make and use.
    pub(crate) pushers: SharedCounters,
    protocols: Vec<Arc<dyn Protocol>>,
}

impl Engine {
    /// Without connections. `permits` is what the send thread sleeps on; `protocols` has the
    /// protocol of each listener.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new(
        limits: &Limits,
        permits: Semaphore,
        protocols: Vec<Arc<dyn Protocol>>,
        pushers: SharedCounters,
    ) -> io::Result<Self> {
        Ok(Self {
            run_list: RunList::new(),
            send_list: SendList::new(permits),
            calls: CallList::new()?,
            inbox_total: Budget::new(limits.inbox_total_bytes_max),
            outbox_total: Budget::new(limits.outbox_total_bytes_max),
            deferred: Budget::new(limits.deferred_max),
            tickets: AtomicUsize::new(0),
            bounds: Bounds {
                inbox_messages_max: limits.inbox_messages_max,
                inbox_bytes_max: limits.inbox_bytes_max,
                outbox_high: limits.outbox_bytes_max,
                outbox_low: limits.outbox_bytes_max / 2,
            },
            slow_reader: limits.slow_reader,
            pushers,
            protocols,
        })
    }

    /// What is to be handled next: for a handler thread, which sleeps until there is
    /// something. `None` once stopped.
    pub fn next_to_handle(&self) -> Option<Work> {
        self.run_list.pop()
    }

    /// Has a handler thread do something, behind what waits already. Once stopped it is
    /// dropped.
    pub fn submit(&self, job: Box<dyn FnOnce() + Send>) {
        self.run_list.push(Work::Job(job));
    }

    /// The send thread: asleep on the semaphore until a connection has something to send,
    /// then writes it straight away. It never waits for a socket: what the kernel does
    /// not take at once is left to the event loop, so a slow peer cannot hold up the
    /// others. Returns once stopped.
    pub fn run_send_thread(&self, counters: &ThreadCounters, mut aside: impl Aside) {
        let mut ready = Vec::with_capacity(CONNECTIONS_PER_LOOK);
        while self.send_list.wait(&mut ready) == Wakeup::Look {
            for mailbox in ready.drain(..) {
                // For the event loop, whatever is left to do was put on the call list.
                let _ = mailbox.flush_ready(counters, Place::Thread);
            }
            if aside.look() {
                self.send_list.post();
            }
        }
        self.send_list.clear();
    }

    /// Has the send thread look: there is something for its [`Aside`].
    pub fn post_sender(&self) {
        self.send_list.post();
    }

    /// Ends the handler threads and the send thread, after what each is in.
    pub fn stop(&self) {
        self.run_list.stop();
        self.send_list.stop();
    }

    /// The event loop's call list.
    #[must_use]
    pub fn calls(&self) -> &CallList {
        &self.calls
    }

    /// Bytes received and not handled, of all connections.
    #[must_use]
    pub fn inbox_total(&self) -> &Budget {
        &self.inbox_total
    }

    /// Bytes queued and not sent, of all connections.
    #[must_use]
    pub fn outbox_total(&self) -> &Budget {
        &self.outbox_total
    }

    /// The protocol of this listener.
    #[must_use]
    pub fn protocol(&self, place: u8) -> &dyn Protocol {
        &*self.protocols[usize::from(place)]
    }

    /// The goodbye to a peer whose backlog is dropped.
    pub(crate) fn too_slow() -> Notice {
        let text = "you read too slowly: more than the limit was queued".into();
        Notice::Goodbye { reason: Goodbye::TooSlow, text }
    }
}

/// Resuming the engine: the event loop may read again.
impl crate::budget::Resume for Engine {
    fn resume(self: Arc<Self>) {
        self.calls.report_room();
    }
}
