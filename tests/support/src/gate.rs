//! A gate: a handler waits at it until the test opens it.
//!
//! It is a named pipe without a byte in it, which both sides know by its path. While the
//! test has it open for writing, a read waits; when the test closes it, the read ends.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// The test's side. The gate opens when this is dropped.
#[derive(Debug)]
#[must_use = "a gate that is dropped is open"]
pub struct Gate {
    path: PathBuf,
    /// Never written to: that it is open is what keeps the gate shut.
    _writer: File,
}

impl Gate {
    /// A new gate, shut.
    pub fn new(path: PathBuf) -> Self {
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).expect("a named pipe");
        // For reading too: to open it for writing alone would wait for a reader.
        let writer = OpenOptions::new().read(true).write(true).open(&path).expect("our pipe");
        Self { path, _writer: writer }
    }

    /// Names the gate in a message: the handler gives this to [`wait`].
    pub fn name(&self) -> &[u8] {
        self.path.as_os_str().as_bytes()
    }

    /// Lets all pass that wait.
    pub fn open(self) {}
}

impl Drop for Gate {
    fn drop(&mut self) {
        fs::remove_file(&self.path).expect("our pipe");
    }
}

/// The handler's side: returns when the gate is open, or gone.
pub fn wait(name: &[u8]) {
    let path = Path::new(OsStr::from_bytes(name));
    // Opened without waiting: a gate that has just been opened has no writer any more.
    let options = OFlag::O_NONBLOCK.bits();
    let Ok(mut pipe) = OpenOptions::new().read(true).custom_flags(options).open(path) else {
        return;
    };
    fcntl(&pipe, FcntlArg::F_SETFL(OFlag::empty())).expect("a pipe can block");
    let bytes = pipe.read_to_end(&mut Vec::new()).expect("a pipe can be read");
    assert_eq!(bytes, 0, "nothing is written to a gate");
}
