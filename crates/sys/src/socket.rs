//! Socket options and queries that nix lacks.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// TCP_NOTSENT_LOWAT, tcp(7): EPOLLOUT fires when fewer than `bytes` bytes wait
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

/// recv(2) into `buffer`. Returns how many bytes came; 0 means that the peer has shut down
/// its sending side.
///
/// By the system call itself: the C library's `recv` is a point at which a thread could be
/// cancelled, and prepares for that at each call, though no thread here ever is.
///
/// # Errors
/// Those of recv(2).
#[inline]
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let no_address = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: recvfrom writes at most `len` bytes at the pointer, which is to a live slice
    // of that length; without an address it reads and writes nothing else. The descriptor
    // is borrowed and so open.
    let received = unsafe {
        libc::syscall(
            libc::SYS_recvfrom,
            socket.as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
            0,
            no_address,
            no_address,
        )
    };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

/// send(2) of `bytes` without waiting and without SIGPIPE. Returns how many bytes were taken.
///
/// By the system call itself: the C library's `send` is a point at which a thread could be
/// cancelled, and prepares for that at each call, though no thread here ever is.
///
/// # Errors
/// Those of send(2).
#[inline]
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let no_address = std::ptr::null::<libc::c_void>();
    // SAFETY: sendto reads `len` bytes at the pointer, which is to a live slice of that
    // length; without an address it reads nothing else. The descriptor is borrowed and so
    // open.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_sendto,
            socket.as_raw_fd(),
            bytes.as_ptr(),
            bytes.len(),
            libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
            no_address,
            0,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
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

/// SIOCINQ, tcp(7): bytes in the receive queue, which were not read yet.
///
/// # Errors
/// Those of ioctl(2).
pub fn unread_bytes(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCINQ (FIONREAD) writes one int at the pointer, which is to a live local;
    // the descriptor is borrowed and so open.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
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

    #[test]
    fn unread_bytes_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (receiver, _) = listener.accept().unwrap();
        assert_eq!(unread_bytes(receiver.as_fd()).unwrap(), 0);
        sender.write_all(&[0; 7]).unwrap();
        // Peeks until it has arrived.
        receiver.peek(&mut [0; 1]).unwrap();
        assert_eq!(unread_bytes(receiver.as_fd()).unwrap(), 7);
    }
}
