//! Outbox, send list, semaphore, call list, EPOLLOUT and back, finish, stop.

use super::*;

/// A handler queues above the high mark and finishes, the send thread finds the socket full, the
/// loop takes over and hands back: everything is sent once, in order, and the
/// thread stops.
#[test]
fn each_message_is_sent_once_and_in_order() {
    check(|| {
        let path = send_path(2);
        let socket = TightSocket::new();
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
    });
}
