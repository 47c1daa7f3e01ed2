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

/// What an entry takes beside its bytes: its place in the queue (which grows by
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
    flight: Flight,
    /// Bytes sent since the writer was taken; the outbox settles them.
    sent: usize,
    /// Entries sent to their end, likewise.
    done: usize,
}

/// What is to be sent before anything else.
#[derive(Debug, Default)]
struct Flight {
    unsent: VecDeque<Entry>,
    /// How much of the first entry is gone already.
    front_sent: usize,
}

/// A writer that no thread has. Most have nothing in flight and take the place of a
/// socket only: there is one for each idle connection.
#[derive(Debug)]
pub(super) struct Resting {
    socket: Arc<dyn Socket>,
    flight: Option<Box<Flight>>,
}

impl Flight {
    /// Gives up all entries of which nothing is sent yet. The one that is half sent
    /// stays: without its rest the peer could not tell where the next frame begins.
    fn cut(&mut self) -> VecDeque<Entry> {
        let begun = usize::from(self.front_sent > 0 && !is_planted(Fault::CutBegun));
        self.front_sent *= begun;
        self.unsent.split_off(begun)
    }
}

impl Resting {
    pub(super) fn new(socket: Arc<dyn Socket>) -> Self {
        Self { socket, flight: None }
    }

    /// For the thread that writes next.
    pub(super) fn into_writer(self) -> Writer {
        let flight = self.flight.map_or_else(Flight::default, |flight| *flight);
        Writer { socket: self.socket, flight, sent: 0, done: 0 }
    }

    /// As [`Writer::cut`].
    pub(super) fn cut(&mut self) -> VecDeque<Entry> {
        self.flight.as_mut().map_or_else(VecDeque::new, |flight| flight.cut())
    }

    /// What will never be sent.
    pub(super) fn into_unsent(self) -> VecDeque<Entry> {
        self.flight.map_or_else(VecDeque::new, |flight| flight.unsent)
    }

    /// Whether it owns nothing but the socket.
    #[cfg(all(test, not(loom)))]
    pub(super) fn is_bare(&self) -> bool {
        self.flight.is_none()
    }
}

impl Writer {
    /// Nobody writes for now; what was sent is settled.
    pub(super) fn rest(self) -> Resting {
        debug_assert_eq!((self.sent, self.done), (0, 0), "settled");
        let is_bare = self.flight.unsent.is_empty();
        let flight = (!is_bare).then(|| Box::new(self.flight));
        Resting { socket: self.socket, flight }
    }

    pub(super) fn socket(&self) -> &dyn Socket {
        &*self.socket
    }

    pub(super) fn is_empty(&self) -> bool {
        self.flight.unsent.is_empty()
    }

    /// Points `slices` at the oldest unsent bytes, `bytes_max` at most. Returns
    /// how many slices are used and how many bytes they are.
    pub(super) fn fill<'a>(
        &'a self,
        slices: &mut [IoSlice<'a>],
        bytes_max: usize,
    ) -> (usize, usize) {
        let (mut used, mut bytes, mut skip) = (0, 0, self.flight.front_sent);
        for (slice, entry) in slices.iter_mut().zip(&self.flight.unsent) {
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
        self.flight.front_sent += sent;
        let mut frames = 0;
        while let Some(front) = self.flight.unsent.front() {
            if self.flight.front_sent < front.bytes.len() {
                break;
            }
            self.flight.front_sent -= front.bytes.len();
            frames += u64::from(front.frames);
            self.done += 1;
            self.flight.unsent.pop_front();
        }
        if self.flight.unsent.is_empty() {
            debug_assert_eq!(self.flight.front_sent, 0, "no more was sent than was there");
            // Who sends from time to time shall not keep what a burst has needed.
            self.flight.unsent = VecDeque::new();
        }
        frames
    }

    /// Takes a message in of which `sent` bytes are gone. Nothing must be in front of it.
    pub(super) fn begin(&mut self, entry: Entry, sent: usize) {
        debug_assert!(self.flight.unsent.is_empty() && sent < entry.bytes.len());
        self.flight.unsent.push_back(entry);
        self.flight.front_sent = sent;
        self.sent += sent;
    }

    /// Takes in what was queued since, behind what is left.
    pub(super) fn load(&mut self, waiting: Vec<Entry>) {
        if self.flight.unsent.is_empty() {
            // Keeps the allocation.
            self.flight.unsent = waiting.into();
        } else {
            self.flight.unsent.extend(waiting);
        }
    }

    /// What was sent since the last time: bytes, and whole entries.
    pub(super) fn take_sent(&mut self) -> (usize, usize) {
        (std::mem::take(&mut self.sent), std::mem::take(&mut self.done))
    }

    /// Gives up all entries of which nothing is sent yet; the half-sent one stays.
    pub(super) fn cut(&mut self) -> VecDeque<Entry> {
        self.flight.cut()
    }

    /// What will never be sent.
    pub(super) fn into_unsent(self) -> VecDeque<Entry> {
        self.flight.unsent
    }
}
