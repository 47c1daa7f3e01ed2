//! Reading: one recv(2) into the shared buffer, messages framed by their protocol, rate
//! limits, and into a turn or into the inbox.

use super::connection::Connection;
use super::ending::Ending;
use super::framer::Malformed;
use super::reactor::Reactor;
use chappe_engine::{Chunk, Item, Next, Notice, Received, Room, Source, Stage};
use chappe_shm::Counter;
use std::io::ErrorKind;

/// What a read has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Read {
    /// Whole messages, which are answered already: nothing is left to do.
    Served,
    /// Something else: the connection has to be advanced.
    Bytes,
    /// No byte.
    Nothing,
    /// The inbox total has no room: the socket was not read.
    Starved,
    /// The peer's FIN.
    Ended,
    /// The connection is broken.
    Broken,
}

/// How the turns of one read are started.
#[derive(Clone, Copy, Debug)]
struct Starts {
    received: Received,
    is_for_threads: bool,
}

impl Connection {
    /// Reads once. Level-triggered: what is left brings another event, after the other
    /// connections had theirs.
    pub(super) fn read(&mut self, reactor: &mut Reactor) -> Read {
        let Some(room) = reactor.room_to_read(self) else {
            self.is_starved = true;
            return Read::Starved;
        };
        self.read_at_most(room, reactor)
    }

    /// As [`Connection::read`], also beyond the inbox total: the caller sees to a bound.
    pub(super) fn read_at_most(&mut self, room: usize, reactor: &mut Reactor) -> Read {
        match self.transport.receive(&mut reactor.buffer[..room]) {
            Ok(0) => {
                self.has_ended = true;
                let is_inside = self.framer.is_inside_message();
                let ending = if is_inside { Ending::PeerClosedInside } else { Ending::PeerClosed };
                self.end_input(ending, reactor);
                Read::Ended
            }
            Ok(received) => {
                // Out of the reactor's hands for as long as it is looked at.
                let buffer = std::mem::take(&mut reactor.buffer);
                let read = self.take_in(&buffer[..received], reactor);
                reactor.buffer = buffer;
                read
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted => Read::Nothing,
                _ => {
                    log::debug!("conn={} receive failed: {error}", self.id());
                    Read::Broken
                }
            },
        }
    }

    fn take_in(&mut self, bytes: &[u8], reactor: &mut Reactor) -> Read {
        reactor.count(Counter::BytesReceived, bytes.len() as u64);
        self.input_bytes += bytes.len() as u64;
        if self.clocks.is_draining() {
            // The loop may have woken long before: what came since must not shorten the
            // time in which a draining connection has to be quiet.
            reactor.refresh_clock();
        }
        self.clocks.received(reactor.now);
        let mut rest = bytes;
        let mut starts = Starts { received: Received::Added, is_for_threads: false };
        if reactor.settings.fuse && self.rates.is_none() && !self.framer.is_inside_message() {
            let turned = reactor.turn(&self.mailbox, Source::Buffer(bytes));
            if turned.handled > 0 {
                self.clocks.message_is_complete();
                reactor.count(Counter::FramesReceived, turned.handled as u64);
            }
            rest = &bytes[turned.handled_bytes..];
            if rest.is_empty() {
                return if turned.next == Next::Rest { Read::Served } else { Read::Bytes };
            }
            starts.is_for_threads = turned.is_for_threads;
        }
        self.frame(rest, &mut starts, reactor);
        self.start_turn(starts.received, starts.is_for_threads, reactor);
        // The next turn of the loop is not to pay for this.
        reactor.refresh_clock();
        Read::Bytes
    }

    /// Frames what is not handled yet, and puts it into the inbox.
    fn frame(&mut self, bytes: &[u8], starts: &mut Starts, reactor: &mut Reactor) {
        let mut chunks = [const { None }; 2];
        let mut free = chunks.iter_mut();
        let held_before = self.framer.held_bytes();
        let framed = self.framer.take_in(bytes, self.mailbox.protocol(), |chunk| {
            *free.next().expect("the begun message, and those behind it") = Some(chunk);
        });
        self.charge_framer(held_before, reactor);
        for chunk in chunks.into_iter().flatten() {
            self.clocks.message_is_complete();
            reactor.count(Counter::FramesReceived, chunk.messages() as u64);
            if self.rates.is_some() {
                self.limit(chunk, starts, reactor);
            } else {
                self.receive(chunk.into(), starts, reactor);
            }
        }
        if let Err(Malformed(why)) = framed {
            self.start_turn(starts.received, starts.is_for_threads, reactor);
            starts.received = Received::Added;
            self.end_input(Ending::Malformed(why), reactor);
        } else if self.framer.is_inside_message() {
            self.clocks.message_has_begun(reactor.now);
        }
    }

    /// Charges what the begun message holds, or gives it back.
    fn charge_framer(&mut self, before: usize, reactor: &mut Reactor) {
        let (held, total) = (self.framer.held_bytes(), reactor.engine.inbox_total());
        if held > before {
            self.is_starved |= total.charge(held - before) == Room::Exhausted;
        } else {
            total.release(before - held);
        }
    }

    fn receive(&mut self, item: Item, starts: &mut Starts, reactor: &mut Reactor) {
        let received = self.mailbox.receive(item, &reactor.counters);
        if received == Received::StartTurn {
            starts.received = received;
        }
    }

    /// Lets messages pass as the rate limits allow, and refuses the others, each at its
    /// place in the order of replies. Neighbours of one fate stay together: one read can
    /// bring thousands of messages.
    fn limit(&mut self, chunk: Chunk, starts: &mut Starts, reactor: &mut Reactor) {
        let (mut rest, mut left) = (chunk.bytes(), chunk.messages());
        // At most one of the two is not empty.
        let (mut passed, mut refused) = (Passed::default(), Vec::new());
        while left > 0 && self.stage == Stage::Open {
            let opened = self.mailbox.protocol().open(&rest[passed.bytes..]);
            let opened = opened.map(|opened| (opened.code, opened.length));
            let (code, length) = opened.expect("framed");
            left -= 1;
            let now = reactor.now;
            let rates = self.rates.as_mut().expect("checked by the caller");
            if rates.admit(length, now) {
                self.tell_refused(&mut refused, starts, reactor);
                passed.bytes += length;
                passed.messages += 1;
                continue;
            }
            let persists = rates.persists(now);
            rest = self.pass(&mut passed, rest, starts, reactor);
            rest = &rest[length..];
            refused.push(code);
            reactor.count(Counter::FramesRateLimited, 1);
            if persists {
                self.start_turn(starts.received, starts.is_for_threads, reactor);
                starts.received = Received::Added;
                self.end_input(Ending::TooFast(std::mem::take(&mut refused)), reactor);
            }
        }
        // What came behind the end in the same piece is not even refused.
        reactor.count(Counter::MessagesExpired, left as u64);
        self.tell_refused(&mut refused, starts, reactor);
        if passed.messages == chunk.messages() {
            self.receive(chunk.into(), starts, reactor);
        } else {
            self.pass(&mut passed, rest, starts, reactor);
        }
    }

    /// Puts what has passed into the inbox, in an allocation of its own: the whole chunk
    /// would be held for a part of it. Returns what is behind it.
    fn pass<'a>(
        &mut self,
        passed: &mut Passed,
        bytes: &'a [u8],
        starts: &mut Starts,
        reactor: &mut Reactor,
    ) -> &'a [u8] {
        let passed = std::mem::take(passed);
        let (whole, rest) = bytes.split_at(passed.bytes);
        if passed.messages > 0 {
            self.receive(Chunk::new(whole, passed.messages).into(), starts, reactor);
        }
        rest
    }

    fn tell_refused(&mut self, refused: &mut Vec<u16>, starts: &mut Starts, reactor: &mut Reactor) {
        if !refused.is_empty() {
            let codes = std::mem::take(refused);
            self.receive(Notice::TooFast { codes }.into(), starts, reactor);
        }
    }
}

/// Neighbouring messages that pass the rate limits.
#[derive(Default)]
struct Passed {
    bytes: usize,
    messages: usize,
}
