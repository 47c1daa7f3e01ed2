//! Unix sockets at paths of any length. The address of a Unix socket holds 107
//! bytes; a longer path is reached through the descriptor of its directory, as
//! `/proc/self/fd/N/name`, without changing the working directory.
//!
//! Only launcher and master bind, and only commands and clients connect.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg,
    setsockopt, sockopt,
};
use nix::sys::stat::{Mode, umask};
use nix::sys::time::TimeVal;

/// What fits into `sun_path` beside the final NUL.
const PATH_BYTES_MAX: usize = 107;

/// For this user alone.
pub const MODE_PRIVATE: u32 = 0o600;
/// For everybody who can reach the directory.
pub const MODE_PUBLIC: u32 = 0o666;

/// Binds and listens; the socket doesn't block. The path must not exist.
///
/// The mask of the process is changed for a moment, so it must have one thread.
///
/// # Errors
/// Of bind and listen; `InvalidInput` for a file name of more than about 90 bytes.
pub fn bind(path: &Path, mode: u32, backlog: i32) -> io::Result<OwnedFd> {
    let (short, _directory) = short_path(path)?;
    let socket = stream_socket(SockFlag::SOCK_NONBLOCK)?;
    // Not chmod afterwards: somebody could connect in between.
    let before = umask(Mode::from_bits_truncate(0o777 & !mode));
    let bound =
        UnixAddr::new(&short).and_then(|address| socket::bind(socket.as_raw_fd(), &address));
    umask(before);
    bound?;
    // More than the kernel's somaxconn is cut down by the kernel.
    socket::listen(&socket, Backlog::new(backlog).unwrap_or(Backlog::MAXALLOWABLE))?;
    Ok(socket)
}

/// Whether somebody listens on the socket at this path. Never waits: a full backlog
/// is somebody's, too.
///
/// # Errors
/// Of connect, other than that nobody listens.
pub fn is_live(path: &Path) -> io::Result<bool> {
    let (short, _directory) = short_path(path)?;
    let socket = stream_socket(SockFlag::SOCK_NONBLOCK)?;
    match socket::connect(socket.as_raw_fd(), &UnixAddr::new(&short)?) {
        Ok(()) | Err(Errno::EAGAIN) => Ok(true),
        Err(Errno::ECONNREFUSED) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Connects, within a time: a full backlog makes connects wait.
///
/// # Errors
/// Those of [`connect`]; `WouldBlock` when the time is over.
pub fn connect_timeout(path: &Path, timeout: Duration) -> io::Result<OwnedFd> {
    let (short, _directory) = short_path(path)?;
    let socket = stream_socket(SockFlag::empty())?;
    // unix(7): the time-out of sends is that of connect too. Zero would be none.
    let timeout = timeout.max(Duration::from_micros(1));
    let seconds = libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX);
    let value = TimeVal::new(seconds, timeout.subsec_micros().into());
    setsockopt(&socket, sockopt::SendTimeout, &value)?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(&short)?)?;
    Ok(socket)
}

fn stream_socket(flags: SockFlag) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | flags;
    Ok(socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?)
}

/// Connects.
///
/// # Errors
/// Of connect: `NotFound`, `ConnectionRefused` when nobody listens any more.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let (short, _directory) = short_path(path)?;
    UnixStream::connect(short)
}

/// A path that fits, and what must stay open as long as it is used.
fn short_path(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
    if path.as_os_str().len() <= PATH_BYTES_MAX {
        return Ok((path.to_owned(), None));
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let directory = File::open(directory)?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    Ok((short, Some(directory)))
}

/// Sends one message, and a descriptor with it if there is one.
///
/// # Errors
/// Those of sendmsg(2) but EINTR.
pub fn send_message(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let descriptor = descriptor.map(|descriptor| [descriptor.as_raw_fd()]);
    let rights = descriptor.as_ref().map(|raw| ControlMessage::ScmRights(raw));
    loop {
        let slices = [IoSlice::new(bytes)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        match sendmsg::<()>(socket.as_raw_fd(), &slices, rights.as_slice(), flags, None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The most descriptors that the kernel passes with one message: SCM_MAX_FD.
const DESCRIPTORS_MAX: usize = 253;
/// Room for the header of a control message and that many descriptors, in words that are
/// aligned as a header must be.
const CONTROL_WORDS: usize = (64 + DESCRIPTORS_MAX * size_of::<RawFd>()).div_ceil(8);

/// A message as it came.
#[derive(Debug)]
pub struct ReceivedMessage {
    /// How many bytes of the buffer it has filled. 0 are the end.
    pub bytes: usize,
    /// It was longer than the buffer, and the rest is gone.
    pub is_cut: bool,
    /// All descriptors that came with it, however many were sent. Those that could not be
    /// received because this process may have no more of them are missing without an error.
    pub descriptors: Vec<OwnedFd>,
}

/// Receives one message into `buffer`. Never sleeps.
///
/// # Errors
/// Those of recvmsg(2) except EINTR; `WouldBlock` when no message is waiting.
pub fn receive_message(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<ReceivedMessage> {
    let mut control = [0_u64; CONTROL_WORDS];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: a `msghdr` is a C struct of pointers and integers, for which zeros are valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    let bytes = loop {
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control);
        // SAFETY: recvmsg writes into the buffers that the header names, no more than their
        // lengths; both outlive the call, and nothing else refers to them.
        let bytes = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
        match usize::try_from(bytes) {
            Ok(bytes) => break bytes,
            Err(_) if Errno::last() == Errno::EINTR => {}
            Err(_) => return Err(io::Error::last_os_error()),
        }
    };
    let descriptors = take_descriptors(&header);
    Ok(ReceivedMessage { bytes, is_cut: header.msg_flags & libc::MSG_TRUNC != 0, descriptors })
}

/// The descriptors that recvmsg(2) has just made for a message. Also of a message of which
/// the kernel could not pass all (MSG_CTRUNC): those that it has passed are ours to close.
fn take_descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut descriptors = Vec::new();
    // SAFETY: CMSG_FIRSTHDR asks for a header that recvmsg has filled in, whose control
    // buffer is alive and aligned: the caller's.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: the CMSG functions give null or a pointer to a whole header in the buffer.
    while let Some(control) = unsafe { next.as_ref() } {
        if (control.cmsg_level, control.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: CMSG_LEN only computes.
            let bytes = control.cmsg_len - unsafe { libc::CMSG_LEN(0) } as usize;
            // SAFETY: CMSG_DATA asks for a header in the buffer, and points behind it.
            let first = unsafe { libc::CMSG_DATA(next) }.cast::<RawFd>();
            for nth in 0..bytes / size_of::<RawFd>() {
                // SAFETY: the kernel has written `bytes` bytes of descriptors there.
                let at = unsafe { first.add(nth) };
                // SAFETY: as above; the place need not be aligned.
                let raw = unsafe { at.read_unaligned() };
                // SAFETY: from_raw_fd wants an open descriptor that nobody else owns. The
                // kernel has just made it for this message, and this is the only look at it.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(raw) });
            }
        }
        // SAFETY: CMSG_NXTHDR asks for the header and a control message in its buffer.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    descriptors
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Mutex;

    /// As [`super::bind`], one at a time: tests are threads of one process.
    fn bind(path: &Path, mode: u32, backlog: i32) -> io::Result<OwnedFd> {
        static MASK: Mutex<()> = Mutex::new(());
        let _mask = MASK.lock().unwrap();
        super::bind(path, mode, backlog)
    }

    #[test]
    fn long_paths_can_be_bound_and_reached() {
        let directory = tempfile::tempdir().unwrap();
        for length in [10, 200] {
            let deep = directory.path().join("d".repeat(length));
            std::fs::create_dir(&deep).unwrap();
            let path = deep.join("control.sock");
            for mode in [MODE_PRIVATE, MODE_PUBLIC] {
                let listener = bind(&path, mode, 8).unwrap();
                connect(&path).unwrap();
                connect_timeout(&path, Duration::from_secs(9)).unwrap();
                assert!(is_live(&path).unwrap());
                let found = std::fs::metadata(&path).unwrap().permissions().mode();
                assert_eq!(found & 0o777, mode);
                drop(listener);
                assert!(!is_live(&path).unwrap());
                std::fs::remove_file(&path).unwrap();
            }
        }
    }

    #[test]
    fn a_full_backlog_is_somebodys_and_is_waited_for_only_so_long() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("full.sock");
        let _listener = bind(&path, MODE_PRIVATE, 0).unwrap();
        let _waiting = connect(&path).unwrap();
        assert!(is_live(&path).unwrap());
        let error = connect_timeout(&path, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn nobody_there_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        drop(bind(&path, MODE_PRIVATE, 8).unwrap());
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    fn open_descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    /// Other tests open descriptors, too, so each number is large.
    #[test]
    fn every_descriptor_of_a_message_is_received_and_closed() {
        use std::os::fd::AsFd;
        let kind = SockType::SeqPacket;
        let flags = SockFlag::SOCK_CLOEXEC;
        let (one, two) = socket::socketpair(AddressFamily::Unix, kind, None, flags).unwrap();
        let null = File::open("/dev/null").unwrap();
        let before = open_descriptors();
        for count in [0, 1, 2, 3, 100, DESCRIPTORS_MAX] {
            let raw = vec![null.as_raw_fd(); count];
            let rights = [ControlMessage::ScmRights(&raw)];
            let rights = if count == 0 { &rights[..0] } else { &rights[..] };
            let slices = [IoSlice::new(b"12345")];
            sendmsg::<()>(one.as_raw_fd(), &slices, rights, MsgFlags::empty(), None).unwrap();
            let mut buffer = [0; 4];
            let message = receive_message(two.as_fd(), &mut buffer).unwrap();
            assert_eq!((message.bytes, message.is_cut), (4, true));
            assert_eq!(message.descriptors.len(), count);
        }
        assert!(open_descriptors() < before + 50, "{} after {before}", open_descriptors());
        let error = receive_message(two.as_fd(), &mut [0; 4]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "it never sleeps");
        drop(one);
        assert_eq!(receive_message(two.as_fd(), &mut [0; 4]).unwrap().bytes, 0);
    }
}
