//! What a turn does with messages that have waited, and with those that are to.

use super::{Message, Serve, Served, Stop, TURN_MESSAGES_MAX, Turn};
use crate::batch::Mark;
use crate::deferral::{Deferred, Ending};
use crate::effects::Leaving;
use crate::item::Done;
use crate::notice::{Cause, Notice};
use crate::protocol::Opened;
use crate::writer::Entry;
use chappe_shm::Counter;

/// Messages that wait together at the most, as a turn of the loop may have any number.
const TOGETHER_MAX: usize = TURN_MESSAGES_MAX;

impl<S: Serve + ?Sized> Turn<'_, S> {
    /// A message has waited. `Some` if the turn has to end.
    pub(super) fn go_on_with(
        &mut self,
        deferred: &mut Deferred,
        leaving: &mut Leaving,
    ) -> Option<Stop> {
        let messages = deferred.messages();
        leaving.done = Done { messages, bytes: deferred.charged(), hook: None };
        let ending = deferred.end();
        let opened = deferred.opened();
        self.share.use_up(messages, opened.length);
        let served = match ending {
            Ending::Resumed(value) => {
                let (mailbox, protocol) = (self.mailbox, self.protocol);
                let message = Message { opened, mailbox, protocol, chunk: None };
                self.serve.resume(value, &message, &mut self.session, self.batch)
            }
            Ending::Dropped | Ending::Expired => {
                let notice = ending.notice(opened.code, deferred.is_submitted());
                log::trace!(target: "conn.notice", "conn={} notice {notice:?}", self.mailbox.id());
                notice.iter().for_each(|notice| self.protocol.notice(notice, self.batch));
                match notice {
                    Some(Notice::Goodbye { .. }) => Served::End(Cause::OutcomeUnknown),
                    _ => Served::Answered,
                }
            }
            Ending::Void => {
                self.counters.add(Counter::MessagesExpired, messages as u64);
                Served::Answered
            }
        };
        self.share.look_at_clock();
        self.count(served).or((self.together > 0).then_some(Stop::GoOn))
    }

    /// Whether a message is one of those that may wait together with what the turn has submitted.
    pub(super) fn waits_too(&self, opened: &Opened<'_>) -> bool {
        self.together < TOGETHER_MAX && self.ask.is_some() && self.ask == self.protocol.asks(opened)
    }

    /// A message was answered that others in front of it wait with: its replies are not to
    /// overtake theirs.
    #[cold]
    pub(super) fn wait_behind(&mut self, opened: &Opened<'_>, mark: Mark) {
        let (bytes, messages) = self.batch.take_since(mark);
        if !bytes.is_empty() {
            self.together += 1;
            self.mailbox.keep_behind(opened, Entry::new((bytes.into(), messages)));
        }
    }
}
