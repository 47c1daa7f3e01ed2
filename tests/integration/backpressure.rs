//! Peers that don't read: what they cost, and what the others notice of it.

use std::thread::Scope;

use chappe_client::{CODE_ECHO, CODE_PING, ClientError, ErrorNumber, Receiver, Sender};
use chappe_wire::encode;

use std::time::Duration;

use chappe_testkit::{Numbered, TestServer, pause, proc, small_buffers, wait_until};

/// Small buffers everywhere, one worker, so that everybody meets there.
const SMALL: &str = "worker_processes = 1
[inbox]
max_bytes = \"128KiB\"
[send]
outbox_max_bytes = \"128KiB\"
[timeouts]
frame = \"60s\"
[[listen]]
address = \"127.0.0.1:0\"
receive_buffer = 16384
send_buffer = 16384
";

/// Of the clients' kernel buffers. Much less, and a frame takes longer for the
/// kernel's timers than for the network.
const BUFFER: usize = 16 * 1024;

const BYTES: usize = 65_527;

fn message(stream: u32, number: u32) -> Numbered {
    Numbered { stream, number, bytes: BYTES }
}

/// Sends until it is told to stop by the end of the socket, or has sent all.
fn send_in_background<'scope>(
    scope: &'scope Scope<'scope, '_>,
    mut sender: Sender,
    stream: u32,
    count: u32,
) {
    scope.spawn(move || {
        sender.set_timeout(None).expect("no time-out");
        for number in 0..count {
            if sender.send(CODE_ECHO, &message(stream, number).body()).is_err() {
                return;
            }
        }
        sender.shutdown_write().expect("our end is open");
    });
}

fn assert_echoes(receiver: &mut Receiver, stream: u32, count: u32) {
    for number in 0..count {
        let reply = receiver.receive().expect("a reply");
        assert_eq!(reply.code, CODE_ECHO, "reply {number}: {:?}", reply.as_error());
        assert!(reply.body == message(stream, number).body(), "reply {number} changed");
    }
    let end = receiver.receive();
    assert!(matches!(end, Err(ClientError::Closed)), "{end:?}");
}

#[test]
fn a_peer_that_never_reads_costs_little_and_hurts_nobody() {
    const PEERS: u32 = 8;
    const COUNT: u32 = 40; // 2.5 MiB each: several times what all buffers hold
    let server = TestServer::start("never_reads", SMALL);
    let worker = server.worker_pids()[0];
    let mut witness = server.connect();
    witness.call(CODE_PING, b"").unwrap();
    let resident_before = proc::resident_bytes(worker);
    std::thread::scope(|scope| {
        let mut receivers = Vec::new();
        for stream in 0..PEERS {
            let (sender, receiver) = small_buffers(server.address, BUFFER).split();
            send_in_background(scope, sender, stream, COUNT);
            receivers.push(receiver);
        }
        // Each is paused: its outbox is full and its socket too.
        server.wait_status("/totals/reads_paused", |paused| paused >= u64::from(PEERS));
        let frames_received = || server.total("frames_received");
        let mut last = frames_received();
        wait_until("the server stops taking in what it can't get rid of", || {
            std::mem::replace(&mut last, frames_received()) == last
        });

        for _ in 0..20 {
            assert_eq!(witness.call(CODE_ECHO, b"at once").unwrap().body, "at once");
        }
        let taken = server.total("bytes_received");
        assert!(taken < u64::from(PEERS * COUNT) * BYTES as u64, "{taken} bytes were all of it");
        // Inbox, outbox, one frame on its way each, and what the allocator rounds.
        let grown = proc::resident_bytes(worker).saturating_sub(resident_before);
        assert!(grown < u64::from(PEERS) * 1024 * 1024, "{grown} bytes");

        // Late is not lost.
        std::thread::scope(|readers| {
            for (stream, mut receiver) in (0..).zip(receivers) {
                readers.spawn(move || assert_echoes(&mut receiver, stream, COUNT));
            }
        });
    });
    assert_eq!(server.worker_pids(), [worker]);
}

#[test]
fn a_slow_reader_gets_everything_in_order() {
    let server = TestServer::start("slow_reader", SMALL);
    let (sender, mut receiver) = small_buffers(server.address, BUFFER).split();
    std::thread::scope(|scope| {
        send_in_background(scope, sender, 7, 60);
        assert_echoes(&mut receiver, 7, 60);
    });
    let status = server.status_json();
    assert!(status["totals"]["sends_blocked"].as_u64() > Some(0), "{status:#}");
}

/// Begun frames that never end may fill the inbox total; clients that send whole messages
/// are served all the same, and the memory comes back.
#[test]
fn begun_frames_do_not_stop_the_others() {
    let toml = "worker_processes = 1\n[inbox]\nmax_bytes = \"64KiB\"\n\
                total_max_bytes = \"1MiB\"\n[timeouts]\nframe = \"1h\"\n";
    let server = TestServer::start("begun_frames", toml);
    let begun = encode(CODE_ECHO, &vec![7; 60_000]).expect("fits");
    // Less than the kernel's own buffers: sent at once, whether it is read or not.
    let mut hogs: Vec<_> = (0..100).map(|_| server.connect()).collect();
    for hog in &mut hogs {
        hog.send_bytes(&begun[..begun.len() - 1]).expect("sent");
    }
    server.wait_status("/totals/reads_paused", |paused| paused > 0);
    let mut client = server.connect();
    for _ in 0..20 {
        assert_eq!(client.call(CODE_PING, b"").expect("served").code, CODE_PING);
    }
    // A larger message gets its memory once the hogs lose theirs. Until then it may
    // be told, like them, that there is none.
    let body = vec![9; 50_000];
    wait_until("a large message is served", || {
        let reply = server.connect().call(CODE_ECHO, &body).expect("a word");
        let refused = reply.as_error().is_some_and(|error| error.is(ErrorNumber::FrameTimeout));
        assert!(refused || reply.body == body);
        !refused
    });
}

#[test]
fn small_messages_are_pushed_back_too() {
    // Few messages allowed in the inbox, and replies much bigger than requests
    // never: an echo is as big as what it answers, so it is the count that counts.
    let toml = SMALL.replace("[inbox]", "[inbox]\nmax_messages = 4");
    let server = TestServer::start("small_messages_pushed_back", &toml);
    let (mut sender, mut receiver) = small_buffers(server.address, BUFFER).split();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..20_000_u32 {
                sender.queue(CODE_ECHO, &number.to_be_bytes()).unwrap();
            }
            sender.flush().unwrap();
        });
        for number in 0..20_000_u32 {
            assert_eq!(receiver.receive().unwrap().body, number.to_be_bytes()[..]);
        }
    });
}

#[test]
fn a_peer_blocked_for_too_long_is_closed_and_counted() {
    let toml = SMALL.replace("[send]", "[send]\noutbox_max_age = \"500ms\"");
    let server = TestServer::start("outbox_max_age", &toml);
    let mut witness = server.connect();
    witness.call(CODE_PING, b"").unwrap();
    std::thread::scope(|scope| {
        let (sender, receiver) = small_buffers(server.address, BUFFER).split();
        send_in_background(scope, sender, 0, 10_000);
        server.wait_status("/totals/closed_slow", |closed| closed == 1);
        wait_until("only the witness is left", || server.connections() == 1);
        drop(receiver);
    });
    assert_eq!(witness.call(CODE_ECHO, b"unhurt").unwrap().body, "unhurt");
    // What was queued for it is a loss, and losses are counted.
    server.wait_status("/totals/messages_expired", |expired| expired > 0);
}

#[test]
fn a_reader_that_makes_progress_is_not_too_slow() {
    let toml = SMALL.replace("[send]", "[send]\noutbox_max_age = \"1s\"");
    let server = TestServer::start("progress_is_enough", &toml);
    let (sender, mut receiver) = small_buffers(server.address, BUFFER).split();
    std::thread::scope(|scope| {
        send_in_background(scope, sender, 3, 24);
        for number in 0..24 {
            // All of it takes several times the limit; no pause comes near it.
            pause(Duration::from_millis(150), "the reader is slow, and reads on");
            let reply = receiver.receive().unwrap();
            assert!(reply.body == message(3, number).body(), "reply {number}");
        }
    });
    assert_eq!(server.total("closed_slow"), 0);
}

#[test]
fn error_frames_are_pushed_back_like_replies() {
    // An error is longer than the empty frame that caused it: a peer that never
    // reads must not be able to fill memory with them.
    let server = TestServer::start("errors_pushed_back", SMALL);
    let worker = server.worker_pids()[0];
    let (mut sender, mut receiver) = small_buffers(server.address, BUFFER).split();
    sender.set_timeout(None).unwrap();
    let before = proc::resident_bytes(worker);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..50_000 {
                sender.queue(999, b"").unwrap();
            }
            sender.flush().unwrap();
        });
        server.wait_status("/totals/reads_paused", |paused| paused > 0);
        let grown = proc::resident_bytes(worker).saturating_sub(before);
        assert!(grown < 8 * 1024 * 1024, "{grown} bytes");
        for number in 0..50_000 {
            let error = receiver.receive().unwrap().as_error().expect("an error");
            assert!(error.is(ErrorNumber::UnknownCode), "reply {number}: {error}");
        }
    });
}

/// What a storm has left free in the allocator goes back to the system.
#[test]
fn memory_comes_back_after_a_storm() {
    const PEERS: u32 = 48;
    let toml = "worker_processes = 1\n[inbox]\nmax_bytes = \"1MiB\"\n";
    let server = TestServer::start("memory_comes_back", toml);
    let worker = server.worker_pids()[0];
    let mut witness = server.connect();
    witness.call(CODE_PING, b"").unwrap();
    let before = proc::resident_bytes(worker);
    std::thread::scope(|scope| {
        let mut receivers = Vec::new();
        for stream in 0..PEERS {
            let (sender, receiver) = small_buffers(server.address, BUFFER).split();
            send_in_background(scope, sender, stream, 200);
            receivers.push(receiver);
        }
        server.wait_status("/workers/0/outbox_bytes", |bytes| bytes > 40 << 20);
        let most = proc::resident_bytes(worker);
        assert!(most > before + (40 << 20), "{most} after {before}");
        for receiver in &receivers {
            receiver.shutdown();
        }
    });
    server.wait_status("/workers/0/connections", |connections| connections == 1);
    wait_until("the memory is the system's again", || {
        proc::resident_bytes(worker) < before + (8 << 20)
    });
    assert_eq!(witness.call(CODE_PING, b"").unwrap().code, CODE_PING);
}
