//! Pushes: messages that answer nothing, from threads of the application, at any
//! moment of a connection's life.

use std::thread;

use chappe_client::{ClientError, Connection, Frame};
use chappe_testkit::application::pushes::{
    ALL, CLOSE, KEEP, MIXED, MIXED_FAIL, Order, PUSH, PUSHED, Tally, number,
};
use chappe_testkit::{TestServer, small_buffers, wait_until};
use chappe_wire::{CODE_PING, ErrorNumber, Goodbye};
use nix::sys::signal::Signal;

use super::start;

/// A connection whose handle is kept. The kernel holds little for it: who does not
/// read is blocked soon, and stays so.
fn keep(server: &TestServer, name: u8) -> Connection {
    let mut client = small_buffers(server.address, 16 * 1024);
    assert_eq!(client.call(KEEP, &[name]).expect("kept").code, KEEP);
    client
}

fn push(server: &TestServer, order: Order) -> Tally {
    Tally::decode(&server.connect().call(PUSH, &order.encode()).expect("pushed").body)
}

/// Thread and number of a pushed message.
fn check(frame: &Frame, bytes: u32) -> (u8, u32) {
    assert_eq!(frame.code, PUSHED, "{:?}", frame.as_goodbye());
    let (thread, number) = (frame.body[0], number(&frame.body[1..]));
    assert!(frame.body.len() == bytes as usize && frame.body[5..].iter().all(|b| *b == thread));
    (thread, number)
}

const SMALL: &str = "worker_processes = 1
[worker]
handler_threads = 2
[[listen]]
address = \"127.0.0.1:0\"
send_buffer = 16384
";

fn small(outbox: &str, more: &str) -> String {
    format!("{SMALL}[send]\noutbox_max_bytes = \"{outbox}\"\n{more}")
}

#[test]
fn pushes_arrive_in_the_order_of_each_thread() {
    const THREADS: u8 = 4;
    const COUNT: u32 = 2000;
    let server = start("push_order", &small("64KiB", "slow_reader = \"drop-newest\"\n"));
    let mut target = keep(&server, 1);
    let order = Order { name: 1, threads: THREADS, persists: true, count: COUNT, bytes: 100 };
    thread::scope(|scope| {
        let pushed = scope.spawn(|| push(&server, order));
        let mut next = [0; THREADS as usize];
        for _ in 0..COUNT * u32::from(THREADS) {
            let (thread, number) = check(&target.receive().expect("pushed"), 100);
            let expected = &mut next[usize::from(thread)];
            assert_eq!(number, *expected, "thread {thread}");
            *expected += 1;
        }
        assert_eq!(pushed.join().expect("no panic").queued, COUNT * u32::from(THREADS));
    });
    assert_eq!(target.call(CODE_PING, b"").expect("nothing more").code, CODE_PING);
    let pushed = u64::from(COUNT) * u64::from(THREADS);
    server.wait_status("/totals/messages_pushed", |n| n == pushed);
}

#[test]
fn a_push_beyond_the_limit_is_dropped_and_told() {
    let server = start("push_full", &small("64KiB", "slow_reader = \"drop-newest\"\n"));
    let mut target = keep(&server, 1);
    // More than the kernel's buffers and the outbox take, which nobody reads.
    let order = Order { name: 1, threads: 1, persists: false, count: 10_000, bytes: 1000 };
    let tally = push(&server, order);
    assert_eq!((tally.queued + tally.full, tally.closed, tally.expired), (10_000, 0, 0));
    assert!(tally.full > 0 && tally.queued > 64, "{tally:?}");
    server.wait_status("/totals/messages_dropped", |n| n == u64::from(tally.full));
    server.wait_status("/workers/0/connections_blocked", |n| n == 1);
    server.wait_status("/workers/0/outbox_bytes", |n| n > 32 * 1024);
    let mut last = None;
    for _ in 0..tally.queued {
        let (_, number) = check(&target.receive().expect("pushed"), 1000);
        assert!(last < Some(number), "{number} after {last:?}");
        last = Some(number);
    }
    assert_eq!(target.call(CODE_PING, b"").expect("open").code, CODE_PING);
    server.wait_status("/workers/0/outbox_bytes", |n| n == 0);
    server.wait_status("/workers/0/connections_blocked", |n| n == 0);
    let order = Order { count: 5, ..order };
    assert_eq!(push(&server, order).queued, 5, "there is room again");
}

#[test]
fn a_reader_too_slow_for_its_pushes_is_told_goodbye() {
    let server = start("push_close", &small("64KiB", ""));
    let mut target = keep(&server, 1);
    let order = Order { name: 1, threads: 1, persists: false, count: 10_000, bytes: 1000 };
    let tally = push(&server, order);
    assert_eq!((tally.full, tally.closed, tally.expired), (0, 1, 0), "told at once: {tally:?}");
    assert_eq!(push(&server, order).closed, 1, "it takes no more");
    assert_eq!(server.total("closed_slow"), 1);
    let mut received = 0;
    loop {
        let frame = target.receive().expect("whole frames");
        if let Some(goodbye) = frame.as_goodbye() {
            assert!(goodbye.is(Goodbye::TooSlow), "{goodbye:?}");
            break;
        }
        assert_eq!(check(&frame, 1000), (0, received));
        received += 1;
    }
    assert!(matches!(target.receive(), Err(ClientError::Closed)), "nothing behind the goodbye");
    drop(target);
    let lost = u64::from(tally.queued - received);
    server.wait_status("/totals/messages_expired", |n| n == lost);
    wait_until("the connection is gone", || push(&server, order).expired == 1);
    assert_eq!(server.total("closed_slow"), 1);
}

#[test]
fn a_handle_never_reaches_a_stranger() {
    let server = start("push_stranger", "worker_processes = 1\n");
    let target = keep(&server, 1);
    drop(target);
    server.wait_status("/totals/connections_closed", |closed| closed == 1);
    // Some of them have its place in the table, and its descriptor's number.
    let mut strangers: Vec<Connection> = (0..50).map(|_| server.connect()).collect();
    for stranger in &mut strangers {
        assert_eq!(stranger.call(CODE_PING, b"").expect("served").code, CODE_PING);
    }
    let order = Order { name: 1, threads: 2, persists: false, count: 100, bytes: 10 };
    let tally = push(&server, order);
    assert_eq!((tally.queued, tally.expired), (0, 2), "each thread is told once");
    for stranger in &mut strangers {
        assert_eq!(stranger.call(CODE_PING, b"").expect("no push").code, CODE_PING);
    }
    assert_eq!(server.total("messages_pushed"), 0);
}

#[test]
fn beyond_the_total_the_largest_backlog_goes() {
    let more = "outbox_total_max_bytes = \"256KiB\"\nslow_reader = \"drop-newest\"\n";
    let server = start("push_total", &small("200KiB", more));
    let _largest = keep(&server, 1);
    let _second = keep(&server, 2);
    let mut reader = keep(&server, 3);
    // Blocked first: what the kernel takes varies, what is queued then does not.
    for name in [1, 2] {
        let order = Order { name, threads: 1, persists: false, count: 20_000, bytes: 1000 };
        let tally = push(&server, order);
        assert!(tally.full > 0, "{tally:?}");
    }
    server.wait_event("worker-0", "memory.exhausted", "outbox");
    server.wait_status("/totals/closed_slow", |n| n >= 1);
    let order = Order { name: 3, threads: 1, persists: true, count: 100, bytes: 1000 };
    assert_eq!(push(&server, order).queued, 100, "there is room for others");
    for number in 0..100 {
        assert_eq!(check(&reader.receive().expect("pushed"), 1000), (0, number));
    }
}

#[test]
fn one_message_goes_to_many() {
    let server = start("push_all", "worker_processes = 1\n");
    let mut clients: Vec<Connection> = (0..50).map(|name| keep(&server, name)).collect();
    let tally = Tally::decode(&server.connect().call(ALL, b"to all").expect("pushed").body);
    assert_eq!(tally.queued, 50);
    for client in &mut clients {
        let frame = client.receive().expect("pushed");
        assert_eq!((frame.code, &*frame.body), (PUSHED, &b"to all"[..]));
    }
}

#[test]
fn pushes_to_the_own_connection_keep_their_place() {
    let server = start("push_place", "worker_processes = 1\n");
    let mut client = server.connect();
    for _ in 0..3 {
        client.send(MIXED, b"").expect("sent");
    }
    client.send(MIXED_FAIL, b"").expect("sent");
    for round in 0..3 {
        let bodies: Vec<_> = (0..5).map(|_| client.receive().expect("a frame").body).collect();
        assert_eq!(bodies.concat(), b"12345", "round {round}");
    }
    // The replies of the message that failed are taken back, its pushes are not.
    let bodies: Vec<_> = (0..3).map(|_| client.receive().expect("a frame").body).collect();
    assert_eq!(bodies.concat(), b"235");
    let frame = client.receive().expect("a frame");
    assert!(frame.as_error().expect("an error").is(ErrorNumber::HandlerFailed));
}

/// Thousands of pushes while the server stops: each that was accepted arrives.
#[test]
fn what_a_draining_worker_accepted_is_sent() {
    let mut server = start("push_drain", &small("64KiB", "slow_reader = \"drop-newest\"\n"));
    let mut target = keep(&server, 1);
    let mut pusher = server.connect();
    let order = Order { name: 1, threads: 2, persists: true, count: u32::MAX, bytes: 50 };
    pusher.send(PUSH, &order.encode()).expect("sent");
    let mut received = 0;
    while received < 1000 {
        check(&target.receive().expect("pushed"), 50);
        received += 1;
    }
    server.signal(Signal::SIGQUIT);
    loop {
        match target.receive() {
            Ok(frame) if frame.as_goodbye().is_some() => {}
            Ok(frame) => {
                check(&frame, 50);
                received += 1;
            }
            Err(error) => {
                assert!(matches!(error, ClientError::Closed), "{error}");
                break;
            }
        }
    }
    let tally = loop {
        let frame = pusher.receive().expect("its tally");
        if frame.code == PUSH {
            break Tally::decode(&frame.body);
        }
    };
    assert_eq!(tally.queued, received, "{tally:?}");
    assert_eq!(server.wait_exit().code(), Some(0));
}

/// Connections are reset while threads push to them: permits, gauges and accounts
/// come back, and nothing but the pushes of the living arrives.
#[test]
fn pushes_race_with_resets_and_nothing_is_left() {
    let server = start("push_resets", &small("64KiB", "slow_reader = \"drop-newest\"\n"));
    let mut other = server.connect();
    for round in 0..50 {
        let mut target = keep(&server, 1);
        let order = Order { name: 1, threads: 2, persists: true, count: u32::MAX, bytes: 500 };
        let mut pusher = server.connect();
        pusher.send(PUSH, &order.encode()).expect("sent");
        for _ in 0..round {
            check(&target.receive().expect("pushed"), 500);
        }
        // With input unread: a reset.
        drop(target);
        let tally = Tally::decode(&pusher.receive().expect("its tally").body);
        assert!(tally.closed + tally.expired == 2, "{tally:?}");
        assert_eq!(other.call(CODE_PING, b"").expect("served").code, CODE_PING);
    }
    drop(other);
    server.wait_status("/workers/0/connections", |n| n == 0);
    server.wait_status("/workers/0/outbox_bytes", |n| n == 0);
    let totals = &server.status_json()["totals"];
    let of = |name: &str| totals[name].as_u64().expect("a number");
    // Replies are sent too: one to each of 100 connections, and to each ping.
    let answered = 50 * 3;
    assert_eq!(of("messages_pushed") + answered, of("frames_sent") + of("messages_expired"));
}

#[test]
fn a_handle_closes_its_connection_behind_what_was_received() {
    let server = start("close", "worker_processes = 1\n");
    let (mut target, mut other) = (keep(&server, 1), server.connect());
    // One turn: a message that is handled before, and one that comes behind the end.
    for (code, body) in [(CODE_PING, &b""[..]), (CLOSE, b"\x01enough")] {
        target.send(code, body).expect("sent");
    }
    assert_eq!(target.receive().expect("answered").code, CODE_PING);
    assert_eq!(target.receive().expect("answered").code, CLOSE);
    let goodbye = target.receive().expect("a goodbye").as_goodbye().expect("a goodbye");
    assert!(goodbye.is(Goodbye::ByApplication), "{goodbye:?}");
    assert_eq!(&*goodbye.text, "enough");
    assert!(matches!(target.receive(), Err(ClientError::Closed)));
    // By a handler of another connection, while this one is idle, and once more.
    let mut target = keep(&server, 2);
    for _ in 0..2 {
        assert_eq!(other.call(CLOSE, b"\x02and you").expect("answered").code, CLOSE);
    }
    let goodbye = target.receive().expect("a goodbye").as_goodbye().expect("a goodbye");
    assert_eq!(&*goodbye.text, "and you");
    assert!(matches!(target.receive(), Err(ClientError::Closed)));
    drop(target);
    server.wait_status("/workers/0/connections", |n| n == 1);
    server.wait_event("worker-0", "conn.closed", "cause=closed_by_application");
    // And of one that is gone.
    assert_eq!(other.call(CLOSE, b"\x02gone").expect("answered").code, CLOSE);
}
