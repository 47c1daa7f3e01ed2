//! Socket options and queries that nix lacks.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// TCP_NOTSENT_LOWAT, tcp(7): EPOLLOUT fires when fewer than so many bytes wait
/// in the kernel unsent, and not only when a third of the buffer is free.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_notsent_lowat(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    let size = libc::socklen_t::try_from(size_of_val(&value)).expect("four bytes");
    // SAFETY: setsockopt reads `size` bytes at the pointer, which is to a live
    // local of that size; the descriptor is borrowed and so open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const value).cast(),
            size,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// SIOCOUTQ, tcp(7): bytes in the send queue, sent and not acknowledged ones
/// included. It falls exactly when the peer acknowledges.
///
/// # Errors
/// Those of ioctl(2).
pub fn unacknowledged_bytes(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (TIOCOUTQ) writes one int at the pointer, which is to a
    // live local; the descriptor is borrowed and so open.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 {
        Ok(usize::try_from(bytes).unwrap_or(0))
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The queue of a listening socket: connections that nobody has accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptQueue {
    /// How many wait.
    pub waiting: u32,
    /// How many may: `backlog`, or `net.core.somaxconn` if that is less. Beyond it
    /// connects are dropped, and tried again by their senders a second later.
    pub max: u32,
}

impl AcceptQueue {
    /// The queue of a listening TCP socket, by TCP_INFO, tcp(7): the kernel tells it in
    /// two fields that mean something else for a connected one.
    ///
    /// # Errors
    /// Those of getsockopt(2); EOPNOTSUPP for a socket that is not TCP's.
    pub fn of(listener: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: all zeroes is a value of this plain C struct of integers.
        let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
        let mut size = libc::socklen_t::try_from(size_of_val(&info)).expect("a small struct");
        // SAFETY: getsockopt writes at most `size` bytes at the first pointer, which is to
        // a live local of that size, and the size that it wrote at the second.
        let result = unsafe {
            libc::getsockopt(
                listener.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                (&raw mut info).cast(),
                &raw mut size,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { waiting: info.tcpi_unacked, max: info.tcpi_sacked })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    #[test]
    fn what_the_peer_cannot_take_stays_unacknowledged() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _never_reads = listener.accept().unwrap();
        sender.set_nonblocking(true).unwrap();
        set_notsent_lowat(sender.as_fd(), 16 * 1024).unwrap();
        assert_eq!(unacknowledged_bytes(sender.as_fd()).unwrap(), 0);
        while sender.write(&[0; 65536]).is_ok() {}
        assert!(unacknowledged_bytes(sender.as_fd()).unwrap() > 0);
    }

    #[test]
    fn a_listener_tells_how_many_wait_and_how_many_may() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let queue = || AcceptQueue::of(listener.as_fd()).unwrap();
        assert_eq!(queue().waiting, 0);
        assert!(queue().max >= 3, "{:?}", queue());
        let _waiting: Vec<_> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
        // A connect may return before its last segment has arrived.
        let begun = std::time::Instant::now();
        while queue().waiting < 3 && begun.elapsed().as_secs() < 10 {
            std::thread::yield_now();
        }
        assert_eq!(queue().waiting, 3);
        let _accepted = listener.accept().unwrap();
        assert_eq!(queue().waiting, 2);
        let (unix, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(AcceptQueue::of(unix.as_fd()).is_err());
    }
}
