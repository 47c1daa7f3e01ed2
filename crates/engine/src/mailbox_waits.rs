//! Messages that wait for their ticket: what a handler, any thread and the loop do to them.

use super::{Mailbox, Place};
use crate::deferral::{Deferred, Ending, Held, Number, Submission, Ticket, Which};
use crate::effects::Effects;
use crate::protocol::Opened;
use crate::sync::atomic::Ordering;
use crate::writer::Entry;
use chappe_shm::{Count, Counter};
use chappe_sys::clock::Moment;
use std::sync::Arc;

impl Mailbox {
    /// Has the message wait that the calling thread handles now, for the ticket, which may be
    /// used before its handler returns. To be asked once for a message, and answered with
    /// [`crate::Served::Deferred`] or [`Mailbox::withdraw`].
    ///
    /// `None`: as many messages wait as may. The ticket of a connection that ends is void.
    pub fn defer(self: &Arc<Self>, opened: &Opened<'_>) -> Option<Ticket> {
        let engine = &self.engine;
        let Some(held) = Held::take(engine) else {
            engine.pushers.add(Counter::DeferredRefused, 1);
            return None;
        };
        // Relaxed: nothing else is ordered by it.
        let number = engine.tickets.fetch_add(1, Ordering::Relaxed);
        let deferred = Box::new(Deferred::new(number, opened, Some(held)));
        let charged = deferred.charged();
        _ = engine.inbox_total.charge(charged);
        engine.pushers.add(Counter::MessagesDeferred, 1);
        let refused = self.state.lock().defer(deferred);
        if refused.is_err() {
            engine.inbox_total.release(charged);
            return Some(Ticket::void());
        }
        Some(Ticket::new(self, number))
    }

    /// Has the message wait that the calling thread handles now, until whom it is submitted to has
    /// [answered](Mailbox::answer) so many times. To be asked once for a message, and answered
    /// with [`crate::Served::Submitted`]. `submit` is called with the number of the message when
    /// the turn is over and its replies are handed over; not at all if the connection ends before.
    pub fn submit(
        self: &Arc<Self>,
        opened: &Opened<'_>,
        answers: u32,
        submit: impl FnOnce(usize) + Send + 'static,
    ) {
        debug_assert!(answers > 0);
        let engine = &self.engine;
        let number = engine.tickets.fetch_add(1, Ordering::Relaxed);
        let submission = Submission::new(move || submit(number));
        let deferred = Box::new(Deferred::submitted(number, opened, answers, submission));
        let charged = deferred.charged();
        _ = engine.inbox_total.charge(charged);
        let refused = self.state.lock().submit(deferred);
        if refused.is_err() {
            engine.inbox_total.release(charged);
            engine.pushers.add(Counter::MessagesExpired, 1);
        }
    }

    /// As [`Mailbox::submit`], of a message that is answered already, behind others that are not.
    pub(crate) fn keep_behind(self: &Arc<Self>, opened: &Opened<'_>, replies: Entry) {
        let of = Arc::clone(self);
        self.submit(opened, 1, move |number| _ = of.answer(number, Some(replies)));
    }

    /// An answer to a message that was [submitted](Mailbox::submit): its replies are queued behind
    /// those to the messages in front of it. False: nobody waits for it any more.
    pub fn answer(self: &Arc<Self>, number: usize, replies: Option<Entry>) -> bool {
        let cost = replies.as_ref().map_or(0, Entry::charged);
        let total = match &replies {
            Some(_) => self.charge(cost),
            None => self.engine.outbox_total.room(),
        };
        let mut effects = Effects::default();
        let bounds = &self.engine.bounds;
        let is_awaited = self.state.lock().answer(number, replies, total, bounds, &mut effects);
        if !is_awaited {
            self.engine.outbox_total.release(cost);
            return false;
        }
        _ = self.carry_out(effects, &self.engine.pushers, Place::Thread);
        true
    }

    /// The message does not wait after all: its handler has failed, and the ticket is void.
    pub fn withdraw(&self) {
        let withdrawn = self.state.lock().withdraw();
        if let Some(item) = withdrawn {
            self.engine.inbox_total.release(item.charged());
        }
    }

    /// A message that has waited since before then has waited for too long.
    pub fn expire(self: &Arc<Self>, begun_by: Moment) {
        self.end_wait(Which::BegunBy(begun_by), Ending::Expired);
    }

    /// There is nobody any more to answer: a message that waits is continued as lost.
    pub fn void_wait(self: &Arc<Self>) {
        self.end_wait(Which::Any, Ending::Void);
    }

    pub(crate) fn is_awaited(&self, number: Number) -> bool {
        self.state.lock().is_awaited(Which::Of(number))
    }

    /// Returns whether there was such a wait.
    pub(crate) fn end_wait(self: &Arc<Self>, which: Which, ending: Ending) -> bool {
        let counter = match &ending {
            Ending::Resumed(_) | Ending::Void => None,
            Ending::Dropped => Some(Counter::DeferredDropped),
            Ending::Expired => Some(Counter::DeferredExpired),
        };
        let mut effects = Effects::default();
        // What is given back is the application's: not dropped under the lock.
        let ended = self.state.lock().end_wait(which, ending, &mut effects);
        if ended.is_ok() {
            counter.inspect(|counter| self.engine.pushers.add(*counter, 1));
            _ = self.carry_out(effects, &self.engine.pushers, Place::Thread);
        }
        ended.is_ok()
    }
}
