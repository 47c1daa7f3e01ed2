//! Writing to a socket. One routine for both who may do it: the send thread,
//! and the event loop for a socket that was full.

use super::writer::Writer;
use chappe_shm::{Counter, ThreadCounters};
use std::io::{self, ErrorKind, IoSlice};

/// How much one connection may send before the next has its turn.
pub const FLUSH_BYTES_MAX: usize = if cfg!(loom) { 2 } else { 256 * 1024 };

/// How many messages go into one sendmsg(2). The kernel takes 1024 (IOV_MAX);
/// beyond 64 the call itself no longer shows.
pub const IO_SLICES_MAX: usize = 64;

/// The sending side of a connected, non-blocking socket.
pub trait Socket: Send + Sync + std::fmt::Debug {
    /// Sends as much as there is room for, without waiting and without SIGPIPE.
    ///
    /// # Errors
    /// Those of sendmsg(2).
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;
}

/// Why [`flush`] ended.
#[derive(Debug)]
pub enum Flushed {
    /// Nothing is left to send.
    All,
    /// [`FLUSH_BYTES_MAX`] were sent and there is more: the others first.
    ShareUsed,
    /// The socket's buffer is full: EPOLLOUT tells when there is room.
    SocketFull,
    /// The kernel has no memory (ENOBUFS, ENOMEM). EPOLLOUT would fire at once
    /// and for ever, so this is to be tried again after a pause.
    NoBuffers,
    /// The connection is broken; nothing can be sent on it any more.
    Broken(io::Error),
}

/// Sends what the writer holds, oldest first, many messages a call.
///
/// A short count means that the buffer is full, so no second call is spent to
/// hear EAGAIN as well.
pub fn flush(writer: &mut Writer, counters: &ThreadCounters) -> Flushed {
    let mut share = FLUSH_BYTES_MAX;
    while !writer.is_empty() {
        if share == 0 {
            return Flushed::ShareUsed;
        }
        let mut slices = [IoSlice::new(&[]); IO_SLICES_MAX];
        let (used, bytes) = writer.fill(&mut slices, share);
        counters.add(Counter::SendCalls, 1);
        match writer.socket().send(&slices[..used]) {
            Ok(0) => return Flushed::Broken(ErrorKind::WriteZero.into()),
            Ok(sent) => {
                let frames = writer.advance(sent);
                counters.add(Counter::BytesSent, sent as u64);
                counters.add(Counter::FramesSent, frames);
                share = share.saturating_sub(sent);
                if sent < bytes {
                    counters.add(Counter::PartialSends, 1);
                    return Flushed::SocketFull;
                }
            }
            Err(error) => {
                if let Some(flushed) = after_error(error) {
                    return flushed;
                }
            }
        }
    }
    Flushed::All
}

/// What an error of sendmsg(2) means. `None`: try again at once.
pub(super) fn after_error(error: io::Error) -> Option<Flushed> {
    match error.raw_os_error() {
        Some(libc::EINTR) => None,
        Some(libc::EAGAIN) => Some(Flushed::SocketFull),
        Some(libc::ENOBUFS | libc::ENOMEM) => Some(Flushed::NoBuffers),
        _ => Some(Flushed::Broken(error)),
    }
}
