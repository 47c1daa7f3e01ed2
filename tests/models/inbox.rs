//! Inbox, run list, turns, pause and resume, the end of the input.

use super::*;
use bytes::Bytes;
use chappe::dispatch::{DispatchPath, InboxLimits, Item, Pushed, ReceiveHalf, Wake, run_turn};
use chappe::handler::{
    ConnectionInfo, Found, Messages, Origin, Pace, Peer, Replies, Serve, Served,
};
use chappe_wire::Chunk;
use std::time::Duration;

/// Answers each one-byte message with itself, or with nothing.
pub(super) struct Answer {
    pub(super) handled: Arc<Mutex<Vec<u8>>>,
    pub(super) replies: bool,
}

impl Serve for Answer {
    fn find(&self, _: &[u8]) -> Found {
        Found { pace: Pace::Quick, place: None }
    }

    fn serve(
        &self,
        _: Found,
        _: Origin<'_>,
        messages: &mut Messages<'_>,
        replies: &mut Replies,
    ) -> Served {
        let (message, rest) = messages.bytes.split_first().expect("a message");
        messages.bytes = rest;
        self.handled.lock().push(*message);
        if self.replies {
            replies.send(u16::from(*message), b"").expect("short");
        }
        Served::Answered
    }

    fn doubt(&self, _: &[u8]) {
        unreachable!("a model has no time")
    }

    fn took(&self, _: Found, _: Duration) -> bool {
        unreachable!("a model has no time")
    }
}

pub(super) fn receive_half(
    send: &Arc<SendHalf>,
    messages_max: usize,
) -> (Arc<ReceiveHalf>, Arc<DispatchPath>) {
    let limits = InboxLimits { messages_max, bytes_max: 1_000 };
    let path = Arc::new(DispatchPath::new(limits, 1_000, Wake::Any));
    let info = ConnectionInfo { id: 1, peer: Peer::Unix };
    let half = ReceiveHalf::new(info, Arc::clone(send), Arc::clone(&path));
    (Arc::new(half), path)
}

pub(super) fn message(byte: &'static [u8]) -> Item {
    Item::chunk(Chunk { bytes: Bytes::from_static(byte), frames: 1 })
}

/// The loop's part of receiving, with the turn left to the handler threads.
pub(super) fn push(receive: &Arc<ReceiveHalf>, byte: &'static [u8]) {
    if receive.push(message(byte)) == Pushed::Queue {
        receive.list();
    }
}

pub(super) fn handler_thread(
    path: &Arc<DispatchPath>,
    serve: Answer,
) -> loom::thread::JoinHandle<()> {
    let path = Arc::clone(path);
    loom::thread::spawn(move || {
        let counters = ThreadCounters::detached();
        while let Some(connection) = path.run_list().pop(0, None) {
            run_turn(&connection, &serve, &counters);
        }
    })
}

/// The loop reads, pauses at the limit, is called to go on, reads the rest, and
/// the input ends: all is handled in order, and the connection finishes.
#[test]
fn a_paused_connection_is_read_again_and_finishes() {
    check(|| {
        let send = send_path(100);
        let socket = TightSocket::new();
        let send_half = send_half(&socket, &send);
        let (receive, dispatch) = receive_half(&send_half, 1);
        let handled = Arc::new(Mutex::new(Vec::new()));
        let serve = Answer { handled: Arc::clone(&handled), replies: false };
        let handler = handler_thread(&dispatch, serve);
        for byte in [b"a", b"b"] {
            while receive.view().paused {
                send.calls().bell().wait();
                send.calls().take(&mut Vec::new());
                send_half.clear_call();
            }
            push(&receive, byte);
        }
        receive.end();
        while !send_half.view().finishing {
            send.calls().bell().wait();
            send.calls().take(&mut Vec::new());
            send_half.clear_call();
        }
        dispatch.run_list().stop();
        handler.join().expect("the handler thread stops");
        assert_eq!(*handled.lock(), b"ab");
        assert!(!receive.view().paused, "empty, and nobody would call the loop");
        assert_eq!(dispatch.total().used(), 0);
    });
}
