//! Files that include files.

use super::Files;
use crate::config::files::INCLUDE_DEPTH_MAX;

#[test]
fn tables_are_merged_and_listeners_appended() {
    let files = Files::new(&[
        (
            "chappe.toml",
            "include = ['conf.d/*.toml', 'none/*.toml']\n\
             [worker]\nhandler_threads = 3\n\
             [[listen]]\naddress = '127.0.0.1:1'\n\
             [application]\na = 1\n[application.t]\nx = 1\n",
        ),
        ("conf.d/b.toml", "[[listen]]\naddress = '127.0.0.1:3'\n[application.t]\ny = 2\n"),
        (
            "conf.d/a.toml",
            "include = ['../more.toml']\nworker.max_connections = 9\nlisten = [{address = '127.0.0.1:2'}]\n",
        ),
        ("more.toml", "[log]\nlevel = 'debug'\n"),
        ("conf.d/.hidden.toml", "nonsense"),
    ]);
    let config = files.load(&[]).unwrap().config;
    let addresses: Vec<String> =
        config.listen.iter().map(|listen| listen.address.to_string()).collect();
    assert_eq!(addresses, ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]);
    assert_eq!((config.worker.handler_threads, config.worker.max_connections), (3, 9));
    assert_eq!(config.log.level, crate::config::LogLevel::Debug);
    assert_eq!(
        config.application,
        toml::toml! { a = 1
        t = { x = 1, y = 2 } }
    );
}

#[test]
fn a_key_set_in_two_files_names_both_places() {
    let files = Files::new(&[
        (
            "chappe.toml",
            "include = ['b.toml']\nworker.handler_threads = 3\napplication.x.y = 1\napplication.z = 1\n",
        ),
        ("b.toml", "\n[worker]\nhandler_threads = 3\n[application]\nx = 5\nz.a = 3\n"),
    ]);
    assert_eq!(
        files.faults(&[]),
        [
            "b.toml:3:19: worker.handler_threads is set twice, first at chappe.toml:2:26",
            "b.toml:5:5: application.x is set twice, first at chappe.toml:3:13",
            "b.toml:6:1: application.z is set twice, first at chappe.toml:4:17",
        ]
    );
}

#[test]
fn mistakes_of_all_files_come_together() {
    let files = Files::new(&[
        (
            "chappe.toml",
            "include = ['a.toml', 'b.toml', 'gone.toml', 5, '', '[', '/']\ndaemon = 1\n",
        ),
        ("a.toml", "[frame]\nmax_bytes = 1\n"),
        ("b.toml", "daemon = \n[[listen]]\nbacklog = 0\n"),
    ]);
    assert_eq!(
        files.faults(&[]),
        [
            "chappe.toml:1:32: gone.toml cannot be read: No such file or directory (os error 2)",
            "chappe.toml:1:45: include is 5, must be an array of paths and globs",
            "chappe.toml:1:48: include is \"\", must be an array of paths and globs",
            "chappe.toml:1:52: include is \"[\", which is not a glob: invalid range pattern",
            "chappe.toml:1:57: / is a directory, must be a file",
            "chappe.toml:2:10: daemon is 1, must be true or false",
            "a.toml:2:13: frame.max_bytes is 1, must be a size from 8 to 65535",
            "b.toml:1:10: not TOML: string values must be quoted, expected literal string",
        ]
    );
}

#[test]
fn a_file_that_includes_itself_is_refused() {
    let files = Files::new(&[
        ("chappe.toml", "include = ['a.toml']"),
        ("a.toml", "include = ['b.toml']"),
        ("b.toml", "include = ['a.toml', './chappe.toml']"),
    ]);
    assert_eq!(
        files.faults(&[]),
        [
            "b.toml:1:12: includes itself: a.toml -> b.toml -> a.toml",
            "b.toml:1:22: includes itself: chappe.toml -> a.toml -> b.toml -> ./chappe.toml",
        ]
    );
    let twice = Files::new(&[("chappe.toml", "include = ['a.toml', '*a.toml']"), ("a.toml", "")]);
    assert_eq!(twice.faults(&[]), ["chappe.toml:1:22: a.toml is included twice"]);
}

#[test]
fn the_depth_of_includes_has_a_limit() {
    let deep = |depth: usize| {
        let files = Files::new(&[("chappe.toml", "include = ['1.toml']")]);
        for level in 1..depth {
            files.write(
                &format!("{level}.toml"),
                format!("include = ['{}.toml']", level + 1).as_bytes(),
            );
        }
        files.write(&format!("{depth}.toml"), b"");
        files
    };
    assert!(deep(INCLUDE_DEPTH_MAX).load(&[]).is_ok());
    assert_eq!(
        deep(INCLUDE_DEPTH_MAX + 1).faults(&[]),
        ["8.toml:1:12: 9.toml is included more than 8 files deep"]
    );
}

#[test]
fn a_directory_with_wild_cards_in_its_name_is_taken_literally() {
    let files = Files::new(&[
        ("[x]*/main.toml", "include = ['d/*.toml']"),
        ("[x]*/d/a.toml", "daemon = false"),
    ]);
    let path = files.path("[x]*/main.toml");
    assert!(!crate::config::load(&path, path.parent().unwrap(), &[]).unwrap().config.daemon);
}
