//! What a reload says has changed.

use super::loaded;
use crate::config::{Config, match_listeners};

fn config(text: &str) -> Config {
    loaded(text, &[]).config
}

#[test]
fn the_same_text_changes_nothing_and_defaults_may_be_written_out() {
    let text = "worker_processes = 3\n[[listen]]\naddress = '127.0.0.1:0'\n[application]\na = 1\n";
    let changes = config(text).changes(&config(text));
    assert_eq!((changes.applied.len(), changes.restart.len()), (0, 0), "{changes:?}");
    let written = config("max_connections = 100000\n");
    assert_eq!(config("").changes(&written), super::super::Changes::default());
}

#[test]
fn changed_keys_are_named_by_what_can_be_done_about_them() {
    let old = config("[[listen]]\naddress = '127.0.0.1:1'\n[[listen]]\naddress = '127.0.0.1:2'\n");
    let new = config(
        "worker_processes = 7\ndaemon = false\npid_file = 'x'\n[log]\nlevel = 'debug'\n\
         [[listen]]\naddress = '127.0.0.1:2'\nbacklog = 5\nipv6only = false\n\
         [[listen]]\naddress = '[::1]:1'\n[application]\na = 1\n",
    );
    let changes = old.changes(&new);
    assert_eq!(
        changes.applied,
        [
            "worker_processes",
            "log.level",
            "listen 127.0.0.1:2 backlog",
            "listen [::1]:1 added",
            "listen 127.0.0.1:1 removed",
            "application",
        ]
    );
    assert_eq!(changes.restart, ["daemon", "pid_file", "listen 127.0.0.1:2 ipv6only"]);
}

#[test]
fn what_needs_a_restart_can_be_kept_whatever_it_is() {
    let old = config("[[listen]]\naddress = '127.0.0.1:1'\n");
    let mut new = config(
        "daemon = false\npid_file = 'x'\ncontrol_socket = 'y'\nuser = 'root:root'\n\
         [topics]\nring_bytes = '1MiB'\n[[listen]]\naddress = '127.0.0.1:1'\nipv6only = false\naccept = 'reuseport'\n\
         backlog = 9\n",
    );
    // Every key that needs a restart is in there, or the next line would not hold.
    assert_eq!(old.changes(&new).restart.len(), 7);
    new.keep_until_restart(&old);
    let left = old.changes(&new);
    assert_eq!(left.restart, [""; 0]);
    assert_eq!(left.applied, ["listen 127.0.0.1:1 backlog"]);
}

#[test]
fn listeners_are_matched_by_their_text_and_each_once() {
    let listen = |addresses: &[&str]| {
        let tables: Vec<_> =
            addresses.iter().map(|a| format!("[[listen]]\naddress = '{a}'\n")).collect();
        config(&tables.concat()).listen
    };
    let old = listen(&["127.0.0.1:0", "[::1]:7", "127.0.0.1:0"]);
    let new = listen(&["[::1]:7", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"]);
    assert_eq!(match_listeners(&old, &new), [Some(1), Some(0), Some(2), None]);
    assert_eq!(match_listeners(&old, &[]), []);
}
