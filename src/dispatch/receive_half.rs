//! The receiving half of a connection, as the event loop and the handler
//! threads share it: its inbox, its names, and the way to the run list.

use super::inbox::{Done, Inbox, InboxLimits, InboxView, Item, Left, Next, Pushed};
use super::run_list::{By, RunList, Wake};
use crate::handler::ConnectionInfo;
use crate::send::{Budget, Resume, SendHalf};
use chappe_shm::{Counter, ThreadCounters};
use std::sync::Arc;

/// What all receive halves of a worker share.
#[derive(Debug)]
pub struct DispatchPath {
    run_list: RunList,
    total: Budget,
    limits: InboxLimits,
}

impl DispatchPath {
    /// `limits` for one connection, `total_bytes_max` for all.
    #[must_use]
    pub fn new(limits: InboxLimits, total_bytes_max: usize, wake: Wake) -> Self {
        Self { run_list: RunList::new(wake), total: Budget::new(total_bytes_max), limits }
    }

    /// The connections with something to handle.
    #[must_use]
    pub fn run_list(&self) -> &RunList {
        &self.run_list
    }

    /// Bytes received and not handled, of all connections.
    #[must_use]
    pub fn total(&self) -> &Budget {
        &self.total
    }
}

/// See the module.
#[derive(Debug)]
pub struct ReceiveHalf {
    info: ConnectionInfo,
    inbox: Inbox,
    send: Arc<SendHalf>,
    path: Arc<DispatchPath>,
}

impl ReceiveHalf {
    /// Empty.
    #[must_use]
    pub fn new(info: ConnectionInfo, send: Arc<SendHalf>, path: Arc<DispatchPath>) -> Self {
        Self { info, inbox: Inbox::default(), send, path }
    }

    /// Who the peer is.
    #[must_use]
    pub fn info(&self) -> &ConnectionInfo {
        &self.info
    }

    /// The other half.
    #[must_use]
    pub fn send(&self) -> &Arc<SendHalf> {
        &self.send
    }

    /// What the event loop computes its interest from.
    #[must_use]
    pub fn view(&self) -> InboxView {
        self.inbox.view()
    }

    /// Takes in what was received; the event loop. If the connection is queued from now
    /// on, the loop has to [`ReceiveHalf::list`] it, or run its turn itself; if it is
    /// closed, to count the messages that nobody handles any more.
    pub fn push(&self, item: Item) -> Pushed {
        let charged = item.charged();
        let total = self.path.total.charge(charged);
        let pushed = self.inbox.push(item, total, &self.path.limits);
        if pushed == Pushed::Closed {
            self.path.total.release(charged);
        }
        pushed
    }

    /// What a turn of messages that are in no inbox has not handled; how many messages
    /// that were if nobody will.
    pub(super) fn keep_rest(&self, rest: Item) -> usize {
        let (charged, messages) = (rest.charged(), rest.messages());
        let total = self.path.total.charge(charged);
        if self.inbox.keep_rest(rest, total, &self.path.limits) == Pushed::Closed {
            self.path.total.release(charged);
            return messages;
        }
        0
    }

    /// Leaves the turn to the handler threads; the event loop.
    pub fn list(self: &Arc<Self>) {
        self.path.run_list.push(Arc::clone(self), By::Loop);
    }

    /// No more will be received; the event loop.
    pub fn end(self: &Arc<Self>) {
        self.act(self.inbox.end());
    }

    /// Drops what is queued, and what comes. What nobody will handle is counted.
    pub fn close(&self, counters: &ThreadCounters) {
        let discarded = self.inbox.close();
        if discarded.messages > 0 {
            counters.add(Counter::MessagesExpired, discarded.messages as u64);
        }
        drop(discarded.items);
        self.path.total.release(discarded.released);
    }

    pub(super) fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    pub(super) fn next(&self, done: Done, counters: &ThreadCounters) -> Option<Item> {
        self.after(self.inbox.next(done, &self.path.limits), counters)
    }

    pub(super) fn put_back(&self, done: Done, item: Item, counters: &ThreadCounters) {
        self.after(self.inbox.put_back(done, item, &self.path.limits), counters);
    }

    pub(super) fn done(&self, done: Done, counters: &ThreadCounters) {
        self.after(self.inbox.done(done, &self.path.limits), counters);
    }

    fn after(&self, next: Next, counters: &ThreadCounters) -> Option<Item> {
        if next.call {
            self.send.call_loop();
        }
        self.path.total.release(next.released);
        if next.lost > 0 {
            counters.add(Counter::MessagesExpired, next.lost as u64);
        }
        next.item
    }

    pub(super) fn act(self: &Arc<Self>, left: Left) {
        match left {
            Left::Queue => self.path.run_list.push(Arc::clone(self), By::Other),
            Left::Finish => self.send.finish(),
            Left::Idle | Left::Closed => {}
        }
    }
}

/// Resuming a receive half means: what is queued can be handled, the outbox has
/// room again.
impl Resume for ReceiveHalf {
    fn resume(self: Arc<Self>) {
        let left = self.inbox.resume();
        self.act(left);
    }
}
