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
}
