//! Where a server is found with a file that no longer holds.

use std::path::Path;

use super::Files;
use crate::config::{ConfigErrors, Located, Need, locate};

const PATHS: &str = "control_socket = 'c.sock'\npid_file = 'p.pid'\nlog.directory = 'l'\n";

fn find(files: &Files, overrides: &[&str], need: Need) -> Result<Located, ConfigErrors> {
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    locate(&files.path("chappe.toml"), Path::new("/prefix"), &overrides, need)
}

/// The path, and the warning without the directory's name.
#[track_caller]
fn socket(files: &Files, overrides: &[&str]) -> (String, String) {
    let located = find(files, overrides, Need::ControlSocket).expect("found");
    let directory = format!("{}/", files.directory.path().display());
    let warning = located.warning.unwrap_or_default().replace(&directory, "");
    (located.control_socket.display().to_string(), warning)
}

#[test]
fn a_good_file_is_found_as_it_is_loaded() {
    let files = Files::new(&[("chappe.toml", PATHS)]);
    let loaded = Located::from(&files.load(&[]).unwrap().config);
    for need in [Need::ControlSocket, Need::PidFile, Need::Logs] {
        assert_eq!(find(&files, &[], need).unwrap(), loaded);
    }
    assert_eq!(loaded.log_directory, Path::new("/prefix/l"));
}

#[test]
fn mistakes_elsewhere_are_one_warning() {
    let elsewhere = [
        ("worker_processes = 0\n", "1:20: worker_processes is 0, must be 1..=1024 or \"auto\""),
        ("dæmon = 1\ndaemom = 2\n", "1:2: not TOML: "),
        ("daemom = 1\nuser = 2\n", "1:1: daemom is unknown, did you mean daemon?"),
        ("pid_file = 'x'\n", "3:1: not TOML: "),
        ("include = ['gone.toml']\n", "1:12: gone.toml cannot be read: No such file"),
        ("include = 7\n", "1:11: include is 7, must be an array"),
        ("worker = 5\n", "1:10: worker is 5, must be a table"),
    ];
    for (text, fault) in elsewhere {
        let files = Files::new(&[("chappe.toml", &format!("{text}{PATHS}"))]);
        let (path, warning) = socket(&files, &[]);
        assert_eq!(path, "/prefix/c.sock", "{warning}");
        assert!(warning.starts_with(&format!("chappe.toml:{fault}")), "{warning}");
        assert_eq!(warning.lines().count(), 1);
    }
    let files = Files::new(&[("chappe.toml", "daemon = 3")]);
    let expected = "chappe.toml:1:10: daemon is 3, must be true or false; a start or a reload would \
                    be refused";
    assert_eq!(socket(&files, &[]), ("/prefix/run/chappe.sock".into(), expected.into()));
}

/// The default could be another server's.
#[test]
fn a_value_that_is_lost_is_not_guessed() {
    let files = Files::new(&[("chappe.toml", "x = [[[[\ncontrol_socket = 'c.sock'\n")]);
    let refused = find(&files, &[], Need::ControlSocket).unwrap_err().to_string();
    assert!(refused.contains("not TOML"), "{refused}");
    assert!(refused.ends_with("by --set control_socket=PATH all the same"), "{refused}");
    let (found, _) = socket(&files, &["control_socket=d.sock"]);
    assert_eq!(found, "/prefix/d.sock");
}

#[test]
fn a_value_that_is_not_known_for_sure_is_named() {
    let taken = |path: &str| format!("; control_socket is taken to be /prefix/{path}");
    for (text, path) in [
        ("control_socket = 5\n", "run/chappe.sock"),
        ("control_sokcet = 'c.sock'\n", "run/chappe.sock"),
        ("= 5\ncontrol_socket = 'c.sock'\n", "c.sock"),
        ("control_socket = 'c.sock'\nworker_processes =\n[log\n", "c.sock"),
        ("control_socket = 'c.sock\n", "c.sock"),
        ("x = [[[[\n# control_socket = 'c.sock'\n", "run/chappe.sock"),
    ] {
        let files = Files::new(&[("chappe.toml", text)]);
        let (found, warning) = socket(&files, &[]);
        assert!(warning.ends_with(&taken(path)), "{text:?}: {warning}");
        assert_eq!(found, format!("/prefix/{path}"));
        // What is overridden is known, and replaces a value that is wrong.
        let (found, warning) = socket(&files, &["control_socket=d.sock"]);
        assert_eq!(found, "/prefix/d.sock");
        let is_mended = text.ends_with("= 5\n") && warning.is_empty();
        assert!(
            is_mended || warning.ends_with("a start or a reload would be refused"),
            "{warning}"
        );
    }
    let files = Files::new(&[]);
    files.write("chappe.toml", b"# caf\xe9\ncontrol_socket = 'c.sock'\n");
    let (found, warning) = socket(&files, &[]);
    assert_eq!(found, "/prefix/c.sock");
    assert_eq!(warning, format!("chappe.toml: is not UTF-8 in line 1{}", taken("c.sock")));
}

#[test]
fn includes_of_a_broken_file_count() {
    let broken = "include = ['paths.toml', 'gone.toml']\nworker_processes = \n";
    let files = Files::new(&[("chappe.toml", broken), ("paths.toml", PATHS)]);
    let (found, warning) = socket(&files, &[]);
    assert_eq!(found, "/prefix/c.sock");
    assert!(warning.starts_with("chappe.toml:1:26: "), "{warning}");
}

#[test]
fn without_a_text_the_path_must_be_overridden() {
    let files = Files::new(&[]);
    let refused = find(&files, &[], Need::PidFile).unwrap_err().to_string();
    let hint = "; a server can be found by --set pid_file=PATH all the same";
    assert!(refused.contains("No such file") && refused.ends_with(hint), "{refused}");
    assert!(find(&files, &["control_socket=/x"], Need::PidFile).is_err(), "another one");
    let (found, warning) = socket(&files, &["control_socket=/x"]);
    assert_eq!(found, "/x");
    assert!(warning.contains("No such file"), "{warning}");
}

#[test]
fn an_override_is_as_strict_as_ever() {
    for text in ["", "daemon = 3", "= 5\n"] {
        let files = Files::new(&[("chappe.toml", text)]);
        for wrong in ["worker.handler_threads=0", "daemom=1", "control_socket=", "nothing"] {
            let refused = find(&files, &[wrong], Need::ControlSocket).unwrap_err().to_string();
            assert!(refused.starts_with(&format!("--set {wrong}: ")), "{text:?}: {refused}");
            assert_eq!(refused.lines().count(), 1, "{refused}");
        }
    }
}

#[test]
fn an_override_of_what_a_broken_file_has_lost_is_no_mistake() {
    let lost = ["listen.1.backlog=5", "limits.messages_burst=5", "listen.1.address=127.0.0.1:7600"];
    let files = Files::new(&[("chappe.toml", "= 5\n")]);
    assert_eq!(socket(&files, &lost).0, "/prefix/run/chappe.sock");
    assert_eq!(files.faults(&lost).len(), 1, "the file's alone");
    for wrong in ["listen.1.adress=5", "listen.64.backlog=5", "listen.1.backlog=x"] {
        assert!(find(&files, &[wrong], Need::ControlSocket).is_err(), "{wrong}");
    }
}
