//! What a turn tells of the calls that it makes: how many there were, a run of the same
//! handler at once, and how long some of them took.
//!
//! Where a handler is timed anyhow, or is on a handler thread because it may take long, each
//! of its calls is measured. Of the quick ones that is a thread's first, and then one in
//! thirty-two, at random: messages that come in an order of their own are met all the same.
//!
//! A message costs two comparisons here; all else is for the end of a run, or for a call that
//! is measured.

use crate::turn::Serve;
use chappe_sys::clock::Moment;
use std::cell::Cell;

/// The most calls of quick handlers between two that are measured, and twice the mean.
const SAMPLE_EVERY_MAX: u32 = 64;

thread_local! {
    /// Quick calls of this thread's next turns before one is measured.
    static UNMEASURED: Cell<u32> = const { Cell::new(0) };
}

/// Of one turn. Messages are numbered as the turn handles them.
#[derive(Debug)]
pub(crate) struct Calls {
    /// Whose run it is; `None`: of a code that nobody handles.
    place: Option<usize>,
    /// The first message of the run.
    first: u32,
    /// Messages of the run for which no handler was called after all.
    refused: u32,
    /// The next quick call that is measured.
    sample_at: u32,
}

impl Calls {
    /// Of a turn that begins.
    pub(crate) fn new() -> Self {
        Self { place: None, first: 0, refused: 0, sample_at: UNMEASURED.get() }
    }

    /// Before a quick call: whether it is measured.
    #[inline]
    pub(crate) fn is_sampled(&self, message: u32) -> bool {
        message >= self.sample_at
    }

    /// A call is measured that begins now; says when the next quick one is.
    pub(crate) fn sample(&mut self, message: u32, now: Moment) {
        // Nobody chooses the nanosecond at which a call begins.
        self.sample_at = message + 1 + now.subsec_nanos() % SAMPLE_EVERY_MAX;
    }

    /// Before a message: whose it is.
    #[inline]
    pub(crate) fn come_to<S: Serve + ?Sized>(
        &mut self,
        place: Option<usize>,
        message: u32,
        serve: &S,
    ) {
        if place != self.place {
            self.end_run(message, serve);
            self.place = place;
        }
    }

    /// No handler was called for the last message.
    pub(crate) fn refuse(&mut self) {
        self.refused += 1;
    }

    /// What was handled before this message is nobody's call.
    pub(crate) fn begin(&mut self, message: u32) {
        self.first = message;
    }

    /// Tells of the calls up to this message, of which the next run is.
    pub(crate) fn end_run<S: Serve + ?Sized>(&mut self, message: u32, serve: &S) {
        let calls = message - self.first - std::mem::take(&mut self.refused);
        self.first = message;
        UNMEASURED.set(self.sample_at.saturating_sub(message));
        if let Some(place) = self.place.filter(|_| calls > 0) {
            serve.called(place, calls);
        }
    }
}
