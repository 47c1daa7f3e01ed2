//! Words: names of events in logs are those of the documentation, and words that a reader
//! stumbles over stay out of code, scripts and documents.

use super::{all_sources, is_of_library, root};
use std::fs;
use std::path::{Path, PathBuf};

/// The folders and files that people read.
const READ: &[&str] =
    &["benches", "conf", "crates", "docs", "examples", "scripts", "src", "tests", "README.md"];

/// Not to be written, and what to write instead.
const FORBIDDEN: &[(&str, &str)] = &[
    ("whoever", "name the process, the thread or the person"),
    ("of who", "of a peer that, of a process that"),
    ("for ever", "forever"),
    ("complain", "print, warn, report"),
    ("complaint", "error, warning"),
    ("what became of", "name the outcome"),
    ("what becomes of", "what happens to"),
    ("what came of", "name the outcome"),
    ("whatever came of", "whether or not it succeeded"),
    ("is no message", "is not a message, is invalid"),
    ("that are none", "say what they are not"),
    ("shall", "must, should, will"),
    ("anew", "again; reopen, restart"),
    ("meanwhile", "in the meantime, until then, at the same time"),
    ("likewise", "repeat the noun"),
    ("See the module", "say what the type is"),
    ("/// The same", "repeat the noun: a tooltip has no line above"),
    ("one a connection", "one per connection"),
    ("one a worker", "one per worker"),
    ("told of", "logged, reported"),
];

/// The names of events: `target: "worker.ready"`, or what an encoder of lines is given.
fn events(text: &str) -> Vec<String> {
    let quoted = |start: &str| {
        let parts = text.split(start).skip(1);
        let names: Vec<_> =
            parts.filter_map(|part| Some(part.split_once('"')?.0.to_owned())).collect();
        names
    };
    let all = [quoted("target: \""), quoted("encode_warning(\"")].concat();
    all.into_iter().filter(|name| name.contains('.')).collect()
}

/// Words of the list in a text, each with its line.
fn forbidden(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let lower = line.to_lowercase();
        for (word, instead) in FORBIDDEN {
            // One with a capital begins a sentence.
            let line = if word.contains(char::is_uppercase) { line } else { &*lower };
            // Names of functions are read, too: an underscore ends a word.
            let is_whole = |(start, _): (usize, &str)| {
                let is_letter = char::is_alphanumeric;
                !line[..start].ends_with(is_letter)
                    && !line[start + word.len()..].starts_with(is_letter)
            };
            if line.match_indices(word).any(is_whole) {
                found.push(format!("{}: `{word}`: {instead}", at + 1));
            }
        }
    }
    found
}

fn files() -> Vec<PathBuf> {
    let mut waiting: Vec<PathBuf> = READ.iter().map(|name| root().join(name)).collect();
    let mut files = Vec::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("a folder of the repository");
            waiting.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else if !is_exempt(&path) {
            files.push(path);
        }
    }
    files
}

/// This list itself, patches, which quote code, and programs that others have written.
fn is_exempt(path: &Path) -> bool {
    let below = path.strip_prefix(root()).expect("it is below");
    below == Path::new("tests/tidy/vocabulary.rs")
        || below.extension().is_some_and(|extension| extension == "patch" || extension == "pyc")
        || below.starts_with("benches/peers")
}

#[test]
fn each_event_of_the_logs_is_documented() {
    let mut logged: Vec<String> = Vec::new();
    for source in all_sources().iter().filter(|source| is_of_library(&source.path)) {
        let text = fs::read_to_string(root().join(&source.path)).expect("a source file");
        // Documentation names events of applications.
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        logged.extend(events(&code.map(|line| format!("{line}\n")).collect::<String>()));
    }
    assert!(logged.len() > 30, "the events were not found: {logged:?}");
    let text = fs::read_to_string(root().join("docs/OPERATIONS.md")).expect("a document");
    let missing: Vec<_> =
        logged.iter().filter(|name| !text.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "docs/OPERATIONS.md lacks {missing:?}");
    let table = text.split_once("| event | is |").expect("the table of events").1;
    let table = table.split_once("\n\n").expect("its end").0;
    let documented = table.split('`').skip(1).step_by(2).filter(|name| name.contains('.'));
    let gone: Vec<_> =
        documented.filter(|name| !logged.iter().any(|event| event == name)).collect();
    assert!(gone.is_empty(), "docs/OPERATIONS.md has {gone:?}, which nothing logs");
}

#[test]
fn words_that_readers_stumble_over_stay_out() {
    let mut found = Vec::new();
    for path in files() {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        found.extend(forbidden(&text).iter().map(|what| format!("{}:{what}", path.display())));
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn the_rules_of_words_bite() {
    assert_eq!(
        forbidden("// It shall wait.\n/// The same again."),
        [
            "1: `shall`: must, should, will",
            "2: `/// The same`: repeat the noun: a tooltip has no line above"
        ]
    );
    assert_eq!(forbidden("marshall, shallow, the same again"), [""; 0]);
    assert_eq!(forbidden("fn whoever_calls()").len(), 1);
    assert_eq!(events("log::info!(target: \"a.b\", \"c\"); target: \"d\";"), ["a.b"]);
}
