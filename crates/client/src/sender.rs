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
/// let write = move || (0..3_u8).try_for_each(|n| sender.send(CODE_ECHO, &[n]));
/// let writes = std::thread::spawn(write);
/// for n in 0..3 {
///     assert_eq!(&receiver.receive()?.body[..], [n]);
/// }
/// writes.join().unwrap()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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

    /// Bounds each write to `timeout`; `None` waits forever.
    ///
    /// ```
    /// # use chappe_client::*;
    /// # use std::time::Duration;
    /// # use std::io::Write;
    /// # let (ours, mut theirs) = std::os::unix::net::UnixStream::pair()?;
    /// # let mut connection = Connection::from_socket(ours.into(), Some(Duration::from_secs(5)))?;
    /// # let (mut sender, _receiver) = connection.split();
    /// sender.set_timeout(Some(Duration::from_millis(10)))?;
    /// let error = loop {
    ///     // Nobody reads: the socket becomes full.
    ///     if let Err(error) = sender.send(CODE_ECHO, &[0; 60_000]) { break error }
    /// };
    /// assert!(matches!(error, ClientError::TimedOut(_)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`ClientError::Io`], for example for a time-out of zero.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<(), ClientError> {
        self.socket.set_write_timeout(timeout).map_err(ClientError::Io)?;
        self.timeout = timeout;
        Ok(())
    }

    /// Sends one frame, and what was queued before it.
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
    /// sender.queue(CODE_PING, b"")?;
    /// sender.send(CODE_ECHO, b"hello")?; // both, in one write(2)
    /// assert_eq!((receiver.receive()?.code, receiver.receive()?.code), (CODE_PING, CODE_ECHO));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
    /// for n in 0..100_u8 {
    ///     sender.queue(CODE_ECHO, &[n])?;
    /// }
    /// sender.flush()?; // 900 bytes, in one write(2)
    /// assert_eq!(&receiver.receive()?.body[..], [0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`send`](Self::send).
    pub fn queue(&mut self, code: Code, body: &[u8]) -> Result<(), ClientError> {
        append_frame(&mut self.queued, code, body)?;
        if self.queued.len() >= QUEUED_BYTES_MAX { self.flush() } else { Ok(()) }
    }

    /// Writes what was queued.
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
    /// sender.queue(CODE_ECHO, b"hello")?; // nothing is sent yet
    /// sender.flush()?;
    /// assert_eq!(receiver.receive()?.body, "hello");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
    /// let frame = chappe_wire::encode(CODE_ECHO, b"hello")?;
    /// sender.send_bytes(&frame[..5])?; // a frame in two pieces
    /// sender.send_bytes(&frame[5..])?;
    /// assert_eq!(receiver.receive()?.body, "hello");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`flush`](Self::flush).
    pub fn send_bytes(&mut self, raw: &[u8]) -> Result<(), ClientError> {
        self.flush()?;
        self.write(raw)
    }

    /// Flushes, then says that nothing more will be sent (FIN).
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
    /// sender.queue(CODE_ECHO, b"the last one")?;
    /// sender.shutdown_write()?; // with what was queued
    /// assert!(sender.send(CODE_PING, b"").is_err());
    /// assert_eq!(receiver.receive()?.body, "the last one");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`flush`](Self::flush).
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
