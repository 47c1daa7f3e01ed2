//! The limit server: the least that an echo of this protocol can cost. One process,
//! one thread, level-triggered epoll, run to completion: receive, check the CRC, copy
//! the body, compute the CRC again, send. No limits, no time-outs, no second thread.
//! Every figure of docs/PERFORMANCE.md is a ratio to it, from the same run.
//!
//! `limit [ADDRESS]`, 127.0.0.1:0 without; prints `ready ADDRESS`, runs until killed.

use bytes::BytesMut;
use chappe_wire::{HEADER_BYTES, Header, append_frame};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

const READ_BYTES: usize = 64 * 1024;
const LISTENER: u64 = u64::MAX;

struct Connection {
    stream: TcpStream,
    /// The begun frame.
    partial: Vec<u8>,
    /// What the socket did not take.
    unsent: Vec<u8>,
}

fn main() -> io::Result<()> {
    // `cargo bench` passes --bench; an address has a colon.
    let address = std::env::args().skip(1).find(|arg| arg.contains(':'));
    let listener = TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:0"))?;
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    println!("ready {}", listener.local_addr()?);
    let mut connections: HashMap<u64, Connection> = HashMap::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut out = BytesMut::with_capacity(2 * READ_BYTES);
    let mut events = [EpollEvent::empty(); 256];
    loop {
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            count => count?,
        };
        for event in &events[..count] {
            if event.data() == LISTENER {
                accept(&listener, &epoll, &mut connections)?;
                continue;
            }
            let Some(connection) = connections.get_mut(&event.data()) else { continue };
            if serve(connection, event, &epoll, &mut buffer, &mut out).is_err() {
                connections.remove(&event.data());
            }
        }
    }
}

fn accept(
    listener: &TcpListener,
    epoll: &Epoll,
    connections: &mut HashMap<u64, Connection>,
) -> io::Result<()> {
    while let Ok((stream, _)) = listener.accept() {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let key = u64::try_from(stream.as_raw_fd()).expect("not negative");
        epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, key))?;
        connections.insert(key, Connection { stream, partial: Vec::new(), unsent: Vec::new() });
    }
    Ok(())
}

/// An error ends the connection.
fn serve(
    connection: &mut Connection,
    event: &EpollEvent,
    epoll: &Epoll,
    buffer: &mut [u8],
    out: &mut BytesMut,
) -> io::Result<()> {
    if event.events().contains(EpollFlags::EPOLLOUT) {
        let unsent = std::mem::take(&mut connection.unsent);
        return send(connection, &unsent, epoll, event.data(), true);
    }
    let received = match connection.stream.read(buffer) {
        Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
        Ok(received) => received,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
        Err(error) => return Err(error),
    };
    out.clear();
    if connection.partial.is_empty() {
        let used = answer(&buffer[..received], out)?;
        connection.partial.extend_from_slice(&buffer[used..received]);
    } else {
        connection.partial.extend_from_slice(&buffer[..received]);
        let used = answer(&connection.partial, out)?;
        connection.partial.drain(..used);
    }
    send(connection, out, epoll, event.data(), false)
}

/// Echoes the whole frames of `input`; how many bytes these were.
fn answer(input: &[u8], out: &mut BytesMut) -> io::Result<usize> {
    let mut at = 0;
    while let Some(header) = Header::read(&input[at..]) {
        let length = usize::from(header.length);
        if length < HEADER_BYTES {
            return Err(ErrorKind::InvalidData.into());
        }
        let Some(frame) = input.get(at..at + length) else { break };
        let body = &frame[HEADER_BYTES..];
        if !header.verify(body) {
            return Err(ErrorKind::InvalidData.into());
        }
        append_frame(out, header.code, body).map_err(io::Error::other)?;
        at += length;
    }
    Ok(at)
}

fn send(
    connection: &mut Connection,
    bytes: &[u8],
    epoll: &Epoll,
    key: u64,
    was_full: bool,
) -> io::Result<()> {
    let sent = match connection.stream.write(bytes) {
        Ok(sent) => sent,
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        Err(error) => return Err(error),
    };
    let is_full = sent < bytes.len();
    if is_full {
        connection.unsent = bytes[sent..].to_vec();
    }
    if is_full != was_full {
        let flags = if is_full { EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
        epoll.modify(&connection.stream, &mut EpollEvent::new(flags, key))?;
    }
    Ok(())
}
