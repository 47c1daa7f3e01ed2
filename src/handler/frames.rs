//! What `log.level = "trace"` shows of each message: which way it goes, its code and
//! length, its connection, and the thread that does it. No lock of a connection is held
//! where these are called, and below that level they cost a comparison.

use super::Code;
use chappe_sys::process::current_thread_name;

/// What happens to a message.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// It is about to be handled.
    Handled,
    /// It has waited for its ticket, and is about to be continued.
    Resumed,
    /// It answers the message that this thread handles.
    Replied,
    /// It was queued through a handle.
    Pushed,
}

/// A message of `connection` with a body of this length.
#[inline]
pub(super) fn trace(way: Way, connection: u64, code: Code, body: &[u8]) {
    if log::log_enabled!(log::Level::Trace) {
        show(way, connection, code, body.len());
    }
}

#[cold]
fn show(way: Way, connection: u64, code: Code, bytes: usize) {
    let way = match way {
        Way::Handled => "handled",
        Way::Resumed => "resumed",
        Way::Replied => "replied",
        Way::Pushed => "pushed",
    };
    let thread = current_thread_name();
    log::trace!(target: "conn.frame", "conn={connection} frame {way} code={code} bytes={bytes} thread={thread}");
}
