//! A queued message, and the right to write to a socket.
//!
//! There is one [`Writer`] for each connection. It cannot be copied and it holds the
//! socket and the half-sent message; the connection's state hands it to one thread at a
//! time. The thread that takes it continues where the last one stopped.

use crate::flush::Socket;
use bytes::Bytes;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

/// What an entry takes beside its bytes: its place in the queue (which grows by
/// doubling) and the heads of the allocations behind it. Counted as queued bytes, or a
/// peer that is sent many small replies would cost twenty times its limit.
pub const ENTRY_COST: usize = 128;

/// Some whole messages, encoded. Immutable, so that one message can go to many
/// connections that share its memory.
#[derive(Clone, Debug)]
pub struct Entry {
    bytes: Bytes,
    messages: u32,
}

impl Entry {
    /// `bytes` are never empty and hold this many messages.
    #[must_use]
    pub fn new((bytes, messages): (Bytes, u32)) -> Self {
        debug_assert!(!bytes.is_empty());
        Self { bytes, messages }
    }

    /// Bytes charged against the limits.
    #[must_use]
    pub fn cost(&self) -> usize {
        self.bytes.len() + ENTRY_COST
    }

    /// How many messages these are, for the counters.
    #[must_use]
    pub fn messages(&self) -> u32 {
        self.messages
    }
}

/// What is to be sent before anything else, the oldest first. Without an entry, and with
/// one, it needs no allocation.
#[derive(Debug, Default)]
struct Flight {
    front: Option<Entry>,
    /// How much of the front is sent.
    front_sent: usize,
    #[expect(clippy::box_collection, reason = "a quarter of the size while there is none")]
    behind: Option<Box<VecDeque<Entry>>>,
}

/// The right to write to a connection's socket, and what is in flight on it.
#[derive(Debug)]
pub(crate) struct Writer {
    socket: Arc<dyn Socket>,
    flight: Flight,
    sent: Sent,
}

/// What was sent since the writer was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Bytes of entries.
    pub(crate) bytes: usize,
    /// Entries sent to their end.
    pub(crate) entries: usize,
    /// Bytes that were in no entry: the outbox was not charged for them.
    pub(crate) uncharged: usize,
    /// The cost of what was taken in since, for which it is to be charged.
    pub(crate) added: usize,
}

/// A writer that no thread has. Most have nothing in flight and are the size of a
/// socket: there is one for each idle connection.
#[derive(Debug)]
pub(crate) struct Resting {
    socket: Arc<dyn Socket>,
    flight: Option<Box<Flight>>,
}

/// Entries that will never be sent, to be dropped without the lock.
pub(crate) type Unsent = Vec<Entry>;

impl Flight {
    fn push(&mut self, entry: Entry) {
        if self.front.is_none() {
            self.front = Some(entry);
        } else {
            self.behind.get_or_insert_default().push_back(entry);
        }
    }

    /// Drops all entries of which nothing is sent. The one that is half sent stays:
    /// without its rest the peer could not tell where the next message begins.
    fn drop_backlog(&mut self) -> Unsent {
        let front = if self.front_sent > 0 { None } else { self.front.take() };
        front.into_iter().chain(self.behind.take().into_iter().flat_map(|behind| *behind)).collect()
    }

    fn into_unsent(self) -> Unsent {
        let behind = self.behind.into_iter().flat_map(|behind| *behind);
        self.front.into_iter().chain(behind).collect()
    }

    /// The next entry comes to the front.
    fn pop(&mut self) {
        self.front = self.behind.as_mut().and_then(|behind| behind.pop_front());
        if self.front.is_none() {
            // A connection that sends from time to time does not keep what a burst needed.
            self.behind = None;
        }
    }
}

impl Resting {
    pub(crate) fn new(socket: Arc<dyn Socket>) -> Self {
        Self { socket, flight: None }
    }

    /// For the thread that writes next.
    pub(crate) fn into_writer(self) -> Writer {
        let flight = self.flight.map_or_else(Flight::default, |flight| *flight);
        Writer { socket: self.socket, flight, sent: Sent::default() }
    }

    /// As [`Writer::drop_backlog`].
    pub(crate) fn drop_backlog(&mut self) -> Unsent {
        self.flight.as_mut().map_or_else(Vec::new, |flight| flight.drop_backlog())
    }

    /// What will never be sent.
    pub(crate) fn into_unsent(self) -> Unsent {
        self.flight.map_or_else(Vec::new, |flight| flight.into_unsent())
    }

    /// Whether it owns nothing but the socket.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn is_bare(&self) -> bool {
        self.flight.is_none()
    }
}

impl Writer {
    /// Nobody writes for now; what was sent is accounted for.
    pub(crate) fn rest(self) -> Resting {
        debug_assert_eq!(self.sent, Sent::default(), "accounted for");
        let flight = self.flight.front.is_some().then(|| Box::new(self.flight));
        Resting { socket: self.socket, flight }
    }

    pub(crate) fn socket(&self) -> &dyn Socket {
        &*self.socket
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.flight.front.is_none()
    }

    /// Points `slices` at the oldest unsent bytes, `bytes_max` at most. Returns how many
    /// slices are used and how many bytes they are.
    pub(crate) fn fill<'a>(
        &'a self,
        slices: &mut [IoSlice<'a>],
        bytes_max: usize,
    ) -> (usize, usize) {
        let (mut used, mut bytes, mut skip) = (0, 0, self.flight.front_sent);
        let entries =
            self.flight.front.iter().chain(self.flight.behind.iter().flat_map(|it| &**it));
        for (slice, entry) in slices.iter_mut().zip(entries) {
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

    /// Whether there is one entry only: it needs no list of slices.
    pub(crate) fn alone(&self) -> Option<&[u8]> {
        let front = self.flight.front.as_ref().filter(|_| self.flight.behind.is_none())?;
        Some(&front.bytes[self.flight.front_sent..])
    }

    /// Takes `sent` bytes off the front; returns how many messages are sent to their end.
    pub(crate) fn advance(&mut self, sent: usize) -> u64 {
        self.sent.bytes += sent;
        self.flight.front_sent += sent;
        let mut messages = 0;
        while let Some(front) = &self.flight.front {
            if self.flight.front_sent < front.bytes.len() {
                break;
            }
            self.flight.front_sent -= front.bytes.len();
            messages += u64::from(front.messages);
            self.sent.entries += 1;
            self.flight.pop();
        }
        debug_assert!(self.flight.front.is_some() || self.flight.front_sent == 0);
        messages
    }

    /// Takes in what was queued since, behind what is left.
    pub(crate) fn load(&mut self, waiting: Vec<Entry>) {
        for entry in waiting {
            self.flight.push(entry);
        }
    }

    /// Takes in a message of which `sent` bytes are gone. Nothing is in front of it.
    pub(crate) fn begin(&mut self, entry: Entry, sent: usize) {
        debug_assert!(self.is_empty() && sent < entry.bytes.len());
        self.sent.added += entry.cost();
        self.sent.bytes += sent;
        self.flight.front_sent = sent;
        self.flight.front = Some(entry);
    }

    /// Bytes were sent that are in no entry.
    pub(crate) fn has_sent(&mut self, bytes: usize) {
        self.sent.uncharged += bytes;
    }

    /// The cost of what was taken in by [`Writer::begin`].
    pub(crate) fn added(&self) -> usize {
        self.sent.added
    }

    /// What was sent since this was asked last.
    pub(crate) fn take_sent(&mut self) -> Sent {
        std::mem::take(&mut self.sent)
    }

    /// Drops all entries of which nothing is sent; the half-sent one stays.
    pub(crate) fn drop_backlog(&mut self) -> Unsent {
        self.flight.drop_backlog()
    }

    /// What will never be sent.
    pub(crate) fn into_unsent(self) -> Unsent {
        self.flight.into_unsent()
    }
}
