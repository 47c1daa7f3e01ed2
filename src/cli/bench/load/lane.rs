//! One connection that is measured: requests out, replies in, each reply checked
//! against the request that it must belong to. The socket does not block; when to
//! read and when to write is the event loop's to say.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use chappe_client::{CODE_ERROR, CODE_GOODBYE, Code, Frame};
use chappe_wire::{HEADER_BYTES, Header, checksum};

use super::body::{Bodies, Difference, Id};
use super::fault::Fault;
use super::plan::Expect;
use super::tally::Tally;

/// Requests are not made while this many bytes of them wait to be written: they are made from
/// memory that is still in the cache, and no pipeline takes all of memory.
const OUT_BYTES_MAX: usize = 256 * 1024;

/// The first of the codes that the server speaks with on its own account.
pub(super) const CODE_SERVER_MIN: Code = 65280;

/// Nanoseconds since the run began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn now(self) -> u64 {
        // 584 years fit.
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// What the requests of a lane are, and what their replies must be.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) bodies: Bodies,
    pub(super) code: Code,
    /// The code of the replies. Frames of other codes, but for errors, are not replies.
    pub(super) reply_code: Code,
    pub(super) expect: Expect,
    /// How many requests may be under way.
    pub(super) pipeline: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// The server has said goodbye: what is under way is still answered.
    Leaving,
    Gone,
}

/// The connection.
#[derive(Debug)]
pub(super) struct Lane {
    stream: TcpStream,
    number: u32,
    state: State,
    /// Requests of which the first `written` bytes are with the kernel.
    out: Vec<u8>,
    written: usize,
    /// The begun reply.
    partial: Vec<u8>,
    /// When the requests under way are timed from, the oldest first.
    starts: VecDeque<u64>,
    /// The number of the next request.
    next: u64,
    bytes_received: u64,
}

impl Lane {
    pub(super) fn new(stream: TcpStream, number: u32) -> Self {
        Self {
            stream,
            number,
            state: State::Open,
            out: Vec::new(),
            written: 0,
            partial: Vec::new(),
            starts: VecDeque::new(),
            next: 0,
            bytes_received: 0,
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.state == State::Gone
    }

    /// Whether the socket was full: it must be watched for room.
    pub(super) fn wants_room(&self) -> bool {
        self.written < self.out.len() && !self.is_gone()
    }

    /// When the requests under way started, the oldest first.
    pub(super) fn under_way(&self) -> impl ExactSizeIterator<Item = u64> {
        self.starts.iter().copied()
    }

    /// The number of the next request.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    pub(super) fn bytes_received(&self) -> u64 {
        self.bytes_received
    }

    /// Makes the requests that `start` has a time for, as far as there is room, and
    /// writes what the kernel takes.
    pub(super) fn send(
        &mut self,
        exchange: &Exchange,
        now: u64,
        mut start: impl FnMut(u64) -> Option<u64>,
        tally: &mut Tally,
    ) {
        loop {
            while self.state == State::Open
                && self.starts.len() < exchange.pipeline
                && self.out.len() - self.written < OUT_BYTES_MAX
            {
                let Some(start) = start(self.next) else { break };
                let id = Id { connection: self.number, sequence: self.next };
                exchange.bodies.append(&mut self.out, exchange.code, id);
                self.starts.push_back(start);
                self.next += 1;
                tally.sent(start, now);
            }
            // A pipeline that is larger than the buffer goes in several rounds.
            let is_cut = self.out.len() - self.written >= OUT_BYTES_MAX;
            self.flush();
            if !is_cut || self.wants_room() || self.is_gone() {
                return;
            }
        }
    }

    fn flush(&mut self) {
        while self.written < self.out.len() && self.state != State::Gone {
            // The standard library sends with MSG_NOSIGNAL.
            match (&self.stream).write(&self.out[self.written..]) {
                Ok(written) => self.written += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // What the server has sent before it left is still read.
                Err(_) => return self.leave(),
            }
        }
        self.out.clear();
        self.written = 0;
    }

    /// Nothing more can be sent; the end, or the failure, shows at the next read.
    fn leave(&mut self) {
        self.out.clear();
        self.written = 0;
        if self.state == State::Open {
            self.state = State::Leaving;
        }
    }

    /// Reads once, `limit` bytes at most, and checks each whole reply. Returns when
    /// that was. `scratch` holds a whole frame and `limit` more.
    pub(super) fn receive(
        &mut self,
        exchange: &Exchange,
        scratch: &mut [u8],
        limit: usize,
        clock: Clock,
        tally: &mut Tally,
    ) -> u64 {
        let kept = self.partial.len();
        scratch[..kept].copy_from_slice(&self.partial);
        let end = scratch.len().min(kept + limit);
        let result = (&self.stream).read(&mut scratch[kept..end]);
        // The moment that the replies were here, not that in which they were checked.
        let now = clock.now();
        match result {
            Ok(0) => self.end_of_stream(tally),
            Ok(received) => {
                self.bytes_received += received as u64;
                self.take_in(&scratch[..kept + received], exchange, now, tally);
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => {
                let number = self.number;
                self.fail(Fault::Broken, || format!("connection {number}: {error}"), tally);
            }
        }
        now
    }

    fn take_in(&mut self, bytes: &[u8], exchange: &Exchange, now: u64, tally: &mut Tally) {
        let mut left = bytes;
        while let Some(header) = Header::read(left) {
            let length = usize::from(header.length);
            if length < HEADER_BYTES {
                let number = self.number;
                let text = || format!("connection {number}: a frame of {length} bytes");
                return self.fail(Fault::BadLength, text, tally);
            }
            let Some(body) = left.get(HEADER_BYTES..length) else { break };
            self.frame(header, body, exchange, now, tally);
            left = &left[length..];
        }
        self.partial.clear();
        self.partial.extend_from_slice(left);
    }

    /// A whole frame: a reply, an error in the place of one, or the server's own.
    fn frame(
        &mut self,
        header: Header,
        body: &[u8],
        exchange: &Exchange,
        now: u64,
        tally: &mut Tally,
    ) {
        let number = self.number;
        if header.code == CODE_GOODBYE {
            let goodbye = notice(header.code, body).as_goodbye();
            let text = goodbye.map_or_else(|| "malformed".to_owned(), |said| said.to_string());
            tally.fault(Fault::Goodbye, || format!("connection {number}: {text}"));
            self.state = State::Leaving;
            return;
        }
        if (CODE_SERVER_MIN..CODE_GOODBYE).contains(&header.code) {
            return;
        }
        if header.code != exchange.reply_code && header.code != CODE_ERROR {
            tally.unasked += 1;
            return match intact(header, body) {
                Ok(()) => {}
                Err(text) => {
                    tally.fault(Fault::BadChecksum, || format!("connection {number}: {text}"))
                }
            };
        }
        let sequence = self.next - self.starts.len() as u64;
        let Some(start) = self.starts.pop_front() else {
            let code = header.code;
            return tally.fault(Fault::Surplus, || format!("connection {number}: code {code}"));
        };
        let id = Id { connection: number, sequence };
        match judge(exchange, id, header, body) {
            Ok(()) => tally.reply(start, now),
            Err((fault, text)) => {
                tally.fault(fault, || format!("connection {number}, reply {sequence}: {text}"))
            }
        }
    }

    fn end_of_stream(&mut self, tally: &mut Tally) {
        let number = self.number;
        if self.partial.is_empty() && self.starts.is_empty() && self.state == State::Leaving {
            // After a goodbye, with everything answered: the end was announced.
            self.state = State::Gone;
        } else if self.partial.is_empty() {
            let owed = self.starts.len();
            self.fail(
                Fault::Closed,
                || format!("connection {number}: ended by the server, {owed} replies are missing"),
                tally,
            );
        } else {
            let bytes = self.partial.len();
            let text = || format!("connection {number}: ended {bytes} bytes into a frame");
            self.fail(Fault::Truncated, text, tally);
        }
    }

    /// The connection is over, and what was under way is not answered any more.
    fn fail(&mut self, fault: Fault, text: impl FnOnce() -> String, tally: &mut Tally) {
        tally.fault(fault, text);
        let owed = self.starts.len() as u64;
        tally.faults.add_many(Fault::Unanswered, owed, || "the connection ended".to_owned());
        self.starts.clear();
        self.out.clear();
        self.written = 0;
        self.state = State::Gone;
        // It may have ended in both directions already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl AsFd for Lane {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn notice(code: Code, body: &[u8]) -> Frame {
    Frame { code, body: bytes::Bytes::copy_from_slice(body) }
}

/// Whether the body has its checksum.
fn intact(header: Header, body: &[u8]) -> Result<(), String> {
    let computed = checksum(body);
    if header.crc32 == computed {
        return Ok(());
    }
    Err(format!("checksum {:#010x} should be {computed:#010x}", header.crc32))
}

/// Whether this is the reply to that request; what is wrong with it otherwise.
fn judge(exchange: &Exchange, id: Id, header: Header, body: &[u8]) -> Result<(), (Fault, String)> {
    intact(header, body).map_err(|text| (Fault::BadChecksum, text))?;
    if header.code == CODE_ERROR {
        let error = notice(header.code, body).as_error();
        let text = error.map_or_else(|| "a malformed error".to_owned(), |error| error.to_string());
        return Err((Fault::ServerError, text));
    }
    if exchange.expect == Expect::Any {
        return Ok(());
    }
    if exchange.expect == Expect::Empty {
        let text = || (Fault::WrongLength, format!("{} bytes instead of none", body.len()));
        return if body.is_empty() { Ok(()) } else { Err(text()) };
    }
    exchange.bodies.check(body, id).map_err(|difference| match difference {
        Difference::Length => (Fault::WrongLength, format!("{} bytes", body.len())),
        Difference::Connection(other) => {
            (Fault::WrongConnection, format!("it is connection {other}'s"))
        }
        Difference::Sequence => {
            (Fault::WrongOrder, "it belongs to another request of this connection".to_owned())
        }
        Difference::Content => (Fault::WrongContent, "the body has changed".to_owned()),
    })
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
