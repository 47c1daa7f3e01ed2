//! The handlers of the play.

use super::*;
use std::any::Any;
use std::cell::RefCell;

thread_local! {
    /// What handlers have taken that ran on this thread.
    pub(super) static TICKETS: RefCell<VecDeque<Ticket>> = const { RefCell::new(VecDeque::new()) };
}

/// The handlers.
pub(super) struct Play(pub(super) Gate);

impl Serve for Play {
    fn find(&self, code: u16) -> Found {
        Found { pace: if code == SLOW { Pace::Slow } else { Pace::Quick }, place: None }
    }
    fn suspect(&self, _: &mut dyn Iterator<Item = u16>, _: Duration) {}
    fn record(&self, _: Found, _: Duration) {}
    fn connected(&self, _: &Arc<Mailbox>, _: &mut Batch) -> Result<Box<Session>, Cause> {
        unreachable!("there are no hooks")
    }
    fn closed(&self, _: &Arc<Mailbox>, _: Option<Box<Session>>, _: Cause) {
        unreachable!("there are no hooks")
    }
    fn resume(
        &self,
        _: Box<dyn Any + Send>,
        message: &Message<'_>,
        _: &mut Option<Box<Session>>,
        replies: &mut Batch,
    ) -> Served {
        let Message { opened, protocol, .. } = *message;
        protocol.reply(opened.code, opened.body, None, replies).unwrap();
        Served::Answered
    }
    fn serve(
        &self,
        found: Found,
        message: &Message<'_>,
        _: &mut Option<Box<Session>>,
        replies: &mut Batch,
    ) -> Served {
        let Message { opened, protocol, .. } = *message;
        if found.pace == Pace::Slow {
            pass(&self.0);
        }
        let (problem, served) = match opened.code {
            _ if !protocol.is_intact(&opened) => (Problem::BadChecksum, Served::BadChecksum),
            LATER => {
                let ticket = message.mailbox.defer(&opened).unwrap();
                TICKETS.with_borrow_mut(|tickets| tickets.push_back(ticket));
                return Served::Deferred;
            }
            FAILS => (Problem::HandlerFailed, Served::Failed),
            PANICS => (Problem::HandlerFailed, Served::Panicked),
            code => {
                protocol.reply(code, opened.body, Some(opened.checksum), replies).unwrap();
                return Served::Answered;
            }
        };
        let notice = Notice::Error { problem, code: Some(opened.code), text: "".into() };
        protocol.notice(&notice, replies);
        served
    }
}
