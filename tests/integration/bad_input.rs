//! Input that breaks the protocol, or a limit: what the peer is told, in which
//! place, and whether the connection stays.

use chappe_client::{
    BODY_BYTES_MAX, CODE_ECHO, CODE_PING, ClientError, Connection, ErrorNumber, Goodbye,
};
use chappe_wire::{Header, encode};

use std::time::{Duration, Instant};

use chappe_testkit::{DEADLINE, TestServer, drain, pause, receive_error, wait_until};

/// A header of this length, with nothing behind it.
fn header(length: u16) -> [u8; 8] {
    Header { length, code: CODE_ECHO, crc32: 0 }.to_bytes()
}

fn echo(body: &[u8]) -> bytes::Bytes {
    encode(CODE_ECHO, body).expect("it fits a frame")
}

/// The connection ends cleanly: not by a reset, not inside a frame.
#[track_caller]
fn assert_closed(client: &mut Connection) {
    let end = client.receive();
    assert!(matches!(end, Err(ClientError::Closed)), "{end:?}");
}

#[track_caller]
fn receive_goodbye(client: &mut Connection, reason: Goodbye) {
    let frame = client.receive().expect("a goodbye");
    let goodbye = frame.as_goodbye().unwrap_or_else(|| panic!("no goodbye: {frame:?}"));
    assert!(goodbye.is(reason), "{goodbye} instead of {reason:?}");
}

#[test]
fn a_length_without_room_for_the_header_closes() {
    let server = TestServer::start("length_too_small", "");
    for length in 0..=7 {
        let mut client = server.connect();
        client.send_bytes(&echo(b"before")).unwrap();
        client.send_bytes(&header(length)).unwrap();
        assert_eq!(client.receive().unwrap().body, "before", "length {length}");
        receive_error(&mut client, ErrorNumber::BadLength);
        assert_closed(&mut client);
    }
    server.wait_status("/totals/protocol_errors", |errors| errors == 8);
}

#[test]
fn a_frame_may_be_as_long_as_configured_and_no_longer() {
    let server = TestServer::start("length_too_big", "[frame]\nmax_bytes = 1000\n");
    let mut client = server.connect();
    assert_eq!(client.call(CODE_ECHO, &[7; 992]).unwrap().body.len(), 992);
    client.send_bytes(&header(1001)).unwrap();
    receive_error(&mut client, ErrorNumber::BadLength);
    assert_closed(&mut client);

    // The largest that the length can say is refused as soon as it is said.
    let mut client = server.connect();
    client.send_bytes(&[0xff, 0xff]).unwrap();
    receive_error(&mut client, ErrorNumber::BadLength);
    assert_closed(&mut client);
}

#[test]
fn a_bad_checksum_closes_after_the_error() {
    let server = TestServer::start("bad_checksum", "");
    let mut client = server.connect();
    let mut damaged = echo(b"damaged").to_vec();
    damaged[10] ^= 1;
    client.send_bytes(&[&echo(b"before"), &damaged[..], &echo(b"after")].concat()).unwrap();
    assert_eq!(client.receive().unwrap().body, "before");
    let error = receive_error(&mut client, ErrorNumber::BadChecksum);
    assert_eq!(error.caused_by, Some(CODE_ECHO));
    // What came behind it is not handled any more.
    assert_closed(&mut client);
}

#[test]
fn an_empty_body_has_checksum_zero() {
    let server = TestServer::start("empty_body_checksum", "");
    let mut client = server.connect();
    client.send_bytes(&Header { length: 8, code: CODE_PING, crc32: 1 }.to_bytes()).unwrap();
    receive_error(&mut client, ErrorNumber::BadChecksum);
    assert_closed(&mut client);
}

#[test]
fn errors_stand_in_the_order_of_replies() {
    let server = TestServer::start("errors_in_order", "");
    let mut client = server.connect();
    for number in 0..300_u32 {
        client.send(CODE_ECHO, &number.to_be_bytes()).unwrap();
        client.send(100, &number.to_be_bytes()).unwrap();
    }
    for number in 0..300_u32 {
        assert_eq!(client.receive().unwrap().body, number.to_be_bytes()[..]);
        let error = receive_error(&mut client, ErrorNumber::UnknownCode);
        assert_eq!(error.caused_by, Some(100));
    }
}

#[test]
fn too_many_messages_are_refused_one_by_one() {
    let toml = "[limits]\nmessages_per_second = 5\nmessages_burst = 5\n";
    let server = TestServer::start("too_many_messages", toml);
    let mut client = server.connect();
    client.send_bytes(&echo(b"x").repeat(100)).unwrap();
    let mut refused = 0;
    for number in 0..100 {
        let frame = client.receive().unwrap();
        match frame.as_error() {
            Some(error) => {
                assert!(error.is(ErrorNumber::TooFast), "{error}");
                assert_eq!(error.caused_by, Some(CODE_ECHO));
                refused += 1;
            }
            None => assert_eq!(frame.body, "x", "reply {number}"),
        }
        // The burst itself is never refused.
        assert!(refused == 0 || number >= 5, "reply {number}");
    }
    assert!(refused > 0);
    // It stays open, and in time the bucket has something again.
    let answered = chappe_testkit::wait_for(|| {
        let reply = client.call(CODE_ECHO, b"again").unwrap();
        reply.as_error().is_none().then_some(reply)
    });
    assert_eq!(answered.expect("an answer").body, "again");
    // How the frames were spread over reads must not matter: what was refused was counted.
    server.wait_status("/totals/frames_rate_limited", |frames| frames >= refused);
}

#[test]
fn a_peer_that_stays_too_fast_for_ten_seconds_is_closed() {
    let server = TestServer::start("stays_too_fast", "[limits]\nmessages_per_second = 1\n");
    let mut client = server.connect();
    let start = Instant::now();
    // No quiet second in between: the next are sent when the last are refused. Many in
    // one piece, so that the end comes in the middle of one.
    let many = encode(CODE_ECHO, b"x").unwrap().repeat(50);
    let end = loop {
        let answered = client.send_bytes(&many);
        let answered = answered.and_then(|()| (0..50).try_for_each(|_| client.receive().map(drop)));
        match answered {
            // A machine that lets this test wait for a second starts the ten over.
            Ok(()) => assert!(start.elapsed() < 5 * DEADLINE, "never closed"),
            Err(error) => break error,
        }
    };
    assert!(end.is_disconnect(), "{end}");
    assert!(start.elapsed() >= Duration::from_secs(10), "closed after {:?}", start.elapsed());
    drop(client);
    wait_until("each frame is answered or counted as lost", || {
        let status = server.status_json();
        let of = |name: &str| status["totals"][name].as_u64().unwrap();
        of("frames_received") == of("frames_sent") + of("messages_expired") + of("messages_dropped")
    });
}

#[test]
fn a_connection_without_a_permit_hears_busy() {
    let server = TestServer::start("busy", "max_connections = 1\n");
    let mut first = server.connect();
    assert_eq!(first.call(CODE_ECHO, b"mine").unwrap().body, "mine");
    for _ in 0..3 {
        let mut second = server.connect();
        // A client that speaks at once hears it all the same: no reset.
        let _ = second.send(CODE_ECHO, b"and me?");
        let error = receive_error(&mut second, ErrorNumber::Busy);
        assert_eq!(error.caused_by, None);
        assert_closed(&mut second);
    }
    assert_eq!(first.call(CODE_ECHO, b"still mine").unwrap().body, "still mine");
    drop(first);
    server.wait_status("/semaphores/connection_permits", |permits| permits == 1);
    assert_eq!(server.connect().call(CODE_ECHO, b"now me").unwrap().body, "now me");
    server.wait_status("/totals/connections_refused", |refused| refused == 3);
}

#[test]
fn a_begun_frame_must_be_complete_in_time() {
    let server = TestServer::start("frame_timeout", "[timeouts]\nframe = \"300ms\"\n");
    for begun in [1, 7, 8, 12] {
        let mut client = server.connect();
        client.send_bytes(&[&echo(b"before"), &echo(b"begun")[..begun]].concat()).unwrap();
        assert_eq!(client.receive().unwrap().body, "before");
        receive_error(&mut client, ErrorNumber::FrameTimeout);
        assert_closed(&mut client);
    }
}

#[test]
fn bytes_that_trickle_do_not_stretch_the_frame_time_out() {
    let server = TestServer::start("frame_timeout_trickle", "[timeouts]\nframe = \"300ms\"\n");
    let client = server.connect();
    let (mut sender, mut receiver) = client.split();
    let frame = echo(&[7; BODY_BYTES_MAX]);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Until the server has closed: then a write fails.
            for byte in frame.chunks(1) {
                if sender.send_bytes(byte).is_err() {
                    return;
                }
                pause(Duration::from_millis(5), "the bytes come slowly, and keep coming");
            }
        });
        let frame = receiver.receive().expect("an error frame");
        assert!(frame.as_error().expect("an error").is(ErrorNumber::FrameTimeout));
        receiver.shutdown();
    });
}

#[test]
fn the_first_frame_must_come_in_time() {
    let server = TestServer::start("handshake_timeout", "[timeouts]\nhandshake = \"300ms\"\n");
    let mut silent = server.connect();
    let mut half = server.connect();
    half.send_bytes(&echo(b"half")[..5]).unwrap();
    let mut spoken = server.connect();
    spoken.call(CODE_PING, b"").unwrap();
    for client in [&mut silent, &mut half] {
        receive_goodbye(client, Goodbye::HandshakeTimeout);
        assert_closed(client);
    }
    // It has said its first frame, so this clock is over for it.
    assert_eq!(spoken.call(CODE_ECHO, b"here").unwrap().body, "here");
}

#[test]
fn a_silent_connection_is_idle() {
    let server = TestServer::start("idle_timeout", "[timeouts]\nidle = \"300ms\"\n");
    let mut client = server.connect();
    client.call(CODE_PING, b"").unwrap();
    receive_goodbye(&mut client, Goodbye::Idle);
    assert_closed(&mut client);
    server.wait_status("/totals/closed_idle", |idle| idle == 1);
}

#[test]
fn junk_closes_its_own_connection_and_no_other() {
    let server = TestServer::start("junk", "[timeouts]\nframe = \"300ms\"\nlinger = \"300ms\"\n");
    let workers = server.worker_pids();
    let mut witness = server.connect();
    for seed in 0..64 {
        let junk = chappe_testkit::Numbered { stream: 99, number: seed, bytes: 5000 }.body();
        let mut client = server.connect();
        // It may be refused while it is still being sent.
        let _ = client.send_bytes(&junk);
        let _ = client.shutdown_write();
        let (frames, _) = drain(&mut client);
        let last = frames.last().unwrap_or_else(|| panic!("seed {seed}: closed without a word"));
        assert!(last.as_error().is_some(), "seed {seed}: {last:?}");
    }
    let mut http = server.connect();
    http.send_bytes(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let (frames, _) = drain(&mut http);
    // "GE" is a length of 18245: a frame that never completes.
    assert!(frames[0].as_error().unwrap().is(ErrorNumber::FrameTimeout), "{frames:?}");

    assert_eq!(witness.call(CODE_ECHO, b"unhurt").unwrap().body, "unhurt");
    assert_eq!(server.worker_pids(), workers);
}

#[test]
fn half_a_frame_and_a_fin_is_an_error_after_the_replies() {
    let server = TestServer::start("half_frame_fin", "");
    for cut in [1, 7, 8, 12] {
        let mut client = server.connect();
        client
            .send_bytes(&[&echo(b"one"), &echo(b"two"), &echo(b"three")[..cut]].concat())
            .unwrap();
        client.shutdown_write().unwrap();
        assert_eq!(client.receive().unwrap().body, "one");
        assert_eq!(client.receive().unwrap().body, "two");
        receive_error(&mut client, ErrorNumber::FrameTimeout);
        assert_closed(&mut client);
    }
}

/// close(2) with unread input sends a reset, and a reset destroys what was
/// queued. The server must read on until everything has arrived.
#[test]
fn replies_before_an_error_arrive_although_the_peer_had_sent_more() {
    let server = TestServer::start("linger", "");
    for _ in 0..10 {
        let client = server.connect();
        let (mut sender, mut receiver) = client.split();
        let mut stream: Vec<u8> = (0..200_u32).flat_map(|n| echo(&n.to_be_bytes())).collect();
        stream.extend(header(3));
        // Less than what the server reads and discards, and more than it has
        // read when it finds the error.
        stream.extend(vec![0xAA; 900_000]);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                sender.send_bytes(&stream).unwrap();
                sender.shutdown_write().unwrap();
            });
            for number in 0..200_u32 {
                assert_eq!(receiver.receive().unwrap().body, number.to_be_bytes()[..]);
            }
            let error = receiver.receive().unwrap().as_error().unwrap();
            assert!(error.is(ErrorNumber::BadLength), "{error}");
            let end = receiver.receive();
            assert!(matches!(end, Err(ClientError::Closed)), "{end:?}");
        });
    }
}
