//! One client of the control socket: a request in, an answer out, and how far it is.
//!
//! Runs inside the master's loop and never sleeps.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    Answer, List, PIECE_BYTES, PIECES_AT_ONCE, REQUEST_BYTES_MAX, REQUEST_TIME_MAX, Request,
};
use crate::control::Reply;

#[derive(Debug)]
pub(super) struct Client {
    pub(super) stream: UnixStream,
    request: Vec<u8>,
    /// Empty until the request is complete; what is left of the answer then.
    answer: Vec<u8>,
    /// What follows the answer.
    pub(super) lists: VecDeque<List>,
    pub(super) deadline: Instant,
    pub(super) state: ClientState,
    /// It has closed its writing end: no more is asked, and an answer is still awaited.
    has_ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientState {
    Asking,
    /// For the outcome with this number.
    Waiting(u64),
    Hearing,
    Done,
}

impl Client {
    pub(super) fn new(stream: UnixStream, deadline: Instant) -> Self {
        Self {
            stream,
            request: Vec::new(),
            answer: Vec::new(),
            lists: VecDeque::new(),
            deadline,
            state: ClientState::Asking,
            has_ended: false,
        }
    }

    /// What the master's poll looks for; an end that is closed is reported in any case.
    pub(super) fn interest(&self) -> PollFlags {
        match self.state {
            ClientState::Waiting(_) if self.has_ended => PollFlags::empty(),
            // One that waits has no more to say, but may go.
            ClientState::Asking | ClientState::Waiting(_) => PollFlags::POLLIN,
            ClientState::Hearing | ClientState::Done => PollFlags::POLLOUT,
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.state, ClientState::Waiting(_))
    }

    pub(super) fn read(&mut self, mut answer: impl FnMut(Request) -> Answer) {
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    self.state = ClientState::Done;
                    return;
                }
                Ok(bytes) => self.request.extend_from_slice(&chunk[..bytes]),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.state = ClientState::Done;
                    return;
                }
            }
            if let Some(end) = self.request.iter().position(|&byte| byte == b'\n') {
                let reply = match Request::read(&self.request[..end]) {
                    Ok(request) => answer(request),
                    Err(error) => Answer::Now(Reply::refused(error)),
                };
                match reply {
                    Answer::Now(reply) => self.reply(&reply),
                    Answer::Later(number) => self.state = ClientState::Waiting(number),
                }
                return;
            }
            if self.request.len() >= REQUEST_BYTES_MAX {
                self.reply(&Reply::refused("bad request: longer than 64 KiB"));
                return;
            }
        }
    }

    /// While it waits: no place is kept for a client that has gone. One that has only closed
    /// its writing end keeps waiting.
    pub(super) fn note_departure(&mut self) {
        if !self.has_ended {
            let mut rest = [0; 4096];
            match self.stream.read(&mut rest) {
                Ok(0) => self.has_ended = true,
                // More than one request is more than was agreed on.
                Ok(_) => self.state = ClientState::Done,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => self.state = ClientState::Done,
            }
        }
        if self.has_ended && self.is_closed() {
            self.state = ClientState::Done;
        }
    }

    /// Whether the other end is closed altogether.
    fn is_closed(&self) -> bool {
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0) | Err(_))
    }

    pub(super) fn reply(&mut self, reply: &Reply) {
        self.answer = reply.to_line().into_bytes();
        self.state = ClientState::Hearing;
    }

    /// Writes what the client takes. Each piece that it takes gives it more time.
    pub(super) fn write(&mut self, now: Instant) {
        for _ in 0..PIECES_AT_ONCE {
            if self.answer.is_empty() && !self.next_piece() {
                break;
            }
            match self.stream.write(&self.answer) {
                Ok(bytes) => {
                    self.answer.drain(..bytes);
                    self.deadline = now + REQUEST_TIME_MAX;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.answer.clear();
                    self.lists.clear();
                }
            }
        }
        if !self.answer.is_empty() || !self.lists.is_empty() {
            return;
        }
        // Not only close: a worker that is just being forked has a copy of this
        // descriptor, and the client would not see the end until that is closed.
        let _ = self.stream.shutdown(Shutdown::Both);
        self.state = ClientState::Done;
    }

    /// Reads a piece of the lists into the empty answer. False when nothing is left.
    fn next_piece(&mut self) -> bool {
        while let Some(list) = self.lists.front_mut() {
            match list.read_piece(&mut self.answer, PIECE_BYTES) {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => log::warn!(target: "control.cut", "an answer is cut short: {error}"),
            }
            self.lists.pop_front();
        }
        false
    }
}
