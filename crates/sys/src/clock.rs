//! The clock that processes share: `CLOCK_MONOTONIC`.
//!
//! `std::time::Instant` can't be written into shared memory; this number can,
//! and it means the same in the master and in every worker. Any thread may ask.

use nix::time::{ClockId, clock_gettime};

/// Milliseconds since the machine started, never going backwards.
///
/// Never 0, so that shared memory can use 0 for "no time".
#[must_use]
pub fn monotonic_ms() -> u64 {
    (monotonic_us() / 1000).max(1)
}

/// The same in microseconds.
#[must_use]
pub fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .expect("CLOCK_MONOTONIC exists on every Linux that can run this program");
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    let micros = u64::try_from(now.tv_nsec()).unwrap_or(0) / 1000;
    seconds * 1_000_000 + micros
}
