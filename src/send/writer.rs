//! A queued message, and the right to write to a socket.
//!
//! The outbox hands the one [`Writer`] of its connection to one thread at a time;
//! the thread's flush moves it forward, and the outbox settles what that has sent.

use super::flush::Socket;
use crate::sync::fault::{Fault, is_planted};
use bytes::Bytes;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

/// What an entry takes beside its bytes: its place in the queue (a deque grows by
/// doubling) and the heads of the allocations behind it. Counted as queued bytes,
/// or a peer that is owed many small replies would cost twenty times its limit.
pub const ENTRY_COST: usize = 128;

/// Some whole frames, encoded. Shared and immutable, so that one message can go
/// to many connections.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Never empty.
    pub bytes: Bytes,
    /// How many frames these are, for the counters.
    pub frames: u32,
}

impl Entry {
    /// What it counts against the limits, in bytes.
    #[must_use]
    pub fn cost(&self) -> usize {
        self.bytes.len() + ENTRY_COST
    }
}

/// The right to write to a connection's socket, and what is in flight on it.
#[derive(Debug)]
pub struct Writer {
    socket: Arc<dyn Socket>,
    unsent: VecDeque<Entry>,
    /// How much of the first entry is gone already.
    front_sent: usize,
    /// Bytes sent since the writer was taken; the outbox settles them.
    sent: usize,
    /// Entries sent to their end, likewise.
    done: usize,
}

impl Writer {
    pub(super) fn new(socket: Arc<dyn Socket>) -> Self {
        Self { socket, unsent: VecDeque::new(), front_sent: 0, sent: 0, done: 0 }
    }

    pub(super) fn socket(&self) -> &dyn Socket {
        &*self.socket
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unsent.is_empty()
    }

    /// Points `slices` at the oldest unsent bytes, `bytes_max` at most. Returns
    /// how many slices are used and how many bytes they are.
    pub(super) fn fill<'a>(
        &'a self,
        slices: &mut [IoSlice<'a>],
        bytes_max: usize,
    ) -> (usize, usize) {
        let (mut used, mut bytes, mut skip) = (0, 0, self.front_sent);
        for (slice, entry) in slices.iter_mut().zip(&self.unsent) {
            let left = &entry.bytes[skip..];
            let left = &left[..left.len().min(bytes_max - bytes)];
            if left.is_empty() {
                break;
            }
            *slice = IoSlice::new(left);
            used += 1;
            bytes += left.len();
            skip = 0;
        }
        (used, bytes)
    }

    /// Forgets `sent` bytes from the front; returns how many frames are whole now.
    pub(super) fn advance(&mut self, sent: usize) -> u64 {
        self.sent += sent;
        self.front_sent += sent;
        let mut frames = 0;
        while let Some(front) = self.unsent.front() {
            if self.front_sent < front.bytes.len() {
                break;
            }
            self.front_sent -= front.bytes.len();
            frames += u64::from(front.frames);
            self.done += 1;
            self.unsent.pop_front();
        }
        if self.unsent.is_empty() {
            debug_assert_eq!(self.front_sent, 0, "no more was sent than was there");
            // A connection at rest owns no buffer.
            self.unsent = VecDeque::new();
        }
        frames
    }

    /// Takes a message in of which `sent` bytes are gone. Nothing must be in front of it.
    pub(super) fn begin(&mut self, entry: Entry, sent: usize) {
        debug_assert!(self.unsent.is_empty() && sent < entry.bytes.len());
        self.unsent.push_back(entry);
        self.front_sent = sent;
        self.sent += sent;
    }

    /// Takes in what was queued since, behind what is left.
    pub(super) fn load(&mut self, waiting: &mut VecDeque<Entry>) {
        if self.unsent.is_empty() {
            std::mem::swap(&mut self.unsent, waiting);
        } else {
            self.unsent.append(waiting);
        }
    }

    /// What was sent since the last time: bytes, and whole entries.
    pub(super) fn take_sent(&mut self) -> (usize, usize) {
        (std::mem::take(&mut self.sent), std::mem::take(&mut self.done))
    }

    /// Gives up all entries of which nothing is sent yet. The one that is half sent
    /// stays: without its rest the peer could not tell where the next frame begins.
    pub(super) fn cut(&mut self) -> VecDeque<Entry> {
        let begun = usize::from(self.front_sent > 0 && !is_planted(Fault::CutBegun));
        self.front_sent *= begun;
        self.unsent.split_off(begun)
    }

    /// What the queue has allocated.
    #[cfg(all(test, not(loom)))]
    pub(super) fn capacity(&self) -> usize {
        self.unsent.capacity()
    }

    /// What will never be sent.
    pub(super) fn into_unsent(self) -> VecDeque<Entry> {
        self.unsent
    }
}
