//! The other end of a connection.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Where a connection comes from.
///
/// ```
/// # use chappe_engine::Peer;
/// let peer = Peer::Tcp("[::1]:40000".parse()?);
/// assert_eq!((peer.to_string(), Peer::Unix.to_string()), ("[::1]:40000".into(), "unix:".into()));
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Peer {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A process of this machine, through a Unix socket: clients have no name there.
    Unix,
}

impl Peer {
    /// The address without the port; `None` through a Unix socket.
    ///
    /// ```
    /// # use chappe_engine::Peer;
    /// # use std::net::Ipv4Addr;
    /// let peer = Peer::Tcp(([192, 0, 2, 1], 40000).into());
    /// // The port changes.
    /// assert_eq!(peer.address(), Some(Ipv4Addr::new(192, 0, 2, 1).into()));
    /// assert_eq!(Peer::Unix.address(), None);
    /// ```
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) => Some(address.ip()),
            Self::Unix => None,
        }
    }
}

/// `127.0.0.1:40000`, `[::1]:40000` or `unix:`.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("unix:"),
        }
    }
}

/// A peer in three quarters of the bytes: there is one for each idle connection. The flow
/// label of an IPv6 address, which nothing asks for, is not kept.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PackedPeer {
    Unix,
    V4 { ip: [u8; 4], port: u16 },
    V6 { ip: [u8; 16], port: u16, scope: [u8; 4] },
}

impl From<Peer> for PackedPeer {
    fn from(peer: Peer) -> Self {
        match peer {
            Peer::Unix => Self::Unix,
            Peer::Tcp(SocketAddr::V4(address)) => {
                Self::V4 { ip: address.ip().octets(), port: address.port() }
            }
            Peer::Tcp(SocketAddr::V6(address)) => Self::V6 {
                ip: address.ip().octets(),
                port: address.port(),
                scope: address.scope_id().to_ne_bytes(),
            },
        }
    }
}

impl From<PackedPeer> for Peer {
    fn from(packed: PackedPeer) -> Self {
        match packed {
            PackedPeer::Unix => Self::Unix,
            PackedPeer::V4 { ip, port } => Self::Tcp((Ipv4Addr::from(ip), port).into()),
            PackedPeer::V6 { ip, port, scope } => {
                let scope = u32::from_ne_bytes(scope);
                Self::Tcp(SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope).into())
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_packed_peer_is_the_same_peer_and_smaller() {
        let addresses = ["127.0.0.1:1", "[::1]:65535", "[fe80::1%7]:9"];
        let peers = addresses.map(|text| Peer::Tcp(text.parse().expect("an address")));
        for peer in peers.into_iter().chain([Peer::Unix]) {
            assert_eq!(Peer::from(PackedPeer::from(peer)), peer);
        }
        assert!(size_of::<PackedPeer>() <= 24 && size_of::<Peer>() == 32);
    }
}
