//! Unix sockets at paths of any length. The address of a Unix socket holds 107
//! bytes; a longer path is reached through the descriptor of its directory, as
//! `/proc/self/fd/N/name`, without changing the working directory.
//!
//! Only launcher and master bind, and only commands and clients connect.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, RecvMsg, SockFlag,
    SockType, UnixAddr, recvmsg, sendmsg, setsockopt, sockopt,
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
/// As [`connect`]; `WouldBlock` when the time is over.
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

/// Receives one message into `buffer`: how long it is, and the descriptor that came
/// with it. One that could not be received because this process may have no more of
/// them is missing without an error. 0 bytes are the end.
///
/// # Errors
/// Those of recvmsg(2) but EINTR.
pub fn receive_message(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = nix::cmsg_space!(std::os::fd::RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    loop {
        let mut slices = [IoSliceMut::new(buffer)];
        match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Ok(message) => return Ok((message.bytes, first_descriptor(&message))),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The first of the descriptors that came with a message; the others, which nobody
/// sends, are closed. With MSG_CTRUNC `cmsgs` is an error, and none was installed.
fn first_descriptor(message: &RecvMsg<'_, '_, ()>) -> Option<OwnedFd> {
    let mut first = None;
    for control in message.cmsgs().ok()? {
        let ControlMessageOwned::ScmRights(raw) = control else { continue };
        for raw in raw {
            // SAFETY: from_raw_fd wants an open descriptor that nobody else owns. The
            // kernel has just made it for this message, and this is the only look at it.
            let descriptor = unsafe { OwnedFd::from_raw_fd(raw) };
            first.get_or_insert(descriptor);
        }
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

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
}
