//! What a reload would change: the keys, by name, and which of them it can apply.
//!
//! Pure. Walks the same tables as everything else, so no key can be forgotten.

use super::model::{Config, Listen};
use super::schema::{Change, KEYS, LISTEN_KEYS};

/// The difference between the running configuration and one that was just read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// What a reload applies: `worker_processes`, `listen 127.0.0.1:7600 added`.
    pub(crate) applied: Vec<String>,
    /// What stays as it is until a restart.
    pub(crate) restart: Vec<String>,
}

/// For each listener of `new` the one of `old` with the same address, if there is one. Two with
/// the same text (port 0 may stand there twice) are matched in their order.
pub(crate) fn match_listeners(old: &[Listen], new: &[Listen]) -> Vec<Option<usize>> {
    let mut taken = vec![false; old.len()];
    new.iter()
        .map(|listen| {
            let place = old
                .iter()
                .enumerate()
                .position(|(place, other)| !taken[place] && other.address == listen.address)?;
            taken[place] = true;
            Some(place)
        })
        .collect()
}

impl Config {
    /// What is different in `new`.
    pub(crate) fn changes(&self, new: &Self) -> Changes {
        // A field is reached through `&mut`; the copies keep both untouched.
        let (mut old, mut new) = (self.clone(), new.clone());
        let mut changes = Changes::default();
        for key in KEYS {
            if key.field.write(&mut old) != key.field.write(&mut new) {
                changes.note(key.change, key.name.to_owned());
            }
        }
        let places = match_listeners(&old.listen, &new.listen);
        for (listen, place) in new.listen.iter_mut().zip(&places) {
            let address = listen.address.to_string();
            let Some(place) = place else {
                changes.note(Change::Reload, format!("listen {address} added"));
                continue;
            };
            for key in LISTEN_KEYS {
                if key.field.write(&mut old.listen[*place]) != key.field.write(listen) {
                    changes.note(key.change, format!("listen {address} {}", key.name));
                }
            }
        }
        for (place, listen) in old.listen.iter().enumerate() {
            if !places.contains(&Some(place)) {
                changes.note(Change::Reload, format!("listen {} removed", listen.address));
            }
        }
        if old.application != new.application {
            changes.note(Change::Reload, "application".to_owned());
        }
        changes
    }

    /// Puts what needs a restart back to what it is in `running`.
    pub(crate) fn keep_until_restart(&mut self, running: &Self) {
        // A field is reached through `&mut`; the copy keeps what runs untouched.
        let mut running = running.clone();
        for key in KEYS.iter().filter(|key| key.change == Change::Restart) {
            key.field.copy(&mut running, self);
        }
        let places = match_listeners(&running.listen, &self.listen);
        for (listen, place) in self.listen.iter_mut().zip(places) {
            let Some(place) = place else { continue };
            for key in LISTEN_KEYS.iter().filter(|key| key.change == Change::Restart) {
                key.field.copy(&mut running.listen[place], listen);
            }
        }
    }
}

impl Changes {
    fn note(&mut self, change: Change, name: String) {
        match change {
            Change::Reload => self.applied.push(name),
            Change::Restart => self.restart.push(name),
        }
    }
}
