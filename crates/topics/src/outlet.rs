//! How the threads of a worker ask the hub to publish.

use crate::life::Life;
use crate::record::{Message, Request};
use chappe_rings::Producer;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// There is no room in the worker's publish queue now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too much waits to be published")]
pub struct Full;

/// What the hub has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Of the message.
    pub offset: u64,
    /// Subscriptions that matched, of all workers.
    pub subscribers: u32,
}

/// The way of messages to the hub. `W` is who waits for an answer. The lock is held for a copy,
/// and never over a system call.
#[derive(Debug)]
pub struct Outlet<W> {
    life: Life,
    state: Mutex<State<W>>,
}

#[derive(Debug)]
struct State<W> {
    producer: Producer,
    /// The number of the last request.
    number: u64,
    /// Who waits for the answer to which request, the oldest first.
    waiting: VecDeque<(u64, W)>,
    /// Requests without a number that found no room; each has somebody who waits.
    spill: VecDeque<Spilled<W>>,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Spilled<W> {
    code: u16,
    topic: Box<str>,
    body: Box<[u8]>,
    waiter: W,
    is_awaited: bool,
}

/// A place behind all that a worker has published so far.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// In the publish queue.
    asked: u64,
    /// In the log, once the hub has taken all before it.
    pub(crate) end: Option<u64>,
}

/// What has become of a request whose sender would wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted<W> {
    /// The hub has it, and answers.
    Awaited,
    /// The hub has it, and does not answer: nobody needs to wait.
    Taken(W),
    /// There was no room: it waits in the worker.
    Spilled,
    /// Nor may it wait.
    Refused(W),
}

impl<W> Outlet<W> {
    /// Of a worker that has just begun.
    #[must_use]
    pub fn new(life: &Life) -> Arc<Self> {
        let state = State {
            producer: life.publish().producer(),
            number: 0,
            waiting: VecDeque::new(),
            spill: VecDeque::new(),
            bytes: Vec::new(),
        };
        Arc::new(Self { life: life.clone(), state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes without an answer. `post` wakes the hub.
    ///
    /// # Errors
    /// [`Full`]: it was not published.
    pub fn publish(&self, message: Message<'_>, post: impl FnOnce()) -> Result<(), Full> {
        let pushed = {
            let mut state = self.state();
            state.spill.is_empty() && state.push(message, false)
        };
        if !pushed {
            return Err(Full);
        }
        self.life.to_hub().ring(post);
        Ok(())
    }

    /// The worker is about to end. `post` wakes the hub, which may be waiting for that.
    pub fn leave(&self, post: impl FnOnce()) {
        self.life.note_left();
        self.life.to_hub().ring(post);
    }

    /// Publishes for somebody who waits: for the answer, or for room, if `may_wait` says so, which
    /// may put into the waiter what that takes.
    pub fn submit(
        &self,
        message: Message<'_>,
        is_awaited: bool,
        waiter: W,
        may_wait: impl FnOnce(&mut W) -> bool,
        post: impl FnOnce(),
    ) -> Submitted<W> {
        let submitted = self.state().submit(message, is_awaited, waiter, may_wait);
        if matches!(submitted, Submitted::Awaited | Submitted::Taken(_)) {
            self.life.to_hub().ring(post);
        }
        submitted
    }

    /// The place behind all that was published so far, what waits for room not counted: see
    /// [`Inlet::has_passed`](crate::Inlet::has_passed).
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark { asked: self.state().producer.position(), end: None }
    }

    /// Whether the hub has taken all before a mark. If not, it rings when it has taken some.
    pub(crate) fn is_taken(&self, mark: &Mark) -> bool {
        self.state().producer.is_taken(mark.asked)
    }

    /// Moves what has found no room, as far as there is some now. Returns who needs to wait no
    /// longer. `post` wakes the hub.
    pub fn move_spill(&self, post: impl FnOnce()) -> Vec<W> {
        let mut taken = Vec::new();
        let mut has_moved = false;
        let mut state = self.state();
        while let Some(spilled) = state.spill.pop_front() {
            if !state.push(spilled.message(), spilled.is_awaited) {
                state.spill.push_front(spilled);
                break;
            }
            has_moved = true;
            if spilled.is_awaited {
                let number = state.number;
                state.waiting.push_back((number, spilled.waiter));
            } else {
                taken.push(spilled.waiter);
            }
        }
        drop(state);
        if has_moved {
            self.life.to_hub().ring(post);
        }
        taken
    }

    /// Who has waited for the answer to this request. `None`: it was answered before, by a hub
    /// that died.
    pub fn answered(&self, number: u64) -> Option<W> {
        let mut state = self.state();
        let is_next = state.waiting.front().is_some_and(|(first, _)| *first == number);
        if is_next { state.waiting.pop_front().map(|(_, waiter)| waiter) } else { None }
    }

    /// Whether the answer to this request is still to come.
    pub fn is_awaited(&self, number: u64) -> bool {
        self.state().waiting.front().is_some_and(|(first, _)| *first <= number)
    }

    /// How many requests wait for room.
    pub fn spilled(&self) -> usize {
        self.state().spill.len()
    }
}

impl<W> State<W> {
    fn submit(
        &mut self,
        message: Message<'_>,
        is_awaited: bool,
        mut waiter: W,
        may_wait: impl FnOnce(&mut W) -> bool,
    ) -> Submitted<W> {
        if !self.spill.is_empty() || !self.push(message, is_awaited) {
            if !may_wait(&mut waiter) {
                return Submitted::Refused(waiter);
            }
            let Message { code, topic, body } = message;
            let (topic, body) = (topic.raw().into(), body.into());
            self.spill.push_back(Spilled { code, topic, body, waiter, is_awaited });
            return Submitted::Spilled;
        }
        if is_awaited {
            self.waiting.push_back((self.number, waiter));
            return Submitted::Awaited;
        }
        Submitted::Taken(waiter)
    }

    /// False: there is no room.
    fn push(&mut self, message: Message<'_>, is_awaited: bool) -> bool {
        let number = self.number + 1;
        self.bytes.clear();
        Request { number, is_awaited, message }.write(&mut self.bytes);
        let pushed = self.producer.push(&self.bytes).is_ok();
        if pushed {
            self.number = number;
        }
        pushed
    }
}

impl<W> Spilled<W> {
    fn message(&self) -> Message<'_> {
        let topic = crate::Topic::read(self.topic.as_bytes()).expect("it was one before");
        Message { code: self.code, topic, body: &self.body }
    }
}
