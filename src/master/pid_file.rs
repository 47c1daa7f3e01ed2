//! The pid file: its POSIX record lock says who the master is, its text is for
//! people and scripts.
//!
//! The kernel frees the lock when the master dies, however it dies, does not pass
//! it on to workers, and shows the holder's pid to any process that asks: a stale file
//! misleads nobody. Only a lock for writing is a master's, since only the owner of the file
//! can have one; any process that may read a file can lock it for reading, and nobody else may read
//! this one. For the same reason it must be taken by the process that goes
//! on, after daemonizing, and that process must not open the file a second time:
//! closing any descriptor of it would drop the lock.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use chappe_sys::regular_file;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::Pid;
use thiserror::Error;

/// Why the pid file could not be taken, or the master not be found.
#[derive(Debug, Error)]
pub(crate) enum PidFileError {
    /// Another master has it.
    #[error("{path}: already running, pid {pid}")]
    Held {
        /// The pid file.
        path: String,
        /// The other master.
        pid: Pid,
    },
    /// Somebody who is no master keeps others out.
    #[error(
        "{path}: process {pid} has locked it for reading, which no master does; no server can \
         start until that process has ended, or the file is removed"
    )]
    LockedForReading {
        /// The pid file.
        path: String,
        /// Who it is.
        pid: Pid,
    },
    /// Nobody has it.
    #[error("{0}: no master is running")]
    NotRunning(String),
    /// Somebody has it whose number means nothing here.
    #[error(
        "{0}: the master runs in another pid namespace and can't be signalled from here; \
         use the control socket (chappe stop, chappe quit)"
    )]
    OtherNamespace(String),
    /// The kernel said no.
    #[error("{path}: {cause}")]
    System {
        /// The pid file.
        path: String,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// The pid file of this process, locked and written.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    file: File,
}

impl PidFile {
    /// Locks the file, then writes this process's pid into it. The directory is
    /// made if it is missing.
    ///
    /// # Errors
    /// [`PidFileError::Held`] when another master runs.
    pub(crate) fn lock(path: &Path) -> Result<Self, PidFileError> {
        let system = |cause| PidFileError::System { path: path.display().to_string(), cause };
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(system)?;
        }
        let mut file = open_locked(path, || open_or_create(path))?;
        // One that was left behind may be of a version that let everybody read it.
        let written = file
            .set_permissions(Permissions::from_mode(FILE_MODE))
            .and_then(|()| file.set_len(0))
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        let locked = Self { path: path.to_owned(), file };
        match written {
            Ok(()) => Ok(locked),
            Err(cause) => {
                locked.remove();
                Err(system(cause))
            }
        }
    }

    /// The pid of the running master, by the lock.
    ///
    /// Not to be called by the master itself: see the head of this file.
    ///
    /// # Errors
    /// [`PidFileError::NotRunning`], [`PidFileError::OtherNamespace`].
    pub(crate) fn holder(path: &Path) -> Result<Pid, PidFileError> {
        let text = || path.display().to_string();
        let file = match regular_file::open_to_read(path) {
            Ok(file) => file,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                return Err(PidFileError::NotRunning(text()));
            }
            Err(cause) => return Err(PidFileError::System { path: text(), cause }),
        };
        match holder_of(path, &file)? {
            // Signalling 0 would hit our own process group, and -1 everybody.
            Some(pid) if pid.as_raw() <= 0 => Err(PidFileError::OtherNamespace(text())),
            Some(pid) => Ok(pid),
            None => Err(PidFileError::NotRunning(text())),
        }
    }

    /// Removes the file, if the path still leads to ours. The lock goes with the
    /// process.
    pub(crate) fn remove(self) {
        if is_at(&self.path, &self.file) {
            // It may have gone in between, which is just as well.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A file that is locked, and the one at the path. Between open and lock a master that
/// ended can have removed it, and another one made a new one: a lock on the old file
/// keeps nobody out.
fn open_locked(
    path: &Path,
    mut open: impl FnMut() -> io::Result<File>,
) -> Result<File, PidFileError> {
    let system = |cause| PidFileError::System { path: path.display().to_string(), cause };
    loop {
        let file = open().map_err(system)?;
        match fcntl(&file, FcntlArg::F_SETLK(&whole_file(libc::F_WRLCK))) {
            Ok(_) if is_at(path, &file) => return Ok(file),
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Err(held_error(path, &file)),
            Err(error) => return Err(system(error.into())),
        }
    }
}

fn open_or_create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // Not truncated: it may be another master's.
    options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
    regular_file::open_to_write(path, &mut options)
}

/// A process that may read a file may lock it, and keep the next master out.
const FILE_MODE: u32 = 0o600;

/// Whether the path leads to this file.
fn is_at(path: &Path, file: &File) -> bool {
    let same = |ours: fs::Metadata| {
        fs::symlink_metadata(path)
            .is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()))
    };
    file.metadata().is_ok_and(same)
}

/// The constants are `int` and the fields `short`; the values are 0, 1 and 2.
fn lock_type(constant: libc::c_int) -> libc::c_short {
    libc::c_short::try_from(constant).unwrap_or(libc::c_short::MAX)
}

/// A lock on the whole file, for writing or for reading.
fn whole_file(constant: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: lock_type(constant),
        l_whence: lock_type(libc::SEEK_SET),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// The process that has a lock for writing: only that keeps others from a lock for reading.
fn holder_of(path: &Path, file: &File) -> Result<Option<Pid>, PidFileError> {
    who_is_against(libc::F_RDLCK, path, file)
}

/// The process whose lock is in the way of such a lock.
fn who_is_against(
    constant: libc::c_int,
    path: &Path,
    file: &File,
) -> Result<Option<Pid>, PidFileError> {
    let mut lock = whole_file(constant);
    fcntl(file, FcntlArg::F_GETLK(&mut lock)).map_err(|error| PidFileError::System {
        path: path.display().to_string(),
        cause: error.into(),
    })?;
    let is_free = lock.l_type == lock_type(libc::F_UNLCK);
    Ok((!is_free).then(|| Pid::from_raw(lock.l_pid)))
}

/// Why the lock for writing could not be had.
fn held_error(path: &Path, file: &File) -> PidFileError {
    let text = path.display().to_string();
    match holder_of(path, file) {
        Ok(Some(pid)) if pid.as_raw() > 0 => PidFileError::Held { path: text, pid },
        Ok(Some(_)) => PidFileError::OtherNamespace(text),
        Ok(None) => match who_is_against(libc::F_WRLCK, path, file) {
            Ok(Some(pid)) => PidFileError::LockedForReading { path: text, pid },
            Ok(None) => PidFileError::System { path: text, cause: Errno::EAGAIN.into() },
            Err(error) => error,
        },
        Err(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_holds_our_pid_and_goes_with_us() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/chappe.pid");
        let file = PidFile::lock(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
        file.remove();
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_not_ours_any_more_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("chappe.pid");
        let file = PidFile::lock(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        file.remove();
        assert!(path.exists());
    }

    #[test]
    fn a_file_that_was_removed_before_it_was_locked_is_not_the_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("chappe.pid");
        let mut opened = 0;
        let file = open_locked(&path, || {
            let file = open_or_create(&path);
            opened += 1;
            if opened == 1 {
                // The master that held it ends just now.
                fs::remove_file(&path).unwrap();
            }
            file
        })
        .unwrap();
        assert_eq!(opened, 2);
        assert!(is_at(&path, &file));
    }

    #[test]
    fn a_stale_file_names_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("chappe.pid");
        assert!(matches!(PidFile::holder(&path), Err(PidFileError::NotRunning(_))));
        fs::write(&path, "1\n").unwrap();
        assert!(matches!(PidFile::holder(&path), Err(PidFileError::NotRunning(_))));
    }
}
