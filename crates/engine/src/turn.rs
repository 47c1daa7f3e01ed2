//! One turn of one connection: some of what it has sent is handled and answered.
//!
//! A turn has a *source*, the inbox or the event loop's own read buffer, and a *place*,
//! a handler thread or the event loop. The steps are the same:
//!
//! 1. begin: the inbox becomes *running*, so no other thread has a turn of it;
//! 2. handle messages, one after the other, until nothing is left or the share is used;
//! 3. leave, with the replies and what is not handled.
//!
//! A turn is bounded in messages, bytes and time; then the others have theirs. Its
//! replies leave in one piece at the end, or earlier, before a handler that may block.
//!
//! On the event loop a turn runs quick handlers only, and writes the replies itself: a
//! wake-up of another thread costs more than what that thread would do. What is not
//! quick, or too much, it leaves to the handler threads.

use crate::batch::Batch;
use crate::calls::Calls;
use crate::effects::Leaving;
use crate::item::{Chunk, Done, Item};
use crate::mailbox::{Mailbox, Next, Place};
use crate::notice::Cause;
use crate::protocol::{Asks, Opened, Protocol};
use crate::session::{Hook, HookCall, Session};
use crate::share::Share;
use crate::writer::Entry;
use chappe_shm::{Counter, ThreadCounters};
use chappe_sys::Stopwatch;
use chappe_sys::clock::Moment;
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

/// Messages a connection may have handled on a handler thread before the next has its
/// turn.
pub const TURN_MESSAGES_MAX: usize = 64;
/// Bytes of requests, and bytes of replies, that one turn may have; also on the event loop.
pub const TURN_BYTES_MAX: usize = 64 * 1024;
/// Time that one turn may take; looked at between messages.
pub const TURN_TIME_MAX: Duration = Duration::from_millis(1);

/// The longest time that a call of a quick handler may take.
pub const QUICK_TIME_MAX: Duration = Duration::from_micros(200);

/// Where the messages of a turn come from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// The connection's inbox. It is queued, and has just been taken off the run list, or
    /// [`crate::Received::StartTurn`] was said of it.
    Inbox,
    /// What the event loop has just read, with perhaps a part of a message at the end. If
    /// nothing is in front of them these messages need no inbox.
    Buffer(&'a [u8]),
}

/// The result of a turn.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Turned {
    /// How many bytes of [`Source::Buffer`] were handled: whole messages from the front.
    /// The rest has to go through the inbox.
    pub handled_bytes: usize,
    /// How many messages these were.
    pub handled: usize,
    /// The next message is not for the event loop: its handler is not quick, or the
    /// turn's share is used.
    pub is_for_threads: bool,
    /// What is left to do for the event loop.
    pub next: Next,
    /// When it ended.
    pub ended: Moment,
}

/// What a turn does with each message: the application.
pub trait Serve: Send + Sync {
    /// The handler of a code.
    fn find(&self, code: u16) -> Found;

    /// The event loop has slept: what it does is measured from here on.
    fn woken(&self) {}

    /// A turn of the loop with messages of these codes took this long: perhaps one of their
    /// handlers did, perhaps another program had the CPU.
    fn suspect(&self, codes: &mut dyn Iterator<Item = u16>, took: Duration);

    /// Records how long a timed call took, of its thread's own time.
    fn record(&self, found: Found, time: Duration);

    /// The handler of this place was called `_calls` times.
    fn called(&self, _place: usize, _calls: u32) {}

    /// One of these calls took so long, whatever the time went to.
    fn took(&self, _place: usize, _time: Duration) {}

    /// Handles a message and appends its replies.
    fn serve(
        &self,
        found: Found,
        message: &Message<'_>,
        session: &mut Option<Box<Session>>,
        replies: &mut Batch,
    ) -> Served;

    /// Continues a message that has waited for its ticket: as [`Serve::serve`], with what the
    /// ticket was resumed with.
    fn resume(
        &self,
        value: Box<dyn Any + Send>,
        message: &Message<'_>,
        session: &mut Option<Box<Session>>,
        replies: &mut Batch,
    ) -> Served;

    /// A connection is gone that has [asked for topics](Mailbox::listens).
    fn gone(&self, _id: u64) {}

    /// Where a hook may run. Those that the loop runs are few, so each call is timed.
    fn hook_pace(&self, _hook: HookCall) -> Pace {
        Pace::Slow
    }

    /// A hook that is not slow took `_time`.
    fn record_hook(&self, _hook: HookCall, _time: Duration) {}

    /// A connection can carry messages.
    ///
    /// # Errors
    /// Why it has to end instead; the notice to its peer is appended.
    fn connected(&self, mailbox: &Arc<Mailbox>, replies: &mut Batch)
    -> Result<Box<Session>, Cause>;

    /// A connection is over. Called once for each that was connected.
    fn closed(&self, mailbox: &Arc<Mailbox>, session: Option<Box<Session>>, cause: Cause);
}

/// The handler of a message.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Where it may run.
    pub pace: Pace,
    /// Its place among the handlers of [`Serve`]; `None` if no handler has this code.
    pub place: Option<usize>,
}

/// Where a handler may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// On the event loop.
    Quick,
    /// On the event loop, and its calls are timed.
    Suspect,
    /// On a handler thread only, and its calls are timed.
    Proving,
    /// On a handler thread only.
    Slow,
}

impl Pace {
    /// Not for the event loop.
    #[must_use]
    pub fn is_for_threads(self) -> bool {
        matches!(self, Self::Proving | Self::Slow)
    }
}

/// A message on its way to its handler.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// What it says.
    pub opened: Opened<'a>,
    /// Whose it is.
    pub mailbox: &'a Arc<Mailbox>,
    /// What its replies are encoded by.
    pub protocol: &'a dyn Protocol,
    /// What it is a part of; `None`: it lies in a buffer that is about to be used for
    /// something else.
    pub chunk: Option<&'a Chunk>,
}

/// How a message was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// It was handled.
    Answered,
    /// The connection stays open: no handler has this code.
    UnknownCode,
    /// The connection is not admitted: to be closed after the replies, if its protocol says so.
    NotAdmitted,
    /// The connection stays open: the handler returned an error.
    Failed,
    /// To be closed after the replies: the checksum was wrong.
    BadChecksum,
    /// To be closed after the replies: the handler panicked.
    Panicked,
    /// To be closed after the replies, for this reason: the handler asks for it.
    End(Cause),
    /// It waits for its ticket ([`Mailbox::defer`]): the turn ends.
    Deferred,
    /// It waits for whom it is to be submitted to ([`Mailbox::submit`]): the turn ends, unless
    /// what follows [asks for the like](Protocol::asks).
    Submitted,
    /// It was answered, and the dialect of the connection is another one: the turn ends, so
    /// that it is known to all before the next message.
    Switched,
}

impl Served {
    /// Whether a handler was called.
    fn is_call(self) -> bool {
        !matches!(self, Self::UnknownCode | Self::BadChecksum | Self::NotAdmitted)
    }
}

/// What a thread that runs turns needs. One for each thread.
#[derive(Debug)]
pub struct Turns<'a, S: ?Sized> {
    serve: &'a S,
    counters: &'a ThreadCounters,
    place: Place,
    /// Empty between turns; on the loop its buffer is used again.
    batch: &'a mut Batch,
}

impl<'a, S: Serve + ?Sized> Turns<'a, S> {
    /// For turns at this place.
    pub fn new(
        serve: &'a S,
        counters: &'a ThreadCounters,
        place: Place,
        batch: &'a mut Batch,
    ) -> Self {
        Self { serve, counters, place, batch }
    }

    /// Runs a turn, which begins now.
    pub fn run(&mut self, mailbox: &Arc<Mailbox>, source: Source<'_>, now: Moment) -> Turned {
        debug_assert!(self.batch.is_empty());
        let (protocol, share) = (mailbox.protocol(), Share::new(self.place, now));
        let turn = Turn {
            mailbox,
            protocol,
            serve: self.serve,
            counters: self.counters,
            place: self.place,
            batch: self.batch,
            share,
            calls: Calls::new(),
            session: None,
            together: 0,
            ask: None,
            next: Next::Rest,
            is_for_threads: false,
        };
        match source {
            Source::Inbox => turn.run_inbox(),
            Source::Buffer(bytes) => turn.run_buffer(bytes),
        }
    }
}

struct Turn<'a, S: ?Sized> {
    mailbox: &'a Arc<Mailbox>,
    protocol: &'a dyn Protocol,
    serve: &'a S,
    counters: &'a ThreadCounters,
    place: Place,
    batch: &'a mut Batch,
    share: Share,
    calls: Calls,
    /// The application's part of the connection, for as long as the turn lasts.
    session: Option<Box<Session>>,
    /// Messages that are to wait together when it ends. What does not wait with them has to come
    /// behind them, in another turn.
    together: usize,
    /// What they ask for; `None`: the first waits alone.
    ask: Option<Asks>,
    next: Next,
    is_for_threads: bool,
}

/// Messages that are handled one after the other.
struct Messages<'a> {
    /// What is left of them.
    bytes: &'a [u8],
    chunk: Option<&'a Chunk>,
    /// The first of what is left, if it is opened already.
    first: Option<(Opened<'a>, Found)>,
    handled: usize,
}

/// Why handling stopped before the end of the messages.
enum Stop {
    /// The connection goes on.
    GoOn,
    /// It ends.
    End(Cause),
}

impl<S: Serve + ?Sized> Turn<'_, S> {
    fn run_buffer(mut self, bytes: &[u8]) -> Turned {
        let Some(opened) = self.protocol.open(bytes) else { return self.turned(0, 0) };
        let found = self.serve.find(opened.code);
        self.is_for_threads = self.place == Place::Loop && found.pace.is_for_threads();
        if self.is_for_threads {
            return self.turned(0, 0);
        }
        let Some((writer, session)) = self.mailbox.begin_unqueued() else {
            return self.turned(0, 0);
        };
        self.session = session;
        let first = Some((opened, found));
        let mut messages = Messages { bytes, chunk: None, first, handled: 0 };
        let end = match self.handle(&mut messages) {
            Some(Stop::End(cause)) => Some(cause),
            Some(Stop::GoOn) | None => None,
        };
        let leaving = Leaving { end, session: self.session.take(), ..Leaving::default() };
        self.next = self.mailbox.leave_unqueued(writer, self.batch, leaving, self.counters);
        self.turned(bytes.len() - messages.bytes.len(), messages.handled)
    }

    fn run_inbox(mut self) -> Turned {
        let Some((first, session)) = self.mailbox.begin(self.counters, self.place) else {
            return self.turned(0, 0);
        };
        self.session = session;
        let mut item = Some(first);
        let mut leaving = Leaving::default();
        while let Some(taken) = item {
            let stop = self.handle_item(taken, &mut leaving);
            if let Some(Stop::End(cause)) = stop {
                leaving.end = Some(cause);
            }
            if stop.is_some() || self.share.is_used(self.batch.len()) {
                break;
            }
            let done = std::mem::take(&mut leaving.done);
            let (next_item, next) = self.mailbox.next(done, self.counters, self.place);
            self.next = self.next.and(next);
            item = next_item;
        }
        self.leave(leaving);
        self.turned(0, 0)
    }

    fn turned(self, handled_bytes: usize, handled: usize) -> Turned {
        let Self { is_for_threads, next, share, .. } = self;
        Turned { handled_bytes, handled, is_for_threads, next, ended: share.now }
    }

    fn leave(&mut self, mut leaving: Leaving) {
        if !self.batch.is_empty() {
            leaving.replies = Some(Entry::new(self.batch.take()));
        }
        leaving.session = self.session.take();
        self.next = self.next.and(self.mailbox.leave(leaving, self.counters, self.place));
    }

    /// `Some` if the turn has to end.
    fn handle_item(&mut self, item: Item, leaving: &mut Leaving) -> Option<Stop> {
        let charged = item.charged();
        if self.together > 0 && !matches!(item, Item::Chunk(_)) {
            leaving.rest = Some(item);
            return Some(Stop::GoOn);
        }
        match item {
            Item::Notice(notice) => {
                log::trace!(target: "conn.notice", "conn={} notice {notice:?}", self.mailbox.id());
                self.protocol.notice(&notice, self.batch);
                leaving.done = Done { messages: notice.messages(), bytes: charged, hook: None };
                self.share.use_up(notice.messages(), 0);
                None
            }
            Item::Hook(hook) => {
                let pace = self.serve.hook_pace(hook);
                if self.place == Place::Loop && pace.is_for_threads() {
                    return self.leave_to_threads(Item::Hook(hook), leaving);
                }
                self.call_hook(hook, pace, leaving)
            }
            later @ Item::Deferred(_) if self.place == Place::Loop => {
                self.leave_to_threads(later, leaving)
            }
            Item::Deferred(mut deferred) => self.go_on_with(&mut deferred, leaving),
            Item::Chunk(mut chunk) => {
                let (bytes, shared) = (chunk.bytes(), Some(&chunk));
                let mut messages = Messages { bytes, chunk: shared, first: None, handled: 0 };
                let stop = self.handle(&mut messages);
                let (handled, rest_bytes) = (messages.handled, messages.bytes.len());
                let is_whole = handled == chunk.messages();
                let bytes = if is_whole { charged } else { 0 };
                leaving.done = Done { messages: handled, bytes, hook: None };
                if !is_whole {
                    chunk.advance(handled, rest_bytes);
                    leaving.rest = Some(Item::Chunk(chunk));
                }
                // A rest means that the turn ends, also where the messages gave no reason.
                stop.or(leaving.rest.as_ref().map(|_| Stop::GoOn))
            }
        }
    }

    fn leave_to_threads(&mut self, item: Item, leaving: &mut Leaving) -> Option<Stop> {
        self.is_for_threads = true;
        leaving.rest = Some(item);
        Some(Stop::GoOn)
    }

    /// `Some` if the turn has to end.
    fn call_hook(&mut self, hook: HookCall, pace: Pace, leaving: &mut Leaving) -> Option<Stop> {
        // A model has no time.
        let watch = (!cfg!(loom) && pace != Pace::Slow).then(Stopwatch::start);
        let (came_to, stop) = match hook {
            HookCall::Connected => match self.serve.connected(self.mailbox, self.batch) {
                Ok(session) => {
                    self.session = Some(session);
                    (Hook::Connected, None)
                }
                Err(cause) => (Hook::None, Some(Stop::End(cause))),
            },
            HookCall::Closed(cause) => {
                self.serve.closed(self.mailbox, self.session.take(), cause);
                (Hook::None, None)
            }
        };
        if let Some(watch) = watch {
            self.serve.record_hook(hook, watch.stop());
        }
        leaving.done.hook = Some(came_to);
        self.share.look_at_clock();
        stop
    }

    /// Handles messages until none is whole, or there is a reason to stop.
    fn handle(&mut self, messages: &mut Messages<'_>) -> Option<Stop> {
        let all = messages.bytes;
        self.calls.begin(self.share.handled);
        let stop = self.handle_each(messages);
        self.calls.end_run(self.share.handled, self.serve);
        if !cfg!(loom) {
            self.share.look_after_last();
            if self.place == Place::Loop && self.share.is_longer_than_quick() {
                let mut handled = &all[..all.len() - messages.bytes.len()];
                let mut codes = std::iter::from_fn(|| {
                    let opened = self.protocol.open(handled)?;
                    handled = &handled[opened.length..];
                    Some(opened.code)
                });
                self.serve.suspect(&mut codes, self.share.now.since(self.share.began));
            }
        }
        stop
    }

    fn handle_each(&mut self, messages: &mut Messages<'_>) -> Option<Stop> {
        let on_loop = self.place == Place::Loop;
        loop {
            if self.share.is_used(self.batch.len()) {
                self.is_for_threads = !messages.bytes.is_empty();
                return Some(Stop::GoOn);
            }
            let (opened, found) = match messages.first.take() {
                Some(first) => first,
                None => {
                    let opened = self.protocol.open(messages.bytes)?;
                    (opened, self.serve.find(opened.code))
                }
            };
            if self.together > 0 && !self.waits_too(&opened) {
                return Some(Stop::GoOn);
            }
            let is_slow = found.pace.is_for_threads();
            if is_slow && on_loop {
                self.is_for_threads = true;
                return Some(Stop::GoOn);
            }
            if is_slow && !self.batch.is_empty() {
                // A handler that blocks must not hold back what is answered.
                let replies = Entry::new(self.batch.take());
                if !self.mailbox.hand_over(replies, self.counters) {
                    return Some(Stop::GoOn);
                }
            }
            self.calls.come_to(found.place, self.share.handled, self.serve);
            let (mailbox, protocol) = (self.mailbox, self.protocol);
            let message = Message { opened, mailbox, protocol, chunk: messages.chunk };
            // A model has no time.
            let is_timed =
                !cfg!(loom) && found.pace == if on_loop { Pace::Suspect } else { Pace::Proving };
            let watch = is_timed.then(Stopwatch::start);
            let is_measured = is_slow || is_timed || self.calls.is_sampled(self.share.handled);
            let began = (!cfg!(loom) && is_measured).then(Moment::now);
            let mark = self.batch.mark();
            let served = self.serve.serve(found, &message, &mut self.session, self.batch);
            if self.together > 0 && served == Served::BadChecksum {
                // An end of the connection, behind the answers to those in front: it has its turn
                // once more when they have come.
                self.batch.rewind(mark);
                return Some(Stop::GoOn);
            }
            messages.bytes = &messages.bytes[opened.length..];
            messages.handled += 1;
            self.share.use_up(1, opened.length);
            // On the loop soon after the start too: the first tell whether they are quick.
            let is_early = on_loop && matches!(messages.handled, 1 | 4);
            if began.is_some() || is_early && !messages.bytes.is_empty() {
                self.share.look_at_clock();
            }
            if let Some(began) = began {
                self.tell_measured(found, served, began, watch);
            }
            if served != Served::Answered
                && let Some(stop) = self.count(served)
            {
                return Some(stop);
            }
            if self.together > 0 {
                match served {
                    Served::Submitted => self.ask = self.protocol.asks(&opened),
                    _ => self.wait_behind(&opened, mark),
                }
            }
        }
    }

    /// A call has just ended that was measured; `watch` if its handler's pace is too.
    #[inline(never)]
    fn tell_measured(
        &mut self,
        found: Found,
        served: Served,
        began: Moment,
        watch: Option<Stopwatch>,
    ) {
        if let Some(watch) = watch {
            self.serve.record(found, watch.stop());
        }
        self.calls.sample(self.share.handled - 1, began);
        if let Some(place) = found.place.filter(|_| served.is_call()) {
            self.serve.took(place, self.share.now.since(began));
        }
    }

    /// Counts how a message was served. `Some` if the turn has to end.
    #[cold]
    fn count(&mut self, served: Served) -> Option<Stop> {
        if !served.is_call() {
            self.calls.refuse();
        }
        let (counter, cause) = match served {
            Served::Answered => return None,
            Served::UnknownCode => (Counter::ProtocolErrors, None),
            Served::BadChecksum => (Counter::ProtocolErrors, Some(Cause::ProtocolError)),
            Served::NotAdmitted if !self.protocol.ends_unadmitted() => return None,
            Served::NotAdmitted => return Some(Stop::End(Cause::Denied)),
            Served::Failed => (Counter::HandlerErrors, None),
            Served::End(cause) => return Some(Stop::End(cause)),
            Served::Deferred | Served::Switched => return Some(Stop::GoOn),
            Served::Submitted => {
                self.together += 1;
                return None;
            }
            Served::Panicked => (Counter::HandlerPanics, Some(Cause::HandlerPanicked)),
        };
        self.counters.add(counter, 1);
        cause.map(Stop::End)
    }
}

#[path = "turn_waits.rs"]
mod waits;
