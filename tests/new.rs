//! `chappe new`: the project that it writes builds, and its own test passes. docs/TUTORIAL.md
//! begins with one, and all that stands there is done here.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::fcntl::{Flock, FlockArg};

const CHAPPE: &str = env!("CARGO_BIN_EXE_chappe");

fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target")
}

/// Keeps other runs of these tests waiting: what they build has the same name and place as what
/// is built here.
fn alone() -> Flock<File> {
    let file = File::create(target().join("tests-new.lock")).expect("a file");
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).expect("a lock")
}

/// Only crates that this workspace has downloaded: the project comes with its versions.
/// What this workspace has built for its tests is used, and so is what the last run has built.
fn prepared(command: &mut Command) -> &mut Command {
    command
        .env("CARGO_NET_OFFLINE", "true")
        // As here, or nothing of it fits.
        .env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only")
        .env("CARGO_TARGET_DIR", target())
}

#[test]
fn a_new_project_builds_and_passes_its_test() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let new = || {
        let mut command = Command::new(CHAPPE);
        command.args(["new", "my-chat"]).current_dir(&folder);
        command.output().expect("it runs")
    };
    let said = new();
    assert!(said.status.success(), "{said:?}");
    let again = new();
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&again.stderr), "chappe: my-chat exists\n");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.arg("test").current_dir(folder.path().join("my-chat"));
    let tested = prepared(&mut cargo).output().expect("cargo runs");
    let text = String::from_utf8_lossy(&tested.stdout);
    let errors = String::from_utf8_lossy(&tested.stderr);
    assert!(tested.status.success(), "{text}\n{errors}");
    assert!(text.contains("a_guest_is_greeted_and_heard ... ok"), "{text}\n{errors}");
    assert!(!errors.contains("warning"), "{errors}");
}

/// One fenced block of a document.
struct Block<'a> {
    /// `sh`, `diff`.
    language: &'a str,
    /// The file that is named behind it.
    file: &'a str,
    text: String,
}

fn blocks(document: &str) -> Vec<Block<'_>> {
    let (mut blocks, mut lines) = (Vec::new(), document.lines());
    while let Some(line) = lines.next() {
        if let Some(head) = line.strip_prefix("```") {
            let (language, file) = head.split_once(' ').unwrap_or((head, ""));
            let inside = lines.by_ref().take_while(|line| *line != "```");
            let text = inside.map(|line| format!("{line}\n")).collect();
            blocks.push(Block { language, file, text });
        }
    }
    blocks
}

/// The text with this difference, whose lines have to be there exactly once.
fn changed(text: &str, difference: &str) -> String {
    let side = |other: char| -> String {
        let lines = difference.lines().filter(|line| !line.starts_with(other));
        lines.map(|line| format!("{}\n", line.get(1..).unwrap_or_default())).collect()
    };
    let (before, after) = (side('+'), side('-'));
    assert_eq!(text.matches(&before).count(), 1, "{before}\nin\n{text}");
    text.replacen(&before, &after, 1)
}

/// A reader who does what the tutorial says. The daemon ends with him.
struct Reader {
    root: tempfile::TempDir,
    /// Where his shell is.
    folder: PathBuf,
}

impl Reader {
    fn shell(&self, commands: &str) -> Output {
        let programs = Path::new(CHAPPE).parent().expect("a folder");
        let path = std::env::var("PATH").expect("a path");
        let mut shell = Command::new("timeout");
        shell
            .args(["500", "bash", "-euo", "pipefail", "-c"])
            .arg(format!("{commands}\npwd > {:?}", self.root.path().join("pwd")))
            .current_dir(&self.folder)
            .env("PATH", format!("{}:{path}", programs.display()));
        prepared(&mut shell).output().expect("a shell")
    }

    fn run(&mut self, commands: &str) -> String {
        let Output { status, stdout, stderr } = self.shell(commands);
        let text = String::from_utf8_lossy(&stdout).into_owned();
        assert!(status.success(), "{commands}\n{text}\n{}", String::from_utf8_lossy(&stderr));
        let folder = fs::read_to_string(self.root.path().join("pwd")).expect("the shell's folder");
        self.folder = PathBuf::from(folder.trim_end());
        text
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // None runs, unless something has failed.
        let _ = self.shell("cargo run --quiet -- stop --wait");
    }
}

#[test]
fn the_tutorial_does_what_it_says() {
    let _alone = alone();
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/TUTORIAL.md");
    let document = fs::read_to_string(document).expect("a document");
    let root = tempfile::tempdir().expect("a folder");
    let mut reader = Reader { folder: root.path().to_owned(), root };
    let (mut printed, mut done) = (String::new(), 0);
    for Block { language, file, text } in blocks(&document) {
        let path = reader.folder.join(file);
        let read = || fs::read_to_string(&path).expect("a file of the project");
        match language {
            "sh" => {
                printed = reader.run(&text);
                if done == 0 {
                    // The kernel picks the port: tests run side by side.
                    let conf = reader.folder.join("conf/chappe.toml");
                    let toml = fs::read_to_string(&conf).expect("a configuration");
                    fs::write(&conf, toml.replace(":7600", ":0")).expect("written");
                }
            }
            "text" => assert!(printed.contains(text.trim_end()), "{text}is not in\n{printed}"),
            "diff" => fs::write(&path, changed(&read(), &text)).expect("written"),
            "rust" => fs::write(&path, read() + &text).expect("written"),
            other => panic!("nobody knows what to do with a block of {other}"),
        }
        done += 1;
    }
    assert!(done > 10, "{done} blocks");
}
