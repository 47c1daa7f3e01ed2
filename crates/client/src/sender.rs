//! The half of a connection that writes.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use chappe_wire::{Code, append_frame};

use super::error::{ClientError, is_timeout};

/// [`Sender::queue`] writes by itself when this much waits.
const QUEUED_BYTES_MAX: usize = 64 * 1024;

/// The half that writes.
#[derive(Debug)]
pub struct Sender {
    socket: Arc<TcpStream>,
    queued: BytesMut,
    timeout: Option<Duration>,
}

impl Sender {
    /// Without a time-out.
    pub(super) fn over(socket: Arc<TcpStream>) -> Self {
        Self { socket, queued: BytesMut::new(), timeout: None }
    }

    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Bounds each write to `timeout`; `None` waits for ever.
    ///
    /// # Errors
    /// [`ClientError::Io`], for a time-out of zero above all.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<(), ClientError> {
        self.socket.set_write_timeout(timeout).map_err(ClientError::Io)?;
        self.timeout = timeout;
        Ok(())
    }

    /// Sends one frame, and what was queued before it.
    ///
    /// # Errors
    /// [`ClientError::BodyTooLong`] (nothing was sent), [`ClientError::TimedOut`],
    /// [`ClientError::Io`].
    pub fn send(&mut self, code: Code, body: &[u8]) -> Result<(), ClientError> {
        append_frame(&mut self.queued, code, body)?;
        self.flush()
    }

    /// Adds one frame to what the next [`flush`](Self::flush) writes, so that
    /// many small frames go in one write(2). Writes by itself at 64 KiB.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn queue(&mut self, code: Code, body: &[u8]) -> Result<(), ClientError> {
        append_frame(&mut self.queued, code, body)?;
        if self.queued.len() >= QUEUED_BYTES_MAX { self.flush() } else { Ok(()) }
    }

    /// Writes what was queued.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`], [`ClientError::Io`]. What was queued is then
    /// dropped: a part of it may have been sent.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        let queued = self.queued.split();
        self.write(&queued)
    }

    /// Sends bytes as they are, after what was queued: for tests of a server.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub fn send_bytes(&mut self, raw: &[u8]) -> Result<(), ClientError> {
        self.flush()?;
        self.write(raw)
    }

    /// Flushes, then says that nothing more will be sent (FIN).
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub fn shutdown_write(&mut self) -> Result<(), ClientError> {
        self.flush()?;
        self.socket.shutdown(Shutdown::Write).map_err(ClientError::Io)
    }

    // The standard library sends with MSG_NOSIGNAL, so a peer that is gone is an
    // error here and never SIGPIPE.
    fn write(&self, bytes: &[u8]) -> Result<(), ClientError> {
        match (&*self.socket).write_all(bytes) {
            Ok(()) => Ok(()),
            Err(e) if is_timeout(&e) => {
                Err(ClientError::TimedOut(self.timeout.unwrap_or_default()))
            }
            Err(e) => Err(ClientError::Io(e)),
        }
    }
}
