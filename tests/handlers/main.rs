//! A server with handlers of its own, as an application builds one: handlers that
//! answer, fail, panic and block. They are in `tests/support/src/application`.

mod deferred;
mod figures;
mod hooks;
mod pace;
mod pushes;
mod resp;
mod service;
mod starting;
mod timers;
mod topics;

use chappe_client::{ClientError, Connection, Frame};
use chappe_testkit::application::{FAIL, HOLD, PANIC, QUIET, TWICE};
use chappe_testkit::{DEADLINE, Gate, TestServer, wait_until};
use chappe_wire::{CODE_ECHO, CODE_PING, ErrorNumber, append_frame};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

fn start(test: &str, toml: &str) -> TestServer {
    // The handlers open files of the test, which may be where only its user may.
    let toml = format!("user = \"\"\n{toml}");
    TestServer::start_application(&format!("handlers_{test}"), &toml, |_| {})
}

#[track_caller]
fn assert_failed(frame: &Frame, code: u16, text: &str) {
    let error = frame.as_error().expect("an error frame");
    assert!(error.is(ErrorNumber::HandlerFailed), "{error}");
    assert_eq!((error.caused_by, &*error.text), (Some(code), text));
}

#[test]
fn a_storm_of_panics_is_told_with_a_count() {
    let server = start("panic_storm", "worker_processes = 1\n");
    for _ in 0..200 {
        let mut client = server.connect();
        assert_failed(&client.call(PANIC, b"").expect("a reply"), PANIC, "the handler panicked");
    }
    server.wait_status("/totals/handler_panics", |panics| panics == 200);
    // Five at once, and five more if ten seconds have passed since.
    for event in ["handler.panicked", "process.panic"] {
        let lines = server.events("worker-0", event);
        assert!((1..=10).contains(&lines.len()), "{lines:?}");
        assert!(lines.iter().all(|line| line.contains("planned")), "{lines:?}");
    }
}

/// Sends a message whose handler blocks, and waits until it does.
fn block(server: &TestServer, client: &mut Connection, busy: u64) -> Gate {
    let gate = Gate::new(server.dir.join(format!("gate-{busy}")));
    client.send(HOLD, gate.name()).expect("sent");
    wait_until("the handler is busy", || {
        let status = server.status_json();
        let busy_now = status["workers"].as_array().expect("workers").iter();
        busy_now.map(|worker| worker["handlers_busy"].as_u64().unwrap_or(0)).sum::<u64>() == busy
    });
    gate
}

#[test]
fn a_handler_may_answer_more_than_once() {
    let server = start("twice", "");
    let mut client = server.connect();
    client.send(TWICE, b"a").expect("sent");
    client.send(CODE_ECHO, b"b").expect("sent");
    let replies: Vec<_> = (0..3).map(|_| client.receive().expect("a reply").body).collect();
    assert_eq!(replies, [&b"a"[..], b"a", b"b"]);
}

#[test]
fn a_failed_handler_costs_its_message() {
    let server = start("fail", "");
    let mut client = server.connect();
    for code in [FAIL, CODE_PING, FAIL] {
        client.send(code, b"").expect("sent");
    }
    assert_failed(&client.receive().expect("a reply"), FAIL, "out of ink");
    assert_eq!(client.receive().expect("a reply").code, CODE_PING);
    assert_failed(&client.receive().expect("a reply"), FAIL, "out of ink");
    assert_eq!(client.call(CODE_PING, b"").expect("still open").code, CODE_PING);
}

#[test]
fn a_panic_costs_its_connection_only() {
    let server = start("panic", "worker_processes = 1\n");
    let workers = server.worker_pids();
    let mut other = server.connect();
    let mut client = server.connect();
    for code in [CODE_PING, PANIC, CODE_PING] {
        client.send(code, b"").expect("sent");
    }
    assert_eq!(client.receive().expect("a reply").code, CODE_PING);
    assert_failed(&client.receive().expect("a reply"), PANIC, "the handler panicked");
    assert!(matches!(client.receive(), Err(ClientError::Closed)), "nothing after it, then FIN");
    assert_eq!(other.call(CODE_PING, b"").expect("untouched").code, CODE_PING);
    assert_eq!(server.worker_pids(), workers);
    assert_eq!(server.total("handler_panics"), 1);
}

/// Shown by the posts of the semaphore: a reply that the loop has written costs none.
#[test]
fn quick_handlers_run_on_the_loop_if_fused() {
    for (fuse, posts) in [(true, 0), (false, 100)] {
        let toml = format!("worker_processes = 1\n[worker]\nfuse = {fuse}\n");
        let server = start(&format!("fuse_{fuse}"), &toml);
        let mut client = server.connect();
        for _ in 0..100 {
            assert_eq!(client.call(CODE_ECHO, b"x").expect("a reply").code, CODE_ECHO);
        }
        server.wait_status("/totals/frames_sent", |sent| sent == 100);
        assert_eq!(server.total("semaphore_posts"), posts, "{fuse}");
        // A handler that has not proven to be quick does not run there.
        assert_eq!(client.call(TWICE, b"x").expect("a reply").code, TWICE);
        server.wait_status("/totals/semaphore_posts", |now| now == posts + 1);
    }
}

#[test]
fn a_blocked_handler_holds_back_nobody() {
    let server = start("block", "worker_processes = 1\n[worker]\nhandler_threads = 2\n");
    let (mut client, mut other) = (server.connect(), server.connect());
    // Answered before the handler that blocks, in the same turn.
    client.send(CODE_ECHO, b"before").expect("sent");
    let gate = block(&server, &mut client, 1);
    assert_eq!(client.receive().expect("not held back").body, &b"before"[..]);
    for _ in 0..100 {
        assert_eq!(other.call(CODE_PING, b"").expect("served").code, CODE_PING);
    }
    server.wait_event("worker-0", "handler.slow", "");
    let status = server.status_json();
    assert!(status["workers"][0]["oldest_handler_ms"].as_u64().expect("a number") >= 1000);
    gate.open();
    assert_eq!(client.receive().expect("a reply").code, HOLD);
    // More than a second, and less than ten.
    server.wait_status("/workers/0/handler_times/6/turns", |turns| turns == 1);
    let status = server.status_json();
    let rows = status["workers"][0]["handler_times"].as_array().expect("rows");
    assert_eq!((rows.len(), &rows[7]["up_to_us"]), (8, &serde_json::Value::Null));
}

#[test]
fn messages_of_a_connection_wait_their_turn() {
    let server = start("order", "worker_processes = 1\n[worker]\nhandler_threads = 4\n");
    let mut client = server.connect();
    let gate = block(&server, &mut client, 1);
    for byte in 0..100_u8 {
        client.send(CODE_ECHO, &[byte]).expect("sent");
    }
    gate.open();
    assert_eq!(client.receive().expect("a reply").code, HOLD);
    for byte in 0..100_u8 {
        assert_eq!(client.receive().expect("a reply").body, &[byte][..]);
    }
}

#[test]
fn quit_waits_for_a_handler_and_no_longer_than_told() {
    let mut server = start("quit", "worker_processes = 1\n");
    let mut client = server.connect();
    let gate = block(&server, &mut client, 1);
    server.signal(Signal::SIGQUIT);
    server.wait_event("worker-0", "worker.drains", "");
    gate.open();
    // The goodbye stands behind what was received before.
    assert_eq!(client.receive().expect("a reply").code, HOLD);
    assert!(client.receive().expect("a frame").as_goodbye().is_some());
    assert_eq!(server.wait_exit().code(), Some(0));

    let toml = "worker_processes = 1\nworker_shutdown_timeout = \"300ms\"\n";
    let mut server = start("quit_cut", toml);
    let mut client = server.connect();
    let _gate = block(&server, &mut client, 1);
    server.signal(Signal::SIGQUIT);
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn term_does_not_wait_for_a_handler() {
    let mut server = start("term", "worker_processes = 1\n");
    let mut client = server.connect();
    let _gate = block(&server, &mut client, 1);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0));
}

/// No connection is left, but a thread is: the worker still hears its signals.
#[test]
fn a_drain_ends_behind_a_peer_that_left_a_blocked_handler() {
    let mut server = start("reset", "worker_processes = 1\n");
    let worker = server.worker_pids()[0];
    let mut client = server.connect();
    let _gate = block(&server, &mut client, 1);
    // Closed with the handler's reply to come: nothing to wait for in the worker.
    drop(client);
    server.signal(Signal::SIGQUIT);
    server.wait_event("worker-0", "worker.drains", "");
    kill(Pid::from_raw(worker), Signal::SIGTERM).expect("it is there");
    assert_eq!(server.wait_exit().code(), Some(0));
}

/// One message is being handled when its peer is lost, others wait: each is counted
/// where it ended, and nowhere else.
#[test]
fn messages_of_a_peer_that_left_are_counted_once() {
    let server = start("counted_once", "worker_processes = 1\n");
    let mut client = server.connect();
    let gate = Gate::new(server.dir.join("gate"));
    // One write, so that one turn gets all of them in one piece.
    let mut frames = bytes::BytesMut::new();
    append_frame(&mut frames, CODE_ECHO, b"answered").expect("short");
    append_frame(&mut frames, HOLD, gate.name()).expect("short");
    for _ in 0..5 {
        append_frame(&mut frames, CODE_ECHO, b"never handled").expect("short");
    }
    client.send_bytes(&frames).expect("sent");
    assert_eq!(client.receive().expect("a reply").body, &b"answered"[..]);
    // With a linger of zero, close sends a reset.
    let abort = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&client, sockopt::Linger, &abort).expect("SO_LINGER");
    drop(client);
    server.wait_status("/totals/connections_closed", |closed| closed == 1);
    gate.open();
    server.wait_status("/workers/0/handlers_busy", |busy| busy == 0);
    let totals = server.status_json()["totals"].clone();
    let total = |name: &str| totals[name].as_u64().expect("a counter");
    assert_eq!(total("frames_received"), 7);
    assert_eq!(total("frames_sent"), 1);
    assert_eq!(total("messages_expired") + total("messages_dropped"), 6, "{totals:#}");
}

/// Much more than the inbox takes and than one read brings is left in the kernel by
/// a peer that is gone; the socket tells of that first, and again and again.
#[test]
fn a_closed_unix_peer_is_heard_to_its_end() {
    const MESSAGES: u64 = 300;
    let toml = "worker_processes = 1\n[inbox]\nmax_messages = 4\n\
                [[listen]]\naddress = \"127.0.0.1:0\"\n\
                [[listen]]\naddress = \"unix:a.sock\"\n";
    let server = start("unix_heard", toml);
    let mut client =
        Connection::connect_unix(server.dir.join("a.sock"), DEADLINE).expect("connected");
    for _ in 0..MESSAGES {
        client.send(QUIET, &[7; 1000]).expect("sent");
    }
    drop(client);
    server.wait_status("/totals/connections_closed", |closed| closed == 1);
    assert_eq!(server.total("frames_received"), MESSAGES);
    assert!(server.total("reads_paused") > 0, "it was more than fits");
    // Idle while it waits for the handlers: a hundredth of a second is a tick.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.worker_pids()[0]));
    let stat = stat.expect("the worker runs");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    let ticks: u64 = fields[11..=12].iter().map(|field| field.parse::<u64>().expect("ticks")).sum();
    assert!(ticks < 40, "{ticks} ticks of CPU: the loop does not sleep");
}
