//! One turn of one connection on a handler thread.
//!
//! A turn is bounded in messages, bytes and time; then the connection goes to
//! the tail of the run list. Its replies are collected and handed to the send
//! thread in one piece at the end, or earlier, before a handler that may block.

use super::inbox::{Done, ITEM_COST, Item, Then};
use super::receive_half::ReceiveHalf;
use crate::frame::Chunk;
use crate::handler::{Origin, Replies, Serve, Served};
use crate::send::{Entry, Level, Parking, Resume, Room};
use crate::shm::{Counter, ThreadCounters};
use crate::sync::fault::{Fault, is_planted};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Messages a connection may have handled before the next has its turn.
pub const TURN_MESSAGES_MAX: usize = 64;
/// Bytes of requests, and bytes of replies, likewise.
pub const TURN_BYTES_MAX: usize = 64 * 1024;
/// Time, likewise; looked at between messages.
pub const TURN_TIME_MAX: Duration = Duration::from_millis(1);

/// How many quick messages pass between two looks at the clock.
const MESSAGES_PER_CLOCK: usize = 16;

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
    let mut turn =
        Turn { connection, serve, counters, replies: Replies::of_turn(), share: Share::new() };
    let end = turn.handle_items();
    let end = turn.hand_over().unwrap_or(End::Closed).or_worse(end);
    turn.leave(end);
}

struct Turn<'a> {
    connection: &'a Arc<ReceiveHalf>,
    serve: &'a dyn Serve,
    counters: &'a ThreadCounters,
    replies: Replies,
    share: Share,
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
            let Some(item) = self.connection.next(done) else { return End::Over };
            match item {
                Item::Notice(notice) => {
                    let charged = notice.encoded.len() + ITEM_COST;
                    self.replies.append(&notice.encoded, notice.frames);
                    done = Done { messages: notice.frames as usize, bytes: charged };
                    if notice.then == Then::Finish {
                        self.connection.done(done);
                        return End::Finish;
                    }
                    self.share.use_up(done.messages, 0);
                }
                Item::Chunk { mut chunk, charged } => {
                    let before = chunk.frames;
                    let end = self.handle_chunk(&mut chunk, charged);
                    done = Done { messages: before - chunk.frames, bytes: 0 };
                    if chunk.frames > 0 && matches!(end, Some(End::Over | End::Stalled(_))) {
                        self.connection.put_back(done, Item::Chunk { chunk, charged });
                        return end.unwrap_or(End::Over);
                    }
                    done.bytes = charged;
                    if let Some(end @ (End::Finish | End::Closed)) = end {
                        self.connection.done(done);
                        return end;
                    }
                }
            }
            if self.share.is_used(self.replies.bytes()) {
                self.connection.done(done);
                return End::Over;
            }
        }
    }

    /// `Some` if the turn has to end; then `chunk` holds what was not handled.
    fn handle_chunk(&mut self, chunk: &mut Chunk, charged: usize) -> Option<End> {
        while chunk.frames > 0 {
            if self.share.is_used(self.replies.bytes()) {
                return Some(End::Over);
            }
            let is_quick = self.serve.is_quick(&chunk.bytes);
            if !is_quick && !self.replies.is_empty() {
                // A handler that blocks must not hold back what is answered.
                match self.hand_over() {
                    None => return Some(End::Closed),
                    Some(End::Over) => {}
                    Some(end) => return Some(end),
                }
            }
            let before = chunk.bytes.len();
            let origin = Origin { info: self.connection.info(), send: self.connection.send() };
            let served = self.serve.serve(origin, &mut chunk.bytes, charged, &mut self.replies);
            chunk.frames -= 1;
            self.share.use_up(1, before - chunk.bytes.len());
            if !is_quick {
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
        let level = self.connection.send().append(Entry { bytes, frames }, self.counters).ok()?;
        Some(match level {
            Level::Below => End::Over,
            Level::Above => End::Stalled(Backlog::Own),
            Level::TotalAbove => End::Stalled(Backlog::Total),
        })
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
    messages: usize,
    bytes: usize,
    until: Instant,
    is_late: bool,
}

impl Share {
    fn new() -> Self {
        let until = Instant::now() + TURN_TIME_MAX;
        Self { messages: TURN_MESSAGES_MAX, bytes: TURN_BYTES_MAX, until, is_late: false }
    }

    fn use_up(&mut self, messages: usize, bytes: usize) {
        self.messages = self.messages.saturating_sub(messages);
        self.bytes = self.bytes.saturating_sub(bytes);
        if self.messages.is_multiple_of(MESSAGES_PER_CLOCK) {
            self.look_at_clock();
        }
    }

    fn look_at_clock(&mut self) {
        // A model has no time: each of its runs must be repeatable.
        self.is_late = !cfg!(loom) && Instant::now() >= self.until;
    }

    fn is_used(&self, reply_bytes: usize) -> bool {
        self.messages == 0 || self.bytes == 0 || self.is_late || reply_bytes >= TURN_BYTES_MAX
    }
}
