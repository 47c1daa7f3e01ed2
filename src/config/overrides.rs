//! `--set key=value`: one key from the command line, over what the files say.
//!
//! Applied in order after all files, so a later one wins. Must never panic on any text.

use std::rc::Rc;

use toml::Spanned;

use super::place::{Notes, Origin, Place, printable};
use super::schema::{APPLICATION, INCLUDE, LISTEN, SECTIONS};
use super::settings::{self, LISTENERS_MAX, Listener, Merge, Settings, Twice};
use super::tree::{self, Tree};

/// Most names in a dotted key; more can only be a mistake, and each is a table in a table.
const NAMES_MAX: usize = 16;

/// Applies all overrides.
pub(super) fn apply(overrides: &[String], settings: &mut Settings, faults: &mut Notes) {
    for (index, text) in overrides.iter().enumerate() {
        // Behind all files in the order of messages.
        let order = Origin::OVERRIDES_FROM + index;
        let origin = Rc::new(Origin { order, shown: format!("--set {text}"), text: None });
        let mut merge = Merge { settings, faults, origin, twice: Twice::Replace };
        if let Err(text) = apply_one(text, &mut merge) {
            let place = merge.place(0);
            merge.faults.add(&place, text);
        }
    }
}

fn apply_one(text: &str, merge: &mut Merge<'_>) -> Result<(), String> {
    let (key, value) = text.split_once('=').ok_or("has no =, must be key=value")?;
    let key = key.trim();
    let names: Vec<&str> = key.split('.').map(str::trim).collect();
    if names.len() > NAMES_MAX || names.iter().any(|name| name.is_empty()) {
        return Err(format!("the key must be 1 to {NAMES_MAX} names with dots between them"));
    }
    let value = read_value(value);
    match names.as_slice() {
        [INCLUDE, ..] => Err("include cannot be set here, only in a file".into()),
        [LISTEN, rest @ ..] => listen(rest, value, merge),
        [APPLICATION, rest @ ..] => {
            let mut path = rest.iter().map(|name| (*name).to_owned()).collect();
            merge.application(&mut path, value);
            Ok(())
        }
        [section] if SECTIONS.contains(section) => {
            merge.section(section, value);
            Ok(())
        }
        _ => {
            let known = super::schema::KEYS.iter().find(|known| known.name == names.join("."));
            let Some(known) = known else { return Err(unknown(&names)) };
            let place = Place::start_of(&merge.origin);
            let setting = settings::Setting { place, value: value.into_inner() };
            merge.settings.keys.insert(known.name, setting);
            Ok(())
        }
    }
}

/// TOML where it is TOML, a plain string otherwise: `4`, `true`, `[…]`, but also `debug`.
fn read_value(text: &str) -> Spanned<Tree> {
    tree::parse_value(text.trim())
        .unwrap_or_else(|| Spanned::new(0..0, Tree::String(text.to_owned())))
}

fn unknown(names: &[&str]) -> String {
    match names {
        [section, rest @ ..] if SECTIONS.contains(section) => {
            settings::unknown_key(section, &rest.join("."))
        }
        _ => settings::unknown_key("", &names.join(".")),
    }
}

/// `listen=[…]`, `listen.0.address=…`, or `listen.address=…` where there is one listener.
fn listen(names: &[&str], value: Spanned<Tree>, merge: &mut Merge<'_>) -> Result<(), String> {
    if names.is_empty() {
        if matches!(value.get_ref(), Tree::Array(_)) {
            merge.settings.listeners.clear();
            merge.settings.unclear_listeners.clear();
            merge.settings.listen_place = None;
        }
        merge.listeners(value);
        return Ok(());
    }
    // Without any [[listen]] there is one, with the defaults.
    if merge.settings.listeners.is_empty() && merge.settings.listen_place.is_none() {
        merge.settings.listeners.push(Listener::new());
    }
    if merge.settings.is_partial
        && let Ok(index @ 0..LISTENERS_MAX) = names[0].parse()
    {
        // What it overrides may be in the part that could not be read.
        let listeners = &mut merge.settings.listeners;
        listeners.resize_with(listeners.len().max(index + 1), Listener::new);
    }
    let count = merge.settings.listeners.len();
    let (index, names) = match names[0].parse::<usize>() {
        Ok(index) => (index, &names[1..]),
        Err(_) if count == 1 => (0, names),
        Err(_) => return Err(format!("there are {count} listeners, write listen.0 and so on")),
    };
    if index >= count {
        let last = count.saturating_sub(1);
        return Err(format!("listen.{index} is not there, must be listen.0..=listen.{last}"));
    }
    match names {
        [] => merge.listener(index, value),
        [name] => {
            let place = merge.place(0);
            merge.listener_key(index, name, &place, value);
        }
        [..] => return Err(printable(&settings::unknown_listen_key(index, &names.join(".")))),
    }
    Ok(())
}
