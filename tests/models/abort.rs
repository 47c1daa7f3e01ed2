//! Giving a connection up while others queue for it and write to it.

use super::*;

/// The loop gives up at any moment. The socket is closed only when no thread
/// can write to it any more, and what was queued is accounted for.
#[test]
fn an_aborted_socket_is_closed_under_nobody() {
    check(|| {
        let path = send_path(100);
        let socket = TightSocket::new();
        let half = send_half(&socket, &path);
        let sender = send_thread(&path);
        let handler = {
            let half = Arc::clone(&half);
            loom::thread::spawn(move || {
                let counters = ThreadCounters::detached();
                // Refused once aborted: told to the handler, not lost silently.
                let _ = half.append(entry(b"ab"), &counters);
            })
        };
        let counters = ThreadCounters::detached();
        while !half.abort(&counters) && !is_planted(Fault::CloseUnderWriter) {
            path.calls().bell().wait();
            path.calls().take(&mut Vec::new());
            half.clear_call();
        }
        socket.close();
        handler.join().expect("the handler returns");
        path.list().stop();
        sender.join().expect("the send thread stops");
        assert_eq!(path.total().used(), 0, "what was queued is given back");
    });
}
