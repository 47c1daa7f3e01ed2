//! What one turn may take, in messages, bytes and time, and what of that is left.

use crate::mailbox::Place;
use crate::turn::{QUICK_TIME_MAX, TURN_BYTES_MAX, TURN_MESSAGES_MAX, TURN_TIME_MAX};
use chappe_sys::clock::Moment;
use std::time::Duration;

/// A turn of the loop that takes longer for each of its messages, and longer than
/// [`QUICK_TIME_MAX`], makes their handlers suspect.
const MESSAGE_TIME_MAX: Duration = Duration::from_micros(20);

/// How many quick messages pass between two looks at the clock.
const MESSAGES_PER_CLOCK: usize = 16;

/// The share of a turn that is not bounded in messages.
const ANY_MESSAGES: usize = usize::MAX / MESSAGES_PER_CLOCK * MESSAGES_PER_CLOCK;

/// What is left of a turn.
pub(crate) struct Share {
    pub(crate) began: Moment,
    /// When the clock was read last.
    pub(crate) now: Moment,
    pub(crate) handled: u32,
    /// How many were, when the clock was read last.
    handled_then: u32,
    messages: usize,
    bytes: usize,
    is_late: bool,
}

impl Share {
    pub(crate) fn new(place: Place, now: Moment) -> Self {
        // On the loop one read is the bound, and the time: a hand-over in the middle of
        // what one read has brought would cost more than the rest of it.
        let messages = match place {
            Place::Loop => ANY_MESSAGES,
            Place::Thread => TURN_MESSAGES_MAX,
        };
        let (handled, bytes) = (0, TURN_BYTES_MAX);
        Self { began: now, now, handled, handled_then: 0, messages, bytes, is_late: false }
    }

    pub(crate) fn use_up(&mut self, messages: usize, bytes: usize) {
        self.handled += u32::try_from(messages).unwrap_or(0);
        self.messages = self.messages.saturating_sub(messages);
        self.bytes = self.bytes.saturating_sub(bytes);
        if self.messages.is_multiple_of(MESSAGES_PER_CLOCK) {
            self.look_at_clock();
        }
    }

    /// Whether it took longer than quick messages may, as many as were handled.
    pub(crate) fn is_longer_than_quick(&self) -> bool {
        let took = self.now.since(self.began);
        took > QUICK_TIME_MAX
            && took > (MESSAGE_TIME_MAX * self.handled).clamp(QUICK_TIME_MAX, 2 * TURN_TIME_MAX)
    }

    pub(crate) fn look_at_clock(&mut self) {
        // A model has no time: each of its runs must be repeatable.
        if !cfg!(loom) {
            self.now = Moment::now();
            self.handled_then = self.handled;
            self.is_late = self.now.since(self.began) >= TURN_TIME_MAX;
        }
    }

    /// Reads the clock if a message was handled since it was read.
    pub(crate) fn look_after_last(&mut self) {
        if self.handled_then < self.handled {
            self.look_at_clock();
        }
    }

    pub(crate) fn is_used(&self, reply_bytes: usize) -> bool {
        self.messages == 0 || self.bytes == 0 || self.is_late || reply_bytes >= TURN_BYTES_MAX
    }
}
