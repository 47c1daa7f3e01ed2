//! Leaving the terminal, in such a way that the launcher knows how it went.
//!
//! ```text
//! launcher ── pipe ──┐ fork, setsid, fork
//!    │ reads to EOF  └─ the process that becomes the master
//!    │  "OK line"   ◀── every worker serves
//!    │  anything    ◀── why not
//!    │  nothing     ◀── it died
//! ```
//!
//! The crate `daemonize` does the forks and nothing else: its pid file is locked by
//! workers too, and it reports success before there is any.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use daemonize::{Daemonize, Outcome, Stdio};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::Failure;

/// What the message of a start that went well begins with.
const OK: &str = "OK ";

/// Which side of the forks this process is on.
pub(super) enum Side {
    /// The launcher, after the master has said how it went: the line to print.
    Launcher(String),
    /// The process that is to become the master.
    Daemon(Report),
}

/// The daemon's end of the pipe. Whatever is said last is what the launcher tells.
pub(super) struct Report {
    pipe: File,
}

impl AsFd for Report {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl Report {
    /// The server is up; the launcher prints `line` and returns 0.
    ///
    /// # Errors
    /// `BrokenPipe` if the launcher was ended: then no server is wanted.
    pub(super) fn ready(mut self, line: &str) -> io::Result<()> {
        self.pipe.write_all(format!("{OK}{line}").as_bytes())
    }

    /// It is not; the launcher prints why and returns 1.
    pub(super) fn failed(mut self, why: &str) {
        let _ = self.pipe.write_all(why.as_bytes());
    }
}

/// Forks away from the terminal. The working directory becomes `/`, until the master has
/// another one; stderr stays
/// until the server is up, for whatever still goes wrong.
pub(super) fn daemonize() -> Result<Side, Failure> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)
        .map_err(|errno| Failure::System { step: "pipe".into(), cause: errno.into() })?;
    let daemon =
        Daemonize::new().working_directory("/").umask(0o022).stderr(Stdio::keep()).execute();
    match daemon {
        Outcome::Parent(result) => {
            result?;
            // Our copy of the other end, or the pipe would never end.
            drop(write);
            let mut text = String::new();
            File::from(read)
                .read_to_string(&mut text)
                .map_err(Failure::system("wait for the master"))?;
            verdict(&text).map(Side::Launcher)
        }
        Outcome::Child(Ok(_)) => Ok(Side::Daemon(Report { pipe: write.into() })),
        Outcome::Child(Err(error)) => {
            Report { pipe: write.into() }.failed(&error.to_string());
            chappe_sys::process::exit_now(chappe_sys::process::ExitReason::Failed)
        }
    }
}

fn verdict(text: &str) -> Result<String, Failure> {
    match text.strip_prefix(OK) {
        Some(line) => Ok(line.to_owned()),
        None if text.is_empty() => {
            Err(Failure::Refused("the master died before it was ready".to_owned()))
        }
        None => Err(Failure::Refused(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_a_death() {
        assert_eq!(verdict("OK up").unwrap(), "up");
        assert!(verdict("").unwrap_err().to_string().contains("died"));
        assert_eq!(verdict("port taken").unwrap_err().to_string(), "port taken");
    }
}
