//! The life of a connection: one state, every change of it, and no lock, no clock, no
//! system call. [`crate::Mailbox`] puts the lock around it and does what a change asks for.
//!
//! A connection has a *stage*, an *inbox* and an *outbox*. These combinations are legal,
//! and no others:
//!
//! | stage | what happens | input | inbox | outbox | leaves when |
//! |---|---|---|---|---|---|
//! | open | messages come and go | read, unless paused | any | any but closed | the input ends: answering, or flushing if all is handled |
//! | answering | what was received is answered | not read | not empty | any but closed | the last message is handled: flushing |
//! | flushing | what is queued is sent | not read | let go | any but closed | all is sent: the loop sends SHUT_WR, lingering |
//! | lingering | the peer's end is awaited | read and discarded | let go | idle | FIN, time or bytes: aborted |
//! | aborted | nothing any more | not read | let go | sending, closed | the writer is back: the loop closes the socket |
//!
//! Two ways are shorter. From open and answering a handler's panic, a wrong checksum and a
//! dropped backlog lead to flushing at once; and from any stage whatever breaks the
//! connection leads to aborted.
//!
//! The inbox: who handles what was received.
//!
//! | inbox | means | leaves when |
//! |---|---|---|
//! | empty | nothing to handle | the loop adds something: queued; or has a turn of its own: running |
//! | queued | on the run list, once | a thread takes it: running |
//! | running | on exactly one thread | the turn ends: empty, queued, stalled or waiting |
//! | stalled | replies back up, its own or all together; on no list | the outbox has drained: queued |
//! | waiting | the message in front waits for its ticket; on no list | the ticket is used or dropped, or its time is over: queued |
//! | | or those in front were submitted, and wait for their answers | the last answer: empty, queued or stalled; their time is over: queued |
//!
//! A handler takes the ticket while its turn is running, and any thread may use it before the
//! turn has ended. So the message stands in front of the inbox from the beginning, and keeps
//! what has happened to it: a turn that ends finds either a message that waits, and the inbox is
//! waiting, or one that has waited, and it is queued. What is submitted is so only then, behind
//! the replies of its turn: no answer comes before.
//!
//! *Let go* means that it has no items and is empty, or is still queued or running: the
//! thread that has it finds nothing and leaves.
//!
//! The outbox: who may write to the socket.
//!
//! | outbox | who may write | leaves when |
//! |---|---|---|
//! | idle | nobody | a message is queued: ready; or the loop begins a turn of its own: sending |
//! | ready | nobody; it is on the send list | the send thread takes it: sending |
//! | sending | the one thread that took the writer | all sent: idle; more: ready; full: blocked; broken: closed |
//! | blocked | nobody until EPOLLOUT; then the event loop takes it: sending | |
//! | closed | nobody, ever | |
//!
//! Every decision that two threads could make at once ("all is sent" against "one more is
//! queued", "above the mark" against "below it", "nothing is left to handle" against
//! "one more was received") is one method here, and runs under one lock.

use crate::budget::Room;
use crate::effects::{Effects, Leaving, Received, Rejected};
use crate::engine::Bounds;
use crate::flush::{Flushed, Socket};
use crate::inbox::{Backlog, Inbox, Phase, small};
use crate::item::{Done, Item};
use crate::notice::Cause;
use crate::outbox::{Blocked, Outbox, Seat};
use crate::queue::Queue;
use crate::session::{Hook, Session};
use crate::writer::{ENTRY_COST, Entries, Entry, Sent, Writer};
use chappe_sys::clock::Moment;
use std::sync::Arc;

/// How far the end of a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Messages come and go.
    Open,
    /// No more input is taken; what was received is answered.
    Answering,
    /// No more messages are handled or queued; what is queued is sent.
    Flushing,
    /// SHUT_WR was sent; what the peer still sends is discarded.
    Lingering,
    /// Given up: nothing is handled or sent any more.
    Aborted,
}

/// What the event loop sees of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// How far its end has come.
    pub stage: Stage,
    /// Why it ends, if it does.
    pub cause: Option<Cause>,
    /// Reading is to pause, for what the inbox or the outbox holds.
    pub is_paused: bool,
    /// Whether, and for what, the outbox waits.
    pub blocked: Option<Blocked>,
    /// Nothing is queued to be sent, and nobody writes.
    pub is_idle: bool,
    /// Nothing is queued to be handled, running, stalled or waiting.
    pub is_handled: bool,
    /// Since when a message has been waiting for its ticket, if one does.
    pub waits_since: Option<Moment>,
    /// What the inbox holds, in bytes as charged.
    pub inbox_bytes: usize,
    /// What the outbox holds, in bytes as charged.
    pub outbox_bytes: usize,
    /// All bytes ever sent.
    pub sent_bytes: u64,
    /// The application has admitted the peer, or admits everybody.
    pub is_admitted: bool,
}

/// All that threads share of one connection; the table stands at the head of the module.
#[derive(Debug)]
pub(crate) struct State {
    stage: Stage,
    cause: Option<Cause>,
    /// Reading pauses for what the inbox holds. Set and cleared under the lock that guards
    /// the level, or a resume could fall between the look at the level and the flag.
    inbox_pauses: bool,
    /// Reading pauses for what the outbox holds; as for the inbox.
    outbox_pauses: bool,
    /// The backlog was dropped while a thread had the writer, which still has its part.
    drops_at_return: bool,
    hook: Hook,
    /// As in the session, which a turn may have. Once it was admitted this stays.
    is_admitted: bool,
    /// As in the session.
    pub(crate) dialect: u8,
    /// The application's part, unless a turn has it.
    session: Option<Box<Session>>,
    inbox: Inbox,
    outbox: Outbox,
}

impl State {
    /// Open, with nothing to handle and nothing to send.
    pub(crate) fn new(socket: Arc<dyn Socket>) -> Self {
        Self {
            stage: Stage::Open,
            cause: None,
            inbox_pauses: false,
            outbox_pauses: false,
            drops_at_return: false,
            hook: Hook::None,
            is_admitted: true,
            dialect: 0,
            session: None,
            inbox: Inbox {
                phase: Phase::Empty,
                in_turn: 0,
                messages: 0,
                bytes: 0,
                items: Queue::default(),
            },
            outbox: Outbox {
                seat: Seat::Idle(socket),
                bytes: 0,
                sent_bytes: 0,
                entries: Entries::default(),
            },
        }
    }

    // --- the event loop ---

    /// Adds what was received. If the worker's total has no room, reading pauses at
    /// once: it goes on as this inbox is worked off.
    pub(crate) fn receive(&mut self, item: Item, total: Room, bounds: &Bounds) -> Received {
        if self.stage != Stage::Open {
            return Received::Discarded;
        }
        let inbox = &mut self.inbox;
        inbox.add(item);
        self.inbox_pauses |= inbox.messages as usize >= bounds.inbox_messages_max
            || inbox.bytes as usize >= bounds.inbox_bytes_max
            || total == Room::Exhausted;
        inbox.leave_empty()
    }

    /// Open -> answering: no more is received, and `last` is told behind the replies to
    /// what was. If all is handled: flushing. Any later stage stays what it is.
    pub(crate) fn end_input(&mut self, cause: Cause, last: Option<Item>) -> Received {
        if self.stage != Stage::Open {
            return Received::Discarded;
        }
        self.stage = Stage::Answering;
        self.cause = Some(cause);
        if let Some(last) = last {
            self.inbox.add(last);
            return self.inbox.leave_empty();
        }
        if self.inbox.phase == Phase::Empty {
            self.stage = Stage::Flushing;
        }
        Received::Added
    }

    /// Flushing -> lingering, after SHUT_WR.
    pub(crate) fn linger(&mut self) {
        debug_assert!(self.stage == Stage::Flushing && matches!(self.outbox.seat, Seat::Idle(_)));
        self.stage = Stage::Lingering;
    }

    /// Gives the connection up. Nothing is written from now on; a thread that writes just
    /// now returns the writer and calls the loop.
    pub(crate) fn abort(&mut self, cause: Cause, effects: &mut Effects) {
        self.cause.get_or_insert(cause);
        self.stage = Stage::Aborted;
        self.let_inbox_go(effects);
        if !matches!(self.outbox.seat, Seat::Sending) {
            self.outbox_pauses = false;
            self.outbox.close(Entries::default(), effects);
        }
        self.owe_closed(effects);
    }

    /// Whether the socket can be closed: no thread writes, and none will; and no hook of
    /// the application runs or is to run.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.outbox.seat, Seat::Closed) && self.hook == Hook::None
    }

    pub(crate) fn view(&self) -> View {
        View {
            stage: self.stage,
            cause: self.cause,
            is_paused: self.inbox_pauses || self.outbox_pauses,
            blocked: match self.outbox.seat {
                Seat::Blocked(_, why) => Some(why),
                _ => None,
            },
            is_idle: matches!(self.outbox.seat, Seat::Idle(_)),
            is_handled: self.inbox.phase == Phase::Empty,
            waits_since: match (self.inbox.phase, self.inbox.items.first()) {
                (Phase::Waiting, Some(Item::Deferred(deferred))) => Some(deferred.since),
                _ => None,
            },
            inbox_bytes: self.inbox.bytes as usize,
            outbox_bytes: self.outbox.bytes,
            sent_bytes: self.outbox.sent_bytes,
            is_admitted: self.is_admitted,
        }
    }

    // --- a turn ---

    /// Queued -> running, with the first item; or stalled, if replies back up; or empty, if
    /// there is nothing to handle any more.
    pub(crate) fn begin(
        &mut self,
        total: Room,
        bounds: &Bounds,
        effects: &mut Effects,
    ) -> Option<(Item, Option<Box<Session>>)> {
        debug_assert_eq!(self.inbox.phase, Phase::Queued, "listed once");
        self.inbox.phase = match self.is_open() {
            true => self.stall(total, bounds, effects).unwrap_or(Phase::Running),
            false if self.hook == Hook::Closing => Phase::Running,
            false => Phase::Empty,
        };
        if self.inbox.phase != Phase::Running {
            return None;
        }
        Some((self.inbox.take()?, self.session.take()))
    }

    /// Empty -> running, for messages that the loop has just read and that are in no
    /// inbox. If nobody writes, the loop gets the writer too, for the replies: idle ->
    /// sending. `None`: the messages have to go through the inbox.
    pub(crate) fn begin_unqueued(&mut self) -> Option<(Option<Writer>, Option<Box<Session>>)> {
        let is_free = self.stage == Stage::Open
            && self.inbox.phase == Phase::Empty
            && !self.inbox_pauses
            && !self.outbox_pauses;
        if !is_free {
            return None;
        }
        self.inbox.phase = Phase::Running;
        let is_idle = matches!(self.outbox.seat, Seat::Idle(_));
        let writer = if is_idle { self.outbox.take() } else { None };
        Some((writer, self.session.take()))
    }

    /// The running turn's next item, if there is one and the connection goes on.
    pub(crate) fn next(
        &mut self,
        done: Done,
        bounds: &Bounds,
        effects: &mut Effects,
    ) -> Option<Item> {
        self.take_off(done, bounds, effects);
        if self.is_open() { self.inbox.take_next() } else { None }
    }

    /// Queues replies in the middle of a turn. False if the turn has to end: the
    /// connection does, or replies back up.
    pub(crate) fn hand_over(
        &mut self,
        replies: Entry,
        total: Room,
        bounds: &Bounds,
        effects: &mut Effects,
    ) -> bool {
        self.append(replies, total, bounds, effects);
        self.is_open() && self.outbox.bytes <= bounds.outbox_high && total == Room::Free
    }

    /// Running -> empty, queued, stalled or waiting.
    pub(crate) fn leave(
        &mut self,
        leaving: Leaving,
        total: Room,
        bounds: &Bounds,
        effects: &mut Effects,
    ) {
        debug_assert_eq!(self.inbox.phase, Phase::Running);
        self.take_session(leaving.session, effects);
        self.take_off(leaving.done, bounds, effects);
        if let Some(rest) = leaving.rest {
            self.put_back(rest);
        }
        if let Some(replies) = leaving.replies {
            self.append(replies, total, bounds, effects);
        }
        if let Some(cause) = leaving.end.filter(|_| self.is_open()) {
            self.finish(cause, effects);
        } else if !self.is_open() {
            self.let_inbox_go(effects);
        }
        self.settle_inbox(total, bounds, effects);
    }

    /// To what comes next: empty, waiting, stalled or queued.
    #[inline]
    fn settle_inbox(&mut self, total: Room, bounds: &Bounds, effects: &mut Effects) {
        if self.inbox.items.is_empty() {
            self.inbox.phase = Phase::Empty;
            if self.stage != Stage::Open {
                self.leave_empty(effects);
            }
            return;
        }
        if self.wait(effects) {
            return;
        }
        let stalled = self.stall(total, bounds, effects);
        self.inbox.phase = stalled.unwrap_or(Phase::Queued);
        effects.enqueue |= stalled.is_none();
    }

    /// The last message of a connection that ends was handled, or let go.
    #[cold]
    fn leave_empty(&mut self, effects: &mut Effects) {
        if self.stage == Stage::Answering {
            self.stage = Stage::Flushing;
            effects.call |= matches!(self.outbox.seat, Seat::Idle(_));
        }
        if !self.is_open() && self.hook == Hook::Connecting {
            // It was put back, and will not be called any more.
            self.hook = Hook::None;
            effects.call |= self.is_over();
        }
        self.owe_closed(effects);
    }

    // --- any thread ---

    /// Queues a message that answers nothing, within the high mark: there is no request
    /// to leave unread until it has drained. One message always fits.
    pub(crate) fn push(&mut self, entry: Entry, bounds: &Bounds) -> Result<Effects, Rejected> {
        self.has_room(0, entry.cost(), bounds)?;
        let mut effects = Effects::default();
        self.outbox.append(entry, &mut effects);
        Ok(effects)
    }

    /// Whether a push of this cost would be taken, behind others that cost `before`.
    pub(crate) fn has_room(
        &self,
        before: usize,
        cost: usize,
        bounds: &Bounds,
    ) -> Result<(), Rejected> {
        self.takes_messages()?;
        let bytes = self.outbox.bytes + before;
        let is_full = bytes > 0 && bytes + cost > bounds.outbox_high;
        if is_full { Err(Rejected::Full) } else { Ok(()) }
    }

    /// Whether messages are still queued for the peer.
    pub(crate) fn takes_messages(&self) -> Result<(), Rejected> {
        match self.stage {
            Stage::Open | Stage::Answering => Ok(()),
            Stage::Flushing | Stage::Lingering => Err(Rejected::Ending),
            Stage::Aborted => Err(Rejected::Gone),
        }
    }

    /// Drops the backlog of a peer that is too slow: what is not begun is dropped, `last`
    /// tells the peer so behind the message that is half sent, and the connection is
    /// flushing. `None`: it ends already, and `last` is not queued.
    pub(crate) fn drop_backlog(&mut self, last: Option<Entry>, cause: Cause) -> Option<Effects> {
        if !self.is_open() {
            return None;
        }
        let mut effects = Effects { call: true, ..Effects::default() };
        // What a writer has is dropped when it comes back.
        self.drops_at_return = matches!(self.outbox.seat, Seat::Sending);
        let unbegun = self.outbox.entries.take_unbegun();
        self.outbox.drop_entries(unbegun, &mut effects);
        last.into_iter().for_each(|last| self.outbox.append(last, &mut effects));
        self.outbox_pauses = false;
        self.finish(cause, &mut effects);
        Some(effects)
    }

    // --- who writes ---

    /// Ready -> sending, with all that is queued. `None` if the connection was given up
    /// while it was listed.
    pub(crate) fn take_ready(&mut self) -> Option<Writer> {
        if matches!(self.outbox.seat, Seat::Ready(_)) { self.outbox.take() } else { None }
    }

    /// Blocked -> sending, for the event loop at EPOLLOUT or its timer. `None` if it is
    /// not blocked: a late event.
    pub(crate) fn take_blocked(&mut self) -> Option<Writer> {
        if matches!(self.outbox.seat, Seat::Blocked(..)) { self.outbox.take() } else { None }
    }

    /// The writer comes back, with how its flush ended.
    pub(crate) fn settle(
        &mut self,
        writer: Writer,
        flushed: &Flushed,
        total: Room,
        bounds: &Bounds,
        effects: &mut Effects,
    ) {
        debug_assert!(matches!(self.outbox.seat, Seat::Sending), "only the taker returns it");
        let Writer { socket, entries: mut unsent, sent } = writer;
        let Sent { bytes, shared, entries, uncharged, added } = sent;
        effects.outbox_released += bytes - shared + entries * ENTRY_COST;
        self.outbox.bytes = self.outbox.bytes + added - (bytes + entries * ENTRY_COST);
        self.outbox.sent_bytes += (bytes + uncharged) as u64;
        if matches!(flushed, Flushed::Broken(_)) {
            self.cause.get_or_insert(Cause::PeerReset);
            self.stage = Stage::Aborted;
            self.let_inbox_go(effects);
        }
        if self.stage == Stage::Aborted {
            self.outbox_pauses = false;
            self.outbox.close(unsent, effects);
            self.owe_closed(effects);
            effects.call = true;
            return;
        }
        if std::mem::take(&mut self.drops_at_return) && !matches!(flushed, Flushed::All) {
            self.outbox.drop_entries(unsent.take_unbegun(), effects);
        }
        self.outbox.put_in_front(unsent);
        self.outbox.seat = match flushed {
            // "All is sent" and "one more is queued" are decided under the lock that
            // `append` takes, or a message could be left behind.
            Flushed::All if self.outbox.entries.is_empty() => Seat::Idle(socket),
            Flushed::All | Flushed::ShareUsed => Seat::Ready(socket),
            Flushed::SocketFull => Seat::Blocked(socket, Blocked::Socket),
            Flushed::NoBuffers => Seat::Blocked(socket, Blocked::Buffers),
            Flushed::Broken(_) => unreachable!("aborted above"),
        };
        match self.outbox.seat {
            Seat::Ready(_) => effects.list = true,
            Seat::Blocked(..) => (effects.became_blocked, effects.call) = (true, true),
            _ => effects.call |= self.stage == Stage::Flushing,
        }
        self.pause_or_resume(total, bounds, effects);
    }

    // --- parts ---

    /// What a turn waits for that would only add to a backlog. The last hook of a connection
    /// that is over has nothing to say, and waits for nothing.
    fn stall(&self, total: Room, bounds: &Bounds, effects: &mut Effects) -> Option<Phase> {
        if !self.is_open() {
            return None;
        }
        if self.outbox.bytes > bounds.outbox_high {
            return Some(Phase::Stalled(Backlog::Own));
        }
        effects.wait_for_total = total == Room::Exhausted;
        (total == Room::Exhausted).then_some(Phase::Stalled(Backlog::Total))
    }

    fn is_open(&self) -> bool {
        self.stage <= Stage::Answering
    }

    /// After a flush: at the low mark reading goes on, and so does the stalled inbox.
    fn pause_or_resume(&mut self, total: Room, bounds: &Bounds, effects: &mut Effects) {
        if self.outbox.bytes > bounds.outbox_low {
            self.pause_above(total, bounds, effects);
            return;
        }
        effects.call |= std::mem::take(&mut self.outbox_pauses);
        if self.inbox.phase == Phase::Stalled(Backlog::Own) {
            self.inbox.phase = Phase::Queued;
            effects.enqueue = true;
        }
    }

    /// Queues replies. Above the high mark, or the worker's total, reading pauses.
    fn append(&mut self, replies: Entry, total: Room, bounds: &Bounds, effects: &mut Effects) {
        if !self.is_open() {
            effects.outbox_released += replies.charged();
            effects.rejected += u64::from(replies.messages());
            return;
        }
        self.outbox.append(replies, effects);
        self.pause_above(total, bounds, effects);
    }

    /// Above the high mark, or the worker's total, reading pauses.
    fn pause_above(&mut self, total: Room, bounds: &Bounds, effects: &mut Effects) {
        let is_above = self.outbox.bytes > bounds.outbox_high || total == Room::Exhausted;
        if is_above && !self.outbox_pauses {
            self.outbox_pauses = true;
            effects.call = true;
        }
    }

    /// Takes off what the running turn has handled. If the connection has ended under
    /// it, all else that it has is lost.
    #[inline]
    fn take_off(&mut self, done: Done, bounds: &Bounds, effects: &mut Effects) {
        if let Some(hook) = done.hook {
            self.note_hook(hook, effects);
        }
        let inbox = &mut self.inbox;
        let unhandled = std::mem::take(&mut inbox.in_turn) as usize - done.messages;
        if self.stage > Stage::Answering {
            // What it was charged for was released when the inbox was let go.
            effects.lost += unhandled as u64;
            return;
        }
        inbox.messages -= small(done.messages);
        inbox.bytes -= small(done.bytes);
        effects.inbox_released += done.bytes;
        let has_room = done.messages > 0
            && inbox.messages as usize <= bounds.inbox_messages_max / 2
            && inbox.bytes as usize <= bounds.inbox_bytes_max / 2;
        effects.call |= has_room && std::mem::take(&mut self.inbox_pauses);
    }

    /// Open or answering -> flushing, whatever is in the inbox.
    fn finish(&mut self, cause: Cause, effects: &mut Effects) {
        debug_assert!(self.is_open());
        self.cause.get_or_insert(cause);
        self.stage = Stage::Flushing;
        self.let_inbox_go(effects);
        effects.call = true;
    }

    /// Drops what is to be handled. What the running turn has taken is the turn's, and a
    /// hook that says that the connection is closed stays.
    fn let_inbox_go(&mut self, effects: &mut Effects) {
        if self.hook == Hook::Closing {
            return;
        }
        if self.hook == Hook::Connecting && self.inbox.phase != Phase::Running {
            self.hook = Hook::None;
        }
        effects.outbox_released += self.first_deferred().map_or(0, |it| it.early_cost());
        let inbox = &mut self.inbox;
        self.inbox_pauses = false;
        if matches!(inbox.phase, Phase::Stalled(_) | Phase::Waiting) {
            inbox.phase = Phase::Empty;
        }
        let messages = std::mem::take(&mut inbox.messages);
        effects.lost += u64::from(messages.saturating_sub(inbox.in_turn));
        effects.inbox_released += std::mem::take(&mut inbox.bytes) as usize;
        if !inbox.items.is_empty() {
            effects.remains().items = std::mem::take(&mut inbox.items);
        }
    }
}

#[path = "state_hooks.rs"]
mod hooks;

#[path = "state_waits.rs"]
mod waits;

#[cfg(all(test, not(loom)))]
#[path = "state_tests.rs"]
mod tests;

#[cfg(all(test, not(loom)))]
#[path = "limit_tests.rs"]
mod limit_tests;
