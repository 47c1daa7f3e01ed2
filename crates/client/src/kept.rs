//! Frames that came while something else was waited for. Pure.

use std::collections::VecDeque;

use chappe_wire::CODE_GAP;

use super::received::Frame;
use super::topic_frames::{Incoming, is_of_topics};

/// How much is kept, bodies and [`FRAME_COST`].
const KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What a frame takes beside its body.
const FRAME_COST: usize = 64;

/// In their order. Beyond the limit the oldest ones go, and a gap stands in their place.
#[derive(Debug, Default)]
pub(super) struct Kept {
    frames: VecDeque<Frame>,
    bytes: usize,
    /// How many went.
    lost: u64,
}

fn cost(frame: &Frame) -> usize {
    frame.body.len() + FRAME_COST
}

impl Kept {
    pub(super) fn push(&mut self, frame: Frame) {
        self.bytes += cost(&frame);
        self.frames.push_back(frame);
        while self.bytes > KEPT_BYTES_MAX
            && let Some(oldest) = self.frames.pop_front()
        {
            self.bytes -= cost(&oldest);
            self.lost += match Incoming::of(oldest) {
                Incoming::Gap { lost } => lost,
                Incoming::Message(_) | Incoming::Frame(_) => 1,
            };
        }
    }

    pub(super) fn pop(&mut self) -> Option<Frame> {
        if self.lost > 0 {
            let lost = std::mem::take(&mut self.lost);
            let body = lost.to_be_bytes().to_vec().into();
            return Some(Frame { code: CODE_GAP, body });
        }
        let frame = self.frames.pop_front()?;
        self.bytes -= cost(&frame);
        Some(frame)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.lost == 0
    }

    /// Leaves the messages of topics: the rest means nothing on another connection.
    pub(super) fn leave_messages(&mut self) {
        self.frames.retain(|frame| is_of_topics(frame.code));
        self.bytes = self.frames.iter().map(cost).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_wire::{CODE_GOODBYE, CODE_MESSAGE, Code};

    fn frame(code: Code, bytes: usize) -> Frame {
        Frame { code, body: vec![0; bytes].into() }
    }

    #[test]
    fn what_is_kept_comes_in_its_order() {
        let mut kept = Kept::default();
        for bytes in [0, 1, 2] {
            kept.push(frame(CODE_MESSAGE, bytes));
        }
        kept.push(frame(CODE_GOODBYE, 0));
        kept.leave_messages();
        for bytes in [0, 1, 2] {
            assert_eq!(kept.pop(), Some(frame(CODE_MESSAGE, bytes)));
        }
        assert_eq!((kept.pop(), kept.is_empty(), kept.bytes), (None, true, 0));
    }

    #[test]
    fn beyond_the_limit_the_oldest_become_a_gap() {
        let mut kept = Kept::default();
        let gap = Frame { code: CODE_GAP, body: 5_u64.to_be_bytes().to_vec().into() };
        kept.push(gap);
        let fit = KEPT_BYTES_MAX / (60_000 + FRAME_COST);
        for _ in 0..fit + 2 {
            kept.push(frame(CODE_MESSAGE, 60_000));
        }
        assert!(kept.bytes <= KEPT_BYTES_MAX);
        // The gap of the server, and two messages.
        assert_eq!(Incoming::of(kept.pop().unwrap()), Incoming::Gap { lost: 7 });
        let mut left = 0;
        while let Some(frame) = kept.pop() {
            assert_eq!(frame.body.len(), 60_000);
            left += 1;
        }
        assert_eq!((left, kept.bytes), (fit, 0));
    }
}
