//! What the server says of itself: `INFO`, `COMMAND`, `CONFIG GET`.

use super::answer::{Arguments, Ask, REDIS_VERSION, is_word};
use super::table::{ROWS, Row};
use chappe_engine::Served;
use chappe_sys::clock::Moment;
use chappe_topics::glob::is_like;
use std::fmt::Write as _;

/// What is known when a worker starts.
#[derive(Debug)]
pub(in crate::protocol) struct Facts {
    started: Moment,
    /// Keys and values for `CONFIG GET`, in the order of the keys.
    settings: Vec<(String, String)>,
}

impl Facts {
    /// Of a worker that starts now, with what `CONFIG GET` tells.
    pub(in crate::protocol) fn new(settings: Vec<(String, String)>) -> Self {
        Self { started: Moment::now(), settings }
    }
}

/// `INFO [section …]`.
pub(super) fn info(ask: &mut Ask<'_>, wanted: &Arguments<'_>) {
    let up = Moment::now().since(ask.resp.facts.started).as_secs();
    let (clients, pid) = (ask.resp.registry.count(), std::process::id());
    let version = env!("CARGO_PKG_VERSION");
    let bits = usize::BITS;
    let sections = [
        (
            "Server",
            format!(
                "redis_version:{REDIS_VERSION}\r\nredis_mode:standalone\r\nos:{}\r\n\
                 arch_bits:{bits}\r\nprocess_id:{pid}\r\nuptime_in_seconds:{up}\r\n\
                 uptime_in_days:{}\r\nchappe_version:{version}\r\n",
                std::env::consts::OS,
                up / 86_400,
            ),
        ),
        ("Clients", format!("connected_clients:{clients}\r\n")),
        ("Persistence", "loading:0\r\n".to_owned()),
        ("Replication", "role:master\r\nconnected_slaves:0\r\n".to_owned()),
        ("Cluster", "cluster_enabled:0\r\n".to_owned()),
        ("Keyspace", String::new()),
    ];
    let is_all = wanted.is_empty()
        || wanted.iter().any(|it| ["all", "default", "everything"].iter().any(|w| is_word(it, w)));
    let mut text = String::new();
    for (name, lines) in sections {
        if is_all || wanted.iter().any(|section| is_word(section, name)) {
            let between = if text.is_empty() { "" } else { "\r\n" };
            let written = write!(text, "{between}# {name}\r\n{lines}");
            debug_assert!(written.is_ok(), "a string takes everything");
        }
    }
    ask.out.verbatim(&text);
}

/// `COMMAND`, `COMMAND COUNT`, `COMMAND DOCS`, `COMMAND INFO`, `COMMAND LIST`.
pub(super) fn command(ask: &mut Ask<'_>, arguments: &Arguments<'_>) -> Served {
    let [subcommand, names @ ..] = arguments else {
        ask.out.array(ROWS.len());
        ROWS.iter().for_each(|row| describe(ask, row));
        return Served::Answered;
    };
    let find = |name: &[u8]| {
        let is_it = |row: &&Row| is_word(name, row.name);
        ROWS.iter().find(is_it)
    };
    if is_word(subcommand, "COUNT") {
        if !names.is_empty() {
            return ask.wrong_count("command|count");
        }
        ask.out.integer(ROWS.len());
    } else if is_word(subcommand, "DOCS") {
        let rows: Vec<&Row> = match names {
            [] => ROWS.iter().collect(),
            names => names.iter().filter_map(|name| find(name)).collect(),
        };
        ask.out.map(rows.len());
        rows.into_iter().for_each(|row| document(ask, row));
    } else if is_word(subcommand, "INFO") {
        if names.is_empty() {
            ask.out.array(ROWS.len());
            ROWS.iter().for_each(|row| describe(ask, row));
        } else {
            ask.out.array(names.len());
            for name in names {
                match find(name) {
                    Some(row) => describe(ask, row),
                    None => ask.out.null(),
                }
            }
        }
    } else if is_word(subcommand, "LIST") {
        return list(ask, names);
    } else {
        return ask.unknown_subcommand("COMMAND", subcommand);
    }
    Served::Answered
}

/// `COMMAND LIST [FILTERBY PATTERN pattern]`.
fn list(ask: &mut Ask<'_>, filter: &Arguments<'_>) -> Served {
    let pattern: Option<&[u8]> = match filter {
        [] => None,
        [by, kind, pattern] if is_word(by, "FILTERBY") && is_word(kind, "PATTERN") => Some(pattern),
        // There are no modules and no categories.
        [by, kind, _]
            if is_word(by, "FILTERBY") && (is_word(kind, "MODULE") || is_word(kind, "ACLCAT")) =>
        {
            ask.out.array(0);
            return Served::Answered;
        }
        _ => return ask.refuse("ERR", "syntax error"),
    };
    let is_wanted = |row: &&Row| pattern.is_none_or(|it| is_like(it, row.name.as_bytes()));
    let rows: Vec<_> = ROWS.iter().filter(is_wanted).collect();
    ask.out.array(rows.len());
    rows.into_iter().for_each(|row| ask.out.bulk(row.name.as_bytes()));
    Served::Answered
}

/// Name, arity, flags, first key, last key, step, categories, tips, keys, subcommands.
fn describe(ask: &mut Ask<'_>, row: &Row) {
    ask.out.array(10);
    ask.out.bulk(row.name.as_bytes());
    ask.out.integer(row.arity);
    ask.out.set(row.flags.len());
    row.flags.iter().for_each(|flag| ask.out.simple(flag));
    (0..3).for_each(|_| ask.out.integer(0));
    ask.out.set(0);
    (0..3).for_each(|_| ask.out.array(0));
}

fn document(ask: &mut Ask<'_>, row: &Row) {
    ask.out.bulk(row.name.as_bytes());
    ask.out.map(2);
    for (key, value) in [("summary", row.summary), ("group", "connection")] {
        ask.out.bulk(key.as_bytes());
        ask.out.bulk(value.as_bytes());
    }
}

/// `CONFIG GET pattern …`.
pub(super) fn config(ask: &mut Ask<'_>, arguments: &Arguments<'_>) -> Served {
    let [subcommand, patterns @ ..] = arguments else { return ask.wrong_count("config") };
    if !is_word(subcommand, "GET") {
        return ask.unknown_subcommand("CONFIG", subcommand);
    }
    if patterns.is_empty() {
        return ask.wrong_count("config|get");
    }
    if !ask.resp.is_admin {
        return ask.refuse("NOPERM", "CONFIG GET is for listeners with resp_admin");
    }
    let is_wanted =
        |(key, _): &&(String, String)| patterns.iter().any(|it| is_like(it, key.as_bytes()));
    let found: Vec<_> = ask.resp.facts.settings.iter().filter(is_wanted).collect();
    ask.out.map(found.len());
    for (key, value) in found {
        ask.out.bulk(key.as_bytes());
        ask.out.bulk(value.as_bytes());
    }
    Served::Answered
}
