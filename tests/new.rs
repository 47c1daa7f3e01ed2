//! `chappe new`: the project that it writes builds, and its own test passes.

use std::path::Path;
use std::process::Command;

/// Only crates that this workspace has downloaded: the project comes with its versions.
/// What this workspace has built for its tests is used, and so is what the last run has built.
#[test]
fn a_new_project_builds_and_passes_its_test() {
    let folder = tempfile::tempdir().expect("a folder");
    let new = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chappe"));
        command.args(["new", "my-chat"]).current_dir(&folder);
        command.output().expect("it runs")
    };
    let said = new();
    assert!(said.status.success(), "{said:?}");
    let again = new();
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&again.stderr), "chappe: my-chat exists\n");
    let tested = Command::new(env!("CARGO"))
        .args(["test", "--offline"])
        // As here, or nothing of it fits.
        .env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only")
        .current_dir(folder.path().join("my-chat"))
        .env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target"))
        .output()
        .expect("cargo runs");
    let text = String::from_utf8_lossy(&tested.stdout);
    let errors = String::from_utf8_lossy(&tested.stderr);
    assert!(tested.status.success(), "{text}\n{errors}");
    assert!(text.contains("a_guest_is_greeted_and_heard ... ok"), "{text}\n{errors}");
    assert!(!errors.contains("warning"), "{errors}");
}
