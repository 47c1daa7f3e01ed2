//! The half of a connection that reads.

use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chappe_wire::{FRAME_BYTES_MAX, HEADER_BYTES, Header, checksum};

use super::error::{ClientError, is_timeout};
use super::received::Frame;

/// What one read(2) asks for: room for the largest frame, or for many small ones.
const READ_BYTES: usize = 64 * 1024;
const _: () = assert!(READ_BYTES >= FRAME_BYTES_MAX);

/// The half that reads. One read(2) may bring many frames; they are then handed
/// out without a system call.
///
/// ```text
/// buffer: | handed out | received, not handed out | free |
///         0          start                       end   READ_BYTES
/// ```
#[derive(Debug)]
pub struct Receiver {
    socket: Arc<TcpStream>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    timeout: Option<Duration>,
    /// What SO_RCVTIMEO is set to: it is only touched when it must change.
    armed: Option<Duration>,
}

impl Receiver {
    /// Without a time-out.
    pub(super) fn over(socket: Arc<TcpStream>) -> Self {
        let buffer = vec![0; READ_BYTES].into_boxed_slice();
        Self { socket, buffer, start: 0, end: 0, timeout: None, armed: None }
    }

    /// Bounds each [`receive`](Self::receive) to `timeout`; `None` waits for ever.
    ///
    /// # Errors
    /// [`ClientError::Io`], for a time-out of zero above all.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<(), ClientError> {
        self.socket.set_read_timeout(timeout).map_err(ClientError::Io)?;
        self.timeout = timeout;
        self.armed = timeout;
        Ok(())
    }

    /// The next frame, whatever its code is. It is due as a whole within the
    /// time-out: a server that trickles bytes can't stretch it.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`], [`ClientError::Closed`],
    /// [`ClientError::Truncated`], [`ClientError::BadLength`],
    /// [`ClientError::Checksum`], [`ClientError::Io`].
    pub fn receive(&mut self) -> Result<Frame, ClientError> {
        let mut deadline = None;
        loop {
            if let Some(frame) = self.next_received()? {
                return Ok(frame);
            }
            // The clock is only read when the socket must be, too.
            let now = Instant::now();
            let due = *deadline.get_or_insert_with(|| self.timeout.map(|limit| now + limit));
            self.fill(due.map(|due| due.saturating_duration_since(now)))?;
        }
    }

    /// Whether a whole frame is here already, so that the next
    /// [`receive`](Self::receive) makes no system call.
    #[must_use]
    pub fn has_frame(&self) -> bool {
        let received = &self.buffer[self.start..self.end];
        Header::read(received).is_some_and(|header| received.len() >= usize::from(header.length))
    }

    /// Ends the connection in both directions, so that the thread that holds
    /// the other half does not wait any longer.
    pub fn shutdown(&self) {
        // It may have ended already, and then there is nothing to do.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// A frame out of the buffer, `None` while there is no whole one.
    fn next_received(&mut self) -> Result<Option<Frame>, ClientError> {
        let received = &self.buffer[self.start..self.end];
        let Some(header) = Header::read(received) else { return Ok(None) };
        let length = usize::from(header.length);
        if length < HEADER_BYTES {
            return Err(ClientError::BadLength(header.length));
        }
        let Some(body) = received.get(HEADER_BYTES..length) else { return Ok(None) };
        let computed = checksum(body);
        let body = Bytes::copy_from_slice(body);
        self.start += length;
        let Header { code, crc32: claimed, .. } = header;
        if claimed == computed {
            Ok(Some(Frame { code, body }))
        } else {
            Err(ClientError::Checksum { code, claimed, computed })
        }
    }

    /// Reads once, for at most `left`.
    fn fill(&mut self, left: Option<Duration>) -> Result<(), ClientError> {
        // The incomplete frame moves to the front, so a whole one always fits.
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        loop {
            if left == Some(Duration::ZERO) {
                return Err(self.timed_out());
            }
            if self.armed != left {
                self.socket.set_read_timeout(left).map_err(ClientError::Io)?;
                self.armed = left;
            }
            match (&*self.socket).read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err(self.end_of_stream()),
                Ok(received) => {
                    self.end += received;
                    return Ok(());
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if is_timeout(&e) => return Err(self.timed_out()),
                Err(e) => return Err(ClientError::Io(e)),
            }
        }
    }

    fn timed_out(&self) -> ClientError {
        ClientError::TimedOut(self.timeout.unwrap_or_default())
    }

    fn end_of_stream(&self) -> ClientError {
        let received = &self.buffer[self.start..self.end];
        if received.is_empty() {
            return ClientError::Closed;
        }
        let whole = Header::read(received).map_or(HEADER_BYTES, |header| header.length.into());
        ClientError::Truncated { missing_bytes: whole - received.len() }
    }
}
