//! A service that subscribes its connections, publishes, and decides who may.

use std::collections::BTreeMap;

use chappe_client::{
    CODE_ECHO, CODE_ERROR, CODE_GOODBYE, CODE_PUBLISH, CODE_SUBSCRIBE, CODE_WHO, Connection,
    ErrorNumber,
};
use chappe_testkit::resp::Resp;
use chappe_testkit::site::{Site, configuration};
use chappe_testkit::{TestServer, receive_error, wait_until, while_stopped};

const ENTER: u16 = 16;
const LEAVE: u16 = 17;
const SAY: u16 = 18;
const SUBSCRIBE: u16 = 19;
const LATER: u16 = 20;
const TOO_LATE: u16 = 21;
const TELL: u16 = 22;
const SHOUT: u16 = 23;
const TICK: u16 = 24;
const KNOCK: u16 = 25;
const BYE: u16 = 26;

fn start(name: &str, toml: &str) -> TestServer {
    let toml = format!("worker_processes = 2\n{toml}");
    let site = Site::new("hall", &format!("topics_{name}"), &configuration(&toml));
    TestServer::start_in(&site, &toml)
}

/// A connection to each of the two workers.
fn one_each(server: &TestServer) -> [Connection; 2] {
    let mut found = BTreeMap::new();
    wait_until("a connection to each worker", || {
        let mut client = server.connect();
        let who = client.call(CODE_WHO, b"").expect("a reply").body;
        let text = String::from_utf8(who.to_vec()).expect("text");
        found.entry(text.lines().next().expect("a worker").to_owned()).or_insert(client);
        found.len() == 2
    });
    let mut both = found.into_values();
    std::array::from_fn(|_| both.next().expect("two"))
}

#[track_caller]
fn expect(client: &mut Connection, code: u16, body: &str) {
    let frame = client.receive().expect("a frame");
    let text = String::from_utf8_lossy(&frame.body).into_owned();
    assert_eq!((frame.code, &*text), (code, body));
}

#[track_caller]
fn enter(client: &mut Connection, user: &str) {
    client.send(ENTER, user.as_bytes()).expect("sent");
    let mut frames = Vec::new();
    while frames.len() < 3 {
        let frame = client.receive().expect("a frame");
        frames.push((frame.code, String::from_utf8_lossy(&frame.body).into_owned()));
    }
    // The replies stay together.
    let replies: Vec<_> = frames.iter().filter(|(code, _)| *code == ENTER).collect();
    assert_eq!(replies, [&(ENTER, "welcome".to_owned()), &(ENTER, user.to_owned())]);
    assert!(frames.contains(&(SAY, format!("{user} is here"))), "{frames:?}");
}

#[test]
fn a_room_reaches_over_all_workers() {
    let server = start("rooms", "");
    let [mut ada, mut bob] = one_each(&server);
    enter(&mut ada, "ada");
    enter(&mut bob, "bob");
    expect(&mut ada, SAY, "bob is here");
    ada.send(SAY, b"hello").expect("sent");
    expect(&mut ada, SAY, "hello");
    expect(&mut bob, SAY, "hello");
    assert_eq!(bob.call(TELL, b"ada psst").expect("a reply").code, TELL);
    expect(&mut ada, TELL, "psst");
    assert_eq!(ada.call(LEAVE, b"").expect("a reply").code, LEAVE);
    bob.send(SAY, b"is she gone?").expect("sent");
    expect(&mut bob, SAY, "is she gone?");
    assert_eq!(&ada.call(CODE_ECHO, b"nothing").expect("a reply").body[..], b"nothing");
}

/// The hub stands, so that the worker could be faster than it.
#[test]
fn what_a_handler_asks_for_is_done_in_its_order() {
    let server = start("order", "");
    let [mut ada, mut bob] = one_each(&server);
    // The worker of each knows the hall.
    let mut others = one_each(&server);
    for (other, name) in others.iter_mut().zip(["eve", "dan"]) {
        enter(other, name);
    }
    let hub = i32::try_from(server.status_number("/hub/pid")).expect("a process");
    while_stopped(hub, || {
        ada.send(KNOCK, b"").expect("sent");
        server.wait_status("/totals/app_told", |told| told == 1);
    });
    expect(&mut ada, KNOCK, "in");
    while_stopped(hub, || {
        ada.send(BYE, b"").expect("sent");
        server.wait_status("/totals/app_told", |told| told == 2);
    });
    expect(&mut ada, SAY, "bye");
    expect(&mut ada, BYE, "out");
    assert_eq!(&ada.call(CODE_ECHO, b"nothing").expect("a reply").body[..], b"nothing");
    assert_eq!(bob.call(KNOCK, b"").expect("a reply").code, KNOCK);
    for text in ["dan is here", "knock", "bye", "knock"] {
        expect(&mut others[0], SAY, text);
    }
}

#[test]
fn the_service_decides_who_may() {
    let server = start("may", "");
    let mut client = server.connect();
    client.send(CODE_SUBSCRIBE, b"\x0bprivate.ada").expect("sent");
    let error = receive_error(&mut client, ErrorNumber::NotAllowed);
    assert!(error.to_string().contains("private.ada is not yours"), "{error}");
    client.send(CODE_PUBLISH, b"\x01ax").expect("sent");
    let error = receive_error(&mut client, ErrorNumber::NotAllowed);
    assert!(error.to_string().contains("enter first"), "{error}");
    enter(&mut client, "ada");
    assert_eq!(
        client.call(CODE_SUBSCRIBE, b"\x0bprivate.ada").expect("a reply").code,
        CODE_SUBSCRIBE
    );
    assert_eq!(client.call(CODE_PUBLISH, b"\x01ax").expect("a reply").code, CODE_PUBLISH);
    assert_eq!(server.total("topics_denied"), 2);
}

#[test]
fn nothing_is_done_of_what_a_failing_handler_has_asked() {
    let server = start("fails", "");
    let mut client = server.connect();
    enter(&mut client, "ada");
    client.send(SUBSCRIBE, b"fail").expect("sent");
    let error = receive_error(&mut client, ErrorNumber::HandlerFailed);
    assert!(error.to_string().contains("it fails"), "{error}");
    // What it published behind the subscription was kept, and is dropped.
    client.send(SAY, b"next").expect("sent");
    expect(&mut client, SAY, "next");
    for (body, text) in [(&b"a\n"[..], "no control characters"), (b"", "at least one byte")] {
        client.send(SUBSCRIBE, body).expect("sent");
        let error = receive_error(&mut client, ErrorNumber::HandlerFailed);
        assert!(error.to_string().contains(text), "{error}");
    }
    client.send(TOO_LATE, b"").expect("sent");
    let error = receive_error(&mut client, ErrorNumber::HandlerFailed);
    assert!(error.to_string().contains("after the reply was deferred"), "{error}");
    assert_eq!(&client.call(LATER, b"").expect("a reply").body[..], b"now");
    let mut other = server.connect();
    enter(&mut other, "bob");
    let published = other.call(CODE_PUBLISH, b"\x05laterx").expect("a reply");
    assert_eq!(&published.body[8..], [0, 0, 0, 1]);
}

#[test]
fn a_subscription_beyond_a_limit_takes_the_place_of_the_replies() {
    let server = start("limit", "[topics]\nmax_per_connection = 2\n");
    let mut client = server.connect();
    enter(&mut client, "ada");
    client.send(SUBSCRIBE, b"third").expect("sent");
    let error = receive_error(&mut client, ErrorNumber::BusyInside);
    assert!(error.to_string().contains("topics.max_per_connection"), "{error}");
    // Its publish is dropped with its replies, and the connection goes on.
    client.send(SAY, b"next").expect("sent");
    expect(&mut client, SAY, "next");
}

#[test]
fn who_closes_has_published_and_subscribes_to_nothing() {
    let server = start("close", "");
    let [mut ada, mut bob] = one_each(&server);
    enter(&mut ada, "ada");
    bob.send(SHOUT, b"").expect("sent");
    let frame = bob.receive().expect("a goodbye");
    assert_eq!(frame.code, CODE_GOODBYE);
    expect(&mut ada, SAY, "shouted");
}

#[test]
fn without_topics_a_service_is_told_so() {
    let server = start("off", "[topics]\nenabled = false\n");
    let mut client = server.connect();
    client.send(ENTER, b"ada").expect("sent");
    let error = receive_error(&mut client, ErrorNumber::HandlerFailed);
    assert!(error.to_string().contains("topics are off"), "{error}");
    assert_eq!(client.call(CODE_ECHO, b"x").expect("a reply").code, CODE_ECHO);
    assert_ne!(CODE_ERROR, CODE_ECHO);
}

#[test]
fn a_timer_publishes_for_all_workers() {
    let server = start("timer", "");
    for mut client in one_each(&server) {
        assert_eq!(client.call(SUBSCRIBE, b"$ticks").expect("a reply").code, SUBSCRIBE);
        expect(&mut client, TICK, "tick");
        expect(&mut client, TICK, "tick");
    }
}

#[test]
fn clients_of_redis_get_a_services_messages() {
    let listen = "[[listen]]\naddress = \"127.0.0.1:0\"\nprotocol = \"resp\"\n";
    let toml = format!("worker_processes = 2\n{listen}");
    let site = Site::new("hall", "topics_resp", &toml);
    let server = TestServer::start_in(&site, &toml);
    let mut client = Resp::connect(server.address);
    client.send(b"HELLO 3\r\n");
    client.value();
    client.send(b"CHAPPE.CALL 16 ada\r\n");
    let mut values = [client.value(), client.value()];
    values.sort();
    let push = ">3\r\n$7\r\nmessage\r\n$4\r\nhall\r\n$11\r\nada is here\r\n";
    assert_eq!(values, ["*2\r\n$7\r\nwelcome\r\n$3\r\nada\r\n", push]);
    client.ask("SUBSCRIBE private.bob", "-NOPERM private.bob is not yours\r\n");
    assert_eq!(server.total("topics_denied"), 1);
    client.ask("SUBSCRIBE private.ada", ">3\r\n$9\r\nsubscribe\r\n$11\r\nprivate.ada\r\n:3\r\n");
}
