//! Documents name files, functions and sections, and nothing but a test notices when one of
//! these is renamed. Each rule is a function of text, as in the other files of this folder.

use super::rust_text::is_name;
use super::{EVERYTHING, IMPORTS, all_sources, root};
use std::fs;
use std::path::{Path, PathBuf};

/// The folders whose paths documents name.
const FOLDERS: &[&str] =
    &["benches/", "conf/", "crates/", "docs/", "examples/", "scripts/", "src/", "tests/"];

/// What comes before the name of an item where it is defined.
const DEFINED_BY: &[&str] =
    &["fn ", "struct ", "enum ", "trait ", "type ", "const ", "static ", "mod "];

struct Document {
    /// Below the repository.
    path: String,
    text: String,
}

/// `[text](target)`.
struct Link<'a> {
    text: &'a str,
    target: &'a str,
}

/// The folder of what is no text.
const PICTURES: &str = "pictures";

fn documents() -> Vec<Document> {
    let mut paths = vec!["README.md".to_owned(), "CHANGELOG.md".to_owned()];
    for entry in fs::read_dir(root().join("docs")).expect("docs") {
        let name = entry.expect("an entry").file_name().display().to_string();
        if name != PICTURES {
            paths.push(format!("docs/{name}"));
        }
    }
    let read = |path: String| {
        let text = fs::read_to_string(root().join(&path)).expect("a document");
        Document { path, text }
    };
    paths.into_iter().map(read).collect()
}

/// The text without fenced blocks, line by line, so that line numbers stay.
fn prose(text: &str) -> String {
    let mut is_fenced = false;
    let line = |line: &str| {
        let is_fence = line.trim_start().starts_with("```");
        is_fenced ^= is_fence;
        if is_fence || is_fenced { "\n".to_owned() } else { format!("{line}\n") }
    };
    text.lines().map(line).collect()
}

fn links(prose: &str) -> Vec<Link<'_>> {
    let link = |(at, _)| {
        let before: &str = &prose[..at];
        let after: &str = &prose[at + 2..];
        let text = &before[before.rfind('[')? + 1..];
        Some(Link { text, target: &after[..after.find(')')?] })
    };
    prose.match_indices("](").filter_map(link).collect()
}

/// What stands between backticks.
fn code_spans(prose: &str) -> impl Iterator<Item = &str> {
    prose.split('`').skip(1).step_by(2)
}

/// The anchor that a heading gets on the usual hosts.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

fn has_section(text: &str, wanted: &str) -> bool {
    let heading = |line: &str| {
        let title = line.trim_start_matches('#');
        title.len() < line.len() && anchor(title.trim()) == wanted
    };
    prose(text).lines().any(heading)
}

/// Whether a source file defines an item of this name, or has a variant or field of it.
fn defines(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let (before, after) = (&code[..at], &code[at + name.len()..]);
        let is_whole = !before.ends_with(is_name) && !after.starts_with(is_name);
        let is_item = DEFINED_BY.iter().any(|keyword| before.ends_with(keyword));
        let begins_line = before.rsplit('\n').next().is_some_and(|line| {
            line.trim_start_matches("pub(crate) ").trim_start_matches("pub ").trim().is_empty()
        });
        is_whole && (is_item || begins_line && after.starts_with([':', ',', '(', ' ']))
    })
}

/// `State::append` → `append`; `None` if this is no name of Rust.
fn last_name(symbol: &str) -> Option<&str> {
    let symbol = symbol.split(['(', '<']).next().unwrap_or(symbol);
    let is_ours = symbol.contains("::") && !symbol.starts_with("std::");
    let is_symbol = is_ours && symbol.split("::").all(|name| name.chars().all(is_name));
    is_symbol.then(|| symbol.rsplit("::").next().unwrap_or(symbol))
}

/// A path of the repository at the beginning of a code span or a word.
fn named_path(text: &str) -> Option<&str> {
    let word = text.split_whitespace().next()?;
    let path = word.split(['#', ':', ',', ';', ')']).next()?.trim_end_matches(['.', '/']);
    let is_path = FOLDERS.iter().any(|folder| path.starts_with(folder));
    // A pattern, or a name to be filled in.
    let is_exact = !path.contains(['*', '<', '[', '{', '…']) && !path.contains("NAME");
    (is_path && is_exact).then_some(path)
}

/// A relative path, without the steps up in it.
fn below(folder: &Path, file: &str) -> PathBuf {
    let mut path = folder.to_path_buf();
    for part in Path::new(file) {
        if part == ".." {
            path.pop();
        } else {
            path.push(part);
        }
    }
    path
}

/// What the links of a document do not lead to.
fn dead_links(document: &Document, read: impl Fn(&Path) -> Option<String>) -> Vec<String> {
    let folder = Path::new(&document.path).parent().expect("a file");
    let mut found = Vec::new();
    for Link { text, target } in links(&prose(&document.text)) {
        if target.contains("://") {
            continue;
        }
        let (file, section) = target.split_once('#').unwrap_or((target, ""));
        let path = match file {
            "" => PathBuf::from(&document.path),
            _ => below(folder, file),
        };
        let Some(content) = read(&path) else {
            found.push(format!("there is no {target}"));
            continue;
        };
        if !section.is_empty() && !has_section(&content, section) {
            found.push(format!("there is no section {target}"));
        }
        let is_code = path.extension().is_some_and(|extension| extension == "rs");
        let symbol = text.strip_prefix('`').and_then(|text| text.strip_suffix('`'));
        if let Some(symbol) = symbol.filter(|text| is_code && !text.contains('/')) {
            let name = last_name(symbol).unwrap_or(symbol);
            if !defines(&content, name) {
                found.push(format!("{target} does not define {symbol}"));
            }
        }
    }
    found
}

/// Paths that a document names, in code spans and in its text, and that do not exist.
fn missing_paths(text: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let prose = prose(text);
    let words = prose.split_whitespace().map(|word| word.trim_start_matches(['(', '"', '`']));
    let documents = words.filter(|word| word.starts_with("docs/"));
    let named = code_spans(&prose).chain(documents).filter_map(named_path);
    let missing = named.filter(|path| !exists(path));
    missing.map(|path| format!("there is no {path}")).collect()
}

/// Names like `State::append` that no source file defines.
fn unknown_symbols(text: &str, sources: &[String]) -> Vec<String> {
    let prose = prose(text);
    let symbols = code_spans(&prose).filter_map(|span| Some((span, last_name(span)?)));
    let unknown = symbols.filter(|(_, name)| !sources.iter().any(|code| defines(code, name)));
    unknown.map(|(symbol, _)| format!("nothing defines {symbol}")).collect()
}

/// Rows of the map from C++ that do not say, by a link, where their subject is now.
fn rows_without_a_place(text: &str) -> Vec<String> {
    let prose = prose(text);
    let rows =
        prose.lines().filter(|line| line.starts_with("| ") && line.matches(" | ").count() == 4);
    let is_header = |row: &str| row.starts_with("| C++ |");
    let has_place = |row: &str| {
        let here = row.split(" | ").nth(3).unwrap_or("");
        links(here).iter().any(|link| link.text.starts_with('`') && link.target.contains(".rs"))
    };
    rows.filter(|row| !is_header(row) && !has_place(row)).map(str::to_owned).collect()
}

/// The rows of the table of imports in a document, as `IMPORTS` would have them.
fn import_rows(text: &str) -> Vec<(&str, Vec<&str>)> {
    let table = text.split_once("| module | may name |\n").map_or("", |(_, table)| table);
    let rows = table.lines().skip(1).map_while(|line| line.strip_prefix("| `"));
    let row = |row| {
        let (module, allowed): (&str, &str) = str::split_once(row, "` |").unwrap_or((row, ""));
        let is_all = allowed.trim().starts_with("everything");
        (module, if is_all { EVERYTHING.to_vec() } else { code_spans(allowed).collect() })
    };
    rows.map(row).collect()
}

#[track_caller]
fn assert_documents(rule: impl Fn(&Document) -> Vec<String>) {
    let mut found = Vec::new();
    for document in documents() {
        found.extend(rule(&document).iter().map(|what| format!("{}: {what}", document.path)));
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn links_of_documents_lead_somewhere() {
    assert_documents(|document| {
        dead_links(document, |path| {
            let path = root().join(path);
            if path.is_dir() {
                return Some(String::new());
            }
            // A picture is no text, and is there all the same.
            fs::read(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        })
    });
}

#[test]
fn paths_in_documents_exist() {
    assert_documents(|document| missing_paths(&document.text, |path| root().join(path).exists()));
}

#[test]
fn symbols_in_documents_are_defined() {
    let sources: Vec<String> = all_sources().into_iter().map(|source| source.code).collect();
    assert_documents(|document| unknown_symbols(&document.text, &sources));
}

#[test]
fn each_row_from_cpp_says_where_it_is_here() {
    let text = fs::read_to_string(root().join("docs/FROM-CPP.md")).expect("the document");
    assert_eq!(rows_without_a_place(&text), [""; 0]);
    assert!(text.lines().filter(|line| line.matches(" | ").count() == 4).count() > 15);
}

#[test]
fn the_table_of_imports_is_the_one_that_is_checked() {
    let text = fs::read_to_string(root().join("docs/HACKING.md")).expect("the document");
    let table: Vec<_> =
        IMPORTS.iter().map(|(module, allowed)| (*module, allowed.to_vec())).collect();
    assert_eq!(import_rows(&text), table);
    assert_ne!(import_rows(&text.replacen("`sys`, `wire`", "`sys`", 1)), table);
}

#[test]
fn a_planted_error_in_a_document_is_found() {
    let read = |path: &Path| match path.to_str()? {
        "src/a.rs" => Some("pub(super) fn there() {}\nenum E {\n    Variant,\n}\n".to_owned()),
        "docs/B.md" => Some("# One\n## Two: `x` and y\n```\n# Not one\n```\n".to_owned()),
        _ => None,
    };
    let dead = |text: &str| {
        dead_links(&Document { path: "docs/A.md".to_owned(), text: text.to_owned() }, read).len()
    };
    let good = ["[`A::there`](../src/a.rs)", "[`Variant`](../src/a.rs)", "[x](B.md#two-x-and-y)"];
    for text in good {
        assert_eq!(dead(text), 0, "{text}");
    }
    let bad =
        ["[x](../src/b.rs)", "[`A::ther`](../src/a.rs)", "[x](B.md#two)", "[x](B.md#not-one)"];
    for text in bad {
        assert_eq!(dead(text), 1, "{text}");
    }
    assert_eq!(dead("```\n[x](../src/b.rs)\n```"), 0);

    let missing = |text: &str| missing_paths(text, |path| path == "src/a.rs").len();
    assert_eq!(missing("`src/a.rs`, `src/*/b.rs`, `A/src/b.rs` and `src/a.rs`:"), 0);
    assert_eq!(missing("`src/b.rs --flag`, (docs/NO.md)"), 2);

    let sources = ["fn there() {}".to_owned()];
    assert_eq!(unknown_symbols("`A::there`, `there`, `a b::c`", &sources), [""; 0]);
    assert_eq!(unknown_symbols("`A::here()`", &sources).len(), 1);

    let rows = "| C++ | what | trap | here | test |\n| a | b | c | [`x`](../src/a.rs) | d |\n";
    assert_eq!(rows_without_a_place(rows), [""; 0]);
    assert_eq!(rows_without_a_place(&rows.replace(".rs", ".md")).len(), 1);
}
