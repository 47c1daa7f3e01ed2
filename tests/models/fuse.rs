//! The event loop runs a turn and writes the replies itself, while others queue for
//! the same connection.

use super::inbox::{Answer, message, receive_half};
use super::*;
use chappe::dispatch::{Cut, OnLoop, Pushed, run_turn_directly, run_turn_on_loop};

/// A thread of the application pushes while the loop answers a message by itself and
/// finds the socket full: all is sent once, nothing is cut in two, and the writer is
/// never in two hands.
#[test]
fn the_loop_answers_while_others_push() {
    check(|| answers_while_others_push(false, First::OneByte));
}

/// The same without inbox and outbox, out of the loop's buffer, if the push leaves it
/// the chance.
#[test]
fn the_loop_answers_directly_while_others_push() {
    check(|| answers_while_others_push(true, First::OneByte));
}

/// And if the socket takes all at once: what was pushed meanwhile is not left behind.
#[test]
fn the_loop_answers_directly_and_whole_while_others_push() {
    check(|| answers_while_others_push(true, First::All));
}

fn answers_while_others_push(directly: bool, first: First) {
    let path = send_path(1000);
    let socket = TightSocket::that(first);
    let half = send_half(&socket, &path);
    let (receive, dispatch) = receive_half(&half, 100);
    let serve = Answer { handled: Arc::new(Mutex::new(Vec::new())), replies: true };
    let sender = send_thread(&path);
    let pusher = {
        let half = Arc::clone(&half);
        loom::thread::spawn(move || half.push(entry(b"xyz")).is_ok())
    };
    let counters = ThreadCounters::detached();
    let (mut on_loop, read) = (OnLoop::new(), Cut { bytes: b"a", frames: 1 });
    if directly {
        assert!(run_turn_directly(&receive, &read, &serve, &counters, &mut on_loop));
    } else {
        assert_eq!(receive.push(message(b"a")), Pushed::Queue);
        run_turn_on_loop(&receive, &serve, &counters);
    }
    receive.end();
    loop_until_finished(&half, &path);
    let was_pushed = pusher.join().expect("a push returns");
    path.list().stop();
    sender.join().expect("the send thread stops");
    // A frame of the header and nothing else, with the message as its code.
    let reply: &[u8] = &[0, 8, 0, b'a', 0, 0, 0, 0];
    let taken = socket.taken();
    if was_pushed {
        let either = [[reply, b"xyz"].concat(), [b"xyz", reply].concat()];
        assert!(either.contains(&taken), "{taken:?}");
    } else {
        assert_eq!(taken, reply);
    }
    assert_eq!((path.total().used(), dispatch.total().used()), (0, 0));
}
