//! The half of a connection that reads.

use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chappe_wire::{FRAME_BYTES_MAX, HEADER_BYTES, Header, checksum};

use super::error::{ClientError, is_timeout};
use super::kept::Kept;
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
///
/// ```
/// # use chappe_client::*;
/// # use std::time::Duration;
/// # let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
/// # let address = listener.local_addr()?;
/// # std::thread::spawn(move || {
/// #     let (socket, _) = listener.accept()?;
/// #     std::io::copy(&mut &socket, &mut &socket)
/// # });
/// # let mut connection = Connection::connect(address, Duration::from_secs(5))?;
/// let (mut sender, mut receiver) = connection.split();
/// sender.queue(CODE_ECHO, b"one")?;
/// sender.queue(CODE_ECHO, b"two")?;
/// sender.flush()?;
/// assert_eq!(receiver.receive()?.body, "one");
/// assert_eq!(receiver.receive()?.body, "two");
/// # Ok::<(), Box<dyn std::error::Error>>(())
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
    /// What has come before something that was waited for.
    kept: Kept,
}

/// When a wait is over. The clock is only read when the socket must be, too.
#[derive(Debug, Default)]
pub(super) struct Deadline(Option<Option<Instant>>);

impl Receiver {
    /// Without a time-out.
    pub(super) fn over(socket: Arc<TcpStream>) -> Self {
        let buffer = vec![0; READ_BYTES].into_boxed_slice();
        let kept = Kept::default();
        Self { socket, buffer, start: 0, end: 0, timeout: None, armed: None, kept }
    }

    pub(super) fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    pub(super) fn keep(&mut self, frame: Frame) {
        self.kept.push(frame);
    }

    pub(super) fn take_kept(&mut self) -> Option<Frame> {
        self.kept.pop()
    }

    /// Takes over the messages that another receiver has kept.
    pub(super) fn inherit(&mut self, other: &mut Self) {
        self.kept = std::mem::take(&mut other.kept);
        self.kept.leave_messages();
    }

    /// Bounds each [`receive`](Self::receive) to `timeout`; `None` waits forever.
    ///
    /// ```
    /// # use chappe_client::*;
    /// # use std::time::Duration;
    /// # use std::io::Write;
    /// # let (ours, mut theirs) = std::os::unix::net::UnixStream::pair()?;
    /// # let mut connection = Connection::from_socket(ours.into(), Some(Duration::from_secs(5)))?;
    /// # let (_sender, mut receiver) = connection.split();
    /// receiver.set_timeout(Some(Duration::from_millis(10)))?;
    /// let error = receiver.receive().unwrap_err();
    /// assert_eq!(error.to_string(), "nothing within 10ms");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`ClientError::Io`], for example for a time-out of zero.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<(), ClientError> {
        self.socket.set_read_timeout(timeout).map_err(ClientError::Io)?;
        self.timeout = timeout;
        self.armed = timeout;
        Ok(())
    }

    /// The next frame, whatever its code is. It is due as a whole within the
    /// time-out: a server that trickles bytes can't stretch it.
    ///
    /// ```
    /// # use chappe_client::*;
    /// # use std::time::Duration;
    /// # use std::io::Write;
    /// # let (ours, mut theirs) = std::os::unix::net::UnixStream::pair()?;
    /// # let mut connection = Connection::from_socket(ours.into(), Some(Duration::from_secs(5)))?;
    /// # let (_sender, mut receiver) = connection.split();
    /// # let mut frame = chappe_wire::encode(18, b"news")?.to_vec();
    /// # frame[4] ^= 1;
    /// # frame.extend(chappe_wire::encode(18, b"more news")?);
    /// # theirs.write_all(&frame)?;
    /// // A frame has arrived damaged, and a whole one behind it.
    /// assert!(matches!(receiver.receive(), Err(ClientError::Checksum { code: 18, .. })));
    /// assert_eq!(receiver.receive()?.body, "more news");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`ClientError::TimedOut`], [`ClientError::Closed`],
    /// [`ClientError::Truncated`], [`ClientError::BadLength`],
    /// [`ClientError::Checksum`], [`ClientError::Io`].
    pub fn receive(&mut self) -> Result<Frame, ClientError> {
        match self.take_kept() {
            Some(frame) => Ok(frame),
            None => self.receive_from_socket(&mut Deadline::default()),
        }
    }

    /// The next frame that is not one of those kept.
    pub(super) fn receive_from_socket(
        &mut self,
        deadline: &mut Deadline,
    ) -> Result<Frame, ClientError> {
        loop {
            if let Some(frame) = self.next_received()? {
                return Ok(frame);
            }
            let now = Instant::now();
            let due = *deadline.0.get_or_insert_with(|| self.timeout.map(|limit| now + limit));
            self.fill(due.map(|due| due.saturating_duration_since(now)))?;
        }
    }

    /// Whether a whole frame is here already, so that the next
    /// [`receive`](Self::receive) makes no system call.
    ///
    /// ```
    /// # use chappe_client::*;
    /// # use std::time::Duration;
    /// # use std::io::Write;
    /// # let (ours, mut theirs) = std::os::unix::net::UnixStream::pair()?;
    /// # let mut connection = Connection::from_socket(ours.into(), Some(Duration::from_secs(5)))?;
    /// # let (_sender, mut receiver) = connection.split();
    /// # let frame = chappe_wire::encode(18, b"news")?;
    /// # theirs.write_all(&[&frame[..], &frame].concat())?;
    /// let mut frames = vec![receiver.receive()?]; // waits for one
    /// while receiver.has_frame() {
    ///     frames.push(receiver.receive()?); // and takes what has come with it
    /// }
    /// assert_eq!(frames.len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn has_frame(&self) -> bool {
        if !self.kept.is_empty() {
            return true;
        }
        let received = &self.buffer[self.start..self.end];
        Header::read(received).is_some_and(|header| received.len() >= usize::from(header.length))
    }

    /// Ends the connection in both directions, so that the thread that holds
    /// the other half does not wait any longer. What is queued there is lost.
    ///
    /// ```
    /// # use chappe_client::*;
    /// # use std::time::Duration;
    /// # let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// # let address = listener.local_addr()?;
    /// # std::thread::spawn(move || {
    /// #     let (socket, _) = listener.accept()?;
    /// #     std::io::copy(&mut &socket, &mut &socket)
    /// # });
    /// # let mut connection = Connection::connect(address, Duration::from_secs(5))?;
    /// # let (mut sender, mut receiver) = connection.split();
    /// receiver.shutdown();
    /// assert!(matches!(receiver.receive(), Err(ClientError::Closed)));
    /// assert!(sender.send(CODE_PING, b"").is_err_and(|error| error.is_disconnect()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
