//! Waiting for what happens in other processes. The only file of the tests that sleeps.

use std::time::{Duration, Instant};

/// How long anything may take on a loaded machine before a test calls it lost.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Polls `condition` until it holds.
///
/// Some things tell nobody when they happen: a line in a log, a process that is
/// gone, a number in `status`. They are looked at, often, until the deadline.
/// Panics with `what` when that passes.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let held = wait_for(|| condition().then_some(()));
    assert!(held.is_some(), "not within {DEADLINE:?}: {what}");
}

/// Sleeps, where time itself is the subject: `why` says so. Whatever can be waited for is
/// waited for instead.
pub fn pause(time: Duration, why: &str) {
    assert!(!why.is_empty(), "a pause has a reason");
    std::thread::sleep(time);
}

/// Polls until there is a value; `None` when the deadline passes without one.
pub fn wait_for<T>(value: impl FnMut() -> Option<T>) -> Option<T> {
    wait_for_within(DEADLINE, value)
}

/// As [`wait_for`], for what takes longer.
pub fn wait_for_within<T>(time: Duration, mut value: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(value) = value() {
            return Some(value);
        }
        if start.elapsed() > time {
            return None;
        }
        // Decides how soon a change is seen, and never whether it is.
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
