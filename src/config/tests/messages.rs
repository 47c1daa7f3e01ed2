//! The exact words of messages: operators read them and scripts look for them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{Files, faults, load_text, loaded};
use crate::config::files::FILE_BYTES_MAX;
use crate::config::{Config, load};

#[test]
fn several_mistakes_come_at_once_in_the_order_of_the_file() {
    let text = "\
worker_procesess = 4
worker_processes = \"four\"
handler_threads = 3
daemon = \"yes\"

[worker]
  handler_threads = 0
  max_connections = \"10\"

[timeouts]
idle = 300
frame = \"300\"
handshake = \"1 parsec\"

[[listen]]
address = \"localhost:7600\"
[[listen]]
adress = \"127.0.0.1:1\"
backlog = -1

[inbox]
max_bytes = \"64KB\"
[log]
level = \"loud\"
[colours]
";
    assert_eq!(
        faults(text, &[]),
        [
            "chappe.toml:1:1: worker_procesess is unknown, did you mean worker_processes?",
            "chappe.toml:2:20: worker_processes is \"four\", must be an integer, 1..=1024 or \"auto\"",
            "chappe.toml:3:1: handler_threads is unknown, did you mean worker.handler_threads?",
            "chappe.toml:4:10: daemon is \"yes\", must be true or false",
            "chappe.toml:7:21: worker.handler_threads is 0, must be 1..=128",
            "chappe.toml:8:21: worker.max_connections is \"10\", must be an integer, 1..=1000000",
            "chappe.toml:11:8: timeouts.idle is 300, must be \"0\" (off) or a duration from \
             \"10ms\" to \"30days\"; write a unit, such as \"300s\"",
            "chappe.toml:12:9: timeouts.frame is \"300\", must be a duration from \"10ms\" to \
             \"1day\"; time unit needed, for example 300sec or 300ms",
            "chappe.toml:13:13: timeouts.handshake is \"1 parsec\", must be \"0\" (off) or a \
             duration from \"10ms\" to \"1day\"; unknown time unit \"parsec\", supported units: \
             ns, us/µs, ms, sec, min, hours, days, weeks, months, years (and few variations)",
            "chappe.toml:16:11: listen.0.address is \"localhost:7600\", must be \"IPv4:port\", \
             \"[IPv6]:port\" or \"unix:path\"; names are not looked up: write 127.0.0.1:7600 or \
             [::1]:7600",
            "chappe.toml:18:1: listen.1.adress is unknown, did you mean listen.1.address?",
            "chappe.toml:19:11: listen.1.backlog is -1, must be 1..=65535",
            "chappe.toml:22:13: inbox.max_bytes is \"64KB\", must be a size from 8 to 1GiB; write \
             KiB, MiB or GiB, which are powers of 1024",
            "chappe.toml:24:9: log.level is \"loud\", must be \"error\", \"warn\", \"info\", \
             \"debug\", \"trace\" or \"off\"",
            "chappe.toml:25:2: colours is unknown, the top level has include, worker_processes, \
             daemon, pid_file, control_socket, user, worker_shutdown_timeout, \
             worker_drain_spread, worker_ready_timeout, worker_stuck_timeout, worker_rlimit_nofile, \
             worker_cpu_affinity, max_connections, log, worker, frame, inbox, send, timeouts, \
             limits, topics, metrics, listen, application",
        ]
    );
}

#[test]
fn values_are_checked_against_each_other() {
    let cases: &[(&str, &[&str])] = &[
        (
            "[send]\noutbox_max_bytes = 8\noutbox_total_max_bytes = '1K'\nframe.max_bytes=9\n",
            &["4:1: send.frame is unknown, did you mean [frame]?"],
        ),
        (
            "limits.bytes_per_second = 100\nlimits.messages_burst = 3",
            &["2:25: limits.messages_burst is 3, must be 0 while limits.messages_per_second is 0"],
        ),
        (
            "pid_file = './x'\ncontrol_socket = 'x'",
            &["2:18: control_socket is the same path as pid_file, must be a different path"],
        ),
        (
            "[[listen]]\n[[listen]]\naddress = '127.0.0.1:7601'\n[[listen]]\nbacklog = 3\n\
             [[listen]]\naddress = '127.0.0.1:7601'\n",
            &[
                "5:11: listen.2.address is 127.0.0.1:7600, which listen.0 has at chappe.toml:1:1 too",
                "7:11: listen.3.address is 127.0.0.1:7601, which listen.1 has at chappe.toml:3:11 too",
            ],
        ),
        (
            "[[listen]]\naddress = 'unix:/a'\n[[listen]]\naddress = 'unix:/a'\n\
             [[listen]]\naddress = 'unix:run/chappe.sock'\n",
            &[
                "4:11: listen.1.address is unix:/a, which listen.0 has at chappe.toml:2:11 too",
                "6:11: listen.2.address is the same path as control_socket, must be a different path",
            ],
        ),
        ("listen = []", &["1:10: listen has 0 tables, must have 1..=64"]),
    ];
    for (text, expected) in cases {
        let mut expected: Vec<String> =
            expected.iter().map(|line| format!("chappe.toml:{line}")).collect();
        let mut found = faults(text, &[]);
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{text}");
    }
    assert!(load_text("listen = [{address='127.0.0.1:0'}, {address='127.0.0.1:0'}]", &[]).is_ok());
}

#[test]
fn what_is_built_is_not_warned_about() {
    let files = Files::new(&[("chappe.toml", "limits.connections_per_ip = 5\n")]);
    let warnings = files.load(&["send.slow_reader=drop-newest"]).unwrap().warnings;
    assert_eq!(warnings, [""; 0]);
}

#[test]
fn a_time_for_deferred_replies_that_a_drain_does_not_have_is_warned_of() {
    for (text, expected) in [
        ("timeouts.deferred = '29999ms'", None),
        (
            "timeouts.deferred = '30s'",
            Some(
                "chappe.toml:1:21: timeouts.deferred is 30s, not less than \
                 worker_shutdown_timeout, which is 30s: a drain does not wait for all deferred \
                 replies",
            ),
        ),
        ("worker_shutdown_timeout = '1s'", None),
    ] {
        let warnings = Files::new(&[("chappe.toml", text)]).load(&[]).unwrap().warnings;
        assert_eq!(warnings.len(), usize::from(expected.is_some()), "{warnings:?}");
        assert!(expected.is_none_or(|expected| warnings[0].ends_with(expected)), "{warnings:?}");
    }
}

#[test]
fn a_total_below_one_connections_share_is_warned_of() {
    let cases = [
        (
            "inbox.max_bytes = '512MiB'",
            "inbox.total_max_bytes is 256MiB by default, less than \
          inbox.max_bytes, which is 512MiB: the total decides",
        ),
        (
            "send.outbox_max_bytes = '2M'\nsend.outbox_total_max_bytes = '1M'",
            "send.outbox_total_max_bytes is 1MiB, less than send.outbox_max_bytes, which is 2MiB: \
          the total decides",
        ),
    ];
    for (text, expected) in cases {
        let warnings = Files::new(&[("chappe.toml", text)]).load(&[]).unwrap().warnings;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].ends_with(expected), "{warnings:?}");
    }
}

#[test]
fn a_log_is_no_place_for_anything_else() {
    let rows = [
        ("pid_file = \"logs/master.log\"\n", "chappe.toml:1:12: pid_file is the path of a log"),
        ("pid_file = \"logs/worker-7.log.3\"\n", "chappe.toml:1:12: pid_file is the path of a log"),
        (
            "control_socket = \"./logs/worker-0.log\"\n",
            "chappe.toml:1:18: control_socket is the path of a log",
        ),
        (
            "[log]\ndirectory = \"/prefix/run/..\"\n[[listen]]\naddress = \"unix:x/master.log\"\n",
            "",
        ),
        (
            "[[listen]]\naddress = \"unix:logs/worker-1.log\"\n",
            "chappe.toml:2:11: listen.0.address is the path of a log",
        ),
        // Others' files, and what no worker has for a number.
        ("pid_file = \"logs/chappe.pid\"\n", ""),
        ("pid_file = \"logs/worker-x.log\"\n", ""),
        ("pid_file = \"run/master.log\"\n", ""),
    ];
    for (text, expected) in rows {
        let found = match expected {
            "" => load_text(text, &[]).map(|_| Vec::new()).unwrap_or_else(|e| vec![e.to_string()]),
            _ => faults(text, &[]),
        };
        let expected: Vec<String> = [expected]
            .into_iter()
            .filter(|e| !e.is_empty())
            .map(|e| format!("{e} in log.directory, must be a different path"))
            .collect();
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn a_syntax_error_names_its_place_and_hides_what_follows_from_it() {
    assert_eq!(
        faults("daemon = true\ndaemon = false\n[worker\nx\n", &[]),
        ["chappe.toml:2:1: not TOML: duplicate key"]
    );
    // What is behind it would all be taken for elements.
    let rest = "[worker]\nhandler_threads = 2\n".repeat(10);
    let found = faults(&format!("include = [\n  \"a.toml\",\n{rest}"), &[]);
    let first = "chappe.toml:3:2: not TOML: string values must be quoted, expected literal string";
    assert_eq!(found, [first]);
    // A file of its own has its own.
    let both =
        Files::new(&[("chappe.toml", "include = ['a.toml']\nx =\ny =\n"), ("a.toml", "z =\n")]);
    assert_eq!(both.faults(&[]).len(), 1);
}

#[test]
fn files_that_are_none_are_named() {
    let files = Files::new(&[]);
    let missing = "chappe.toml: cannot be read: No such file or directory (os error 2)";
    assert_eq!(files.faults(&[]), [missing]);
    files.write("chappe.toml", b"# fine\n\xff");
    assert_eq!(files.faults(&[]), ["chappe.toml: is not UTF-8 in line 2"]);

    let limit = usize::try_from(FILE_BYTES_MAX).unwrap();
    files.write("chappe.toml", &vec![b'\n'; limit]);
    assert!(files.load(&[]).is_ok());
    files.write("chappe.toml", &vec![b'\n'; limit + 1]);
    let large = "chappe.toml: is larger than 1MiB, the most a configuration file may have";
    assert_eq!(files.faults(&[]), [large]);

    let directory = Files::new(&[("chappe.toml/x", "")]);
    assert_eq!(directory.faults(&[]), ["chappe.toml: is a directory, must be a file"]);

    let odd = Path::new(OsStr::from_bytes(b"/nowhere/\xff\n"));
    let errors = load(odd, Path::new("/"), &[]).unwrap_err().to_string();
    assert_eq!(errors.lines().count(), 1, "{errors}");
}

#[test]
fn an_empty_file_gives_the_defaults_under_the_prefix() {
    let expected = Config {
        pid_file: "/prefix/run/chappe.pid".into(),
        control_socket: "/prefix/run/chappe.sock".into(),
        log: crate::config::model::Log { directory: "/prefix/logs".into(), ..Default::default() },
        ..Config::default()
    };
    let found = loaded("", &[]);
    assert_eq!(found.config, expected);
    assert_eq!(found.warnings, Vec::<String>::new());
    assert_eq!(loaded("\u{feff}# with a byte order mark\n", &[]).config, expected);

    let here = std::env::current_dir().unwrap();
    let files = Files::new(&[("chappe.toml", "")]);
    let path = files.path("chappe.toml");
    for prefix in ["", ".", "./"] {
        let config = load(&path, Path::new(prefix), &[]).unwrap().config;
        assert_eq!(config.pid_file, here.join("run/chappe.pid"), "prefix {prefix:?}");
    }
}
