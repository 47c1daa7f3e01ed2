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
use super::writer::{ENTRY_COST, Entry, Resting, Writer};
use crate::sync::Mutex;
use crate::sync::fault::{Fault, is_planted};
use std::collections::VecDeque;
use std::sync::Arc;

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
    Idle(Resting),
    Ready(Resting),
    Sending,
    Blocked(Resting, Blocked),
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
    marks: Arc<Marks>,
    state: Mutex<State>,
}

struct State {
    seat: Seat,
    /// Appended since the writer was last taken.
    waiting: Vec<Entry>,
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
    /// The backlog was given up.
    cut: bool,
    /// It was while a thread had the writer, which is still to be cut.
    cut_at_return: bool,
    /// Reading is to pause, by the marks. Set and cleared under the lock that
    /// guards the level, or a resume could fall between look and set.
    paused: bool,
    /// The connection's stalled inbox, told at the low mark. Few ever stall.
    parked: Option<Box<Arc<dyn Resume>>>,
}

/// The connection takes no more messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection is closed or closing")]
pub struct Closed;

/// Why a push was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It would pass the high mark, or the worker's total.
    Full,
    /// The connection is about to end: it takes no new message.
    Finishing,
    /// It is gone.
    Gone,
}

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

/// What the caller of [`Outbox::settle`], `cut` or `abort` has to do, without the lock.
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
    /// What will never be sent: dropped by the caller, without the lock.
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
    /// The backlog was given up: the peer is known to be too slow.
    pub cut: bool,
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
    pub fn new(socket: Arc<dyn Socket>, marks: Arc<Marks>) -> Self {
        debug_assert!(marks.low <= marks.high);
        let state = State {
            seat: Seat::Idle(Resting::new(socket)),
            waiting: Vec::new(),
            queued_bytes: 0,
            sent_bytes: 0,
            finishing: false,
            aborted: false,
            cut: false,
            cut_at_return: false,
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
        state.waiting.push(entry);
        let list = state.make_ready();
        let is_above_high = state.queued_bytes > self.marks.high;
        let call = (is_above_high || total == Room::Exhausted) && !state.paused;
        state.paused |= call;
        Ok(Appended { list, call, is_above_high })
    }

    /// Queues a message that answers nothing, within the high mark: there is no
    /// request to leave unread until it has drained. One message always fits.
    ///
    /// # Errors
    /// Why it was not queued.
    pub fn push(&self, entry: Entry) -> Result<Appended, Refused> {
        debug_assert!(!entry.bytes.is_empty());
        let mut state = self.state.lock();
        state.is_open()?;
        if is_planted(Fault::PushAfterLook) {
            drop(state);
            state = self.state.lock();
        }
        let queued_bytes = state.queued_bytes + entry.cost();
        if queued_bytes > self.marks.high && state.queued_bytes > 0 {
            return Err(Refused::Full);
        }
        state.queued_bytes = queued_bytes;
        state.waiting.push(entry);
        Ok(Appended { list: state.make_ready(), call: false, is_above_high: false })
    }

    /// Whether a message of this cost would be taken by [`Outbox::push`], behind others
    /// that cost `before`.
    ///
    /// # Errors
    /// Why not.
    pub fn has_room(&self, before: usize, cost: usize) -> Result<(), Refused> {
        let state = self.state.lock();
        state.is_open()?;
        let queued_bytes = state.queued_bytes + before;
        let is_full = queued_bytes + cost > self.marks.high && queued_bytes > 0;
        if is_full { Err(Refused::Full) } else { Ok(()) }
    }

    /// Whether messages are still taken.
    ///
    /// # Errors
    /// Why not.
    pub fn is_open(&self) -> Result<(), Refused> {
        self.state.lock().is_open()
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

    /// Idle -> sending, for a message that is in no outbox. `None` if something is in
    /// front of it, or no message is taken any more.
    #[must_use]
    pub fn take_idle(&self) -> Option<Writer> {
        let mut state = self.state.lock();
        if state.is_open().is_err() || !matches!(state.seat, Seat::Idle(_)) {
            return None;
        }
        std::mem::replace(&mut state.seat, Seat::Sending).into_writer()
    }

    /// The writer comes back with a message that was in no outbox, and was sent whole.
    /// `None`: nothing has happened meanwhile, and nothing is to be done.
    #[must_use]
    pub fn settle_sent(&self, writer: Writer, sent: usize) -> Option<Settled> {
        let mut state = self.state.lock();
        state.sent_bytes += sent as u64;
        debug_assert!(matches!(state.seat, Seat::Sending), "only the taker settles");
        if state.is_quiet() || is_planted(Fault::SettleWithoutLook) {
            state.seat = Seat::Idle(writer.rest());
            return None;
        }
        Some(state.settle(writer, &Flushed::All, &self.marks))
    }

    /// The same, of which the rest is queued: `cost` is not accounted for yet. Whether it
    /// is above the high mark comes with it.
    pub fn settle_begun(
        &self,
        writer: Writer,
        cost: usize,
        total: Room,
        flushed: &Flushed,
    ) -> (Settled, bool) {
        let mut state = self.state.lock();
        state.queued_bytes += cost;
        let mut settled = state.settle(writer, flushed, &self.marks);
        let is_above_high = state.queued_bytes > self.marks.high;
        // Only if something is left: else nothing would ever end the pause.
        let pauses = settled.blocked && (is_above_high || total == Room::Exhausted);
        settled.call |= pauses && !state.paused;
        state.paused |= pauses;
        (settled, is_above_high)
    }

    fn take(&self, is_expected: impl Fn(&Seat) -> bool) -> Option<Writer> {
        let mut state = self.state.lock();
        if !is_expected(&state.seat) {
            return None;
        }
        let mut writer = std::mem::replace(&mut state.seat, Seat::Sending).into_writer()?;
        writer.load(std::mem::take(&mut state.waiting));
        Some(writer)
    }

    /// The writer comes back, with how its flush ended.
    pub fn settle(&self, writer: Writer, flushed: &Flushed) -> Settled {
        self.state.lock().settle(writer, flushed, &self.marks)
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
        state.parked = Some(Box::new(inbox));
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

    /// Gives up the backlog of a peer that is too slow: what is not begun is dropped,
    /// `last` tells the peer so behind the message that is half sent, and no new one
    /// is taken. `None`: it ends already, and `last` is not queued.
    ///
    /// A thread that has the writer cuts its part when it comes back.
    pub fn cut(&self, last: Entry) -> Option<Settled> {
        let mut state = self.state.lock();
        if state.finishing || state.aborted {
            return None;
        }
        (state.finishing, state.cut) = (true, true);
        let mut settled = Settled { call: true, ..Settled::default() };
        let unsent = match &mut state.seat {
            Seat::Idle(writer) | Seat::Ready(writer) | Seat::Blocked(writer, _) => writer.cut(),
            Seat::Sending => {
                state.cut_at_return = true;
                VecDeque::new()
            }
            Seat::Closed => return None,
        };
        state.give_up(unsent, &mut settled);
        let waiting = std::mem::take(&mut state.waiting);
        state.give_up(waiting.into(), &mut settled);
        state.queued_bytes += last.cost();
        state.waiting.push(last);
        settled.list = state.make_ready();
        state.resume_below(self.marks.low, &mut settled);
        Some(settled)
    }

    /// No further write from now on. If a thread is writing, `None`: only the
    /// flag is set, and that thread calls the loop when it is done.
    pub fn abort(&self) -> Option<Settled> {
        let mut state = self.state.lock();
        state.aborted = true;
        if matches!(state.seat, Seat::Sending) {
            return None;
        }
        let resting = std::mem::replace(&mut state.seat, Seat::Closed).into_resting();
        Some(state.close(resting.map_or_else(VecDeque::new, Resting::into_unsent)))
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
            cut: state.cut,
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

    /// The writer comes back.
    fn settle(&mut self, mut writer: Writer, flushed: &Flushed, marks: &Marks) -> Settled {
        debug_assert!(matches!(self.seat, Seat::Sending), "only the taker settles");
        let (sent, entries) = writer.take_sent();
        let released = sent + entries * ENTRY_COST;
        self.queued_bytes -= released;
        self.sent_bytes += sent as u64;
        if matches!(flushed, Flushed::Broken(_)) {
            self.aborted = true;
        }
        if self.aborted {
            let mut settled = self.close(writer.into_unsent());
            settled.released += released;
            settled.call = true;
            return settled;
        }
        let mut settled = Settled { released, ..Settled::default() };
        if std::mem::take(&mut self.cut_at_return) && !matches!(flushed, Flushed::All) {
            self.give_up(writer.cut(), &mut settled);
        }
        self.seat = match flushed {
            // "All is sent" and "one more is queued" are told apart under the
            // lock that `append` takes, or a message could be left behind.
            Flushed::All if self.waiting.is_empty() => {
                settled.call = self.finishing;
                Seat::Idle(writer.rest())
            }
            Flushed::All | Flushed::ShareUsed => {
                let is_all = matches!(flushed, Flushed::All);
                settled.list = is_all || !is_planted(Fault::ShareNotListed);
                Seat::Ready(writer.rest())
            }
            Flushed::SocketFull => Seat::Blocked(writer.rest(), Blocked::Socket),
            Flushed::NoBuffers => Seat::Blocked(writer.rest(), Blocked::Buffers),
            Flushed::Broken(_) => unreachable!("sets aborted above"),
        };
        settled.blocked = matches!(self.seat, Seat::Blocked(..));
        settled.call |= settled.blocked;
        self.resume_below(marks.low, &mut settled);
        settled
    }

    /// Nothing is queued, nobody waits, and the end has not begun.
    fn is_quiet(&self) -> bool {
        self.waiting.is_empty()
            && self.parked.is_none()
            && !(self.finishing || self.aborted || self.cut_at_return || self.paused)
    }

    fn is_open(&self) -> Result<(), Refused> {
        match (self.aborted, self.finishing) {
            (true, _) => Err(Refused::Gone),
            (false, true) => Err(Refused::Finishing),
            (false, false) => Ok(()),
        }
    }

    /// Takes entries that will not be sent off the accounts.
    fn give_up(&mut self, entries: VecDeque<Entry>, settled: &mut Settled) {
        let cost: usize = entries.iter().map(Entry::cost).sum();
        self.queued_bytes -= cost;
        settled.released += cost;
        settled.lost_frames += entries.iter().map(|entry| u64::from(entry.frames)).sum::<u64>();
        let [first, second] = &mut settled.remains;
        if first.is_empty() { *first = entries } else { *second = entries }
    }

    /// At the low mark reading goes on, and so does the stalled inbox.
    fn resume_below(&mut self, low: usize, settled: &mut Settled) {
        if self.queued_bytes <= low {
            settled.call |= std::mem::take(&mut self.paused);
            settled.resume = self.parked.take().map(|inbox| *inbox);
        }
    }

    /// The writer's hold on the socket has ended, under this lock: the loop, which sees
    /// this state by the same lock, then drops the last one.
    fn close(&mut self, unsent: VecDeque<Entry>) -> Settled {
        self.seat = Seat::Closed;
        let waiting = std::mem::take(&mut self.waiting);
        Settled {
            lost_frames: unsent.iter().chain(&waiting).map(|entry| u64::from(entry.frames)).sum(),
            released: std::mem::take(&mut self.queued_bytes),
            // Taken, so that outbox and inbox do not hold each other for ever.
            resume: self.parked.take().map(|inbox| *inbox),
            remains: [unsent, waiting.into()],
            ..Settled::default()
        }
    }
}

impl Seat {
    fn into_resting(self) -> Option<Resting> {
        match self {
            Self::Idle(resting) | Self::Ready(resting) | Self::Blocked(resting, _) => Some(resting),
            Self::Sending | Self::Closed => None,
        }
    }

    fn into_writer(self) -> Option<Writer> {
        self.into_resting().map(Resting::into_writer)
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
