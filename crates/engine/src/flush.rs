//! Writing to a socket: for all that may do it, the send thread, the event loop for a socket
//! that was full, and the event loop for the replies of a turn of its own.

use crate::batch::Batch;
use crate::writer::{Entry, Writer};
use chappe_shm::{Counter, ThreadCounters};
use std::io::{self, ErrorKind, IoSlice};

/// How much one connection may send before the next has its turn.
pub const FLUSH_BYTES_MAX: usize = if cfg!(loom) { 2 } else { 256 * 1024 };

/// How many entries go into one sendmsg(2). The kernel takes 1024 (IOV_MAX); beyond 64 the
/// call itself no longer shows.
pub const IO_SLICES_MAX: usize = 64;

/// The sending side of a connected, non-blocking socket.
pub trait Socket: Send + Sync + std::fmt::Debug {
    /// Sends as much as there is room for, without waiting and without SIGPIPE.
    ///
    /// # Errors
    /// Those of sendmsg(2).
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;
}

/// Why a flush ended.
#[derive(Debug)]
pub enum Flushed {
    /// Nothing is left to send.
    All,
    /// [`FLUSH_BYTES_MAX`] were sent and there is more: the others first.
    ShareUsed,
    /// The socket's buffer is full: EPOLLOUT tells when there is room.
    SocketFull,
    /// The kernel has no memory (ENOBUFS, ENOMEM). EPOLLOUT would fire at once and
    /// forever, so this is to be tried again after a pause.
    NoBuffers,
    /// The connection is broken; nothing can be sent on it any more.
    Broken(io::Error),
}

/// Sends what the writer holds, oldest first, many messages a call.
///
/// A short count means that the buffer is full, so no second call is spent to get
/// EAGAIN as well.
pub(crate) fn flush(writer: &mut Writer, counters: &ThreadCounters) -> Flushed {
    let mut share = FLUSH_BYTES_MAX;
    while !writer.entries.is_empty() {
        if share == 0 {
            return Flushed::ShareUsed;
        }
        let (bytes, result) = send(writer, share);
        let sent = match count(bytes, result, counters) {
            Ok(sent) => sent,
            Err(Some(flushed)) => return flushed,
            Err(None) => continue,
        };
        counters.add(Counter::FramesSent, writer.advance(sent));
        share = share.saturating_sub(sent);
        if sent < bytes {
            return Flushed::SocketFull;
        }
    }
    Flushed::All
}

/// Sends a batch straight out of its buffer, with a writer that holds nothing. Only what
/// the socket does not take becomes an entry, for which the outbox is then charged.
pub(crate) fn flush_batch(
    writer: &mut Writer,
    batch: &mut Batch,
    counters: &ThreadCounters,
) -> Flushed {
    let bytes = batch.len();
    let result = writer.socket.send(&[IoSlice::new(batch.bytes())]);
    match count(bytes, result, counters) {
        Ok(sent) if sent == bytes => {
            counters.add(Counter::FramesSent, u64::from(batch.clear()));
            writer.sent.uncharged = sent;
            Flushed::All
        }
        Ok(sent) => {
            writer.begin(Entry::new(batch.take()), sent);
            Flushed::SocketFull
        }
        Err(flushed) => {
            writer.begin(Entry::new(batch.take()), 0);
            flushed.unwrap_or_else(|| flush(writer, counters))
        }
    }
}

/// One call for what the writer holds: how many bytes it was given, and the result.
fn send(writer: &Writer, share: usize) -> (usize, io::Result<usize>) {
    if let Some(alone) = writer.alone() {
        let bytes = alone.len().min(share);
        return (bytes, writer.socket.send(&[IoSlice::new(&alone[..bytes])]));
    }
    let mut slices = [IoSlice::new(&[]); IO_SLICES_MAX];
    let (used, bytes) = writer.fill(&mut slices, share);
    (bytes, writer.socket.send(&slices[..used]))
}

/// Counts a call that was given this number of bytes, and says what its error means: `None` to
/// try again at once.
fn count(
    bytes: usize,
    result: io::Result<usize>,
    counters: &ThreadCounters,
) -> Result<usize, Option<Flushed>> {
    counters.add(Counter::SendCalls, 1);
    let error = match result {
        Ok(0) => return Err(Some(Flushed::Broken(ErrorKind::WriteZero.into()))),
        Ok(sent) => {
            counters.add(Counter::BytesSent, sent as u64);
            counters.add(Counter::PartialSends, u64::from(sent < bytes));
            return Ok(sent);
        }
        Err(error) => error,
    };
    Err(match error.raw_os_error() {
        Some(nix::libc::EINTR) => None,
        Some(nix::libc::EAGAIN) => Some(Flushed::SocketFull),
        Some(nix::libc::ENOBUFS | nix::libc::ENOMEM) => Some(Flushed::NoBuffers),
        _ => Some(Flushed::Broken(error)),
    })
}
