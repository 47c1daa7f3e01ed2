//! Deferred replies: a ticket that is used at any time after its handler has taken it.

use super::*;

fn resume(ticket: Ticket) -> bool {
    ticket.resume(Box::new(CONTINUED))
}

fn resume_to_defer_again(ticket: Ticket) -> bool {
    ticket.resume(Box::new(LATER))
}

fn drop_it(ticket: Ticket) -> bool {
    drop(ticket);
    false
}

fn text(handled: &Mutex<Vec<u8>>) -> String {
    String::from_utf8(handled.lock().clone()).expect("ASCII")
}

/// A ticket is resumed while its turn may not have ended: the message is continued, once, and
/// what was received behind it comes after that.
#[test]
fn a_resumed_message_is_continued_at_its_place() {
    check(|| {
        let world = World::new(WIDE, TightSocket::that(First::All));
        let desk = Desk::new(1, resume);
        let (serve, handled) = Answer::deferring(&desk);
        world.receive(b"da");
        world.end_input();
        let handler = world.turns_until_answered(serve);
        world.loop_until_flushed();
        handler.join().expect("the turns end");
        assert_eq!((desk.join(), text(&handled)), (vec![true], "dDa".to_owned()));
        world.engine.stop();
        world.assert_is_at_rest();
    });
}

/// The handler runs on the loop, out of its buffer: what was read behind the message goes
/// into the inbox, and a handler thread continues.
#[test]
fn a_message_that_was_deferred_on_the_loop_is_continued_at_its_place() {
    check(|| {
        let world = World::new(WIDE, TightSocket::that(First::All));
        let desk = Desk::new(1, resume);
        let (on_loop, handled) = Answer::deferring(&desk);
        let on_thread = Answer { handled: Arc::clone(&handled), ..Answer::new(false).0 };
        let handler = world.handler_thread(on_thread);
        assert_eq!(world.turn_on_loop(&on_loop, Source::Buffer(b"da")), 1);
        world.receive(b"a");
        world.end_input();
        world.loop_until_flushed();
        world.engine.stop();
        handler.join().expect("the handler thread stops");
        assert_eq!((desk.join(), text(&handled)), (vec![true], "dDa".to_owned()));
        world.assert_is_at_rest();
    });
}

/// What continues a message defers it again, where no more than one may be: it has given its
/// place back, and the second wait is another one.
#[test]
fn a_continued_message_may_be_deferred_again() {
    check(|| {
        let world = World::new(WIDE, TightSocket::that(First::All));
        let desk = Desk::new(1, resume_to_defer_again);
        let (serve, handled) = Answer::deferring(&desk);
        world.receive(b"da");
        let handler = world.turns(serve, 2);
        handler.join().expect("the turns end");
        assert_eq!((desk.join(), text(&handled)), (vec![true], "dd".to_owned()));
        let ticket = desk.kept.lock().pop().expect("the second");
        assert!(resume(ticket));
        let (serve, rest) = Answer::new(false);
        world.turns(serve, 1).join().expect("the turn ends");
        assert_eq!(text(&rest), "Da");
        _ = world.abort();
        world.engine.stop();
        world.assert_is_at_rest();
    });
}

/// The loop gives the connection up at any moment: the hook of the end runs once and last, and
/// waits for no ticket. The ticket that is resumed behind that is void.
#[test]
fn an_end_does_not_wait_for_a_ticket() {
    check_outcomes(["", "^.", "^d.", "^dD."].map(str::to_owned), || {
        let world = World::new(WIDE, TightSocket::new());
        let desk = Desk::new(1, resume);
        let (serve, handled) = Answer::deferring(&desk);
        let handler = world.handler_thread(serve);
        world.connect();
        world.receive(b"d");
        _ = world.abort();
        world.engine.stop();
        handler.join().expect("the handler thread stops");
        let resumed = desk.join();
        let handled = text(&handled);
        assert!(!handled.contains('D') || resumed == [true]);
        world.assert_is_at_rest();
        handled
    });
}

/// A ticket that is never used while the connection is there.
#[test]
fn an_end_ends_a_wait() {
    check_outcomes(["", "^.", "^d."].map(str::to_owned), || {
        let world = World::new(WIDE, TightSocket::new());
        let desk = Desk::new(0, resume);
        let (serve, handled) = Answer::deferring(&desk);
        let handler = world.handler_thread(serve);
        world.connect();
        world.receive(b"d");
        _ = world.abort();
        world.engine.stop();
        handler.join().expect("the handler thread stops");
        world.assert_is_at_rest();
        for ticket in std::mem::take(&mut *desk.kept.lock()) {
            assert!(ticket.is_void() && !resume(ticket));
        }
        text(&handled)
    });
}

/// The loop finds that the time of a wait is over while its ticket is resumed: one of the two
/// decides, and the other does nothing.
#[test]
fn a_ticket_is_resumed_or_expires() {
    check_outcomes([true, false], || {
        let world = World::new(WIDE, TightSocket::new());
        let desk = Desk::new(1, resume);
        let (serve, handled) = Answer::deferring(&desk);
        world.receive(b"d");
        let handler = world.turns(serve, 2);
        if let Some(since) = world.mailbox.view().waits_since {
            world.mailbox.expire(since);
        }
        handler.join().expect("the turns end");
        let resumed = desk.join() == [true];
        assert_eq!(text(&handled), if resumed { "dD" } else { "d" });
        _ = world.abort();
        world.engine.stop();
        world.engine.run_send_thread(&world.counters, ());
        world.assert_is_at_rest();
        resumed
    });
}

/// A wait begins on a handler thread: the loop is called, or it would not keep its clock.
#[test]
fn the_loop_is_called_when_a_wait_begins() {
    check(|| {
        let world = World::new(WIDE, TightSocket::new());
        let desk = Desk::new(0, resume);
        let (serve, _) = Answer::deferring(&desk);
        let handler = world.turns(serve, 2);
        world.receive(b"d");
        let since = loop {
            if let Some(since) = world.mailbox.view().waits_since {
                break since;
            }
            world.await_call();
        };
        world.mailbox.expire(since);
        handler.join().expect("the turns end");
        _ = world.abort();
        world.engine.stop();
        world.engine.run_send_thread(&world.counters, ());
        world.assert_is_at_rest();
    });
}

/// A ticket is dropped late, when the loop may have ended its wait already and the next
/// message waits: it does nothing to that one.
#[test]
fn a_late_ticket_does_not_end_the_next_wait() {
    check(|| {
        let world = World::new(WIDE, TightSocket::new());
        let desk = Desk::new(1, drop_it);
        let (serve, handled) = Answer::deferring(&desk);
        world.receive(b"dd");
        let handler = world.turns(serve, 2);
        let since = world.mailbox.view().waits_since;
        // That of the first.
        if let Some(since) = since.filter(|_| text(&handled) == "d") {
            world.mailbox.expire(since);
        }
        handler.join().expect("the turns end");
        assert_eq!((desk.join(), text(&handled)), (vec![false], "dd".to_owned()));
        assert!(world.mailbox.view().waits_since.is_some(), "for its own ticket");
        _ = world.abort();
        desk.kept.lock().clear();
        world.engine.stop();
        world.engine.run_send_thread(&world.counters, ());
        world.assert_is_at_rest();
    });
}
