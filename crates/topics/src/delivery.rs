//! Messages on their way to the subscribers of a worker.
//!
//! Those of one topic that are there already, with no message of another one between them that has
//! a subscriber here, go together: each subscriber is handed all of them at once. So a worker that
//! is behind has less to do for each message, and one that is not delivers each as it comes.

use crate::name::{Filter, Topic};
use crate::record::{Message, Record};

/// Messages that go together.
const MESSAGES_MAX: usize = 64;

/// Messages of one topic, in their order. At least one.
#[derive(Clone, Copy, Debug)]
pub struct Messages<'a> {
    /// Their records, end to end.
    records: &'a [u8],
    places: &'a [Place],
}

/// Of one of them.
#[derive(Clone, Copy, Debug)]
struct Place {
    offset: u64,
    /// Where its record ends.
    end: usize,
}

impl<'a> Messages<'a> {
    /// The offset of the first one.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.places.first().map_or(0, |place| place.offset)
    }

    /// That of the last one.
    pub(crate) fn last(&self) -> u64 {
        self.places.last().map_or(0, |place| place.offset)
    }

    /// How many they are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.places.len()
    }

    /// Each with its offset.
    ///
    /// # Panics
    /// Never: they were read before.
    pub fn each(&self) -> impl Iterator<Item = (u64, Message<'a>)> {
        let begins = std::iter::once(0).chain(self.places.iter().map(|place| place.end));
        let each = begins.zip(self.places);
        each.map(|(begin, &Place { offset, end })| {
            let record = Record::read(&self.records[begin..end]).expect("it was read before");
            (offset, record.request.message)
        })
    }
}

/// Messages, and for whom they are.
#[derive(Clone, Copy, Debug)]
pub struct Delivered<'a> {
    /// The subscription that matches.
    pub filter: &'a Filter,
    /// How the subscriber wants its messages.
    pub flags: u8,
    /// How many it has missed before these.
    pub lost: u64,
    /// What was published.
    pub messages: Messages<'a>,
}

/// Messages that are being delivered, and to whom.
#[derive(Debug, Default)]
pub(crate) struct Delivery {
    records: Vec<u8>,
    places: Vec<Place>,
    topic: String,
    /// The cells they are for, the last one first.
    pub(crate) cells: Vec<u32>,
    /// Of the last cell: subscribers that have had them.
    pub(crate) done: usize,
}

impl Delivery {
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(crate) fn messages(&self) -> Messages<'_> {
        Messages { records: &self.records, places: &self.places }
    }

    /// The first one.
    pub(crate) fn begin(&mut self, offset: u64, topic: Topic<'_>, record: &[u8]) {
        self.clear();
        self.topic.push_str(topic.raw());
        self.add(offset, record);
    }

    /// Whether a message of this topic, whose record is so long, may go with the others. With more
    /// than one subscription that matches, a connection may get each message for each of them,
    /// and message for message: then it may not.
    pub(crate) fn takes(&self, topic: Topic<'_>, bytes: usize, bytes_max: usize) -> bool {
        self.cells.len() <= 1
            && self.places.len() < MESSAGES_MAX
            && self.records.len() + bytes <= bytes_max
            && self.topic == topic.raw()
    }

    pub(crate) fn add(&mut self, offset: u64, record: &[u8]) {
        self.records.extend_from_slice(record);
        self.places.push(Place { offset, end: self.records.len() });
    }

    /// All have had them.
    pub(crate) fn clear(&mut self) {
        self.records.clear();
        self.places.clear();
        self.topic.clear();
        self.cells.clear();
        self.done = 0;
    }
}
