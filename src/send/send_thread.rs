//! The send thread: asleep on the semaphore until a connection has something to
//! send, then writes it straight away.
//!
//! It never waits for a socket. What the kernel does not take at once is left
//! to the event loop, so a slow peer cannot hold up the others.

use chappe_shm::ThreadCounters;

use super::send_list::{Look, PERMITS_PER_LOOK};
use super::send_path::SendPath;

/// Sends until the list is stopped.
pub fn run(path: &SendPath, counters: &ThreadCounters) {
    let mut connections = Vec::with_capacity(PERMITS_PER_LOOK);
    while let Look::Taken = path.list().wait(&mut connections) {
        for connection in connections.drain(..) {
            connection.flush_ready(counters);
        }
    }
}
