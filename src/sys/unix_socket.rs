//! Unix sockets at paths of any length. The address of a Unix socket holds 107
//! bytes; a longer path is reached through the descriptor of its directory, as
//! `/proc/self/fd/N/name`, without changing the working directory.
//!
//! Only the master binds, and only the command line connects.

use std::fs::File;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};

/// What fits into `sun_path` beside the final NUL.
const PATH_BYTES_MAX: usize = 107;

/// Binds and listens, for this user alone (mode 0600). The path must not exist.
///
/// The mask of the process is changed for a moment, so it must have one thread.
///
/// # Errors
/// Of bind and listen; `InvalidInput` for a file name of more than about 90 bytes.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    let (short, _directory) = short_path(path)?;
    // Not chmod afterwards: somebody could connect in between.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(short);
    umask(before);
    listener
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
    use std::os::fd::AsRawFd;
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
            let _listener = bind(&path).unwrap();
            connect(&path).unwrap();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn nobody_there_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        drop(bind(&path).unwrap());
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
