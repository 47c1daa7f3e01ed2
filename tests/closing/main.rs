//! Closing in each state a connection can be in, again and again: afterwards the
//! worker has what it had before, in descriptors, permits, memory and counts.
//!
//! Each case runs `CHAPPE_ROUNDS` times, 200 by default; `scripts/closing` runs
//! each 10 000 times and prints what it measured. This program starts itself as a
//! server with handlers of its own, so it has a runner of its own: a master must
//! have one thread.

mod cases;
mod stage;
#[path = "../support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the tests of the stock server use all of it")]
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cases::{CASES, Case};
use chappe::{Outcome, Replies, Request, Server};
use stage::{Measured, Site, Stage};
use support::wait_for;

const IS_SERVER: &str = "CHAPPE_TEST_IS_SERVER";
const ROUNDS: &str = "CHAPPE_ROUNDS";
const ROUNDS_DEFAULT: usize = 200;

/// Blocks until the file that the body names is there, then answers.
const HOLD: u16 = 16;
const PANIC: u16 = 17;
/// Returns the worker's free memory to the kernel, then answers.
const GIVE_BACK: u16 = 18;

/// What memory may have grown by over a case, however many rounds it has. It is compared
/// after free memory was returned to the kernel, which is done in whole pages: what stays
/// is in use, or shares a page with something that is. A leak of 200 bytes a connection
/// shows at 10 000 rounds, one of 10 KB at 200.
const GROWTH_BYTES_MAX: u64 = 2 << 20;

fn main() -> ExitCode {
    if std::env::var_os(IS_SERVER).is_some() {
        return server();
    }
    let rounds = std::env::var(ROUNDS).ok().map(|text| text.parse().expect("a number of rounds"));
    let rounds = rounds.unwrap_or(ROUNDS_DEFAULT);
    let only = std::env::args().nth(1).filter(|name| !name.starts_with('-')).unwrap_or_default();
    let (mut passed, mut failed) = (0, 0);
    println!("{}", Row::head());
    for site in Site::ALL {
        let cases = CASES.iter().filter(|case| case.site == site && case.name.contains(&only));
        let mut stage = None;
        for case in cases {
            let stage = stage.get_or_insert_with(|| Stage::start(site));
            if catch_unwind(AssertUnwindSafe(|| run(stage, case, rounds))).is_ok() {
                passed += 1;
            } else {
                println!("{}: FAILED", case.name);
                stage.print_status();
                failed += 1;
                // The next case would start from what this one left behind.
                break;
            }
        }
        if let Some(stage) = stage.filter(|_| failed == 0) {
            stage.wait_empty();
        }
    }
    println!("{passed} passed, {failed} failed");
    ExitCode::from(u8::from(failed > 0))
}

fn server() -> ExitCode {
    Server::new()
        .on(HOLD, |request: &Request<'_>, replies: &mut Replies| -> Outcome {
            let path = String::from_utf8_lossy(request.body()).into_owned();
            while !Path::new(&path).exists() {
                std::thread::park_timeout(Duration::from_millis(2));
            }
            replies.send(HOLD, b"")
        })
        .on(GIVE_BACK, |_: &Request<'_>, replies: &mut Replies| -> Outcome {
            chappe_sys::memory::give_back();
            replies.send(GIVE_BACK, b"")
        })
        .on(PANIC, |_: &Request<'_>, _: &mut Replies| -> Outcome { panic!("planned") })
        .main()
}

/// Runs a case and compares what the worker has with what it had.
fn run(stage: &Stage, case: &Case, rounds: usize) {
    // What a worker allocates once and keeps is not a leak: tables, stacks, arenas.
    stage.settle(&stage.measure(), (case.play)(stage, case.batch), case.own_frames);
    let anonymous_before = stage.anonymous_bytes();
    let before = stage.measure();
    let start = Instant::now();
    let (mut made, mut after) = (0, stage.measure());
    while made < rounds {
        made += (case.play)(stage, case.batch.min(rounds - made));
        // A server that the clients run away from has more at a time than a batch.
        after = stage.settle(&before, made, case.own_frames);
    }
    let took = start.elapsed();
    let anonymous = (anonymous_before, stage.anonymous_bytes());
    println!("{}", Row { case, rounds: made, took, before: &before, after: &after, anonymous });
    assert_eq!(after.worker, before.worker, "the same worker serves");
    assert_eq!(after.descriptors, before.descriptors, "descriptors");
    assert_eq!(after.permits, before.permits, "permits");
    let growth = anonymous.1.saturating_sub(anonymous.0);
    assert!(growth <= GROWTH_BYTES_MAX, "memory has grown by {growth} bytes");
    let lost = |m: &Measured| m.total("messages_expired") + m.total("messages_dropped");
    assert!(
        lost(&after) - lost(&before) >= case.loses * made as u64,
        "closed too late for its state"
    );
    // Closed connections must not count against the totals that all share.
    assert_eq!(after.total("closed_slow") - before.total("closed_slow"), case.slow * made as u64);
    stage.prove_service();
    if rounds > ROUNDS_DEFAULT {
        stage.wait_empty();
    }
}

/// One line of the table.
struct Row<'a> {
    case: &'a Case,
    rounds: usize,
    took: Duration,
    before: &'a Measured,
    after: &'a Measured,
    /// Bytes before and after.
    anonymous: (u64, u64),
}

impl Row<'_> {
    fn head() -> String {
        format!(
            "{:<52} {:>6} {:>7}  {:>9}  {:>15}  {:>15}  {:>8} {:>8}",
            "case", "rounds", "seconds", "fds", "RssAnon KiB", "permits", "expired", "dropped"
        )
    }
}

impl std::fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { case, rounds, took, before, after, anonymous } = self;
        let pair = |of: fn(&Measured) -> u64| format!("{} → {}", of(before), of(after));
        let grown = |name: &str| after.total(name) - before.total(name);
        write!(
            f,
            "{:<52} {rounds:>6} {:>7.1}  {:>9}  {:>15}  {:>15}  {:>8} {:>8}",
            case.name,
            took.as_secs_f64(),
            pair(|m| m.descriptors as u64),
            format!("{} → {}", anonymous.0 / 1024, anonymous.1 / 1024),
            pair(|m| m.permits),
            grown("messages_expired"),
            grown("messages_dropped"),
        )
    }
}

/// Waits for a value within the tests' deadline.
#[track_caller]
fn wait_some<T>(what: &str, value: impl FnMut() -> Option<T>) -> T {
    wait_for(value).unwrap_or_else(|| panic!("not in time: {what}"))
}
