//! Sockets: those that listen, and those that are connected. All that the worker does to a
//! connected socket stands behind [`Transport`], so that another kind of connection would
//! be another one of these, and a script can play one in tests.

use super::interest::Interest;
use super::reactor::{EpollSet, Key};
use chappe_engine::{Peer, Socket};
use chappe_sys::socket;
use nix::sys::socket::{MsgFlags, Shutdown, sendmsg, setsockopt, shutdown, sockopt};
use std::io::{self, IoSlice};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;

/// A listening, non-blocking socket of either family.
#[derive(Debug)]
pub(crate) enum ListenSocket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl ListenSocket {
    /// accept(2): a non-blocking socket to set up, and the peer at its other end.
    pub(super) fn accept(&self) -> io::Result<(OwnedFd, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok((stream.into(), Peer::Tcp(address)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok((stream.into(), Peer::Unix))
            }
        }
    }
}

impl AsFd for ListenSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

/// A connected, non-blocking socket, as the event loop uses it.
pub(super) trait Transport: Socket {
    /// Brings the epoll set from what it watches here to what it is to watch.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    fn watch(&self, epoll: &EpollSet, key: Key, from: Interest, to: Interest) -> io::Result<()>;

    /// recv(2) into `buffer`; 0 is the peer's FIN.
    ///
    /// # Errors
    /// Those of recv(2).
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// How many bytes the next reads would find in the kernel.
    fn unread_bytes(&self) -> usize;

    /// SHUT_WR: the peer reads end of file after what was sent.
    ///
    /// # Errors
    /// Those of shutdown(2).
    fn finish(&self) -> io::Result<()>;

    /// Whether what the peer sent can still be read after EPOLLHUP. On TCP that means
    /// that both directions are over. A Unix socket has it as soon as its peer has
    /// closed, in front of everything that the peer sent before.
    fn has_input_behind_hangup(&self) -> bool;

    /// How far the peer has got with what was given to the kernel. Grows whenever the
    /// peer takes something, and means nothing by itself. On TCP these are the
    /// acknowledged bytes, all of them if the socket cannot tell.
    fn acknowledged(&self, given_bytes: u64) -> u64;
}

/// A connected socket of the kernel's. Closed when the last holder drops it, which by the
/// states of the outbox is the event loop.
#[derive(Debug)]
pub(super) struct KernelSocket {
    fd: OwnedFd,
    is_unix: bool,
}

/// Options of a listener and of the sockets that are accepted from it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SocketOptions {
    /// The place of the listener in the configuration.
    pub(crate) listener: u8,
    /// Other workers accept from the same listener.
    pub(crate) shared: bool,
    pub(crate) keepalive: bool,
    /// 0 = the kernel's choice.
    pub(crate) receive_buffer: usize,
    /// 0 = the kernel's choice.
    pub(crate) send_buffer: usize,
    pub(crate) notsent_lowat: usize,
}

impl KernelSocket {
    /// Sets up an accepted socket.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub(super) fn new(fd: OwnedFd, peer: Peer, options: &SocketOptions) -> io::Result<Self> {
        let is_unix = peer == Peer::Unix;
        // These three are TCP's.
        if !is_unix {
            // Replies leave in one piece by our own doing; Nagle would only delay them.
            setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
            if options.keepalive {
                setsockopt(&fd, sockopt::KeepAlive, &true)?;
            }
            socket::set_notsent_lowat(fd.as_fd(), options.notsent_lowat)?;
        }
        if options.receive_buffer > 0 {
            setsockopt(&fd, sockopt::RcvBuf, &options.receive_buffer)?;
        }
        if options.send_buffer > 0 {
            setsockopt(&fd, sockopt::SndBuf, &options.send_buffer)?;
        }
        Ok(Self { fd, is_unix })
    }
}

impl Transport for KernelSocket {
    fn watch(&self, epoll: &EpollSet, key: Key, from: Interest, to: Interest) -> io::Result<()> {
        epoll.watch(self.fd.as_fd(), key, from, to)
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        socket::receive(self.fd.as_fd(), buffer)
    }

    fn unread_bytes(&self) -> usize {
        socket::unread_bytes(self.fd.as_fd()).unwrap_or(0)
    }

    fn finish(&self) -> io::Result<()> {
        Ok(shutdown(self.fd.as_raw_fd(), Shutdown::Write)?)
    }

    fn has_input_behind_hangup(&self) -> bool {
        self.is_unix
    }

    fn acknowledged(&self, given_bytes: u64) -> u64 {
        /// A Unix socket counts the memory that it holds and not bytes: the
        /// difference could be below zero.
        const NEVER_BELOW_ZERO: u64 = 1 << 40;
        let held = socket::unacknowledged_bytes(self.fd.as_fd()).unwrap_or(0) as u64;
        let given = if self.is_unix { given_bytes + NEVER_BELOW_ZERO } else { given_bytes };
        given.saturating_sub(held)
    }
}

impl Socket for KernelSocket {
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if let [one] = slices {
            // Nothing to gather: one copy into the kernel less.
            return socket::send(self.fd.as_fd(), one);
        }
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        Ok(sendmsg::<()>(self.fd.as_fd().as_raw_fd(), slices, &[], flags, None)?)
    }
}
