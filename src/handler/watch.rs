//! What handlers take on the event loop, of its thread's own time, since it has slept last.

use chappe_sys::Stopwatch;
use chappe_sys::clock::Moment;
use std::cell::Cell;
use std::time::Duration;

thread_local! {
    /// Runs on the event loop's thread, from the first call of an application's handler
    /// after each sleep.
    static WATCH: Cell<Option<(Stopwatch, Moment)>> = const { Cell::new(None) };
}

/// The loop has slept: what it does is measured from here on.
pub(super) fn stop() {
    WATCH.set(None);
}

/// Starts the watch unless it runs.
pub(super) fn start() {
    let running = WATCH.take();
    WATCH.set(running.or_else(|| Some((Stopwatch::start(), Moment::now()))));
}

/// How much of a turn's time, which has just ended, was the thread's own at the least: what
/// came before in the same round of the loop may have computed all the time that it had.
pub(super) fn own_time(took: Duration) -> Duration {
    let Some((watch, began)) = WATCH.take() else { return Duration::ZERO };
    let before = Moment::now().since(began).saturating_sub(took);
    watch.stop().saturating_sub(before).min(took)
}
