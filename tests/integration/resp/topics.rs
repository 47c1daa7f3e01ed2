//! Topics, as a client of Redis has them.

use chappe_client::{CODE_MESSAGE, CODE_PUBLISH, CODE_SUBSCRIBE, Connection};
use chappe_testkit::TestServer;
use chappe_testkit::resp::Resp;

const TWO_PROTOCOLS: &str = "worker_processes = 2
[[listen]]
address = \"127.0.0.1:0\"
protocol = \"resp\"
[[listen]]
address = \"127.0.0.1:0\"
";

/// Two workers, with a RESP and a native listener.
fn both(test: &str) -> TestServer {
    TestServer::start(&format!("resp_topics_{test}"), TWO_PROTOCOLS)
}

fn connect(server: &TestServer) -> Resp {
    Resp::connect(server.address)
}

fn joined(words: &[&str]) -> String {
    words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect()
}

/// `*3 subscribe name count`, and its like.
fn told(kind: char, word: &str, name: &str, count: u32) -> String {
    format!("{kind}3\r\n{}:{count}\r\n", joined(&[word, name]))
}

fn message(kind: char, words: &[&str]) -> String {
    format!("{kind}{}\r\n{}", words.len(), joined(words))
}

#[test]
fn a_message_comes_once_for_each_subscription() {
    let server = both("each");
    let mut listener = connect(&server);
    let answers = [told('*', "subscribe", "news", 1), told('*', "subscribe", "other", 2)];
    listener.ask("SUBSCRIBE news other", &answers.concat());
    listener.ask("PSUBSCRIBE n?ws", &told('*', "psubscribe", "n?ws", 3));
    listener.ask("PSUBSCRIBE n*", &told('*', "psubscribe", "n*", 4));
    listener.ask("SSUBSCRIBE news", &told('*', "ssubscribe", "news", 1));
    let mut publisher = connect(&server);
    publisher.ask("PUBLISH news hello", ":3\r\n");
    let expected = [
        message('*', &["message", "news", "hello"]),
        message('*', &["pmessage", "n*", "news", "hello"]),
        message('*', &["pmessage", "n?ws", "news", "hello"]),
    ];
    listener.expect(expected.concat().as_bytes());
    publisher.ask("SPUBLISH news shard", ":1\r\n");
    listener.expect(message('*', &["smessage", "news", "shard"]).as_bytes());
    publisher.ask("PUBLISH zero x", ":0\r\n");
    listener.ask("PING", "*2\r\n$4\r\npong\r\n$0\r\n\r\n");
    listener.ask("SUNSUBSCRIBE", &told('*', "sunsubscribe", "news", 0));
    listener.ask("UNSUBSCRIBE other", &told('*', "unsubscribe", "other", 3));
    listener.ask("RESET", "+RESET\r\n");
    publisher.ask("PUBLISH news x", ":0\r\n");
    listener.ask("ECHO a", "$1\r\na\r\n");
}

#[test]
fn native_clients_and_those_of_redis_hear_each_other() {
    let server = both("mixed");
    let mut redis = connect(&server);
    redis.send(b"HELLO 3\r\n");
    redis.value();
    redis.ask("PSUBSCRIBE ro*", &told('>', "psubscribe", "ro*", 1));
    let mut native = native(&server);
    let reply = native.call(CODE_SUBSCRIBE, b"\x04room").expect("subscribed");
    assert_eq!(reply.code, CODE_SUBSCRIBE, "{reply:?}");
    let reply = native.call(CODE_PUBLISH, b"\x04roomhello").expect("published");
    assert_eq!(&reply.body[..], [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2]);
    let body = b"\0\0\0\0\0\0\0\x01\x04roomhello";
    let heard = native.receive().expect("its own message");
    assert_eq!((heard.code, &heard.body[..]), (CODE_MESSAGE, &body[..]));
    redis.expect(message('>', &["pmessage", "ro*", "room", "hello"]).as_bytes());
    // In version 3 a listener may do everything, and hears itself.
    redis.ask("CHAPPE.CALL 1 body", "$4\r\nbody\r\n");
    redis.ask("PUBLISH room again", ":2\r\n");
    redis.expect(message('>', &["pmessage", "ro*", "room", "again"]).as_bytes());
    assert_eq!(native.receive().expect("the other's").code, CODE_MESSAGE);
    server.wait_status("/totals/messages_delivered", |delivered| delivered == 4);
}

#[test]
fn what_cannot_be_asked_of_topics_is_said() {
    let server = both("wrong");
    let mut client = connect(&server);
    let long = "x".repeat(255);
    client.ask("SUBSCRIBE \"\"", "-ERR a topic has at least one byte\r\n");
    client.ask(&format!("SUBSCRIBE a {long}x"), "-ERR a topic has at most 255 bytes, not 256\r\n");
    client.ask(&format!("SSUBSCRIBE {long}"), "-ERR a topic has at most 255 bytes, not 255\r\n");
    client.ask("PUBLISH \"a\\n\" x", "-ERR a topic has no control characters\r\n");
    client.ask("PUBLISH \"\\xff\" x", "-ERR a topic is UTF-8\r\n");
    let reserved = "-NOPERM topics that begin with $ are the service's\r\n";
    for line in ["SUBSCRIBE $a", "PSUBSCRIBE $*", "PUBLISH $a x"] {
        client.ask(line, reserved);
    }
    client.ask("PSUBSCRIBE [$]a", &told('*', "psubscribe", "[$]a", 1));
    let most = "x".repeat(65_518 - 1);
    let mut publisher = connect(&server);
    publisher.ask(&format!("PUBLISH a {most}"), ":0\r\n");
    let text = "-ERR a topic and its message have at most 65518 bytes\r\n";
    publisher.ask(&format!("PUBLISH a {most}x"), text);
    client.ask(
        &format!("PSUBSCRIBE {}", "*".repeat(255)),
        &told('*', "psubscribe", &"*".repeat(255), 2),
    );
    publisher.ask("PUBLISH a x", ":1\r\n");
}

#[test]
fn a_pipeline_is_answered_in_its_order() {
    let server = both("order");
    let mut client = connect(&server);
    client.send(b"PING\r\nPUBLISH a 1\r\nECHO b\r\nHELLO 3\r\nSUBSCRIBE a b a\r\nPUBLISH c 1\r\nUNSUBSCRIBE\r\nECHO c\r\n");
    client.expect(b"+PONG\r\n:0\r\n$1\r\nb\r\n");
    client.value();
    let told = |word, name, count| told('>', word, name, count);
    let answers = [
        told("subscribe", "a", 1),
        told("subscribe", "b", 2),
        told("subscribe", "a", 2),
        ":0\r\n".to_owned(),
    ];
    client.expect(answers.concat().as_bytes());
    let mut ended = [client.value(), client.value()];
    ended.sort();
    let is_first = ended[0].contains(":0\r\n");
    let (zero, one) = if is_first { (0, 1) } else { (1, 0) };
    assert!(ended[zero].ends_with(":0\r\n") && ended[one].ends_with(":1\r\n"), "{ended:?}");
    client.expect(b"$1\r\nc\r\n");
}

#[test]
fn limits_hold_and_a_listener_has_no_idle_clock() {
    let toml = format!(
        "{TWO_PROTOCOLS}[topics]\nmax_per_connection = 2\nmax_globs = 1\n[timeouts]\nidle = \"300ms\"\n"
    );
    let server = TestServer::start("resp_topics_limits", &toml);
    let mut client = connect(&server);
    let refused = "-ERR a connection has at most 2 subscriptions (topics.max_per_connection)\r\n";
    let answers = [told('*', "subscribe", "a", 1), told('*', "subscribe", "b", 2), refused.into()];
    client.ask("SUBSCRIBE a b c", &answers.concat());
    let mut other = connect(&server);
    other.ask("PSUBSCRIBE ?", &told('*', "psubscribe", "?", 1));
    let full = "-ERR there are as many names as may be (topics.max_topics, topics.max_globs)\r\n";
    other.ask("PSUBSCRIBE ??", full);
    // The idle one is closed, and it was there before.
    connect(&server).expect_end();
    client.ask("PING", "*2\r\n$4\r\npong\r\n$0\r\n\r\n");
    client.ask(
        "UNSUBSCRIBE a b",
        &[told('*', "unsubscribe", "a", 1), told('*', "unsubscribe", "b", 0)].concat(),
    );
    client.expect_end();
}

#[test]
fn who_listens_to_what_is_told() {
    let server = both("pubsub");
    let mut listener = connect(&server);
    listener.ask("PUBSUB CHANNELS", "*0\r\n");
    listener.ask("PUBSUB NUMPAT", ":0\r\n");
    let mut others = [connect(&server), connect(&server), connect(&server)];
    for other in &mut others {
        other.ask("SUBSCRIBE room", &told('*', "subscribe", "room", 1));
        other.ask("PSUBSCRIBE r?om*", &told('*', "psubscribe", "r?om*", 2));
    }
    others[0].ask("SSUBSCRIBE part", &told('*', "ssubscribe", "part", 1));
    listener.ask("PUBSUB CHANNELS", "*1\r\n$4\r\nroom\r\n");
    listener.ask("PUBSUB channels [a-q]*", "*0\r\n");
    let counts = "*4\r\n$4\r\nroom\r\n:3\r\n$4\r\nhall\r\n:0\r\n";
    listener.ask("PUBSUB NUMSUB room hall", counts);
    listener.ask("PUBSUB NUMSUB", "*0\r\n");
    listener.ask("PUBSUB SHARDCHANNELS", "*1\r\n$4\r\npart\r\n");
    listener.ask("PUBSUB SHARDNUMSUB part room", "*4\r\n$4\r\npart\r\n:1\r\n$4\r\nroom\r\n:0\r\n");
    listener.ask("PUBSUB NUMPAT", ":1\r\n");
}

/// A connection to the native listener.
fn native(server: &TestServer) -> Connection {
    let listen =
        server.status_json()["master"]["listen"][1].as_str().expect("an address").to_owned();
    let address = listen.parse().expect("an address");
    let local = std::net::Ipv4Addr::LOCALHOST.into();
    chappe_testkit::connect_from(local, address)
}
