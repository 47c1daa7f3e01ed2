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
    /// What this message has pushed so far, oldest first.
    static PUSHED: RefCell<Vec<Arc<[u8]>>> = const { RefCell::new(Vec::new()) };
    /// How many of these stand between the replies already.
    static TAKEN: Cell<usize> = const { Cell::new(0) };
    /// Whether others do not; checked at every reply.
    static HAS_NEW: Cell<bool> = const { Cell::new(false) };
    /// Bytes charged against the limits for what this message has pushed so far.
    static COST: Cell<usize> = const { Cell::new(0) };
}

/// Marks this thread as handling a message of one connection, until it is dropped.
pub(super) struct OwnTurn(());

impl OwnTurn {
    /// `connection` is never 0.
    pub(super) fn begin(connection: u64) -> Self {
        CONNECTION.set(connection);
        Self(())
    }
}

impl Drop for OwnTurn {
    #[inline]
    fn drop(&mut self) {
        CONNECTION.set(0);
        if COST.get() > 0 {
            forget();
        }
    }
}

#[cold]
fn forget() {
    COST.set(0);
    TAKEN.set(0);
    HAS_NEW.set(false);
    PUSHED.take();
}

/// Whether this thread handles a message of that connection.
pub(super) fn is_of(connection: u64) -> bool {
    CONNECTION.get() == connection
}

/// Bytes charged against the limits for what the message that this thread handles has
/// pushed so far.
pub(super) fn cost() -> usize {
    COST.get()
}

/// Keeps a frame for the connection whose message this thread handles.
pub(super) fn push(bytes: Arc<[u8]>, cost: usize) {
    COST.set(COST.get() + cost);
    HAS_NEW.set(true);
    PUSHED.with_borrow_mut(|pushed| pushed.push(bytes));
}

/// Whether anything was pushed that does not stand between the replies.
pub(super) fn has_new() -> bool {
    HAS_NEW.get()
}

/// Passes this on, oldest first.
pub(super) fn take_new(append: impl FnMut(&[u8])) {
    HAS_NEW.set(false);
    PUSHED.with_borrow(|pushed| {
        let taken = TAKEN.replace(pushed.len());
        pushed[taken..].iter().map(|bytes| &**bytes).for_each(append);
    });
}

/// Passes on all that the message has pushed: its replies are gone.
pub(super) fn take_all(append: impl FnMut(&[u8])) {
    TAKEN.set(0);
    take_new(append);
}
