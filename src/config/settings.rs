//! What was written, merged from all files and overrides, with the place of each value.
//!
//! Names are sorted out here: unknown ones, tables where a value belongs, a key set twice.
//! Values are not looked at; that is `check`'s part. Must never panic on any tree.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use toml::{Spanned, Table, Value};

use super::field::show_found;
use super::place::{Notes, Origin, Place, printable};
use super::schema::{self, APPLICATION, INCLUDE, LISTEN, LISTEN_KEYS, SECTIONS};
use super::tree::{Branches, Tree};

/// Most listeners of a server.
pub(super) const LISTENERS_MAX: usize = 64;

/// How deep tables and arrays may nest in `[application]`. Far below the parser's own limit, so
/// that what one form of writing allows can be written in any other.
pub(super) const APPLICATION_DEPTH_MAX: usize = 32;

/// A value as it was written, and where it stands.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) place: Place,
    pub(super) value: Tree,
}

/// The settings of one listener, by the names of its table.
pub(super) type Listener = BTreeMap<&'static str, Setting>;

/// What to do with a key that is set already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Twice {
    /// Two files disagree: a mistake.
    Refuse,
    /// An override is there to win.
    Replace,
}

/// Everything that was written.
#[derive(Debug, Default)]
pub(super) struct Settings {
    /// By dotted key.
    pub(super) keys: BTreeMap<&'static str, Setting>,
    pub(super) listeners: Vec<Listener>,
    /// Listeners with an unknown key: it may be their address with a slip in it.
    pub(super) unclear_listeners: BTreeSet<usize>,
    /// Where `listen` was first named: an empty list is a mistake, none at all is not.
    pub(super) listen_place: Option<Place>,
    pub(super) application: Table,
    pub(super) application_places: BTreeMap<Vec<String>, Place>,
    /// A file could not be read as a whole, and what was written there may be missing.
    pub(super) is_partial: bool,
}

impl Settings {
    /// Where the address of a listener was written, or else its table; `None`: it has the
    /// default.
    pub(super) fn listener_place(&self, index: usize) -> Option<&Place> {
        let listener = self.listeners.get(index);
        let written = listener.and_then(|listener| listener.get("address"));
        // Without an address the table's other keys tell where it stands.
        let any = || listener.and_then(|listener| listener.values().next());
        let place = written.or_else(any).map(|setting| &setting.place);
        place.or(self.listen_place.as_ref())
    }
}

/// Puts the tree of one origin into [`Settings`].
pub(super) struct Merge<'a> {
    pub(super) settings: &'a mut Settings,
    pub(super) faults: &'a mut Notes,
    pub(super) origin: Rc<Origin>,
    pub(super) twice: Twice,
}

impl Merge<'_> {
    pub(super) fn place(&self, offset: usize) -> Place {
        Place { origin: Rc::clone(&self.origin), offset }
    }

    /// Merges a whole file. Gives back the value of `include`, which is the reader's.
    pub(super) fn root(&mut self, root: Branches) -> Option<Spanned<Tree>> {
        let mut include = None;
        for (name, value) in root {
            match name.get_ref().as_str() {
                INCLUDE => include = Some(value),
                LISTEN => self.listeners(value),
                APPLICATION => self.application(&mut Vec::new(), value),
                section if SECTIONS.contains(&section) => {
                    let section = section.to_owned();
                    self.section(&section, value);
                }
                _ => self.key("", &name, value),
            }
        }
        include
    }

    /// Merges one of [`SECTIONS`].
    pub(super) fn section(&mut self, section: &str, value: Spanned<Tree>) {
        let place = self.place(value.span().start);
        match value.into_inner() {
            Tree::Table(table) => {
                for (name, value) in table {
                    self.key(section, &name, value);
                }
            }
            other => self.faults.add(&place, wrong_kind(section, &other, "a table")),
        }
    }

    fn key(&mut self, section: &str, name: &Spanned<String>, value: Spanned<Tree>) {
        let dotted = join(section, name.get_ref());
        let Some(key) = schema::KEYS.iter().find(|key| key.name == dotted) else {
            let place = self.place(name.span().start);
            self.faults.add(&place, unknown_key(section, name.get_ref()));
            return;
        };
        let place = self.place(value.span().start);
        if let (Some(earlier), Twice::Refuse) = (self.settings.keys.get(key.name), self.twice) {
            self.faults.add(&place, set_twice(key.name, &earlier.place));
            return;
        }
        self.settings.keys.insert(key.name, Setting { place, value: value.into_inner() });
    }

    /// Appends the listeners of an array.
    pub(super) fn listeners(&mut self, value: Spanned<Tree>) {
        let place = self.place(value.span().start);
        let array = match value.into_inner() {
            Tree::Array(array) => array,
            other => {
                let text = wrong_kind(LISTEN, &other, "an array of tables; write [[listen]]");
                self.faults.add(&place, text);
                return;
            }
        };
        self.settings.listen_place.get_or_insert(place);
        for table in array {
            let index = self.settings.listeners.len();
            self.settings.listeners.push(Listener::new());
            self.listener(index, table);
        }
    }

    /// Sets the keys of a table in one listener.
    pub(super) fn listener(&mut self, index: usize, value: Spanned<Tree>) {
        let place = self.place(value.span().start);
        match value.into_inner() {
            Tree::Table(table) => {
                for (name, value) in table {
                    let name_place = self.place(name.span().start);
                    self.listener_key(index, name.get_ref(), &name_place, value);
                }
            }
            other => {
                self.faults.add(&place, wrong_kind(&format!("listen.{index}"), &other, "a table"));
            }
        }
    }

    /// Sets one key of a listener. A table names a key once, so nothing can clash here.
    pub(super) fn listener_key(
        &mut self,
        index: usize,
        name: &str,
        name_place: &Place,
        value: Spanned<Tree>,
    ) {
        let Some(key) = LISTEN_KEYS.iter().find(|key| key.name == name) else {
            self.faults.add(name_place, unknown_listen_key(index, name));
            self.settings.unclear_listeners.insert(index);
            return;
        };
        let place = self.place(value.span().start);
        if let Some(listener) = self.settings.listeners.get_mut(index) {
            listener.insert(key.name, Setting { place, value: value.into_inner() });
        }
    }

    /// Merges the application's table, or one of its values when `path` is not empty.
    pub(super) fn application(&mut self, path: &mut Vec<String>, value: Spanned<Tree>) {
        let place = self.place(value.span().start);
        if path.len() + value.get_ref().depth() > APPLICATION_DEPTH_MAX {
            let text = format!("{APPLICATION} nests deeper than {APPLICATION_DEPTH_MAX} levels");
            self.faults.add(&place, text);
            return;
        }
        match value.into_inner() {
            Tree::Table(table) => {
                if path.is_empty() {
                    self.settings.application_places.entry(Vec::new()).or_insert(place.clone());
                }
                if !path.is_empty() && !self.application_put(path, &place, None) {
                    return;
                }
                for (name, value) in table {
                    path.push(name.into_inner());
                    self.application(path, value);
                    path.pop();
                }
            }
            other if path.is_empty() => {
                self.faults.add(&place, wrong_kind(APPLICATION, &other, "a table"));
            }
            other => match other.to_value() {
                Ok(value) => {
                    self.application_put(path, &place, Some(value));
                }
                Err(text) => {
                    let name = format!("{APPLICATION}.{}", path.join("."));
                    self.faults.add(&place, format!("{} {text}", printable(&name)));
                }
            },
        }
    }

    /// Puts a value at `path`, or an empty table where `value` is `None` and none is there yet.
    fn application_put(&mut self, path: &[String], place: &Place, value: Option<Value>) -> bool {
        let Some((last, parents)) = path.split_last() else { return false };
        let mut table = &mut self.settings.application;
        for parent in parents {
            let entry = table.entry(parent.clone()).or_insert_with(|| Value::Table(Table::new()));
            if !entry.is_table() && self.twice == Twice::Replace {
                *entry = Value::Table(Table::new());
            }
            // A file's parents are put before their children, so this is always a table.
            let Value::Table(inner) = entry else { return false };
            table = inner;
        }
        let there = table.get(last);
        let both_tables = value.is_none() && there.is_some_and(Value::is_table);
        if there.is_some() && !both_tables && self.twice == Twice::Refuse {
            if let Some(earlier) = self.settings.application_places.get(path) {
                let name = format!("{APPLICATION}.{}", path.join("."));
                self.faults.add(place, set_twice(&printable(&name), earlier));
            }
            return false;
        }
        if !both_tables {
            table.insert(last.clone(), value.unwrap_or_else(|| Value::Table(Table::new())));
            self.settings.application_places.insert(path.to_vec(), place.clone());
        }
        true
    }
}

pub(super) fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

fn wrong_kind(name: &str, found: &Tree, wanted: &str) -> String {
    format!("{name} is {}, must be {wanted}", show_found(found))
}

fn set_twice(name: &str, earlier: &Place) -> String {
    format!("{name} is set twice, first at {earlier}")
}

/// `worker.handler_thread is unknown, did you mean worker.handler_threads?`
pub(super) fn unknown_key(section: &str, name: &str) -> String {
    let dotted = shorten(&printable(&join(section, name)));
    let last_of = |key: &'static str| key.rsplit_once('.').map_or(key, |(_, last)| last);
    let mut here: Vec<&str> = schema::keys_of(section).map(|key| last_of(key.name)).collect();
    if section.is_empty() {
        here.extend(SECTIONS);
        here.extend([LISTEN, APPLICATION]);
    }
    if let Some(meant) = schema::closest(name, here.iter().copied()) {
        return format!("{dotted} is unknown, did you mean {}?", join(section, meant));
    }
    if SECTIONS.contains(&name) {
        return format!("{dotted} is unknown, did you mean [{name}]?");
    }
    // The right name in the wrong table, or a name with a slip in it anywhere.
    if let Some(key) = schema::KEYS.iter().find(|key| last_of(key.name) == name) {
        return format!("{dotted} is unknown, did you mean {}?", key.name);
    }
    if LISTEN_KEYS.iter().any(|key| key.name == name) {
        return format!("{dotted} is unknown, did you mean {name} of [[listen]]?");
    }
    let place = if section.is_empty() { "the top level".into() } else { format!("[{section}]") };
    format!("{dotted} is unknown, {place} has {}", here.join(", "))
}

pub(super) fn unknown_listen_key(index: usize, name: &str) -> String {
    let known = || LISTEN_KEYS.iter().map(|key| key.name);
    let dotted = shorten(&printable(&format!("listen.{index}.{name}")));
    match schema::closest(name, known()) {
        Some(meant) => format!("{dotted} is unknown, did you mean listen.{index}.{meant}?"),
        None => {
            let known: Vec<&str> = known().collect();
            format!("{dotted} is unknown, [[listen]] has {}", known.join(", "))
        }
    }
}

/// A name from outside may be as long as the file.
fn shorten(name: &str) -> String {
    match name.char_indices().nth(100) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}
