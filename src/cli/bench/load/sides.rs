//! Connections that are there beside the measured ones: idle ones, ones that never
//! read, and one that reads at a fixed pace. Runs on the load generator's one thread.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use chappe_client::{CODE_ECHO, CODE_PING, ClientError};
use chappe_wire::{HEADER_BYTES, encode};

use super::body::Bodies;
use super::lane::{Clock, Exchange, Lane};
use super::plan::{Expect, Paced};
use super::tally::Tally;

/// What the kernel may hold for a peer that does not read, on its side, in each
/// direction: without a bound it would be megabytes, and full much later.
pub(super) const SLOW_BUFFER_BYTES: usize = 32 * 1024;

/// Bodies of the paced reader.
const PACED_BODY_BYTES: usize = 4096;
/// What the kernel may hold for it, so that it is the server that holds the rest.
pub(super) const PACED_BUFFER_BYTES: usize = 8 * 1024;
/// Nanoseconds between two of its reads: 20 a second.
const PACED_PAUSE: u64 = 50_000_000;

/// A connection that has sent one ping.
#[derive(Debug)]
pub(super) struct Idle {
    stream: TcpStream,
    is_answered: bool,
    is_gone: bool,
}

impl Idle {
    /// The ping is sent: a server may part from a client that never says anything.
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        let ping = encode(CODE_PING, b"").expect("no body fits");
        // A new socket has room for eight bytes.
        (&stream).write_all(&ping)?;
        Ok(Self { stream, is_answered: false, is_gone: false })
    }

    pub(super) fn is_settled(&self) -> bool {
        self.is_answered || self.is_gone
    }

    pub(super) fn is_gone(&self) -> bool {
        self.is_gone
    }

    pub(super) fn receive(&mut self, scratch: &mut [u8]) {
        match (&self.stream).read(scratch) {
            Ok(0) => self.is_gone = true,
            Ok(_) => self.is_answered = true,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.is_gone = true,
        }
    }
}

impl AsFd for Idle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A connection that sends and never reads.
#[derive(Debug)]
pub(super) struct SlowReader {
    stream: TcpStream,
    /// How much of the current request is written.
    written: usize,
    bytes_sent: u64,
    is_full: bool,
    is_gone: bool,
}

impl SlowReader {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, written: 0, bytes_sent: 0, is_full: false, is_gone: false }
    }

    /// The request that all of them send, over and over.
    pub(super) fn request(body_bytes: usize) -> Result<Vec<u8>, ClientError> {
        Ok(encode(CODE_ECHO, &vec![b'.'; body_bytes])?.to_vec())
    }

    /// Writes what the kernel takes, a bounded part of it; true if it took anything.
    pub(super) fn send(&mut self, request: &[u8]) -> bool {
        let before = self.bytes_sent;
        self.is_full = false;
        for _ in 0..64 {
            match (&self.stream).write(&request[self.written..]) {
                Ok(bytes) => {
                    self.written = (self.written + bytes) % request.len();
                    self.bytes_sent += bytes as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.is_full = true;
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.is_gone = true;
                    break;
                }
            }
        }
        self.bytes_sent > before
    }

    /// The server has closed it, or means to.
    pub(super) fn end(&mut self) {
        self.is_gone = true;
    }

    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    pub(super) fn is_gone(&self) -> bool {
        self.is_gone
    }

    pub(super) fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }
}

impl AsFd for SlowReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A connection that has asked for many bytes and reads them at a fixed pace; each
/// reply is checked as those of the measured connections are.
#[derive(Debug)]
pub(super) struct PacedReader {
    pub(super) lane: Lane,
    exchange: Exchange,
    tally: Tally,
    requests: u64,
    bytes_per_second: u64,
    next_read: u64,
    began: u64,
    ended: Option<u64>,
}

/// How it went.
#[derive(Clone, Debug)]
pub(crate) struct PacedOutcome {
    pub(crate) bytes_asked: u64,
    pub(crate) bytes_received: u64,
    pub(crate) replies_asked: u64,
    pub(crate) replies_right: u64,
    pub(crate) seconds: f64,
    /// The first thing that was wrong.
    pub(crate) fault: Option<String>,
}

impl PacedOutcome {
    pub(crate) fn is_whole(&self) -> bool {
        self.fault.is_none() && self.replies_right == self.replies_asked
    }
}

/// What a reader of this pace may have after `nanoseconds`.
fn due_bytes(bytes_per_second: u64, nanoseconds: u64) -> u64 {
    let bytes = u128::from(bytes_per_second) * u128::from(nanoseconds) / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

impl PacedReader {
    pub(super) fn new(
        stream: TcpStream,
        number: u32,
        paced: Paced,
        clock: Clock,
    ) -> Result<Self, ClientError> {
        let frame_bytes = (PACED_BODY_BYTES + HEADER_BYTES) as u64;
        let now = clock.now();
        Ok(Self {
            lane: Lane::new(stream, number),
            exchange: Exchange {
                bodies: Bodies::new(PACED_BODY_BYTES)?,
                code: CODE_ECHO,
                reply_code: CODE_ECHO,
                expect: Expect::Echo,
                pipeline: usize::MAX,
            },
            tally: Tally::new(),
            requests: paced.bytes.div_ceil(frame_bytes),
            bytes_per_second: paced.bytes_per_second as u64,
            next_read: now + PACED_PAUSE,
            began: now,
            ended: None,
        })
    }

    /// Asks for what is left, as far as the server takes it.
    pub(super) fn send(&mut self, now: u64) {
        let Self { lane, exchange, tally, requests, .. } = self;
        lane.send(exchange, now, |sequence| (sequence < *requests).then_some(now), tally);
    }

    /// Reads if it is time to. What was missed is caught up, a second's worth at most.
    pub(super) fn receive(&mut self, scratch: &mut [u8], clock: Clock) {
        let now = clock.now();
        if now < self.next_read || self.is_over() {
            return;
        }
        self.next_read = (self.next_read + PACED_PAUSE).max(now);
        let due = due_bytes(self.bytes_per_second, now - self.began);
        let limit = due.saturating_sub(self.lane.bytes_received()).min(self.bytes_per_second);
        // Never 0: that would look like the end of the stream.
        let limit = usize::try_from(limit.max(1)).expect("bytes of a second");
        self.lane.receive(&self.exchange, scratch, limit, clock, &mut self.tally);
        if self.tally.answered == self.requests || self.lane.is_gone() {
            self.ended = Some(now);
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.ended.is_some()
    }

    pub(super) fn outcome(&self, now: u64) -> PacedOutcome {
        let frame_bytes = (PACED_BODY_BYTES + HEADER_BYTES) as u64;
        let fault = self.tally.faults.iter().next();
        PacedOutcome {
            bytes_asked: self.requests * frame_bytes,
            bytes_received: self.lane.bytes_received(),
            replies_asked: self.requests,
            replies_right: self.tally.answered,
            seconds: (self.ended.unwrap_or(now) - self.began) as f64 / 1e9,
            fault: fault.map(|(fault, _, first)| format!("{}: {first}", fault.name())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_kept_over_any_time() {
        assert_eq!(due_bytes(10_000, 50_000_000), 500);
        assert_eq!(due_bytes(10_000, 200_000_000_000), 2_000_000);
        assert_eq!(due_bytes(20, 49_999_999), 0);
        assert_eq!(due_bytes(u64::MAX, u64::MAX), u64::MAX);
    }
}
