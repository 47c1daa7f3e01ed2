//! What the classic design got wrong, a sentence and a test for each, as far as it
//! concerns sending and closing. That design keeps one list of all messages for all
//! clients, which one send thread walks; it closes sockets from any thread, and a
//! flag for each connection says whether the send thread or the event loop writes.
//!
//! Faults that are a matter of nanoseconds are proved absent by the models of
//! `scripts/loom`; here the real server gets into the same situation, as often as time
//! allows. Where a comment names a fault, it is planted by the file of that name in
//! crates/engine/tests/faults, and found by a model.

use std::io::{self, IoSlice};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use chappe_client::{
    BODY_BYTES_MAX, CODE_ECHO, CODE_PING, ClientError, Connection, ErrorNumber, Sender,
};
use chappe_engine::sync::Semaphore;
use chappe_engine::{Engine, Entry, Limits, Mailbox, Names, Peer, SlowReader, Socket};
use chappe_shm::{SharedCounters, ThreadCounters};
use chappe_sys::clock::Moment;
use chappe_wire::{Header, encode};

use chappe_testkit::{
    DEADLINE, Numbered, TestServer, drain, receive_error, reset_on_close, small_buffers, wait_for,
    wait_until, while_stopped,
};

/// One worker, and sockets that are full soon.
const SMALL: &str = "worker_processes = 1
[[listen]]
address = \"127.0.0.1:0\"
receive_buffer = 16384
send_buffer = 16384
";

/// Much less, and a frame takes longer for the kernel's timers than for the network.
const BUFFER: usize = 16 * 1024;

/// Two such replies are more than these sockets hold.
const LARGE: usize = 60_000;

fn ping() -> bytes::Bytes {
    encode(CODE_PING, b"").expect("it fits")
}

fn message(stream: u32, number: u32) -> Numbered {
    Numbered { stream, number, bytes: LARGE }
}

fn send_numbered(sender: &mut Sender, stream: u32, count: u32) {
    for number in 0..count {
        sender.send(CODE_ECHO, &message(stream, number).body()).expect("sent");
    }
}

/// A peer whose socket is full: it is owed `replies` large replies and reads none.
#[track_caller]
fn blocked(server: &TestServer, stream: u32, replies: u32) -> Connection {
    let before = server.total("sends_blocked");
    let mut client = small_buffers(server.address, BUFFER);
    for number in 0..replies {
        client.send(CODE_ECHO, &message(stream, number).body()).expect("sent");
    }
    server.wait_status("/totals/sends_blocked", |now| now > before);
    client
}

/// A peer that went away with replies to come killed the classic design's worker: the
/// second send after a reset raises SIGPIPE, and nobody had ignored it. Reset after a
/// FIN, even the first one does.
#[test]
fn a_reset_with_replies_to_come_kills_no_worker() {
    let server = TestServer::start("regression_sigpipe", "worker_processes = 1\n");
    let workers = server.worker_pids();
    let burst = ping().repeat(3000);
    for round in 0..300 {
        let mut client = server.connect();
        reset_on_close(&client);
        client.send_bytes(&burst).unwrap();
        // It is in the middle of replying, from round to round further on.
        for _ in 0..=round {
            client.receive().expect("a reply");
        }
        client.shutdown_write().unwrap();
    }
    server.wait_status("/totals/connections_closed", |closed| closed == 300);
    assert_eq!(server.worker_pids(), workers);
    assert_eq!(server.total("workers_died"), 0);
    server.connect().call(CODE_PING, b"").unwrap();
}

/// The classic design took a FIN for the end of everything: of 50 replies the peer got
/// as many as had left by chance.
#[test]
fn a_peer_that_has_shut_its_sending_side_gets_every_reply() {
    let server = TestServer::start("regression_half_close", "worker_processes = 1\n");
    for _ in 0..20 {
        let mut client = server.connect();
        while_stopped(server.worker_pids()[0], || {
            client.send_bytes(&ping().repeat(50)).unwrap();
            client.shutdown_write().unwrap();
        });
        let (replies, end) = drain(&mut client);
        assert_eq!(replies.len(), 50, "{end}");
        assert!(matches!(end, ClientError::Closed), "{end:?}");
    }
}

/// The classic send thread walked past the messages of everybody who does not read, at
/// each wake-up: 150 such peers made a ping fifty times slower. Here they cost not one
/// call, so this counts calls and not time.
#[test]
fn peers_that_do_not_read_cost_the_others_no_work() {
    const PEERS: u32 = 50;
    const PINGS: u64 = 300;
    let server = TestServer::start("regression_slow_tax", SMALL);
    let peers: Vec<_> = (0..PEERS)
        .map(|stream| {
            let (mut sender, receiver) = small_buffers(server.address, BUFFER).split();
            send_numbered(&mut sender, stream, 2);
            (sender, receiver)
        })
        .collect();
    server.wait_status("/totals/sends_blocked", |blocked| blocked >= u64::from(PEERS));
    let mut witness = server.connect();
    witness.call(CODE_PING, b"").unwrap();
    let before = server.status_json();
    for _ in 0..PINGS {
        witness.call(CODE_PING, b"").unwrap();
    }
    let after = server.status_json();
    let grown = |name: &str| {
        let of = |status: &serde_json::Value| status["totals"][name].as_u64().unwrap();
        of(&after) - of(&before)
    };
    // A window that the kernel still moves may cost each of the others a call or two;
    // the mistake would cost one each for each ping.
    let most = PINGS + 2 * u64::from(PEERS);
    assert!((PINGS..=most).contains(&grown("send_calls")), "{} calls", grown("send_calls"));
    // None at all where the event loop answers by itself.
    assert!(grown("semaphore_posts") <= most, "{} posts", grown("semaphore_posts"));
    drop(peers);
}

/// The classic design cut a client that had 400 messages queued, however small and however
/// fast it read them.
#[test]
fn many_small_messages_at_once_are_no_offence() {
    const MANY: usize = 5000;
    let server = TestServer::start("regression_message_count", "worker_processes = 1\n");
    let mut client = server.connect();
    // Nothing is read before all is sent.
    client.send_bytes(&ping().repeat(MANY)).unwrap();
    server.wait_status("/totals/frames_received", |frames| frames == MANY as u64);
    for number in 0..MANY {
        assert_eq!(client.receive().expect("a reply").code, CODE_PING, "reply {number}");
    }
}

/// And it let those have 400 messages of 29 KB. What a peer is owed is bounded in bytes:
/// the limit, and what one turn of its handler may bring beyond it.
#[test]
fn what_a_peer_is_owed_is_bounded_in_bytes() {
    const LIMIT: u64 = 128 * 1024;
    let toml = SMALL.replace("[[listen]]", "[send]\noutbox_max_bytes = \"128KiB\"\n[[listen]]");
    let server = TestServer::start("regression_bytes", &toml);
    let (mut sender, receiver) = small_buffers(server.address, BUFFER).split();
    let queued = std::thread::scope(|scope| {
        scope.spawn(move || {
            sender.set_timeout(None).unwrap();
            // Until the other half is shut down.
            while sender.send(CODE_ECHO, &[7; 29_000]).is_ok() {}
        });
        server.wait_status("/totals/reads_paused", |paused| paused > 0);
        let frames = || server.total("frames_received");
        let mut last = frames();
        let rests = wait_for(|| (std::mem::replace(&mut last, frames()) == last).then_some(()));
        let rows = server.run(&["connections", "--json"]).stdout;
        receiver.shutdown();
        rests.expect("the server takes no more");
        let row: serde_json::Value = serde_json::from_str(&rows).expect("one connection");
        row["queued_bytes"].as_u64().unwrap()
    });
    // It is handled again from half the limit on.
    assert!((LIMIT / 2..LIMIT + 128 * 1024).contains(&queued), "{queued}");
}

/// The classic design threw a header with a bad length away and kept the connection: the
/// body behind it was then read as headers, and whatever it held was carried out.
#[test]
fn a_bad_length_ends_the_connection_and_its_body_is_no_header() {
    let server = TestServer::start("regression_desync", "[frame]\nmax_bytes = 1000\n");
    for length in [0, 7, 1001, u16::MAX] {
        let mut client = server.connect();
        let header = Header { length, code: CODE_ECHO, crc32: 0 }.to_bytes();
        client.send_bytes(&[&header[..], &ping().repeat(20)].concat()).unwrap();
        receive_error(&mut client, ErrorNumber::BadLength);
        let end = client.receive();
        assert!(matches!(end, Err(ClientError::Closed)), "length {length}: {end:?}");
    }
    assert_eq!(server.total("frames_received"), 0);
}

/// In one form of the classic design the event loop went on with the rest of a message
/// from the wrong pointer: other bytes, of other memory, went out in its place.
#[test]
fn a_half_sent_reply_goes_on_where_it_stopped() {
    const COUNT: u32 = 8;
    let server = TestServer::start("regression_offset", SMALL);
    let mut client = blocked(&server, 7, COUNT);
    for number in 0..COUNT {
        let reply = client.receive().expect("a reply");
        assert!(reply.body == message(7, number).body(), "reply {number} changed");
    }
    assert!(server.total("partial_sends") > 0, "no reply was sent in parts");
}

/// The classic event loop posted before it took the flag back: the send thread woke, saw
/// the flag, went to sleep, and the next message lay there until somebody sent another.
/// The models are the proof (fault `settle_without_look`), and the next test has the one
/// order that matters; here nothing further is ever sent, so a reply that was left behind
/// never comes.
#[test]
fn the_last_reply_after_a_full_socket_needs_no_further_traffic() {
    const SMALL_ONES: usize = 300;
    let server = TestServer::start("regression_lost_wake_up", SMALL);
    for round in 0..10 {
        let (mut sender, mut receiver) = small_buffers(server.address, BUFFER).split();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                send_numbered(&mut sender, round, 3);
                // They come while the event loop writes the rest of the large ones.
                for _ in 0..SMALL_ONES {
                    sender.send_bytes(&ping()).unwrap();
                }
            });
            for number in 0..3 {
                assert!(receiver.receive().expect("a reply").body == message(round, number).body());
            }
            for number in 0..SMALL_ONES {
                let reply = receiver.receive();
                assert!(reply.is_ok(), "round {round}, small reply {number}: {reply:?}");
            }
        });
    }
    assert!(server.total("sends_blocked") >= 10, "no socket was full");
}

/// A socket in whose send the kernel stays until the test says how many bytes it takes.
#[derive(Debug)]
struct SlowSocket {
    entered: mpsc::Sender<()>,
    taken: Mutex<mpsc::Receiver<usize>>,
}

impl Socket for SlowSocket {
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.entered.send(()).expect("the test waits");
        // An error means that the test has failed and gone.
        let taken = self.taken.lock().expect("no panic under it").recv().unwrap_or(usize::MAX);
        Ok(taken.min(slices.iter().map(|slice| slice.len()).sum()))
    }
}

fn a_message() -> Entry {
    Entry::new((b"message"[..].into(), 1))
}

/// An engine without a server around it, and its send thread.
fn engine() -> (Arc<Engine>, JoinHandle<()>) {
    let permits = Semaphore::from(chappe_sys::Semaphore::new(0).expect("a semaphore"));
    let limits = Limits {
        inbox_messages_max: 1,
        inbox_bytes_max: 1,
        inbox_total_bytes_max: 1,
        outbox_bytes_max: 1 << 20,
        outbox_total_bytes_max: 1 << 20,
        slow_reader: SlowReader::DropNewest,
        deferred_max: 1,
    };
    let engine = Engine::new(&limits, permits, Vec::new(), SharedCounters::detached());
    let engine = Arc::new(engine.expect("an eventfd"));
    let thread = {
        let engine = Arc::clone(&engine);
        std::thread::spawn(move || engine.run_send_thread(&ThreadCounters::detached(), ()))
    };
    (engine, thread)
}

/// A connection with such a socket, and what tells the socket to go on.
fn slow_mailbox(
    token: u64,
    engine: &Arc<Engine>,
    entered: &mpsc::Sender<()>,
) -> (Arc<Mailbox>, mpsc::Sender<usize>) {
    let (permission, taken) = mpsc::channel();
    let socket = SlowSocket { entered: entered.clone(), taken: Mutex::new(taken) };
    let connected_at = Moment::now();
    let names = Names { id: token, token, peer: Peer::Unix, listener: 0, connected_at };
    (Arc::new(Mailbox::new(names, Arc::new(socket), Arc::clone(engine))), permission)
}

/// The moment in which the classic order loses: a message is queued while the event loop
/// is still inside the send that empties the socket's backlog.
#[test]
fn what_is_queued_while_the_loop_writes_is_posted_when_it_is_done() {
    let (engine, thread) = engine();
    let (entered, is_in_send) = mpsc::channel();
    let (mailbox, permission) = slow_mailbox(1, &engine, &entered);
    mailbox.push(a_message()).unwrap();
    is_in_send.recv_timeout(DEADLINE).expect("the send thread sends");
    permission.send(3).unwrap();
    wait_until("the socket is full", || mailbox.view().blocked.is_some());
    let event_loop = {
        let mailbox = Arc::clone(&mailbox);
        std::thread::spawn(move || mailbox.flush_blocked(&ThreadCounters::detached()))
    };
    is_in_send.recv_timeout(DEADLINE).expect("the event loop sends the rest");
    // The list is worked off in order: with this one, whatever was posted too early is gone.
    let (other, other_permission) = slow_mailbox(2, &engine, &entered);
    other.push(a_message()).unwrap();
    other_permission.send(usize::MAX).unwrap();
    is_in_send.recv_timeout(DEADLINE).expect("the send thread sends the other");
    mailbox.push(a_message()).unwrap();
    permission.send(usize::MAX).unwrap();
    let _ = event_loop.join().unwrap();
    let is_sent = is_in_send.recv_timeout(DEADLINE);
    permission.send(usize::MAX).unwrap();
    engine.stop();
    thread.join().unwrap();
    is_sent.expect("the send thread sends the second");
}

/// The classic send thread held the lock of its list over every send: all handlers that
/// had a reply stood still in the meantime. A system call takes as long as it takes, so
/// this test brings a socket of its own.
#[test]
fn replies_are_queued_while_a_socket_is_written() {
    let (engine, thread) = engine();
    let (entered, is_in_send) = mpsc::channel();
    let (slow, permission) = slow_mailbox(1, &engine, &entered);
    let (other, other_permission) = slow_mailbox(2, &engine, &entered);
    slow.push(a_message()).unwrap();
    is_in_send.recv_timeout(DEADLINE).expect("the send thread sends");
    let (queued, is_queued) = mpsc::channel();
    std::thread::spawn(move || {
        for mailbox in [slow, other] {
            mailbox.push(a_message()).unwrap();
        }
        let _ = queued.send(());
    });
    let outcome = is_queued.recv_timeout(Duration::from_secs(5));
    // Twice, and once for the other: whatever happened, the threads come to an end.
    for _ in 0..2 {
        let _ = permission.send(usize::MAX);
    }
    let _ = other_permission.send(usize::MAX);
    outcome.expect("nobody waits for a send");
    for _ in 0..2 {
        is_in_send.recv_timeout(DEADLINE).expect("both are sent");
    }
    engine.stop();
    thread.join().unwrap();
}

/// The classic semaphore was posted once a message, though one walk of the list sends
/// them all: the other permits were spent on walks for nothing. Here a connection is
/// posted once for each time that it gets something to send.
#[test]
fn a_connection_is_posted_once_however_much_it_is_sent() {
    const MANY: u64 = 2000;
    // The event loop's own replies cost no post at all.
    let toml = format!("{SMALL}[worker]\nfuse = false\n");
    let server = TestServer::start("regression_posts", &toml);
    let mut client = server.connect();
    while_stopped(server.worker_pids()[0], || {
        client.send_bytes(&ping().repeat(usize::try_from(MANY).unwrap())).unwrap();
    });
    for _ in 0..MANY {
        client.receive().expect("a reply");
    }
    // A turn of a handler thread looks at the clock after 16 messages, so it gets that many.
    let posts = server.total("semaphore_posts");
    assert!(posts <= MANY / 16 + 1, "{posts} posts");

    // A connection that waits for room is on no list: what is queued behind is no post.
    // Two large ones at least are handled: more than sockets can take.
    let mut client = blocked(&server, 1, 3);
    server.wait_status("/totals/frames_received", |frames| frames == MANY + 3);
    server.wait_status("/workers/0/outbox_bytes", |bytes| bytes > LARGE as u64 + 1000);
    let before = server.total("semaphore_posts");
    client.send_bytes(&ping().repeat(100)).unwrap();
    server.wait_status("/totals/frames_received", |frames| frames == MANY + 103);
    assert_eq!(server.total("semaphore_posts"), before);
    let replies: Vec<_> = (0..103).map(|_| client.receive().expect("a reply").code).collect();
    assert_eq!(replies.iter().filter(|code| **code == CODE_PING).count(), 100);
}

/// When a full socket had room and its peer's FIN came in the same event, the classic
/// design took the flag back twice, and the next message began inside the half-sent one.
#[test]
fn room_and_fin_in_one_event_tear_no_frame() {
    const COUNT: u32 = 3;
    let server = TestServer::start("regression_torn_frame", SMALL);
    for stream in 0..5 {
        let mut client = blocked(&server, stream, COUNT);
        let mut first = None;
        while_stopped(server.worker_pids()[0], || {
            // As much as there is of the first: the socket has room now.
            client.set_timeout(Some(Duration::from_millis(50))).unwrap();
            first = client.receive().ok();
            client.set_timeout(Some(DEADLINE)).unwrap();
            client.send_bytes(&ping()).unwrap();
            client.shutdown_write().unwrap();
        });
        for number in 0..COUNT {
            let reply = first.take().unwrap_or_else(|| client.receive().expect("a reply"));
            assert!(reply.body == message(stream, number).body(), "reply {number} changed");
        }
        assert_eq!(client.receive().expect("a reply").code, CODE_PING);
        let end = client.receive();
        assert!(matches!(end, Err(ClientError::Closed)), "{end:?}");
    }
}

/// After a failed send the classic design freed the message, kept the connection, and
/// left EPOLLOUT armed: the next event sent from freed memory.
#[test]
fn a_failed_send_ends_the_connection_and_its_messages_are_counted() {
    const ROUNDS: u64 = 20;
    let server = TestServer::start("regression_failed_send", SMALL);
    let workers = server.worker_pids();
    for stream in 0..ROUNDS {
        let client = blocked(&server, u32::try_from(stream).unwrap(), 3);
        reset_on_close(&client);
        drop(client);
    }
    server.wait_status("/totals/connections_closed", |closed| closed == ROUNDS);
    assert_eq!(server.connections(), 0);
    let totals = server.status_json()["totals"].clone();
    let lost = ["messages_expired", "messages_dropped", "frames_sent"];
    let lost: u64 = lost.iter().map(|name| totals[name].as_u64().unwrap()).sum();
    // A reset may come before the last of them is read.
    let received = totals["frames_received"].as_u64().unwrap();
    assert_eq!(lost, received, "{totals:#}");
    assert!(received >= ROUNDS, "{totals:#}");
    assert_eq!(server.worker_pids(), workers);
}

/// The other half of it: with EPOLLOUT left armed, a socket that has room wakes the event
/// loop as fast as it can turn.
#[test]
fn a_socket_that_has_drained_wakes_nobody() {
    let server = TestServer::start("regression_epollout", SMALL);
    let mut client = blocked(&server, 1, 3);
    for _ in 0..3 {
        client.receive().expect("a reply");
    }
    client.call(CODE_PING, b"").unwrap();
    let worker = server.worker_pids()[0];
    // Of a hundredth of a second each, in user mode and in the kernel.
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{worker}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11..=12].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>()
    };
    let uptime = || server.status_number("/workers/0/uptime_ms");
    let (ticks_before, start) = (ticks(), uptime());
    wait_until("a second of the worker's life", || uptime() >= start + 1000);
    let spent = ticks() - ticks_before;
    assert!(spent < 10, "{spent} ticks in a second in which nothing happened");
}

/// Several threads of the classic design closed descriptors, some twice, and its send
/// thread wrote to numbers that it had looked up before: a reply could go to the next
/// connection with the same number. Here the event loop alone closes, when no thread writes
/// any more (fault `closed_under_a_writer`), and the numbers are used again at once.
#[test]
fn a_reply_never_reaches_the_next_owner_of_a_descriptor() {
    let server = TestServer::start("regression_stranger", SMALL);
    let strange = encode(CODE_ECHO, &[0xAA; 1000]).unwrap().repeat(60);
    for round in 0..300_u32 {
        let mut gone = server.connect();
        reset_on_close(&gone);
        gone.send_bytes(&strange).unwrap();
        drop(gone);
        let mut next = server.connect();
        for number in 0..3 {
            let own = Numbered { stream: round, number, bytes: 100 }.body();
            let reply = next.call(CODE_ECHO, &own).expect("a reply");
            assert!(reply.body == own, "round {round}: {:02x?}", &reply.body[..8]);
        }
    }
    assert_eq!(server.total("workers_died"), 0);
}

/// The classic limit closed the connection under the lock of the list, and walked timers
/// and closed connections in that time; no thread could queue anything. Here a thread that
/// finds a limit exceeded only calls the event loop.
#[test]
fn closing_the_largest_holders_holds_nobody_up() {
    let toml = SMALL.replace(
        "[[listen]]",
        "[send]\noutbox_max_bytes = \"512KiB\"\noutbox_total_max_bytes = \"512KiB\"\n[[listen]]",
    );
    let server = TestServer::start("regression_close_under_lock", &toml);
    let mut witness = server.connect();
    let mut peers = Vec::new();
    for stream in 0..12 {
        let mut peer = small_buffers(server.address, BUFFER);
        // While the total is exhausted, who has replies to read is not read from.
        peer.set_timeout(Some(Duration::from_millis(500))).unwrap();
        let sends = (0..4).map(|number| peer.send(CODE_ECHO, &message(stream, number).body()));
        println!("sent by {stream}: {}", sends.take_while(Result::is_ok).count());
        peers.push(peer);
        witness.call(CODE_ECHO, b"unhurt").unwrap();
    }
    server.wait_status("/totals/closed_slow", |closed| closed > 0);
    witness.call(CODE_ECHO, b"unhurt").unwrap();
}

/// The classic handlers took messages from one queue, each thread the next one: two
/// messages of a client were answered in either order.
#[test]
fn replies_keep_the_order_of_requests_over_many_handler_threads() {
    const COUNT: u32 = 3000;
    let toml = "worker_processes = 1\n[worker]\nhandler_threads = 8\n";
    let server = TestServer::start("regression_order", toml);
    std::thread::scope(|scope| {
        for stream in 0..4 {
            let (mut sender, mut receiver) = server.connect().split();
            let body = move |number: u32| Numbered {
                stream,
                number,
                bytes: usize::try_from(number % 200).unwrap() + 8,
            };
            scope.spawn(move || {
                for number in 0..COUNT {
                    sender.send(CODE_ECHO, &body(number).body()).unwrap();
                }
            });
            scope.spawn(move || {
                for number in 0..COUNT {
                    let reply = receiver.receive().expect("a reply");
                    assert!(reply.body == body(number).body(), "reply {number} of {stream}");
                }
            });
        }
    });
}

/// And that queue had no end: a client that sent and did not read filled the memory.
#[test]
fn a_peer_that_does_not_read_cannot_send_without_end() {
    const FAR_TOO_MUCH: usize = 64 << 20;
    let server = TestServer::start("regression_no_backpressure", SMALL);
    let mut client = small_buffers(server.address, BUFFER);
    client.set_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut sent = 0;
    while sent < FAR_TOO_MUCH && client.send(CODE_ECHO, &[7; BODY_BYTES_MAX]).is_ok() {
        sent += BODY_BYTES_MAX;
    }
    assert!(sent < FAR_TOO_MUCH, "the server took everything");
    assert_eq!(server.total("protocol_errors"), 0);
}

/// A wrong checksum, an unknown code, a bad length: the classic design said nothing, and
/// its client waited for a reply that never came.
#[test]
fn a_peer_that_breaks_the_protocol_gets_an_error() {
    let server = TestServer::start("regression_silence", "worker_processes = 1\n");
    let mut damaged = encode(CODE_ECHO, b"damaged").unwrap().to_vec();
    damaged[9] ^= 1;
    let cases = [
        (encode(999, b"").unwrap().to_vec(), ErrorNumber::UnknownCode),
        (damaged, ErrorNumber::BadChecksum),
        (vec![0; 8], ErrorNumber::BadLength),
    ];
    for (bytes, number) in cases {
        let mut client = server.connect();
        client.send_bytes(&bytes).unwrap();
        receive_error(&mut client, number);
    }
}
