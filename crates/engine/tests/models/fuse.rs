//! The event loop runs a turn and writes the replies itself, while others queue for the
//! same connection.

use super::*;

/// A thread of the application pushes while the loop answers a message by itself and
/// finds the socket full: all is sent once, nothing is split, and the writer is never in
/// two hands.
#[test]
fn the_loop_answers_from_the_inbox_while_others_push() {
    answers_while_others_push(false, First::OneByte);
}

/// The messages are served out of the loop's buffer.
#[test]
fn the_loop_answers_from_its_buffer_while_others_push() {
    answers_while_others_push(true, First::OneByte);
}

/// And if the socket takes all at once: what was pushed in the meantime is not left behind.
#[test]
fn the_loop_answers_whole_from_the_inbox_while_others_push() {
    answers_while_others_push(false, First::All);
}

/// The messages are served out of the loop's buffer.
#[test]
fn the_loop_answers_whole_from_its_buffer_while_others_push() {
    answers_while_others_push(true, First::All);
}

fn answers_while_others_push(from_buffer: bool, first: First) {
    check_outcomes([b"aa".to_vec(), b"aaxyz".to_vec(), b"xyzaa".to_vec()], move || {
        let world = World::new(WIDE, TightSocket::that(first));
        let (serve, handled) = Answer::new(true);
        let sender = world.send_thread();
        let pusher = world.thread(|mailbox| mailbox.push(entry(b"xyz")).is_ok());
        let source = if from_buffer {
            Source::Buffer(b"a")
        } else {
            let received = world.mailbox.receive(messages(b"a"), &world.counters);
            assert_eq!(received, Received::StartTurn);
            Source::Inbox
        };
        assert_eq!(world.turn_on_loop(&serve, source), usize::from(from_buffer));
        assert_eq!(*handled.lock(), b"a");
        world.end_input();
        world.loop_until_flushed();
        let was_pushed = pusher.join().expect("a push returns");
        world.engine.stop();
        sender.join().expect("the send thread stops");
        let taken = world.socket.taken();
        assert_eq!(taken.len(), if was_pushed { 5 } else { 2 });
        world.assert_is_at_rest();
        taken
    });
}

/// The loop reads a message while a handler thread has a turn of the same connection: it
/// handles it itself only if the turn has ended, and the replies stay in order.
#[test]
fn the_loop_does_not_overtake_a_handler_thread() {
    check_outcomes([false, true], || {
        let world = World::new(WIDE, TightSocket::that(First::All));
        let (quick, handled) = Answer::new(true);
        let on_loop = Answer { handled: Arc::clone(&handled), ..quick };
        let on_thread = Answer { handled: Arc::clone(&handled), ..Answer::new(true).0 };
        world.receive(b"a");
        let handler = world.handler_thread(on_thread);
        let sender = world.send_thread();
        let is_handled = world.turn_on_loop(&on_loop, Source::Buffer(b"b")) == 1;
        if !is_handled {
            world.receive(b"b");
        }
        world.end_input();
        world.loop_until_flushed();
        world.engine.stop();
        handler.join().expect("the handler thread stops");
        sender.join().expect("the send thread stops");
        assert_eq!(*handled.lock(), b"ab");
        assert_eq!(world.socket.taken(), b"aabb");
        world.assert_is_at_rest();
        is_handled
    });
}

/// Somebody drops the backlog while the loop answers: the peer gets whole messages, the
/// reason behind them, and the connection ends.
#[test]
fn a_backlog_is_dropped_while_the_loop_answers() {
    let expected: [&[u8]; 5] = [b"!", b"aa!", b"aaxyz!", b"xyz!", b"xyzaa!"];
    check_outcomes(expected.map(<[u8]>::to_vec), || {
        let world = World::new(WIDE, TightSocket::new());
        let (serve, _) = Answer::new(true);
        let sender = world.send_thread();
        let pusher = world.thread(|mailbox| {
            mailbox.push(entry(b"xyz")).expect("nobody else ends it");
            let counters = ThreadCounters::detached();
            assert!(mailbox.drop_backlog(Cause::TooSlow, &counters), "nobody else ends it");
        });
        world.turn_on_loop(&serve, Source::Buffer(b"a"));
        world.loop_until_flushed();
        pusher.join().expect("the thread returns");
        world.engine.stop();
        sender.join().expect("the send thread stops");
        world.assert_is_at_rest();
        world.socket.taken()
    });
}
