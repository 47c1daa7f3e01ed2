//! Topics over all workers: what is subscribed, published and delivered, and what happens to it
//! when the hub or a worker dies.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chappe_client::{
    CODE_ECHO, CODE_ERROR, CODE_GAP, CODE_MESSAGE, CODE_PING, CODE_PUBLISH,
    CODE_PUBLISH_UNANSWERED, CODE_SUBSCRIBE, CODE_UNSUBSCRIBE, CODE_WHO, ClientError, Connection,
    ErrorNumber, Frame,
};
use chappe_wire::encode;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use chappe_testkit::{TestServer, receive_error, small_buffers, wait_until};

const TWO: &str = "worker_processes = 2\n";

/// A topic with its length in front, and what follows.
fn topic(name: &str, rest: &[u8]) -> Vec<u8> {
    [&[u8::try_from(name.len()).expect("as the test has it")][..], name.as_bytes(), rest].concat()
}

/// Subscribes. Returns how many subscriptions there are, and behind which offset.
fn subscribe(client: &mut Connection, name: &str) -> (u32, u64) {
    let reply = client.call(CODE_SUBSCRIBE, &topic(name, b"")).expect("as the test has it");
    assert_eq!((reply.code, reply.body.len()), (CODE_SUBSCRIBE, 21), "{reply:?}");
    assert_eq!(reply.body[4], 0, "to resume was not asked for");
    (u32::try_from(number(&reply.body[..4])).expect("four bytes"), number(&reply.body[13..]))
}

/// Publishes. Returns the offset and how many subscriptions matched.
fn publish(client: &mut Connection, name: &str, payload: &[u8]) -> (u64, u32) {
    let reply = client.call(CODE_PUBLISH, &topic(name, payload)).expect("as the test has it");
    assert_eq!((reply.code, reply.body.len()), (CODE_PUBLISH, 12), "{reply:?}");
    (number(&reply.body[..8]), u32::try_from(number(&reply.body[8..])).expect("four bytes"))
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A message of a topic: its offset, its topic and its payload.
fn message(frame: &Frame) -> (u64, String, Vec<u8>) {
    assert_eq!(frame.code, CODE_MESSAGE, "{frame:?}");
    let length = usize::from(frame.body[8]);
    let (name, payload) = frame.body[9..].split_at(length);
    (
        number(&frame.body[..8]),
        String::from_utf8(name.to_vec()).expect("as the test has it"),
        payload.to_vec(),
    )
}

fn worker_of(client: &mut Connection) -> String {
    let who = client.call(CODE_WHO, b"").expect("as the test has it");
    let text = String::from_utf8(who.body.to_vec()).expect("as the test has it");
    text.lines().next().expect("as the test has it").to_owned()
}

/// A connection to each of the workers.
fn one_each(server: &TestServer, workers: usize) -> Vec<Connection> {
    let mut found = BTreeMap::new();
    wait_until("a connection to each worker", || {
        let mut client = server.connect();
        let worker = worker_of(&mut client);
        found.entry(worker).or_insert(client);
        found.len() == workers
    });
    found.into_values().collect()
}

#[test]
fn what_is_published_reaches_the_subscribers_of_all_workers_once() {
    let server = TestServer::start("topics_all_workers", TWO);
    let [mut one, mut two] = one_each(&server, 2).try_into().unwrap();
    assert_eq!(subscribe(&mut one, "room"), (1, 0));
    assert_eq!(subscribe(&mut two, "room"), (1, 0));
    assert_eq!(subscribe(&mut two, "ro*"), (2, 0));
    assert_eq!(publish(&mut one, "room", b"hello"), (1, 3));
    let hello = (1, "room".to_owned(), b"hello".to_vec());
    // The answer of its own publish was in front of it, and it comes once.
    assert_eq!(message(&one.receive().unwrap()), hello);
    assert_eq!(message(&two.receive().unwrap()), hello);
    assert_eq!(publish(&mut two, "road", b""), (2, 1));
    assert_eq!(message(&two.receive().unwrap()), (2, "road".to_owned(), Vec::new()));
    let status = server.status_json();
    assert_eq!(status["hub"]["offset"], 2);
    assert_eq!((&status["hub"]["topics"], &status["hub"]["patterns"]), (&2.into(), &1.into()));
}

#[test]
fn a_subscription_ends_and_leaves_nothing() {
    let server = TestServer::start("topics_end", TWO);
    let [mut one, mut two] = one_each(&server, 2).try_into().unwrap();
    subscribe(&mut one, "a");
    subscribe(&mut one, "b*");
    let reply = one.call(CODE_UNSUBSCRIBE, &topic("a", b"")).unwrap();
    assert_eq!((reply.code, &reply.body[..]), (CODE_UNSUBSCRIBE, &[0, 0, 0, 1][..]));
    assert_eq!(publish(&mut two, "a", b""), (1, 0));
    let reply = one.call(CODE_UNSUBSCRIBE, b"").unwrap();
    assert_eq!(&reply.body[..], [0, 0, 0, 0]);
    subscribe(&mut one, "c");
    drop(one);
    server.wait_status("/hub/topics", |topics| topics == 0);
    assert_eq!(publish(&mut two, "c", b""), (2, 0));
}

#[test]
fn replies_stay_in_the_order_of_their_requests() {
    let server = TestServer::start("topics_order", "worker_processes = 1\n");
    let mut client = server.connect();
    let (mut sender, mut receiver) = {
        let (sender, receiver) = client_split(&mut client, &server);
        (sender, receiver)
    };
    for round in 0..50_u32 {
        sender.queue(CODE_PING, b"").unwrap();
        sender.queue(CODE_SUBSCRIBE, &topic("a", b"")).unwrap();
        sender.queue(CODE_PUBLISH, &topic("a", &round.to_be_bytes())).unwrap();
        sender.queue(CODE_PUBLISH_UNANSWERED, &topic("b", b"")).unwrap();
        sender.queue(CODE_ECHO, &round.to_be_bytes()).unwrap();
        sender.queue(CODE_UNSUBSCRIBE, &topic("a", b"")).unwrap();
    }
    sender.flush().unwrap();
    for round in 0..50_u32 {
        let mut replies = Vec::new();
        while replies.len() < 5 {
            let frame = receiver.receive().unwrap();
            if frame.code == CODE_MESSAGE {
                assert!(replies.contains(&CODE_PUBLISH), "its own message before the answer");
                assert_eq!(message(&frame).2, round.to_be_bytes());
                continue;
            }
            replies.push(frame.code);
        }
        let expected = [CODE_PING, CODE_SUBSCRIBE, CODE_PUBLISH, CODE_ECHO, CODE_UNSUBSCRIBE];
        assert_eq!(replies, expected);
    }
}

fn client_split(
    client: &mut Connection,
    server: &TestServer,
) -> (chappe_client::Sender, chappe_client::Receiver) {
    std::mem::replace(client, server.connect()).split()
}

#[test]
fn what_a_client_may_not_is_refused_and_the_connection_stays() {
    let limits = "[topics]\nmax_per_connection = 2\nmax_patterns_per_connection = 1\n";
    let server = TestServer::start("topics_refused", limits);
    let mut client = server.connect();
    let long = "x".repeat(255);
    let mut refused = |code, body: &[u8], why: &str| {
        client.send(code, body).unwrap();
        let error = receive_error(&mut client, ErrorNumber::NotAllowed);
        assert!(error.text.contains(why), "{error:?}");
    };
    refused(CODE_SUBSCRIBE, b"", "missing");
    refused(CODE_SUBSCRIBE, &[5, b'a'], "cut");
    refused(CODE_SUBSCRIBE, &[0], "at least one");
    refused(CODE_SUBSCRIBE, &topic("a\n", b""), "control");
    refused(CODE_SUBSCRIBE, &[2, 0xC3, 0x28], "UTF-8");
    refused(CODE_SUBSCRIBE, &topic("a", &[0, 1, 2]), "epoch");
    refused(CODE_SUBSCRIBE, &topic("$a", b""), "$");
    refused(CODE_PUBLISH, &topic("$a", b""), "$");
    refused(CODE_PUBLISH, &topic("a", &[0; 65_518]), "65518");
    refused(CODE_UNSUBSCRIBE, &topic("a", b"x"), "nothing");
    assert_eq!(subscribe(&mut client, &long), (1, 0));
    assert_eq!(subscribe(&mut client, "*"), (2, 0));
    client.send(CODE_SUBSCRIBE, &topic("one more", b"")).unwrap();
    let error = receive_error(&mut client, ErrorNumber::BusyInside);
    assert!(error.text.contains("max_per_connection"), "{error:?}");
    assert_eq!(publish(&mut client, &long, &[7; 65_518 - 255]), (1, 2));
    assert_eq!(message(&client.receive().unwrap()).2.len(), 65_518 - 255);
    assert!(client.call(CODE_PING, b"").is_ok());
}

#[test]
fn a_listener_says_what_its_clients_may() {
    let listen = "[[listen]]\naddress = \"127.0.0.1:0\"\ntopics = \"subscribe\"\n";
    let server = TestServer::start("topics_of_listener", listen);
    let mut client = server.connect();
    assert_eq!(subscribe(&mut client, "a"), (1, 0));
    for code in [CODE_PUBLISH, CODE_PUBLISH_UNANSWERED] {
        client.send(code, &topic("a", b"")).unwrap();
        let error = receive_error(&mut client, ErrorNumber::NotAllowed);
        assert!(error.text.contains("listen.topics"), "{error:?}");
    }
    assert_eq!(server.total("topics_denied"), 2);
}

#[test]
fn topics_that_are_off_are_refused() {
    let server = TestServer::start("topics_off", "[topics]\nenabled = false\n");
    let mut client = server.connect();
    client.send(CODE_SUBSCRIBE, &topic("a", b"")).unwrap();
    receive_error(&mut client, ErrorNumber::NotAllowed);
    assert!(server.status_json()["hub"].is_null());
}

fn hub_pid(server: &TestServer) -> Pid {
    let pid = server.status_number("/hub/pid");
    Pid::from_raw(i32::try_from(pid).expect("as the test has it"))
}

#[test]
fn a_hub_that_is_killed_loses_and_doubles_nothing() {
    let server = TestServer::start("topics_hub_killed", TWO);
    let [mut one, mut two] = one_each(&server, 2).try_into().unwrap();
    subscribe(&mut one, "a");
    let mut expected = Vec::new();
    for round in 0..40_u32 {
        if round % 10 == 5 {
            kill(hub_pid(&server), Signal::SIGKILL).unwrap();
        }
        let (offset, subscribers) = publish(&mut two, "a", &round.to_be_bytes());
        assert_eq!((offset, subscribers), (u64::from(round) + 1, 1), "round {round}");
        expected.push((offset, "a".to_owned(), round.to_be_bytes().to_vec()));
    }
    for expected in expected {
        assert_eq!(message(&one.receive().unwrap()), expected);
    }
    // A new name needs the new hub.
    assert_eq!(subscribe(&mut two, "b"), (1, 40));
}

#[test]
fn a_hub_that_is_stopped_is_replaced() {
    let server = TestServer::start("topics_hub_stopped", TWO);
    let [mut one, mut two] = one_each(&server, 2).try_into().unwrap();
    subscribe(&mut one, "a");
    let first = hub_pid(&server);
    kill(first, Signal::SIGSTOP).unwrap();
    let stopped = Instant::now();
    assert_eq!(publish(&mut two, "a", b"late"), (1, 1));
    assert!(stopped.elapsed() < Duration::from_secs(4), "{:?}", stopped.elapsed());
    assert_ne!(hub_pid(&server), first);
    assert_eq!(message(&one.receive().unwrap()).2, b"late");
}

#[test]
fn a_dead_worker_is_forgotten_by_the_hub() {
    let server = TestServer::start("topics_worker_killed", TWO);
    let [mut one, mut two] = one_each(&server, 2).try_into().unwrap();
    subscribe(&mut one, "a");
    let who = String::from_utf8(one.call(CODE_WHO, b"").unwrap().body.to_vec()).unwrap();
    let pid: i32 = who.lines().nth(1).unwrap().strip_prefix("pid=").unwrap().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    server.wait_status("/hub/topics", |topics| topics == 0);
    assert_eq!(publish(&mut two, "a", b""), (1, 0));
    server.wait_workers(2, &[pid]);
    let mut again = one_each(&server, 2);
    for client in &mut again {
        subscribe(client, "a");
    }
    assert_eq!(publish(&mut two, "a", b"").1, 2);
}

#[test]
fn a_slow_worker_is_lapped_and_its_subscribers_are_told_of_the_gap() {
    let ring = "[topics]\nring_bytes = \"1MiB\"\n";
    let server = TestServer::start("topics_lapped", &format!("{TWO}{ring}"));
    let [mut one, mut two] = one_each(&server, 2).try_into().unwrap();
    subscribe(&mut one, "a");
    let who = String::from_utf8(one.call(CODE_WHO, b"").unwrap().body.to_vec()).unwrap();
    let pid: i32 = who.lines().nth(1).unwrap().strip_prefix("pid=").unwrap().parse().unwrap();
    let count = 100;
    chappe_testkit::while_stopped(pid, || {
        for _ in 0..count {
            publish(&mut two, "a", &[0; 30_000]);
        }
    });
    // What is published before its worker has read on is lost as well.
    let (_, read) = subscribe(&mut one, "another");
    assert_eq!(read, count);
    let (last, _) = publish(&mut two, "a", b"last");
    let (mut offset, mut lost, mut lost_at_all) = (0, 0, 0);
    while offset < last {
        let frame = one.receive().unwrap();
        if frame.code == CODE_GAP {
            lost += number(&frame.body);
            lost_at_all += number(&frame.body);
            continue;
        }
        let (next, _, _) = message(&frame);
        assert_eq!(next, offset + lost + 1, "the gap says what is missing");
        (offset, lost) = (next, 0);
    }
    assert_eq!(last, count + 1);
    assert!(lost_at_all > 0);
    server.wait_status("/totals/messages_lost", |messages| messages == lost_at_all);
}

/// Each of them has all of it in its outbox, which together is many times what the worker may hold.
#[test]
fn a_body_for_many_who_do_not_read_is_held_once() {
    const BUFFER: usize = 16 * 1024;
    const SUBSCRIBERS: u64 = 300;
    const MESSAGES: u64 = 5;
    const BYTES: usize = 60_000;
    let server = TestServer::start(
        "topics_held_once",
        "worker_processes = 1
[send]
outbox_max_bytes = \"1MiB\"
outbox_total_max_bytes = \"4MiB\"
[[listen]]
address = \"127.0.0.1:0\"
receive_buffer = 16384
send_buffer = 16384
",
    );
    let subscriber = |_| {
        let mut client = small_buffers(server.address, BUFFER);
        subscribe(&mut client, "a");
        client
    };
    let mut subscribers: Vec<_> = (0..SUBSCRIBERS).map(subscriber).collect();
    let mut publisher = server.connect();
    for nth in 1..=MESSAGES {
        assert_eq!(publish(&mut publisher, "a", &[7; BYTES]).0, nth);
    }
    let delivered = MESSAGES * SUBSCRIBERS;
    server.wait_status("/totals/messages_delivered", |messages| messages == delivered);
    server.wait_status("/workers/0/outbox_bytes", |bytes| bytes > 2 * BYTES as u64);
    let held = server.status_number("/workers/0/outbox_bytes");
    assert!(held < 1 << 20, "{held} bytes are more than {MESSAGES} bodies");
    for client in &mut subscribers {
        for nth in 1..=MESSAGES {
            let (offset, _, body) = message(&client.receive().unwrap());
            assert_eq!((offset, body.len()), (nth, BYTES));
        }
    }
    for never in ["messages_dropped", "messages_lost", "closed_slow", "connections_closed"] {
        assert_eq!(server.total(never), 0, "{never}");
    }
    server.wait_status("/workers/0/outbox_bytes", |bytes| bytes == 0);
}

/// Subscribes as one that has everything up to an offset. Returns what it is told: whether it was
/// recovered, and behind which offset.
fn resume(client: &mut Connection, name: &str, epoch: u64, offset: u64) -> (u8, u64) {
    let place = [&[0][..], &epoch.to_be_bytes(), &offset.to_be_bytes()].concat();
    let reply = client.call(CODE_SUBSCRIBE, &topic(name, &place)).expect("as the test has it");
    assert_eq!((reply.code, reply.body.len()), (CODE_SUBSCRIBE, 21), "{reply:?}");
    (reply.body[4], number(&reply.body[13..]))
}

#[test]
fn a_subscription_is_resumed_with_all_that_it_has_missed_or_not_at_all() {
    let toml =
        format!("{TWO}[topics]\nring_bytes = \"1MiB\"\n[send]\noutbox_max_bytes = \"128KiB\"\n");
    let server = TestServer::start("topics_resume", &toml);
    let [mut one, mut two] = one_each(&server, 2).try_into().unwrap();
    let reply = two.call(CODE_SUBSCRIBE, &topic("room", b"")).unwrap();
    let epoch = number(&reply.body[5..13]);
    assert_eq!(publish(&mut one, "room", b"1"), (1, 1));
    assert_eq!(message(&two.receive().unwrap()).0, 1);
    drop(two);
    server.wait_status("/hub/topics", |topics| topics == 0);
    for (name, payload) in [("room", b"2"), ("other", b"3"), ("room", b"4")] {
        publish(&mut one, name, payload);
    }
    let mut two = server.connect();
    assert_eq!(resume(&mut two, "room", epoch, 1), (1, 4));
    publish(&mut one, "room", b"5");
    for payload in [b"2", b"4", b"5"] {
        let (offset, name, got) = message(&two.receive().unwrap());
        assert_eq!(
            (offset, name.as_str(), &got[..]),
            (u64::from(payload[0] - b'0'), "room", &payload[..])
        );
    }
    // Another log, a place that there is not, more than half an outbox, and what is overwritten.
    assert_eq!(resume(&mut server.connect(), "room", epoch + 1, 1).0, 2);
    assert_eq!(resume(&mut server.connect(), "room", epoch, 6).0, 2);
    assert_eq!(resume(&mut server.connect(), "room", epoch, 5), (1, 5));
    publish(&mut one, "room", &[b'x'; 40_000]);
    assert_eq!(resume(&mut server.connect(), "room", epoch, 1), (1, 6));
    publish(&mut one, "room", &[b'x'; 40_000]);
    assert_eq!(resume(&mut server.connect(), "room", epoch, 1).0, 2);
    for _ in 0..30 {
        publish(&mut one, "other", &[b'x'; 60_000]);
    }
    assert_eq!(resume(&mut server.connect(), "room", epoch, 6).0, 2);
    assert_eq!(&one.call(CODE_ECHO, b"alive").unwrap().body[..], b"alive");
    assert_eq!(server.total("resumes_whole"), 3);
    assert_eq!(server.total("resumes_refused"), 4);
}

/// One of many requests that are sent before any of them is answered, and its answer's code.
type Asked = (chappe_client::Code, Vec<u8>, Option<chappe_client::Code>);

/// Sends all at once, and receives as many answers as there are to come.
fn pipeline(server: &TestServer, asked: &[Asked]) -> Vec<Frame> {
    let (mut sender, mut receiver) = server.connect().split();
    for (code, body, _) in asked {
        sender.queue(*code, body).expect("as the test has it");
    }
    sender.flush().expect("as the test has it");
    let answers = asked.iter().filter(|(_, _, answer)| answer.is_some());
    answers.map(|_| receiver.receive().expect("as the test has it")).collect()
}

#[test]
fn publishes_of_one_connection_are_answered_in_order() {
    let server = TestServer::start("topics_pipeline", TWO);
    let mut offset = 0;
    // As many as wait together, one more, and some times as many.
    for count in [64, 65, 200] {
        let asked: Vec<Asked> =
            vec![(CODE_PUBLISH, topic("a", b"payload"), Some(CODE_PUBLISH)); count];
        for answer in pipeline(&server, &asked) {
            offset += 1;
            assert_eq!((answer.code, number(&answer.body[..8])), (CODE_PUBLISH, offset));
        }
    }
    let mut client = server.connect();
    assert_eq!(publish(&mut client, "a", b""), (offset + 1, 0));
}

#[test]
fn what_stands_between_publishes_is_answered_at_its_place() {
    let server = TestServer::start("topics_between", TWO);
    let mut published = 0;
    let asked: Vec<Asked> = (0..300_u32)
        .map(|place| match place {
            _ if place % 50 == 49 => (CODE_SUBSCRIBE, topic("b", b""), Some(CODE_SUBSCRIBE)),
            _ if place % 50 == 48 => (CODE_UNSUBSCRIBE, topic("b", b""), Some(CODE_UNSUBSCRIBE)),
            _ if place % 31 == 30 => (CODE_ECHO, place.to_be_bytes().to_vec(), Some(CODE_ECHO)),
            // Refused at once, while those in front of it are not answered.
            _ if place % 7 == 6 => (CODE_PUBLISH, topic("$a", b""), Some(CODE_ERROR)),
            _ if place % 5 == 4 => (CODE_PUBLISH_UNANSWERED, topic("a", b""), None),
            _ => (CODE_PUBLISH, topic("a", b""), Some(CODE_PUBLISH)),
        })
        .collect();
    let expected = asked.iter().filter(|(_, _, answer)| answer.is_some());
    for (answer, (code, body, expected)) in pipeline(&server, &asked).iter().zip(expected) {
        assert_eq!(Some(answer.code), *expected, "{answer:?}");
        match *code {
            CODE_PUBLISH if answer.code == CODE_PUBLISH => {
                let offset = number(&answer.body[..8]);
                assert!(offset > published, "{offset} behind {published}");
                published = offset;
            }
            CODE_PUBLISH => {
                let error = answer.as_error().unwrap();
                assert!(error.is(ErrorNumber::NotAllowed), "{error:?}");
                assert_eq!(error.caused_by, Some(CODE_PUBLISH));
            }
            CODE_ECHO => assert_eq!(answer.body, body),
            _ => {}
        }
    }
}

/// Names that the hub has to be asked for first, and others that the worker knows: a confirmation
/// comes in front of what its subscription brings.
#[test]
fn subscriptions_of_one_connection_are_confirmed_in_order() {
    let server = TestServer::start("topics_subscriptions", "worker_processes = 1\n");
    let mut known = server.connect();
    subscribe(&mut known, "known");
    let asked: Vec<Asked> = (0..100)
        .map(|place| match place % 4 {
            0 => (CODE_SUBSCRIBE, topic(&format!("new {place}"), b""), Some(CODE_SUBSCRIBE)),
            1 => (CODE_SUBSCRIBE, topic("known", b""), Some(CODE_SUBSCRIBE)),
            // Refused at once.
            2 => (CODE_SUBSCRIBE, topic("$known", b""), Some(CODE_ERROR)),
            _ => (CODE_UNSUBSCRIBE, topic("known", b""), Some(CODE_UNSUBSCRIBE)),
        })
        .collect();
    let mut count = 0;
    for (answer, (_, _, code)) in pipeline(&server, &asked).iter().zip(&asked) {
        assert_eq!(Some(answer.code), *code, "{answer:?}");
        match answer.code {
            CODE_SUBSCRIBE => count += 1,
            CODE_UNSUBSCRIBE => count -= 1,
            _ => continue,
        }
        assert_eq!(number(&answer.body[..4]), count);
    }
    assert_eq!(count, 25);
}

#[test]
fn an_end_behind_publishes_comes_behind_their_answers() {
    let server = TestServer::start("topics_end_behind", TWO);
    let mut client = server.connect();
    let frame = |rest: &[u8]| encode(CODE_PUBLISH, &topic("a", rest)).unwrap().to_vec();
    let mut damaged = frame(b"damaged");
    *damaged.last_mut().unwrap() ^= 1;
    client.send_bytes(&[frame(b""), frame(b""), damaged, frame(b"")].concat()).unwrap();
    for offset in [1, 2] {
        let answer = client.receive().unwrap();
        assert_eq!((answer.code, number(&answer.body[..8])), (CODE_PUBLISH, offset));
    }
    let error = receive_error(&mut client, ErrorNumber::BadChecksum);
    assert_eq!(error.caused_by, Some(CODE_PUBLISH));
    let end = client.receive();
    assert!(matches!(end, Err(ClientError::Closed)), "{end:?}");
    assert_eq!(server.status_json()["hub"]["offset"], 2);
}
