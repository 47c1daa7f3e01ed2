//! Waiting for what happens in other processes. The only file of the tests that
//! sleeps, and never for longer than a look at the clock is worth.

use std::time::{Duration, Instant};

/// How long anything may take on a loaded machine before a test calls it lost.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Polls `condition` until it holds.
///
/// Some things tell nobody when they happen: a line in a log, a process that is
/// gone, a number in `status`. They are looked at, often, until the deadline.
/// Panics with `what` when that passes.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let held = wait_for(|| condition().then_some(()));
    assert!(held.is_some(), "not within {DEADLINE:?}: {what}");
}

/// Polls until there is a value; `None` when the deadline passes without one.
pub(crate) fn wait_for<T>(mut value: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(value) = value() {
            return Some(value);
        }
        if start.elapsed() > DEADLINE {
            return None;
        }
        // The pause between two looks, the tests' only sleep: it decides how
        // soon a change is seen and never whether it is.
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
