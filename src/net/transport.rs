//! A connection's socket. All that the worker does to a connected socket stands
//! here, so that another kind of connection would be another one of these.

use crate::send::Socket;
use crate::sys::socket;
use nix::sys::socket::{MsgFlags, sendmsg, setsockopt, sockopt};
use std::io::{self, IoSlice, Read};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// A connected, non-blocking TCP socket. Closed when the last holder drops it,
/// which by the states of the outbox is the event loop.
#[derive(Debug)]
pub(super) struct Transport(TcpStream);

/// Options of accepted sockets.
#[derive(Clone, Copy, Debug)]
pub struct SocketOptions {
    pub keepalive: bool,
    /// 0 = the kernel's choice.
    pub receive_buffer: usize,
    /// 0 = the kernel's choice.
    pub send_buffer: usize,
    pub notsent_lowat: usize,
}

impl Transport {
    /// Sets up an accepted socket.
    pub(super) fn new(stream: TcpStream, options: &SocketOptions) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        // Replies leave in one piece by our own doing; Nagle would only delay them.
        stream.set_nodelay(true)?;
        if options.keepalive {
            setsockopt(&stream, sockopt::KeepAlive, &true)?;
        }
        if options.receive_buffer > 0 {
            setsockopt(&stream, sockopt::RcvBuf, &options.receive_buffer)?;
        }
        if options.send_buffer > 0 {
            setsockopt(&stream, sockopt::SndBuf, &options.send_buffer)?;
        }
        socket::set_notsent_lowat(stream.as_fd(), options.notsent_lowat)?;
        Ok(Self(stream))
    }

    /// recv(2) into `buffer`; 0 is the peer's FIN.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    /// SHUT_WR: the peer reads end of file after what was sent.
    pub(super) fn finish(&self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }

    /// How many of the bytes that were given to the kernel the peer has
    /// acknowledged. Only grows. All of them if the socket cannot tell.
    pub(super) fn acknowledged(&self, given_bytes: u64) -> u64 {
        let held = socket::unacknowledged_bytes(self.0.as_fd()).unwrap_or(0);
        given_bytes.saturating_sub(held as u64)
    }
}

impl Socket for Transport {
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        Ok(sendmsg::<()>(self.0.as_raw_fd(), slices, &[], flags, None)?)
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
