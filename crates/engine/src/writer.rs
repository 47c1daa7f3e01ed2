//! A queued message, and the right to write to a socket.
//!
//! There is one [`Writer`] for each connection. It cannot be copied, and it holds the socket
//! and what is to be sent; the connection's state hands it to one thread at a time. The
//! thread that takes it continues where the last one stopped.

use crate::engine::Engine;
use crate::flush::Socket;
use crate::queue::Queue;
use std::io::IoSlice;
use std::num::NonZeroU32;
use std::sync::Arc;

/// What an entry takes beside its bytes: its place in the queue (which grows by
/// doubling) and the heads of the allocations behind it. Counted as queued bytes, or a
/// peer that is sent many small replies would cost twenty times its limit.
pub const ENTRY_COST: usize = 128;

/// Some whole messages, encoded. Immutable, so that one message can go to many
/// connections that share its memory.
#[derive(Clone, Debug)]
pub struct Entry {
    body: Body,
    /// One more than there are, so that an `Option` of an entry takes no more than it.
    messages: NonZeroU32,
    /// How much of it is sent: nothing, unless it is the oldest.
    sent: u32,
}

#[derive(Clone, Debug)]
enum Body {
    /// The outbox total is charged for it with each entry.
    Own(Arc<[u8]>),
    /// Once for all.
    Shared(Arc<Shared>),
}

/// Bytes of the outbox total, released when the last entry is gone.
struct Shared {
    bytes: Arc<[u8]>,
    engine: Arc<Engine>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.engine.outbox_total.release(self.bytes.len());
    }
}

impl Entry {
    /// `bytes` are never empty and hold this many messages.
    #[must_use]
    pub fn new((bytes, messages): (Arc<[u8]>, u32)) -> Self {
        debug_assert!(!bytes.is_empty());
        Self::with(Body::Own(bytes), messages)
    }

    /// As [`Entry::new`], for [`push_shared`](crate::Mailbox::push_shared) to many connections:
    /// the outbox total is charged for the bytes once, however many have them, and each
    /// connection's own limit is with all of them. If the total has no room it is as any entry.
    #[must_use]
    pub fn shared((bytes, messages): (Arc<[u8]>, u32), engine: &Arc<Engine>) -> Self {
        if !engine.outbox_total.try_charge(bytes.len()) {
            return Self::new((bytes, messages));
        }
        let shared = Shared { bytes, engine: Arc::clone(engine) };
        Self::with(Body::Shared(Arc::new(shared)), messages)
    }

    fn with(body: Body, messages: u32) -> Self {
        Self { body, messages: NonZeroU32::MIN.saturating_add(messages), sent: 0 }
    }

    /// All of them, sent or not.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match &self.body {
            Body::Own(bytes) => bytes,
            Body::Shared(shared) => &shared.bytes,
        }
    }

    /// Bytes charged against the limit of a connection.
    #[must_use]
    pub fn cost(&self) -> usize {
        self.bytes().len() + ENTRY_COST
    }

    /// Bytes that the outbox total is charged with for this entry.
    pub(crate) fn charged(&self) -> usize {
        if self.is_shared() { ENTRY_COST } else { self.cost() }
    }

    fn is_shared(&self) -> bool {
        matches!(self.body, Body::Shared(_))
    }

    /// What is not sent and charged once for all.
    pub(crate) fn unsent_shared(&self) -> usize {
        if self.is_shared() { self.unsent().len() } else { 0 }
    }

    /// How many messages these are, for the counters.
    #[must_use]
    pub fn messages(&self) -> u32 {
        self.messages.get() - 1
    }

    /// Its end was not sent; the peer waits for it.
    fn is_begun(&self) -> bool {
        self.sent > 0
    }

    fn unsent(&self) -> &[u8] {
        &self.bytes()[self.sent as usize..]
    }
}

/// What is to be sent, the oldest first.
pub(crate) type Entries = Queue<Entry>;

impl Entries {
    /// Takes all entries of which nothing is sent. The one that is half sent stays: without
    /// its rest the peer could not tell where the next message begins.
    pub(crate) fn take_unbegun(&mut self) -> Self {
        if self.first().is_some_and(Entry::is_begun) {
            self.split_first()
        } else {
            std::mem::take(self)
        }
    }
}

/// The right to write to a connection's socket, and what is in flight on it.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) socket: Arc<dyn Socket>,
    pub(crate) entries: Entries,
    pub(crate) sent: Sent,
}

/// What was sent since the writer was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Bytes of entries.
    pub(crate) bytes: usize,
    /// Of these, what is charged once for all.
    pub(crate) shared: usize,
    /// Entries sent to their end.
    pub(crate) entries: usize,
    /// Bytes that were in no entry: the outbox was not charged for them.
    pub(crate) uncharged: usize,
    /// The cost of what was taken in since, for which it is to be charged.
    pub(crate) added: usize,
}

impl Writer {
    pub(crate) fn new(socket: Arc<dyn Socket>, entries: Entries) -> Self {
        Self { socket, entries, sent: Sent::default() }
    }

    /// Points `slices` at the oldest unsent bytes, `bytes_max` at most. Returns how many
    /// slices are used and how many bytes they are.
    pub(crate) fn fill<'a>(
        &'a self,
        slices: &mut [IoSlice<'a>],
        bytes_max: usize,
    ) -> (usize, usize) {
        let (mut used, mut bytes) = (0, 0);
        for (slice, entry) in slices.iter_mut().zip(self.entries.iter()) {
            let left = entry.unsent();
            let left = &left[..left.len().min(bytes_max - bytes)];
            if left.is_empty() {
                break;
            }
            *slice = IoSlice::new(left);
            used += 1;
            bytes += left.len();
        }
        (used, bytes)
    }

    /// Whether there is one entry only: it needs no list of slices.
    pub(crate) fn alone(&self) -> Option<&[u8]> {
        self.entries.first().filter(|_| self.entries.has_one()).map(Entry::unsent)
    }

    /// Takes `sent` bytes off the front; returns how many messages are sent to their end.
    pub(crate) fn advance(&mut self, mut sent: usize) -> u64 {
        self.sent.bytes += sent;
        let mut messages = 0;
        while let Some(front) = self.entries.first_mut() {
            let left = front.unsent().len();
            self.sent.shared += front.unsent_shared().min(sent);
            if sent < left {
                // Within the entry, whose length was a u32 when the rest of it was sent.
                front.sent += u32::try_from(sent).expect("one call sends less");
                return messages;
            }
            sent -= left;
            messages += u64::from(front.messages());
            self.sent.entries += 1;
            self.entries.pop();
        }
        debug_assert_eq!(sent, 0);
        messages
    }

    /// Takes in a message of which `sent` bytes are gone. Nothing is in front of it.
    pub(crate) fn begin(&mut self, mut entry: Entry, sent: usize) {
        debug_assert!(self.entries.is_empty() && sent < entry.bytes().len());
        debug_assert!(!entry.is_shared(), "it was charged for with each entry");
        self.sent.added += entry.cost();
        self.sent.bytes += sent;
        entry.sent = u32::try_from(sent).expect("one call sends less");
        self.entries.push(entry);
    }
}

#[cfg(all(test, not(loom)))]
#[path = "shared_tests.rs"]
pub(crate) mod tests;
