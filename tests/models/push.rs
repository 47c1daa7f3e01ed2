//! Pushes: from any thread, at any moment of a connection's life.

use super::*;
use chappe::send::Refused;

/// A thread of the application pushes while the connection finishes: what was
/// accepted is sent, in order, and what was not is refused.
#[test]
fn a_push_is_sent_or_refused() {
    check(|| {
        let path = send_path(1000);
        let socket = TightSocket::new();
        let half = send_half(&socket, &path);
        let sender = send_thread(&path);
        let pusher = {
            let half = Arc::clone(&half);
            loom::thread::spawn(move || {
                let accepted = |pushed: Result<(), Refused>| match pushed {
                    Ok(()) => true,
                    Err(refused) => {
                        assert_eq!(refused, Refused::Finishing);
                        false
                    }
                };
                (accepted(half.push(entry(b"ab"))), accepted(half.push(entry(b"c"))))
            })
        };
        half.finish();
        loop_until_finished(&half, &path);
        let expected: &[u8] = match pusher.join().expect("a push returns") {
            (true, true) => b"abc",
            (true, false) => b"ab",
            (false, false) => b"",
            (false, true) => panic!("finishing does not end"),
        };
        path.list().stop();
        sender.join().expect("the send thread stops");
        assert_eq!(socket.taken(), expected);
        assert_eq!(path.total().used(), 0);
    });
}

/// The loop gives the connection up while it is pushed to: nothing is written to a
/// closed socket, and the account is settled.
#[test]
fn a_push_never_reaches_a_closed_socket() {
    check(|| {
        let path = send_path(1000);
        let socket = TightSocket::new();
        let half = send_half(&socket, &path);
        let sender = send_thread(&path);
        let pusher = {
            let half = Arc::clone(&half);
            loom::thread::spawn(move || half.push(entry(b"ab")))
        };
        let counters = ThreadCounters::detached();
        while !half.abort(&counters) {
            path.calls().bell().wait();
            path.calls().take(&mut Vec::new());
            half.clear_call();
        }
        socket.close();
        let pushed = pusher.join().expect("a push returns");
        assert!(matches!(pushed, Ok(()) | Err(Refused::Gone)), "{pushed:?}");
        path.list().stop();
        sender.join().expect("the send thread stops");
        assert_eq!(path.total().used(), 0);
    });
}

/// Somebody gives the backlog up while it is being sent: the peer gets whole frames,
/// the reason behind them, and the connection ends.
#[test]
fn a_cut_backlog_leaves_whole_frames() {
    check(|| {
        let path = send_path(1000);
        let socket = TightSocket::new();
        let half = send_half(&socket, &path);
        let sender = send_thread(&path);
        let handler = {
            let half = Arc::clone(&half);
            loom::thread::spawn(move || {
                let counters = ThreadCounters::detached();
                // Refused once cut: told to the handler, not lost silently.
                let _ = half.append(entry(b"ab"), &counters);
                let _ = half.append(entry(b"cd"), &counters);
                half.cut(&counters).expect("nobody else ends it");
            })
        };
        loop_until_finished(&half, &path);
        handler.join().expect("the handler returns");
        path.list().stop();
        sender.join().expect("the send thread stops");
        let taken = socket.taken();
        let whole: [&[u8]; 3] = [b"!", b"ab!", b"abcd!"];
        assert!(whole.contains(&&*taken), "{taken:?}");
        assert_eq!(path.total().used(), 0);
    });
}
