//! The inbox: what one connection has sent and no handler has seen, and who
//! handles it next.
//!
//! | phase | means | leaves when |
//! |---|---|---|
//! | empty | nothing to handle | the loop pushes: queued |
//! | queued | on the run list, once | a handler thread takes it: running |
//! | running | on exactly one handler thread | the turn ends: empty, queued or stalled |
//! | stalled | replies back up; on no list | the outbox has drained: queued or empty |
//!
//! *paused* (the loop does not read this connection) is decided under the same
//! lock as the level that decides it, on the way up and on the way down. With
//! two locks a handler thread could drain the inbox between the loop's look and
//! the loop's flag, and nobody would ever read that connection again.

use crate::send::Room;
use crate::sync::Mutex;
use crate::sync::fault::{Fault, is_planted};
use bytes::Bytes;
use chappe_wire::Chunk;
use std::collections::VecDeque;

/// What an item takes beside its bytes: its place in the queue and the head of its
/// allocation.
pub const ITEM_COST: usize = 128;

/// Bounds of one connection's inbox. Reading stops at either; what the last
/// read brought beyond them is kept, so one frame always fits.
#[derive(Clone, Copy, Debug)]
pub struct InboxLimits {
    /// Messages.
    pub messages_max: usize,
    /// Bytes, as allocated.
    pub bytes_max: usize,
}

/// What stands in an inbox, in the order in which it is to be answered.
#[derive(Debug)]
pub enum Item {
    /// Received messages.
    Chunk {
        /// The messages that are not handled yet.
        chunk: Chunk,
        /// What the chunk is charged for until its last message is handled:
        /// its messages share one allocation.
        charged: usize,
    },
    /// A frame of the server's own, at its place in the order of replies.
    Notice(Notice),
}

/// Error or goodbye frames, encoded.
#[derive(Debug)]
pub struct Notice {
    /// What the peer is told, frames end to end.
    pub encoded: Bytes,
    /// How many frames these are; each counts as a message.
    pub frames: u32,
    /// And then.
    pub then: Then,
}

/// What follows a notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The connection stays open.
    GoOn,
    /// What was queued is flushed, and the connection ends.
    Finish,
}

impl Item {
    /// How many messages these are.
    #[must_use]
    pub fn messages(&self) -> usize {
        match self {
            Self::Chunk { chunk, .. } => chunk.frames,
            Self::Notice(notice) => notice.frames as usize,
        }
    }

    /// Messages that came in one piece, charged with all they hold.
    #[must_use]
    pub fn chunk(chunk: Chunk) -> Self {
        let charged = chunk.bytes.len() + ITEM_COST;
        Self::Chunk { chunk, charged }
    }

    /// What it counts against the limits, in bytes.
    #[must_use]
    pub fn charged(&self) -> usize {
        match self {
            Self::Chunk { charged, .. } => *charged,
            Self::Notice(notice) => notice.encoded.len() + ITEM_COST,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Empty,
    Queued,
    Running,
    Stalled,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    items: VecDeque<Item>,
    messages: usize,
    /// How many of them the running turn has and has not told of. If the inbox is closed
    /// under the turn they are its to account for.
    in_turn: u32,
    bytes: usize,
    paused: bool,
    /// The peer has sent its last: when all is handled the connection finishes.
    ended: bool,
    /// Nothing is taken or handled any more.
    closed: bool,
}

/// See the module. One a connection.
#[derive(Debug)]
pub struct Inbox {
    state: Mutex<State>,
}

/// What the loop has to do after [`Inbox::push`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Pushed {
    /// It was empty: put it on the run list, once.
    Queue,
    /// It is on the list, running or stalled already.
    Nothing,
    /// It is closed and the item is gone.
    Closed,
}

/// What a turn has handled since it last asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    /// Messages handled.
    pub messages: usize,
    /// Bytes of items that are used up.
    pub bytes: usize,
}

/// What a turn gets next.
#[derive(Debug)]
#[must_use]
pub struct Next {
    /// `None`: nothing is left, or the inbox was closed.
    pub item: Option<Item>,
    /// Reading may go on: call the loop.
    pub call: bool,
    /// Bytes to release from the worker's budget.
    pub released: usize,
    /// Messages that the turn has not handled and gives up, since the inbox was closed.
    pub lost: usize,
}

/// What was in an inbox that was closed.
#[derive(Debug)]
#[must_use]
pub struct Discarded {
    /// Messages that nobody will handle. Those that the running turn has are not among
    /// them: some are handled, and it tells of the others.
    pub messages: usize,
    /// Bytes to release from the worker's budget, what the running turn holds
    /// included.
    pub released: usize,
    /// Dropped by the caller.
    pub items: VecDeque<Item>,
}

/// How a connection leaves a thread or a stall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Left {
    /// Nothing to handle.
    Idle,
    /// More to handle: put it at the tail of the run list.
    Queue,
    /// Nothing to handle and nothing will come: finish the connection.
    Finish,
    /// Closed meanwhile.
    Closed,
}

/// What the event loop computes its interest from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboxView {
    /// Reading is to pause.
    pub paused: bool,
    /// Nothing is queued, running or stalled.
    pub is_empty: bool,
    /// Nothing is taken any more.
    pub closed: bool,
    /// What it holds, as it counts against the limits.
    pub bytes: usize,
}

impl Default for Inbox {
    /// An empty one.
    fn default() -> Self {
        let state = State {
            phase: Phase::Empty,
            items: VecDeque::new(),
            messages: 0,
            in_turn: 0,
            bytes: 0,
            paused: false,
            ended: false,
            closed: false,
        };
        Self { state: Mutex::new(state) }
    }
}

impl Inbox {
    /// Adds what was received; the event loop. If the worker's total has no room,
    /// reading pauses at once: it goes on as this inbox is worked off.
    pub fn push(&self, item: Item, total: Room, limits: &InboxLimits) -> Pushed {
        let mut state = self.state.lock();
        if state.closed {
            return Pushed::Closed;
        }
        state.messages += item.messages();
        state.bytes += item.charged();
        state.items.push_back(item);
        let pause = state.messages >= limits.messages_max
            || state.bytes >= limits.bytes_max
            || total == Room::Exhausted;
        if is_planted(Fault::PauseOutsideLock) {
            let queue = state.leave_empty();
            drop(state);
            self.state.lock().paused |= pause;
            return queue;
        }
        state.paused |= pause;
        state.leave_empty()
    }

    /// No more will be received; the event loop. [`Left::Finish`] if all is
    /// handled already, else the turn that handles the last finds out.
    pub fn end(&self) -> Left {
        let mut state = self.state.lock();
        state.ended = true;
        if is_planted(Fault::EndWithoutLook) {
            return Left::Idle;
        }
        match state.phase {
            _ if state.closed => Left::Closed,
            Phase::Empty => Left::Finish,
            Phase::Queued | Phase::Running | Phase::Stalled => Left::Idle,
        }
    }

    /// Queued -> running. False if it was closed while it was listed.
    #[must_use]
    pub fn begin(&self) -> bool {
        let mut state = self.state.lock();
        if state.closed {
            state.phase = Phase::Empty;
            return false;
        }
        debug_assert_eq!(state.phase, Phase::Queued, "listed once");
        state.phase = Phase::Running;
        true
    }

    /// Empty -> running, for messages that were just read and are in no inbox; the
    /// event loop. False if they have to go through it.
    #[must_use]
    pub fn begin_direct(&self) -> bool {
        let mut state = self.state.lock();
        let is_free = state.phase == Phase::Empty && !state.closed && !state.ended && !state.paused;
        if is_free {
            state.phase = Phase::Running;
        }
        is_free
    }

    /// Such a turn does not handle all of them: the rest is in the inbox from now on.
    pub fn keep_rest(&self, rest: Item, total: Room, limits: &InboxLimits) -> Pushed {
        let mut state = self.state.lock();
        debug_assert_eq!(state.phase, Phase::Running);
        if state.closed {
            return Pushed::Closed;
        }
        state.messages += rest.messages();
        state.bytes += rest.charged();
        state.items.push_front(rest);
        state.paused |= state.messages >= limits.messages_max
            || state.bytes >= limits.bytes_max
            || total == Room::Exhausted;
        Pushed::Nothing
    }

    /// The running turn's next item. What it has handled is taken off first.
    pub fn next(&self, done: Done, limits: &InboxLimits) -> Next {
        let mut state = self.state.lock();
        let mut next = state.take_off(done, limits);
        if !state.closed {
            next.item = state.items.pop_front();
            state.set_in_turn(next.item.as_ref().map_or(0, Item::messages));
        }
        next
    }

    /// The running turn gives back what it did not handle, to the front.
    pub fn put_back(&self, done: Done, item: Item, limits: &InboxLimits) -> Next {
        let mut state = self.state.lock();
        let next = state.take_off(done, limits);
        if !state.closed {
            state.items.push_front(item);
        }
        next
    }

    /// The running turn asks for nothing more; takes off what it has handled.
    pub fn done(&self, done: Done, limits: &InboxLimits) -> Next {
        self.state.lock().take_off(done, limits)
    }

    /// Running -> stalled: before the inbox is parked, or the resume could come
    /// while it still seems to run, and would be lost.
    pub fn stall(&self) {
        let mut state = self.state.lock();
        debug_assert_eq!(state.phase, Phase::Running);
        state.phase = Phase::Stalled;
    }

    /// Running or stalled -> empty or queued.
    pub fn leave(&self) -> Left {
        self.state.lock().leave()
    }

    /// Stalled -> empty or queued; anything else stays what it is.
    pub fn resume(&self) -> Left {
        let mut state = self.state.lock();
        if state.phase == Phase::Stalled { state.leave() } else { Left::Idle }
    }

    /// Drops what is queued and takes no more. The second time there is nothing left.
    pub fn close(&self) -> Discarded {
        let mut state = self.state.lock();
        let is_again = std::mem::replace(&mut state.closed, true);
        state.paused = false;
        if state.phase == Phase::Stalled {
            state.phase = Phase::Empty;
        }
        let in_turn = if is_again { 0 } else { state.in_turn as usize };
        Discarded {
            messages: std::mem::take(&mut state.messages) - in_turn,
            released: std::mem::take(&mut state.bytes),
            items: std::mem::take(&mut state.items),
        }
    }

    /// For the event loop.
    #[must_use]
    pub fn view(&self) -> InboxView {
        let state = self.state.lock();
        InboxView {
            paused: state.paused,
            is_empty: state.phase == Phase::Empty,
            closed: state.closed,
            bytes: state.bytes,
        }
    }
}

impl State {
    fn leave_empty(&mut self) -> Pushed {
        if self.phase == Phase::Empty {
            self.phase = Phase::Queued;
            Pushed::Queue
        } else {
            Pushed::Nothing
        }
    }

    fn leave(&mut self) -> Left {
        self.phase = Phase::Empty;
        if self.closed {
            Left::Closed
        } else if !self.items.is_empty() {
            self.phase = Phase::Queued;
            Left::Queue
        } else {
            // An inbox at rest owns no buffer.
            self.items = VecDeque::new();
            if self.ended { Left::Finish } else { Left::Idle }
        }
    }

    fn set_in_turn(&mut self, messages: usize) {
        self.in_turn = u32::try_from(messages).expect("one read brings few");
    }

    /// Takes off what the turn has handled; what it has beyond that is not its any more.
    fn take_off(&mut self, done: Done, limits: &InboxLimits) -> Next {
        let unhandled = std::mem::take(&mut self.in_turn) as usize - done.messages;
        if self.closed {
            // `close` has released all, the turn's part too.
            return Next { item: None, call: false, released: 0, lost: unhandled };
        }
        self.messages -= done.messages;
        self.bytes -= done.bytes;
        let has_progress = done.messages > 0;
        let has_room = has_progress
            && self.messages <= limits.messages_max / 2
            && self.bytes <= limits.bytes_max / 2;
        let call = has_room && std::mem::take(&mut self.paused);
        Next { item: None, call, released: done.bytes, lost: 0 }
    }
}

#[cfg(all(test, not(loom)))]
#[path = "inbox_tests.rs"]
mod tests;
