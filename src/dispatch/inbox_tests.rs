//! The inbox over every pair of phase and event, and its limits.

use super::*;

const LIMITS: InboxLimits = InboxLimits { messages_max: 4, bytes_max: 100 };
const PHASES: [Phase; 4] = [Phase::Empty, Phase::Queued, Phase::Running, Phase::Stalled];

fn chunk(messages: usize, bytes: usize) -> Item {
    let chunk = Chunk { bytes: Bytes::from(vec![0; bytes]), frames: messages };
    Item::Chunk { chunk, charged: bytes }
}

fn push(inbox: &Inbox, item: Item) -> Pushed {
    inbox.push(item, Room::Free, &LIMITS)
}

fn notice() -> Item {
    Item::Notice(Notice { encoded: Bytes::from_static(b"bye"), frames: 1, then: Then::Finish })
}

/// An inbox in the given phase, with nothing queued but in `Queued`.
fn inbox_in(phase: Phase) -> Inbox {
    let inbox = Inbox::default();
    if phase != Phase::Empty {
        assert_eq!(push(&inbox, chunk(1, 8)), Pushed::Queue);
    }
    if matches!(phase, Phase::Running | Phase::Stalled) {
        assert!(inbox.begin());
        assert!(inbox.next(Done::default(), &LIMITS).item.is_some());
        assert!(inbox.next(Done { messages: 1, bytes: 8 }, &LIMITS).item.is_none());
    }
    if phase == Phase::Stalled {
        inbox.stall();
    }
    assert_eq!(inbox.state.lock().phase, phase);
    inbox
}

#[test]
fn push_queues_exactly_from_empty() {
    for phase in PHASES {
        let inbox = inbox_in(phase);
        let expected = if phase == Phase::Empty { Pushed::Queue } else { Pushed::Nothing };
        assert_eq!(push(&inbox, chunk(1, 8)), expected, "{phase:?}");
        let after = if phase == Phase::Empty { Phase::Queued } else { phase };
        assert_eq!(inbox.state.lock().phase, after);
    }
}

#[test]
fn end_finishes_now_from_empty_and_else_with_the_last_turn() {
    for phase in PHASES {
        let inbox = inbox_in(phase);
        let expected = if phase == Phase::Empty { Left::Finish } else { Left::Idle };
        assert_eq!(inbox.end(), expected, "{phase:?}");
        if phase == Phase::Queued {
            assert!(inbox.begin());
            assert!(inbox.next(Done::default(), &LIMITS).item.is_some());
            assert!(inbox.next(Done { messages: 1, bytes: 8 }, &LIMITS).item.is_none());
        }
        assert_eq!(inbox.leave(), Left::Finish, "{phase:?}");
    }
}

#[test]
fn leave_goes_by_what_is_left() {
    for phase in [Phase::Running, Phase::Stalled] {
        let inbox = inbox_in(phase);
        assert_eq!(inbox.leave(), Left::Idle);
        assert!(inbox.view().is_empty);
        let inbox = inbox_in(phase);
        assert_eq!(push(&inbox, chunk(1, 8)), Pushed::Nothing);
        assert_eq!(inbox.leave(), Left::Queue);
        assert_eq!(inbox.state.lock().phase, Phase::Queued);
    }
}

#[test]
fn resume_acts_on_stalled_only() {
    for phase in PHASES {
        let inbox = inbox_in(phase);
        if phase != Phase::Empty {
            _ = push(&inbox, chunk(1, 8));
        }
        let expected = if phase == Phase::Stalled { Left::Queue } else { Left::Idle };
        assert_eq!(inbox.resume(), expected, "{phase:?}");
        let after = if phase == Phase::Stalled { Phase::Queued } else { phase };
        assert_eq!(inbox.state.lock().phase, after);
    }
}

#[test]
fn close_empties_every_phase_and_takes_no_more() {
    for phase in PHASES {
        let inbox = inbox_in(phase);
        let Discarded { messages, released, items } = inbox.close();
        let queued = usize::from(phase == Phase::Queued);
        let expected = (queued, 8 * queued, queued);
        assert_eq!((messages, released, items.len()), expected, "{phase:?}");
        assert_eq!(push(&inbox, chunk(1, 8)), Pushed::Closed);
        assert_eq!(inbox.end(), Left::Closed);
        match phase {
            Phase::Empty | Phase::Stalled => assert!(inbox.view().is_empty),
            Phase::Queued => assert!(!inbox.begin(), "still listed, and then nothing"),
            Phase::Running => assert_eq!(inbox.leave(), Left::Closed),
        }
        assert!(inbox.view().is_empty);
    }
}

#[test]
fn closing_under_a_turn_releases_once() {
    let inbox = Inbox::default();
    _ = push(&inbox, chunk(2, 16));
    assert!(inbox.begin());
    let item = inbox.next(Done::default(), &LIMITS).item.unwrap();
    assert_eq!(inbox.close().released, 16, "what the turn holds is released too");
    let next = inbox.put_back(Done { messages: 1, bytes: 0 }, item, &LIMITS);
    assert_eq!((next.call, next.released), (false, 0));
    assert!(inbox.next(Done::default(), &LIMITS).item.is_none());
    assert_eq!(inbox.leave(), Left::Closed);
}

/// Of three messages in the turn one is handled when the inbox is closed; a fourth waits.
#[test]
fn each_message_of_a_closed_inbox_is_lost_once() {
    let handled = Done { messages: 1, bytes: 0 };
    let closed_under_a_turn = || {
        let inbox = Inbox::default();
        _ = push(&inbox, chunk(3, 24));
        _ = push(&inbox, chunk(1, 8));
        assert!(inbox.begin());
        let item = inbox.next(Done::default(), &LIMITS).item.unwrap();
        assert_eq!(inbox.close().messages, 1, "the turn tells of its own");
        assert_eq!(inbox.close().messages, 0, "closed again, under the same turn");
        (inbox, item)
    };
    let (inbox, item) = closed_under_a_turn();
    assert_eq!(inbox.put_back(handled, item, &LIMITS).lost, 2);
    assert_eq!(inbox.next(Done::default(), &LIMITS).lost, 0, "told once");
    let (inbox, _) = closed_under_a_turn();
    assert_eq!(inbox.done(handled, &LIMITS).lost, 2);
    assert_eq!(inbox.close().messages, 0);
    let (inbox, _) = closed_under_a_turn();
    assert_eq!(inbox.next(Done { messages: 3, bytes: 24 }, &LIMITS).lost, 0);
    // A turn that ends the connection itself tells of nothing: closing does.
    let inbox = Inbox::default();
    _ = push(&inbox, chunk(3, 24));
    assert!(inbox.begin());
    _ = inbox.next(Done::default(), &LIMITS);
    assert_eq!(inbox.done(handled, &LIMITS).lost, 0);
    assert_eq!(inbox.close().messages, 2);
}

#[test]
fn reading_pauses_at_either_limit_and_resumes_at_half_of_both() {
    for (items, pauses) in [
        (vec![(3, 24)], false),
        (vec![(3, 24), (1, 8)], true),
        (vec![(1, 99)], false),
        (vec![(1, 100)], true),
        (vec![(100, 1000)], true),
    ] {
        let inbox = Inbox::default();
        for (messages, bytes) in &items {
            _ = push(&inbox, chunk(*messages, *bytes));
        }
        assert_eq!(inbox.view().paused, pauses, "{items:?}");
    }
    let inbox = Inbox::default();
    for _ in 0..4 {
        _ = push(&inbox, chunk(1, 10));
    }
    assert!(inbox.begin());
    _ = inbox.next(Done::default(), &LIMITS);
    assert!(!inbox.next(Done { messages: 1, bytes: 10 }, &LIMITS).call, "three are left");
    let next = inbox.next(Done { messages: 1, bytes: 10 }, &LIMITS);
    assert!(next.call && !inbox.view().paused, "two are left");
    assert!(!inbox.next(Done { messages: 1, bytes: 10 }, &LIMITS).call, "called once");
}

#[test]
fn without_room_in_the_total_reading_goes_on_as_the_inbox_is_worked_off() {
    let inbox = Inbox::default();
    _ = inbox.push(chunk(1, 8), Room::Exhausted, &LIMITS);
    assert!(inbox.view().paused);
    assert!(inbox.begin());
    _ = inbox.next(Done::default(), &LIMITS);
    assert!(inbox.next(Done { messages: 1, bytes: 8 }, &LIMITS).call);
    assert!(!inbox.view().paused);
}

#[test]
fn what_is_put_back_comes_first_again() {
    let inbox = Inbox::default();
    _ = push(&inbox, chunk(2, 16));
    _ = push(&inbox, notice());
    assert!(inbox.begin());
    let item = inbox.next(Done::default(), &LIMITS).item.unwrap();
    let put_back = inbox.put_back(Done::default(), item, &LIMITS);
    assert_eq!(put_back.released, 0);
    assert_eq!(inbox.leave(), Left::Queue);
    assert!(inbox.begin());
    assert!(matches!(inbox.next(Done::default(), &LIMITS).item, Some(Item::Chunk { .. })));
    let next = inbox.next(Done { messages: 2, bytes: 16 }, &LIMITS);
    assert!(matches!(next.item, Some(Item::Notice(_))));
    assert_eq!(next.released, 16);
}

#[test]
fn an_inbox_at_rest_owns_no_buffer() {
    let inbox = inbox_in(Phase::Running);
    assert_eq!(inbox.leave(), Left::Idle);
    assert_eq!(inbox.state.lock().items.capacity(), 0);
}
