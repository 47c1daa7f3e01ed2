//! What a handler pushes to the connection whose message it is handling.
//!
//! Such a push must not overtake the replies that the handler has already given,
//! which are still being collected. So it does not go to the outbox: it is kept here,
//! by the thread that runs the handler, and the replies take it in at its place.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

thread_local! {
    /// The connection whose message this thread is handling; 0 for none.
    static CONNECTION: Cell<u64> = const { Cell::new(0) };
    static PUSHED: RefCell<Vec<Arc<[u8]>>> = const { RefCell::new(Vec::new()) };
    /// Whether `PUSHED` holds anything; checked at every reply.
    static HAS_PUSHED: Cell<bool> = const { Cell::new(false) };
    /// Bytes charged against the limits for what this message has pushed so far.
    static COST: Cell<usize> = const { Cell::new(0) };
}

/// Marks this thread as handling a message of one connection, until it is dropped.
pub(super) struct OwnTurn(());

impl OwnTurn {
    /// `connection` is never 0.
    pub(super) fn begin(connection: u64) -> Self {
        CONNECTION.set(connection);
        COST.set(0);
        Self(())
    }
}

impl Drop for OwnTurn {
    fn drop(&mut self) {
        CONNECTION.set(0);
    }
}

/// Whether this thread handles a message of that connection.
pub(super) fn is_of(connection: u64) -> bool {
    CONNECTION.get() == connection
}

/// The connection whose message this thread handles; 0 for none.
pub(super) fn connection() -> u64 {
    CONNECTION.get()
}

/// Bytes charged against the limits for what the message that this thread handles has
/// pushed so far.
pub(super) fn cost() -> usize {
    COST.get()
}

/// Keeps a frame for the connection whose message this thread handles.
pub(super) fn push(bytes: Arc<[u8]>, cost: usize) {
    COST.set(COST.get() + cost);
    HAS_PUSHED.set(true);
    PUSHED.with_borrow_mut(|pushed| pushed.push(bytes));
}

/// Whether anything was kept.
pub(super) fn has_pushed() -> bool {
    HAS_PUSHED.get()
}

/// Takes what was kept, oldest first.
pub(super) fn take() -> Vec<Arc<[u8]>> {
    HAS_PUSHED.set(false);
    PUSHED.take()
}
