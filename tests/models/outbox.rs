//! Outbox, send list, semaphore, call list, EPOLLOUT and back, finish, stop.

use super::*;

/// A handler queues above the high mark and finishes, the send thread finds the socket full, the
/// loop takes over and hands back: everything is sent once, in order, and the
/// thread stops.
#[test]
fn each_message_is_sent_once_and_in_order() {
    check(|| all_is_sent(First::OneByte));
}

/// The same where the kernel has no memory at first: the loop tries again.
#[test]
fn what_the_kernel_had_no_memory_for_is_sent_later() {
    check(|| all_is_sent(First::NoBuffers));
}

/// The same where the socket takes all: a connection that has used its share (of
/// two bytes, in a model) goes to the tail of the list with the rest.
#[test]
fn what_is_beyond_a_fair_share_has_its_turn() {
    check(|| all_is_sent(First::All));
}

fn all_is_sent(first: First) {
    let path = send_path(2);
    let socket = TightSocket::that(first);
    let half = send_half(&socket, &path);
    let sender = send_thread(&path);
    let handler = {
        let half = Arc::clone(&half);
        loom::thread::spawn(move || {
            let counters = ThreadCounters::detached();
            half.append(entry(b"ab"), &counters).expect("open");
            half.append(entry(b"c"), &counters).expect("open");
            half.finish();
        })
    };
    loop_until_finished(&half, &path);
    path.list().stop();
    sender.join().expect("the send thread stops");
    handler.join().expect("the handler returns");
    assert_eq!(socket.taken(), b"abc");
    assert!(!half.view().paused, "nothing is queued, and nobody would call the loop");
    assert_eq!(path.total().used(), 0);
}
