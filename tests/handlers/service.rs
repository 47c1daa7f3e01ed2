//! A service: its hooks, its connections' states, its gate, and how it ends connections.

use std::path::PathBuf;

use chappe_client::{ClientError, Connection};
use chappe_testkit::diary::{CLOSE, COUNT, DENY, GATE, HOLD, LOGIN, PANIC};
use chappe_testkit::site::configuration;
use chappe_testkit::{
    DEADLINE, Gate, Site, TestServer, drain, receive_error, reset_on_close, wait_until,
};
use chappe_wire::{
    CODE_ECHO, CODE_PING, CODE_TIME, CODE_WHO, ErrorNumber, Goodbye, NO_CODE, append_frame, encode,
};
use nix::sys::signal::Signal;

/// The programs of the service, without and with a gate.
pub(super) const SERVICE: &str = "diary";
const GATED: &str = "gated-diary";

/// A directory for a test with that program, and the journal in it.
pub(super) fn place(server: &str, test: &str) -> (Site, PathBuf) {
    let site = Site::new(server, &format!("service_{test}"), "");
    let journal = site.path("journal.txt");
    (site, journal)
}

/// With more of the server's keys, and more of the service's.
fn start_as(server: &str, test: &str, toml: &str, application: &str) -> TestServer {
    let (site, journal) = place(server, test);
    // The service opens a file of the test, which may be where only its user may.
    let toml = format!("user = \"\"\n{toml}[application]\njournal = {journal:?}\n{application}");
    site.configure(&configuration(&toml));
    TestServer::start_in(&site, &toml)
}

fn start(test: &str, toml: &str) -> TestServer {
    start_as(SERVICE, test, &format!("worker_processes = 1\n{toml}"), "")
}

/// What was written down of a connection, or of `worker`.
fn journal(server: &TestServer, of: &str) -> Vec<String> {
    let journal = server.read("journal.txt");
    let lines = journal.lines().filter_map(|line| line.strip_prefix(of)?.strip_prefix(' '));
    lines.map(str::to_owned).collect()
}

/// Waits until a connection is closed, and compares what was written down of it.
#[track_caller]
fn assert_life(server: &TestServer, id: &str, messages: u32, why: &str) {
    wait_until("it is closed", || {
        journal(server, id).iter().any(|line| line.starts_with("closed "))
    });
    let lines = journal(server, id);
    let (begin, rest) = lines.split_first().expect("a begin");
    assert!(begin.starts_with("connected to 127.0.0.1:"), "{begin}");
    let told = (1..=messages).map(|nth| format!("message {nth}"));
    let expected: Vec<_> = told.chain([format!("closed {why} after {messages}")]).collect();
    assert_eq!(rest, expected);
}

/// A client that has sent as many messages, and its connection's id.
#[track_caller]
fn counted(server: &TestServer, messages: u32) -> (Connection, String) {
    let mut client = server.connect();
    let mut id = String::new();
    for nth in 1..=messages {
        let reply = client.call(COUNT, b"").expect("a reply").body;
        let reply = std::str::from_utf8(&reply).expect("text");
        let (own, count) = reply.split_once(' ').expect("an id and a number");
        assert_eq!(count, nth.to_string());
        own.clone_into(&mut id);
    }
    (client, id)
}

/// The end of the stream, behind everything that was received.
#[track_caller]
fn assert_ended(client: &mut Connection) {
    let next = client.receive();
    assert!(matches!(next, Err(ClientError::Closed)), "{next:?}");
}

#[test]
fn a_service_hears_of_each_begin_and_end() {
    let server = start("each", "");
    let (client, id) = counted(&server, 3);
    drop(client);
    assert_life(&server, &id, 3, "PeerClosed");

    let (client, id) = counted(&server, 1);
    reset_on_close(&client);
    drop(client);
    assert_life(&server, &id, 1, "PeerReset");

    let (mut client, id) = counted(&server, 2);
    client.shutdown_write().expect("shut down");
    assert_ended(&mut client);
    // The peer reads on: not before the socket is closed, but without its help.
    assert_life(&server, &id, 2, "PeerClosed");

    let (mut client, id) = counted(&server, 2);
    let kicked = server.run(&["kick", &id]);
    assert_eq!(kicked.code, Some(0), "{kicked:?}");
    let goodbye = client.receive().expect("a goodbye").as_goodbye().expect("a goodbye");
    assert!(goodbye.is(Goodbye::Kicked), "{goodbye:?}");
    assert_ended(&mut client);
    drop(client);
    assert_life(&server, &id, 2, "Kicked");

    let (mut client, id) = counted(&server, 1);
    client.send_bytes(&[0, 7]).expect("sent");
    receive_error(&mut client, ErrorNumber::BadLength);
    assert_ended(&mut client);
    drop(client);
    assert_life(&server, &id, 1, "ProtocolError");

    server.wait_status("/workers/0/connections", |n| n == 0);
    // Nothing happened later.
    let journal = server.read("journal.txt");
    assert_eq!(
        (journal.matches(" connected ").count(), journal.matches(" closed ").count()),
        (5, 5)
    );
}

#[test]
fn a_service_hears_of_ends_by_time() {
    let times = "[timeouts]\nidle = \"300ms\"\nframe = \"300ms\"\nhandshake = \"300ms\"\n";
    let server = start("times", times);
    let (mut client, id) = counted(&server, 2);
    let (frames, _) = drain(&mut client);
    assert!(frames[0].as_goodbye().is_some_and(|goodbye| goodbye.is(Goodbye::Idle)));
    drop(client);
    assert_life(&server, &id, 2, "Idle");

    let (mut client, id) = counted(&server, 1);
    client.send_bytes(&[0, 12, 0]).expect("sent");
    receive_error(&mut client, ErrorNumber::FrameTimeout);
    drop(client);
    assert_life(&server, &id, 1, "FrameTimeout");

    let mut client = server.connect();
    let (frames, _) = drain(&mut client);
    assert!(frames[0].as_goodbye().is_some_and(|goodbye| goodbye.is(Goodbye::HandshakeTimeout)));
    drop(client);
    wait_until("it is closed", || {
        server.read("journal.txt").contains(" closed HandshakeTimeout after 0\n")
    });
}

/// All of them send at once what they have, and end at once.
#[test]
fn a_service_hears_of_each_of_many_connections_in_order() {
    const CONNECTIONS: usize = 200;
    const MESSAGES: u32 = 20;
    let server = start_as(SERVICE, "many", "worker_processes = 2\n", "");
    let mut frames = bytes::BytesMut::new();
    for _ in 0..MESSAGES {
        append_frame(&mut frames, COUNT, b"").expect("short");
    }
    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send_bytes(&frames).expect("sent");
        client.shutdown_write().expect("shut down");
    }
    let ids: Vec<String> = clients
        .iter_mut()
        .map(|client| {
            let (replies, end) = drain(client);
            assert!(matches!(end, ClientError::Closed), "{end:?}");
            let bodies: Vec<_> = replies.iter().map(|f| String::from_utf8_lossy(&f.body)).collect();
            let id = bodies[0].split_once(' ').expect("an id").0.to_owned();
            let expected: Vec<_> = (1..=MESSAGES).map(|nth| format!("{id} {nth}")).collect();
            assert_eq!(bodies, expected);
            id
        })
        .collect();
    drop(clients);
    for id in ids {
        assert_life(&server, &id, MESSAGES, "PeerClosed");
    }
}

/// Its messages and its hooks run one after the other, whatever happens to its peer; until
/// then it counts as a connection.
#[test]
fn closed_waits_for_the_handler_of_a_peer_that_has_left() {
    let server = start("held", "");
    let (mut client, id) = counted(&server, 1);
    let gate = Gate::new(server.path("gate"));
    client.send(HOLD, gate.name()).expect("sent");
    wait_until("it is held", || journal(&server, &id).ends_with(&["held".to_owned()]));
    reset_on_close(&client);
    drop(client);
    // The loop has heard of it: it answers a peer that came later.
    let (other, _) = counted(&server, 1);
    assert_eq!(journal(&server, &id).last().map(String::as_str), Some("held"));
    assert_eq!(server.connections(), 2, "it is not over");
    gate.open();
    wait_until("it is closed", || journal(&server, &id).len() == 5);
    assert_eq!(journal(&server, &id)[2..], ["held", "let go", "closed PeerReset after 2"]);
    server.wait_status("/workers/0/connections", |n| n == 1);
    drop(other);
}

#[test]
fn a_graceful_stop_closes_each_connection_with_its_reason() {
    let mut server = start("stop", "");
    let (mut client, id) = counted(&server, 2);
    server.signal(Signal::SIGQUIT);
    let goodbye = client.receive().expect("a goodbye").as_goodbye().expect("a goodbye");
    assert!(goodbye.is(Goodbye::Stopping), "{goodbye:?}");
    // Until it is closed it is served.
    assert_eq!(client.call(COUNT, b"").expect("a reply").code, COUNT);
    assert_ended(&mut client);
    drop(client);
    assert_eq!(server.wait_exit().code(), Some(0));
    assert_life(&server, &id, 3, "Stopping");
    assert_eq!(journal(&server, "worker"), ["0 of 1 starts", "0 of 1 stops"]);
}

#[test]
fn a_reload_closes_each_connection_with_its_reason() {
    let server = start("reload", "worker_drain_spread = \"0\"\n");
    let (mut client, id) = counted(&server, 2);
    let outcome = server.run(&["reload"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let (frames, _) = drain(&mut client);
    assert!(frames[0].as_goodbye().is_some_and(|goodbye| goodbye.is(Goodbye::Reloading)));
    drop(client);
    assert_life(&server, &id, 2, "Reloading");
    // The new one is there before the old one goes.
    let lines = ["0 of 1 starts", "0 of 2 starts", "0 of 1 stops"];
    assert_eq!(journal(&server, "worker"), lines);
    let (client, id) = counted(&server, 1);
    drop(client);
    assert_life(&server, &id, 1, "PeerClosed");
}

#[test]
fn a_fast_stop_calls_no_hook() {
    // At once, and at the end of a drain that a handler holds up.
    let limit = "worker_shutdown_timeout = \"300ms\"\n";
    for (signal, toml) in [(Signal::SIGTERM, ""), (Signal::SIGQUIT, limit)] {
        let mut server = start(&format!("{signal:?}"), toml);
        let mut held = server.connect();
        let gate = Gate::new(server.path("gate"));
        held.send(HOLD, gate.name()).expect("sent");
        // Many: a hook that is called would not get far before the end of the process.
        let lives: Vec<_> = (0..100).map(|_| counted(&server, 1)).collect();
        server.signal(signal);
        assert_eq!(server.wait_exit().code(), Some(0));
        let closed = server.read("journal.txt").matches(" closed ").count();
        assert_eq!(closed, 0, "of {} connections at {signal:?}", lives.len());
        drop(gate);
    }
}

#[test]
fn a_connection_that_is_denied_at_its_begin_gets_error_8() {
    let server = start_as(SERVICE, "denied", "worker_processes = 1\n", "connected = \"denies\"\n");
    for messages in 0..3 {
        let mut client = server.connect();
        for _ in 0..messages {
            // Sent before it knows; it may also be told before it has sent all of it.
            let _ = client.send(COUNT, b"");
        }
        let error = receive_error(&mut client, ErrorNumber::Denied);
        assert_eq!((error.caused_by, &*error.text), (None, "not today"), "not {NO_CODE}");
        assert_ended(&mut client);
    }
    server.wait_status("/totals/connections_closed", |closed| closed == 3);
    let journal = server.read("journal.txt");
    assert_eq!(journal.matches(" connected ").count(), 3);
    assert!(!journal.contains(" message ") && !journal.contains(" closed "), "{journal}");
}

#[test]
fn each_connection_has_a_state_of_its_own() {
    let server = start("state", "");
    let mut clients: Vec<Connection> = (0..5).map(|_| server.connect()).collect();
    for round in 1..=200 {
        for client in &mut clients {
            let body = client.call(COUNT, b"").expect("a reply").body;
            let count = format!(" {round}");
            assert!(body.ends_with(count.as_bytes()), "{body:?} in round {round}");
            // Of the server's own, and handled in between.
            assert_eq!(client.call(CODE_ECHO, b"x").expect("a reply").body, &b"x"[..]);
        }
    }
}

#[test]
fn a_handlers_denial_ends_the_connection() {
    let server = start("deny", "");
    let (mut client, id) = counted(&server, 1);
    let mut frames = bytes::BytesMut::new();
    append_frame(&mut frames, CODE_PING, b"").expect("short");
    append_frame(&mut frames, DENY, b"enough of you").expect("short");
    append_frame(&mut frames, COUNT, b"").expect("short");
    client.send_bytes(&frames).expect("sent");
    assert_eq!(client.receive().expect("answered before").code, CODE_PING);
    let error = receive_error(&mut client, ErrorNumber::Denied);
    assert_eq!((error.caused_by, &*error.text), (Some(DENY), "enough of you"));
    assert_ended(&mut client);
    drop(client);
    assert_life(&server, &id, 1, "Denied");
    // A text that is too long is cut, at a character.
    let mut client = server.connect();
    client.send(DENY, "é".repeat(1000).as_bytes()).expect("sent");
    assert_eq!(receive_error(&mut client, ErrorNumber::Denied).text, "é".repeat(256));
    // It is no failure of the handler.
    assert_eq!(server.total("handler_errors"), 0);
}

#[test]
fn a_handlers_close_stands_behind_its_replies() {
    let server = start("close", "");
    let (mut client, id) = counted(&server, 1);
    let mut frames = bytes::BytesMut::new();
    append_frame(&mut frames, CLOSE, b"until tomorrow").expect("short");
    append_frame(&mut frames, COUNT, b"").expect("short");
    client.send_bytes(&frames).expect("sent");
    for expected in ["one", "two"] {
        let frame = client.receive().expect("a reply");
        assert_eq!((frame.code, &*frame.body), (CLOSE, expected.as_bytes()));
    }
    let goodbye = client.receive().expect("a goodbye").as_goodbye().expect("a goodbye");
    assert!(goodbye.is(Goodbye::ByApplication), "{goodbye:?}");
    assert_eq!(&*goodbye.text, "until tomorrow");
    assert_ended(&mut client);
    drop(client);
    assert_life(&server, &id, 1, "ClosedByApplication");
}

#[test]
fn a_gate_is_closed_until_the_admission() {
    let server = start_as(GATED, "gate", "worker_processes = 1\n", "");
    // Also a code that nobody handles: who is not admitted learns nothing.
    for code in [COUNT, HOLD, CODE_ECHO, CODE_TIME, CODE_WHO, 4, 99] {
        let mut client = server.connect();
        assert_eq!(client.call(CODE_PING, b"").expect("allowed").code, CODE_PING);
        assert_eq!(client.call(LOGIN, b"please").expect("allowed").code, LOGIN);
        client.send(code, b"").expect("sent");
        let error = receive_error(&mut client, ErrorNumber::Denied);
        assert_eq!((error.caused_by, &*error.text), (Some(code), "not admitted yet"));
        assert_ended(&mut client);
    }
    server.wait_status("/workers/0/connections", |n| n == 0);
    let all = server.read("journal.txt");
    assert_eq!(all.matches(" closed Denied after 0\n").count(), 7, "{all}");
    assert!(!all.contains(" message ") && !all.contains(" held"), "{all}");

    // It holds for what is sent with it, too.
    let mut client = server.connect();
    let mut frames = bytes::BytesMut::new();
    for (code, body) in [(LOGIN, &b"sesame"[..]), (COUNT, b""), (CODE_ECHO, b"x"), (LOGIN, b"")] {
        append_frame(&mut frames, code, body).expect("short");
    }
    client.send_bytes(&frames).expect("sent");
    let codes = [(); 4].map(|()| client.receive().expect("a reply").code);
    assert_eq!(codes, [LOGIN, COUNT, CODE_ECHO, LOGIN]);
    client.send(99, b"").expect("sent");
    receive_error(&mut client, ErrorNumber::UnknownCode);
    assert_eq!(client.call(COUNT, b"").expect("open").code, COUNT);
}

#[test]
fn a_panic_of_a_handler_is_a_reason_to_close() {
    let server = start("panic", "");
    let workers = server.worker_pids();
    let (mut client, id) = counted(&server, 2);
    client.send(PANIC, b"").expect("sent");
    receive_error(&mut client, ErrorNumber::HandlerFailed);
    assert_ended(&mut client);
    drop(client);
    assert_life(&server, &id, 2, "HandlerPanicked");
    assert_eq!(server.total("handler_panics"), 1);
    assert_eq!(server.worker_pids(), workers);
}

#[test]
fn a_panic_in_connected_costs_the_connection() {
    let panics = "connected = \"panics\"\n";
    let server = start_as(SERVICE, "panic_connected", "worker_processes = 1\n", panics);
    let workers = server.worker_pids();
    for _ in 0..3 {
        let mut client = server.connect();
        let error = receive_error(&mut client, ErrorNumber::HandlerFailed);
        assert_eq!(error.caused_by, None);
        assert_ended(&mut client);
    }
    server.wait_status("/totals/connections_closed", |closed| closed == 3);
    server.wait_event("worker-0", "handler.panicked", "connected panicked: planned for connected");
    assert!(!server.read("journal.txt").contains(" closed "), "it was never let in");
    assert_eq!(server.worker_pids(), workers);
    server.wait_status("/totals/handler_panics", |panics| panics == 3);
}

#[test]
fn a_panic_in_closed_costs_nothing_else() {
    let panics = "closed = \"panics\"\n";
    let server = start_as(SERVICE, "panic_closed", "worker_processes = 1\n", panics);
    let workers = server.worker_pids();
    let mut stays = server.connect();
    assert_eq!(stays.call(COUNT, b"").expect("a reply").code, COUNT);
    for _ in 0..3 {
        let (client, id) = counted(&server, 1);
        drop(client);
        assert_life(&server, &id, 1, "PeerClosed");
    }
    server.wait_event("worker-0", "handler.panicked", "closed panicked: planned for closed");
    server.wait_status("/workers/0/connections", |n| n == 1);
    assert_eq!(stays.call(COUNT, b"").expect("untouched").code, COUNT);
    assert_eq!(server.worker_pids(), workers);
    server.wait_status("/totals/handler_panics", |panics| panics == 3);
}

/// Each connection has a permit until its last hook has run: `max_connections` bounds the states
/// that a service holds, however slow it is to give them up.
#[test]
fn a_connection_keeps_its_permit_while_closed_blocks() {
    let toml = "worker_processes = 1\nmax_connections = 2\n";
    let server = start_as(SERVICE, "closed_blocks", toml, "closed = \"hangs\"\n");
    let gate = Gate::new(server.path(GATE));
    let (first, id) = counted(&server, 1);
    let (second, _) = counted(&server, 1);
    drop(first);
    assert_life(&server, &id, 1, "PeerClosed");
    receive_error(&mut server.connect(), ErrorNumber::Busy);
    assert_eq!(server.status_number("/permits/held"), 2);
    gate.open();
    server.wait_status("/permits/held", |held| held == 1);
    let (_, id) = counted(&server, 1);
    assert_life(&server, &id, 1, "PeerClosed");
    drop(second);
}

#[test]
fn a_service_hears_of_a_peer_that_stays_too_fast() {
    let server = start("too_fast", "[limits]\nmessages_per_second = 1\n");
    let (mut client, id) = counted(&server, 1);
    // No quiet second in between: the next are sent when the last are refused.
    let many = encode(CODE_ECHO, b"x").expect("short").repeat(50);
    let begun = std::time::Instant::now();
    let end = loop {
        let sent = client.send_bytes(&many);
        match sent.and_then(|()| (0..50).try_for_each(|_| client.receive().map(drop))) {
            // A machine that lets this test wait for a second starts the ten over.
            Ok(()) => assert!(begun.elapsed() < 5 * DEADLINE, "never closed"),
            Err(error) => break error,
        }
    };
    assert!(end.is_disconnect(), "{end}");
    drop(client);
    assert_life(&server, &id, 1, "TooFast");
}

/// Begun messages that never end fill the inbox total, until the largest holders are closed.
#[test]
fn a_service_hears_of_a_peer_that_holds_too_much() {
    let toml = "[inbox]\nmax_bytes = \"64KiB\"\ntotal_max_bytes = \"1MiB\"\n\
                [timeouts]\nframe = \"1h\"\n";
    let server = start("overloaded", toml);
    let begun = encode(COUNT, &vec![7; 60_000]).expect("fits");
    let mut hogs: Vec<_> = (0..40).map(|_| server.connect()).collect();
    for hog in &mut hogs {
        hog.send_bytes(&begun[..begun.len() - 1]).expect("sent");
    }
    wait_until("the largest holders are closed", || {
        server.read("journal.txt").contains(" closed Overloaded after 0\n")
    });
}
