//! Messages that wait, in the tests' world: handlers that take tickets, those who use them,
//! and the loop's clock.

use super::*;
use crate::deferral::{Deferred, Ending, Which};
use crate::protocol::Opened;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Waits {
    /// By the handler of the running turn.
    Defer,
    /// It fails after that.
    Withdraw,
    UseTicket,
    Expire,
}

fn deferred(number: Number) -> Box<Deferred> {
    let opened = Opened { code: 1, body: b"m", checksum: 0, length: 9, joins: false };
    Box::new(Deferred::new(number, &opened, None))
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
                    Some(Some(_) | None) => !self.has_deferred,
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
        }
        true
    }

    fn end_wait(&mut self, which: Which) -> bool {
        let mut effects = Effects::default();
        let ended = self.state.end_wait(which, Ending::Dropped, &mut effects);
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
        assert!(awaited.is_none() || awaited == self.ticket, "for nobody after {path:?}");
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
