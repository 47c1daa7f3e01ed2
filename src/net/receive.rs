//! Reading: one recv(2) into the shared buffer, frames cut by their lengths,
//! rate limits, and into the inbox.

use super::connection::{Connection, Rates};
use super::event_loop::Shared;
use super::interest::{Input, Phase};
use super::settings::{Settings, TOO_FAST_MAX, TOO_FAST_QUIET};
use super::token_bucket::TokenBucket;
use crate::dispatch::{self, Item, Notice, Pushed, Then};
use crate::send::Room;
use bytes::{Buf, Bytes, BytesMut};
use chappe_shm::Counter;
use chappe_wire::{Chunk, Cut, ErrorNumber, Goodbye, Header, cut, error_frame, goodbye_frame};
use std::io::ErrorKind;
use std::time::Instant;

/// How a read ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// Some bytes, or none this time.
    GoOn,
    /// Whole messages, which are answered already: nothing is left to look at.
    Served,
    /// The peer's FIN.
    Ended,
    /// The connection is broken.
    Broken,
}

impl Connection {
    /// Reads once. Level-triggered: what is left brings another event, after
    /// the other connections had theirs.
    pub(super) fn read(&mut self, buffer: &mut [u8], shared: &Shared, now: Instant) -> Read {
        let received = match self.transport.receive(buffer) {
            Ok(0) => {
                self.input_ended(shared);
                return Read::Ended;
            }
            Ok(received) => received,
            Err(error) => {
                return match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::Interrupted => Read::GoOn,
                    _ => {
                        log::debug!("conn={} receive failed: {error}", self.id());
                        Read::Broken
                    }
                };
            }
        };
        shared.counters.add(Counter::BytesReceived, received as u64);
        self.input_bytes += received as u64;
        // The turn may have begun long before: what came since must not shorten the time in
        // which a draining connection has to be quiet.
        let is_draining = self.phase == Phase::Draining;
        self.clocks.received(if is_draining { Instant::now() } else { now });
        let received = &buffer[..received];
        let served_bytes = self.serve_directly(received, shared);
        if served_bytes == received.len() {
            return Read::Served;
        }
        let mut chunks = [const { None }; 2];
        let mut free = chunks.iter_mut();
        let input = &received[served_bytes..];
        let cut = self.cutter.take_in(input, shared.settings.frame_bytes_max, |c| {
            *free.next().expect("the begun frame, and those behind it") = Some(c);
        });
        for chunk in chunks.into_iter().flatten() {
            if self.input != Input::Open {
                // The rate limit has ended it.
                return Read::GoOn;
            }
            self.clocks.frame_is_complete();
            shared.counters.add(Counter::FramesReceived, chunk.frames as u64);
            if self.rates.is_some() {
                self.admit(chunk, shared, now);
            } else {
                self.push(Item::chunk(chunk), shared);
            }
        }
        if let Err(claimed) = cut {
            let max = shared.settings.frame_bytes_max;
            let text = format!("a frame has 8 to {max} bytes, this one claims {claimed}");
            self.refuse(ErrorNumber::BadLength, &text, shared);
        } else if self.input == Input::Open && self.cutter.is_inside_frame() {
            self.clocks.frame_has_begun(now);
        }
        self.settle_cutter(shared);
        Read::GoOn
    }

    /// Handles the whole messages that were read, as far as nothing is in front of them.
    /// How many bytes these were.
    fn serve_directly(&mut self, received: &[u8], shared: &Shared) -> usize {
        let is_plain = self.phase == Phase::Open
            && self.input == Input::Open
            && self.rates.is_none()
            && !self.cutter.is_inside_frame();
        if !is_plain {
            return 0;
        }
        let Cut { whole_bytes, frames, .. } = cut(received, shared.settings.frame_bytes_max);
        let whole = dispatch::Cut { bytes: &received[..whole_bytes], frames };
        if frames == 0 || !shared.serve_directly(&self.receive, &whole) {
            return 0;
        }
        self.clocks.frame_is_complete();
        shared.counters.add(Counter::FramesReceived, frames as u64);
        whole_bytes
    }

    /// Charges what the begun frame holds, or gives it back.
    fn settle_cutter(&mut self, shared: &Shared) {
        let (held, charged) = (self.cutter.held_bytes(), self.cutter_charged);
        self.cutter_charged = held;
        if held > charged {
            let room = shared.dispatch.total().charge(held - charged);
            self.starved |= room == Room::Exhausted;
        } else {
            shared.dispatch.total().release(charged - held);
        }
    }

    /// Nothing more is cut from this connection.
    pub(super) fn end_input(&mut self, input: Input, shared: &Shared) {
        self.input = input;
        self.cutter.clear();
        self.clocks.no_frame();
        shared.dispatch.total().release(std::mem::take(&mut self.cutter_charged));
    }

    fn input_ended(&mut self, shared: &Shared) {
        let begun = self.cutter.is_inside_frame().then(|| self.cutter.begun());
        let was_open = self.input == Input::Open;
        self.end_input(Input::Ended, shared);
        if !was_open {
            return;
        }
        match begun {
            // Half a frame cannot be answered, but the peer may still read why.
            Some(header) => {
                shared.counters.add(Counter::ProtocolErrors, 1);
                let text = "the stream ended inside a frame";
                self.tell_error(ErrorNumber::FrameTimeout, header, text, shared);
            }
            None => self.receive.end(),
        }
    }

    /// Tells the peer what is wrong, behind the replies to what came before,
    /// and ends the connection.
    pub(super) fn refuse(&mut self, number: ErrorNumber, text: &str, shared: &Shared) {
        let begun = self.cutter.begun();
        shared.counters.add(Counter::ProtocolErrors, 1);
        self.end_input(Input::Refused, shared);
        self.tell_error(number, begun, text, shared);
    }

    fn tell_error(
        &mut self,
        number: ErrorNumber,
        caused_by: Option<Header>,
        text: &str,
        shared: &Shared,
    ) {
        log::debug!("conn={} {number:?}: {text}", self.id());
        let frame = error_frame(number, caused_by.map(|header| header.code), text);
        self.notify(frame, 1, Then::Finish, shared);
    }

    /// Says goodbye behind the replies to what came before.
    pub(super) fn say_goodbye(&mut self, reason: Goodbye, text: &str, then: Then, shared: &Shared) {
        log::debug!("conn={} goodbye: {text}", self.id());
        if then == Then::Finish {
            self.end_input(Input::Refused, shared);
        }
        self.notify(goodbye_frame(reason, text), 1, then, shared);
    }

    fn notify(&mut self, encoded: Bytes, frames: u32, then: Then, shared: &Shared) {
        self.push(Item::Notice(Notice { encoded, frames, then }), shared);
    }

    fn push(&mut self, item: Item, shared: &Shared) {
        let messages = item.messages();
        match self.receive.push(item) {
            Pushed::Queue => self.is_queued = true,
            Pushed::Nothing => {}
            Pushed::Closed => shared.counters.add(Counter::MessagesExpired, messages as u64),
        }
    }

    /// Lets messages pass as the rate limits allow, and refuses the others, each
    /// at its place in the order of replies. Neighbours of one fate stay together:
    /// one read can bring thousands of frames.
    fn admit(&mut self, chunk: Chunk, shared: &Shared, now: Instant) {
        let whole_bytes = chunk.bytes.len();
        let mut rest = chunk.bytes;
        // At most one of the two is not empty.
        let (mut passed, mut refused) = (Passed::default(), Refusals::default());
        while let Some(header) = Header::read(&rest[passed.bytes..]) {
            let length = usize::from(header.length);
            let rates = self.rates.as_mut().expect("checked by the caller");
            if rates.admit(length, now) {
                passed.bytes += length;
                passed.frames += 1;
                self.tell_refused(&mut refused, Then::GoOn, shared);
                continue;
            }
            let persists = rates.persists(now);
            self.push_passed(&mut passed, &mut rest, whole_bytes, shared);
            rest.advance(length);
            refused.add(header);
            shared.counters.add(Counter::FramesRateLimited, 1);
            if persists {
                self.end_input(Input::Refused, shared);
                self.tell_refused(&mut refused, Then::Finish, shared);
                // What came behind it in the same piece is not even refused.
                let lost = cut(&rest, shared.settings.frame_bytes_max).frames;
                shared.counters.add(Counter::MessagesExpired, lost as u64);
                return;
            }
        }
        self.tell_refused(&mut refused, Then::GoOn, shared);
        self.push_passed(&mut passed, &mut rest, whole_bytes, shared);
    }

    fn push_passed(
        &mut self,
        passed: &mut Passed,
        rest: &mut Bytes,
        whole_bytes: usize,
        shared: &Shared,
    ) {
        let Passed { bytes, frames } = std::mem::take(passed);
        if frames > 0 {
            let part = rest.split_to(bytes);
            // A part must not hold on to the whole, of which it is not charged.
            let is_whole = bytes == whole_bytes;
            let bytes = if is_whole { part } else { Bytes::copy_from_slice(&part) };
            self.push(Item::chunk(Chunk { bytes, frames }), shared);
        }
    }

    fn tell_refused(&mut self, refused: &mut Refusals, then: Then, shared: &Shared) {
        let Refusals { encoded, frames } = std::mem::take(refused);
        if frames > 0 {
            self.notify(encoded.freeze(), frames, then, shared);
        }
    }
}

/// Neighbouring frames that pass the rate limits.
#[derive(Default)]
struct Passed {
    bytes: usize,
    frames: usize,
}

/// The errors for neighbouring frames that do not.
#[derive(Default)]
struct Refusals {
    encoded: BytesMut,
    frames: u32,
}

impl Refusals {
    fn add(&mut self, header: Header) {
        let text = "above the rate limit";
        let error = error_frame(ErrorNumber::TooFast, Some(header.code), text);
        self.encoded.extend_from_slice(&error);
        self.frames += 1;
    }
}

impl Rates {
    /// `None` if there is no limit at all.
    pub(super) fn new(settings: &Settings, now: Instant) -> Option<Box<Self>> {
        let messages = TokenBucket::new(
            f64::from(settings.messages_per_second),
            f64::from(settings.messages_burst),
            now,
        );
        // The largest frame always fits the bucket, or it could never pass.
        #[expect(clippy::cast_precision_loss, reason = "a rate, not an account")]
        let per_second = settings.bytes_per_second as f64;
        #[expect(clippy::cast_precision_loss, reason = "at most 65535")]
        let frame_bytes_max = settings.frame_bytes_max as f64;
        let bytes = TokenBucket::new(per_second, frame_bytes_max.max(per_second), now);
        (messages.is_some() || bytes.is_some())
            .then(|| Box::new(Self { messages, bytes, too_fast_since: None, refused_at: None }))
    }

    /// Whether a frame of this length may pass now. Both buckets give, or none.
    fn admit(&mut self, length: usize, now: Instant) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "at most 65535")]
        let length = length as f64;
        let has_message = self.messages.as_mut().is_none_or(|bucket| bucket.has(1.0, now));
        let has_bytes = self.bytes.as_mut().is_none_or(|bucket| bucket.has(length, now));
        if has_message && has_bytes {
            if let Some(bucket) = &mut self.messages {
                bucket.take(1.0);
            }
            if let Some(bucket) = &mut self.bytes {
                bucket.take(length);
            }
            return true;
        }
        let was_quiet =
            self.refused_at.is_none_or(|at| now.saturating_duration_since(at) >= TOO_FAST_QUIET);
        if was_quiet {
            self.too_fast_since = Some(now);
        }
        self.refused_at = Some(now);
        false
    }

    fn persists(&self, now: Instant) -> bool {
        self.too_fast_since
            .is_some_and(|since| now.saturating_duration_since(since) >= TOO_FAST_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn settings(messages_per_second: u32, bytes_per_second: u64) -> Settings {
        Settings {
            connections_max: 1,
            frame_bytes_max: 1000,
            idle: None,
            frame: Duration::from_secs(1),
            handshake: None,
            linger: Duration::from_secs(1),
            outbox_age_max: Duration::from_secs(1),
            fuse: true,
            messages_per_second,
            messages_burst: 0,
            bytes_per_second,
            connections_per_ip: 0,
        }
    }

    #[test]
    fn both_limits_hold_and_none_is_none() {
        let now = Instant::now();
        assert!(Rates::new(&settings(0, 0), now).is_none());
        let mut rates = Rates::new(&settings(5, 0), now).unwrap();
        assert_eq!((0..9).filter(|_| rates.admit(8, now)).count(), 5);
        // The burst in bytes is at least one frame of the largest size.
        let mut rates = Rates::new(&settings(0, 10), now).unwrap();
        assert!(rates.admit(1000, now));
        assert!(!rates.admit(8, now));
        assert!(rates.admit(8, now + Duration::from_secs(1)));
    }

    #[test]
    fn too_fast_persists_only_without_a_quiet_second() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut rates = Rates::new(&settings(1, 0), start).unwrap();
        // Ten a second against one: refused all the time.
        for ms in (0..=10_000).step_by(100) {
            let admitted = rates.admit(8, at(ms));
            assert_eq!(rates.persists(at(ms)), !admitted && ms >= 10_100, "{ms}");
        }
        rates.admit(8, at(10_100));
        assert!(rates.persists(at(10_100)));
        // One burst each three seconds never persists.
        let mut rates = Rates::new(&settings(1, 0), start).unwrap();
        for ms in (0..60_000).step_by(3000) {
            (0..4).for_each(|_| _ = rates.admit(8, at(ms)));
            assert!(!rates.persists(at(ms)));
        }
    }
}
