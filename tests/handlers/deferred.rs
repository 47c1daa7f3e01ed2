//! Deferred replies: their order, and each way in which a ticket or its connection may end.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use chappe_client::{ClientError, Connection};
use chappe_testkit::desk::{DROP, GATED, GIVE, GIVE_ALL, LATER, ODD, SOON};
use chappe_testkit::site::configuration;
use chappe_testkit::{
    DEADLINE, Gate, Site, TestServer, drain, pause, receive_error, reset_on_close, wait_until,
};
use chappe_wire::{CODE_ECHO, CODE_PING, ErrorNumber, Goodbye, append_frame};
use nix::sys::signal::Signal;
use nix::sys::socket::{Shutdown, shutdown};
use std::os::fd::{AsFd, AsRawFd};

fn start(test: &str, toml: &str) -> TestServer {
    let site = Site::new("desk", &format!("deferred_{test}"), "");
    let journal = site.path("journal.txt");
    // The service opens a file of the test, which may be where only its user may.
    let toml = format!(
        "user = \"\"\nworker_processes = 1\n{toml}\n[application]\njournal = {journal:?}\n"
    );
    site.configure(&configuration(&toml));
    TestServer::start_in(&site, &toml)
}

/// Sends messages in one piece.
#[track_caller]
fn send(client: &mut Connection, messages: &[(u16, &[u8])]) {
    let mut frames = BytesMut::new();
    for (code, body) in messages {
        append_frame(&mut frames, *code, body).expect("short");
    }
    client.send_bytes(&frames).expect("sent");
}

#[track_caller]
fn assert_next(client: &mut Connection, code: u16, body: &[u8]) {
    let reply = client.receive().expect("a reply");
    assert_eq!((reply.code, &reply.body[..]), (code, body));
}

/// The outcome of giving the ticket of this name back.
#[track_caller]
fn give(client: &mut Connection, name: &[u8]) -> Vec<u8> {
    client.call(GIVE, name).expect("a reply").body.to_vec()
}

#[track_caller]
fn assert_failed(client: &mut Connection, text: &str) {
    let error = receive_error(client, ErrorNumber::HandlerFailed);
    assert_eq!((error.caused_by, &*error.text), (Some(LATER), text));
}

#[track_caller]
fn assert_nothing_waits(server: &TestServer) {
    server.wait_status("/workers/0/messages_waiting", |waiting| waiting == 0);
    server.wait_status("/workers/0/inbox_bytes", |bytes| bytes == 0);
}

fn closed(server: &TestServer) -> Vec<String> {
    server.read("journal.txt").lines().map(str::to_owned).collect()
}

#[test]
fn deferred_replies_keep_the_order_of_their_connection() {
    for fuse in [true, false] {
        let server = start(&format!("order_{fuse}"), &format!("[worker]\nfuse = {fuse}\n"));
        let (mut client, mut other) = (server.connect(), server.connect());
        let large = vec![b'b'; 60_000];
        let messages: &[(u16, &[u8])] = &[
            (CODE_ECHO, b"1"),
            (LATER, b"a"),
            (CODE_ECHO, b"2"),
            (LATER, &large),
            (SOON, b"3"),
            (CODE_ECHO, b"4"),
        ];
        send(&mut client, messages);
        assert_next(&mut client, CODE_ECHO, b"1");
        server.wait_status("/totals/messages_deferred", |deferred| deferred == 1);
        server.wait_status("/workers/0/messages_waiting", |waiting| waiting == 1);
        // No thread waits, and no other connection.
        assert_eq!(server.status_number("/workers/0/handlers_busy"), 0);
        assert_eq!(give(&mut other, b"a"), b"given");
        for (code, body) in &messages[1..3] {
            assert_next(&mut client, *code, body);
        }
        assert_eq!(give(&mut other, &large), b"given");
        for (code, body) in &messages[3..] {
            assert_next(&mut client, *code, body);
        }
        assert_nothing_waits(&server);
        let total = |name: &str| server.status_number(&format!("/totals/{name}"));
        assert_eq!((total("messages_deferred"), total("messages_expired")), (3, 0));
        assert_eq!((total("deferred_dropped"), total("deferred_expired")), (0, 0));
    }
}

#[test]
fn a_handler_that_the_event_loop_runs_may_defer() {
    let server = start("loop", "[log]\nlevel = \"debug\"\n");
    let mut client = server.connect();
    let is_promoted = || !server.events("worker-0", "handler.promoted").is_empty();
    // To wake a thread may take longer than a quick handler may: these wake none.
    let begun = Instant::now();
    while !is_promoted() {
        assert!(begun.elapsed() < DEADLINE, "it is never quick");
        send(&mut client, &[(SOON, &b""[..]); 50]);
        (0..50).for_each(|_| assert_next(&mut client, SOON, b""));
    }
    for nth in (0..200_u32).step_by(4) {
        let bodies: Vec<_> = (nth..nth + 4).map(u32::to_be_bytes).collect();
        let messages: Vec<(u16, &[u8])> = bodies
            .iter()
            .zip([SOON, CODE_ECHO].repeat(2))
            .map(|(body, code)| (code, &body[..]))
            .collect();
        send(&mut client, &messages);
        for (code, body) in messages {
            assert_next(&mut client, code, body);
        }
    }
    assert_nothing_waits(&server);
}

#[test]
fn a_ticket_may_be_used_in_any_way_and_at_any_time() {
    let server = start("odd", "");
    let mut client = server.connect();
    for body in [&b"twice"[..], b"again"] {
        send(&mut client, &[(ODD, body), (CODE_ECHO, b"behind")]);
        assert_next(&mut client, ODD, body);
        assert_next(&mut client, CODE_ECHO, b"behind");
    }
    let reply = client.call(ODD, b"reply").expect("a reply").body;
    assert_eq!(&reply[..], b"a reply after it was deferred");
    for (body, text) in [
        (&b"drop"[..], "the deferred reply was dropped"),
        (b"fail", "out of ink"),
        (b"fail later", "out of ink"),
    ] {
        send(&mut client, &[(ODD, body), (CODE_ECHO, b"behind")]);
        let error = receive_error(&mut client, ErrorNumber::HandlerFailed);
        assert_eq!((error.caused_by, &*error.text), (Some(ODD), text));
        assert_next(&mut client, CODE_ECHO, b"behind");
    }
    assert_eq!(give(&mut client, b"odd"), b"void");
    for (body, number) in [
        (&b"panic"[..], ErrorNumber::HandlerFailed),
        (b"panic later", ErrorNumber::HandlerFailed),
        (b"deny later", ErrorNumber::Denied),
    ] {
        let mut client = server.connect();
        send(&mut client, &[(ODD, body), (CODE_ECHO, b"behind")]);
        receive_error(&mut client, number);
        assert!(matches!(client.receive(), Err(ClientError::Closed)), "{body:?}");
    }
    for (body, replies) in [(&b"close"[..], 0), (b"close later", 1)] {
        let mut client = server.connect();
        client.send(ODD, body).expect("sent");
        let (frames, _) = drain(&mut client);
        assert_eq!(frames.len(), replies + 1, "{frames:?}");
        let goodbye = frames[replies].as_goodbye().expect("a goodbye");
        assert!(goodbye.is(Goodbye::ByApplication) && goodbye.text == "enough", "{goodbye}");
    }
    let total = |name: &str| server.status_number(&format!("/totals/{name}"));
    assert_eq!((total("handler_errors"), total("handler_panics")), (2, 2));
    assert_eq!((total("deferred_dropped"), total("messages_deferred")), (1, 12));
    assert_nothing_waits(&server);
}

#[test]
fn a_dropped_ticket_is_an_error_and_the_connection_goes_on() {
    let server = start("dropped", "");
    let (mut client, mut other) = (server.connect(), server.connect());
    send(&mut client, &[(LATER, b"a"), (CODE_ECHO, b"behind")]);
    other.call(DROP, b"a").expect("a reply");
    assert_failed(&mut client, "the deferred reply was dropped");
    assert_next(&mut client, CODE_ECHO, b"behind");
    assert_eq!(server.total("deferred_dropped"), 1);
    assert_nothing_waits(&server);
}

#[test]
fn a_reply_that_is_not_given_in_time_is_an_error_and_the_connection_goes_on() {
    let server = start("expired", "[timeouts]\ndeferred = \"300ms\"\n");
    let (mut client, mut other) = (server.connect(), server.connect());
    // One after the other: each has its own time.
    for name in [b"a", b"b"] {
        let begun = Instant::now();
        send(&mut client, &[(LATER, name), (CODE_ECHO, b"behind")]);
        assert_failed(&mut client, "the deferred reply was not given within timeouts.deferred");
        assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
        assert_next(&mut client, CODE_ECHO, b"behind");
    }
    // Their tickets do nothing to the message that waits now.
    client.send(LATER, b"c").expect("sent");
    server.wait_status("/totals/messages_deferred", |deferred| deferred == 3);
    assert_eq!(
        (give(&mut other, b"a"), give(&mut other, b"b")),
        (b"void".to_vec(), b"void".to_vec())
    );
    assert_eq!(give(&mut other, b"c"), b"given");
    assert_next(&mut client, LATER, b"c");
    assert_eq!(server.total("deferred_expired"), 2);
    assert_nothing_waits(&server);
}

#[test]
fn closed_does_not_wait_for_the_ticket_of_a_peer_that_is_gone() {
    let toml = "[timeouts]\ndeferred = \"1h\"\n\
                [[listen]]\naddress = \"127.0.0.1:0\"\n\
                [[listen]]\naddress = \"unix:a.sock\"\n";
    let server = start("gone", toml);
    let mut other = server.connect();
    let unix = Connection::connect_unix(server.dir.join("a.sock"), DEADLINE).expect("connected");
    let tcp = server.connect();
    reset_on_close(&tcp);
    for (nth, mut client) in [tcp, unix].into_iter().enumerate() {
        client.send(LATER, b"a").expect("sent");
        server.wait_status("/totals/messages_deferred", |deferred| deferred == nth as u64 + 1);
        drop(client);
        wait_until("closed is called", || closed(&server).len() == nth + 1);
        assert!(closed(&server)[nth].ends_with("after 0"));
        assert_eq!(give(&mut other, b"a"), b"void");
    }
    // Each was received, and lost.
    assert_eq!(server.total("messages_expired"), 2);
    assert_nothing_waits(&server);
}

#[test]
fn a_peer_that_only_sends_no_more_still_gets_its_reply() {
    let server = start("half_close", "");
    let (mut client, mut other) = (server.connect(), server.connect());
    send(&mut client, &[(LATER, b"a"), (CODE_ECHO, b"behind")]);
    shutdown(client.as_fd().as_raw_fd(), Shutdown::Write).expect("shutdown");
    server.wait_status("/totals/messages_deferred", |deferred| deferred == 1);
    assert_eq!(give(&mut other, b"a"), b"given");
    assert_next(&mut client, LATER, b"a");
    assert_next(&mut client, CODE_ECHO, b"behind");
    assert!(matches!(client.receive(), Err(ClientError::Closed)));
    wait_until("closed is called", || closed(&server) == ["closed PeerClosed after 1"]);
}

#[test]
fn one_more_deferred_reply_than_may_be_is_refused_in_its_place() {
    let server = start("max", "[worker]\ndeferred_max = 2\n");
    let mut clients = [(); 3].map(|()| server.connect());
    for (nth, client) in (1..).zip(&mut clients[..2]) {
        client.send(LATER, &[nth]).expect("sent");
        server.wait_status("/totals/messages_deferred", |deferred| deferred == u64::from(nth));
    }
    let [one, two, third] = &mut clients;
    send(third, &[(LATER, b"3"), (CODE_ECHO, b"behind")]);
    let error = receive_error(third, ErrorNumber::BusyInside);
    assert_eq!(error.caused_by, Some(LATER));
    assert_eq!(&*error.text, "too many replies are deferred (worker.deferred_max)");
    assert_next(third, CODE_ECHO, b"behind");
    // Replaced in the service, so dropped; and it was void.
    assert_eq!(give(third, b"3"), b"void");
    assert_eq!(server.total("deferred_refused"), 1);
    // A place is free again.
    assert_eq!(give(third, &[1]), b"given");
    assert_next(one, LATER, &[1]);
    one.send(LATER, b"again").expect("sent");
    assert_eq!(give(third, b"again"), b"given");
    assert_next(one, LATER, b"again");
    assert_eq!(give(third, &[2]), b"given");
    assert_next(two, LATER, &[2]);
    assert_nothing_waits(&server);
}

#[test]
fn a_drain_waits_for_a_deferred_reply_and_no_longer_than_told() {
    let mut server = start("quit", "");
    let mut client = server.connect();
    let gate = Gate::new(server.path("gate"));
    client.send(GATED, gate.name()).expect("sent");
    server.wait_status("/totals/messages_deferred", |deferred| deferred == 1);
    server.signal(Signal::SIGQUIT);
    server.wait_event("worker-0", "worker.drains", "");
    pause(Duration::from_millis(600), "a peer without a deferred reply would be gone by then");
    let name = gate.name().to_vec();
    gate.open();
    assert_next(&mut client, GATED, &name);
    assert!(client.receive().expect("a frame").as_goodbye().is_some());
    assert_eq!(server.wait_exit().code(), Some(0));
    assert_eq!(closed(&server), ["closed Stopping after 1"]);

    let mut server = start("quit_cut", "worker_shutdown_timeout = \"300ms\"\n");
    let mut client = server.connect();
    let _gate = Gate::new(server.path("gate"));
    client.send(GATED, _gate.name()).expect("sent");
    server.wait_status("/totals/messages_deferred", |deferred| deferred == 1);
    server.signal(Signal::SIGQUIT);
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn a_reload_waits_for_a_deferred_reply() {
    let server = start("reload", "worker_drain_spread = \"0\"\n");
    let mut client = server.connect();
    let gate = Gate::new(server.path("gate"));
    client.send(GATED, gate.name()).expect("sent");
    server.wait_status("/totals/messages_deferred", |deferred| deferred == 1);
    let outcome = server.run(&["reload"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    server.wait_event("worker-0", "worker.drains", "");
    let name = gate.name().to_vec();
    gate.open();
    assert_next(&mut client, GATED, &name);
    let goodbye = client.receive().expect("a frame");
    assert!(goodbye.as_goodbye().is_some_and(|it| it.is(Goodbye::Reloading)));
    wait_until("it is closed", || closed(&server) == ["closed Reloading after 1"]);
}

#[test]
fn ten_thousand_deferred_replies_at_once_are_all_answered() {
    const CONNECTIONS: u64 = 10_000;
    let server = start("many", "worker_shutdown_timeout = \"5m\"\n[timeouts]\ndeferred = \"4m\"\n");
    let _ = chappe_sys::limits::set_descriptors(CONNECTIONS + 1000);
    let mut other = server.connect();
    assert_eq!(other.call(CODE_PING, b"").expect("a reply").code, CODE_PING);
    let mut clients: Vec<_> = (0..CONNECTIONS).map(|nth| (nth, server.connect())).collect();
    for round in 1..=2 {
        for (nth, client) in &mut clients {
            send(client, &[(LATER, &nth.to_be_bytes()), (CODE_ECHO, &nth.to_be_bytes())]);
        }
        let all = round * CONNECTIONS;
        server.wait_status("/totals/messages_deferred", |deferred| deferred == all);
        server.wait_status("/workers/0/messages_waiting", |waiting| waiting == CONNECTIONS);
        let given = other.call(GIVE_ALL, b"").expect("a reply").body;
        assert_eq!(u64::from(u32::from_be_bytes(given[..].try_into().expect("four"))), CONNECTIONS);
        for (nth, client) in &mut clients {
            assert_next(client, LATER, &nth.to_be_bytes());
            assert_next(client, CODE_ECHO, &nth.to_be_bytes());
        }
        assert_nothing_waits(&server);
    }
    assert_eq!(server.total("messages_expired"), 0);
}
