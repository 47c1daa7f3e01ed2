//! A server with handlers of its own, as an application builds one: handlers that
//! answer, fail, panic and block.
//!
//! This program starts itself as that server, so it has a runner of its own: a
//! master must have one thread.

#[path = "handlers/pushes.rs"]
mod pushes;
#[path = "support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the tests of the stock server use all of it")]
mod support;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use chappe::{Handler, HandlerError, Outcome, Replies, Request, Server};
use chappe_client::{Client, ClientError, Frame};
use chappe_wire::{CODE_ECHO, CODE_PING, ErrorNumber, append_frame};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;
use support::{TestServer, wait_until};

const IS_SERVER: &str = "CHAPPE_TEST_IS_SERVER";

const TWICE: u16 = 16;
const FAIL: u16 = 17;
const PANIC: u16 = 18;
/// Blocks until the file that the body names is there.
const BLOCK: u16 = 19;
/// Takes two milliseconds and answers nothing.
const QUIET: u16 = 20;
/// Says that it is quick, and takes as many milliseconds as the body's one byte says.
const BOASTS: u16 = 21;

/// Says that it is quick, and computes for 300 microseconds.
const COMPUTES: u16 = 22;

struct Computes;

impl Handler for Computes {
    fn handle(&self, _: &Request<'_>, replies: &mut Replies) -> Outcome {
        let began = Instant::now();
        while began.elapsed() < Duration::from_micros(300) {
            std::hint::spin_loop();
        }
        replies.send(COMPUTES, b"")
    }

    fn is_quick(&self) -> bool {
        true
    }
}

struct Boasts;

impl Handler for Boasts {
    fn handle(&self, request: &Request<'_>, replies: &mut Replies) -> Outcome {
        let until = Instant::now() + Duration::from_millis(request.body()[0].into());
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            std::thread::park_timeout(left);
        }
        replies.send(BOASTS, b"")
    }

    fn is_quick(&self) -> bool {
        true
    }
}

fn main() -> ExitCode {
    if std::env::var_os(IS_SERVER).is_some() {
        return server();
    }
    let tests: &[(&str, fn())] = &[
        ("a_handler_may_answer_more_than_once", a_handler_may_answer_more_than_once),
        ("a_failed_handler_costs_its_message", a_failed_handler_costs_its_message),
        ("a_panic_costs_its_connection_only", a_panic_costs_its_connection_only),
        ("a_storm_of_panics_is_told_with_a_count", a_storm_of_panics_is_told_with_a_count),
        ("a_quick_handler_that_is_not_is_demoted", a_quick_handler_that_is_not_is_demoted),
        ("a_quick_handler_that_takes_a_little_too_long_is_found", a_little_too_long_is_found),
        ("quick_handlers_run_on_the_loop_if_fused", quick_handlers_run_on_the_loop_if_fused),
        ("a_blocked_handler_holds_back_nobody", a_blocked_handler_holds_back_nobody),
        ("messages_of_a_connection_wait_their_turn", messages_of_a_connection_wait_their_turn),
        ("quit_waits_for_a_handler_and_no_longer_than_told", quit_waits_for_a_handler),
        ("term_does_not_wait_for_a_handler", term_does_not_wait_for_a_handler),
        ("a_closed_unix_peer_is_heard_to_its_end", a_closed_unix_peer_is_heard_to_its_end),
        ("a_drain_ends_behind_a_peer_that_left_a_blocked_handler", a_drain_ends_behind_a_reset),
        ("messages_of_a_peer_that_left_are_counted_once", what_was_left_is_counted_once),
    ];
    let tests = [tests, pushes::TESTS].concat();
    let only = std::env::args().nth(1).filter(|name| !name.starts_with('-')).unwrap_or_default();
    let chosen: Vec<_> = tests.iter().filter(|(name, _)| name.contains(&only)).collect();
    let failed = chosen.iter().filter(|(name, test)| !passes(name, *test)).count();
    println!("{} passed, {failed} failed", chosen.len() - failed);
    ExitCode::from(u8::from(failed > 0))
}

fn passes(name: &str, test: fn()) -> bool {
    let passed = std::panic::catch_unwind(test).is_ok();
    println!("{name}: {}", if passed { "ok" } else { "FAILED" });
    passed
}

fn server() -> ExitCode {
    pushes::handlers(Server::new())
        .on(TWICE, |request: &Request<'_>, replies: &mut Replies| -> Outcome {
            replies.send(TWICE, request.body())?;
            replies.send(TWICE, request.body())
        })
        .on(FAIL, |_: &Request<'_>, replies: &mut Replies| -> Outcome {
            replies.send(FAIL, b"half an answer")?;
            Err(HandlerError::new("out of ink"))
        })
        .on(PANIC, |_: &Request<'_>, _: &mut Replies| -> Outcome { panic!("planned") })
        .on(BLOCK, |request: &Request<'_>, replies: &mut Replies| -> Outcome {
            let path = String::from_utf8_lossy(request.body()).into_owned();
            while !Path::new(&path).exists() {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            replies.send(BLOCK, b"")
        })
        .on(BOASTS, Boasts)
        .on(COMPUTES, Computes)
        .on(QUIET, |_: &Request<'_>, _: &mut Replies| -> Outcome {
            std::thread::park_timeout(Duration::from_millis(2));
            Ok(())
        })
        .main()
}

fn start(test: &str, toml: &str) -> TestServer {
    let mut program = Command::new(std::env::current_exe().expect("this program"));
    program.env(IS_SERVER, "1");
    // The handlers look at files of the test, which may lie where only its user may.
    let toml = format!("user = \"\"\n{toml}");
    TestServer::start_program(program, &format!("handlers_{test}"), &toml)
}

#[track_caller]
fn assert_failed(frame: &Frame, code: u16, text: &str) {
    let error = frame.as_error().expect("an error frame");
    assert!(error.is(ErrorNumber::HandlerFailed), "{error}");
    assert_eq!((error.caused_by, &*error.text), (Some(code), text));
}

fn a_storm_of_panics_is_told_with_a_count() {
    let server = start("panic_storm", "worker_processes = 1\n");
    for _ in 0..200 {
        let mut client = server.connect();
        assert_failed(&client.call(PANIC, b"").expect("a reply"), PANIC, "the handler panicked");
    }
    server.wait_status("/totals/handler_panics", |panics| panics == 200);
    let log = server.read("logs/worker-0.log");
    // Five at once, and five more if ten seconds have passed meanwhile.
    for told in [" handler panicked: planned", " panic: planned"] {
        assert!((1..=10).contains(&log.matches(told).count()), "{told}: {log}");
    }
}

/// Sends a message whose handler blocks, and waits until it does.
fn block(server: &TestServer, client: &mut Client, busy: u64) -> std::path::PathBuf {
    let file = server.dir.join(format!("go-{busy}"));
    client.send(BLOCK, file.to_string_lossy().as_bytes()).expect("sent");
    wait_until("the handler is busy", || {
        let status = server.status_json();
        let busy_now = status["workers"].as_array().expect("workers").iter();
        busy_now.map(|worker| worker["handlers_busy"].as_u64().unwrap_or(0)).sum::<u64>() == busy
    });
    file
}

fn a_handler_may_answer_more_than_once() {
    let server = start("twice", "");
    let mut client = server.connect();
    client.send(TWICE, b"a").expect("sent");
    client.send(CODE_ECHO, b"b").expect("sent");
    let replies: Vec<_> = (0..3).map(|_| client.receive().expect("a reply").body).collect();
    assert_eq!(replies, [&b"a"[..], b"a", b"b"]);
}

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
    assert_eq!(server.status_json()["totals"]["handler_panics"], 1);
}

fn a_quick_handler_that_is_not_is_demoted() {
    let server = start("boast", "worker_processes = 1\n[worker]\nfuse = true\n");
    let (mut client, mut other) = (server.connect(), server.connect());
    assert_eq!(client.call(BOASTS, &[0]).expect("quick").code, BOASTS);
    assert_eq!(server.status_number("/totals/handlers_demoted"), 0);
    // The first long turn makes the handler suspect; the second call is timed, and demotes it.
    for _ in 0..2 {
        for code in [CODE_PING, BOASTS, CODE_PING] {
            client.send(code, &[60]).expect("sent");
        }
        let codes = [(); 3].map(|()| client.receive().expect("a reply").code);
        assert_eq!(codes, [CODE_PING, BOASTS, CODE_PING]);
    }
    server.wait_status("/totals/handlers_demoted", |demoted| demoted == 1);
    let log = "the handler of a code says that it is quick and is not";
    server.wait_log("worker-0", log);
    // It delays no other connection any more, and is still answered.
    client.send(BOASTS, &[250]).expect("sent");
    wait_until("the handler is busy", || server.status_number("/workers/0/handlers_busy") == 1);
    for _ in 0..10 {
        assert_eq!(other.call(CODE_PING, b"").expect("served").code, CODE_PING);
    }
    assert_eq!(client.receive().expect("a reply").code, BOASTS);
    assert_eq!(server.status_number("/totals/handlers_demoted"), 1);
}

/// Far below what ends a turn, and no single call delays others by much.
fn a_little_too_long_is_found() {
    let server = start("computes", "worker_processes = 1\n[worker]\nfuse = true\n");
    let mut client = server.connect();
    // 50 ms are less than two hundred calls of 300 us.
    wait_until("it is demoted", || {
        for code in [CODE_PING, COMPUTES, CODE_ECHO].repeat(50) {
            assert_eq!(client.call(code, b"").expect("a reply").code, code);
        }
        server.status_number("/totals/handlers_demoted") == 1
    });
    let log = server.read("logs/worker-0.log");
    let found: Vec<_> = log.lines().filter(|line| line.contains("is quick and is not")).collect();
    assert!(found.len() == 1 && found[0].contains(&format!("code={COMPUTES} ")), "{found:?}");
}

/// Shown by the posts of the semaphore: a reply that the loop has written costs none.
fn quick_handlers_run_on_the_loop_if_fused() {
    for (fuse, posts) in [(true, 0), (false, 100)] {
        let toml = format!("worker_processes = 1\n[worker]\nfuse = {fuse}\n");
        let server = start(&format!("fuse_{fuse}"), &toml);
        let mut client = server.connect();
        for _ in 0..100 {
            assert_eq!(client.call(CODE_ECHO, b"x").expect("a reply").code, CODE_ECHO);
        }
        server.wait_status("/totals/frames_sent", |sent| sent == 100);
        assert_eq!(server.status_number("/totals/semaphore_posts"), posts, "{fuse}");
        // A handler that does not say that it is quick never runs there.
        assert_eq!(client.call(TWICE, b"x").expect("a reply").code, TWICE);
        server.wait_status("/totals/semaphore_posts", |now| now == posts + 1);
    }
}

fn a_blocked_handler_holds_back_nobody() {
    let server = start("block", "worker_processes = 1\n[worker]\nhandler_threads = 2\n");
    let (mut client, mut other) = (server.connect(), server.connect());
    // Answered before the handler that blocks, in the same turn.
    client.send(CODE_ECHO, b"before").expect("sent");
    let file = block(&server, &mut client, 1);
    assert_eq!(client.receive().expect("not held back").body, &b"before"[..]);
    for _ in 0..100 {
        assert_eq!(other.call(CODE_PING, b"").expect("served").code, CODE_PING);
    }
    server.wait_log("worker-0", "a handler has been running for long");
    let status = server.status_json();
    assert!(status["workers"][0]["oldest_handler_ms"].as_u64().expect("a number") >= 1000);
    std::fs::write(file, "").expect("the file");
    assert_eq!(client.receive().expect("a reply").code, BLOCK);
    // More than a second, and less than ten.
    server.wait_status("/workers/0/handler_times/6/turns", |turns| turns == 1);
    let status = server.status_json();
    let rows = status["workers"][0]["handler_times"].as_array().expect("rows");
    assert_eq!((rows.len(), &rows[7]["up_to_us"]), (8, &serde_json::Value::Null));
}

fn messages_of_a_connection_wait_their_turn() {
    let server = start("order", "worker_processes = 1\n[worker]\nhandler_threads = 4\n");
    let mut client = server.connect();
    let file = block(&server, &mut client, 1);
    for byte in 0..100_u8 {
        client.send(CODE_ECHO, &[byte]).expect("sent");
    }
    std::fs::write(file, "").expect("the file");
    assert_eq!(client.receive().expect("a reply").code, BLOCK);
    for byte in 0..100_u8 {
        assert_eq!(client.receive().expect("a reply").body, &[byte][..]);
    }
}

fn quit_waits_for_a_handler() {
    let mut server = start("quit", "worker_processes = 1\n");
    let mut client = server.connect();
    let file = block(&server, &mut client, 1);
    server.signal(Signal::SIGQUIT);
    server.wait_log("worker-0", "worker drains");
    std::fs::write(file, "").expect("the file");
    // The goodbye stands behind what was received before.
    assert_eq!(client.receive().expect("a reply").code, BLOCK);
    assert!(client.receive().expect("a frame").as_goodbye().is_some());
    assert_eq!(server.wait_exit().code(), Some(0));

    let toml = "worker_processes = 1\nworker_shutdown_timeout = \"300ms\"\n";
    let mut server = start("quit_cut", toml);
    let mut client = server.connect();
    block(&server, &mut client, 1);
    server.signal(Signal::SIGQUIT);
    assert_eq!(server.wait_exit().code(), Some(0));
}

fn term_does_not_wait_for_a_handler() {
    let mut server = start("term", "worker_processes = 1\n");
    let mut client = server.connect();
    block(&server, &mut client, 1);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0));
}

/// No connection is left, but a thread is: the worker still hears its signals.
fn a_drain_ends_behind_a_reset() {
    let mut server = start("reset", "worker_processes = 1\n");
    let worker = server.worker_pids()[0];
    let mut client = server.connect();
    block(&server, &mut client, 1);
    // Closed with the handler's reply to come: nothing to wait for in the worker.
    drop(client);
    server.signal(Signal::SIGQUIT);
    server.wait_log("worker-0", "worker drains");
    kill(Pid::from_raw(worker), Signal::SIGTERM).expect("it is there");
    assert_eq!(server.wait_exit().code(), Some(0));
}

/// One message is being handled when its peer is lost, others wait: each is counted
/// where it ended, and nowhere else.
fn what_was_left_is_counted_once() {
    let server = start("counted_once", "worker_processes = 1\n");
    let mut client = server.connect();
    let file = server.dir.join("go");
    // One write, so that one turn gets all of them in one piece.
    let mut frames = bytes::BytesMut::new();
    append_frame(&mut frames, CODE_ECHO, b"answered").expect("short");
    append_frame(&mut frames, BLOCK, file.to_string_lossy().as_bytes()).expect("short");
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
    std::fs::write(file, "").expect("the file");
    server.wait_status("/workers/0/handlers_busy", |busy| busy == 0);
    let totals = server.status_json()["totals"].clone();
    let total = |name: &str| totals[name].as_u64().expect("a counter");
    assert_eq!(total("frames_received"), 7);
    assert_eq!(total("frames_sent"), 1);
    assert_eq!(total("messages_expired") + total("messages_dropped"), 6, "{totals:#}");
}

/// Much more than the inbox takes and than one read brings is left in the kernel by
/// a peer that is gone; the socket tells of that first, and again and again.
fn a_closed_unix_peer_is_heard_to_its_end() {
    const MESSAGES: u64 = 300;
    let toml = "worker_processes = 1\n[inbox]\nmax_messages = 4\n\
                [[listen]]\naddress = \"127.0.0.1:0\"\n\
                [[listen]]\naddress = \"unix:a.sock\"\n";
    let server = start("unix_heard", toml);
    let mut client =
        Client::connect_unix(server.dir.join("a.sock"), support::DEADLINE).expect("connected");
    for _ in 0..MESSAGES {
        client.send(QUIET, &[7; 1000]).expect("sent");
    }
    drop(client);
    server.wait_status("/totals/connections_closed", |closed| closed == 1);
    assert_eq!(server.status_number("/totals/frames_received"), MESSAGES);
    assert!(server.status_number("/totals/reads_paused") > 0, "it was more than fits");
    // Idle while it waits for the handlers: a hundredth of a second is a tick.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.worker_pids()[0]));
    let stat = stat.expect("the worker runs");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    let ticks: u64 = fields[11..=12].iter().map(|field| field.parse::<u64>().expect("ticks")).sum();
    assert!(ticks < 40, "{ticks} ticks of CPU: the loop does not sleep");
}
