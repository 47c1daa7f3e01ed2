//! The effective configuration as TOML: what `-T` prints.
//!
//! Every key stands there, in the order of the manual, each with a word about what it does and,
//! where it was changed, its default;
//! reading the text gives the same configuration. Pure.

use std::fmt::Write as _;

use super::model::Config;
use super::schema::{self, APPLICATION, Change, INCLUDE, KEYS, Key, LISTEN_KEYS, SECTIONS};

/// Where the comments begin, in characters.
const COMMENT_COLUMN: usize = 38;

impl Config {
    /// The whole configuration as TOML, defaults included. [`load`](super::load) reads it back
    /// to an equal one, wherever the prefix is, as long as its paths are UTF-8.
    pub(crate) fn to_toml(&self) -> String {
        // A field is reached through `&mut`; the copy keeps `self` untouched.
        let mut config = self.clone();
        let mut text = String::new();
        for key in schema::keys_of("") {
            line(&mut text, key, key.name, &mut config);
        }
        for section in SECTIONS {
            let _ = writeln!(text, "\n[{section}]");
            for key in schema::keys_of(section) {
                let name = key.name.rsplit_once('.').map_or(key.name, |(_, name)| name);
                line(&mut text, key, name, &mut config);
            }
            if *section == "log" {
                for listen in &mut config.listen {
                    text.push_str("\n[[listen]]\n");
                    for key in LISTEN_KEYS {
                        line(&mut text, key, key.name, listen);
                    }
                }
            }
        }
        text.push('\n');
        text.push_str(&application(&config.application));
        text
    }

    /// Each key outside of `[application]` by its dotted name, with its value, in the order of
    /// the names. A listener's have its number in the name.
    pub(crate) fn flat(&self) -> Vec<(String, String)> {
        let mut config = self.clone();
        let plain = |written: String| match written.parse() {
            Ok(toml::Value::String(text)) => text,
            _ => written,
        };
        let mut keys: Vec<_> = (KEYS.iter().filter(|key| key.name != INCLUDE))
            .map(|key| (key.name.to_owned(), plain(key.field.write(&mut config))))
            .collect();
        for (nth, listen) in config.listen.iter_mut().enumerate() {
            let name = |key: &Key<_>| format!("listen.{nth}.{}", key.name);
            keys.extend(LISTEN_KEYS.iter().map(|key| (name(key), plain(key.field.write(listen)))));
        }
        keys.sort();
        keys
    }
}

fn line<T: Default>(text: &mut String, key: &Key<T>, name: &str, target: &mut T) {
    let setting = format!("{name} = {}", key.field.write(target));
    let mut comment = key.doc.to_owned();
    if key.change == Change::Restart {
        comment.push_str("; a change needs a restart");
    }
    if !key.is_default(target) {
        let _ = write!(comment, "; the default is {}", key.default);
    }
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{setting:COMMENT_COLUMN$} # {comment}");
}

fn application(table: &toml::Table) -> String {
    let mut root = toml::Table::new();
    root.insert(APPLICATION.into(), toml::Value::Table(table.clone()));
    toml::to_string(&root).expect("a table of TOML values is TOML")
}
