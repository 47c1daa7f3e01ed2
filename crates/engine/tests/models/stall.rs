//! Replies that back up: the inbox stalls, and goes on when the outbox has drained.

use super::*;

/// Bounds of nothing: each reply stalls the inbox, for its own outbox.
const OWN: Limits = Limits { outbox_bytes_max: 0, ..WIDE };

/// A stall with room in its own outbox and none in the total.
const TOTAL: Limits = Limits { outbox_total_bytes_max: 0, ..WIDE };

/// A turn hands its replies over before a handler that may block, and ends as stalled: it
/// goes on when the outbox has drained.
#[test]
fn a_turn_that_ends_as_stalled_goes_on_when_the_outbox_has_drained() {
    check(|| stalls_at_the_end_of_a_turn(OWN));
}

/// A stall for the total.
#[test]
fn a_turn_that_ends_as_stalled_goes_on_when_the_total_has_room() {
    check(|| stalls_at_the_end_of_a_turn(TOTAL));
}

fn stalls_at_the_end_of_a_turn(limits: Limits) {
    let world = World::new(limits, TightSocket::that(First::All));
    let (serve, handled) = Answer::slow();
    world.receive(b"ab");
    world.end_input();
    let sender = world.send_thread();
    let handler = world.turns(serve, 2);
    handler.join().expect("the turns end");
    world.loop_until_flushed();
    world.engine.stop();
    sender.join().expect("the send thread stops");
    assert_eq!(*handled.lock(), b"ab");
    assert_eq!(world.socket.taken(), b"aabb");
    world.assert_is_at_rest();
}

/// A turn finds, when it begins, that the replies of the last one are not sent yet: it
/// stalls at once, and goes on when the outbox has drained. So there are three turns at
/// most, and all is answered in order.
#[test]
fn a_turn_that_cannot_begin_goes_on_when_the_outbox_has_drained() {
    check_outcomes([1, 2, 3], || stalls_at_the_beginning_of_a_turn(OWN));
}

/// A stall for the total.
#[test]
fn a_turn_that_cannot_begin_goes_on_when_the_total_has_room() {
    check_outcomes([1, 2, 3], || stalls_at_the_beginning_of_a_turn(TOTAL));
}

fn stalls_at_the_beginning_of_a_turn(limits: Limits) -> usize {
    let world = World::new(limits, TightSocket::that(First::All));
    let (serve, handled) = Answer::new(true);
    world.receive(b"a");
    let sender = world.send_thread();
    let handler = world.turns_until_answered(serve);
    world.end_input_with_notice();
    let turns = handler.join().expect("the turns end");
    world.loop_until_flushed();
    world.engine.stop();
    sender.join().expect("the send thread stops");
    assert_eq!(*handled.lock(), b"a");
    assert_eq!(world.socket.taken(), b"aa!");
    world.assert_is_at_rest();
    turns
}

/// The loop gives the connection up while its turn runs, or is stalled for its outbox:
/// nobody hangs, and what was held is given back.
#[test]
fn a_connection_may_go_at_any_point_of_its_turn() {
    check_outcomes([0, 1, 2], || goes_at_any_point(OWN));
}

/// A stall for the total, where the stalled inbox is listed as waiting.
#[test]
fn a_connection_that_waits_for_the_total_may_go() {
    check_outcomes([0, 1, 2], || goes_at_any_point(TOTAL));
}

/// Returns how many messages were handled.
fn goes_at_any_point(limits: Limits) -> usize {
    let world = World::new(limits, TightSocket::that(First::All));
    let (serve, handled) = Answer::slow();
    world.receive(b"ab");
    let sender = world.send_thread();
    let handler = world.handler_thread(serve);
    world.abort();
    world.engine.stop();
    handler.join().expect("the handler thread stops");
    sender.join().expect("the send thread stops");
    world.assert_is_at_rest();
    handled.lock().len()
}
