//! The classic one-list design, for comparison: an event loop that receives, handler
//! threads that share one queue of *messages*, and one send thread that shares one list
//! of *messages*, posts a semaphore for each, and walks the list under its lock at each
//! wake-up, past the messages of clients that do not read. What docs/SEND-PATH.md says of
//! that design is measured with this program.
//!
//! `classic [ADDRESS] [HANDLER_THREADS]`, 127.0.0.1:0 and 2 without; prints
//! `ready ADDRESS`, runs until killed.

use bytes::BytesMut;
use chappe_sys::Semaphore;
use chappe_wire::{HEADER_BYTES, Header, append_frame};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const LISTENER: u64 = u64::MAX;

struct Connection {
    stream: TcpStream,
    key: u64,
    /// The socket is full: what is half sent waits here for EPOLLOUT.
    half_sent: Mutex<Vec<u8>>,
    is_full: AtomicBool,
}

type Message = (Arc<Connection>, Vec<u8>);

struct Server {
    epoll: Epoll,
    received: Mutex<VecDeque<Message>>,
    has_received: Condvar,
    /// One list for all connections, in the order of the replies.
    unsent: Mutex<VecDeque<Message>>,
    queued: Semaphore,
}

fn main() -> io::Result<()> {
    let mut address = "127.0.0.1:0".to_owned();
    let mut handlers = 2;
    for argument in std::env::args().skip(1) {
        match argument.parse() {
            Ok(count) => handlers = count,
            Err(_) if argument.contains(':') => address = argument,
            Err(_) => {}
        }
    }
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let server = Arc::new(Server {
        epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
        received: Mutex::new(VecDeque::new()),
        has_received: Condvar::new(),
        unsent: Mutex::new(VecDeque::new()),
        queued: Semaphore::new(0)?,
    });
    server.epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    for _ in 0..handlers {
        let server = Arc::clone(&server);
        std::thread::spawn(move || handle_messages(&server));
    }
    {
        let server = Arc::clone(&server);
        std::thread::spawn(move || send_messages(&server));
    }
    println!("ready {}", listener.local_addr()?);
    run_loop(&server, &listener)
}

fn run_loop(server: &Server, listener: &TcpListener) -> io::Result<()> {
    let mut connections: HashMap<u64, (Arc<Connection>, Vec<u8>)> = HashMap::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut events = [EpollEvent::empty(); 256];
    loop {
        let count = match server.epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            count => count?,
        };
        for event in &events[..count] {
            let key = event.data();
            if key == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    let connection = set_up(server, stream)?;
                    connections.insert(connection.key, (connection, Vec::new()));
                }
                continue;
            }
            let Some((connection, partial)) = connections.get_mut(&key) else { continue };
            if event.events().contains(EpollFlags::EPOLLOUT) {
                finish_half_sent(server, connection);
            }
            let is_over = match (&connection.stream).read(&mut buffer) {
                Ok(received) if received > 0 => {
                    partial.extend_from_slice(&buffer[..received]);
                    !cut_messages(server, connection, partial)
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => false,
                _ => true,
            };
            if is_over {
                _ = connection.stream.shutdown(Shutdown::Both);
                connections.remove(&key);
            }
        }
    }
}

fn set_up(server: &Server, stream: TcpStream) -> io::Result<Arc<Connection>> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    let key = u64::try_from(stream.as_raw_fd()).expect("not negative");
    server.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, key))?;
    let half_sent = Mutex::new(Vec::new());
    Ok(Arc::new(Connection { stream, key, half_sent, is_full: AtomicBool::new(false) }))
}

/// Queues each whole message by itself. False if there can be none.
fn cut_messages(server: &Server, connection: &Arc<Connection>, partial: &mut Vec<u8>) -> bool {
    let mut at = 0;
    while let Some(header) = Header::read(&partial[at..]) {
        let length = usize::from(header.length);
        if length < HEADER_BYTES {
            return false;
        }
        let Some(frame) = partial.get(at..at + length) else { break };
        server.received.lock().push_back((Arc::clone(connection), frame.to_vec()));
        server.has_received.notify_one();
        at += length;
    }
    partial.drain(..at);
    true
}

fn handle_messages(server: &Server) {
    loop {
        let (connection, frame) = {
            let mut received = server.received.lock();
            loop {
                match received.pop_front() {
                    Some(message) => break message,
                    None => server.has_received.wait(&mut received),
                }
            }
        };
        let Some(header) = Header::read(&frame) else { continue };
        let body = &frame[HEADER_BYTES..];
        let mut reply = BytesMut::new();
        if header.verify(body) && append_frame(&mut reply, header.code, body).is_ok() {
            server.unsent.lock().push_back((connection, reply.to_vec()));
            server.queued.post();
        }
    }
}

fn send_messages(server: &Server) {
    loop {
        server.queued.wait();
        let mut unsent = server.unsent.lock();
        let mut at = 0;
        while let Some((connection, message)) = unsent.get(at) {
            if connection.is_full.load(Ordering::Acquire) {
                at += 1;
                continue;
            }
            match (&connection.stream).write(message) {
                Ok(sent) if sent == message.len() => {}
                Err(error) if error.kind() != ErrorKind::WouldBlock => {}
                sent => {
                    *connection.half_sent.lock() = message[sent.unwrap_or(0)..].to_vec();
                    connection.is_full.store(true, Ordering::Release);
                    watch(server, connection, EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT);
                }
            }
            unsent.remove(at);
        }
    }
}

fn finish_half_sent(server: &Server, connection: &Connection) {
    let mut rest = connection.half_sent.lock();
    match (&connection.stream).write(&rest) {
        Ok(sent) => _ = rest.drain(..sent),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        Err(_) => rest.clear(),
    }
    if rest.is_empty() {
        watch(server, connection, EpollFlags::EPOLLIN);
        // In this order, or the send thread would still find it full and sleep.
        connection.is_full.store(false, Ordering::Release);
        server.queued.post();
    }
}

fn watch(server: &Server, connection: &Connection, flags: EpollFlags) {
    let mut event = EpollEvent::new(flags, connection.key);
    // Fails only on a connection that is gone.
    _ = server.epoll.modify(&connection.stream, &mut event);
}
