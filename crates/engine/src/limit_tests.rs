//! Each limit of a connection, at its value and one beyond.

use super::tests::{BOUNDS, NoSocket};
use super::*;
use crate::item::{Chunk, ITEM_COST};

#[test]
fn a_push_is_full_at_one_byte_beyond_the_high_mark_and_one_always_fits() {
    let bounds = Bounds { outbox_high: 2 * ENTRY_COST + 10, outbox_low: 0, ..BOUNDS };
    let entry = |bytes: usize| Entry::new((vec![0; bytes].into(), 1));
    let mut state = State::new(Arc::new(NoSocket));
    assert!(state.push(entry(1000), &bounds).is_ok(), "one message always fits");
    assert_eq!(state.push(entry(1), &bounds).err(), Some(Rejected::Full));
    let mut state = State::new(Arc::new(NoSocket));
    assert!(state.push(entry(4), &bounds).expect("room").list);
    assert_eq!(state.push(entry(7), &bounds).err(), Some(Rejected::Full), "a byte too many");
    assert!(!state.push(entry(6), &bounds).expect("room").list, "listed already");
    let view = state.view();
    assert_eq!((view.outbox_bytes, view.is_paused), (bounds.outbox_high, false));
}

#[test]
fn a_message_and_what_is_in_front_of_it_are_queued_both_or_not() {
    let bounds = Bounds { outbox_high: 3 * ENTRY_COST, outbox_low: 0, ..BOUNDS };
    let entry = |bytes: usize| Entry::new((vec![0; bytes].into(), 1));
    let mut state = State::new(Arc::new(NoSocket));
    let effects = state.push_as(0, (Some(entry(1)), entry(1000)), &bounds).expect("one fits");
    assert!(effects.list && state.outbox.entries.iter().count() == 2);
    let mut state = State::new(Arc::new(NoSocket));
    assert!(state.push(entry(1), &bounds).is_ok());
    let queued = state.push_as(0, (Some(entry(1)), entry(ENTRY_COST - 2)), &bounds);
    assert_eq!((queued.err(), state.outbox.bytes), (Some(Rejected::Full), ENTRY_COST + 1));
}

#[test]
fn a_push_of_another_dialect_is_not_queued_and_a_turn_changes_it() {
    let entry = || Entry::new((vec![0].into(), 1));
    let mut state = State::new(Arc::new(NoSocket));
    assert_eq!(state.push_as(1, (None, entry()), &BOUNDS).err(), Some(Rejected::Dialect));
    for dialect in [1, 0] {
        let mut leaving = Leaving { replies: Some(entry()), ..Leaving::default() };
        let session = Session { value: Box::new(()), is_admitted: true, dialect };
        leaving.session = Some(Box::new(session));
        state.begin_unqueued().expect("nothing is in front");
        state.leave(leaving, Room::Free, &BOUNDS, &mut Effects::default());
        let (other, room) = (1 - dialect, Bounds { outbox_high: 10_000, ..BOUNDS });
        assert_eq!(state.push_as(other, (None, entry()), &room).err(), Some(Rejected::Dialect));
        assert!(state.push_as(dialect, (None, entry()), &room).is_ok());
        state = State { session: state.session.take(), ..State::new(Arc::new(NoSocket)) };
        state.dialect = dialect;
    }
}

#[test]
fn reading_pauses_at_either_limit_of_the_inbox_and_goes_on_at_half() {
    let bounds = Bounds { inbox_messages_max: 4, inbox_bytes_max: 2000, ..BOUNDS };
    let chunk = |messages: usize, bytes: usize| Item::from(Chunk::new(&vec![0; bytes], messages));
    for (items, pauses) in [
        (vec![chunk(3, 100)], false),
        (vec![chunk(3, 100), chunk(1, 1)], true),
        (vec![chunk(1, 2000 - ITEM_COST - 1)], false),
        (vec![chunk(1, 2000 - ITEM_COST)], true),
    ] {
        let mut state = State::new(Arc::new(NoSocket));
        for item in items {
            _ = state.receive(item, Room::Free, &bounds);
        }
        assert_eq!(state.view().is_paused, pauses);
        let begun = state.begin(Room::Free, &bounds, &mut Effects::default());
        let (item, _) = begun.expect("queued");
        let done = Done { messages: item.messages(), bytes: item.charged(), hook: None };
        let mut effects = Effects::default();
        state.next(done, &bounds, &mut effects);
        assert_eq!((effects.call, state.view().is_paused), (pauses, false));
    }
}
