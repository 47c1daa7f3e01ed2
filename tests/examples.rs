//! Documents that show what an example prints: docs/SEMAPHORES.md is read beside
//! examples/semaphores.rs, and neither may say what the other does not.

use std::fs;
use std::path::Path;
use std::process::Command;

use chappe_testkit::site::program;

/// What an example prints. It ends itself when it takes too long.
fn printed_by(example: &str) -> String {
    let output = Command::new(program(example)).output().expect("it starts");
    let (printed, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && errors.is_empty(), "{errors}\n{printed}");
    printed.into_owned()
}

#[test]
fn semaphores_shows_what_its_text_says() {
    assert_eq!(shown_in(&read("docs/SEMAPHORES.md")), shown_by(&printed_by("example-semaphores")));
}

#[test]
fn pshared_prints_what_its_text_says() {
    let printed = printed_by("example-pshared");
    assert_eq!(session(&read("docs/SEMAPHORES.md"), "pshared"), lines(&printed));
}

/// How many messages are left behind differs from run to run; the program judges that.
#[test]
fn giving_back_prints_what_its_text_says() {
    let (text, printed) = (read("docs/SEND-PATH.md"), printed_by("example-giving-back"));
    let masked = |lines: Vec<&str>| lines.into_iter().map(without_numbers).collect::<Vec<_>>();
    assert_eq!(masked(session(&text, "giving_back")), masked(lines(&printed)));
}

#[test]
fn semaphores_is_quoted_word_by_word() {
    let (text, program) = (read("docs/SEMAPHORES.md"), read("examples/semaphores.rs"));
    let fragments = blocks(&text, "rust");
    assert!(fragments.len() > 10, "the fragments were not found");
    for fragment in fragments {
        assert!(
            is_quoted_from(&fragment, &program),
            "not in the example:\n{}",
            fragment.join("\n")
        );
    }
}

#[test]
fn a_planted_difference_is_found() {
    let text =
        "## 1. One\n```rust\nif a {\n    b();\n}\n```\n```text\nx\n```\n## Two\n```\ny\n```\n";
    let program = "fn f() {\n    if a {\n        b();\n    }\n}\n";
    assert_eq!(blocks(text, "rust").len(), 1);
    let quoted = |program: &str| is_quoted_from(&blocks(text, "rust")[0], program);
    assert!(quoted(program));
    assert!(!quoted(&program.replace("b()", "c()")));
    assert!(!quoted(&program.replace("        b", "     b")));

    assert_eq!(shown_in(text), shown_by("== 1. One\nx\n\n"));
    assert_ne!(shown_in(text), shown_by("== 1. One\nx\nz\n\n"));
    assert_ne!(shown_in(text), shown_by("== 1. Won\nx\n\n"));
    assert_ne!(shown_in(text), shown_by("== 1. One\n"));

    let text = "```console\n$ cargo run --example x\na 1\nb\n```\n```console\n$ ls\nc\n```\n";
    assert_eq!(session(text, "x"), ["a 1", "b"]);
    assert_eq!(without_numbers("a 12 b3"), without_numbers("a 7 b45"));
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path))
        .expect("of the repository")
}

/// The lines of each fenced block of a language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<Vec<&'a str>> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(fence) = line.strip_prefix("```") else { continue };
        let block = lines.by_ref().take_while(|line| *line != "```").collect();
        if fence == language {
            blocks.push(block);
        }
    }
    blocks
}

/// What a document shows below the command that runs an example.
fn session<'a>(text: &'a str, example: &str) -> Vec<&'a str> {
    let end = format!("--example {example}");
    let is_it = |block: &Vec<&str>| {
        block.first().is_some_and(|line| line.starts_with("$ cargo run") && line.ends_with(&end))
    };
    let block = blocks(text, "console").into_iter().find(is_it);
    block.unwrap_or_else(|| panic!("no `cargo run … {end}` in the text"))[1..].to_vec()
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

/// With one `#` for each number.
fn without_numbers(line: &str) -> String {
    let mut masked = line.replace(|c: char| c.is_ascii_digit(), "#");
    while masked.contains("##") {
        masked = masked.replace("##", "#");
    }
    masked
}

/// Numbered headings and blocks of output, in the text's order.
fn shown_in(text: &str) -> Vec<&str> {
    let mut shown = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        match line.strip_prefix("## ") {
            Some(title) if title.starts_with(|first: char| first.is_ascii_digit()) => {
                shown.push(title);
            }
            _ => {}
        }
        if let Some(fence) = line.strip_prefix("```") {
            let block = lines.by_ref().take_while(|line| *line != "```");
            shown.extend(block.filter(|_| fence == "text"));
        }
    }
    shown
}

/// Headings and output as they were printed.
fn shown_by(printed: &str) -> Vec<&str> {
    let lines = printed.lines().filter(|line| !line.is_empty());
    lines.map(|line| line.strip_prefix("== ").unwrap_or(line)).collect()
}

/// Whether these lines stand in the program one after the other, all moved to the right
/// by the same number of blanks.
fn is_quoted_from(fragment: &[&str], program: &str) -> bool {
    let program: Vec<&str> = program.lines().collect();
    program.windows(fragment.len()).any(|window| {
        let indent = window[0].len() - window[0].trim_start().len();
        window.iter().zip(fragment).all(|(line, quoted)| {
            let is_blank = line.is_empty() && quoted.is_empty();
            is_blank
                || line
                    .split_at_checked(indent)
                    .is_some_and(|(blanks, rest)| blanks.trim().is_empty() && rest == *quoted)
        })
    })
}
