//! A connection's socket. All that the worker does to a connected socket stands
//! here, so that another kind of connection would be another one of these.

use crate::handler::Peer;
use crate::send::Socket;
use chappe_sys::socket::{self, AcceptQueue};
use nix::sys::socket::{MsgFlags, send, sendmsg, setsockopt, sockopt};
use std::io::{self, IoSlice, Read};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

/// A listening, non-blocking socket of either family.
#[derive(Debug)]
pub enum Acceptor {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Acceptor {
    /// accept(2): a socket to set up, and who is at its other end.
    pub(super) fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Tcp(listener) => {
                listener.accept().map(|(stream, peer)| (Stream::Tcp(stream), Peer::Tcp(peer)))
            }
            Self::Unix(listener) => {
                listener.accept().map(|(stream, _)| (Stream::Unix(stream), Peer::Unix))
            }
        }
    }

    /// How many connections wait to be accepted; a Unix socket does not tell.
    pub(super) fn queue(&self) -> Option<AcceptQueue> {
        AcceptQueue::of(self.as_fd()).ok()
    }
}

impl AsFd for Acceptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

/// An accepted socket.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// A connected, non-blocking socket. Closed when the last holder drops it, which
/// by the states of the outbox is the event loop.
#[derive(Debug)]
pub(super) struct Transport(Stream);

/// Options of a listener and of the sockets that are accepted from it.
#[derive(Clone, Copy, Debug)]
pub struct SocketOptions {
    /// Other workers accept from the same listener.
    pub shared: bool,
    pub keepalive: bool,
    /// 0 = the kernel's choice.
    pub receive_buffer: usize,
    /// 0 = the kernel's choice.
    pub send_buffer: usize,
    pub notsent_lowat: usize,
}

impl Transport {
    /// Sets up an accepted socket.
    pub(super) fn new(stream: Stream, options: &SocketOptions) -> io::Result<Self> {
        match &stream {
            Stream::Tcp(tcp) => {
                tcp.set_nonblocking(true)?;
                // Replies leave in one piece by our own doing; Nagle would only delay them.
                tcp.set_nodelay(true)?;
                if options.keepalive {
                    setsockopt(tcp, sockopt::KeepAlive, &true)?;
                }
                socket::set_notsent_lowat(tcp.as_fd(), options.notsent_lowat)?;
            }
            // The other three are TCP's.
            Stream::Unix(unix) => unix.set_nonblocking(true)?,
        }
        if options.receive_buffer > 0 {
            setsockopt(&stream, sockopt::RcvBuf, &options.receive_buffer)?;
        }
        if options.send_buffer > 0 {
            setsockopt(&stream, sockopt::SndBuf, &options.send_buffer)?;
        }
        Ok(Self(stream))
    }

    /// recv(2) into `buffer`; 0 is the peer's FIN.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.0 {
            Stream::Tcp(stream) => (&*stream).read(buffer),
            Stream::Unix(stream) => (&*stream).read(buffer),
        }
    }

    /// SHUT_WR: the peer reads end of file after what was sent.
    pub(super) fn finish(&self) -> io::Result<()> {
        match &self.0 {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }

    /// Whether what the peer sent can still be read after EPOLLHUP. On TCP that
    /// means that both directions are over. A Unix socket has it as soon as its
    /// peer has closed, in front of everything that the peer sent before.
    pub(super) fn has_input_behind_hangup(&self) -> bool {
        matches!(self.0, Stream::Unix(_))
    }

    /// How far the peer has got with what was given to the kernel. Grows whenever
    /// the peer takes something, and means nothing by itself. On TCP these are the
    /// acknowledged bytes, all of them if the socket cannot tell.
    pub(super) fn acknowledged(&self, given_bytes: u64) -> u64 {
        /// A Unix socket counts the memory that it holds and not bytes: the
        /// difference could be below zero.
        const NEVER_BELOW_ZERO: u64 = 1 << 40;
        let held = socket::unacknowledged_bytes(self.0.as_fd()).unwrap_or(0) as u64;
        match &self.0 {
            Stream::Tcp(_) => given_bytes.saturating_sub(held),
            Stream::Unix(_) => (given_bytes + NEVER_BELOW_ZERO).saturating_sub(held),
        }
    }
}

impl Socket for Transport {
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        if let [one] = slices {
            // Nothing to gather: one copy into the kernel less.
            return Ok(send(self.as_fd().as_raw_fd(), one, flags)?);
        }
        Ok(sendmsg::<()>(self.as_fd().as_raw_fd(), slices, &[], flags, None)?)
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
