//! A send half whose peer takes everything, for tests of what is above it.

use super::{CallList, Entry, SendHalf, SendLimits, SendList, SendPath, SlowReader, Socket};
use chappe_shm::{SharedCounters, ThreadCounters};
use chappe_sys::Semaphore;
use std::io::{self, IoSlice};
use std::sync::Arc;

/// Its high mark.
pub(crate) const BYTES_MAX: usize = 1000;

#[derive(Debug)]
struct Sink;

impl Socket for Sink {
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(slices.iter().map(|slice| slice.len()).sum())
    }
}

/// No send thread and no event loop: what is queued stays queued.
pub(crate) fn send_half(id: u64) -> Arc<SendHalf> {
    on_socket(id, Arc::new(Sink))
}

/// The same with a socket of the test's own.
pub(crate) fn send_half_on(socket: Arc<dyn Socket>) -> Arc<SendHalf> {
    on_socket(1, socket)
}

fn on_socket(id: u64, socket: Arc<dyn Socket>) -> Arc<SendHalf> {
    let list = SendList::new(Semaphore::new(0).expect("a semaphore").into());
    let slow_reader = SlowReader::DropNewest;
    let limits = SendLimits { bytes_max: BYTES_MAX, total_bytes_max: 2 * BYTES_MAX, slow_reader };
    let goodbye = Entry { bytes: b"goodbye"[..].into(), frames: 1 };
    let calls = CallList::new().expect("an eventfd");
    let path = SendPath::new(list, calls, limits, goodbye, SharedCounters::detached());
    Arc::new(SendHalf::new(id, 1, socket, Arc::new(path)))
}

/// The event loop gives it up.
pub(crate) fn abort(half: &Arc<SendHalf>) {
    assert!(half.abort(&ThreadCounters::detached()), "nobody writes");
}
