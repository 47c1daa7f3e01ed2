//! Files that a process with rights opens at paths where somebody with fewer may have put
//! something else: a FIFO that blocks it, a link that leads elsewhere.

use std::error::Error;
use std::fmt;
use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Why something was not opened, or not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsuitable {
    /// It is something else.
    Kind(&'static str),
    /// What is written to it appears under other names, too.
    Names(u64),
}

impl fmt::Display for Unsuitable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(kind) => write!(f, "it is {kind}, and must be a regular file"),
            Self::Names(names) => write!(f, "it has {names} names (hard links), and must have one"),
        }
    }
}

impl Error for Unsuitable {}

impl Unsuitable {
    /// Whether an error says this.
    #[must_use]
    pub fn is_reason(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|reason| reason.is::<Self>())
    }
}

impl From<Unsuitable> for io::Error {
    fn from(reason: Unsuitable) -> Self {
        Self::new(io::ErrorKind::InvalidInput, reason)
    }
}

/// Opens for reading. Never waits, and follows no link at the end of the path.
///
/// # Errors
/// Of open(2), or [`Unsuitable`].
pub fn open_to_read(path: &Path) -> io::Result<File> {
    open(path, OpenOptions::new().read(true))
}

/// Opens for writing, as the options say, what has no other name.
///
/// # Errors
/// Of open(2), or [`Unsuitable`].
pub fn open_to_write(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let file = open(path, options)?;
    match file.metadata()?.nlink() {
        // 0: somebody has removed it since.
        0 | 1 => Ok(file),
        names => Err(Unsuitable::Names(names).into()),
    }
}

fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = match options.custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) => {
            // The kernel's words for it are "No such device or address" and the like.
            let there = path.symlink_metadata().ok();
            let kind = there.and_then(|there| kind(there.file_type()));
            // A file that must not be there yet is in the way, whatever it is.
            let kind = kind.filter(|_| error.kind() != io::ErrorKind::AlreadyExists);
            return Err(kind.map_or(error, |kind| Unsuitable::Kind(kind).into()));
        }
    };
    match kind(file.metadata()?.file_type()) {
        None => Ok(file),
        Some(kind) => Err(Unsuitable::Kind(kind).into()),
    }
}

/// What it is, if it is not a regular file.
fn kind(kind: FileType) -> Option<&'static str> {
    let kinds = [
        (kind.is_symlink(), "a symbolic link"),
        (kind.is_dir(), "a directory"),
        (kind.is_fifo(), "a FIFO"),
        (kind.is_socket(), "a socket"),
        (kind.is_char_device() || kind.is_block_device(), "a device"),
    ];
    kinds.into_iter().find(|(is_it, _)| *is_it).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_regular_files_of_one_name_are_opened() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("file"), "text").unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
        symlink(at("file"), at("symlink")).unwrap();
        symlink(at("nowhere"), at("dangling")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let mut append = OpenOptions::new();
        append.append(true).create(true);
        for (name, kind) in [
            ("directory", "a directory"),
            ("fifo", "a FIFO"),
            ("symlink", "a symbolic link"),
            ("dangling", "a symbolic link"),
            ("socket", "a socket"),
            ("/dev/null", "a device"),
        ] {
            let text = format!("it is {kind}, and must be a regular file");
            for result in [open_to_read(&at(name)), open_to_write(&at(name), &mut append)] {
                let error = result.unwrap_err();
                assert_eq!(error.to_string(), text, "{name}");
                assert!(Unsuitable::is_reason(&error));
            }
        }
        assert!(!at("nowhere").exists());
        open_to_read(&at("file")).unwrap();
        open_to_write(&at("file"), &mut append).unwrap();
        open_to_write(&at("new"), &mut append).unwrap();
        std::fs::hard_link(at("file"), at("link")).unwrap();
        open_to_read(&at("file")).unwrap();
        let error = open_to_write(&at("file"), &mut append).unwrap_err();
        assert_eq!(error.to_string(), "it has 2 names (hard links), and must have one");
        let error = open_to_read(&at("missing")).unwrap_err();
        assert!(error.kind() == io::ErrorKind::NotFound && !Unsuitable::is_reason(&error));
    }
}
