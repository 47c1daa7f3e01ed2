//! The file of a Unix socket: who may take its path over, and who removes it.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process;

use chappe_sys::unix_socket;
use nix::sys::socket::{Shutdown, shutdown};

/// A socket file that this program has made. Dropped in the process that owns it,
/// it is removed, if the path still leads to it; a forked process drops it without
/// any effect.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
    /// The process that removes it.
    owner: Option<u32>,
}

impl SocketFile {
    /// Binds and listens. The directory is made if it is missing (mode 0755); the
    /// file has mode 0666, so it is the directory that says who may connect.
    ///
    /// # Errors
    /// `AddrInUse` when somebody listens there, `AlreadyExists` when there is
    /// something else than a socket.
    pub(super) fn bind(path: &Path, backlog: u32) -> io::Result<(OwnedFd, Self)> {
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        }
        remove_stale(path)?;
        let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
        let socket = unix_socket::bind(path, unix_socket::MODE_PUBLIC, backlog)?;
        let identity = identity(path)?;
        Ok((socket, Self { path: path.to_owned(), identity, owner: Some(process::id()) }))
    }

    /// Whether the path still leads to it.
    pub(super) fn is_there(&self) -> bool {
        identity(&self.path).is_ok_and(|id| id == self.identity)
    }

    /// This process removes it.
    pub(super) fn own(&mut self) {
        self.owner = Some(process::id());
    }

    /// This process does not.
    pub(super) fn leave(&mut self) {
        self.owner = None;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.owner == Some(process::id()) && self.is_there() {
            // It may have gone in between, which is just as well.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Lets no new client in any more, in no process that has the socket. An error
/// means that there is nobody, or that the kernel closes them with the socket.
pub(super) fn refuse_all(socket: &OwnedFd) {
    let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
    if let Ok(socket) = socket.try_clone() {
        let listener = UnixListener::from(socket);
        while let Ok((waiting, _)) = listener.accept() {
            drop(waiting);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|there| (there.dev(), there.ino()))
}

/// Unlike a TCP port the path of a socket stays when its process dies.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => Err(io::Error::new(
            ErrorKind::AlreadyExists,
            "a file that is not a socket is already there",
        )),
        Ok(_) if unix_socket::is_live(path)? => {
            Err(io::Error::from_raw_os_error(nix::libc::EADDRINUSE))
        }
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/a.sock");
        let (socket, file) = SocketFile::bind(&path, 8).unwrap();
        UnixStream::connect(&path).unwrap();
        let error = SocketFile::bind(&path, 8).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(path.exists(), "still there");
        // Killed: nobody removes the file.
        std::mem::forget(file);
        drop(socket);
        assert!(path.exists());
        let (_socket, file) = SocketFile::bind(&path, 8).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_is_given_up_closes_all_though_another_process_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let (socket, _file) = SocketFile::bind(&path, 8).unwrap();
        let _workers = socket.try_clone().unwrap();
        let mut waiting: Vec<_> = (0..3).map(|_| UnixStream::connect(&path).unwrap()).collect();
        refuse_all(&socket);
        for client in &mut waiting {
            client.set_nonblocking(true).unwrap();
            assert_eq!(client.read(&mut [0]).unwrap(), 0, "closed already");
        }
        let error = UnixStream::connect(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn what_is_not_ours_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        fs::write(&path, "a file").unwrap();
        let error = SocketFile::bind(&path, 8).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        fs::remove_file(&path).unwrap();

        let (_socket, mut file) = SocketFile::bind(&path, 8).unwrap();
        file.leave();
        drop(file);
        assert!(path.exists(), "it is another process's");
        fs::remove_file(&path).unwrap();

        let (_socket, mut file) = SocketFile::bind(&path, 8).unwrap();
        file.own();
        fs::rename(&path, directory.path().join("elsewhere")).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(file);
        assert!(path.exists(), "another server's");
    }
}
