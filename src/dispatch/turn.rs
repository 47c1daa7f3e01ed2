//! One turn of one connection, on a handler thread.
//!
//! A turn is bounded in messages, bytes and time; then the connection goes to
//! the tail of the run list. Its replies are collected and handed to the send
//! thread in one piece at the end, or earlier, before a handler that may block.
//!
//! The event loop can run a turn too, of quick handlers only, and write the replies
//! itself: a wake-up of another thread costs more than what that thread would do.
//! The states are the same. What is not quick, or too much, it leaves to the others.

use super::inbox::{Done, ITEM_COST, Item, Then};
use super::receive_half::ReceiveHalf;
use crate::handler::{Messages, Origin, Pace, QUICK_TIME_MAX, Replies, Serve, Served, SharedChunk};
use crate::send::{Entry, Level, Parking, Resume, Room};
use crate::sync::fault::{Fault, is_planted};
use bytes::{Buf, Bytes};
use chappe_shm::{Counter, ThreadCounters};
use chappe_sys::Stopwatch;
use chappe_wire::Chunk;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Messages a connection may have handled before the next has its turn.
pub const TURN_MESSAGES_MAX: usize = 64;
/// Bytes of requests, and bytes of replies, likewise.
pub const TURN_BYTES_MAX: usize = 64 * 1024;
/// Time, likewise; looked at between messages.
pub const TURN_TIME_MAX: Duration = Duration::from_millis(1);

/// A turn of the loop that takes longer for each of its messages, and longer than
/// [`QUICK_TIME_MAX`], casts doubt on their handlers.
const MESSAGE_TIME_MAX: Duration = Duration::from_micros(20);

/// How many quick messages pass between two looks at the clock.
const MESSAGES_PER_CLOCK: usize = 16;

/// The share of a turn that is not bounded in messages.
const ANY_MESSAGES: usize = usize::MAX / MESSAGES_PER_CLOCK * MESSAGES_PER_CLOCK;

/// Why a turn ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Nothing is left, or the share is used.
    Over,
    /// The replies back up in this connection's outbox, or in all together.
    Stalled(Backlog),
    /// The connection is to be flushed and closed.
    Finish,
    /// It was closed under the turn.
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backlog {
    Own,
    Total,
}

/// Handles some of what a connection has sent. The connection has just been
/// taken off the run list.
pub fn run_turn(connection: &Arc<ReceiveHalf>, serve: &dyn Serve, counters: &ThreadCounters) {
    if !connection.inbox().begin() {
        return;
    }
    let share = Share::new(TURN_MESSAGES_MAX);
    let replies = &mut Replies::of_turn();
    let mut turn = Turn { connection, serve, counters, replies, share, is_on_loop: false };
    let end = turn.handle_items();
    let end = turn.hand_over().unwrap_or(End::Closed).or_worse(end);
    turn.leave(end);
}

/// The same on the event loop, for a connection that was pushed to and not listed.
/// Ends before a message whose handler is not quick.
pub fn run_turn_on_loop(
    connection: &Arc<ReceiveHalf>,
    serve: &dyn Serve,
    counters: &ThreadCounters,
) {
    if !connection.inbox().begin() {
        return;
    }
    // One read is the bound, and the time: a hand-over in the middle of what one read
    // has brought would cost more than the rest of it.
    let share = Share::new(ANY_MESSAGES);
    let replies = &mut Replies::of_turn();
    let mut turn = Turn { connection, serve, counters, replies, share, is_on_loop: true };
    let end = turn.handle_items();
    let end = turn.hand_over().unwrap_or(End::Closed).or_worse(end);
    turn.leave(end);
}

/// The same for messages that were just read and lie in the loop's own buffer: if
/// nothing is in front of them they need no inbox, and their replies no outbox. False if
/// they have to go that way; nothing was done then.
///
/// What is not handled here (a handler that is not quick, the time is up) is copied into
/// the inbox for the handler threads, and what the socket does not take into the outbox.
#[must_use]
pub fn run_turn_directly(
    connection: &Arc<ReceiveHalf>,
    read: &Cut<'_>,
    serve: &dyn Serve,
    counters: &ThreadCounters,
    on_loop: &mut OnLoop,
) -> bool {
    let is_slow = serve.find(read.bytes).pace == Pace::Slow;
    if is_slow || connection.send().is_total_exhausted() || !connection.inbox().begin_direct() {
        return false;
    }
    let share = Share::new(ANY_MESSAGES);
    let replies = &mut on_loop.replies;
    let mut turn = Turn { connection, serve, counters, replies, share, is_on_loop: true };
    let (mut messages, mut left) = (Messages { bytes: read.bytes, chunk: None }, read.frames);
    let end = turn.handle_messages(&mut messages, &mut left).unwrap_or(End::Over);
    let end = turn.write_through().unwrap_or(End::Closed).or_worse(end);
    if left > 0 {
        let bytes = Bytes::copy_from_slice(messages.bytes);
        // After an end that closes the inbox the rest is lost, and counted.
        let is_kept = matches!(end, End::Over | End::Stalled(_));
        let rest = Item::chunk(Chunk { bytes, frames: left });
        let lost = if is_kept { connection.keep_rest(rest) } else { left };
        counters.add(Counter::MessagesExpired, lost as u64);
    }
    turn.leave(end);
    true
}

/// Whole messages in a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Cut<'a> {
    /// End to end.
    pub bytes: &'a [u8],
    /// How many, at least one.
    pub frames: usize,
}

/// What the event loop keeps between the turns that it runs.
#[derive(Debug)]
pub struct OnLoop {
    /// Empty; its buffer is used again.
    replies: Replies,
}

impl OnLoop {
    /// For one loop.
    #[must_use]
    pub fn new() -> Self {
        Self { replies: Replies::of_turn() }
    }
}

impl Default for OnLoop {
    fn default() -> Self {
        Self::new()
    }
}

struct Turn<'a> {
    connection: &'a Arc<ReceiveHalf>,
    serve: &'a dyn Serve,
    counters: &'a ThreadCounters,
    replies: &'a mut Replies,
    share: Share,
    /// Run by the event loop.
    is_on_loop: bool,
}

impl Turn<'_> {
    fn handle_items(&mut self) -> End {
        let mut done = Done::default();
        if self.connection.send().is_total_exhausted() {
            // Looked at before the first message: however many connections wait,
            // no more than one turn a handler thread goes beyond the bound.
            return End::Stalled(Backlog::Total);
        }
        loop {
            let Some(item) = self.connection.next(done, self.counters) else { return End::Over };
            match item {
                Item::Notice(notice) => {
                    let charged = notice.encoded.len() + ITEM_COST;
                    self.replies.append(&notice.encoded, notice.frames);
                    done = Done { messages: notice.frames as usize, bytes: charged };
                    if notice.then == Then::Finish {
                        self.connection.done(done, self.counters);
                        return End::Finish;
                    }
                    self.share.use_up(done.messages, 0);
                }
                Item::Chunk { mut chunk, charged } => {
                    let before = chunk.frames;
                    let shared = SharedChunk { bytes: &chunk.bytes, allocated: charged };
                    let mut messages = Messages { bytes: &chunk.bytes, chunk: Some(shared) };
                    let end = self.handle_messages(&mut messages, &mut chunk.frames);
                    let handled = chunk.bytes.len() - messages.bytes.len();
                    chunk.bytes.advance(handled);
                    done = Done { messages: before - chunk.frames, bytes: 0 };
                    if chunk.frames > 0 && matches!(end, Some(End::Over | End::Stalled(_))) {
                        self.connection.put_back(
                            done,
                            Item::Chunk { chunk, charged },
                            self.counters,
                        );
                        return end.unwrap_or(End::Over);
                    }
                    done.bytes = charged;
                    if let Some(end @ (End::Finish | End::Closed)) = end {
                        self.connection.done(done, self.counters);
                        return end;
                    }
                }
            }
            if self.share.is_used(self.replies.bytes()) {
                self.connection.done(done, self.counters);
                return End::Over;
            }
        }
    }

    /// `Some` if the turn has to end; then `frames` of the messages are not handled.
    fn handle_messages(&mut self, messages: &mut Messages<'_>, frames: &mut usize) -> Option<End> {
        let all = messages.bytes;
        let end = self.handle_each(messages, frames);
        if self.is_on_loop && !cfg!(loom) {
            let now = Instant::now();
            self.share.see(now);
            if now - self.share.began > self.share.quick_time() {
                self.serve.doubt(&all[..all.len() - messages.bytes.len()]);
            }
        }
        end
    }

    fn handle_each(&mut self, messages: &mut Messages<'_>, frames: &mut usize) -> Option<End> {
        let mut handled = 0_usize;
        while *frames > 0 {
            if self.share.is_used(self.replies.bytes()) {
                return Some(End::Over);
            }
            let found = self.serve.find(messages.bytes);
            let is_slow = found.pace == Pace::Slow;
            if is_slow && self.is_on_loop {
                return Some(End::Over);
            }
            if is_slow && !self.replies.is_empty() {
                // A handler that blocks must not hold back what is answered.
                match self.hand_over() {
                    None => return Some(End::Closed),
                    Some(End::Over) => {}
                    Some(end) => return Some(end),
                }
            }
            let before = messages.bytes.len();
            let is_timed = self.is_on_loop && found.pace == Pace::Doubted;
            let watch = is_timed.then(Stopwatch::start);
            let origin = Origin { info: self.connection.info(), send: self.connection.send() };
            let served = self.serve.serve(found, origin, messages, self.replies);
            *frames -= 1;
            handled += 1;
            if let Some(watch) = watch {
                let is_demoted = self.serve.took(found, watch.stop());
                self.counters.add(Counter::HandlersDemoted, u64::from(is_demoted));
            }
            self.share.use_up(1, before - messages.bytes.len());
            // On the loop soon after the start too: the first tell whether they are quick.
            if is_slow || is_timed || self.is_on_loop && *frames > 0 && matches!(handled, 1 | 4) {
                self.share.look_at_clock();
            }
            if self.count(served) {
                return Some(End::Finish);
            }
        }
        None
    }

    /// Counts what became of a message; whether the connection has to end.
    fn count(&self, served: Served) -> bool {
        let (counter, ends) = match served {
            Served::Answered => return false,
            Served::UnknownCode => (Counter::ProtocolErrors, false),
            Served::BadChecksum => (Counter::ProtocolErrors, true),
            Served::Failed => (Counter::HandlerErrors, false),
            Served::Panicked => (Counter::HandlerPanics, true),
        };
        self.counters.add(counter, 1);
        ends
    }

    /// Gives the replies so far to the send thread. `None` if the connection
    /// takes no more.
    fn hand_over(&mut self) -> Option<End> {
        if self.replies.is_empty() {
            return Some(End::Over);
        }
        let (bytes, frames) = self.replies.take();
        let (send, entry) = (self.connection.send(), Entry { bytes, frames });
        let level = if self.is_on_loop {
            send.append_and_flush(entry, self.counters).ok()?
        } else {
            send.append(entry, self.counters).ok()?
        };
        Some(End::at(level))
    }

    /// Writes the replies so far straight from their buffer, or hands them over if
    /// something is in front of them.
    fn write_through(&mut self) -> Option<End> {
        let (bytes, frames) = self.replies.encoded();
        if bytes.is_empty() {
            return Some(End::Over);
        }
        let Some(level) = self.connection.send().write_through(bytes, frames, self.counters) else {
            return self.hand_over();
        };
        self.replies.clear();
        Some(End::at(level))
    }

    fn leave(self, end: End) {
        let connection = self.connection;
        match end {
            End::Over => connection.act(connection.inbox().leave()),
            End::Finish => {
                connection.close(self.counters);
                connection.act(connection.inbox().leave());
                connection.send().finish();
            }
            End::Closed => {
                connection.close(self.counters);
                connection.act(connection.inbox().leave());
            }
            End::Stalled(backlog) => {
                if !is_planted(Fault::StallAfterPark) {
                    connection.inbox().stall();
                }
                let waiter = Arc::clone(connection) as Arc<dyn Resume>;
                let waits = match backlog {
                    Backlog::Own => match connection.send().park(waiter) {
                        Parking::Parked => true,
                        Parking::GoOn => false,
                        Parking::Closed => return connection.close(self.counters),
                    },
                    Backlog::Total => connection.send().park_for_total(waiter) == Room::Exhausted,
                };
                if is_planted(Fault::StallAfterPark) {
                    connection.inbox().stall();
                }
                if !waits {
                    Arc::clone(connection).resume();
                }
            }
        }
    }
}

impl End {
    fn at(level: Level) -> Self {
        match level {
            Level::Below => Self::Over,
            Level::Above => Self::Stalled(Backlog::Own),
            Level::TotalAbove => Self::Stalled(Backlog::Total),
        }
    }

    /// How the turn ends, after the replies were handed over.
    fn or_worse(self, handled: Self) -> Self {
        match (self, handled) {
            (Self::Closed, _) | (_, Self::Closed) => Self::Closed,
            (_, Self::Finish) => Self::Finish,
            (Self::Over, handled) => handled,
            (handed_over, _) => handed_over,
        }
    }
}

/// What is left of a turn.
struct Share {
    began: Instant,
    handled: u32,
    messages: usize,
    bytes: usize,
    until: Instant,
    is_late: bool,
}

impl Share {
    fn new(messages: usize) -> Self {
        let began = Instant::now();
        let until = began + TURN_TIME_MAX;
        Self { began, handled: 0, messages, bytes: TURN_BYTES_MAX, until, is_late: false }
    }

    fn use_up(&mut self, messages: usize, bytes: usize) {
        self.handled += u32::try_from(messages).unwrap_or(0);
        self.messages = self.messages.saturating_sub(messages);
        self.bytes = self.bytes.saturating_sub(bytes);
        if self.messages.is_multiple_of(MESSAGES_PER_CLOCK) {
            self.look_at_clock();
        }
    }

    /// How long quick messages take, so many as were handled, at the most. A turn is
    /// told to end before that bound.
    fn quick_time(&self) -> Duration {
        (MESSAGE_TIME_MAX * self.handled).clamp(QUICK_TIME_MAX, 2 * TURN_TIME_MAX)
    }

    fn look_at_clock(&mut self) {
        // A model has no time: each of its runs must be repeatable.
        if !cfg!(loom) {
            self.see(Instant::now());
        }
    }

    fn see(&mut self, now: Instant) {
        self.is_late = now >= self.until;
    }

    fn is_used(&self, reply_bytes: usize) -> bool {
        self.messages == 0 || self.bytes == 0 || self.is_late || reply_bytes >= TURN_BYTES_MAX
    }
}
