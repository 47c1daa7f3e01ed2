//! The outbox: what is queued for one peer, and who may write to its socket.
//!
//! | state | who may write | leaves when |
//! |---|---|---|
//! | idle | nobody | a message is appended: ready |
//! | ready | nobody; it is on the send list | the send thread takes it: sending |
//! | sending | the one thread that took the writer | all sent: idle; more: ready; full: blocked; broken: closed |
//! | blocked | nobody until EPOLLOUT; then the event loop takes it: sending | |
//! | closed | nobody, ever | |
//!
//! That only one thread writes is not a rule to keep in mind but a value: there
//! is one [`Writer`] a connection, it cannot be copied, and it holds the socket
//! and the half-sent message. Whoever takes it continues where the last one
//! stopped, so half a frame is never followed by another.
//!
//! Every decision that two threads could make at once ("all is sent" against
//! "one more is queued", "above the mark" against "below it") is made under the
//! one lock of the outbox. The lock is never held over a system call.

use super::budget::{Resume, Room};
use super::flush::{Flushed, Socket};
use crate::sync::Mutex;
use bytes::Bytes;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

/// What an entry takes beside its bytes: its place in the queue (a deque grows by
/// doubling) and the heads of the allocations behind it. Counted as queued bytes,
/// or a peer that is owed many small replies would cost twenty times its limit.
pub const ENTRY_COST: usize = 128;

/// Some whole frames, encoded. Shared and immutable, so that one message can go
/// to many connections.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Never empty.
    pub bytes: Bytes,
    /// How many frames these are, for the counters.
    pub frames: u32,
}

impl Entry {
    /// What it counts against the limits, in bytes.
    #[must_use]
    pub fn cost(&self) -> usize {
        self.bytes.len() + ENTRY_COST
    }
}

/// The right to write to a connection's socket, and what is in flight on it.
#[derive(Debug)]
pub struct Writer {
    socket: Arc<dyn Socket>,
    unsent: VecDeque<Entry>,
    /// How much of the first entry is gone already.
    front_sent: usize,
    /// Bytes sent since the writer was taken; the outbox settles them.
    sent: usize,
    /// Entries sent to their end, likewise.
    done: usize,
}

impl Writer {
    fn new(socket: Arc<dyn Socket>) -> Self {
        Self { socket, unsent: VecDeque::new(), front_sent: 0, sent: 0, done: 0 }
    }

    pub(super) fn socket(&self) -> &dyn Socket {
        &*self.socket
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unsent.is_empty()
    }

    /// Points `slices` at the oldest unsent bytes, `bytes_max` at most. Returns
    /// how many slices are used and how many bytes they are.
    pub(super) fn fill<'a>(
        &'a self,
        slices: &mut [IoSlice<'a>],
        bytes_max: usize,
    ) -> (usize, usize) {
        let (mut used, mut bytes, mut skip) = (0, 0, self.front_sent);
        for (slice, entry) in slices.iter_mut().zip(&self.unsent) {
            let left = &entry.bytes[skip..];
            let left = &left[..left.len().min(bytes_max - bytes)];
            if left.is_empty() {
                break;
            }
            *slice = IoSlice::new(left);
            used += 1;
            bytes += left.len();
            skip = 0;
        }
        (used, bytes)
    }

    /// Forgets `sent` bytes from the front; returns how many frames are whole now.
    pub(super) fn advance(&mut self, sent: usize) -> u64 {
        self.sent += sent;
        self.front_sent += sent;
        let mut frames = 0;
        while let Some(front) = self.unsent.front() {
            if self.front_sent < front.bytes.len() {
                break;
            }
            self.front_sent -= front.bytes.len();
            frames += u64::from(front.frames);
            self.done += 1;
            self.unsent.pop_front();
        }
        if self.unsent.is_empty() {
            debug_assert_eq!(self.front_sent, 0, "no more was sent than was there");
            // A connection at rest owns no buffer.
            self.unsent = VecDeque::new();
        }
        frames
    }
}

/// Why a connection waits without being on any list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// The socket is full: until EPOLLOUT.
    Socket,
    /// The kernel had no memory: until a timer.
    Buffers,
}

#[derive(Debug)]
enum Seat {
    Idle(Writer),
    Ready(Writer),
    Sending,
    Blocked(Writer, Blocked),
    Closed,
}

/// Queued bytes at which the peer is not read from any more, and at which it is again.
#[derive(Clone, Copy, Debug)]
pub struct Marks {
    /// Above it reading pauses and the turn ends as stalled.
    pub high: usize,
    /// At or below it both go on.
    pub low: usize,
}

/// See the module. One a connection.
#[derive(Debug)]
pub struct Outbox {
    marks: Marks,
    state: Mutex<State>,
}

struct State {
    seat: Seat,
    /// Appended since the writer was last taken.
    waiting: VecDeque<Entry>,
    /// The cost of `waiting` and of the writer's; what is in flight is settled
    /// when the writer returns.
    queued_bytes: usize,
    /// All bytes ever sent: less what the kernel still holds, it is what the peer
    /// has acknowledged.
    sent_bytes: u64,
    /// No new message; flush, then SHUT_WR.
    finishing: bool,
    /// No further write.
    aborted: bool,
    /// Reading is to pause, by the marks. Set and cleared under the lock that
    /// guards the level, or a resume could fall between look and set.
    paused: bool,
    /// The connection's stalled inbox, told at the low mark.
    parked: Option<Arc<dyn Resume>>,
}

/// The connection takes no more messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection is closed or closing")]
pub struct Closed;

/// What the caller of [`Outbox::append`] has to do, without the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Appended {
    /// It was idle and is ready now: list it and post, once.
    pub list: bool,
    /// Reading has to pause now: call the loop.
    pub call: bool,
    /// The queued bytes are above the high mark.
    pub is_above_high: bool,
}

/// What the caller of [`Outbox::settle`] or [`Outbox::abort`] has to do, without the lock.
#[derive(Default)]
#[must_use]
pub struct Settled {
    /// It is ready again: list it and post, once.
    pub list: bool,
    /// The loop has something to do: call it.
    pub call: bool,
    /// It is blocked now.
    pub blocked: bool,
    /// What is not queued any more, at its cost: release the budget.
    pub released: usize,
    /// Frames that were queued and will never be sent: count them.
    pub lost_frames: u64,
    /// The stalled inbox that can go on.
    pub resume: Option<Arc<dyn Resume>>,
    /// What will never be sent: dropped by the caller.
    pub remains: [VecDeque<Entry>; 2],
}

/// What became of a stalled inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parking {
    /// It waits here and is told at the low mark.
    Parked,
    /// There is room already: the caller goes on by itself.
    GoOn,
    /// Nothing will ever be sent.
    Closed,
}

/// What the event loop sees of an outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Whether, and for what, it waits.
    pub blocked: Option<Blocked>,
    /// Reading is to pause.
    pub paused: bool,
    /// No new message is taken.
    pub finishing: bool,
    /// Nothing is queued and nobody writes.
    pub is_idle: bool,
    /// No further write.
    pub aborted: bool,
    /// A thread has the writer: the descriptor must stay open.
    pub is_away: bool,
    /// Bytes queued, as they count against the limits.
    pub queued_bytes: usize,
    /// All bytes ever sent on this connection.
    pub sent_bytes: u64,
}

impl Outbox {
    /// Empty and idle.
    #[must_use]
    pub fn new(socket: Arc<dyn Socket>, marks: Marks) -> Self {
        debug_assert!(marks.low <= marks.high);
        let state = State {
            seat: Seat::Idle(Writer::new(socket)),
            waiting: VecDeque::new(),
            queued_bytes: 0,
            sent_bytes: 0,
            finishing: false,
            aborted: false,
            paused: false,
            parked: None,
        };
        Self { marks, state: Mutex::new(state) }
    }

    /// Queues a message. `total` is whether the worker's budget has room: if it
    /// has not, reading pauses at once.
    ///
    /// # Errors
    /// [`Closed`] if it finishes, is aborted or closed.
    pub fn append(&self, entry: Entry, total: Room) -> Result<Appended, Closed> {
        debug_assert!(!entry.bytes.is_empty());
        let mut state = self.state.lock();
        if state.finishing || state.aborted {
            return Err(Closed);
        }
        state.queued_bytes += entry.cost();
        state.waiting.push_back(entry);
        let list = state.make_ready();
        let is_above_high = state.queued_bytes > self.marks.high;
        let call = (is_above_high || total == Room::Exhausted) && !state.paused;
        state.paused |= call;
        Ok(Appended { list, call, is_above_high })
    }

    /// Ready -> sending, with all that is queued. `None` if the connection was
    /// closed while it was listed.
    #[must_use]
    pub fn take_ready(&self) -> Option<Writer> {
        self.take(|seat| matches!(seat, Seat::Ready(_)))
    }

    /// Blocked -> sending, for the event loop at EPOLLOUT or its timer. `None`
    /// if it is not blocked: a late event.
    #[must_use]
    pub fn take_blocked(&self) -> Option<Writer> {
        self.take(|seat| matches!(seat, Seat::Blocked(..)))
    }

    fn take(&self, is_expected: impl Fn(&Seat) -> bool) -> Option<Writer> {
        let mut state = self.state.lock();
        if !is_expected(&state.seat) {
            return None;
        }
        let mut writer = std::mem::replace(&mut state.seat, Seat::Sending).into_writer()?;
        if writer.unsent.is_empty() {
            std::mem::swap(&mut writer.unsent, &mut state.waiting);
        } else {
            writer.unsent.append(&mut state.waiting);
        }
        Some(writer)
    }

    /// The writer comes back, with how its flush ended.
    pub fn settle(&self, mut writer: Writer, flushed: &Flushed) -> Settled {
        let mut state = self.state.lock();
        debug_assert!(matches!(state.seat, Seat::Sending), "only the taker settles");
        let sent = std::mem::take(&mut writer.sent);
        let released = sent + std::mem::take(&mut writer.done) * ENTRY_COST;
        state.queued_bytes -= released;
        state.sent_bytes += sent as u64;
        if matches!(flushed, Flushed::Broken(_)) {
            state.aborted = true;
        }
        if state.aborted {
            let mut settled = state.close(Some(writer));
            settled.released += released;
            settled.call = true;
            return settled;
        }
        let mut settled = Settled { released, ..Settled::default() };
        state.seat = match flushed {
            // "All is sent" and "one more is queued" are told apart under the
            // lock that `append` takes, or a message could be left behind.
            Flushed::All if state.waiting.is_empty() => {
                settled.call = state.finishing;
                Seat::Idle(writer)
            }
            Flushed::All | Flushed::ShareUsed => {
                settled.list = true;
                Seat::Ready(writer)
            }
            Flushed::SocketFull => Seat::Blocked(writer, Blocked::Socket),
            Flushed::NoBuffers => Seat::Blocked(writer, Blocked::Buffers),
            Flushed::Broken(_) => unreachable!("sets aborted above"),
        };
        settled.blocked = matches!(state.seat, Seat::Blocked(..));
        settled.call |= settled.blocked;
        if state.queued_bytes <= self.marks.low {
            settled.call |= std::mem::take(&mut state.paused);
            settled.resume = state.parked.take();
        }
        settled
    }

    /// Parks a stalled inbox until the queued bytes are at the low mark.
    #[must_use]
    pub fn park(&self, inbox: Arc<dyn Resume>) -> Parking {
        let mut state = self.state.lock();
        if state.aborted {
            return Parking::Closed;
        }
        if state.queued_bytes <= self.marks.low {
            return Parking::GoOn;
        }
        state.parked = Some(inbox);
        Parking::Parked
    }

    /// No new message from now on. Returns whether all is sent already; if not,
    /// the writer calls the loop when it is.
    #[must_use]
    pub fn finish(&self) -> bool {
        let mut state = self.state.lock();
        state.finishing = true;
        matches!(state.seat, Seat::Idle(_))
    }

    /// No further write from now on. If a thread is writing, `None`: only the
    /// flag is set, and that thread calls the loop when it is done.
    pub fn abort(&self) -> Option<Settled> {
        let mut state = self.state.lock();
        state.aborted = true;
        if matches!(state.seat, Seat::Sending) {
            return None;
        }
        let writer = std::mem::replace(&mut state.seat, Seat::Closed).into_writer();
        Some(state.close(writer))
    }

    /// What the event loop computes its interest from.
    #[must_use]
    pub fn view(&self) -> View {
        let state = self.state.lock();
        View {
            blocked: match state.seat {
                Seat::Blocked(_, why) => Some(why),
                _ => None,
            },
            paused: state.paused,
            finishing: state.finishing,
            is_idle: matches!(state.seat, Seat::Idle(_)),
            aborted: state.aborted,
            is_away: matches!(state.seat, Seat::Sending),
            queued_bytes: state.queued_bytes,
            sent_bytes: state.sent_bytes,
        }
    }
}

impl State {
    /// Idle -> ready. True exactly when it was idle.
    fn make_ready(&mut self) -> bool {
        match std::mem::replace(&mut self.seat, Seat::Sending) {
            Seat::Idle(writer) => {
                self.seat = Seat::Ready(writer);
                true
            }
            other => {
                self.seat = other;
                false
            }
        }
    }

    fn close(&mut self, writer: Option<Writer>) -> Settled {
        self.seat = Seat::Closed;
        let waiting = std::mem::take(&mut self.waiting);
        // The writer's hold on the socket ends here, under the lock: the loop,
        // which sees this state by the same lock, then drops the last one.
        let unsent = writer.map_or_else(VecDeque::new, |writer| writer.unsent);
        Settled {
            lost_frames: unsent.iter().chain(&waiting).map(|entry| u64::from(entry.frames)).sum(),
            released: std::mem::take(&mut self.queued_bytes),
            // Taken, so that outbox and inbox do not hold each other for ever.
            resume: self.parked.take(),
            remains: [unsent, waiting],
            ..Settled::default()
        }
    }
}

impl Seat {
    fn into_writer(self) -> Option<Writer> {
        match self {
            Self::Idle(writer) | Self::Ready(writer) | Self::Blocked(writer, _) => Some(writer),
            Self::Sending | Self::Closed => None,
        }
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("seat", &self.seat)
            .field("queued_bytes", &self.queued_bytes)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Settled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settled")
            .field("list", &self.list)
            .field("call", &self.call)
            .field("blocked", &self.blocked)
            .field("released", &self.released)
            .field("lost_frames", &self.lost_frames)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
#[path = "outbox_tests.rs"]
mod tests;
