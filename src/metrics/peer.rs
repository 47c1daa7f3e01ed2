//! One connection: read a request, write its answer, close. It never sleeps, and
//! whatever the peer does, it is over by its deadline.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::http::{self, Answer, Path, REQUEST_BYTES_MAX, Refusal, Request};

/// How long a request may take to come.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(5);

/// How long the answer and the peer's goodbye may take after that.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
enum Stage {
    /// What has come of the request.
    Reading(Vec<u8>),
    /// The answer, and how much of it is sent.
    Writing(Vec<u8>, usize),
    /// Until the peer has closed. A close with unread input would be a reset, which
    /// may take the answer away from the peer.
    Lingering,
}

#[derive(Debug)]
pub(super) struct Peer {
    socket: TcpStream,
    stage: Stage,
    deadline: Instant,
}

/// What happens to a peer next.
enum Next {
    /// It waits for its socket.
    Wait,
    Enter(Stage),
    Close,
}

impl Peer {
    /// `socket` does not block.
    pub(super) fn new(socket: TcpStream, now: Instant) -> Self {
        Self { socket, stage: Stage::Reading(Vec::new()), deadline: now + REQUEST_TIME_MAX }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether it has not asked yet, or has its answer: nobody misses it.
    pub(super) fn is_waiting(&self) -> bool {
        !matches!(self.stage, Stage::Writing(..))
    }

    /// What it waits for.
    pub(super) fn interest(&self) -> PollFlags {
        match self.stage {
            Stage::Reading(_) | Stage::Lingering => PollFlags::POLLIN,
            Stage::Writing(..) => PollFlags::POLLOUT,
        }
    }

    /// Does what can be done now. False when it is over.
    pub(super) fn go_on(
        &mut self,
        now: Instant,
        answer: &impl Fn(Result<Path, Refusal>) -> Answer,
    ) -> bool {
        if self.deadline <= now {
            // A request that has begun gets the reason; one that has not is nobody's.
            let is_begun = matches!(&self.stage, Stage::Reading(bytes) if !bytes.is_empty());
            if !is_begun {
                return false;
            }
            self.answer(Request::refused(Refusal::Late), now, answer);
        }
        loop {
            let next = match &mut self.stage {
                Stage::Reading(bytes) => match read(&mut self.socket, bytes) {
                    Came::Request(request) => {
                        self.answer(request, now, answer);
                        continue;
                    }
                    Came::Nothing => Next::Wait,
                    Came::End => Next::Close,
                },
                Stage::Writing(bytes, sent) => write(&mut self.socket, bytes, sent),
                Stage::Lingering => linger(&mut self.socket),
            };
            match next {
                Next::Wait => return true,
                Next::Enter(stage) => self.stage = stage,
                Next::Close => return false,
            }
        }
    }

    fn answer(
        &mut self,
        request: Request,
        now: Instant,
        answer: &impl Fn(Result<Path, Refusal>) -> Answer,
    ) {
        self.deadline = now + ANSWER_TIME_MAX;
        self.stage = Stage::Writing(answer(request.path).into_bytes(request.is_head), 0);
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

enum Came {
    Request(Request),
    Nothing,
    End,
}

fn read(socket: &mut TcpStream, bytes: &mut Vec<u8>) -> Came {
    let mut part = [0; 1024];
    loop {
        // One byte beyond the longest request, so that a longer one is known.
        let room = (REQUEST_BYTES_MAX + 1).saturating_sub(bytes.len()).min(part.len());
        match socket.read(&mut part[..room]) {
            Ok(0) => return Came::End,
            Ok(n) => bytes.extend_from_slice(&part[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Came::Nothing,
            Err(_) => return Came::End,
        }
        if let Some(request) = http::judge(bytes) {
            return Came::Request(request);
        }
    }
}

fn write(socket: &mut TcpStream, bytes: &[u8], sent: &mut usize) -> Next {
    while *sent < bytes.len() {
        match socket.write(&bytes[*sent..]) {
            Ok(n) => *sent += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Next::Wait,
            Err(_) => return Next::Close,
        }
    }
    match socket.shutdown(Shutdown::Write) {
        Ok(()) => Next::Enter(Stage::Lingering),
        Err(_) => Next::Close,
    }
}

/// A bounded look: a peer that sends without end does not keep the others waiting.
fn linger(socket: &mut TcpStream) -> Next {
    let mut part = [0; 4096];
    match socket.read(&mut part) {
        Ok(0) => Next::Close,
        Ok(_) => Next::Wait,
        Err(error) if error.kind() == ErrorKind::Interrupted => Next::Wait,
        Err(error) if error.kind() == ErrorKind::WouldBlock => Next::Wait,
        Err(_) => Next::Close,
    }
}
