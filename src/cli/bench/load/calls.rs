//! System calls of the server's processes, counted by perf(1), since no file of /proc
//! counts them. Perf is started before the window and told when to begin and when to
//! stop, so that its figure belongs to the same replies as the others.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What perf counts: each entry into the kernel by a system call.
const EVENT: &str = "raw_syscalls:sys_enter";

/// How long perf may take to start, or to carry out an order.
const ANSWER_MS_MAX: u16 = 5000;

/// A perf that waits for orders.
#[derive(Debug)]
pub(super) struct CallCounter {
    perf: Child,
    orders: File,
    answers: File,
}

impl CallCounter {
    /// Starts perf on these processes; it does not count yet.
    pub(super) fn start(pids: &[i32]) -> Result<Self, String> {
        if pids.is_empty() {
            return Err("no process of the server is known".to_owned());
        }
        Self::spawn(pids).map_err(|error| format!("perf: {error}"))
    }

    fn spawn(pids: &[i32]) -> io::Result<Self> {
        let (their_orders, orders) = pipe()?;
        let (answers, their_answers) = pipe()?;
        // These two go with it; the others are closed in it.
        for end in [&their_orders, &their_answers] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        let pids = pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let control = format!("fd:{},{}", their_orders.as_raw_fd(), their_answers.as_raw_fd());
        let perf = Command::new("perf")
            .args(["stat", "-x", ";", "-e", EVENT, "-D", "-1", "--control", &control, "-p", &pids])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Self { perf, orders: orders.into(), answers: answers.into() })
    }

    /// Counts from now on.
    pub(super) fn begin(mut self) -> Result<Self, String> {
        match self.order("enable\n") {
            Ok(()) => Ok(self),
            // It has left, and has said why.
            Err(_) => Err(reason(&self.finish())),
        }
    }

    /// Stops counting; how many there were, or what perf says instead.
    pub(super) fn end(mut self) -> Result<u64, String> {
        let is_stopped = self.order("disable\n");
        let text = self.finish();
        match is_stopped {
            Ok(()) => counted(&text).ok_or_else(|| reason(&text)),
            Err(_) => Err(reason(&text)),
        }
    }

    /// Ends it; what it has to say.
    fn finish(&mut self) -> String {
        // An interrupt makes it print what it has counted.
        let pid = i32::try_from(self.perf.id()).expect("a process id");
        let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
        let mut text = String::new();
        if let Some(stderr) = &mut self.perf.stderr {
            let _ = stderr.read_to_string(&mut text);
        }
        let _ = self.perf.wait();
        text
    }

    /// Has an order confirmed.
    fn order(&mut self, order: &str) -> io::Result<()> {
        self.orders.write_all(order.as_bytes())?;
        let mut waiting = [PollFd::new(self.answers.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waiting, PollTimeout::from(ANSWER_MS_MAX))? == 0 {
            return Err(ErrorKind::TimedOut.into());
        }
        let mut answer = [0; 16];
        match self.answers.read(&mut answer)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

impl Drop for CallCounter {
    /// A run that failed in between leaves no perf behind.
    fn drop(&mut self) {
        let _ = self.perf.kill();
        let _ = self.perf.wait();
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    Ok((reader.into(), writer.into()))
}

/// The first line of what perf has printed.
fn reason(text: &str) -> String {
    let line = text.lines().find(|line| !line.trim().is_empty());
    format!("perf: {}", line.unwrap_or("it did not carry out its orders, and does not say why"))
}

/// The count in what `perf stat -x ;` prints.
fn counted(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains(EVENT))?;
    line.split(';').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_among_what_perf_says() {
        let text = "# started on now\n\n8123;;raw_syscalls:sys_enter;1000;100.00;;\n";
        assert_eq!(counted(text), Some(8123));
        assert_eq!(counted("<not counted>;;raw_syscalls:sys_enter;0;0.00;;\n"), None);
        assert_eq!(counted("Error: no permission\n"), None);
        assert_eq!(counted(""), None);
        assert_eq!(reason("\nError: no permission\nmore"), "perf: Error: no permission");
    }
}
