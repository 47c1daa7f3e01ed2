//! Closing in each state a connection can be in, again and again: afterwards the
//! worker has what it had before, in descriptors, permits, memory and counts.
//!
//! Each case runs `CHAPPE_ROUNDS` times, 200 by default, and if `CHAPPE_CASE` is set only
//! those with that in their name; `scripts/closing` runs each 10 000 times and prints what
//! it measured.

mod cases;
mod stage;

use std::time::{Duration, Instant};

use cases::{CASES, Case};
use chappe_testkit::wait_for;
use stage::{Measured, Site, Stage};

/// Only cases with this in their name run.
const CASE: &str = "CHAPPE_CASE";
const ROUNDS: &str = "CHAPPE_ROUNDS";
const ROUNDS_DEFAULT: usize = 200;

/// What memory may have grown by over a case, however many rounds it has. It is compared
/// after free memory was returned to the kernel, which is done in whole pages: what stays
/// is in use, or shares a page with something that is. A leak of 200 bytes a connection
/// shows at 10 000 rounds, one of 10 KB at 200.
const GROWTH_BYTES_MAX: u64 = 2 << 20;

#[test]
fn with_room_for_everything() {
    run_all(Site::Roomy);
}

#[test]
fn with_short_time_outs() {
    run_all(Site::Hasty);
}

#[test]
fn with_a_single_permit() {
    run_all(Site::Full);
}

/// All cases of a site, one after the other on the same server.
fn run_all(site: Site) {
    let rounds = std::env::var(ROUNDS).ok().map(|text| text.parse().expect("a number of rounds"));
    let rounds = rounds.unwrap_or(ROUNDS_DEFAULT);
    let only = std::env::var(CASE).unwrap_or_default();
    let cases = CASES.iter().filter(|case| case.site == site && case.name.contains(&only));
    let cases: Vec<_> = cases.collect();
    if cases.is_empty() {
        return;
    }
    let stage = Stage::start(site);
    println!("{}", Row::head());
    for case in cases {
        println!("{} ...", case.name);
        run(&stage, case, rounds);
    }
    stage.wait_empty();
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
