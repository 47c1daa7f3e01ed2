//! What an application can name has an example in its documentation: each public function,
//! method, type, trait and function of a trait.
//!
//! No example of their own need constants, aliases of types, modules, fields and variants:
//! the type they belong to shows them. Of a trait's implementations the trait has one.

use super::rust_text::{blanked, is_name};
use super::{all_sources, root};
use std::fs;

/// Where the public items are that are reached through the crates `chappe`, `chappe_client`
/// and `chappe_wire`. There `pub` means reached: the lint `unreachable_pub` refuses it
/// elsewhere. Of the engine an application sees one type, [`chappe::Peer`].
const REACHED: &[&str] = &["src/", "crates/client/src/", "crates/wire/src/"];
const REACHED_OF_ENGINE: &str = "crates/engine/src/peer.rs";

/// Files whose public items only `chappe::prefork` passes on. It is for programs that are no
/// application, and has one example for all of them, at its head.
const PREFORK: &str = "src/prefork.rs";
const BEHIND_PREFORK: &[&str] = &["src/boot/mod.rs", "src/channel.rs", "src/master/assignment.rs"];

/// What is compiled. Blocks marked `text`, `toml` or `ignore` do not count.
const COMPILED: &[&str] = &["", "rust", "no_run", "should_panic", "compile_fail"];

struct Item {
    /// From 1.
    line: usize,
    /// `fn name`, `struct Name`.
    what: String,
    has_example: bool,
}

/// The public items of a file, in the form that rustfmt gives it.
fn public_items(text: &str) -> Vec<Item> {
    let code = blanked(text);
    let lines: Vec<(&str, &str)> = text.lines().zip(code.lines()).collect();
    let mut items = Vec::new();
    let mut is_in_trait = false;
    for (at, (_, code)) in lines.iter().enumerate() {
        is_in_trait = code.starts_with("pub trait ") || is_in_trait && *code != "}";
        if let Some(what) = declared(code, is_in_trait) {
            let has_example = has_example(&documentation(&lines[..at]));
            items.push(Item { line: at + 1, what: what.to_owned(), has_example });
        }
    }
    items
}

/// `fn name` of the line that declares it, if it is public.
fn declared(code: &str, is_in_trait: bool) -> Option<&str> {
    let of_trait = code.strip_prefix("    ").filter(|line| is_in_trait && line.starts_with("fn "));
    let mut rest = of_trait.or_else(|| code.trim_start().strip_prefix("pub "))?;
    for qualifier in ["const ", "async ", "unsafe "] {
        rest = rest.strip_prefix(qualifier).unwrap_or(rest);
    }
    let (kind, name) = rest.split_once(' ')?;
    let name_end = name.find(|c| !is_name(c)).unwrap_or(name.len());
    let is_kind = ["fn", "struct", "enum", "trait", "union"].contains(&kind);
    is_kind.then(|| &rest[..kind.len() + 1 + name_end])
}

/// The lines of the documentation of what comes behind these lines.
fn documentation<'a>(before: &[(&'a str, &str)]) -> Vec<&'a str> {
    let ends_another = |code: &str| code.trim_end().ends_with([';', '{', '}']);
    let own = before
        .iter()
        .rev()
        .take_while(|(line, code)| !line.trim().is_empty() && !ends_another(code));
    let mut lines: Vec<_> = own.filter_map(|(line, _)| line.trim().strip_prefix("///")).collect();
    lines.reverse();
    lines
}

fn has_example(documentation: &[&str]) -> bool {
    let fences = documentation.iter().filter_map(|line| line.trim().strip_prefix("```"));
    // Each second one closes.
    let mut opening = fences.step_by(2);
    opening.any(|info| info.split(',').all(|word| COMPILED.contains(&word.trim())))
}

fn without_example(text: &str) -> Vec<String> {
    let lacking = public_items(text).into_iter().filter(|item| !item.has_example);
    lacking.map(|item| format!("{}: `{}` has no example", item.line, item.what)).collect()
}

fn is_reached(path: &str) -> bool {
    (REACHED.iter().any(|folder| path.starts_with(folder)) || path == REACHED_OF_ENGINE)
        && !BEHIND_PREFORK.contains(&path)
}

#[test]
fn what_an_application_can_name_has_an_example() {
    let (mut count, mut found) = (0, Vec::new());
    for source in all_sources().iter().filter(|source| is_reached(&source.path)) {
        let text = fs::read_to_string(root().join(&source.path)).expect("a source file");
        count += public_items(&text).len();
        found.extend(without_example(&text).iter().map(|what| format!("{}:{what}", source.path)));
    }
    assert!(count > 150, "the public items were not found: {count}");
    assert!(found.is_empty(), "{} of {count}\n{}", found.len(), found.join("\n"));
}

#[test]
fn prefork_has_one_example_for_all() {
    let text = fs::read_to_string(root().join(PREFORK)).expect("a source file");
    let head: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("//!")).collect();
    assert!(has_example(&head), "{PREFORK} has no example at its head");
    let items = |path: &&str| {
        let text = fs::read_to_string(root().join(path)).expect("a source file");
        public_items(&text).len()
    };
    assert!(BEHIND_PREFORK.iter().all(|path| items(path) > 0), "an exception that nothing needs");
}

#[test]
fn a_planted_item_without_example_is_found() {
    let example = |info: &str| format!("/// Does it.\n///\n/// ```{info}\n/// f();\n/// ```\n");
    for (documentation, is_enough) in [
        (String::new(), false),
        ("/// Does it.\n".to_owned(), false),
        (example(""), true),
        (example("no_run"), true),
        (example("should_panic"), true),
        (example("text"), false),
        (example("ignore"), false),
        (example("no_run,ignore"), false),
        (format!("{}{}", example("toml"), example("")), true),
        // The example of what stands before it is not its own.
        (format!("{}pub fn g() {{}}\n", example("")), false),
        (format!("{}\n", example("")), false),
    ] {
        for item in ["pub fn f() {}", "pub const fn f() {}", "#[must_use]\npub fn f() {}"] {
            let found = without_example(&format!("{documentation}{item}"));
            let lacks = found.iter().any(|what| what.ends_with("`fn f` has no example"));
            assert_eq!(lacks, !is_enough, "{documentation}{item}: {found:?}");
        }
    }
    let all = "pub struct A;\npub enum B {}\npub trait C {\n    fn c(&self);\n}\nfn d() {}";
    let names: Vec<_> = public_items(all).into_iter().map(|item| item.what).collect();
    assert_eq!(names, ["struct A", "enum B", "trait C", "fn c"]);
    let private = "pub(crate) fn f() {}\npub const A: u8 = 0;\npub type B = u8;\npub use c::D;";
    assert_eq!(without_example(private), [""; 0]);
    assert_eq!(without_example("// pub fn f() {}\nconst A: &str = \"\npub fn f() {}\";"), [""; 0]);
}
