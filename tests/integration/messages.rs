//! Frames in, replies out: the stock codes, sizes, order and cuts.

use std::collections::HashMap;

use chappe_client::{
    BODY_BYTES_MAX, CODE_ECHO, CODE_PING, CODE_TIME, CODE_WHO, ErrorNumber, Frame,
};
use chappe_wire::encode;

use chappe_testkit::{Numbered, TestServer, receive_error};

#[test]
fn ping_is_answered_by_an_empty_ping() {
    let server = TestServer::start("ping_is_answered", "");
    let mut client = server.connect();
    let reply = client.call(CODE_PING, b"").unwrap();
    assert_eq!(reply, Frame { code: CODE_PING, body: "".into() });
    // A body is allowed and not sent back.
    assert_eq!(client.call(CODE_PING, b"ignored").unwrap(), reply);
}

#[test]
fn echo_returns_bodies_of_every_size() {
    let server = TestServer::start("echo_returns_bodies", "");
    let mut client = server.connect();
    for (number, bytes) in (0..).zip([0, 1, 63, 64, 65, 4096, BODY_BYTES_MAX]) {
        let body = Numbered { stream: 0, number, bytes }.body();
        let reply = client.call(CODE_ECHO, &body).unwrap();
        assert_eq!(reply.code, CODE_ECHO);
        assert!(reply.body == body, "the body of {bytes} bytes changed");
    }
}

#[test]
fn time_is_told_in_milliseconds() {
    let server = TestServer::start("time_is_told", "");
    let now = || {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        u64::try_from(since.as_millis()).unwrap()
    };
    let before = now();
    let reply = server.connect().call(CODE_TIME, b"").unwrap();
    let told = u64::from_be_bytes(reply.body.as_ref().try_into().expect("8 bytes"));
    assert_eq!(reply.code, CODE_TIME);
    assert!((before..=now()).contains(&told), "{told}");
}

#[test]
fn who_tells_worker_and_connection() {
    let server = TestServer::start("who_tells_worker", "");
    let workers = server.worker_pids();
    let mut ids = Vec::new();
    for _ in 0..3 {
        let mut client = server.connect();
        let reply = client.call(CODE_WHO, b"").unwrap();
        assert_eq!(reply.code, CODE_WHO);
        let text = String::from_utf8(reply.body.to_vec()).unwrap();
        let lines: HashMap<&str, &str> =
            text.lines().map(|line| line.split_once('=').expect("name=value")).collect();
        let number = |name: &str| -> u64 { lines[name].parse().expect("a number") };
        assert!(number("worker") < 2, "{text}");
        assert!(workers.contains(&i32::try_from(number("pid")).unwrap()), "{text}");
        assert_eq!(number("generation"), 1, "{text}");
        assert_eq!(lines["peer"], client.local_addr().unwrap().to_string(), "{text}");
        ids.push(number("connection"));
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 3, "connection IDs are unique over workers");
}

#[test]
fn pipelined_frames_are_answered_in_order() {
    let server = TestServer::start("pipelined_in_order", "");
    let (mut sender, mut receiver) = server.connect().split();
    let message = |number: u32| Numbered { stream: 1, number, bytes: number as usize % 700 };
    for number in 0..3000 {
        sender.queue(CODE_ECHO, &message(number).body()).unwrap();
    }
    sender.flush().unwrap();
    for number in 0..3000 {
        assert!(receiver.receive().unwrap().body == message(number).body(), "reply {number}");
    }
}

#[test]
fn different_codes_of_one_connection_keep_their_order() {
    let server = TestServer::start("different_codes_in_order", "");
    let (mut sender, mut receiver) = server.connect().split();
    for number in 0..500_u32 {
        sender.queue(CODE_PING, b"").unwrap();
        sender.queue(CODE_ECHO, &number.to_be_bytes()).unwrap();
        sender.queue(40_000, b"nobody's").unwrap();
        sender.queue(CODE_TIME, b"").unwrap();
    }
    sender.flush().unwrap();
    for number in 0..500_u32 {
        assert_eq!(receiver.receive().unwrap().code, CODE_PING);
        assert_eq!(receiver.receive().unwrap().body, number.to_be_bytes()[..]);
        assert!(receiver.receive().unwrap().as_error().unwrap().is(ErrorNumber::UnknownCode));
        assert_eq!(receiver.receive().unwrap().code, CODE_TIME);
    }
}

#[test]
fn frames_may_come_byte_by_byte() {
    let server = TestServer::start("frames_byte_by_byte", "");
    let mut client = server.connect();
    let stream: Vec<u8> = [&b""[..], b"x", b"seventeen bytes.."]
        .iter()
        .flat_map(|body| encode(CODE_ECHO, body).unwrap())
        .collect();
    // Without delay, each write is a segment of its own.
    for byte in stream.chunks(1) {
        client.send_bytes(byte).unwrap();
    }
    for body in ["", "x", "seventeen bytes.."] {
        assert_eq!(client.receive().unwrap().body, body);
    }
}

#[test]
fn frames_may_be_cut_anywhere() {
    let server = TestServer::start("frames_cut_anywhere", "");
    let mut client = server.connect();
    let stream: Vec<u8> = [&b"first"[..], b"", b"third"]
        .iter()
        .flat_map(|body| encode(CODE_ECHO, body).unwrap())
        .collect();
    for cut in 1..stream.len() {
        // A ping behind each cut's first part would change the stream, so the
        // only proof that the part has arrived is that its whole frames were
        // answered. Cuts inside a frame still differ in what a read returns.
        client.send_bytes(&stream[..cut]).unwrap();
        if cut >= 13 {
            assert_eq!(client.receive().unwrap().body, "first", "cut at {cut}");
        }
        client.send_bytes(&stream[cut..]).unwrap();
        let rest: &[&str] = if cut >= 13 { &["", "third"] } else { &["first", "", "third"] };
        for body in rest {
            assert_eq!(client.receive().unwrap().body, *body, "cut at {cut}");
        }
    }
}

#[test]
fn connections_are_served_side_by_side() {
    let server = TestServer::start("connections_side_by_side", "");
    std::thread::scope(|scope| {
        for stream in 0..16 {
            let server = &server;
            scope.spawn(move || {
                let mut client = server.connect();
                for number in 0..200 {
                    let body = Numbered { stream, number, bytes: 100 }.body();
                    let reply = client.call(CODE_ECHO, &body).unwrap();
                    assert!(reply.body == body, "connection {stream}, reply {number}");
                }
            });
        }
    });
}

#[test]
fn a_code_without_handler_is_an_error_and_the_connection_stays() {
    let server = TestServer::start("code_without_handler", "");
    let mut client = server.connect();
    // The last of the server's own, the bounds of the applications' range, and two
    // that only a server sends.
    for code in [11, 15, 16, 65279, 65280, 65534, 65535] {
        client.send(code, b"body").unwrap();
        let error = receive_error(&mut client, ErrorNumber::UnknownCode);
        // 65535 in an error frame stands for "no frame", so that one can't be named.
        assert_eq!(error.caused_by, (code != 65535).then_some(code));
    }
    assert_eq!(client.call(CODE_ECHO, b"still here").unwrap().body, "still here");
}

#[test]
fn the_command_line_client_prints_the_reply() {
    let server = TestServer::start("command_line_client", "");
    let to = server.address.to_string();
    let sent = server.run(&["send", "--to", &to, "--body", "hello"]);
    assert_eq!((sent.code, sent.stderr.as_str()), (Some(0), ""), "{sent:?}");
    assert!(sent.stdout.contains("hello"), "{sent:?}");

    let refused = server.run(&["send", "--to", &to, "--code", "77"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stdout.contains("unknown code"), "{refused:?}");

    let many = server.run(&["send", "--to", &to, "--code", "0", "--count", "1000"]);
    assert_eq!((many.code, many.stdout.lines().count()), (Some(0), 1000));
}
