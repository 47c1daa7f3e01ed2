//! What can be wrong with a run, counted by kind, and the first of each kind in
//! words. Pure.

use std::collections::BTreeMap;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// The server ended a connection between two frames.
    Closed,
    /// The server ended a connection inside a frame.
    Truncated,
    /// A connection was reset, or failed in another way.
    Broken,
    /// The server said goodbye.
    Goodbye,
    /// An error frame in the place of a reply.
    ServerError,
    /// A length that no frame can have: the boundaries are lost.
    BadLength,
    /// Checksum and body do not go together.
    BadChecksum,
    /// A reply of another length.
    WrongLength,
    /// A reply that belongs to another connection.
    WrongConnection,
    /// A reply that belongs to another request of its connection.
    WrongOrder,
    /// A reply whose bytes are not those that were sent.
    WrongContent,
    /// A reply, or an error, more than there were requests.
    Surplus,
    /// A request whose reply did not come.
    Unanswered,
}

impl Fault {
    /// The name in reports, for good.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Truncated => "truncated",
            Self::Broken => "broken",
            Self::Goodbye => "goodbye",
            Self::ServerError => "server_error",
            Self::BadLength => "bad_length",
            Self::BadChecksum => "bad_checksum",
            Self::WrongLength => "wrong_length",
            Self::WrongConnection => "wrong_connection",
            Self::WrongOrder => "wrong_order",
            Self::WrongContent => "wrong_content",
            Self::Surplus => "surplus",
            Self::Unanswered => "unanswered",
        }
    }
}

/// All that was wrong.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    kinds: BTreeMap<Fault, (u64, String)>,
}

impl Faults {
    /// Counts one; `text` is asked for the first of its kind only.
    pub(super) fn add(&mut self, fault: Fault, text: impl FnOnce() -> String) {
        self.add_many(fault, 1, text);
    }

    /// Counts some; none is nothing at all.
    pub(super) fn add_many(&mut self, fault: Fault, count: u64, text: impl FnOnce() -> String) {
        if count > 0 {
            self.kinds.entry(fault).or_insert_with(|| (0, text())).0 += count;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// Kind, how many, and the first of them in words.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Fault, u64, &str)> {
        self.kinds.iter().map(|(fault, (count, first))| (*fault, *count, first.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_counted_and_its_first_kept() {
        let mut faults = Faults::default();
        assert!(faults.is_empty());
        faults.add_many(Fault::Unanswered, 0, || unreachable!());
        assert!(faults.is_empty());
        faults.add(Fault::WrongOrder, || "first".to_owned());
        faults.add(Fault::WrongOrder, || unreachable!());
        faults.add_many(Fault::Unanswered, 5, || "gone".to_owned());
        let all: Vec<_> = faults.iter().collect();
        assert_eq!(all, [(Fault::WrongOrder, 2, "first"), (Fault::Unanswered, 5, "gone")]);
    }
}
