//! Listening sockets: bound by the master before the first fork, inherited by
//! every worker, and never closed while their address stays configured.
//!
//! Nothing here accepts; a listener is a socket and the words it was made from.

mod socket_file;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};
use thiserror::Error;

use crate::config::{self, Address};
use crate::sys::activation;
use socket_file::SocketFile;

/// Why an address can't be listened on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The kernel said no.
    #[error("cannot listen on {address}: {cause}")]
    Bind {
        /// As it stands in the configuration.
        address: Address,
        /// What the kernel said.
        cause: io::Error,
    },
    /// A socket was passed to us that is none to accept from.
    #[error("descriptor {number}, passed by LISTEN_FDS, is no listening socket: {cause}")]
    Passed {
        /// The descriptor, from 3.
        number: usize,
        /// What it is, or what the kernel said.
        cause: io::Error,
    },
}

impl ListenError {
    /// Whether somebody else listens there.
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Bind { cause, .. } if cause.kind() == io::ErrorKind::AddrInUse)
    }
}

/// A bound, listening, non-blocking socket.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: OwnedFd,
    /// The address as it stands in the configuration: what a reload compares.
    pub configured: Address,
    /// Where it really listens: with the port that the kernel chose for port 0.
    pub local: Address,
    /// How its connections are to be treated.
    pub options: config::Listen,
    /// The file of a Unix socket that was made here. It goes with the listener, in
    /// the process that owns it.
    file: Option<SocketFile>,
}

impl Listener {
    /// Binds and listens. Connections wait in the backlog from here on.
    ///
    /// A Unix socket at which nobody listens any more is replaced. When the listener
    /// is dropped its file goes too, if it is still ours.
    ///
    /// # Errors
    /// The address is taken, forbidden, or not this machine's.
    pub fn bind(options: &config::Listen) -> Result<Self, ListenError> {
        let bound = match &options.address {
            Address::Tcp(address) => bind_tcp(*address, options)
                .map(|(socket, local)| (socket, Address::Tcp(local), None)),
            Address::Unix(path) => SocketFile::bind(path, options.backlog)
                .map(|(socket, file)| (socket, Address::Unix(path.clone()), Some(file))),
        };
        let (socket, local, file) =
            bound.map_err(|cause| ListenError::Bind { address: options.address.clone(), cause })?;
        let configured = options.address.clone();
        Ok(Self { socket, configured, local, options: options.clone(), file })
    }

    /// A socket that listened before we were started.
    pub fn adopt(passed: Passed, options: &config::Listen) -> Self {
        let Passed { socket, address } = passed;
        let configured = options.address.clone();
        Self { socket, configured, local: address, options: options.clone(), file: None }
    }

    /// Makes this process the one whose drop of the listener removes the file of a
    /// Unix socket: the one that binds, until it has forked the master.
    pub fn own_file(&mut self) {
        if let Some(file) = &mut self.file {
            file.own();
        }
    }

    /// The file of a Unix socket is left to another process.
    pub fn leave_file(&mut self) {
        if let Some(file) = &mut self.file {
            file.leave();
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A listening socket from whoever started us: systemd's socket activation.
#[derive(Debug)]
pub struct Passed {
    socket: OwnedFd,
    /// Where it listens.
    pub address: Address,
}

impl Passed {
    /// The sockets that were passed to this process, in their order. Once.
    ///
    /// # Errors
    /// [`ListenError::Passed`] for anything that is no listening stream socket.
    pub fn take() -> Result<Vec<Self>, ListenError> {
        let wrong = |number, cause| ListenError::Passed { number, cause };
        let passed = activation::take().map_err(|cause| wrong(activation::FIRST, cause))?;
        let examine = |(nth, socket): (usize, OwnedFd)| {
            let address = activation::listening_address(&socket)
                .map_err(|cause| wrong(activation::FIRST + nth, cause))?;
            let address = match address {
                activation::Address::Ip(address) => Address::Tcp(address),
                activation::Address::Path(path) => Address::Unix(path),
            };
            Ok(Self { socket, address })
        };
        passed.into_iter().enumerate().map(examine).collect()
    }
}

fn bind_tcp(address: SocketAddr, options: &config::Listen) -> io::Result<(OwnedFd, SocketAddr)> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    // Non-blocking: with several workers on one socket the connection may be gone
    // to another one by the time that this one accepts.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None)?;
    // Connections of a server that just ended linger in TIME_WAIT and would keep
    // the next one from its address. It does not let two servers share it.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &options.ipv6only)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    let backlog = i32::try_from(options.backlog).unwrap_or(i32::MAX);
    // More than the kernel's somaxconn is cut down by the kernel.
    listen(&socket, Backlog::new(backlog).unwrap_or(Backlog::MAXALLOWABLE))?;
    let listener = TcpListener::from(socket);
    let local = listener.local_addr()?;
    Ok((listener.into(), local))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    fn options(address: &str) -> config::Listen {
        config::Listen {
            address: Address::Tcp(address.parse().unwrap()),
            ..config::Listen::default()
        }
    }

    #[test]
    fn port_zero_becomes_a_port_and_the_configured_text_stays() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = Listener::bind(&options(address)).unwrap();
            let Address::Tcp(local) = listener.local else { panic!("{:?}", listener.local) };
            assert_ne!(local.port(), 0);
            assert_eq!(listener.configured.to_string(), address);
            TcpStream::connect(local).unwrap();
        }
    }

    #[test]
    fn a_taken_address_is_named_with_the_kernels_reason() {
        let first = Listener::bind(&options("127.0.0.1:0")).unwrap();
        let taken = options(&first.local.to_string());
        let error = Listener::bind(&taken).unwrap_err();
        assert!(error.is_taken());
        let text = error.to_string();
        assert!(text.contains(&first.local.to_string()), "{text}");
        assert!(text.contains("Address already in use"), "{text}");
    }
}
