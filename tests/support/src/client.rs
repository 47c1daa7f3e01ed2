//! What tests do with a client again and again.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};

use chappe_client::{ClientError, Connection, ErrorNumber, Frame, ServerError};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

use super::wait::DEADLINE;

/// Receives until there is nothing more, and says how it ended.
pub fn drain(client: &mut Connection) -> (Vec<Frame>, ClientError) {
    let mut frames = Vec::new();
    loop {
        match client.receive() {
            Ok(frame) => frames.push(frame),
            Err(end) => return (frames, end),
        }
    }
}

/// The next frame, which must be this error.
#[track_caller]
pub fn receive_error(client: &mut Connection, number: ErrorNumber) -> ServerError {
    let frame = client.receive().expect("an error frame");
    let error = frame.as_error().unwrap_or_else(|| panic!("no error frame: {frame:?}"));
    assert!(error.is(number), "{error} instead of {number:?}");
    error
}

/// A client whose kernel buffers hold about `bytes` bytes. They must be set
/// before connecting: the window is agreed on then.
pub fn small_buffers(address: SocketAddr, bytes: usize) -> Connection {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    setsockopt(&socket, sockopt::RcvBuf, &bytes).expect("SO_RCVBUF");
    setsockopt(&socket, sockopt::SndBuf, &bytes).expect("SO_SNDBUF");
    connect(socket.as_raw_fd(), &SockaddrStorage::from(address)).expect("connected");
    Connection::from_stream(TcpStream::from(socket), Some(DEADLINE)).expect("a client")
}

/// A client that connects from an address of this machine of its choice.
#[track_caller]
pub fn connect_from(source: IpAddr, address: SocketAddr) -> Connection {
    try_connect_from(source, address).expect("connected")
}

/// Connects from an address of this machine, or says why that failed.
pub fn try_connect_from(source: IpAddr, address: SocketAddr) -> nix::Result<Connection> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // The port is chosen at the connect: one that is still in TIME_WAIT may be it.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    let source = SocketAddr::from((source, 0));
    bind(socket.as_raw_fd(), &SockaddrStorage::from(source))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(Connection::from_stream(TcpStream::from(socket), Some(DEADLINE)).expect("a client"))
}

/// Makes the close of a socket a reset: at once, and whatever is on its way is lost.
pub fn reset_on_close(socket: &impl AsFd) {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(socket, sockopt::Linger, &linger).expect("SO_LINGER");
}

/// Bodies that can be told apart: each begins with a number, and each byte
/// depends on that number and its place.
#[derive(Clone, Copy, Debug)]
pub struct Numbered {
    /// Tells connections apart.
    pub stream: u32,
    /// Tells the messages of a connection apart.
    pub number: u32,
    /// How long the body is.
    pub bytes: usize,
}

impl Numbered {
    /// The body.
    pub fn body(self) -> Vec<u8> {
        let mut state = (u64::from(self.stream) << 32 | u64::from(self.number))
            .wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut body = Vec::with_capacity(self.bytes + 8);
        while body.len() < self.bytes {
            // A step of SplitMix64: cheap, and different for each number.
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            body.extend_from_slice(&(mixed ^ (mixed >> 27)).to_le_bytes());
        }
        body.truncate(self.bytes);
        body
    }
}
