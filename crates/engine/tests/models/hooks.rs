//! What an application does to a connection beside its messages: the hooks `connected` and
//! `closed`, and an end by any of its threads.

use super::*;

/// The loop gives a connection up at any moment. The hook of the end runs once and last if the
/// hook of the begin has run, and the loop is called when that is done.
#[test]
fn closed_is_the_last_of_each_that_was_connected() {
    check_outcomes(["", "^.", "^a."].map(str::to_owned), || {
        let world = World::new(WIDE, TightSocket::new());
        let (serve, handled) = Answer::new(false);
        let handler = world.handler_thread(serve);
        world.connect();
        world.receive(b"a");
        _ = world.abort();
        world.engine.stop();
        handler.join().expect("the handler thread stops");
        world.assert_is_at_rest();
        String::from_utf8(handled.lock().clone()).expect("ASCII")
    });
}

/// The socket breaks under the send thread while a turn may run.
#[test]
fn a_broken_socket_is_told_behind_the_turn() {
    check_outcomes(["", "^.", "^a."].map(str::to_owned), || {
        let world = World::new(WIDE, TightSocket::that(First::Broken));
        let (serve, handled) = Answer::new(false);
        let (handler, sender) = (world.handler_thread(serve), world.send_thread());
        world.connect();
        world.receive(b"a");
        world.mailbox.push(entry(b"x")).expect("it is open");
        while world.mailbox.view().stage != Stage::Aborted {
            world.await_call();
        }
        _ = world.abort();
        world.engine.stop();
        handler.join().expect("the handler thread stops");
        sender.join().expect("the send thread stops");
        world.assert_is_at_rest();
        String::from_utf8(handled.lock().clone()).expect("ASCII")
    });
}

/// Another thread ends the connection while the loop receives: what was received is answered,
/// the peer is told behind it, and the loop is called.
#[test]
fn an_end_by_another_thread_is_told_behind_the_replies() {
    check_outcomes(["!", "aa!"].map(str::to_owned), || {
        let world = World::new(WIDE, TightSocket::that(First::All));
        let thread = world.thread(|mailbox| {
            let notice = Notice::Goodbye { reason: Goodbye::ByApplication, text: "".into() };
            mailbox.end_from_thread(Cause::ByApplication, notice);
        });
        world.receive(b"a");
        // While no handler thread has had its turn: the loop is not to read on until then.
        while world.mailbox.view().stage == Stage::Open {
            world.await_call();
        }
        let (serve, _) = Answer::new(true);
        let (handler, sender) = (world.turns_until_answered(serve), world.send_thread());
        world.loop_until_flushed();
        world.engine.stop();
        thread.join().expect("it only ends the connection");
        handler.join().expect("the handler thread stops");
        sender.join().expect("the send thread stops");
        world.assert_is_at_rest();
        String::from_utf8(world.socket.taken()).expect("ASCII")
    });
}
