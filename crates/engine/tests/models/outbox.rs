//! Outbox, send list, semaphore, call list, EPOLLOUT and back, the end, stop.

use super::*;

/// A handler answers above the high mark and the input ends, the send thread finds the
/// socket full, the loop takes over and hands back: everything is sent once, in order,
/// and the threads stop.
#[test]
fn each_message_is_sent_once_and_in_order() {
    check(|| all_is_sent(First::OneByte));
}

/// A rest is sent where the kernel has no memory at first: the loop tries again.
#[test]
fn what_the_kernel_had_no_memory_for_is_sent_later() {
    check(|| all_is_sent(First::NoBuffers));
}

/// A rest is sent where the socket takes all: a connection that has used its share (of two
/// bytes, in a model) goes to the tail of the list with the rest.
#[test]
fn what_is_beyond_a_fair_share_has_its_turn() {
    check(|| all_is_sent(First::All));
}

fn all_is_sent(first: First) {
    let limits = Limits { outbox_bytes_max: 2, ..WIDE };
    let world = World::new(limits, TightSocket::that(first));
    let (serve, _) = Answer::new(true);
    world.receive(b"ab");
    let handler = world.turns(serve, 1);
    let sender = world.send_thread();
    world.end_input();
    world.loop_until_flushed();
    world.engine.stop();
    sender.join().expect("the send thread stops");
    handler.join().expect("the turn ends");
    assert_eq!(world.socket.taken(), b"aabb");
    assert!(!world.mailbox.view().is_paused, "nothing is queued, and nobody would call the loop");
    world.assert_is_at_rest();
}

/// Replies above the high mark pause reading. When they are sent the loop is called to go on.
#[test]
fn a_connection_is_read_again_when_its_outbox_has_drained() {
    check(|| {
        let limits = Limits { outbox_bytes_max: 2, ..WIDE };
        let world = World::new(limits, TightSocket::that(First::All));
        let (serve, _) = Answer::new(true);
        world.receive(b"a");
        let handler = world.turns(serve, 1);
        let sender = world.send_thread();
        loop {
            let view = world.mailbox.view();
            if view.sent_bytes == 2 && !view.is_paused {
                break;
            }
            world.await_call();
        }
        world.engine.stop();
        sender.join().expect("the send thread stops");
        handler.join().expect("the turn ends");
        world.assert_is_at_rest();
    });
}

/// Another process posts the semaphore for reasons of its own: one permit too many never
/// harms, neither before a connection is listed nor behind it.
#[test]
fn a_permit_without_a_connection_is_harmless() {
    check(|| {
        let permits = Semaphore::new(0);
        let list = Arc::new(chappe_engine::SendList::new(permits));
        let poster = {
            let list = Arc::clone(&list);
            loom::thread::spawn(move || list.post())
        };
        let sender = {
            let list = Arc::clone(&list);
            loom::thread::spawn(move || {
                let (mut all, mut taken) = (Vec::new(), Vec::new());
                while list.wait(&mut taken) == chappe_engine::Wakeup::Look {
                    all.append(&mut taken);
                    if all.len() == 2 {
                        break;
                    }
                }
                all
            })
        };
        list.push(1);
        list.push(2);
        poster.join().expect("a post returns");
        assert_eq!(sender.join().expect("both are taken"), [1, 2]);
    });
}
