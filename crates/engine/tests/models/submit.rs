//! Messages that are submitted to somebody else, who answers them from a thread of his own, as
//! soon as he has them or at any time after that.

use super::*;

/// All else is done: what is queued is sent, and the connection ends.
fn sent(world: &World) -> String {
    let sender = world.send_thread();
    world.end_input();
    world.loop_until_flushed();
    world.engine.stop();
    sender.join().expect("the send thread stops");
    _ = world.abort();
    String::from_utf8(world.socket.taken()).expect("ASCII")
}

/// The connection was given up.
fn assert_nothing_is_sent(world: &World) {
    world.engine.stop();
    world.engine.run_send_thread(&world.counters, ());
    assert_eq!(world.socket.taken(), b"");
}

/// The replies in front of a message are queued before it is submitted, and what was received
/// behind it comes after its answer.
#[test]
fn an_answer_stands_at_its_place() {
    check(|| {
        let world = World::new(WIDE, TightSocket::that(First::All));
        let hub = Hub::answering(b"s");
        world.receive(b"asb");
        world.turns(Answer::submitting(&hub), 2).join().expect("the turns end");
        assert_eq!(hub.join(), [true]);
        assert_eq!(sent(&world), "aaSbb");
        world.assert_is_at_rest();
    });
}

/// The turn is one of the loop's, which writes its replies itself while the answer may be there
/// already.
#[test]
fn an_answer_comes_behind_what_the_loop_has_answered() {
    check(|| {
        let world = World::new(WIDE, TightSocket::that(First::All));
        let hub = Hub::answering(b"s");
        let serve = Answer::submitting(&hub);
        assert_eq!(world.turn_on_loop(&serve, Source::Buffer(b"as")), 2);
        assert_eq!(hub.join(), [true]);
        assert_eq!(sent(&world), "aaS");
        world.assert_is_at_rest();
    });
}

/// A message arrives while one is answered: the inbox is listed by one of the two, once.
#[test]
fn an_answer_lists_what_is_behind_it() {
    check(|| {
        let world = World::new(WIDE, TightSocket::that(First::All));
        let hub = Hub::answering(b"s");
        let serve = Answer::submitting(&hub);
        assert_eq!(world.turn_on_loop(&serve, Source::Buffer(b"s")), 1);
        world.receive(b"a");
        world.turn_here(&serve);
        assert_eq!(hub.join(), [true]);
        assert_eq!(sent(&world), "Saa");
        world.assert_is_at_rest();
    });
}

/// The answer takes what is left of the total: what is behind waits for room, and has it when the
/// answer is sent.
#[test]
fn what_is_behind_an_answer_goes_on_when_the_total_has_room() {
    check(|| {
        let limits = Limits { outbox_total_bytes_max: 0, ..WIDE };
        let world = World::new(limits, TightSocket::that(First::All));
        let hub = Hub::answering(b"s");
        let serve = Answer::submitting(&hub);
        assert_eq!(world.turn_on_loop(&serve, Source::Buffer(b"s")), 1);
        world.receive(b"a");
        let sender = world.send_thread();
        world.mailbox.end_from_thread(
            Cause::ByApplication,
            Notice::Goodbye { reason: Goodbye::ByApplication, text: "".into() },
        );
        while world.mailbox.view().stage == Stage::Answering {
            world.turn_here(&serve);
        }
        assert_eq!(hub.join(), [true]);
        world.loop_until_flushed();
        world.engine.stop();
        sender.join().expect("the send thread stops");
        assert_eq!(world.socket.taken(), b"Saa!");
        world.assert_is_at_rest();
    });
}

/// Two that wait together are answered at once: the replies are in the order of the requests, and
/// what is behind goes on once.
#[test]
fn two_that_wait_together_are_answered_in_order() {
    check(|| {
        let world = World::new(WIDE, TightSocket::that(First::All));
        let hub = Hub::answering(b"st");
        let serve = Answer::submitting(&hub);
        assert_eq!(world.turn_on_loop(&serve, Source::Buffer(b"sta")), 2);
        world.receive(b"a");
        world.turn_here(&serve);
        assert_eq!(hub.join(), [true, true]);
        assert_eq!(sent(&world), "STaa");
        world.assert_is_at_rest();
    });
}

/// The loop gives the connection up while it is answered: the answer does nothing, or is lost
/// with all else.
#[test]
fn an_answer_behind_the_end_is_void() {
    check_outcomes([true, false], || {
        let world = World::new(WIDE, TightSocket::that(First::All));
        let hub = Hub::answering(b"s");
        let serve = Answer::submitting(&hub);
        assert_eq!(world.turn_on_loop(&serve, Source::Buffer(b"s")), 1);
        _ = world.abort();
        let [is_awaited] = hub.join()[..] else { panic!("one thread") };
        assert_nothing_is_sent(&world);
        world.assert_is_at_rest();
        is_awaited
    });
}

/// As before, of an answer that waits for the one in front of it.
#[test]
fn what_was_answered_early_is_given_up_at_the_end() {
    check_outcomes([true, false], || {
        let world = World::new(WIDE, TightSocket::that(First::All));
        let hub = Hub::answering(b"t");
        let serve = Answer::submitting(&hub);
        assert_eq!(world.turn_on_loop(&serve, Source::Buffer(b"st")), 2);
        _ = world.abort();
        let [is_awaited] = hub.join()[..] else { panic!("one thread") };
        assert_eq!(hub.answer_kept(), [false]);
        assert_nothing_is_sent(&world);
        world.assert_is_at_rest();
        is_awaited
    });
}

/// The connection is given up while a handler thread submits: nothing waits any more that could
/// be answered.
#[test]
fn an_end_while_messages_are_submitted() {
    check_outcomes(["", "^.", "^s."].map(str::to_owned), || {
        let world = World::new(WIDE, TightSocket::that(First::All));
        let hub = Hub::answering(b"");
        let serve = Answer::submitting(&hub);
        let handled = Arc::clone(&serve.handled);
        let handler = world.handler_thread(serve);
        world.connect();
        world.receive(b"s");
        _ = world.abort();
        world.engine.stop();
        handler.join().expect("the handler thread stops");
        assert!(hub.answer_kept().iter().all(|is_awaited| !is_awaited));
        world.assert_is_at_rest();
        String::from_utf8(handled.lock().clone()).expect("ASCII")
    });
}

/// The time of a wait is over while it is answered: one of the two decides. If nobody knows what
/// has become of the message the connection ends.
#[test]
fn a_message_is_answered_or_its_outcome_is_unknown() {
    check_outcomes([true, false], || {
        let world = World::new(WIDE, TightSocket::that(First::All));
        let hub = Hub::answering(b"s");
        let serve = Answer::submitting(&hub);
        assert_eq!(world.turn_on_loop(&serve, Source::Buffer(b"s")), 1);
        if let Some(since) = world.mailbox.view().waits_since {
            world.mailbox.expire(since);
        }
        let [is_awaited] = hub.join()[..] else { panic!("one thread") };
        if !is_awaited {
            world.turn_here(&serve);
        }
        let cause = (!is_awaited).then_some(Cause::OutcomeUnknown);
        assert_eq!(world.mailbox.view().cause, cause);
        assert_eq!(sent(&world), if is_awaited { "S" } else { "!" });
        world.assert_is_at_rest();
        is_awaited
    });
}

/// The time of a wait is over while the second of two is answered: its answer is given up, if it
/// was in time.
#[test]
fn what_was_answered_early_is_given_up_when_the_time_is_over() {
    check_outcomes([true, false], || {
        let world = World::new(WIDE, TightSocket::that(First::All));
        let hub = Hub::answering(b"t");
        let serve = Answer::submitting(&hub);
        assert_eq!(world.turn_on_loop(&serve, Source::Buffer(b"st")), 2);
        world.mailbox.expire(world.mailbox.view().waits_since.expect("the first is not answered"));
        world.turn_here(&serve);
        let [is_awaited] = hub.join()[..] else { panic!("one thread") };
        assert_eq!(world.mailbox.view().cause, Some(Cause::OutcomeUnknown));
        assert_eq!((hub.answer_kept(), sent(&world).as_str()), (vec![false], "!"));
        world.assert_is_at_rest();
        is_awaited
    });
}

/// A message is answered while those in front of it wait: its reply does not overtake theirs, and
/// those behind it wait with them.
#[test]
fn what_is_answered_at_once_keeps_its_place() {
    check(|| {
        let world = World::new(WIDE, TightSocket::that(First::All));
        let hub = Hub::answering(b"s");
        let serve = Answer::submitting(&hub);
        assert_eq!(world.turn_on_loop(&serve, Source::Buffer(b"srta")), 3);
        assert_eq!(hub.join(), [true]);
        assert_eq!(hub.answer_kept(), [true]);
        assert_eq!(sent(&world), "SrrK");
        world.assert_is_at_rest();
    });
}

/// They were received in two pieces, and a handler thread's turn has both.
#[test]
fn what_was_received_in_two_pieces_waits_together() {
    check(|| {
        let world = World::new(WIDE, TightSocket::that(First::All));
        let hub = Hub::answering(b"");
        let serve = Answer::submitting(&hub);
        world.receive(b"as");
        world.receive(b"ta");
        world.turn_here(&serve);
        assert_eq!(hub.answer_kept(), [true, true]);
        world.turn_here(&serve);
        assert_eq!(sent(&world), "aaKKaa");
        world.assert_is_at_rest();
    });
}

/// As many wait together as a handler thread's turn has messages, also on the loop.
#[test]
fn no_more_wait_together_than_a_turn_has() {
    check(|| {
        let world = World::new(WIDE, TightSocket::that(First::All));
        let hub = Hub::answering(b"");
        let serve = Answer::submitting(&hub);
        let handled = world.turn_on_loop(&serve, Source::Buffer(&[b's'; TURN_MESSAGES_MAX + 1]));
        assert_eq!(handled, TURN_MESSAGES_MAX);
        assert_eq!(hub.answer_kept(), [true; TURN_MESSAGES_MAX]);
        assert_eq!(sent(&world).len(), TURN_MESSAGES_MAX);
        world.assert_is_at_rest();
    });
}
