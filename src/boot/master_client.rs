//! The other end of the control socket: a command asks the master, and hears the answer.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use chappe_sys::unix_socket;
use serde::de::DeserializeOwned;

use super::Failure;
use crate::config::Located;
use crate::control::{self, Listed, Refused, ReplyError, Request, Status};
use crate::master::{PidFile, PidFileError};

/// How long the master may take to answer; it answers between two wake-ups.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// The longest answer: a status of 4096 workers is about 4 MiB.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// A connection to the master, for one request.
#[derive(Debug)]
pub(super) struct MasterClient<'a> {
    located: &'a Located,
    stream: UnixStream,
}

impl<'a> MasterClient<'a> {
    pub(super) fn connect(located: &'a Located) -> Result<Self, Failure> {
        let path = &located.control_socket;
        let stream = unix_socket::connect(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => nobody_answers(located),
            _ => {
                Failure::System { step: format!("control socket {}", path.display()), cause: error }
            }
        })?;
        stream
            .set_read_timeout(Some(ANSWER_TIME_MAX))
            .and_then(|()| stream.set_write_timeout(Some(ANSWER_TIME_MAX)))
            .map_err(Failure::system("control socket"))?;
        Ok(Self { located, stream })
    }

    /// For an answer that takes as long as it takes: if the master dies the connection ends.
    pub(super) fn without_time_out(self) -> Result<Self, Failure> {
        self.stream.set_read_timeout(None).map_err(Failure::system("control socket"))?;
        Ok(self)
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
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

    /// What the master says of its list, and the lines of all workers.
    pub(super) fn list(self, slow: bool) -> Result<(Listed, String), Failure> {
        let path = self.located.control_socket.display().to_string();
        let (line, mut reader) = self.exchange(Request::Connections { slow })?;
        let listed = control::read(&line)?;
        let mut lines = String::new();
        reader
            .read_to_string(&mut lines)
            .map_err(Failure::system(format!("control socket {path}")))?;
        Ok((listed, lines))
    }

    /// The first line of the answer, and what comes after it.
    fn exchange(self, request: Request) -> Result<(String, impl Read), Failure> {
        let Self { located, mut stream } = self;
        let path = located.control_socket.display();
        let failed = |error: std::io::Error| match error.kind() {
            ErrorKind::WouldBlock => Failure::Refused(format!(
                "the master at {path} did not answer within {ANSWER_TIME_MAX:?}"
            )),
            _ => Failure::system(format!("control socket {path}"))(error),
        };
        stream.write_all(request.to_line().as_bytes()).map_err(failed)?;
        let mut reader = BufReader::new(stream.take(ANSWER_BYTES_MAX));
        let mut line = String::new();
        reader.read_line(&mut line).map_err(failed)?;
        Ok((line, reader))
    }
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
        Ok(pid) => format!(
            "nobody answers at {path}, but a master is running, pid {pid}: if control_socket was \
             changed since its start, give the old one with --set control_socket=PATH; the new \
             one needs a restart"
        ),
        Err(PidFileError::OtherNamespace(_)) => format!(
            "nobody answers at {path}, but a master is running in another pid namespace: \
             control_socket must be the one that it was started with"
        ),
        Err(_) => format!("no master is running (nobody answers at {path})"),
    })
}
