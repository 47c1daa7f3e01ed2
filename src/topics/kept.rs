//! What a handler has asked of topics for its connection. Its wishes are carried out first; then
//! it publishes, and its replies are sent.

use super::{Topics, Waiter};
use chappe_engine::{Entry, ITEM_COST, Mailbox, Notice, Problem};
use chappe_topics::{Message, Submitted, TopicName};
use parking_lot::Mutex;
use std::sync::Arc;

/// A message of the service that is not published yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Publish {
    pub(crate) topic: TopicName,
    pub(crate) code: u16,
    pub(crate) body: Box<[u8]>,
}

impl Publish {
    pub(super) fn message(&self) -> Message<'_> {
        Message { code: self.code, topic: self.topic.topic(), body: &self.body }
    }
}

/// What follows the wishes of a handler.
#[derive(Debug, Default)]
pub(crate) struct Afterwards {
    pub(crate) publishes: Vec<Publish>,
    pub(crate) replies: Option<Entry>,
}

/// The wishes of one handler's message. Dropped before they are carried out, since the
/// connection is gone, it publishes all the same: that was promised.
#[derive(Debug)]
pub(super) struct Kept {
    topics: Arc<Topics>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Wishes that are not carried out yet.
    left: usize,
    /// Why one was refused.
    refused: Option<String>,
    afterwards: Afterwards,
}

impl Kept {
    pub(super) fn new(topics: &Arc<Topics>, wishes: usize, afterwards: Afterwards) -> Arc<Self> {
        let state = State { left: wishes, refused: None, afterwards };
        Arc::new(Self { topics: Arc::clone(topics), state: Mutex::new(state) })
    }

    /// One wish is carried out, or was refused. After the last one, the message is answered.
    pub(super) fn note(
        &self,
        of: &Arc<Mailbox>,
        (number, code): (usize, u16),
        refused: Option<String>,
    ) {
        let (why, Afterwards { publishes, replies }) = {
            let mut state = self.state.lock();
            state.left -= 1;
            state.refused = state.refused.take().or(refused);
            if state.left > 0 {
                return;
            }
            (state.refused.take(), std::mem::take(&mut state.afterwards))
        };
        let notice = |text: String| {
            let (problem, code) = (Problem::BusyInside, Some(code));
            let notice = Notice::Error { problem, code, text: text.into() };
            of.protocol().notice_alone(&notice).map(Entry::new)
        };
        if let Some(text) = why {
            of.answer(number, notice(text));
            for _ in &publishes {
                of.answer(number, None);
            }
            return;
        }
        of.answer(number, replies);
        for publish in publishes {
            let waiter = Waiter { mailbox: Arc::clone(of), number, charge: None };
            match self.submit(&publish, waiter) {
                Submitted::Awaited | Submitted::Spilled => {}
                Submitted::Taken(_) => _ = of.answer(number, None),
                Submitted::Refused(_) => {
                    _ = of.answer(number, notice("too much waits to be published".into()))
                }
            }
        }
    }

    fn submit(&self, publish: &Publish, waiter: Waiter) -> Submitted<Waiter> {
        let bytes = publish.body.len() + ITEM_COST;
        let may_wait = |waiter: &mut Waiter| {
            waiter.charge = self.topics.charge(bytes);
            waiter.charge.is_some()
        };
        self.topics.outlet.submit(publish.message(), false, waiter, may_wait, || self.topics.post())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        for publish in &self.state.get_mut().afterwards.publishes {
            self.topics.publish_kept(publish);
        }
    }
}
