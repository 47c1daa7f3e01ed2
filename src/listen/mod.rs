//! Listening sockets: bound by the master before the first fork, inherited by
//! every worker, and never closed while their address stays configured.
//!
//! Nothing here accepts; a listener is a socket and the words it was made from.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};
use thiserror::Error;

use crate::config;

/// Why an address can't be listened on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The kernel said no.
    #[error("cannot listen on {address}: {cause}")]
    Bind {
        /// As it stands in the configuration.
        address: config::Address,
        /// What the kernel said.
        cause: io::Error,
    },
    /// This version has no such listener.
    #[error("cannot listen on {0}: Unix sockets are not available in this version")]
    UnixSocket(config::Address),
}

/// A bound, listening, non-blocking socket.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: OwnedFd,
    /// The address as it stands in the configuration: what a reload compares.
    pub configured: config::Address,
    /// Where it really listens: with the port that the kernel chose for port 0.
    pub local: SocketAddr,
    /// How its connections are to be treated.
    pub options: config::Listen,
}

impl Listener {
    /// Binds and listens. Connections wait in the backlog from here on.
    ///
    /// # Errors
    /// The address is taken, forbidden, or not this machine's.
    pub fn bind(options: &config::Listen) -> Result<Self, ListenError> {
        let config::Address::Tcp(address) = options.address else {
            return Err(ListenError::UnixSocket(options.address.clone()));
        };
        let (socket, local) = bind_tcp(address, options)
            .map_err(|cause| ListenError::Bind { address: options.address.clone(), cause })?;
        Ok(Self { socket, configured: options.address.clone(), local, options: options.clone() })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
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
            address: config::Address::Tcp(address.parse().unwrap()),
            ..config::Listen::default()
        }
    }

    #[test]
    fn port_zero_becomes_a_port_and_the_configured_text_stays() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = Listener::bind(&options(address)).unwrap();
            assert_ne!(listener.local.port(), 0);
            assert_eq!(listener.configured.to_string(), address);
            TcpStream::connect(listener.local).unwrap();
        }
    }

    #[test]
    fn a_taken_address_is_named_with_the_kernels_reason() {
        let first = Listener::bind(&options("127.0.0.1:0")).unwrap();
        let taken = options(&first.local.to_string());
        let text = Listener::bind(&taken).unwrap_err().to_string();
        assert!(text.contains(&first.local.to_string()), "{text}");
        assert!(text.contains("Address already in use"), "{text}");
    }
}
