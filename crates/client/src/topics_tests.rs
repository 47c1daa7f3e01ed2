//! Topics against a server that says what the test has written down.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::*;
use crate::{Recovered, TopicMessage};
use bytes::Bytes;
use chappe_wire::{
    CODE_APPLICATION_MESSAGE, CODE_ECHO, CODE_ERROR, CODE_GAP, CODE_GOODBYE, CODE_MESSAGE,
};

const LONG: Duration = Duration::from_secs(20);

/// A client, and the server's end of its connection.
fn pair(timeout: Duration) -> (Connection, Connection) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let over = |socket: UnixStream, timeout| Connection::from_socket(socket.into(), timeout);
    (over(ours, Some(timeout)).unwrap(), over(theirs, Some(LONG)).unwrap())
}

fn confirmation(count: u8, recovered: u8, epoch: u8, offset: u8) -> Vec<u8> {
    let number = |byte| [0, 0, 0, 0, 0, 0, 0, byte];
    [&[0, 0, 0, count, recovered][..], &number(epoch), &number(offset)].concat()
}

/// The body of a message, with what is behind the topic.
fn message_body(offset: u8, topic: &str, rest: &[u8]) -> Vec<u8> {
    let length = u8::try_from(topic.len()).unwrap();
    [&[0, 0, 0, 0, 0, 0, 0, offset, length], topic.as_bytes(), rest].concat()
}

fn tell(server: &mut Connection, frames: &[(Code, Vec<u8>)]) {
    for (code, body) in frames {
        server.send(*code, body).unwrap();
    }
}

fn heard(client: &mut Connection) -> (u64, String) {
    match client.next_message().unwrap() {
        Incoming::Message(TopicMessage { offset, topic, .. }) => (offset, topic),
        other => panic!("{other:?}"),
    }
}

#[test]
fn requests_have_the_bytes_of_the_manual() {
    let (mut client, mut server) = pair(LONG);
    tell(
        &mut server,
        &[
            (CODE_SUBSCRIBE, confirmation(1, 0, 7, 9)),
            (CODE_SUBSCRIBE, confirmation(2, 1, 7, 9)),
            (CODE_PUBLISH, vec![0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 3]),
            (CODE_UNSUBSCRIBE, vec![0, 0, 0, 1]),
        ],
    );
    let recovered = Recovered::NotAsked;
    let expected = Subscribed { subscriptions: 1, recovered, epoch: 7, offset: 9 };
    assert_eq!(client.subscribe("ab").unwrap(), expected);
    let expected = Subscribed { subscriptions: 2, recovered: Recovered::Yes, ..expected };
    assert_eq!(client.subscribe_from("c*", 7, 258).unwrap(), expected);
    let expected = Published { offset: 10, subscribers: 3 };
    assert_eq!(client.publish("ab", b"xy").unwrap(), expected);
    client.publish_unanswered("ab", b"z").unwrap();
    assert_eq!(client.unsubscribe("c*").unwrap(), 1);
    let resume = [0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 1, 2];
    for (code, body) in [
        (CODE_SUBSCRIBE, b"\x02ab\x01".to_vec()),
        (CODE_SUBSCRIBE, [&b"\x02c*\x01"[..], &resume].concat()),
        (CODE_PUBLISH, b"\x02abxy".to_vec()),
        (CODE_PUBLISH_UNANSWERED, b"\x02abz".to_vec()),
        (CODE_UNSUBSCRIBE, b"\x02c*".to_vec()),
    ] {
        assert_eq!(server.receive().unwrap(), Frame { code, body: body.into() });
    }
}

#[test]
fn what_comes_before_an_answer_is_handed_out_afterwards() {
    let (mut client, mut server) = pair(LONG);
    tell(
        &mut server,
        &[
            (CODE_SUBSCRIBE, confirmation(1, 0, 7, 0)),
            (CODE_MESSAGE, message_body(1, "a", b"one")),
            (CODE_GAP, vec![0, 0, 0, 0, 0, 0, 0, 4]),
            (CODE_ECHO, b"reply".to_vec()),
            (CODE_APPLICATION_MESSAGE, message_body(6, "a", b"\x01\x2ctwo")),
            (18, b"no topic".to_vec()),
            (CODE_ERROR, b"\0\x0a\0\x09not allowed".to_vec()),
            (CODE_PUBLISH, vec![0; 12]),
            (CODE_MESSAGE, message_body(7, "a", b"three")),
        ],
    );
    client.subscribe("a").unwrap();
    assert_eq!(client.call(CODE_ECHO, b"reply").unwrap().body, "reply");
    client.publish("b", b"").unwrap();
    let message = |offset, code, body: &'static [u8]| {
        let (topic, body) = ("a".to_owned(), Bytes::from_static(body));
        Incoming::Message(TopicMessage { offset, topic, code, body })
    };
    assert_eq!(client.next_message().unwrap(), message(1, None, b"one"));
    assert_eq!(client.next_message().unwrap(), Incoming::Gap { lost: 4 });
    // The halves of a connection have it, too.
    assert!(client.receiver.has_frame());
    assert_eq!(client.next_message().unwrap(), message(6, Some(300), b"two"));
    for code in [18, CODE_ERROR] {
        let Incoming::Frame(frame) = client.next_message().unwrap() else { panic!("no frame") };
        assert_eq!(frame.code, code);
    }
    assert_eq!(client.split().1.receive().unwrap().code, CODE_MESSAGE);
}

#[test]
fn messages_without_end_do_not_stretch_the_time_out_of_a_call() {
    let (mut client, mut server) = pair(Duration::from_millis(50));
    let writer = std::thread::spawn(move || {
        // Ends with the client.
        while server.send(CODE_MESSAGE, &message_body(1, "a", b"")).is_ok() {}
    });
    let start = Instant::now();
    assert!(matches!(client.call(CODE_ECHO, b""), Err(ClientError::TimedOut(_))));
    assert!(start.elapsed() < LONG);
    drop(client);
    writer.join().unwrap();
}

#[test]
fn a_refusal_is_an_error() {
    let (mut client, mut server) = pair(LONG);
    tell(
        &mut server,
        &[
            (CODE_ERROR, b"\0\x0a\0\x04off".to_vec()),
            (CODE_SUBSCRIBE, vec![0; 20]),
            (CODE_GOODBYE, b"\0\x01".to_vec()),
            (CODE_ERROR, b"\0\x06\xff\xffno place".to_vec()),
        ],
    );
    match client.subscribe("a") {
        Err(ClientError::Refused(error)) => assert!(error.is(ErrorNumber::NotAllowed)),
        other => panic!("{other:?}"),
    }
    assert!(matches!(client.subscribe("a"), Err(ClientError::Malformed(CODE_SUBSCRIBE))));
    match client.publish("a", b"") {
        Err(error @ ClientError::Refused(_)) => {
            assert_eq!(error.to_string(), "error 6 (busy): no place");
        }
        other => panic!("{other:?}"),
    }
    let Incoming::Frame(goodbye) = client.next_message().unwrap() else { panic!("no goodbye") };
    assert!(goodbye.as_goodbye().is_some());
    drop(server);
    let long = "x".repeat(256);
    assert!(matches!(client.subscribe(&long), Err(ClientError::TopicTooLong(256))));
    assert!(client.publish("a", b"").unwrap_err().is_disconnect());
}

/// The next connection of a client.
fn accept(listener: &TcpListener) -> Connection {
    Connection::from_stream(listener.accept().unwrap().0, Some(LONG)).unwrap()
}

fn asked(server: &mut Connection) -> Vec<u8> {
    let frame = server.receive().unwrap();
    assert_eq!(frame.code, CODE_SUBSCRIBE, "{frame:?}");
    frame.body.to_vec()
}

#[test]
fn a_connection_goes_on_behind_the_last_message_that_has_come() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = Connection::connect(listener.local_addr().unwrap(), LONG).unwrap();
    let mut server = accept(&listener);
    tell(
        &mut server,
        &[
            (CODE_SUBSCRIBE, confirmation(1, 0, 7, 10)),
            (CODE_SUBSCRIBE, confirmation(2, 0, 7, 10)),
            (CODE_MESSAGE, message_body(11, "room", b"")),
            (CODE_GOODBYE, b"\0\x02".to_vec()),
            (CODE_MESSAGE, message_body(12, "road", b"")),
            (CODE_PUBLISH, vec![0; 12]),
        ],
    );
    client.subscribe("room").unwrap();
    client.subscribe("ro*").unwrap();
    assert_eq!(heard(&mut client), (11, "room".to_owned()));
    client.publish("x", b"").unwrap();
    drop(server);

    let scripted = std::thread::spawn(move || {
        // This one ends in the middle of it.
        let mut server = accept(&listener);
        assert_eq!(server.receive().unwrap().code, 16, "the login comes first");
        assert_eq!(asked(&mut server), b"\x04room\x01\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x0b");
        assert_eq!(asked(&mut server), b"\x03ro*\x01\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x0c");
        tell(
            &mut server,
            &[
                (CODE_SUBSCRIBE, confirmation(1, 1, 7, 14)),
                (CODE_MESSAGE, message_body(13, "room", b"")),
            ],
        );
        drop(server);
        let mut server = accept(&listener);
        assert_eq!(asked(&mut server), b"\x04room\x01\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x0d");
        assert_eq!(asked(&mut server), b"\x03ro*\x01\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x0c");
        tell(
            &mut server,
            &[
                (CODE_ERROR, b"\0\x09\0\x04busy".to_vec()),
                (CODE_SUBSCRIBE, confirmation(1, 1, 7, 15)),
                (CODE_MESSAGE, message_body(13, "room", b"")),
                (CODE_MESSAGE, message_body(14, "road", b"")),
            ],
        );
        server
    });
    let ended = client.reconnect_with(|new| new.send(16, b"login")).unwrap_err();
    assert!(ended.is_disconnect(), "{ended:?}");
    let answers = client.reconnect().unwrap();
    let mut server = scripted.join().unwrap();
    let names: Vec<_> = answers.iter().map(|it| it.topic.as_str()).collect();
    assert_eq!(names, ["room", "ro*"]);
    assert!(answers[0].answer.as_ref().is_err_and(|error| error.is(ErrorNumber::BusyInside)));
    assert_eq!(answers[1].answer.as_ref().unwrap().recovered, Recovered::Yes);
    // What was kept, without the goodbye of a connection that is no more. None is doubled.
    assert_eq!(heard(&mut client), (12, "road".to_owned()));
    assert_eq!(heard(&mut client), (13, "room".to_owned()));
    assert_eq!(heard(&mut client), (14, "road".to_owned()));
    // The one that was refused can be asked for again.
    tell(&mut server, &[(CODE_SUBSCRIBE, confirmation(2, 0, 7, 15))]);
    assert_eq!(client.subscribe("room").unwrap().subscriptions, 2);
}

#[test]
fn many_are_resumed_without_a_dead_lock() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = Connection::connect(listener.local_addr().unwrap(), LONG).unwrap();
    let topics: Vec<String> = (0..1000).map(|n| format!("{n:0>255}")).collect();
    let serve = move |mut server: Connection| {
        for _ in 0..1000 {
            asked(&mut server);
            // As much as the client has asked with.
            server.send(CODE_MESSAGE, &message_body(1, "other", &[0; 300])).unwrap();
            server.send(CODE_SUBSCRIBE, &confirmation(1, 1, 7, 10)).unwrap();
        }
        server
    };
    let scripted = std::thread::spawn(move || {
        serve(accept(&listener));
        serve(accept(&listener))
    });
    for topic in &topics {
        client.subscribe(topic).unwrap();
    }
    let answers = client.reconnect().unwrap();
    assert_eq!(answers.len(), topics.len());
    assert!(answers.iter().all(|it| it.answer.is_ok()));
    drop(scripted.join().unwrap());
}

#[test]
fn a_login_that_is_denied_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = Connection::connect(listener.local_addr().unwrap(), LONG).unwrap();
    let mut server = accept(&listener);
    tell(&mut server, &[(CODE_SUBSCRIBE, confirmation(1, 0, 7, 10))]);
    client.subscribe("a").unwrap();
    drop(server);
    let scripted = std::thread::spawn(move || {
        let mut server = accept(&listener);
        asked(&mut server);
        tell(&mut server, &[(CODE_ERROR, b"\0\x08\0\x04log in first".to_vec())]);
    });
    match client.reconnect() {
        Err(ClientError::Refused(error)) => assert!(error.is(ErrorNumber::Denied)),
        other => panic!("{other:?}"),
    }
    scripted.join().unwrap();
}

#[test]
fn a_socket_that_was_handed_over_cannot_be_connected_again() {
    let (mut client, _server) = pair(LONG);
    match client.reconnect() {
        Err(ClientError::Connect { source, .. }) => {
            assert_eq!(source.kind(), io::ErrorKind::Unsupported);
        }
        other => panic!("{other:?}"),
    }
}
