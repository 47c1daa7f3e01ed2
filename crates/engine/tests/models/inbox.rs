//! Inbox, run list, turns, pause and resume, the end of the input.

use super::*;
use chappe_engine::{Resume, Room, RunList};

/// The loop reads, pauses at the limit, is called to go on, reads the rest, and the input
/// ends: all is handled in order, and the connection is flushing.
#[test]
fn a_paused_connection_is_read_again_and_finishes() {
    check(|| {
        let limits = Limits { inbox_messages_max: 1, ..WIDE };
        let world = World::new(limits, TightSocket::new());
        let (serve, handled) = Answer::new(false);
        let handler = world.handler_thread(serve);
        for byte in [b"a", b"b"] {
            while world.mailbox.view().is_paused {
                world.await_call();
            }
            world.receive(byte);
        }
        world.end_input();
        world.loop_until_flushed();
        world.engine.stop();
        let turns = handler.join().expect("the handler thread stops");
        assert_eq!(*handled.lock(), b"ab");
        assert!(!world.mailbox.view().is_paused, "empty, and nobody would call the loop");
        assert_eq!(turns, 2, "what comes during a turn is handled in the next");
        world.assert_is_at_rest();
    });
}

/// The inboxes together hold too much, so the loop reads no others until it is called:
/// it is, when they have room again.
#[test]
fn the_loop_reads_others_again_when_the_inboxes_have_room() {
    check_outcomes([Exhaustion::Passed, Exhaustion::Waited], || {
        let limits = Limits { inbox_total_bytes_max: 0, ..WIDE };
        let world = World::new(limits, TightSocket::new());
        let (serve, handled) = Answer::new(false);
        let handler = world.turns(serve, 1);
        world.receive(b"a");
        let loop_itself = Arc::clone(&world.engine) as Arc<dyn Resume>;
        let exhaustion = match world.engine.inbox_total().wait_for_room(loop_itself) {
            Room::Free => Exhaustion::Passed,
            Room::Exhausted => Exhaustion::Waited,
        };
        if exhaustion == Exhaustion::Waited {
            world.await_call();
            while !world.engine.calls().take_room() {
                world.await_call();
            }
        }
        assert_eq!(world.engine.inbox_total().room(), Room::Free);
        handler.join().expect("the turn ends");
        world.end_input();
        assert_eq!(*handled.lock(), b"a");
        world.engine.stop();
        world.assert_is_at_rest();
        exhaustion
    });
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Exhaustion {
    Passed,
    Waited,
}

/// Two connections and two threads that each have one turn: no thread sleeps beside a
/// listed connection.
#[test]
fn each_listed_connection_wakes_a_thread() {
    check_outcomes([[1, 2], [2, 1]], || {
        let list = Arc::new(RunList::new());
        let threads = [(); 2].map(|()| {
            let list = Arc::clone(&list);
            loom::thread::spawn(move || list.pop())
        });
        list.push(1);
        list.push(2);
        threads.map(|thread| thread.join().expect("it is woken").expect("nobody stops it"))
    });
}
