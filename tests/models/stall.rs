//! Replies that back up: the turn ends as stalled, and whoever drains the
//! outbox lets it go on.

use super::inbox::{Answer, handler_thread, push, receive_half};
use super::*;

/// With a high mark of nothing each reply stalls its turn. All is answered all
/// the same, in order.
#[test]
fn a_stalled_turn_goes_on_when_the_outbox_has_drained() {
    check(|| stalls_and_goes_on(send_path(0)));
}

/// The same with room in the connection's own outbox and none in the total.
#[test]
fn a_turn_stalled_by_the_total_goes_on_when_there_is_room() {
    check(|| stalls_and_goes_on(send_path_with_total(10_000, 0)));
}

fn stalls_and_goes_on(send: Arc<SendPath>) {
    let socket = TightSocket::new();
    let half = send_half(&socket, &send);
    let (receive, dispatch) = receive_half(&half, 100);
    let handled = Arc::new(Mutex::new(Vec::new()));
    let serve = Answer { handled: Arc::clone(&handled), replies: true };
    push(&receive, b"a");
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
}

/// The loop gives the connection up while its turn runs, stalls or is parked:
/// nobody hangs, and what was held is given back.
#[test]
fn a_connection_may_go_at_any_point_of_its_turn() {
    check(|| {
        let send = send_path(0);
        let socket = TightSocket::new();
        let half = send_half(&socket, &send);
        let (receive, dispatch) = receive_half(&half, 100);
        let handled = Arc::new(Mutex::new(Vec::new()));
        let serve = Answer { handled, replies: true };
        push(&receive, b"a");
        let sender = send_thread(&send);
        let handler = handler_thread(&dispatch, serve);
        let counters = ThreadCounters::detached();
        receive.close(&counters);
        while !half.abort(&counters) {
            send.calls().bell().wait();
            send.calls().take(&mut Vec::new());
            half.clear_call();
        }
        socket.close();
        dispatch.run_list().stop();
        handler.join().expect("the handler thread stops");
        send.list().stop();
        sender.join().expect("the send thread stops");
        assert_eq!((send.total().used(), dispatch.total().used()), (0, 0));
        // The parked inbox and its outbox do not keep each other.
        assert_eq!(Arc::strong_count(&receive), 1);
    });
}
