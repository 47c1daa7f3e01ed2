//! `chappe.toml` → [`Config`], checked.
//!
//! Runs in the launcher and in the master, before anything is forked; workers get values.
//! It names nothing else of the crate and must never panic, whatever a file holds.
//!
//! The way of a value: `files` reads the text, `settings` merges it and knows the names,
//! `overrides` puts the command line over it, `check` reads each value through the `schema` into
//! the `model`. Each value keeps its `place`, so each message names one. `located` goes the same
//! way, and forgives the files, for commands that only have to find a running server.

mod changes;
mod check;
mod field;
mod files;
mod located;
mod model;
mod overrides;
mod place;
mod schema;
mod settings;
#[cfg(test)]
mod tests;
mod text;
mod tree;
mod value;

pub(crate) use changes::{Changes, match_listeners};
pub(crate) use located::{Located, Need, locate};
#[cfg(test)]
pub(crate) use model::WorkerProcesses;
pub(crate) use model::{
    Accept, Address, Config, CpuAffinity, DESCRIPTORS_RESERVED, Listen, LogLevel, Protocol,
    SlowReader, Timeouts, WORKER_PROCESSES_MAX,
};

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::path::{Component, Path, PathBuf, absolute};
use std::rc::Rc;

use files::{Broken, Reader};
use place::{Notes, Origin, Place};
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use settings::Settings;

/// A configuration that holds, and what to tell the operator about it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Loaded {
    /// The configuration, with absolute paths.
    pub(crate) config: Config,
    /// One line each: what is accepted but will not have the effect it names.
    pub(crate) warnings: Vec<String>,
    /// The place of each key that was written.
    places: BTreeMap<&'static str, String>,
    /// The place of each `[[listen]]` that was written.
    listener_places: Vec<Option<String>>,
    /// The place of each value of `[application]`, by its path; the table itself has none.
    application_places: BTreeMap<Vec<String>, String>,
}

impl Loaded {
    /// `[application]` as a type of the application's.
    ///
    /// # Errors
    /// One line with the place of the value that is wrong, or of the nearest one around it.
    pub(crate) fn application<T: DeserializeOwned>(&self) -> Result<T, ConfigErrors> {
        application(&self.config).map_err(|error| {
            let path: Vec<String> = error
                .path()
                .iter()
                .filter_map(|segment| match segment {
                    Segment::Map { key } => Some(key.clone()),
                    _ => None,
                })
                .collect();
            let around = (0..=path.len()).rev().map(|length| &path[..length]);
            let place = around.filter_map(|path| self.application_places.get(path)).next();
            let place = place.map_or_else(String::new, |place| format!("{place}: "));
            let name = [&["application".to_owned()], &path[..]].concat().join(".");
            let text = error.inner().message().to_owned();
            ConfigErrors::one(format!("{place}{}: {text}", place::printable(&name)))
        })
    }

    /// A mistake of `[application]` that its types cannot say.
    pub(crate) fn application_fault(&self, text: &str) -> ConfigErrors {
        let place = self.application_places.get(&[] as &[String]);
        let place = place.map_or_else(String::new, |place| format!("{place}: "));
        ConfigErrors::one(format!("{place}application: {text}"))
    }

    /// Where a key outside of `[[listen]]` was written, `FILE:LINE:COLUMN` or the
    /// override; `None` if it has its default.
    pub(crate) fn written(&self, key: &str) -> Option<&str> {
        self.places.get(key).map(String::as_str)
    }

    /// A key outside of `[[listen]]` as a message begins with it: behind its place.
    pub(crate) fn key(&self, key: &str) -> String {
        key_at(self.written(key), key)
    }

    /// As [`Loaded::key`], the address of a listener.
    pub(crate) fn listener_key(&self, index: usize) -> String {
        let place = self.listener_places.get(index).and_then(Option::as_deref);
        key_at(place, &format!("listen.{index}.address"))
    }
}

fn key_at(place: Option<&str>, key: &str) -> String {
    place.map_or_else(|| format!("{key} by default"), |place| format!("{place}: {key}"))
}

/// `[application]` of a configuration that was loaded earlier.
///
/// # Errors
/// What is wrong, and where in the table.
pub(crate) fn application<T: DeserializeOwned>(
    config: &Config,
) -> Result<T, serde_path_to_error::Error<toml::de::Error>> {
    serde_path_to_error::deserialize(toml::Value::Table(config.application.clone()))
}

/// All mistakes of a configuration, in the order of its files; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigErrors {
    lines: Vec<String>,
}

impl ConfigErrors {
    /// A mistake that only the machine shows, such as the name of an unknown user.
    pub(crate) fn one(line: String) -> Self {
        Self { lines: vec![line] }
    }
}

/// One line a mistake, without a newline at the end.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}

impl Error for ConfigErrors {}

/// Reads the file at `path` and what it includes, applies `overrides` (each `key=value`, as
/// `--set` takes them, a later one wins) and checks everything.
///
/// Relative paths inside of the configuration are put under `prefix`; `path` itself and a
/// relative `prefix` are relative to the current directory.
///
/// # Errors
/// All mistakes at once, each with its place and what is allowed. Nothing is half loaded.
pub(crate) fn load(
    path: &Path,
    prefix: &Path,
    overrides: &[String],
) -> Result<Loaded, ConfigErrors> {
    let mut settings = Settings::default();
    let mut faults = Notes::default();
    let mut warnings = Notes::default();
    Reader::new(&mut settings, &mut faults, Broken::Refuse).file(path, None);
    overrides::apply(overrides, &mut settings, &mut faults);
    files::check_listeners(&settings, &mut faults);

    let prefix = absolute_prefix(prefix, &mut faults);
    let place_of =
        |(name, setting): (&&'static str, &settings::Setting)| (*name, setting.place.to_string());
    let places = settings.keys.iter().map(place_of).collect();
    let listener_place = |index| settings.listener_place(index).map(ToString::to_string);
    let listener_places = (0..settings.listeners.len()).map(listener_place).collect();
    let application_places = settings
        .application_places
        .iter()
        .map(|(path, place)| (path.clone(), place.to_string()))
        .collect();
    let config = check::check(settings, &prefix, &mut faults, &mut warnings);
    faults.into_result()?;
    let warnings = warnings.into_lines();
    Ok(Loaded { config, warnings, places, listener_places, application_places })
}

fn absolute_prefix(prefix: &Path, faults: &mut Notes) -> PathBuf {
    // `absolute` refuses an empty path, which stands for the current directory.
    absolute(Path::new(&Component::CurDir).join(prefix)).unwrap_or_else(|error| {
        let shown = format!("prefix {}", prefix.display());
        let origin = Rc::new(Origin { order: 0, shown, text: None });
        faults.add(&Place::start_of(&origin), format!("cannot be made absolute: {error}"));
        prefix.to_owned()
    })
}
