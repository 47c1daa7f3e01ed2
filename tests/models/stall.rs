//! Replies that back up: the turn ends as stalled, and whoever drains the
//! outbox lets it go on.

use super::inbox::{Answer, handler_thread, message, receive_half};
use super::*;

/// With a high mark of nothing each reply stalls its turn. All is answered all
/// the same, in order.
#[test]
fn a_stalled_turn_goes_on_when_the_outbox_has_drained() {
    check(|| {
        let send = send_path(0);
        let socket = TightSocket::new();
        let half = send_half(&socket, &send);
        let (receive, dispatch) = receive_half(&half, 100);
        let handled = Arc::new(Mutex::new(Vec::new()));
        let serve = Answer { handled: Arc::clone(&handled), replies: true };
        receive.push(message(b"a"));
        receive.end();
        let sender = send_thread(&send);
        let handler = handler_thread(&dispatch, serve);
        loop_until_finished(&half, &send);
        dispatch.run_list().stop();
        handler.join().expect("the handler thread stops");
        send.list().stop();
        sender.join().expect("the send thread stops");
        assert_eq!(*handled.lock(), b"a");
        assert_eq!(socket.taken().len(), 8);
        assert_eq!((send.total().used(), dispatch.total().used()), (0, 0));
    });
}
