//! Standard error as a place for copies of log lines: a write to it never sleeps,
//! even if its reader does not read.
//!
//! It is shared with the program that started us, and so are its flags: O_NONBLOCK there would
//! make the shell's terminal non-blocking, too. A pipe or a terminal is therefore opened
//! a second time, with flags of its own; a socket is sent to without waiting; a regular
//! file never makes anybody wait. What cannot be opened again, as another user's pipe,
//! is asked before each write.
//!
//! The launcher prepares it, once; every process of the server writes.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{dup2_stderr, write};

/// Standard error of a process that has called [`Stderr::prepare`], or was forked from
/// one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stderr(Kind);

/// Why a write does not sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It is a file, or our own description of a pipe or a terminal.
    Plain,
    /// It is a socket: each call can say that it does not want to wait.
    Socket,
    /// It is asked whether there is room. Another process could take that room before
    /// the write, but it would have to write more than a page in between.
    Asked,
}

impl Stderr {
    /// Finds out what standard error is, and opens it again if need be.
    #[must_use]
    pub fn prepare() -> Self {
        let kind = fstat(io::stderr()).map_or(SFlag::S_IFREG, |about| {
            SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT
        });
        Self(match kind {
            SFlag::S_IFSOCK => Kind::Socket,
            SFlag::S_IFIFO | SFlag::S_IFCHR if reopen().is_err() => Kind::Asked,
            _ => Kind::Plain,
        })
    }

    /// Writes a line if there is room for it now; how much of it was written. A line of
    /// up to 4096 bytes is written as a whole or not at all, except to a socket.
    #[must_use]
    pub fn try_write(self, line: &[u8]) -> usize {
        self.try_write_to(io::stderr().as_fd(), line)
    }

    fn try_write_to(self, stderr: BorrowedFd<'_>, line: &[u8]) -> usize {
        loop {
            let result = match self.0 {
                Kind::Plain => write(stderr, line),
                Kind::Socket => {
                    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                    send(stderr.as_raw_fd(), line, flags)
                }
                Kind::Asked if line.len() <= libc::PIPE_BUF && has_room(stderr) => {
                    write(stderr, line)
                }
                // A longer line would wait for the room of its second part.
                Kind::Asked => Err(Errno::EAGAIN),
            };
            match result {
                Ok(written) => return written,
                Err(Errno::EINTR) => {}
                Err(_) => return 0,
            }
        }
    }
}

fn reopen() -> io::Result<()> {
    let own = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open("/proc/self/fd/2")?;
    Ok(dup2_stderr(own)?)
}

fn has_room(stderr: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(stderr, PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::ZERO) == Ok(1)
        && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLOUT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_nobody_reads_is_refused_and_not_waited_for() {
        let (read, pipe) = nix::unistd::pipe().unwrap();
        let (_reader, socket) = UnixStream::pair().unwrap();
        for (kind, end) in [(Kind::Asked, pipe.as_fd()), (Kind::Socket, socket.as_fd())] {
            let mut refused = false;
            for _ in 0..10_000 {
                let written = Stderr(kind).try_write_to(end, &[b'x'; 500]);
                refused = written < 500;
                if refused {
                    break;
                }
            }
            assert!(refused, "{kind:?}");
        }
        let mut page = [0; 4096];
        assert_eq!(nix::unistd::read(&read, &mut page), Ok(4096));
        assert_eq!(Stderr(Kind::Asked).try_write_to(pipe.as_fd(), &[b'x'; 4097]), 0);
        assert_eq!(Stderr(Kind::Asked).try_write_to(pipe.as_fd(), &[b'x'; 500]), 500);
    }
}
