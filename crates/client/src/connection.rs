//! The connection of a client: one socket, a half to write and a half to read.
//! Each half blocks the thread that calls it, up to its time-out.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chappe_wire::Code;

use super::error::ClientError;
use super::received::Frame;
use super::receiver::{Deadline, Receiver};
use super::sender::Sender;
use super::server::Server;
use super::subscriptions::Subscriptions;
use super::topic_frames::{is_of_topics, place_of};

/// A connection to a server: both halves, for one thread.
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
/// // "127.0.0.1:7600"
/// let mut connection = Connection::connect(address, Duration::from_secs(5))?;
/// let reply = connection.call(CODE_ECHO, b"hello")?;
/// match reply.as_error() {
///     None => assert_eq!(reply.body, "hello"),
///     // "error 3 (unknown code) for code 1: …"
///     Some(error) => eprintln!("{error}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Connection {
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
    pub(super) server: Server,
    pub(super) subscriptions: Subscriptions,
}

impl Connection {
    /// Connects, trying each address that `address` stands for in turn, and
    /// takes `timeout` for each attempt and for each later call. A time-out of zero is an error.
    ///
    /// ```
    /// # use chappe_client::*;
    /// # use std::time::Duration;
    /// // "0" in the place of a port: nobody listens there.
    /// match Connection::connect("127.0.0.1:0", Duration::from_secs(5)) {
    ///     Err(error @ ClientError::Connect { .. }) => {
    ///         assert_eq!(error.to_string(), "cannot connect to 127.0.0.1:0");
    ///     }
    ///     other => panic!("{other:?}"),
    /// }
    /// ```
    ///
    /// # Errors
    /// [`ClientError::Connect`] with the last failure.
    pub fn connect(
        address: impl ToSocketAddrs + std::fmt::Display,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        let server = Server::Tcp { address: address.to_string(), timeout };
        Self::over(server.connect()?, Some(timeout), server)
    }

    /// Connects to the Unix socket at a path of any length, and takes `timeout` for
    /// this and for each later call.
    ///
    /// ```no_run
    /// # use chappe_client::*;
    /// # use std::time::Duration;
    /// let mut connection = Connection::connect_unix("/run/chappe.sock", Duration::from_secs(5))?;
    /// connection.call(CODE_PING, b"")?;
    /// # Ok::<(), ClientError>(())
    /// ```
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect_unix(path: impl AsRef<Path>, timeout: Duration) -> Result<Self, ClientError> {
        let server = Server::Unix { path: path.as_ref().to_owned(), timeout };
        Self::over(server.connect()?, Some(timeout), server)
    }

    /// A connection over a connected stream; `None` waits forever.
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
    /// # use std::net::TcpStream;
    /// // With options of its own, or through a tunnel.
    /// let stream = TcpStream::connect(address)?;
    /// // Without a time-out.
    /// let mut connection = Connection::from_stream(stream, None)?;
    /// connection.call(CODE_PING, b"")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`ClientError::Io`] if the socket refuses its options.
    pub fn from_stream(stream: TcpStream, timeout: Option<Duration>) -> Result<Self, ClientError> {
        // A request is one write; waiting for more of it only adds delay.
        stream.set_nodelay(true).map_err(ClientError::Io)?;
        Self::over(stream, timeout, Server::Unknown)
    }

    /// A connection over any connected stream socket, a Unix one for example.
    ///
    /// ```
    /// # use chappe_client::*;
    /// # use std::time::Duration;
    /// # use std::os::unix::net::UnixStream;
    /// let (ours, _theirs) = UnixStream::pair()?;
    /// let mut connection = Connection::from_socket(ours.into(), Some(Duration::from_millis(10)))?;
    /// assert!(matches!(connection.receive(), Err(ClientError::TimedOut(_))));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`ClientError::Io`] if the socket refuses its options.
    pub fn from_socket(socket: OwnedFd, timeout: Option<Duration>) -> Result<Self, ClientError> {
        // Reading, writing, time-outs and shutdown are the same for each family.
        Self::over(TcpStream::from(socket), timeout, Server::Unknown)
    }

    fn over(
        stream: TcpStream,
        timeout: Option<Duration>,
        server: Server,
    ) -> Result<Self, ClientError> {
        let socket = Arc::new(stream);
        let sender = Sender::over(Arc::clone(&socket));
        let (receiver, subscriptions) = (Receiver::over(socket), Subscriptions::default());
        let mut client = Self { sender, receiver, server, subscriptions };
        client.set_timeout(timeout)?;
        Ok(client)
    }

    /// Bounds each later call to `timeout`, in both directions; `None` waits for
    /// ever.
    ///
    /// ```
    /// # use chappe_client::*;
    /// # use std::time::Duration;
    /// # use std::io::Write;
    /// # let (ours, mut theirs) = std::os::unix::net::UnixStream::pair()?;
    /// # let mut connection = Connection::from_socket(ours.into(), Some(Duration::from_secs(5)))?;
    /// // A push within 10 ms, or none.
    /// connection.set_timeout(Some(Duration::from_millis(10)))?;
    /// assert!(matches!(connection.receive(), Err(ClientError::TimedOut(_))));
    /// assert!(connection.set_timeout(Some(Duration::ZERO)).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`ClientError::Io`], for example for a time-out of zero.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<(), ClientError> {
        self.sender.set_timeout(timeout)?;
        self.receiver.set_timeout(timeout)
    }

    /// The address of this end.
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
    /// // As `chappe connections` has it.
    /// println!("connected from {}", connection.local_addr()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`ClientError::Io`]; a Unix socket has no such address.
    pub fn local_addr(&self) -> Result<SocketAddr, ClientError> {
        self.sender.socket().local_addr().map_err(ClientError::Io)
    }

    /// Sends one frame, see [`Sender::send`].
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
    /// connection.send(CODE_ECHO, b"one")?;
    /// // The replies come in the order of the requests.
    /// connection.send(CODE_ECHO, b"two")?;
    /// assert_eq!(connection.receive()?.body, "one");
    /// assert_eq!(connection.receive()?.body, "two");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Sender::send`].
    pub fn send(&mut self, code: Code, body: &[u8]) -> Result<(), ClientError> {
        self.sender.send(code, body)
    }

    /// Sends bytes as they are, see [`Sender::send_bytes`].
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
    /// // Claims 7 bytes: less than a header has.
    /// connection.send_bytes(&[0, 7, 0, 1, 0, 0, 0, 0])?;
    /// # assert!(matches!(connection.receive(), Err(ClientError::BadLength(7))));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Sender::send_bytes`].
    pub fn send_bytes(&mut self, raw: &[u8]) -> Result<(), ClientError> {
        self.sender.send_bytes(raw)
    }

    /// Receives the next frame, see [`Receiver::receive`]. For messages of topics there is
    /// [`next_message`](Self::next_message).
    ///
    /// ```
    /// # use chappe_client::*;
    /// # use std::time::Duration;
    /// # use std::io::Write;
    /// # let (ours, mut theirs) = std::os::unix::net::UnixStream::pair()?;
    /// # let mut connection = Connection::from_socket(ours.into(), Some(Duration::from_secs(5)))?;
    /// # theirs.write_all(&chappe_wire::encode(18, b"news")?)?;
    /// # drop(theirs);
    /// // The server has pushed a message, and then closed the connection.
    /// let pushed = connection.receive()?;
    /// assert_eq!((pushed.code, &pushed.body[..]), (18, &b"news"[..]));
    /// assert!(matches!(connection.receive(), Err(ClientError::Closed)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Receiver::receive`].
    pub fn receive(&mut self) -> Result<Frame, ClientError> {
        match self.receiver.take_kept() {
            Some(frame) => Ok(frame),
            None => self.pull(&mut Deadline::default()),
        }
    }

    /// The next frame of the socket, but none of a topic that has been here before.
    pub(super) fn pull(&mut self, deadline: &mut Deadline) -> Result<Frame, ClientError> {
        loop {
            let frame = self.receiver.receive_from_socket(deadline)?;
            let place = place_of(&frame);
            if place.is_none_or(|(offset, topic)| self.subscriptions.is_new(topic, offset)) {
                return Ok(frame);
            }
        }
    }

    /// Sends one frame and receives the next one that is not a message of a topic: with nothing
    /// else under way, the reply, an error frame or a goodbye.
    ///
    /// Messages of topics that come before it are kept, up to 16 MiB, and are received afterwards.
    /// Of more than that the oldest are dropped, and a gap stands in their place.
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
    /// assert_eq!(connection.call(CODE_ECHO, b"hello")?.body, "hello");
    /// // Nothing was sent.
    /// let too_long = connection.call(CODE_ECHO, &[0; BODY_BYTES_MAX + 1]);
    /// assert!(matches!(too_long, Err(ClientError::BodyTooLong(BodyTooLong(65_528)))));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Sender::send`] and [`Receiver::receive`].
    pub fn call(&mut self, code: Code, body: &[u8]) -> Result<Frame, ClientError> {
        self.send(code, body)?;
        let mut deadline = Deadline::default();
        loop {
            let frame = self.pull(&mut deadline)?;
            if !is_of_topics(frame.code) {
                return Ok(frame);
            }
            self.receiver.keep(frame);
        }
    }

    /// Says that nothing more will be sent; replies can still be received.
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
    /// connection.send(CODE_ECHO, b"the last one")?;
    /// connection.shutdown_write()?;
    /// assert_eq!(connection.receive()?.body, "the last one");
    /// assert!(matches!(connection.receive(), Err(ClientError::Closed)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Sender::shutdown_write`].
    pub fn shutdown_write(&mut self) -> Result<(), ClientError> {
        self.sender.shutdown_write()
    }

    /// The two halves, for two threads. The connection ends with the last of them.
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
    /// let reads = std::thread::spawn(move || receiver.receive());
    /// sender.send(CODE_ECHO, b"hello")?;
    /// assert_eq!(reads.join().unwrap()?.body, "hello");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sender.socket().as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;
    use chappe_wire::{BODY_BYTES_MAX, BodyTooLong, encode};

    /// A client, and the server's end of its socket.
    fn pair(timeout: Duration) -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Connection::from_socket(ours.into(), Some(timeout)).unwrap(), theirs)
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn one_read_brings_many_frames() {
        let (client, mut server) = pair(LONG);
        let (_sender, mut receiver) = client.split();
        for body in [&b""[..], b"x", b"hello"] {
            server.write_all(&encode(5, body).unwrap()).unwrap();
        }
        assert!(!receiver.has_frame());
        assert_eq!(receiver.receive().unwrap().body, "");
        assert!(receiver.has_frame());
        drop(server);
        assert_eq!(receiver.receive().unwrap(), Frame { code: 5, body: "x".into() });
        assert_eq!(receiver.receive().unwrap().body, "hello");
        assert!(!receiver.has_frame());
        assert!(matches!(receiver.receive(), Err(ClientError::Closed)));
    }

    #[test]
    fn frames_of_every_size_come_whole_through_a_full_buffer() {
        let (client, mut server) = pair(LONG);
        let sizes = [BODY_BYTES_MAX, 0, 1, BODY_BYTES_MAX - 1, 40_000, 40_000, BODY_BYTES_MAX];
        let writer = std::thread::spawn(move || {
            for (number, size) in (0_u8..).zip(sizes) {
                server.write_all(&encode(9, &vec![number; size]).unwrap()).unwrap();
            }
        });
        let (_sender, mut receiver) = client.split();
        for (number, size) in (0_u8..).zip(sizes) {
            assert_eq!(receiver.receive().unwrap().body, vec![number; size]);
        }
        writer.join().unwrap();
    }

    #[test]
    fn a_bad_checksum_is_told_and_skipped() {
        let (mut client, mut server) = pair(LONG);
        let mut frame = encode(7, b"good").unwrap().to_vec();
        frame[8] = b'm';
        server.write_all(&frame).unwrap();
        server.write_all(&encode(8, b"next").unwrap()).unwrap();
        assert!(matches!(client.receive(), Err(ClientError::Checksum { code: 7, .. })));
        assert_eq!(client.receive().unwrap().code, 8);
    }

    #[test]
    fn an_end_inside_a_frame_says_how_much_is_missing() {
        let frame = encode(7, b"body").unwrap();
        for (sent, missing) in [(1, 7), (7, 1), (8, 4), (11, 1)] {
            let (mut client, mut server) = pair(LONG);
            server.write_all(&frame[..sent]).unwrap();
            drop(server);
            match client.receive() {
                Err(ClientError::Truncated { missing_bytes }) => assert_eq!(missing_bytes, missing),
                other => panic!("{sent} bytes: {other:?}"),
            }
        }
    }

    #[test]
    fn a_length_without_room_for_the_header_ends_the_stream() {
        let (mut client, mut server) = pair(LONG);
        server.write_all(&[0, 7, 0, 0, 0, 0, 0, 0]).unwrap();
        assert!(matches!(client.receive(), Err(ClientError::BadLength(7))));
        assert!(matches!(client.receive(), Err(ClientError::BadLength(7))));
    }

    #[test]
    fn a_time_out_keeps_what_has_arrived() {
        let (mut client, mut server) = pair(Duration::from_millis(20));
        let frame = encode(7, b"body").unwrap();
        server.write_all(&frame[..5]).unwrap();
        assert!(matches!(client.receive(), Err(ClientError::TimedOut(_))));
        server.write_all(&frame[5..]).unwrap();
        client.set_timeout(Some(LONG)).unwrap();
        assert_eq!(client.receive().unwrap().body, "body");
    }

    #[test]
    fn a_trickling_server_cannot_stretch_the_time_out() {
        let (mut client, mut server) = pair(Duration::from_millis(100));
        let frame = encode(7, &[1; 60_000]).unwrap();
        let writer = std::thread::spawn(move || {
            // A byte every 5 ms, until the client is gone.
            server.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
            for byte in frame.chunks(1) {
                if server.write_all(byte).is_err() || matches!(server.read(&mut [0]), Ok(0)) {
                    return;
                }
            }
        });
        let start = Instant::now();
        assert!(matches!(client.receive(), Err(ClientError::TimedOut(_))));
        assert!(start.elapsed() < LONG);
        drop(client);
        writer.join().unwrap();
    }

    #[test]
    fn a_body_too_long_sends_nothing() {
        let (mut client, mut server) = pair(LONG);
        let body = vec![0; BODY_BYTES_MAX + 1];
        match client.send(1, &body) {
            Err(ClientError::BodyTooLong(BodyTooLong(bytes))) => assert_eq!(bytes, body.len()),
            other => panic!("{other:?}"),
        }
        client.shutdown_write().unwrap();
        assert_eq!(server.read(&mut [0; 16]).unwrap(), 0);
    }

    #[test]
    fn queued_frames_go_out_in_order_with_the_flush() {
        let (client, mut server) = pair(LONG);
        let (mut sender, _receiver) = client.split();
        sender.queue(1, b"a").unwrap();
        server.set_nonblocking(true).unwrap();
        assert_eq!(server.read(&mut [0; 16]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        server.set_nonblocking(false).unwrap();
        sender.queue(2, b"b").unwrap();
        sender.send_bytes(b"raw").unwrap();
        sender.shutdown_write().unwrap();
        let mut all = Vec::new();
        server.read_to_end(&mut all).unwrap();
        let expected = [encode(1, b"a").unwrap(), encode(2, b"b").unwrap(), "raw".into()].concat();
        assert_eq!(all, expected);
    }

    #[test]
    fn a_vanished_server_is_an_error_and_no_signal() {
        let (mut client, server) = pair(LONG);
        drop(server);
        let error = client.send(1, b"x").unwrap_err();
        assert!(error.is_disconnect(), "{error:?}");
    }

    #[test]
    fn a_full_socket_times_out_a_send() {
        let (mut client, _server) = pair(Duration::from_millis(20));
        let error = loop {
            if let Err(error) = client.send(1, &[0; 60_000]) {
                break error;
            }
        };
        assert!(matches!(error, ClientError::TimedOut(_)), "{error:?}");
    }

    #[test]
    fn a_port_without_a_listener_names_the_address() {
        // The address of a listener that has just gone.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        match Connection::connect(address, LONG) {
            Err(ClientError::Connect { address: named, .. }) => {
                assert_eq!(named, address.to_string());
            }
            other => panic!("{other:?}"),
        }
    }
}
