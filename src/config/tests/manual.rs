//! The manual, the document and `-T` say what the code does.

use super::{Files, loaded};
use crate::config::Config;
use crate::config::field::Field;
use crate::config::schema::{Change, KEYS, Key, LISTEN_KEYS};

const MANUAL: &str = include_str!("../../../conf/chappe.toml");
const DOCUMENT: &str = include_str!("../../../docs/CONFIGURATION.md");

/// The row of a key in docs/CONFIGURATION.md.
fn row<T: Default>(key: &Key<T>, dotted: &str) -> String {
    let name = dotted.rsplit_once('.').map_or(dotted, |(_, name)| name);
    let effect = key.doc;
    let change = if key.change == Change::Reload { "reload" } else { "restart" };
    let change = if matches!(key.field, Field::Include) { "read again" } else { change };
    format!("| `{name}` | {} | `{}` | {effect} | {change} |", key.field.allowed(), key.default)
}

/// All keys with their dotted names, rows and defaults.
fn keys() -> Vec<(String, String, &'static str)> {
    let mut all: Vec<_> =
        KEYS.iter().map(|key| (key.name.to_owned(), row(key, key.name), key.default)).collect();
    all.extend(LISTEN_KEYS.iter().map(|key| {
        let dotted = format!("listen.{}", key.name);
        let row = row(key, &dotted);
        (dotted, row, key.default)
    }));
    all
}

/// The part of a text under a heading that is exactly `heading`, up to the next one.
fn part<'a>(text: &'a str, heading: &str, next: &str) -> &'a str {
    let after = if heading.is_empty() {
        text
    } else {
        let start = text.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
        &text[start + heading.len() + 1..]
    };
    after.split(next).next().unwrap_or_default()
}

#[test]
fn the_document_has_the_row_of_every_key_in_its_section() {
    let mut missing = Vec::new();
    for (dotted, row, _) in keys() {
        let heading = match dotted.split_once('.') {
            None => "## Top level".to_owned(),
            Some(("listen", _)) => "## `[[listen]]`".to_owned(),
            Some((table, _)) => format!("## `[{table}]`"),
        };
        if !part(DOCUMENT, &heading, "\n## ").lines().any(|line| line == row) {
            missing.push(format!("{heading}: {row}"));
        }
    }
    assert!(missing.is_empty(), "docs/CONFIGURATION.md lacks\n{}", missing.join("\n"));
    let rows = DOCUMENT.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, keys().len(), "a row for each key and no other");
}

#[test]
fn the_manual_sets_every_key_to_its_default_and_says_why() {
    for (dotted, _, default) in keys() {
        let (section, name) = match dotted.split_once('.') {
            None => (String::new(), dotted.as_str()),
            Some(("listen", name)) => ("[[listen]]".to_owned(), name),
            Some((table, name)) => (format!("[{table}]"), name),
        };
        let text = part(MANUAL, &section, "\n[");
        let setting = format!("{name} = {default}");
        let line = text.lines().position(|line| line == setting);
        let line = line.unwrap_or_else(|| panic!("{section}: no line {setting}"));
        let before = text.lines().nth(line.wrapping_sub(1)).unwrap_or_default();
        assert!(before.starts_with("# "), "{dotted} has no comment above it");
    }
}

#[test]
fn the_manual_gives_exactly_the_defaults() {
    let manual = loaded(MANUAL, &[]);
    assert_eq!(manual.config, loaded("", &[]).config);
    assert_eq!(manual.warnings, Vec::<String>::new());
}

#[test]
fn the_effective_configuration_reads_back_as_the_same() {
    let text = "\
worker_processes = 3
daemon = false
user = 'www:web'
pid_file = '/a \"quoted\" path\\'
worker_shutdown_timeout = '1m 1s 1ms'
[log]
level = 'trace'
rotate_size = '0'
[[listen]]
address = '[::1]:0'
[[listen]]
address = '127.0.0.1:0'
keepalive = true
receive_buffer = '3KiB'
[timeouts]
idle = '0'
[limits]
messages_per_second = 7
messages_burst = 9
[application]
name = 'x'
list = [1, 2.5, 'three', { four = 4 }]
when = 1979-05-27T07:32:00Z
[application.deep.er]
'a key' = [[1], []]
[[application.many]]
x = 1
";
    for text in ["", text] {
        let config = loaded(text, &[]).config;
        let written = config.to_toml();
        assert_eq!(loaded(&written, &[]).config, config, "{written}");
        let elsewhere = Files::new(&[("chappe.toml", &written)]);
        let path = elsewhere.path("chappe.toml");
        let again = crate::config::load(&path, path.parent().unwrap(), &[]).unwrap().config;
        assert_eq!(again, config, "absolute paths stay where they are");
    }
}

#[test]
fn the_effective_configuration_shows_every_key_and_what_was_changed() {
    let written = loaded("worker.handler_threads = 3", &[]).config.to_toml();
    for (dotted, ..) in keys() {
        let name = dotted.rsplit_once('.').map_or(dotted.as_str(), |(_, name)| name);
        assert!(written.lines().any(|line| line.starts_with(&format!("{name} = "))), "{dotted}");
    }
    let threads = "handler_threads = 3                    # threads of one worker that run message \
                   handlers; the default is 2";
    assert!(written.lines().any(|line| line == threads), "{written}");
    assert!(!Config::default().to_toml().contains("the default is"));
}
