//! Giving a connection up while others queue for it and write to it.

use super::*;

/// The loop gives up at any moment. The socket is closed only when no thread can write
/// to it any more, and what was queued is accounted for.
#[test]
fn an_aborted_socket_is_closed_under_nobody() {
    check_outcomes([(false, 0), (false, 1), (true, 1)], || {
        let world = World::new(WIDE, TightSocket::new());
        let (serve, _) = Answer::new(true);
        world.receive(b"a");
        let sender = world.send_thread();
        let handler = world.turns(serve, 1);
        let waited = world.abort();
        handler.join().expect("the turn ends");
        world.engine.stop();
        sender.join().expect("the send thread stops");
        world.assert_is_at_rest();
        (waited, world.socket.taken().len())
    });
}

/// The peer resets the connection: the send thread finds the socket broken, and the loop
/// is called to close it. What is pushed behind that is rejected.
#[test]
fn a_broken_socket_is_closed_by_the_loop() {
    check_outcomes([false, true], || {
        let world = World::new(WIDE, TightSocket::that(First::Broken));
        let sender = world.send_thread();
        let pusher = world.thread(|mailbox| {
            mailbox.push(entry(b"ab")).expect("nothing is known of it yet");
            mailbox.push(entry(b"c"))
        });
        while world.mailbox.view().stage != Stage::Aborted {
            world.await_call();
        }
        assert!(!world.abort(), "the writer is back");
        let pushed = pusher.join().expect("a push returns");
        world.engine.stop();
        sender.join().expect("the send thread stops");
        assert!(matches!(pushed, Ok(()) | Err(Rejected::Gone)), "{pushed:?}");
        world.assert_is_at_rest();
        pushed.is_ok()
    });
}
