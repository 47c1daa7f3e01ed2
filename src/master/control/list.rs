//! A list of connections that a worker has made: a file in memory that cannot change any
//! more.
//!
//! A worker that was taken over can hand over anything. A pipe would be waited for, a file
//! that grows would be read without end, and one whose pages are taken away while they are
//! sent would be cut short. So only a sealed memfd of bounded size is taken, and it is read
//! by places of our own: its offset is the worker's, too.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};

/// What keeps a memfd as it is.
const SEALS: SealFlag =
    SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_WRITE);

/// A worker's list of connections, in a sealed memory file.
#[derive(Debug)]
pub(in crate::master) struct List {
    file: File,
    at: u64,
    bytes: u64,
}

impl List {
    /// # Errors
    /// It is not a memfd, not sealed against every change, or longer than `bytes_max`.
    pub(in crate::master) fn new(descriptor: OwnedFd, bytes_max: u64) -> io::Result<Self> {
        let wrong = |text: &str| io::Error::new(ErrorKind::InvalidData, text.to_owned());
        let seals = fcntl(&descriptor, FcntlArg::F_GET_SEALS);
        let seals = seals.map_err(|_| wrong("it is not a memfd"))?;
        if !SealFlag::from_bits_retain(seals).contains(SEALS) {
            return Err(wrong("it is not sealed"));
        }
        let file = File::from(descriptor);
        let bytes = file.metadata()?.len();
        if bytes > bytes_max {
            return Err(wrong(&format!("it has {bytes} bytes, more than {bytes_max}")));
        }
        Ok(Self { file, at: 0, bytes })
    }

    /// Appends the next piece, of at most `bytes_max` bytes. False at the end.
    ///
    /// # Errors
    /// Of pread.
    pub(super) fn read_piece(&mut self, into: &mut Vec<u8>, bytes_max: usize) -> io::Result<bool> {
        let left = usize::try_from(self.bytes - self.at).unwrap_or(usize::MAX);
        let before = into.len();
        into.resize(before + left.min(bytes_max), 0);
        let read = self.file.read_at(&mut into[before..], self.at);
        into.truncate(before + read.as_ref().copied().unwrap_or(0));
        self.at += read? as u64;
        Ok(into.len() > before)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::io::{Seek, SeekFrom, Write};

    fn memfd(text: &[u8], seals: SealFlag) -> File {
        let mut file = File::from(memfd_create("test", MFdFlags::MFD_ALLOW_SEALING).unwrap());
        file.write_all(text).unwrap();
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        file
    }

    /// A list of this text.
    pub(in crate::master::control) fn of(text: &[u8]) -> List {
        List::new(memfd(text, SEALS).into(), u64::MAX).unwrap()
    }

    #[test]
    fn a_sealed_list_is_read_to_its_end_wherever_its_offset_is() {
        let mut file = memfd(b"one\ntwo\n", SEALS);
        let mut list = List::new(file.try_clone().unwrap().into(), 8).unwrap();
        let mut read = Vec::new();
        while list.read_piece(&mut read, 3).unwrap() {
            file.seek(SeekFrom::Start(0)).unwrap();
        }
        assert_eq!(read, b"one\ntwo\n");
        assert!(!list.read_piece(&mut read, 3).unwrap());
        let error = List::new(file.into(), 7).unwrap_err().to_string();
        assert_eq!(error, "it has 8 bytes, more than 7");
    }

    #[test]
    fn what_could_change_or_block_is_no_list() {
        let refused = |descriptor: OwnedFd| List::new(descriptor, 1000).unwrap_err().to_string();
        for missing in SEALS.iter() {
            assert_eq!(refused(memfd(b"", SEALS - missing).into()), "it is not sealed");
        }
        let (pipe, _writer) = nix::unistd::pipe().unwrap();
        assert_eq!(refused(pipe), "it is not a memfd");
        assert_eq!(refused(tempfile::tempfile().unwrap().into()), "it is not a memfd");
        assert_eq!(refused(File::open("/dev/zero").unwrap().into()), "it is not a memfd");
    }
}
