//! The RESP connections of a worker: what `CLIENT` tells of them.

use chappe_engine::Mailbox;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

/// The longest name of a connection or of its library.
const NAME_BYTES_MAX: usize = 512;

/// What a client has said of itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Card {
    pub(super) name: Box<[u8]>,
    pub(super) library: Box<[u8]>,
    pub(super) version: Box<[u8]>,
}

#[derive(Debug)]
struct Person {
    mailbox: Weak<Mailbox>,
    /// Most have said nothing.
    card: Option<Box<Card>>,
}

/// All of them, by id. No lock of a connection is held inside of this one.
#[derive(Debug, Default)]
pub(super) struct Registry(Mutex<BTreeMap<u64, Person>>);

impl Registry {
    pub(super) fn add(&self, mailbox: &Arc<Mailbox>) {
        let person = Person { mailbox: Arc::downgrade(mailbox), card: None };
        self.0.lock().insert(mailbox.id(), person);
    }

    pub(super) fn remove(&self, id: u64) {
        self.0.lock().remove(&id);
    }

    pub(super) fn count(&self) -> usize {
        self.0.lock().len()
    }

    /// What this one has said.
    pub(super) fn card(&self, id: u64) -> Card {
        let people = self.0.lock();
        people.get(&id).and_then(|person| person.card.as_deref()).cloned().unwrap_or_default()
    }

    /// Changes what this one has said.
    pub(super) fn write(&self, id: u64, write: impl FnOnce(&mut Card)) {
        if let Some(person) = self.0.lock().get_mut(&id) {
            write(person.card.get_or_insert_default());
        }
    }

    /// This one has said nothing.
    pub(super) fn forget(&self, id: u64) {
        if let Some(person) = self.0.lock().get_mut(&id) {
            person.card = None;
        }
    }

    /// All that are not gone.
    pub(super) fn all(&self) -> Vec<(Arc<Mailbox>, Card)> {
        let people = self.0.lock();
        let all = people.values().filter_map(|person| {
            let card = person.card.as_deref().cloned().unwrap_or_default();
            Some((person.mailbox.upgrade()?, card))
        });
        all.collect()
    }
}

/// What Redis takes as a name, and not a very long one.
pub(super) fn is_name(name: &[u8]) -> bool {
    name.len() <= NAME_BYTES_MAX && name.iter().all(u8::is_ascii_graphic)
}
