//! What a run is to do, and what keeps it from being done.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chappe_client::{BodyTooLong, ClientError, Code, Connection};
use chappe_sys::unix_socket;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::first::FirstError;
use crate::cli::first::First;

/// What to do to whom.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The server, as HOST:PORT or unix:PATH.
    pub(crate) to: String,
    /// Connections that are measured.
    pub(crate) connections: u32,
    /// Requests under way at once on each of them, at most.
    pub(crate) pipeline: usize,
    /// Bytes of each request's body.
    pub(crate) body_bytes: usize,
    /// Each request's body, if it is one that was given.
    pub(crate) body: Option<Vec<u8>>,
    /// What each connection sends before anything else.
    pub(crate) first: Option<First>,
    /// The requests' code.
    pub(crate) code: Code,
    /// The code of the replies: frames of other codes are not replies.
    pub(crate) reply_code: Code,
    /// What the replies must be.
    pub(crate) expect: Expect,
    /// Requests a second over all connections, by the clock; `None`: closed loop.
    pub(crate) rate: Option<u64>,
    /// Load before the measurement.
    pub(crate) warmup: Duration,
    /// The measurement.
    pub(crate) duration: Duration,
    /// For each connection to come about, and for the last replies to come.
    pub(crate) timeout: Duration,
    /// Connections that send one ping and then stay idle.
    pub(crate) idle: u32,
    /// Connections that send and never read.
    pub(crate) slow_readers: u32,
    /// Bytes of their requests' bodies.
    pub(crate) slow_body_bytes: usize,
    /// One connection that reads at a fixed pace.
    pub(crate) paced: Option<Paced>,
    /// Processes of the server, if they are on this machine and known.
    pub(crate) server_pids: Vec<i32>,
    /// Have perf(1) count their system calls.
    pub(crate) counts_system_calls: bool,
}

/// One more connection, that asks for all of its bytes at once and reads them slowly.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paced {
    pub(crate) bytes_per_second: usize,
    pub(crate) bytes: u64,
}

/// What a reply must be to be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// Of the request's code, with the request's body.
    Echo,
    /// Of the request's code, without a body.
    Empty,
    /// Anything with a right checksum that is no error.
    Any,
}

/// Why there is no run, or no more of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error(transparent)]
    Connect(#[from] ClientError),
    #[error("connection {number} of {all} to {to} could not be made")]
    ConnectOne { number: u64, all: u64, to: Target, source: io::Error },
    #[error("connection {number} of {all} to {to} is left out")]
    First { number: u64, all: u64, to: Target, source: FirstError },
    #[error("{to} does not answer a ping as a Chappe server does")]
    Protocol { to: Target, source: Wrong },
    #[error("{to} refuses: {refusal}")]
    Refused { to: Target, refusal: String },
    #[error(transparent)]
    Body(#[from] BodyTooLong),
    #[error("{needed} connections need more descriptors than this process may have ({limit})")]
    Descriptors { needed: u64, limit: u64 },
    #[error("{what}")]
    Stuck { what: String },
    #[error("{step}")]
    System { step: &'static str, source: io::Error },
}

/// What was wrong with the answer to the first ping.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Wrong {
    #[error(transparent)]
    Client(ClientError),
    #[error("a frame of code {code} with {bytes} bytes")]
    Reply { code: Code, bytes: usize },
}

/// One address of the server: the one that answered.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Target {
    /// Tries each address that `to` stands for: the first that a client gets through
    /// to, and that client.
    pub(super) fn find(to: &str, timeout: Duration) -> Result<(Self, Connection), ClientError> {
        if let Some(path) = to.strip_prefix("unix:") {
            let client = Connection::connect_unix(path, timeout)?;
            return Ok((Self::Unix(PathBuf::from(path)), client));
        }
        let failed = |source| ClientError::Connect { address: to.to_owned(), source };
        let mut outcome =
            failed(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        for address in to.to_socket_addrs().map_err(failed)? {
            match Connection::connect(address, timeout) {
                Ok(client) => return Ok((Self::Tcp(address), client)),
                Err(error) => outcome = error,
            }
        }
        Err(outcome)
    }

    /// One more connection; it does not block. `buffer` is what the kernel may hold for
    /// it in each direction, if that is not to be the kernel's choice.
    pub(super) fn connect(
        &self,
        timeout: Duration,
        buffer: Option<usize>,
    ) -> io::Result<TcpStream> {
        let stream = match (self, buffer) {
            (Self::Tcp(address), None) => TcpStream::connect_timeout(address, timeout)?,
            (Self::Tcp(address), Some(bytes)) => connect_small(*address, timeout, bytes)?,
            (Self::Unix(path), _) => connect_unix(path, timeout, buffer)?,
        };
        if matches!(self, Self::Tcp(_)) {
            stream.set_nodelay(true)?;
        }
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

/// The window is agreed on at the connect, so buffers are set before.
fn connect_small(address: SocketAddr, timeout: Duration, bytes: usize) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::RcvBuf, &bytes)?;
    setsockopt(&socket, sockopt::SndBuf, &bytes)?;
    // socket(7): the time-out of sends is that of connect too. Zero would be none.
    let timeout = timeout.max(Duration::from_micros(1));
    let seconds = libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX);
    let value = TimeVal::new(seconds, timeout.subsec_micros().into());
    setsockopt(&socket, sockopt::SendTimeout, &value)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(TcpStream::from(socket))
}

/// Reading, writing and shutdown are the same for each family.
fn connect_unix(path: &Path, timeout: Duration, buffer: Option<usize>) -> io::Result<TcpStream> {
    let socket = unix_socket::connect_timeout(path, timeout)?;
    if let Some(bytes) = buffer {
        setsockopt(&socket, sockopt::RcvBuf, &bytes)?;
        setsockopt(&socket, sockopt::SndBuf, &bytes)?;
    }
    Ok(TcpStream::from(socket))
}
