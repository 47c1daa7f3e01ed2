//! Reading: one recv(2) into the shared buffer, messages framed by their protocol, rate
//! limits, and into a turn or into the inbox.

use super::connection::{Connection, PeerSide};
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
    /// No byte will follow: the peer's FIN, or the connection is broken.
    Ended,
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

    /// Reads at most `room` bytes, like [`Connection::read`], but also beyond the inbox total: the
    /// caller sees to a bound.
    pub(super) fn read_at_most(&mut self, room: usize, reactor: &mut Reactor) -> Read {
        match self.transport.receive(&mut reactor.buffer[..room]) {
            Ok(0) => {
                self.peer = PeerSide::Finished;
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
                    self.peer = PeerSide::Broken;
                    Read::Ended
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
        self.clocks.received_at = reactor.now;
        let mut rest = bytes;
        let mut is_for_threads = false;
        if reactor.settings.fuse && self.rates.is_none() && !self.framer.is_inside_message() {
            let turned = reactor.turn(&self.mailbox, Source::Buffer(bytes));
            if turned.handled > 0 {
                self.clocks.message_is_complete(reactor.settings.hooks);
                reactor.count(Counter::FramesReceived, turned.handled as u64);
            }
            rest = &bytes[turned.handled_bytes..];
            if rest.is_empty() {
                return if turned.next == Next::Rest { Read::Served } else { Read::Bytes };
            }
            is_for_threads = turned.is_for_threads;
        }
        if self.frame(rest, reactor) {
            self.start_turn(is_for_threads, reactor);
        }
        // The next turn of the loop is not to pay for this.
        reactor.refresh_clock();
        Read::Bytes
    }

    /// Frames what is not handled yet, and puts it into the inbox. Whether a turn has to
    /// start: once all is there, so that its replies leave together.
    fn frame(&mut self, bytes: &[u8], reactor: &mut Reactor) -> bool {
        let mut chunks = [const { None }; 2];
        let mut free = chunks.iter_mut();
        let held_before = self.framer.held_bytes();
        let framed = self.framer.take_in(bytes, self.mailbox.protocol(), |chunk| {
            *free.next().expect("the begun message, and those behind it") = Some(chunk);
        });
        self.charge_framer(held_before, reactor);
        let mut starts = false;
        for chunk in chunks.into_iter().flatten() {
            self.clocks.message_is_complete(reactor.settings.hooks);
            reactor.count(Counter::FramesReceived, chunk.messages() as u64);
            starts |= match self.rates.is_some() {
                true => self.limit(chunk, reactor),
                false => self.receive(chunk.into(), reactor),
            };
        }
        if let Err(Malformed(why)) = framed {
            self.end_input(Ending::Malformed(why), reactor);
        }
        self.framer.note_begun(reactor.now);
        starts
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

    /// Whether the inbox was empty.
    fn receive(&mut self, item: Item, reactor: &Reactor) -> bool {
        self.mailbox.receive(item, &reactor.counters) == Received::StartTurn
    }

    /// Lets messages pass as the rate limits allow, and refuses the others, each at its
    /// place in the order of replies. Neighbours of one fate stay together: one read can
    /// bring thousands of messages.
    fn limit(&mut self, chunk: Chunk, reactor: &mut Reactor) -> bool {
        let (mut at, mut left, mut starts) = (0, chunk.messages(), false);
        // At most one of the two is not empty: messages that pass, from `begin` to `at`, and
        // the codes of refused ones.
        let (mut begin, mut passed, mut refused) = (0, 0, Vec::new());
        while left > 0 && self.stage == Stage::Open {
            let opened = self.mailbox.protocol().open(&chunk.bytes()[at..]).expect("framed");
            let (code, length) = (opened.code, opened.length);
            left -= 1;
            let rates = self.rates.as_mut().expect("checked by the caller");
            if rates.admit(length, reactor.now) {
                starts |= self.tell_refused(&mut refused, reactor);
                passed += 1;
            } else {
                let persists = rates.persists(reactor.now);
                starts |= self.pass(&chunk.bytes()[begin..at], passed, reactor);
                passed = 0;
                begin = at + length;
                refused.push(code);
                reactor.count(Counter::FramesRateLimited, 1);
                if persists {
                    self.end_input(Ending::TooFast(std::mem::take(&mut refused)), reactor);
                }
            }
            at += length;
        }
        // What came behind the end in the same piece is not even refused.
        reactor.count(Counter::MessagesExpired, left as u64);
        starts |= self.tell_refused(&mut refused, reactor);
        if passed == chunk.messages() {
            return self.receive(chunk.into(), reactor);
        }
        starts | self.pass(&chunk.bytes()[begin..at], passed, reactor)
    }

    /// Puts what has passed into the inbox, in an allocation of its own: the whole chunk
    /// would be held for a part of it.
    fn pass(&mut self, bytes: &[u8], messages: usize, reactor: &Reactor) -> bool {
        messages > 0 && self.receive(Chunk::new(bytes, messages).into(), reactor)
    }

    fn tell_refused(&mut self, refused: &mut Vec<u16>, reactor: &Reactor) -> bool {
        let codes = std::mem::take(refused);
        !codes.is_empty() && self.receive(Notice::TooFast { codes }.into(), reactor)
    }
}
