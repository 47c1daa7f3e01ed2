//! What an application counts, and what is counted of each of its message codes: in `status`,
//! as metrics and on the page, over a reload and a crash.

use std::io::{Read, Write};
use std::net::TcpStream;

use chappe::control::{CodeStatus, Status};
use chappe_client::Connection;
use chappe_testkit::application::{FAIL, HOLD, NOTHING, PANIC, TWICE};
use chappe_testkit::{DEADLINE, Gate, TestServer, wait_until};
use chappe_wire::{CODE_ECHO, CODE_PING, append_frame};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{block, start};

/// Short calls that bring a handler onto the loop.
const PROOF_CALLS: u32 = 64;

#[track_caller]
fn code(server: &TestServer, code: u16) -> CodeStatus {
    let Status { codes, .. } = server.status();
    let found = codes.iter().find(|it| it.code == Some(code));
    found.unwrap_or_else(|| panic!("code {code} in {codes:?}")).clone()
}

/// Calls are counted at the end of their turn, which the peer may outrun.
#[track_caller]
fn wait_calls(server: &TestServer, of: u16, calls: u64) -> CodeStatus {
    wait_until(&format!("{calls} calls of {of}"), || code(server, of).calls == calls);
    code(server, of)
}

fn twice(client: &mut Connection) {
    client.send(TWICE, b"x").expect("sent");
    (0..2).for_each(|_| assert_eq!(client.receive().expect("a reply").code, TWICE));
}

#[test]
fn calls_and_counters_are_kept_over_a_reload_and_a_crash() {
    let server = start("kept", "worker_processes = 1\n");
    for round in 1..=3 {
        let mut client = server.connect();
        for _ in 0..5 {
            twice(&mut client);
        }
        client.call(FAIL, b"").expect("an error");
        client.call(99, b"").expect("nobody handles it");
        drop(client);
        server.connect().call(PANIC, b"").expect("an error");
        wait_calls(&server, PANIC, round);
        assert_eq!(server.total("app_answers"), 10 * round);
        assert_eq!(server.total("app_never"), 0);
        let CodeStatus { calls, errors, timed, p50_us, p99_us, .. } = code(&server, TWICE);
        assert_eq!((calls, errors, timed), (5 * round, 0, 5 * round), "each one while it proves");
        assert!(p50_us <= p99_us && p50_us.is_some(), "{p50_us:?} {p99_us:?}");
        for failing in [FAIL, PANIC] {
            let CodeStatus { calls, errors, .. } = code(&server, failing);
            assert_eq!((calls, errors), (round, round), "{failing}");
        }
        assert!(server.status().codes.iter().all(|it| it.code != Some(99)));
        let workers = server.worker_pids();
        if round == 1 {
            assert_eq!(server.run(&["reload"]).code, Some(0));
        } else {
            kill(Pid::from_raw(workers[0]), Signal::SIGKILL).expect("our worker");
        }
        server.wait_workers(1, &workers);
        server.wait_serving(1);
        assert_eq!(server.status_number("/workers/0/counters/app_answers"), 0, "a new one");
    }
    assert_eq!(server.total("app_answers"), 30);
}

#[test]
fn nothing_runs_on_an_event_loop_that_runs_no_handlers() {
    let server = start("unfused", "worker_processes = 1\n[worker]\nfuse = false\n");
    let mut client = server.connect();
    for _ in 0..2 * PROOF_CALLS {
        client.send(NOTHING, b"").expect("sent");
    }
    client.call(CODE_PING, b"").expect("a reply");
    let runs = [CODE_PING, NOTHING, HOLD].map(|of| code(&server, of).runs.expect("it has said"));
    assert_eq!(runs, ["threads", "threads", "blocking"]);
    assert_eq!(code(&server, CODE_PING).on_loop, 0);
}

#[test]
fn status_says_where_a_handler_runs() {
    let server = start("runs", "worker_processes = 2\n[worker]\nfuse = true\n");
    let runs = |of: u16| code(&server, of).runs.expect("the workers have said");
    let begun = (runs(CODE_PING), runs(NOTHING), runs(HOLD));
    assert_eq!((&*begun.0, &*begun.1, &*begun.2), ("loop", "threads", "blocking"));
    let mut client = server.connect();
    twice(&mut client);
    let mut frames = bytes::BytesMut::new();
    (0..PROOF_CALLS).for_each(|_| append_frame(&mut frames, NOTHING, b"").expect("short"));
    append_frame(&mut frames, CODE_PING, b"").expect("short");
    // A slow machine may have to prove it again.
    wait_until("it is quick", || {
        client.send_bytes(&frames).expect("sent");
        client.receive().expect("a reply");
        runs(NOTHING) == "loop"
    });
    let CodeStatus { on_loop, workers, .. } = code(&server, NOTHING);
    assert_eq!((on_loop, workers), (1, 2));
    let table = server.run(&["status"]).stdout;
    let row = table.lines().find(|line| line.starts_with("      90 ")).expect("a row");
    assert!(row.ends_with("  loop in 1 of 2 workers"), "{table}");
    assert!(table.contains("\napplication\n  app_answers "), "{table}");
    assert!(table.contains("\ncodes left out since nobody has called them: "), "{table}");
    assert!(!table.contains("app_never"), "{table}");
    let all = server.run(&["status", "--all"]).stdout;
    assert!(all.contains("  app_never ") && all.contains("  blocking\n"), "{all}");
}

#[test]
fn a_call_that_waits_is_seen_in_the_times_of_its_code() {
    let server = start("times", "worker_processes = 1\n");
    let mut client = server.connect();
    let gate = block(&server, &mut client, 1);
    server.wait_event("worker-0", "handler.slow", "");
    gate.open();
    client.receive().expect("a reply");
    // More than a second, and less than ten.
    let CodeStatus { timed, p50_us, p99_us, .. } = wait_calls(&server, HOLD, 1);
    assert_eq!((timed, p50_us, p99_us), (1, Some(10_000_000), Some(10_000_000)));
    let open = Gate::new(server.dir.join("open"));
    let name = open.name().to_vec();
    open.open();
    (0..9).for_each(|_| drop(client.call(HOLD, &name).expect("a reply")));
    let CodeStatus { p50_us, p99_us, .. } = wait_calls(&server, HOLD, 10);
    assert!(p50_us < Some(1_000_000) && p99_us == Some(10_000_000), "{p50_us:?} {p99_us:?}");
}

/// Of many messages that come together some are timed, and those of each of two codes that
/// alternate.
#[test]
fn of_quick_calls_some_are_timed() {
    const ROUNDS: u64 = 40;
    const PAIRS: u64 = 100;
    let server = start("sampled", "worker_processes = 1\n");
    let mut client = server.connect();
    let mut frames = bytes::BytesMut::new();
    for _ in 0..PAIRS {
        append_frame(&mut frames, CODE_PING, b"").expect("short");
        append_frame(&mut frames, CODE_ECHO, b"x").expect("short");
    }
    for _ in 0..ROUNDS {
        client.send_bytes(&frames).expect("sent");
        (0..2 * PAIRS).for_each(|_| drop(client.receive().expect("a reply")));
    }
    for of in [CODE_PING, CODE_ECHO] {
        let CodeStatus { timed, calls, .. } = wait_calls(&server, of, ROUNDS * PAIRS);
        assert!(timed > calls / 50 && timed < calls / 4, "{timed} of {calls} of code {of}");
    }
}

#[test]
fn a_message_that_no_handler_gets_is_no_call() {
    let server = start("uncalled", "worker_processes = 1\n");
    let mut client = server.connect();
    client.call(CODE_ECHO, b"x").expect("a reply");
    let mut broken = bytes::BytesMut::new();
    append_frame(&mut broken, CODE_ECHO, b"x").expect("short");
    broken[7] ^= 1;
    client.send_bytes(&broken).expect("sent");
    assert!(client.receive().expect("an error").as_error().is_some());
    server.wait_status("/totals/connections_closed", |closed| closed == 1);
    let CodeStatus { calls, errors, .. } = code(&server, CODE_ECHO);
    assert_eq!((calls, errors), (1, 0));
}

/// The body of the answer to a GET.
#[track_caller]
fn get(server: &TestServer, path: &str) -> String {
    wait_until("a metrics process", || server.status().metrics.is_some_and(|it| it.pid.is_some()));
    let address = server.status().metrics.expect("metrics").address;
    let mut socket = TcpStream::connect(&address).expect("connected");
    socket.set_read_timeout(Some(DEADLINE)).expect("a time-out");
    write!(socket, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").expect("sent");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer and an end");
    answer
}

#[test]
fn metrics_and_the_page_have_the_same_figures() {
    let metrics = "[metrics]\naddress = \"127.0.0.1:0\"\n";
    let fused = "[worker]\nfuse = true\n";
    let server = start("metrics", &format!("worker_processes = 1\n{metrics}{fused}"));
    let mut client = server.connect();
    (0..3).for_each(|_| twice(&mut client));
    client.call(FAIL, b"").expect("an error");
    wait_calls(&server, FAIL, 1);
    let text = get(&server, "/metrics");
    for line in [
        "chappe_app_answers_total 6",
        "chappe_app_never_total 0",
        "chappe_code_calls_total{code=\"16\"} 3",
        "chappe_code_errors_total{code=\"17\"} 1",
        "chappe_code_workers_on_loop{code=\"0\"} 1",
        "chappe_code_workers_on_loop{code=\"16\"} 0",
        "chappe_code_call_seconds_count{code=\"16\"} 3",
    ] {
        assert!(text.lines().any(|it| it == line), "{line}: {text}");
    }
    let state = get(&server, "/state?after=0");
    let state: serde_json::Value =
        serde_json::from_str(state.split_once("\r\n\r\n").expect("a head").1).expect("JSON");
    assert_eq!(
        (&state["totals"]["app_answers"], &state["totals"]["app_never"]),
        (&6.into(), &0.into())
    );
    assert_eq!(state["codes"], server.status_json()["codes"]);
}
