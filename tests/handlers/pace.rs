//! Where the handlers of a real server run, when a client wants to stop its event loop.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use bytes::BytesMut;
use chappe_client::Connection;
use chappe_testkit::application::SOMETIMES;
use chappe_testkit::{Gate, TestServer, wait_until};
use chappe_wire::{CODE_PING, append_frame};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::start;

/// What takes longer on the event loop is a relapse at once, in milliseconds.
const VERY_LONG_MS: u8 = 20;
/// The relapse at which a handler stays on the handler threads.
const RELAPSES_MAX: u64 = 3;
/// More short calls than any proof takes: 64 that are timed, one in 64 after two relapses.
const PROOF_CALLS: usize = 64 * 64 + 64;

/// Sends calls that take no time, and waits until they are handled.
fn train(client: &mut Connection) {
    let mut frames = BytesMut::new();
    (0..PROOF_CALLS).for_each(|_| append_frame(&mut frames, SOMETIMES, b"").expect("short"));
    append_frame(&mut frames, CODE_PING, b"").expect("short");
    client.send_bytes(&frames).expect("sent");
    assert_eq!(client.receive().expect("a reply").code, CODE_PING);
}

fn runs(server: &TestServer) -> String {
    let codes = server.status().codes.into_iter();
    let found = codes.filter(|it| it.code == Some(SOMETIMES)).find_map(|it| it.runs);
    found.expect("the worker has said")
}

/// A call that waits, which has begun.
fn wait_at_gate(server: &TestServer, client: &mut Connection, nth: u64) -> Gate {
    let gate = Gate::new(server.path(&format!("gate-{nth}")));
    client.send(SOMETIMES, gate.name()).expect("sent");
    let folder = format!("/proc/{}/fd", server.worker_pids()[0]);
    wait_until("the handler waits", || {
        let open = fs::read_dir(&folder).expect("a worker").flatten();
        let targets = open.filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.into_iter().any(|path| path.as_os_str().as_bytes() == gate.name())
    });
    gate
}

/// A client that trains a handler stops the other connections three times
/// in the life of a worker, and never again.
#[test]
fn a_client_that_trains_a_handler_stops_the_others_three_times() {
    let server =
        start("trained", "worker_processes = 1\n[worker]\nfuse = true\nhandler_threads = 2\n");
    let (mut attacker, mut honest) = (server.connect(), server.connect());
    let demoted = || server.status_number("/totals/handlers_demoted");
    let mut stops = 0;
    // A busy machine may cause a relapse, too.
    while demoted() < RELAPSES_MAX {
        train(&mut attacker);
        if runs(&server) != "loop" {
            continue;
        }
        let before = demoted();
        let gate = wait_at_gate(&server, &mut attacker, stops);
        honest.send(CODE_PING, b"").expect("sent");
        let mut answer = [PollFd::new(honest.as_fd(), PollFlags::POLLIN)];
        let answers = poll(&mut answer, PollTimeout::from(2 * VERY_LONG_MS)).expect("polled");
        assert_eq!(answers, 0, "the event loop waits with the handler");
        gate.open();
        assert_eq!(honest.receive().expect("a reply").code, CODE_PING);
        stops += 1;
        server.wait_status("/totals/handlers_demoted", |demoted| demoted > before);
    }
    assert!((1..=RELAPSES_MAX).contains(&stops), "{stops}");
    // As many short calls as would do after a third relapse, and more.
    (0..16).for_each(|_| train(&mut attacker));
    assert_eq!(runs(&server), "threads");
    let gate = wait_at_gate(&server, &mut attacker, stops);
    assert_eq!(honest.call(CODE_PING, b"").expect("the loop is free").code, CODE_PING);
    gate.open();
    assert_eq!(demoted(), RELAPSES_MAX);
    let lines = server.events("worker-0", "handler.demoted");
    let stays = lines.iter().filter(|line| line.contains("too often; it stays")).count();
    assert_eq!((lines.len() as u64, stays), (RELAPSES_MAX, 1), "{lines:?}");
}
