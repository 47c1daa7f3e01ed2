//! A connection as all threads of its worker share it: its names, its state under a
//! lock, and the way to the lists.
//!
//! Each method makes one change under the lock and then, without it, does what the
//! change asks for, always in the same order: counters, run list, send list and permit,
//! call list, totals. So a thread that is woken sees the change.

use crate::batch::Batch;
use crate::budget::{Resume, Room};
use crate::call_list::Called;
use crate::deferral::Submission;
use crate::effects::{Effects, Leaving, Received, Rejected};
use crate::engine::{Engine, SlowReader, Work};
use crate::flush::{Flushed, Socket, flush, flush_batch};
use crate::item::{Done, Item};
use crate::notice::{Cause, Notice};
use crate::peer::{PackedPeer, Peer};
use crate::protocol::Protocol;
use crate::session::Session;
use crate::state::{State, View};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::writer::{Entry, Writer};
use chappe_shm::{Count, Counter, ThreadCounters};
use chappe_sys::clock::Moment;
use std::sync::Arc;

/// The names of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// Unique over workers and generations: for people.
    pub id: u64,
    /// The event loop's.
    pub token: u64,
    /// Where it comes from.
    pub peer: Peer,
    /// The place of its listener, in the engine's list and the configuration's.
    pub listener: u8,
    /// When it was accepted.
    pub connected_at: Moment,
}

/// Which thread runs a turn or writes. What that asks of the event loop is done by the loop
/// itself when it is the one: it needs no call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The event loop.
    Loop,
    /// Any other thread.
    Thread,
}

/// Whether the event loop has to advance the connection: what a change made on the loop
/// asks of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// Nothing has changed for the loop.
    Rest,
    /// It has.
    Advance,
}

/// What is left to do of a connection that was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Aborted {
    /// Nothing: the socket can be closed.
    Over,
    /// A thread writes, or a hook is running or is to run: the loop is called when that is
    /// done.
    CallFollows,
    /// The hook `closed` is to run: the loop enqueues the connection, or runs the turn itself.
    StartTurn,
}

impl Next {
    /// What two changes ask for together.
    pub fn and(self, other: Self) -> Self {
        if self == Self::Rest { other } else { self }
    }
}

/// A connection, as all threads of its worker share it. Lists hold it by `Arc`; the socket
/// is not closed by the last holder but by the event loop, which owns it.
#[derive(Debug)]
pub struct Mailbox {
    id: u64,
    token: u64,
    peer: PackedPeer,
    listener: u8,
    connected_at: Moment,
    called: Called,
    listens: AtomicBool,
    /// Subscriptions, as they were noted last.
    subscriptions: AtomicU32,
    state: Mutex<State>,
    engine: Arc<Engine>,
}

impl Mailbox {
    /// Of a connection that has just been let in.
    #[must_use]
    pub fn new(names: Names, socket: Arc<dyn Socket>, engine: Arc<Engine>) -> Self {
        let Names { id, token, peer, listener, connected_at } = names;
        let (peer, state) = (peer.into(), Mutex::new(State::new(socket)));
        Self {
            id,
            token,
            peer,
            listener,
            connected_at,
            called: Called::new(),
            listens: AtomicBool::new(false),
            subscriptions: AtomicU32::new(0),
            state,
            engine,
        }
    }

    /// Unique over workers and generations.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Where the connection comes from.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.peer.into()
    }

    /// What encodes and decodes its messages.
    #[must_use]
    pub fn protocol(&self) -> &dyn Protocol {
        self.engine.protocol(self.listener)
    }

    /// The place of its listener in the configuration.
    #[must_use]
    pub fn listener(&self) -> usize {
        self.listener.into()
    }

    /// When it was accepted.
    #[must_use]
    pub fn connected_at(&self) -> Moment {
        self.connected_at
    }

    /// What the protocol has noted of the connection.
    #[must_use]
    pub fn dialect(&self) -> u8 {
        if self.protocol().has_dialects() { self.state.lock().dialect } else { 0 }
    }

    /// It has asked for topics, or is about to.
    pub fn note_listens(&self) {
        // Ordered by the lock of the state, which is taken next.
        self.listens.store(true, Ordering::Relaxed);
    }

    /// Whether it has ever asked for topics: then somebody is to learn of its end.
    #[must_use]
    pub fn listens(&self) -> bool {
        self.listens.load(Ordering::Relaxed)
    }

    /// It has as many subscriptions from the answer on that it is given next.
    pub fn note_subscriptions(&self, count: u32) {
        // Ordered by the lock of the state, which that answer takes.
        self.subscriptions.store(count, Ordering::Relaxed);
    }

    /// As it was noted.
    #[must_use]
    pub fn subscriptions(&self) -> u32 {
        self.subscriptions.load(Ordering::Relaxed)
    }

    /// What the event loop decides by.
    #[must_use]
    pub fn view(&self) -> View {
        self.state.lock().view()
    }

    // --- the event loop ---

    /// Adds what was received. [`Received::StartTurn`]: the loop enqueues it, or runs the
    /// turn itself. What is discarded is counted.
    pub fn receive(&self, item: Item, counters: &ThreadCounters) -> Received {
        let (messages, charged) = (item.messages(), item.charged());
        let total = self.engine.inbox_total.charge(charged);
        let received = self.state.lock().receive(item, total, &self.engine.bounds);
        self.account(received, messages, charged, counters)
    }

    /// No more is received; `last` is sent behind the replies to what was. When all is
    /// handled and sent, the loop sends SHUT_WR. The first cause is kept.
    pub fn end_input(&self, cause: Cause, last: Option<Notice>, counters: &impl Count) -> Received {
        let last = last.map(Item::from);
        let charged = last.as_ref().map_or(0, Item::charged);
        let messages = last.as_ref().map_or(0, Item::messages);
        _ = self.engine.inbox_total.charge(charged);
        let received = self.state.lock().end_input(cause, last);
        self.account(received, messages, charged, counters)
    }

    /// What was discarded is lost, and charged for no longer.
    fn account(
        &self,
        received: Received,
        messages: usize,
        charged: usize,
        counters: &impl Count,
    ) -> Received {
        if received == Received::Discarded {
            self.engine.inbox_total.release(charged);
            counters.add(Counter::MessagesExpired, messages as u64);
        }
        received
    }

    /// Has the application's hook called: the connection can carry messages. With a gate the
    /// peer has yet to be admitted.
    pub fn connect(&self, has_gate: bool) -> Received {
        self.state.lock().connect(has_gate)
    }

    /// Puts a connection that [`Received::StartTurn`] was said of on the run list.
    pub fn enqueue(self: &Arc<Self>) {
        self.engine.run_list.push(Work::Turn(Arc::clone(self)));
    }

    /// SHUT_WR was sent.
    pub fn linger(&self) {
        self.state.lock().linger();
    }

    /// Gives the connection up.
    pub fn abort(self: &Arc<Self>, cause: Cause, counters: &ThreadCounters) -> Aborted {
        let mut effects = Effects::default();
        let is_over = {
            let mut state = self.state.lock();
            state.abort(cause, &mut effects);
            state.is_over()
        };
        let is_due = std::mem::take(&mut effects.enqueue);
        _ = self.carry_out(effects, counters, Place::Loop);
        match (is_over, is_due) {
            (true, _) => Aborted::Over,
            (false, true) => Aborted::StartTurn,
            (false, false) => Aborted::CallFollows,
        }
    }

    /// Writes the rest, at EPOLLOUT or after a pause.
    pub fn flush_blocked(self: &Arc<Self>, counters: &ThreadCounters) -> Next {
        let writer = self.state.lock().take_blocked();
        writer.map_or(Next::Rest, |writer| self.flush(writer, counters, Place::Loop))
    }

    /// The loop is about to read the state: later changes call again.
    pub fn clear_call(&self) {
        self.called.clear();
    }

    // --- a turn ---

    pub(crate) fn begin(
        self: &Arc<Self>,
        counters: &impl Count,
        place: Place,
    ) -> Option<(Item, Option<Box<Session>>)> {
        let (total, mut effects) = (self.engine.outbox_total.room(), Effects::default());
        let begun = self.state.lock().begin(total, &self.engine.bounds, &mut effects);
        _ = self.carry_out(effects, counters, place);
        begun
    }

    /// For messages that the loop has just read: `None` if they have to go through the
    /// inbox; else with the writer, if nobody else has it or waits for it.
    pub(crate) fn begin_unqueued(&self) -> Option<(Option<Writer>, Option<Box<Session>>)> {
        match self.engine.outbox_total.room() {
            Room::Free => self.state.lock().begin_unqueued(),
            Room::Exhausted => None,
        }
    }

    /// Ends a turn of messages that were in no inbox. With the writer their replies are
    /// sent from where they are.
    pub(crate) fn leave_unqueued(
        self: &Arc<Self>,
        writer: Option<Writer>,
        batch: &mut Batch,
        mut leaving: Leaving,
        counters: &ThreadCounters,
    ) -> Next {
        let Some(mut writer) = writer else {
            leaving.replies = (!batch.is_empty()).then(|| Entry::new(batch.take()));
            return self.leave(leaving, counters, Place::Loop);
        };
        let mut flushed = Flushed::All;
        if !batch.is_empty() {
            flushed = flush_batch(&mut writer, batch, counters);
            self.note_failure(&flushed);
        }
        let total = match writer.sent.added {
            0 => self.engine.outbox_total.room(),
            added => self.charge(added),
        };
        let (bounds, mut effects) = (&self.engine.bounds, Effects::default());
        {
            let mut state = self.state.lock();
            state.settle(writer, &flushed, total, bounds, &mut effects);
            state.leave(leaving, total, bounds, &mut effects);
        }
        self.carry_out(effects, counters, Place::Loop)
    }

    pub(crate) fn next(
        self: &Arc<Self>,
        done: Done,
        counters: &impl Count,
        place: Place,
    ) -> (Option<Item>, Next) {
        let mut effects = Effects::default();
        let item = self.state.lock().next(done, &self.engine.bounds, &mut effects);
        (item, self.carry_out(effects, counters, place))
    }

    /// Queues replies in the middle of a turn. False if the turn has to end.
    pub(crate) fn hand_over(self: &Arc<Self>, replies: Entry, counters: &impl Count) -> bool {
        let (total, bounds) = (self.charge(replies.charged()), &self.engine.bounds);
        let mut effects = Effects::default();
        let goes_on = self.state.lock().hand_over(replies, total, bounds, &mut effects);
        _ = self.carry_out(effects, counters, Place::Thread);
        goes_on
    }

    /// Ends a turn. On the loop its replies are written here, if nobody else writes.
    pub(crate) fn leave(
        self: &Arc<Self>,
        leaving: Leaving,
        counters: &ThreadCounters,
        place: Place,
    ) -> Next {
        let total = match &leaving.replies {
            Some(replies) => self.charge(replies.charged()),
            None => self.engine.outbox_total.room(),
        };
        let mut effects = Effects::default();
        self.state.lock().leave(leaving, total, &self.engine.bounds, &mut effects);
        // It is ready and on no list for this moment, so no other thread can take it.
        let flushes = place == Place::Loop && std::mem::take(&mut effects.list);
        let next = self.carry_out(effects, counters, place);
        if flushes { next.and(self.flush_ready(counters, place)) } else { next }
    }

    fn charge(&self, bytes: usize) -> Room {
        let total = self.engine.outbox_total.charge(bytes);
        if total == Room::Exhausted {
            self.engine.calls.report_overload();
        }
        total
    }

    // --- who writes ---

    /// Writes what is queued, if the connection was not given up while it was listed.
    pub(crate) fn flush_ready(self: &Arc<Self>, counters: &ThreadCounters, place: Place) -> Next {
        let writer = self.state.lock().take_ready();
        writer.map_or(Next::Rest, |writer| self.flush(writer, counters, place))
    }

    fn flush(
        self: &Arc<Self>,
        mut writer: Writer,
        counters: &ThreadCounters,
        place: Place,
    ) -> Next {
        let flushed = flush(&mut writer, counters);
        self.note_failure(&flushed);
        let (total, bounds) = (self.engine.outbox_total.room(), &self.engine.bounds);
        let mut effects = Effects::default();
        self.state.lock().settle(writer, &flushed, total, bounds, &mut effects);
        self.carry_out(effects, counters, place)
    }

    fn note_failure(&self, flushed: &Flushed) {
        if let Flushed::Broken(error) = flushed {
            log::debug!("conn={} send failed: {error}", self.id());
        } else if log::log_enabled!(log::Level::Trace) {
            let thread = chappe_sys::process::current_thread_name();
            log::trace!(target: "conn.flushed", "conn={} flushed {flushed:?} thread={thread}", self.id());
        }
    }

    // --- any thread ---

    /// Queues a message that answers nothing; any thread, also one of the application's
    /// own. Beyond this connection's limit `send.slow_reader` decides what else happens;
    /// beyond the worker's, the largest backlog goes.
    ///
    /// # Errors
    /// Why it was not queued.
    pub fn push(self: &Arc<Self>, entry: Entry) -> Result<(), Rejected> {
        self.push_as(0, entry)
    }

    /// Queues a message that was encoded for this dialect; otherwise like [`Mailbox::push`].
    ///
    /// # Errors
    /// Why it was not queued.
    pub fn push_as(self: &Arc<Self>, dialect: u8, entry: Entry) -> Result<(), Rejected> {
        self.push_both(dialect, (None, entry))
    }

    /// As [`Mailbox::push_as`], of a message that goes to many, with one for this connection alone
    /// in front of it, if there is one: both or none. The caller keeps the message, whose last
    /// holder releases what the total was charged for it: not under a connection's lock.
    ///
    /// # Errors
    /// Why it was not queued.
    pub fn push_shared(
        self: &Arc<Self>,
        dialect: u8,
        head: Option<Entry>,
        entry: &Entry,
    ) -> Result<(), Rejected> {
        self.push_both(dialect, (head, entry.clone()))
    }

    fn push_both(
        self: &Arc<Self>,
        dialect: u8,
        entries: (Option<Entry>, Entry),
    ) -> Result<(), Rejected> {
        // A closed connection is reported as such even when the total is full.
        self.takes_messages()?;
        let (head, entry) = &entries;
        let cost = head.as_ref().map_or(0, Entry::charged) + entry.charged();
        let engine = &*self.engine;
        let messages = u64::from(entry.messages());
        if !engine.outbox_total.try_charge(cost) {
            engine.calls.report_overload();
            engine.pushers.add(Counter::MessagesDropped, messages);
            return Err(Rejected::Full);
        }
        let pushed = self.state.lock().push_as(dialect, entries, &engine.bounds);
        match pushed {
            Ok(effects) => {
                engine.pushers.add(Counter::MessagesPushed, messages);
                _ = self.carry_out(effects, &engine.pushers, Place::Thread);
                Ok(())
            }
            Err(rejected) => {
                engine.outbox_total.release(cost);
                self.count_rejected(rejected, messages);
                if rejected == Rejected::Full && engine.slow_reader == SlowReader::Close {
                    // Whether this thread drops the backlog or another one did: it ends.
                    self.drop_backlog(Cause::TooSlow, &engine.pushers);
                    return Err(self.takes_messages().err().unwrap_or(Rejected::Ending));
                }
                Err(rejected)
            }
        }
    }

    /// Says that a pushed message goes out with the replies of its handler's turn, in
    /// which messages of cost `before` were pushed already: within the same limit.
    ///
    /// # Errors
    /// Why it would not.
    pub fn join_replies(&self, before: usize, cost: usize) -> Result<(), Rejected> {
        let room = self.state.lock().has_room(before, cost, &self.engine.bounds);
        room.inspect_err(|rejected| self.count_rejected(*rejected, 1))?;
        self.engine.pushers.add(Counter::MessagesPushed, 1);
        Ok(())
    }

    fn count_rejected(&self, rejected: Rejected, messages: u64) {
        if rejected == Rejected::Full {
            self.engine.pushers.add(Counter::MessagesDropped, messages);
        }
    }

    /// Ends the input like [`Mailbox::end_input`], from any thread: the event loop is called for it.
    pub fn end_from_thread(self: &Arc<Self>, cause: Cause, last: Notice) {
        match self.end_input(cause, Some(last), &self.engine.pushers) {
            Received::StartTurn => self.enqueue(),
            Received::Added => {}
            Received::Discarded => return,
        }
        self.engine.calls.call(&self.called, self.token);
    }

    /// Whether messages are still taken for the peer.
    ///
    /// # Errors
    /// Why not.
    pub fn takes_messages(&self) -> Result<(), Rejected> {
        self.state.lock().takes_messages()
    }

    /// Drops the backlog of a peer that is too slow, says goodbye behind what is half
    /// sent, and ends the connection. False if it ends already.
    pub fn drop_backlog(self: &Arc<Self>, cause: Cause, counters: &impl Count) -> bool {
        let last = self.protocol().notice_alone(&Engine::too_slow()).map(Entry::new);
        let cost = last.as_ref().map_or(0, Entry::cost);
        // Beyond the bound if it must be: it makes room for more than it takes.
        _ = self.engine.outbox_total.charge(cost);
        let dropped = self.state.lock().drop_backlog(last, cause);
        let Some(effects) = dropped else {
            self.engine.outbox_total.release(cost);
            return false;
        };
        log::debug!("conn={} reads too slowly, its backlog is dropped", self.id());
        counters.add(Counter::ClosedSlow, 1);
        _ = self.carry_out(effects, counters, Place::Thread);
        true
    }

    // --- parts ---

    #[inline]
    fn carry_out(self: &Arc<Self>, effects: Effects, counters: &impl Count, place: Place) -> Next {
        // Most messages that the loop answers by itself ask for nothing.
        if effects.is_nothing() { Next::Rest } else { self.act(effects, counters, place) }
    }

    fn act(self: &Arc<Self>, effects: Effects, counters: &impl Count, place: Place) -> Next {
        if effects.lost > 0 {
            counters.add(Counter::MessagesExpired, effects.lost);
        }
        if effects.rejected > 0 {
            counters.add(Counter::MessagesDropped, effects.rejected);
        }
        if effects.became_blocked {
            counters.add(Counter::SendsBlocked, 1);
            // The loop may have found nobody to blame when the total was exceeded.
            if self.engine.outbox_total.room() == Room::Exhausted {
                self.engine.calls.report_overload();
            }
        }
        if effects.enqueue {
            self.enqueue();
        }
        if effects.list && self.engine.send_list.push(Arc::clone(self)) {
            counters.add(Counter::SemaphorePosts, 1);
        }
        let next = match place {
            Place::Loop if effects.call => Next::Advance,
            Place::Thread if effects.call => {
                self.engine.calls.call(&self.called, self.token);
                Next::Rest
            }
            Place::Loop | Place::Thread => Next::Rest,
        };
        self.engine.inbox_total.release(effects.inbox_released);
        self.engine.outbox_total.release(effects.outbox_released);
        if effects.wait_for_total {
            let waiter = Arc::clone(self) as Arc<dyn Resume>;
            if self.engine.outbox_total.wait_for_room(waiter) == Room::Free {
                Arc::clone(self).resume();
            }
        }
        effects.submissions.into_iter().for_each(Submission::submit);
        next
    }
}

#[path = "mailbox_waits.rs"]
mod waits;

/// Resuming a mailbox: the outboxes together have room again, so what is queued can be
/// handled.
impl Resume for Mailbox {
    fn resume(self: Arc<Self>) {
        let effects = self.state.lock().resume();
        if effects.enqueue {
            self.enqueue();
        }
    }
}
