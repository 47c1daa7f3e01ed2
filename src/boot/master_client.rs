//! The other end of the control socket: a command asks the master, and reads the answer.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use chappe_sys::unix_socket;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;

use super::Failure;
use crate::config::Located;
use crate::control::{self, Listed, Refused, ReplyError, Request, Status};
use crate::master::{PidFile, PidFileError};

/// How long the master may take to accept, read and answer; it does so between two wake-ups.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// How often a master that has a reload to do is asked whether it is alive.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// The longest answer: a status of 4096 workers is about 4 MiB.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// A connection to the master, for one request.
#[derive(Debug)]
pub(super) struct MasterClient<'a> {
    located: &'a Located,
    stream: Timed,
}

/// Reads and writes end at a time, however many they are.
#[derive(Debug)]
struct Timed {
    stream: UnixStream,
    deadline: Instant,
}

impl Timed {
    /// What is left of the time. Zero would be no time-out.
    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }

    fn give(&mut self, time: Duration) {
        self.deadline = Instant::now() + time;
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()))?;
        self.stream.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MasterClient<'a> {
    /// Connects. That takes time as well: a master that does not accept has a queue, and a
    /// connect waits as long as the queue is full.
    pub(super) fn connect(located: &'a Located) -> Result<Self, Failure> {
        let path = &located.control_socket;
        let deadline = Instant::now() + ANSWER_TIME_MAX;
        match unix_socket::connect_timeout(path, ANSWER_TIME_MAX) {
            Ok(socket) => {
                let stream = Timed { stream: socket.into(), deadline };
                Ok(Self { located, stream })
            }
            Err(error) => Err(match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => nobody_answers(located),
                ErrorKind::WouldBlock => Failure::Refused(format!(
                    "control socket {}: no connection was accepted within {ANSWER_TIME_MAX:?}: \
                     the master{} is stopped, or hangs, and its queue is full",
                    path.display(),
                    PidFile::holder(&located.pid_file).map_or(String::new(), with_pid),
                )),
                _ => Failure::system(format!("control socket {}", path.display()))(error),
            }),
        }
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream.stream
    }

    /// The answer to a request, which is of the type that belongs to it.
    pub(super) fn ask<T: DeserializeOwned>(self, request: Request) -> Result<T, Failure> {
        Ok(control::read(&self.ask_for_line(request)?)?)
    }

    /// The answer as it came, for programs: it may have more than this version knows.
    pub(super) fn ask_for_line(self, request: Request) -> Result<String, Failure> {
        let (line, _) = self.exchange(request)?;
        // A refusal is no answer.
        match control::read::<serde_json::Value>(&line) {
            Ok(_) => Ok(line),
            Err(error) => Err(error.into()),
        }
    }

    /// What the master says of its list, and the lines of all workers. The list has all the
    /// time that it needs, as long as it goes on.
    pub(super) fn list(self, request: Request) -> Result<(Listed, String), Failure> {
        let located = self.located;
        let (line, mut reader) = self.exchange(request)?;
        let listed = control::read(&line)?;
        let mut lines = Vec::new();
        loop {
            reader.get_mut().get_mut().give(ANSWER_TIME_MAX);
            let piece = reader.fill_buf().map_err(|error| broken(located, error))?;
            let bytes = piece.len();
            if bytes == 0 {
                break;
            }
            lines.extend_from_slice(piece);
            reader.consume(bytes);
        }
        Ok((listed, text(lines)?))
    }

    /// The first line of the answer, and what comes after it.
    fn exchange(self, request: Request) -> Result<(String, Reader), Failure> {
        let Self { located, mut stream } = self;
        let silent = silence(located, &stream.stream);
        stream
            .write_all(request.to_line().as_bytes())
            .map_err(|error| told(&silent, located, error))?;
        // How long a reload takes is up to the configuration; a master that works on it
        // answers others.
        let takes_time = request == (Request::Reload {});
        if takes_time {
            stream.give(LOOK_EVERY);
        }
        let mut reader = BufReader::new(stream.take(ANSWER_BYTES_MAX));
        let mut line = Vec::new();
        // On an error it keeps what it has read.
        while let Err(error) = reader.read_until(b'\n', &mut line) {
            if !takes_time || error.kind() != ErrorKind::WouldBlock {
                return Err(told(&silent, located, error));
            }
            status(located)?;
            reader.get_mut().get_mut().give(LOOK_EVERY);
        }
        Ok((text(line)?, reader))
    }
}

type Reader = BufReader<io::Take<Timed>>;

fn text(bytes: Vec<u8>) -> Result<String, Failure> {
    let wrong = |_| Failure::Refused("the master's answer is not valid: it is not text".into());
    String::from_utf8(bytes).map_err(wrong)
}

/// What is reported of a master that does not answer. The kernel knows which process has made the socket.
fn silence(located: &Located, stream: &UnixStream) -> String {
    let peer = getsockopt(stream, sockopt::PeerCredentials).ok().map(|peer| peer.pid());
    let pid = peer.filter(|pid| *pid > 0).map(Pid::from_raw);
    format!(
        "the master{} at {} did not answer within {ANSWER_TIME_MAX:?}: it is stopped, or hangs; \
         it may still carry out the request later",
        pid.map_or(String::new(), with_pid),
        located.control_socket.display()
    )
}

fn told(silent: &str, located: &Located, error: io::Error) -> Failure {
    match error.kind() {
        ErrorKind::WouldBlock => Failure::Refused(silent.to_owned()),
        _ => broken(located, error),
    }
}

fn broken(located: &Located, error: io::Error) -> Failure {
    let path = located.control_socket.display();
    match error.kind() {
        ErrorKind::WouldBlock => Failure::Refused(format!(
            "the master at {path} has sent a part of its answer, and nothing more for \
             {ANSWER_TIME_MAX:?}"
        )),
        _ => Failure::system(format!("control socket {path}"))(error),
    }
}

fn with_pid(pid: Pid) -> String {
    format!(" (pid {pid})")
}

/// Who runs, and what was counted.
pub(super) fn status(located: &Located) -> Result<Status, Failure> {
    MasterClient::connect(located)?.ask(Request::Status {})
}

impl From<ReplyError> for Failure {
    fn from(error: ReplyError) -> Self {
        match error {
            ReplyError::Refused(Refused { error, wrong_configuration: Some(true) }) => {
                Self::RefusedConfig(error)
            }
            other => Self::Refused(other.to_string()),
        }
    }
}

/// Why: there may be a master all the same, with the control socket that was configured
/// when it started.
fn nobody_answers(located: &Located) -> Failure {
    let path = located.control_socket.display();
    Failure::Refused(match PidFile::holder(&located.pid_file) {
        Ok(pid) if was_deleted(&located.control_socket) => format!(
            "the control socket {path} was deleted, but its master is running, pid {pid}: commands \
             cannot reach it, but signals can: chappe -s reload, reopen, quit or stop; a restart \
             makes the socket again"
        ),
        Ok(pid) => format!(
            "nobody answers at {path}, but a master is running, pid {pid}: if control_socket was \
             changed since its start, give the old one with --set control_socket=PATH; the new \
             one needs a restart"
        ),
        Err(PidFileError::OtherNamespace(_)) => format!(
            "nobody answers at {path}, but a master is running in another pid namespace: \
             control_socket must be the one that it was started with"
        ),
        Err(PidFileError::NotRunning(_)) => {
            format!("no master is running (nobody answers at {path})")
        }
        Err(error) => format!(
            "nobody answers at {path}, and the pid file does not tell whether a master is \
             running: {error}"
        ),
    })
}

/// Whether somebody listens on a socket whose file is gone. The kernel lists sockets by the
/// path that they were bound to.
fn was_deleted(path: &Path) -> bool {
    let sockets = std::fs::read("/proc/net/unix").unwrap_or_default();
    let of_path = [b" ", path.as_os_str().as_bytes()].concat();
    !path.exists() && sockets.split(|byte| *byte == b'\n').any(|line| line.ends_with(&of_path))
}
