//! The rules of the code that no compiler and no lint holds: which module may import
//! which, how long a file or a function gets, what must not be left behind.
//! Each rule is a function of text, so that a test can show that it bites.

mod documents;
mod examples;
mod rust_text;
mod vocabulary;

use rust_text::{blanked, first_names, is_name, line_of, words};
use std::fs;
use std::path::{Path, PathBuf};

/// Which modules a module may name. Arrows point down the data path; the master knows
/// nothing of it. A module without a row fails. The other crates stand here as well,
/// without their `chappe_`: each is one module, whatever is in it. The table is no wider
/// than the code: an edge that no file uses fails.
const IMPORTS: &[(&str, &[&str])] = &[
    ("sys", &[]),
    ("wire", &[]),
    ("shm", &["sys"]),
    ("rings", &["sys"]),
    ("engine", &["shm", "sys"]),
    // The crate, and the server's module of the same name, where it meets connections.
    ("topics", &["config", "engine", "protocol", "rings", "shm", "sys"]),
    ("client", &["sys", "wire"]),
    // The limits of names.
    ("config", &["topics"]),
    // What is said of a running server: by the master and its commands to each other, by the
    // metrics page, by a worker in its list of connections. The names of log levels are the
    // configuration's, the figures are those of shared memory.
    ("control", &["config", "shm", "sys"]),
    // What the program is called: titles, messages, help.
    ("program", &["sys"]),
    ("throttle", &["sys"]),
    ("logging", &["config", "sys", "throttle"]),
    ("listen", &["config", "sys"]),
    ("channel", &["sys"]),
    // With the load generator of `bench`, which speaks the wire format itself.
    ("cli", &["client", "control", "program", "sys", "wire"]),
    ("protocol", &["config", "engine", "shm", "sys", "topics", "wire"]),
    // The application's configuration comes from `config`.
    ("handler", &["config", "engine", "protocol", "shm", "sys", "throttle", "topics"]),
    ("net", &["control", "engine", "protocol", "shm", "sys", "throttle"]),
    (
        "worker",
        &[
            "channel", "config", "engine", "handler", "listen", "logging", "net", "program",
            "protocol", "shm", "sys", "topics",
        ],
    ),
    ("hub", &["channel", "logging", "shm", "sys", "topics"]),
    ("metrics", &["channel", "control", "shm", "sys"]),
    (
        "master",
        &[
            "channel", "config", "control", "hub", "listen", "logging", "metrics", "program",
            "shm", "sys", "throttle", "topics",
        ],
    ),
    // The crate's front doors: `server` joins the application's handlers and `boot`.
    ("server", &["boot", "handler", "program"]),
    // A worker reads its orders in its slot.
    ("prefork", &["boot", "channel", "master", "shm"]),
    ("testing", &["client", "control", "handler"]),
    ("boot", EVERYTHING),
    ("lib", EVERYTHING),
    ("main", EVERYTHING),
];

/// Stands for every row of the table.
const EVERYTHING: &[&str] = &["*"];

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;

/// The one file of the tests that may sleep, at two places: between two looks at what is
/// waited for, and where a test says why time itself is its subject.
const SLEEPER: &str = "tests/support/src/wait.rs";
const SLEEPS: usize = 2;

/// How a thread sleeps, and how one sleeps in disguise.
const SLEEPERS: &[&str] = &["sleep", "park_timeout", "sleep_ms", "usleep", "nanosleep"];

/// Which rows of the table, or newcomers to it, the code of a module names, and where.
/// `depth` is how many `super` lead from the file to the root of the package, 0 for one of
/// the other crates.
fn imports(depth: usize, code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut add = |at: usize, named: &str| found.push((line_of(code, at), named.to_owned()));
    for (at, _) in code.match_indices("chappe_") {
        if !code[..at].ends_with(is_name) {
            add(at, first_names(&code[at + "chappe_".len()..])[0]);
        }
    }
    if depth == 0 {
        return found;
    }
    for at in words(code, "crate") {
        // `pub(crate)` and `$crate` in a macro are no paths to a module.
        if let Some(after) = code[at + "crate".len()..].strip_prefix("::") {
            first_names(after).into_iter().for_each(|named| add(at, named));
        }
    }
    // The same root, reached by climbing. A module inside the file is one step further
    // down, so a name that is no module of the crate is not judged.
    let climb = "super::".repeat(depth);
    for (at, _) in code.match_indices(&climb) {
        let names = first_names(&code[at + climb.len()..]).into_iter();
        names.filter(|named| row(named).is_some()).for_each(|named| add(at, named));
    }
    found
}

fn row(module: &str) -> Option<&'static [&'static str]> {
    IMPORTS.iter().find(|(name, _)| *name == module).map(|(_, allowed)| *allowed)
}

/// Which modules the code of `module` names and may not.
fn forbidden_imports(module: &str, depth: usize, code: &str) -> Vec<String> {
    let Some(allowed) = row(module) else {
        return vec![format!("1: `{module}` has no row in the table")];
    };
    let mut found = imports(depth, code);
    found.retain(|(_, named)| {
        named != module && allowed != EVERYTHING && !allowed.contains(&&**named)
    });
    found.iter().map(|(at, named)| format!("{at}: `{module}` may not name `{named}`")).collect()
}

/// Edges of the table that no file uses.
fn unused_edges(sources: &[(&str, usize, &str)]) -> Vec<String> {
    let mut unused = Vec::new();
    for (module, allowed) in IMPORTS.iter().filter(|(_, allowed)| *allowed != EVERYTHING) {
        let of_it = sources.iter().filter(|(name, ..)| name == module);
        let used: Vec<_> = of_it.flat_map(|(_, depth, code)| imports(*depth, code)).collect();
        for edge in *allowed {
            if !used.iter().any(|(_, named)| named == edge) {
                unused.push(format!("`{module}` never names `{edge}`"));
            }
        }
    }
    unused
}

fn long_file(code: &str) -> Vec<String> {
    let lines = code.lines().count();
    if lines <= FILE_LINES_MAX {
        return Vec::new();
    }
    vec![format!("{lines}: the file is longer than {FILE_LINES_MAX} lines")]
}

/// Functions from the line of `fn` to that of the closing brace.
fn long_functions(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for at in words(code, "fn") {
        // A declaration ends with a semicolon, a pointer type with anything else;
        // in neither does a brace come first. An array type may hold a semicolon.
        let mut brackets = 0_usize;
        let mut body = None;
        for (offset, c) in code[at..].char_indices() {
            match c {
                '[' | '(' => brackets += 1,
                ']' | ')' if brackets == 0 => break,
                ']' | ')' => brackets -= 1,
                ';' | ',' if brackets == 0 => break,
                '{' => {
                    body = Some(at + offset);
                    break;
                }
                _ => {}
            }
        }
        let Some(open) = body else { continue };
        let lines = line_of(code, closing_brace(code, open)) - line_of(code, at) + 1;
        if lines > FUNCTION_LINES_MAX {
            let line = line_of(code, at);
            found.push(format!(
                "{line}: a function of {lines} lines, the most is {FUNCTION_LINES_MAX}"
            ));
        }
    }
    found
}

fn closing_brace(code: &str, open: usize) -> usize {
    open + closing(&code[open..], b'{', b'}')
}

/// Where what the text begins with is closed; its end if nothing closes it.
fn closing(code: &str, open: u8, close: u8) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate() {
        if byte == open {
            depth += 1;
        } else if byte == close {
            depth -= 1;
            if depth == 0 {
                return at;
            }
        }
    }
    code.len()
}

fn unsafe_code(code: &str) -> Vec<String> {
    // The attribute's `unsafe_code` is another word.
    words(code, "unsafe")
        .map(|at| format!("{}: unsafe outside of crates/sys", line_of(code, at)))
        .collect()
}

fn bare_attributes(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for start in ["#[allow(", "#![allow(", "#[ignore"] {
        for (at, _) in code.match_indices(start) {
            let attribute = &code[at..at + code[at..].find(']').map_or(0, |end| end + 1)];
            let has_reason = attribute.contains("reason") || attribute.contains('=');
            if !has_reason {
                found.push(format!("{}: {attribute} without a reason", line_of(code, at)));
            }
        }
    }
    found
}

fn left_behind(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for name in ["todo", "dbg", "unimplemented"] {
        for at in words(code, name) {
            if code[at + name.len()..].starts_with('!') {
                found.push(format!("{}: {name}! was left behind", line_of(code, at)));
            }
        }
    }
    found
}

fn sleeps(code: &str) -> Vec<String> {
    let calls = SLEEPERS.iter().flat_map(|name| {
        let is_called = move |at: &usize| code[at + name.len()..].starts_with('(');
        words(code, name).filter(is_called)
    });
    let waits = words(code, "wait_until").filter(|at| {
        let call = &code[at + "wait_until".len()..];
        call.starts_with('(')
            && words(&call[..closing(call, b'(', b')')], "elapsed").next().is_some()
    });
    let what = "a sleep; wait for an event, or say with `pause` why not";
    calls.chain(waits).map(|at| format!("{}: {what}", line_of(code, at))).collect()
}

/// Warnings, errors and what `info` logs have the name of an event, which tests and scripts
/// wait for and docs/OPERATIONS.md lists. `debug` and `trace` may do without.
fn nameless_events(code: &str) -> Vec<String> {
    let calls = ["error", "warn", "info"].into_iter().flat_map(|level| {
        let start = format!("log::{level}!(");
        let calls: Vec<_> =
            code.match_indices(&start).map(|(at, _)| (at, at + start.len())).collect();
        calls
    });
    let is_nameless =
        |(_, after): &(usize, usize)| !code[*after..].trim_start().starts_with("target:");
    let line = |(at, _)| format!("{}: a log line without `target`, its event", line_of(code, at));
    calls.filter(is_nameless).map(line).collect()
}

/// The part of a source file that only tests compile.
fn test_part(code: &str) -> &str {
    code.find("#[cfg(test)]").map_or("", |at| &code[at..])
}

/// The variants of `Counter`, out of the list they are made from.
fn counters(code: &str) -> Vec<String> {
    let Some(list) = code.split_once("counters! {\n").map(|(_, list)| list) else {
        return Vec::new();
    };
    let list = &list[..list.find("\n}").unwrap_or(list.len())];
    let variant = |line: &str| {
        let (name, _) = line.trim().split_once(" =")?;
        name.starts_with(char::is_uppercase).then(|| name.to_owned())
    };
    list.lines().filter_map(variant).collect()
}

fn unused_counters(counters: &[String], outside: &[String]) -> Vec<String> {
    let is_used = |name: &String| {
        let path = format!("Counter::{name}");
        outside.iter().any(|code| words(code, &path).next().is_some())
    };
    counters.iter().filter(|name| !is_used(name)).cloned().collect()
}

// --- the rules, on the files ---

struct Source {
    /// Below the repository, with `/`.
    path: String,
    code: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folders of the crates, as the workspace lists them: `crates/wire` and so on.
fn members(manifest: &str) -> Vec<&str> {
    let list = manifest.split_once("members = [").map_or("", |(_, list)| list);
    let members = list[..list.find(']').unwrap_or(0)].split('"').skip(1).step_by(2);
    members.filter(|member| member.starts_with("crates/")).collect()
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let mut waiting: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut sources = Vec::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("a folder of the repository");
            waiting.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let code = blanked(&fs::read_to_string(&path).expect("a source file"));
            let below = path.strip_prefix(root()).expect("it is below");
            sources.push(Source { path: below.display().to_string(), code });
        }
    }
    assert!(sources.len() > 3, "the sources were not found");
    sources
}

const ALL: &[&str] = &["src", "tests", "benches", "examples"];

/// Those of `ALL` that are there, and the crates.
fn all_sources() -> Vec<Source> {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the manifest");
    let members = members(&manifest);
    assert!(!members.is_empty(), "the crates were not found");
    let all = ALL.iter().copied().filter(|name| root().join(name).is_dir());
    sources(&all.chain(members).collect::<Vec<_>>())
}

/// Those that end up in a library or a program.
fn library_sources() -> Vec<Source> {
    all_sources().into_iter().filter(|source| is_of_library(&source.path)).collect()
}

fn is_of_library(path: &str) -> bool {
    path.starts_with("src/") || (path.starts_with("crates/") && path.contains("/src/"))
}

#[track_caller]
fn assert_tidy(sources: &[Source], rule: impl Fn(&Source) -> Vec<String>) {
    let mut found: Vec<String> = Vec::new();
    for source in sources {
        found.extend(rule(source).iter().map(|what| format!("{}:{what}", source.path)));
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// `src/net/input.rs` → `net`, two levels below the root.
fn module_of(path: &str) -> (&str, usize) {
    let (member, below) = path.split_once("src/").expect("a file of src");
    if let Some(member) = member.strip_prefix("crates/") {
        return (member.trim_end_matches('/'), 0);
    }
    let below = below.strip_suffix(".rs").expect("Rust");
    let levels = below.strip_suffix("/mod").unwrap_or(below).split('/').count();
    (below.split('/').next().expect("one at least"), levels)
}

#[test]
fn modules_import_what_the_table_allows() {
    assert_tidy(&library_sources(), |source| {
        let (module, depth) = module_of(&source.path);
        forbidden_imports(module, depth, &source.code)
    });
}

#[test]
fn the_table_is_no_wider_than_the_code() {
    let sources = library_sources();
    let sources: Vec<_> = sources
        .iter()
        .map(|source| {
            let (module, depth) = module_of(&source.path);
            (module, depth, &*source.code)
        })
        .collect();
    assert_eq!(unused_edges(&sources), [""; 0]);
    let missing = sources.iter().filter(|(module, ..)| *module != "client");
    let missing: Vec<_> = missing.copied().collect();
    assert_eq!(unused_edges(&missing).len(), 2, "a planted one is found");
}

#[test]
fn files_and_functions_are_short() {
    assert_tidy(&all_sources(), |source| {
        [long_file(&source.code), long_functions(&source.code)].concat()
    });
}

#[test]
fn unsafe_code_is_in_sys_alone() {
    assert_tidy(&all_sources(), |source| {
        if source.path.starts_with("crates/sys/") { Vec::new() } else { unsafe_code(&source.code) }
    });
}

#[test]
fn exceptions_have_reasons_and_nothing_is_left_behind() {
    assert_tidy(&all_sources(), |source| {
        [bare_attributes(&source.code), left_behind(&source.code)].concat()
    });
}

#[test]
fn tests_wait_for_events_and_do_not_sleep() {
    // A program that is measured may well block: that is then what it is for.
    let is_test = |source: &Source| !source.path.starts_with("benches/");
    let tests: Vec<Source> = all_sources().into_iter().filter(is_test).collect();
    assert_tidy(&tests, |source| {
        let code = &source.code;
        let code = if is_of_library(&source.path) { test_part(code) } else { code };
        let found = sleeps(code);
        if source.path == SLEEPER && found.len() == SLEEPS { Vec::new() } else { found }
    });
}

#[test]
fn each_warning_has_an_event() {
    assert_tidy(&library_sources(), |source| nameless_events(&source.code));
}

#[test]
fn every_counter_is_counted() {
    let (shm, outside): (Vec<_>, Vec<_>) =
        library_sources().into_iter().partition(|source| source.path.starts_with("crates/shm/"));
    let counters: Vec<String> = shm.iter().flat_map(|source| counters(&source.code)).collect();
    assert!(!counters.is_empty(), "the list of counters was not found");
    let outside: Vec<String> = outside.into_iter().map(|source| source.code).collect();
    let unused = unused_counters(&counters, &outside);
    assert!(unused.is_empty(), "counters that nothing counts: {unused:?}");
}

#[test]
fn the_readme_names_every_document() {
    let readme = fs::read_to_string(root().join("README.md")).expect("the README");
    let in_folder = |folder: &str| {
        let entries = fs::read_dir(root().join("docs").join(folder)).expect("docs");
        let name = |entry: std::io::Result<fs::DirEntry>| {
            format!("{folder}{}", entry.expect("an entry").file_name().display())
        };
        entries.map(name).collect::<Vec<_>>()
    };
    let pictures = in_folder("pictures/");
    let documents = in_folder("").into_iter().filter(|name| name != "pictures");
    for name in documents.chain(pictures) {
        assert!(readme.contains(&format!("](docs/{name})")), "README.md lacks docs/{name}");
    }
}

// --- each rule bites ---

#[test]
fn blanking_leaves_code_and_lines_and_nothing_else() {
    let source = r####"let a = "unsafe {"; // unsafe
/* unsafe /* unsafe */ unsafe
*/ let b = r#"unsafe " "#; let c = '{'; let d: &'static str = b"unsafe\"unsafe"; '\'' '\u{7b}' 'é'"####;
    let code = blanked(source);
    assert_eq!(code.lines().count(), 3);
    assert!(!code.contains("unsafe") && !code.contains('{') && !code.contains('"'), "{code}");
    for left in ["let a =", "let b =", "let c =", "&'static str"] {
        assert!(code.contains(left), "{left} in {code}");
    }
}

#[test]
fn a_planted_import_is_found() {
    for code in [
        "use crate::worker::run;",
        "use crate::{shm::Zone, config::{self, worker}, worker};",
        "let x = crate::worker::run();",
        "use super::worker;",
        "use crate::Server;",
        "use chappe_wire::Header;",
        "let x = chappe_newcomer::f();",
    ] {
        let found = forbidden_imports("master", 1, code);
        assert_eq!(found.len(), 1, "{code}: {found:?}");
        assert!(found[0].starts_with("1: `master` may not name"), "{found:?}");
    }
    assert_eq!(
        forbidden_imports("handler", 2, "\nuse super::super::net::EventLoop;")[0],
        "2: `handler` may not name `net`"
    );
    assert_eq!(forbidden_imports("newcomer", 1, "").len(), 1, "a module without a row");
    let fine =
        "use crate::{config::{worker, Listen}, listen}; use super::policy; pub(crate) fn f() {}";
    assert_eq!(forbidden_imports("master", 2, fine), [""; 0]);
    assert_eq!(forbidden_imports("boot", 1, "use crate::{worker, master};"), [""; 0]);
    assert_eq!(forbidden_imports("wire", 0, "use chappe_client::Connection;").len(), 1);
    assert_eq!(forbidden_imports("wire", 0, "use crate::notice; use chappe_wire::x;"), [""; 0]);
    assert_eq!(forbidden_imports("net", 1, "use chappe_wire::Header;").len(), 1);
}

#[test]
fn a_module_is_its_first_folder_and_knows_its_depth() {
    for (path, module, depth) in [
        ("src/server.rs", "server", 1),
        ("src/net/mod.rs", "net", 1),
        ("src/net/input.rs", "net", 2),
        ("src/protocol/chappe/mod.rs", "protocol", 2),
        ("crates/wire/src/notice.rs", "wire", 0),
    ] {
        assert_eq!(module_of(path), (module, depth), "{path}");
    }
}

#[test]
fn the_crates_are_those_of_the_workspace() {
    let manifest = "[workspace]\nmembers = [\n    \"crates/a\",\n    \"crates/b\",\n]\n[\"c\"]";
    assert_eq!(members(manifest), ["crates/a", "crates/b"]);
    assert_eq!(members("[package]"), [""; 0]);
    assert!(is_of_library("crates/a/src/lib.rs") && is_of_library("src/main.rs"));
    assert!(!is_of_library("crates/a/tests/b.rs") && !is_of_library("tests/src/b.rs"));
}

#[test]
fn a_planted_length_is_found() {
    assert_eq!(long_file(&"\n".repeat(FILE_LINES_MAX)), [""; 0]);
    assert_eq!(long_file(&"\n".repeat(FILE_LINES_MAX + 1)).len(), 1);
    let function = |lines: usize| {
        let signature = "\ntype F = fn(u8) -> u8;\nfn f(a: [u8; 2]) -> [u8; 2] {";
        format!("{signature}{}}}\nfn g() {{}}", "{}\n".repeat(lines - 1))
    };
    assert_eq!(long_functions(&function(FUNCTION_LINES_MAX)), [""; 0]);
    let found = long_functions(&function(FUNCTION_LINES_MAX + 1));
    assert_eq!(found, ["3: a function of 71 lines, the most is 70"]);
    assert_eq!(long_functions("trait T { fn f(&self);\n fn g(&self); }"), [""; 0]);
}

#[test]
fn planted_words_are_found() {
    assert_eq!(
        unsafe_code("#![deny(unsafe_code)]\nunsafe { f() }"),
        ["2: unsafe outside of crates/sys"]
    );
    assert_eq!(bare_attributes("#[allow(dead_code)] #![allow(x)] #[ignore]").len(), 3);
    let fine = "#[allow(x, reason = )] #[ignore = ] #[expect(x, reason = )]";
    assert_eq!(bare_attributes(fine), [""; 0]);
    assert_eq!(left_behind("todo!() dbg!(x) unimplemented!()").len(), 3);
    assert_eq!(left_behind("fn todo() { not_dbg!() }"), [""; 0]);
    assert_eq!(sleeps("std::thread::sleep(PAUSE); sleep(PAUSE);").len(), 2);
    assert_eq!(sleeps("thread::park_timeout(PAUSE); thread::park();").len(), 1);
    assert_eq!(sleeps("// blanked; fn oversleep() {} let sleep = 1;"), [""; 0]);
    assert_eq!(sleeps("wait_until( , || (begun.elapsed()) > TIME);").len(), 1);
    assert_eq!(sleeps("wait_until( , || (is_over())); begun.elapsed()"), [""; 0]);
    let named = "log::info!(target: , ); log::warn!(\n target: event, ); log::debug!( );";
    assert_eq!(nameless_events(named), [""; 0]);
    assert_eq!(nameless_events("\nlog::warn!( ); log::error!( , target); log::info!( );").len(), 3);
    assert_eq!(test_part("sleep(1); #[cfg(test)] mod tests {}"), "#[cfg(test)] mod tests {}");
}

#[test]
fn a_planted_counter_is_found() {
    let list = "counters! {\n    FramesSent =  ,\n    FramesLost =  ,\n}\nconst OTHER: u8 = 1;";
    let counters = counters(list);
    assert_eq!(counters, ["FramesSent", "FramesLost"]);
    let outside = ["c.add(Counter::FramesSent, 1); Counter::FramesLostElsewhere".to_owned()];
    assert_eq!(unused_counters(&counters, &outside), ["FramesLost"]);
}
