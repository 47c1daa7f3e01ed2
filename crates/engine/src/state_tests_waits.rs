//! Messages that wait, in the tests' world: handlers that take tickets, those who use them,
//! and the loop's clock.

use super::*;
use crate::deferral::{Deferred, Ending, Submission, Which};
use crate::protocol::Opened;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Waits {
    /// By the handler of the running turn.
    Defer,
    /// It fails after that.
    Withdraw,
    UseTicket,
    Expire,
    /// By the handler of the running turn: to be answered so many times.
    Submit {
        answers: u32,
    },
    /// An answer to the first or to the last message that was submitted.
    Answer {
        last: bool,
        replies: bool,
        exhausted: bool,
    },
}

pub(super) fn all() -> impl Iterator<Item = Waits> {
    let tickets = [Waits::Defer, Waits::Withdraw, Waits::UseTicket, Waits::Expire];
    let submits = [1, 2].map(|answers| Waits::Submit { answers });
    // The room matters to the one that ends the wait, and the other one only if it is kept.
    let answers = (0..4)
        .map(|bits| (false, bits & 1 > 0, bits & 2 > 0))
        .chain([(true, true, false)])
        .map(|(last, replies, exhausted)| Waits::Answer { last, replies, exhausted });
    tickets.into_iter().chain(submits).chain(answers)
}

/// Messages that one turn submits, at most.
const TOGETHER_MAX: usize = 2;

fn deferred(number: Number) -> Box<Deferred> {
    let opened = Opened { code: 1, body: b"m", checksum: 0, length: 9, joins: false };
    Box::new(Deferred::new(number, &opened, None))
}

fn submitted(number: Number, answers: u32) -> Box<Deferred> {
    let opened = Opened { code: 1, body: b"m", checksum: 0, length: 9, joins: false };
    Box::new(Deferred::submitted(number, &opened, answers, Submission::new(|| {})))
}

impl World {
    fn first(&self) -> Option<&Deferred> {
        match self.state.inbox.items.first() {
            Some(Item::Deferred(deferred)) => Some(deferred),
            _ => None,
        }
    }

    /// The message that has its ticket out, whether or not its turn has ended.
    pub(super) fn awaited(&self) -> Option<Number> {
        self.first().filter(|deferred| deferred.ending.is_none()).map(|it| it.number)
    }

    /// Whether a message is deferred and its wait has ended; whether one of the running turn
    /// is; whether its ticket is out; whether the loop keeps the clock of the wait.
    pub(super) fn waits(&self) -> (Option<bool>, bool, bool, bool) {
        let ended = self.first().map(|deferred| deferred.ending.is_some());
        let clock = self.clock.is_some() && self.clock == self.awaited();
        (ended, self.has_deferred, self.ticket.is_some(), clock)
    }

    pub(super) fn wait(&mut self, event: Waits) -> bool {
        match event {
            Waits::Defer => {
                let handles = match &self.turn {
                    Some(Some(Item::Hook(_))) | None => false,
                    Some(Some(_) | None) => !self.has_deferred && self.together == 0,
                };
                if !handles {
                    return false;
                }
                self.numbers += 1;
                let message = deferred(self.numbers);
                let charged = message.charged();
                if self.state.defer(message).is_ok() {
                    self.inbox_charged += charged;
                    self.received += 1;
                    if let Some(late) = self.ticket.replace(self.numbers) {
                        assert!(!self.end_wait(Which::Of(late)), "another message waits");
                    }
                }
                self.has_deferred = true;
            }
            Waits::Withdraw => {
                if !std::mem::take(&mut self.has_deferred) {
                    return false;
                }
                if let Some(item) = self.state.withdraw() {
                    self.inbox_charged -= item.charged();
                    self.received -= 1;
                }
                // Its handler has failed: an end of it.
                let left =
                    Event::Leave { replies: false, handled: true, end: false, exhausted: false };
                return self.turn(left);
            }
            Waits::UseTicket => {
                let Some(number) = self.ticket.take() else { return false };
                let (awaited, phase) = (self.awaited(), self.state.inbox.phase);
                let is_ended = self.end_wait(Which::Of(number));
                assert_eq!(is_ended, awaited == Some(number));
                assert!(is_ended || self.state.inbox.phase == phase, "it is void");
            }
            Waits::Expire => {
                if self.state.inbox.phase != Phase::Waiting {
                    return false;
                }
                assert!(self.end_wait(Which::Any));
            }
            Waits::Submit { answers } => return self.submit(answers),
            Waits::Answer { last, replies, exhausted } => {
                return self.answer(last, replies, exhausted);
            }
        }
        true
    }

    fn submit(&mut self, answers: u32) -> bool {
        let handles = match &self.turn {
            Some(Some(Item::Hook(_))) | None => false,
            Some(Some(_)) => !self.has_submitted,
            Some(None) => true,
        };
        // What has nothing to do with it would only double the states: hooks, tickets, an end that
        // has begun, replies of earlier turns, and turns in which two answers are the same as in
        // the loop's.
        let is_aside = self.state.hook != Hook::None
            || self.ticket.is_some()
            || self.state.stage != Stage::Open
            || self.queued > 0
            || answers > 1 && (self.together > 0 || matches!(self.turn, Some(Some(_))));
        if !handles || self.has_deferred || is_aside || self.together == TOGETHER_MAX {
            return false;
        }
        self.numbers += 1;
        let message = submitted(self.numbers, answers);
        let charged = message.charged();
        if self.state.submit(message).is_ok() {
            self.inbox_charged += charged;
            self.received += 1;
            self.together += 1;
        }
        self.has_submitted = matches!(self.turn, Some(Some(_)));
        true
    }

    fn answer(&mut self, last: bool, replies: bool, exhausted: bool) -> bool {
        let (parts, before) = (self.parts(), self.waiting_messages());
        // None is submitted before the turn has ended.
        if self.state.inbox.phase != Phase::Waiting || last && parts.len() < 2 {
            return false;
        }
        let part = if last { parts.last() } else { parts.first() };
        let Some(&(number, 1.., _)) = part else { return false };
        let early = self.early() + usize::from(replies);
        let entry = replies.then(one_byte);
        self.outbox_charged += entry.as_ref().map_or(0, Entry::cost);
        let total = if exhausted { Room::Exhausted } else { Room::Free };
        let mut effects = Effects::default();
        assert!(self.state.answer(number, entry, total, &BOUNDS, &mut effects));
        self.queued += early - self.early();
        self.handled += before - self.waiting_messages();
        self.carry_out(&effects, false);
        true
    }

    /// What was submitted and is not answered.
    pub(super) fn parts(&self) -> Vec<(Number, u32, usize)> {
        self.first().map_or_else(Vec::new, Deferred::parts)
    }

    fn waiting_messages(&self) -> usize {
        self.first().map_or(0, Deferred::messages)
    }

    /// Replies that wait for those to the messages in front of theirs.
    pub(super) fn early(&self) -> usize {
        self.parts().iter().map(|(_, _, early)| early).sum()
    }

    pub(super) fn early_cost(&self) -> usize {
        self.first().map_or(0, Deferred::early_cost)
    }

    /// A turn has ended: what it has submitted waits from now on, and is called once.
    pub(super) fn check_submissions(&mut self, effects: &Effects) {
        let waits = self.state.inbox.phase == Phase::Waiting;
        let expected = if waits { self.together } else { 0 };
        assert_eq!(effects.submissions.len(), expected);
        self.together = 0;
    }

    pub(super) fn note_submissions(&mut self, effects: &Effects) {
        if !effects.submissions.is_empty() {
            assert_eq!(self.state.inbox.phase, Phase::Waiting);
            self.submitted = Some(self.numbers);
        }
    }

    /// An answer to a message that does not wait any more changes nothing.
    pub(super) fn answer_too_late(&mut self) {
        let Some(number) = self.submitted else { return };
        let is_live = self.awaited().is_some()
            && self
                .parts()
                .iter()
                .any(|(awaited, answers, _)| (*awaited, *answers > 0) == (number, true));
        if !is_live {
            let (mut effects, before) = (Effects::default(), self.state.outbox.bytes);
            let reply = Some(one_byte());
            assert!(!self.state.answer(number, reply, Room::Exhausted, &BOUNDS, &mut effects));
            assert!(effects.is_nothing() && self.state.outbox.bytes == before);
        }
    }

    fn end_wait(&mut self, which: Which) -> bool {
        let mut effects = Effects::default();
        let is_submitted = self.first().is_some_and(Deferred::is_submitted);
        let ending = if is_submitted { Ending::Expired } else { Ending::Dropped };
        let ended = self.state.end_wait(which, ending, &mut effects);
        self.carry_out(&effects, false);
        ended.is_ok()
    }

    pub(super) fn check_waits(&self, path: &[Event]) {
        let (awaited, phase) = (self.awaited(), self.state.inbox.phase);
        assert!(self.has_deferred <= self.turn.is_some(), "no handler after {path:?}");
        match phase {
            Phase::Running => {}
            Phase::Waiting => assert!(awaited.is_some(), "for nothing after {path:?}"),
            _ => assert_eq!(awaited, None, "not waiting after {path:?}"),
        }
        let is_submitted = self.first().is_some_and(Deferred::is_submitted);
        let has_asked = awaited == self.ticket || is_submitted;
        assert!(awaited.is_none() || has_asked, "for nobody after {path:?}");
        let unsubmitted = self.first().map_or(0, |deferred| deferred.submissions.len());
        assert_eq!(unsubmitted, if is_submitted { self.together } else { 0 }, "after {path:?}");
        assert!(self.together == 0 || phase == Phase::Running, "no turn after {path:?}");
        let has_clock = self.is_called || self.clock == awaited;
        assert!(phase != Phase::Waiting || has_clock, "without a clock after {path:?}");
    }
}

#[test]
fn a_message_that_waits_stands_in_front_of_the_rest_of_its_turn() {
    for is_used_before in [false, true] {
        let mut state = State::new(Arc::new(NoSocket));
        let mut effects = Effects::default();
        _ = state.receive(Chunk::new(b"ab", 2).into(), Room::Free, &BOUNDS);
        let begun = state.begin(Room::Free, &BOUNDS, &mut effects).expect("queued");
        let (Item::Chunk(mut rest), session) = begun else { panic!("a chunk") };
        state.defer(deferred(7)).expect("it is open");
        assert_eq!(state.view().waits_since, None, "its turn has not ended");
        let used = |state: &mut State, effects: &mut Effects| {
            state.end_wait(Which::Of(7), Ending::Dropped, effects).expect("it waits");
        };
        if is_used_before {
            used(&mut state, &mut effects);
            assert!(!effects.enqueue, "its turn has not ended");
        }
        rest.advance(1, 1);
        let done = Done { messages: 1, bytes: 0, hook: None };
        let leaving = Leaving { done, rest: Some(rest.into()), session, ..Leaving::default() };
        state.leave(leaving, Room::Free, &BOUNDS, &mut effects);
        assert_eq!((effects.enqueue, effects.call), (is_used_before, !is_used_before));
        assert_eq!(state.view().waits_since.is_some(), !is_used_before);
        if !is_used_before {
            used(&mut state, &mut effects);
            assert!(effects.enqueue);
        }
        let mut order = Vec::new();
        let mut begun = state.begin(Room::Free, &BOUNDS, &mut effects).map(|(item, _)| item);
        while let Some(item) = begun {
            let done = Done { messages: 1, bytes: item.charged(), hook: None };
            order.push(match item {
                Item::Deferred(deferred) => deferred.opened().body.to_vec(),
                Item::Chunk(chunk) => chunk.bytes().to_vec(),
                other => panic!("{other:?}"),
            });
            begun = state.next(done, &BOUNDS, &mut effects);
        }
        assert_eq!(order, [b"m", b"b"]);
        assert_eq!((state.view().inbox_bytes, effects.lost), (0, 0));
    }
}

#[test]
fn only_a_wait_that_is_old_enough_expires() {
    let mut state = State::new(Arc::new(NoSocket));
    let mut effects = Effects::default();
    assert!(state.begin_unqueued().is_some());
    let before = Moment::now();
    while Moment::now() == before {}
    state.defer(deferred(1)).expect("it is open");
    state.leave(Leaving::default(), Room::Free, &BOUNDS, &mut effects);
    let since = state.view().waits_since.expect("it waits");
    let mut expire = |by| state.end_wait(Which::BegunBy(by), Ending::Expired, &mut effects).is_ok();
    assert_eq!((expire(before), expire(since), expire(since)), (false, true, false));
}

/// What is queued, from the oldest.
fn queued(state: &State) -> Vec<u8> {
    state.outbox.entries.iter().flat_map(|entry| entry.bytes().to_vec()).collect()
}

fn reply(byte: &'static [u8]) -> Option<Entry> {
    Some(Entry::new((byte.into(), 1)))
}

#[test]
fn replies_to_messages_that_wait_together_are_queued_in_the_order_of_the_requests() {
    let wide = Bounds { outbox_high: 10_000, outbox_low: 0, ..BOUNDS };
    // Each is answered in each place; the second one twice.
    let orders = [[1, 2, 2, 3], [2, 1, 2, 3], [2, 2, 3, 1], [3, 2, 1, 2], [3, 1, 2, 2]];
    for order in orders {
        let mut state = State::new(Arc::new(NoSocket));
        let mut effects = Effects::default();
        _ = state.receive(Chunk::new(b"a", 1).into(), Room::Free, &wide);
        _ = state.receive(Chunk::new(b"b", 1).into(), Room::Free, &wide);
        _ = state.receive(Chunk::new(b"c", 1).into(), Room::Free, &wide);
        _ = state.receive(Chunk::new(b"rest", 1).into(), Room::Free, &wide);
        let mut item = state.begin(Room::Free, &wide, &mut effects).map(|(item, _)| item);
        for (number, answers) in [(1, 1), (2, 2), (3, 1)] {
            state.submit(submitted(number, answers)).expect("it is open");
            let bytes = item.expect("behind the one before").charged();
            item = state.next(Done { messages: 1, bytes, hook: None }, &wide, &mut effects);
        }
        let leaving = Leaving { rest: item, replies: reply(b"-"), ..Leaving::default() };
        state.leave(leaving, Room::Free, &wide, &mut effects);
        assert_eq!((effects.submissions.len(), effects.enqueue), (3, false));
        let (mut answers, mut seconds) = (order.into_iter(), 0);
        for number in answers.by_ref() {
            assert!(!effects.enqueue, "{order:?}");
            let byte = match number {
                1 => b"1",
                2 if seconds == 0 => b"2",
                2 => b"+",
                _ => b"3",
            };
            seconds += usize::from(number == 2);
            assert!(state.answer(number, reply(byte), Room::Free, &wide, &mut effects));
            let sent = queued(&state);
            assert!(b"-12+3".starts_with(&sent), "{order:?}: {sent:?}");
        }
        assert_eq!((&queued(&state)[..], effects.enqueue), (&b"-12+3"[..], true));
        let (item, _) = state.begin(Room::Free, &wide, &mut effects).expect("queued");
        assert!(matches!(item, Item::Chunk(chunk) if chunk.bytes() == b"rest"));
    }
}
