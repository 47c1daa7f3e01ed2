//! Two orders in which the event loop can give a connection back to the send thread, after it
//! has sent the rest of a message: the program to "Giving back" in docs/SEND-PATH.md.
//!
//! ```sh
//! cargo run --example giving_back
//! ```
//!
//! One connection, with a flag that says that its socket is full. The send thread waits for a
//! permit and looks at the connection: with the flag set it leaves the queued message alone.
//! In each round message A is half sent, message B is queued behind it, and the event loop
//! sends the rest of A. A message that is still queued after the last look is left behind:
//! nothing posts again.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Result;
use chappe_sys::Semaphore;
use parking_lot::Mutex;

const ROUNDS: usize = 20_000;

/// The wrong order goes well in a whole series only if the threads hardly ever run at the
/// same time. After this many series that is an error.
const SERIES_MAX: usize = 50;

#[derive(Clone, Copy)]
enum Order {
    /// Clear the flag, then post.
    PostLast,
    /// Post, then clear the flag, as one form of the classic design has it.
    PostFirst,
}

struct Connection {
    is_full: AtomicBool,
    queued: Mutex<Option<&'static str>>,
    /// Reasons to look, for the send thread.
    permits: Semaphore,
    /// One permit for each look that is over.
    looked: Semaphore,
    is_stopping: AtomicBool,
}

/// Visible to the test that runs this file.
pub(crate) fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("giving_back: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let right = left_behind(Order::PostLast)?;
    println!("clear the flag, then post: {right} of {ROUNDS} messages left behind");
    let mut wrong = 0;
    for _ in 0..SERIES_MAX {
        wrong = left_behind(Order::PostFirst)?;
        if wrong > 0 {
            break;
        }
    }
    println!("post, then clear the flag: {wrong} of {ROUNDS} messages left behind");
    let is_shown = right == 0 && wrong > 0;
    if !is_shown {
        eprintln!("giving_back: the first must be 0, and the second must not");
    }
    Ok(is_shown)
}

/// How many messages are left behind in all rounds.
fn left_behind(order: Order) -> Result<usize> {
    let connection = Connection {
        is_full: AtomicBool::new(false),
        queued: Mutex::new(None),
        permits: Semaphore::new(0)?,
        looked: Semaphore::new(0)?,
        is_stopping: AtomicBool::new(false),
    };
    Ok(thread::scope(|scope| {
        scope.spawn(|| send_thread(&connection));
        let left = (0..ROUNDS).filter(|_| !round(&connection, order)).count();
        connection.is_stopping.store(true, Ordering::Release);
        connection.permits.post();
        left
    }))
}

fn send_thread(connection: &Connection) {
    loop {
        connection.permits.wait();
        if connection.is_stopping.load(Ordering::Acquire) {
            return;
        }
        let mut queued = connection.queued.lock();
        if !connection.is_full.load(Ordering::Acquire) {
            // Sent.
            *queued = None;
        }
        drop(queued);
        connection.looked.post();
    }
}

/// Returns whether message B was sent.
fn round(connection: &Connection, order: Order) -> bool {
    // A is half sent.
    connection.is_full.store(true, Ordering::Release);

    // A handler queues B. The send thread looks, and leaves it alone.
    *connection.queued.lock() = Some("B");
    connection.permits.post();
    connection.looked.wait();

    // The event loop has sent the rest of A.
    match order {
        Order::PostLast => {
            connection.is_full.store(false, Ordering::Release);
            connection.permits.post();
        }
        Order::PostFirst => {
            connection.permits.post();
            connection.is_full.store(false, Ordering::Release);
        }
    }

    // Once the send thread has looked for the last time, what is queued stays queued.
    connection.looked.wait();
    connection.queued.lock().take().is_none()
}
