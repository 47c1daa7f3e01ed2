//! Pushes: from any thread, at any moment of a connection's life.

use super::*;

/// A thread of the application pushes while the connection ends: what was accepted is
/// sent, in order, and what was not is rejected.
#[test]
fn a_push_is_sent_or_rejected() {
    check_outcomes([(false, false), (true, false), (true, true)], || {
        let world = World::new(WIDE, TightSocket::new());
        let sender = world.send_thread();
        let pusher = world.thread(|mailbox| {
            let accepted = |pushed: Result<(), Rejected>| match pushed {
                Ok(()) => true,
                Err(rejected) => {
                    assert_eq!(rejected, Rejected::Ending);
                    false
                }
            };
            (accepted(mailbox.push(entry(b"ab"))), accepted(mailbox.push(entry(b"c"))))
        });
        world.end_input();
        world.loop_until_flushed();
        let accepted = pusher.join().expect("a push returns");
        let expected: &[u8] = match accepted {
            (true, true) => b"abc",
            (true, false) => b"ab",
            (false, false) => b"",
            (false, true) => panic!("an end does not end"),
        };
        world.engine.stop();
        sender.join().expect("the send thread stops");
        assert_eq!(world.socket.taken(), expected);
        world.assert_is_at_rest();
        accepted
    });
}

/// The loop gives the connection up while it is pushed to: nothing is written to a closed
/// socket, and the account is settled.
#[test]
fn a_push_never_reaches_a_closed_socket() {
    check_outcomes([(false, 0), (true, 0), (true, 1)], || {
        let world = World::new(WIDE, TightSocket::new());
        let sender = world.send_thread();
        let pusher = world.thread(|mailbox| mailbox.push(entry(b"ab")));
        world.abort();
        let pushed = pusher.join().expect("a push returns");
        assert!(matches!(pushed, Ok(()) | Err(Rejected::Gone)), "{pushed:?}");
        world.engine.stop();
        sender.join().expect("the send thread stops");
        world.assert_is_at_rest();
        (pushed.is_ok(), world.socket.taken().len())
    });
}

/// The loop drops the backlog while it is being sent, and the socket is full: the peer gets
/// whole messages, the reason behind them, and the connection ends. (Where another thread
/// drops it: see `fuse`.)
#[test]
fn a_dropped_backlog_leaves_whole_messages() {
    check_outcomes([b"!".to_vec(), b"ab!".to_vec()], || drops_the_backlog(First::OneByte));
}

/// A push where the socket takes all, one share after the other.
#[test]
fn a_backlog_is_dropped_between_two_shares() {
    let expected: [&[u8]; 3] = [b"!", b"ab!", b"abcd!"];
    check_outcomes(expected.map(<[u8]>::to_vec), || drops_the_backlog(First::All));
}

fn drops_the_backlog(first: First) -> Vec<u8> {
    let world = World::new(WIDE, TightSocket::that(first));
    for bytes in [b"ab", b"cd"] {
        world.mailbox.push(entry(bytes)).expect("it is open");
    }
    let sender = world.send_thread();
    assert!(world.mailbox.drop_backlog(Cause::TooSlow, &world.counters), "nobody else ends it");
    world.loop_until_flushed();
    world.engine.stop();
    sender.join().expect("the send thread stops");
    world.assert_is_at_rest();
    world.socket.taken()
}

/// A push that the worker's total has no room for is rejected, and the loop is woken to
/// make room.
#[test]
fn a_push_beyond_the_total_wakes_the_loop() {
    check(|| {
        let limits = Limits { outbox_total_bytes_max: 1, ..WIDE };
        let world = World::new(limits, TightSocket::new());
        world.mailbox.push(entry(b"a")).expect("one message always fits");
        let pusher = world.thread(|mailbox| {
            for bytes in [b"b", b"c"] {
                assert_eq!(mailbox.push(entry(bytes)), Err(Rejected::Full));
            }
        });
        let mut shortage = 0;
        while shortage == 0 {
            world.await_call();
            if world.engine.calls().take_overload() {
                shortage = world.engine.outbox_total().take_shortage();
            }
        }
        pusher.join().expect("a push returns");
        assert!(!world.abort(), "nobody writes");
        world.engine.stop();
        world.engine.run_send_thread(&world.counters, ());
        world.assert_is_at_rest();
    });
}
