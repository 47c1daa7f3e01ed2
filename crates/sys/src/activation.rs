//! Sockets that were opened before this process was started, as systemd passes
//! them (sd_listen_fds(3)): descriptors from 3 on, LISTEN_FDS of them, meant for
//! the process that LISTEN_PID names.
//!
//! Only the launcher calls this, once, before anything else opens a descriptor
//! that could have one of these numbers.

use std::env;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
};

/// The number of the first one.
pub const FIRST: usize = 3;

/// Where a passed socket listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Ip(SocketAddr),
    /// A Unix socket.
    Path(PathBuf),
}

/// Whether sockets are there for this process.
#[must_use]
pub fn is_there() -> bool {
    count().is_ok_and(|count| count > 0)
}

fn count() -> io::Result<usize> {
    let (Some(pid), Some(count)) = (env::var_os("LISTEN_PID"), env::var_os("LISTEN_FDS")) else {
        return Ok(0);
    };
    if pid.to_str().and_then(|pid| pid.parse().ok()) != Some(std::process::id()) {
        return Ok(0);
    }
    let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "LISTEN_FDS is not a number");
    count.to_str().and_then(|count| count.parse::<u16>().ok()).map(usize::from).ok_or_else(wrong)
}

/// Takes them, in their order; a second call finds none.
///
/// # Errors
/// When LISTEN_FDS makes no sense, or tells of descriptors that are not open.
pub fn take() -> io::Result<Vec<OwnedFd>> {
    let count = count()?;
    for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        // SAFETY: nothing else may read or write the environment in this time. This
        // process has one thread: it is the launcher, which starts none.
        unsafe { env::remove_var(name) };
    }
    let mut passed = Vec::with_capacity(count);
    for number in FIRST..FIRST + count {
        let number = i32::try_from(number).map_err(io::Error::other)?;
        // SAFETY: fcntl with F_GETFD takes no pointer; for a number that is not open
        // it fails.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is open (checked above), and the program that started us gave
        // it to us: nobody else in this process has it, since this is the first thing
        // that looks at it and it is looked at once.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        let flags = OFlag::from_bits_retain(fcntl(&socket, FcntlArg::F_GETFL)?);
        fcntl(&socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        passed.push(socket);
    }
    Ok(passed)
}

/// Where a listening stream socket listens.
///
/// # Errors
/// For everything else that a descriptor can be.
pub fn listening_address(socket: &OwnedFd) -> io::Result<Address> {
    let wrong = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
    if getsockopt(socket, sockopt::SockType)? != SockType::Stream {
        return Err(wrong("it is not a stream socket"));
    }
    if !getsockopt(socket, sockopt::AcceptConn)? {
        return Err(wrong("it does not listen"));
    }
    let address: SockaddrStorage = getsockname(socket.as_raw_fd())?;
    let of_unix = || address.as_unix_addr().and_then(|unix| unix.path()).map(PathBuf::from);
    match address.family() {
        Some(AddressFamily::Inet) => {
            address.as_sockaddr_in().map(|a| Address::Ip(std::net::SocketAddrV4::from(*a).into()))
        }
        Some(AddressFamily::Inet6) => {
            address.as_sockaddr_in6().map(|a| Address::Ip(std::net::SocketAddrV6::from(*a).into()))
        }
        Some(AddressFamily::Unix) => of_unix().map(Address::Path),
        _ => None,
    }
    .ok_or_else(|| wrong("its address is neither IP nor the path of a Unix socket"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixListener;

    #[test]
    fn listening_sockets_tell_their_address() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let local = listener.local_addr().unwrap();
            assert_eq!(listening_address(&listener.into()).unwrap(), Address::Ip(local));
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(listening_address(&listener.into()).unwrap(), Address::Path(path));
    }

    #[test]
    fn anything_else_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert!(listening_address(&file.into()).is_err());
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        let text = listening_address(&datagrams.into()).unwrap_err().to_string();
        assert!(text.contains("not a stream socket"), "{text}");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let text = listening_address(&connected.into()).unwrap_err().to_string();
        assert!(text.contains("does not listen"), "{text}");
    }

    #[test]
    fn sockets_for_another_process_are_not_there() {
        // The test runner sets none of the variables.
        assert!(!is_there());
    }
}
