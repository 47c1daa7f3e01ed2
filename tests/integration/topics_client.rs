//! Topics by the blocking client, and by `chappe subscribe` and `chappe publish`.

use std::fs::File;
use std::io::Write;
use std::process::Stdio;

use chappe_client::{
    CODE_ECHO, CODE_PUBLISH_UNANSWERED, ClientError, Connection, ErrorNumber, Goodbye, Incoming,
    Recovered, Resumed,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use chappe_testkit::site::command;
use chappe_testkit::{TestServer, wait_until};

const TWO: &str = "worker_processes = 2\n";

/// The next message: its offset, its topic, its body.
fn heard(client: &mut Connection) -> (u64, String, Vec<u8>) {
    match client.next_message().expect("a message") {
        Incoming::Message(it) => (it.offset, it.topic, it.body.to_vec()),
        other => panic!("{other:?}"),
    }
}

fn message(offset: u64, topic: &str, body: &[u8]) -> (u64, String, Vec<u8>) {
    (offset, topic.to_owned(), body.to_vec())
}

/// Calls until the server has closed the connection; whether it said why.
fn until_the_end(client: &mut Connection) -> Option<u16> {
    let mut reason = None;
    loop {
        match client.next_message() {
            Ok(Incoming::Frame(frame)) => {
                reason = frame.as_goodbye().map(|goodbye| goodbye.reason);
            }
            Ok(other) => panic!("{other:?}"),
            Err(error) if error.is_disconnect() => return reason,
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[test]
fn replies_and_messages_go_their_own_ways() {
    let server = TestServer::start("client_topics", TWO);
    let (mut one, mut two) = (server.connect(), server.connect());
    let answer = one.subscribe("room").unwrap();
    assert_eq!((answer.subscriptions, answer.recovered), (1, Recovered::NotAsked));
    assert_eq!(one.subscribe("ro*").unwrap().subscriptions, 2);
    two.subscribe("room").unwrap();
    for n in 0..100_u8 {
        let published = one.publish("room", &[n]).unwrap();
        assert_eq!((published.offset, published.subscribers), (2 * u64::from(n) + 1, 3));
        two.publish_unanswered("road", &[n]).unwrap();
        // All before it have been published.
        assert_eq!(two.call(CODE_ECHO, &[n]).unwrap().body, [n][..]);
        assert_eq!(one.call(CODE_ECHO, &[n]).unwrap().body, [n][..]);
    }
    for n in 0..100_u8 {
        let offset = 2 * u64::from(n) + 1;
        assert_eq!(heard(&mut one), message(offset, "room", &[n]));
        assert_eq!(heard(&mut one), message(offset + 1, "road", &[n]));
        assert_eq!(heard(&mut two), message(offset, "room", &[n]));
    }
    assert_eq!(one.unsubscribe("ro*").unwrap(), 1);
    assert_eq!(two.publish("road", b"").unwrap().subscribers, 0);
    match one.subscribe("$reserved") {
        Err(ClientError::Refused(error)) => assert!(error.is(ErrorNumber::NotAllowed)),
        other => panic!("{other:?}"),
    }
    // What was published without an answer is refused by an error of its own.
    one.publish_unanswered("$reserved", b"").unwrap();
    let Incoming::Frame(frame) = one.next_message().unwrap() else { panic!("no error") };
    assert_eq!(frame.as_error().unwrap().caused_by, Some(CODE_PUBLISH_UNANSWERED));
}

#[test]
fn a_connection_goes_on_after_a_reload_and_after_a_dead_worker() {
    let server = TestServer::start("client_resumes", TWO);
    let (mut one, mut other) = (server.connect(), server.connect());
    one.subscribe("room").unwrap();
    one.subscribe("ro*").unwrap();
    other.publish("room", b"first").unwrap();
    assert_eq!(heard(&mut one), message(1, "room", b"first"));

    assert_eq!(server.run(&["reload"]).code, Some(0));
    assert_eq!(until_the_end(&mut one), Some(Goodbye::Reloading as u16));
    let mut other = server.connect();
    for topic in ["room", "road", "room"] {
        other.publish(topic, b"missed").unwrap();
    }
    wait_until("the old worker's subscriptions have ended", || {
        server.status_number("/hub/topics") == 0
    });
    let recovered = |answers: Vec<Resumed>| {
        let answers = answers.into_iter();
        answers.map(|it| (it.topic, it.answer.unwrap().recovered)).collect::<Vec<_>>()
    };
    let all = [("room".to_owned(), Recovered::Yes), ("ro*".to_owned(), Recovered::Yes)];
    assert_eq!(recovered(one.reconnect().unwrap()), all);
    // Two of them match both subscriptions, and come once.
    let mut missed = [heard(&mut one), heard(&mut one), heard(&mut one)];
    missed.sort_unstable();
    let topics = [(2, "room"), (3, "road"), (4, "room")];
    assert_eq!(missed, topics.map(|(offset, topic)| message(offset, topic, b"missed")));
    assert_eq!(other.publish("room", b"second").unwrap().subscribers, 2);
    assert_eq!(heard(&mut one), message(5, "room", b"second"));

    let worker = one.call(chappe_client::CODE_WHO, b"").unwrap();
    let worker = String::from_utf8(worker.body.to_vec()).unwrap();
    let pid: i32 = worker.lines().nth(1).unwrap().strip_prefix("pid=").unwrap().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    assert_eq!(until_the_end(&mut one), None);
    assert_eq!(recovered(one.reconnect().unwrap()), all);
    let mut other = server.connect();
    other.publish("road", b"third").unwrap();
    assert_eq!(heard(&mut one), message(6, "road", b"third"));
}

#[test]
fn another_servers_offsets_are_not_taken_for_its_own() {
    let server = TestServer::start("client_other_epoch", TWO);
    let mut client = server.connect();
    let epoch = client.subscribe("a").unwrap().epoch;
    client.unsubscribe("a").unwrap();
    let answer = client.subscribe_from("a", epoch + 1, 1000).unwrap();
    assert_eq!((answer.recovered, answer.epoch, answer.offset), (Recovered::No, epoch, 0));
    client.publish("a", b"x").unwrap();
    assert_eq!(heard(&mut client), message(1, "a", b"x"));
}

#[test]
fn topics_by_command() {
    let mut server = TestServer::start("topics_command", TWO);
    let output = |name: &str| File::create(server.dir.join(name)).expect("a file");
    let mut subscriber = command(&server.dir)
        .args(["subscribe", "room", "news.*"])
        .stdout(output("heard.txt"))
        .stderr(output("said.txt"))
        .spawn()
        .unwrap();
    server.wait_status("/hub/topics", |topics| topics == 2);

    let published = server.run(&["publish", "room", "good morning"]);
    let said = (published.code, published.stdout.as_str(), published.stderr.as_str());
    assert_eq!(said, (Some(0), "1 subscriber, offset 1\n", ""));
    let to = server.address.to_string();
    let mut call = server.command(&["publish", "--to", &to, "news.x", "-"]);
    let mut piped = call.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    piped.stdin.take().unwrap().write_all(b"\x1b[2J\nsecond line").unwrap();
    let piped = piped.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&piped.stdout), "1 subscriber, offset 2\n");
    assert_eq!(server.run(&["publish", "nobody"]).stdout, "0 subscribers, offset 3\n");
    let refused = server.run(&["publish", "$mine", "x"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("error 10 (not allowed)"), "{}", refused.stderr);
    let heard = "room good morning\nnews.x \\x1b[2J\\x0asecond line\n";
    wait_until("both were printed", || server.read("heard.txt") == heard);

    server.signal(Signal::SIGTERM);
    assert_eq!(subscriber.wait().unwrap().code(), Some(1));
    server.wait_exit();
    let said = server.read("said.txt");
    assert!(said.ends_with("the server closed the connection\n"), "{said}");
    assert_eq!(server.read("heard.txt"), heard);
}

#[test]
fn who_subscribes_to_what_is_listed() {
    let server = TestServer::start("topics_list", TWO);
    let listed = || {
        let listed = server.run(&["topics", "--json"]);
        assert_eq!((listed.code, listed.stderr.as_str()), (Some(0), ""), "{}", listed.stdout);
        let mut rows: Vec<serde_json::Value> =
            listed.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        rows.sort_by_key(|row| row["topic"].to_string());
        rows
    };
    assert!(listed().is_empty());
    let mut clients: Vec<_> = (0..4).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.subscribe("say \"room\"").unwrap();
    }
    clients[0].subscribe("ro*").unwrap();
    let rows = listed();
    assert_eq!(rows.len(), 2, "{rows:?}");
    assert_eq!((&rows[0]["topic"], &rows[0]["kind"]), (&"ro*".into(), &"pattern".into()));
    let (topic, subscribers) = (&rows[1]["topic"], &rows[1]["subscribers"]);
    assert_eq!((topic, subscribers), (&"say \"room\"".into(), &4.into()));
    let workers = rows[1]["workers"].as_array().unwrap();
    let counted: u64 = workers.iter().map(|it| it["subscribers"].as_u64().unwrap()).sum();
    assert_eq!(counted, 4);
    let status = server.status_json();
    for worker in workers {
        let mut of_status = status["workers"].as_array().unwrap().iter();
        let of_status = of_status.find(|it| it["worker"] == worker["worker"]).unwrap();
        assert_eq!(worker["pid"], of_status["pid"], "{rows:?}");
    }
    let table = server.run(&["topics"]).stdout;
    assert!(table.lines().nth(2).unwrap().ends_with("topic    say \"room\""), "{table}");
    drop(clients);
    server.wait_status("/hub/topics", |topics| topics == 0);
    assert!(listed().is_empty());

    let off = TestServer::start("topics_list_off", "[topics]\nenabled = false\n");
    let refused = off.run(&["topics"]);
    assert_eq!((refused.code, refused.stderr.contains("topics are off")), (Some(1), true));
}

#[test]
fn a_subscriber_ends_quietly_when_nobody_reads_it() {
    let server = TestServer::start("subscribe_unread", "");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut call = command(&server.dir);
    let subscriber =
        call.args(["subscribe", "room"]).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    drop((reader, call));
    server.wait_status("/hub/topics", |topics| topics == 1);
    assert_eq!(server.connect().publish("room", b"x").unwrap().subscribers, 1);
    let ended = subscriber.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), ended.stderr), (Some(0), Vec::new()));
}
