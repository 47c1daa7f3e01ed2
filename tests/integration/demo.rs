//! `scripts/demo`: what it prints is what docs/SEMAPHORES.md shows. It checks itself what it
//! says.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use chappe_testkit::site::{finish_within, program};

/// It starts two servers and some hundred processes, one after the other.
const DEMO_TIME: Duration = Duration::from_secs(120);

/// With one `#` for each number: process ids, ports and tries differ from run to run.
fn masked(text: &str) -> Vec<String> {
    let mask = |line: &str| {
        let mut masked = line.replace(|c: char| c.is_ascii_digit(), "#");
        while masked.contains("##") {
            masked = masked.replace("##", "#");
        }
        // A longer number takes the place of blanks.
        masked.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    text.lines().map(mask).collect()
}

#[test]
fn the_demo_holds_and_prints_what_its_text_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let demo = root.join("scripts/demo");
    let run = finish_within(
        DEMO_TIME,
        Command::new(demo).env("CHAPPE", program("chappe")).stdin(Stdio::null()),
    );
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:?}");
    let manual = fs::read_to_string(root.join("docs/SEMAPHORES.md")).expect("the document");
    let (_, recorded) = manual.split_once("$ scripts/demo\n").expect("a recorded run");
    let (recorded, _) = recorded.split_once("```\n").expect("its end");
    assert_eq!(masked(&run.stdout), masked(recorded), "{}", run.stdout);
}

/// A server that does something else is noticed: this one ends at once.
#[test]
fn the_demo_fails_if_the_server_does_not_do_what_it_says() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/demo");
    let run =
        finish_within(DEMO_TIME, Command::new(demo).env("CHAPPE", "false").stdin(Stdio::null()));
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.stderr.contains("'ready' is not in the output"), "{run:?}");
}
