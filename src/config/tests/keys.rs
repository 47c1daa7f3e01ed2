//! Every key: its default, its bounds, one step beyond them, and a wrong type.

use crate::config::schema::{KEYS, Key, LISTEN_KEYS};
use crate::config::{Config, Listen, tree};

/// A key, what it takes with the form it is written back in, and what it refuses.
struct Case(&'static str, &'static [(&'static str, &'static str)], &'static [&'static str]);

const PATHS: &[(&str, &str)] = &[("'a'", "\"a\""), ("'/a b/ü'", "\"/a b/ü\"")];
const NOT_PATHS: &[&str] = &["''", "\"a\\u007f\"", "\"a\\u0000\"", "1", "true", "[]"];
const FLAGS: &[(&str, &str)] = &[("true", "true"), ("false", "false")];
const NOT_FLAGS: &[&str] = &["1", "'true'", "[]", "{}", "1.5", "1979-05-27"];
const COUNT_OR_OFF: &[(&str, &str)] = &[("0", "0"), ("1", "1"), ("10_000_000", "10000000")];
const NOT_COUNT_OR_OFF: &[&str] = &["-1", "10_000_001", "'1'", "1.0"];
const BUFFERS: &[(&str, &str)] =
    &[("0", "0"), ("1024", "\"1KiB\""), ("'1GiB'", "\"1GiB\""), ("'64k'", "\"64KiB\"")];
const NOT_BUFFERS: &[&str] = &["1", "1023", "1073741825", "'64KB'", "true", "-1"];
const HOUR: &[(&str, &str)] = &[("'10ms'", "\"10ms\""), ("'1h'", "\"1h\"")];
const NOT_HOUR: &[&str] = &["'9ms'", "'3601s'", "'0'", "0", "30", "'30'", "1.5", "true"];
const DAY: &[(&str, &str)] = &[("'10ms'", "\"10ms\""), ("'24h'", "\"1day\"")];
const NOT_DAY: &[&str] = &["'9ms'", "'86401s'", "'0'", "0", "30", "''", "[]"];

const CASES: &[Case] = &[
    Case("include", &[("[]", "[]")], &[]),
    Case(
        "worker_processes",
        &[("1", "1"), ("1024", "1024"), ("'auto'", "\"auto\""), ("0x10", "16")],
        &["0", "1025", "-1", "'4'", "'Auto'", "99999999999999999999"],
    ),
    Case("daemon", FLAGS, NOT_FLAGS),
    Case("pid_file", PATHS, NOT_PATHS),
    Case("control_socket", PATHS, NOT_PATHS),
    Case(
        "user",
        &[("''", "\"\""), ("'www'", "\"www\""), ("'www:web'", "\"www:web\"")],
        &[
            "':web'",
            "'www:'",
            "'a:b:c'",
            "'a b'",
            "'a/b'",
            "0",
            "'ausernamewithmorethanthirtytwobytes'",
        ],
    ),
    Case(
        "worker_shutdown_timeout",
        &[("'10ms'", "\"10ms\""), ("'7days'", "\"7days\"")],
        &["'9ms'", "'604801s'", "'0'", "0", "30"],
    ),
    Case(
        "worker_drain_spread",
        &[("'0'", "\"0\""), ("0", "\"0\""), ("'10ms'", "\"10ms\""), ("'1h'", "\"1h\"")],
        &["'9ms'", "'3601s'", "1", "-1", "'1parsec'"],
    ),
    Case("worker_ready_timeout", HOUR, NOT_HOUR),
    Case(
        "worker_stuck_timeout",
        &[("'0'", "\"0\""), ("'10ms'", "\"10ms\""), ("'1h'", "\"1h\"")],
        &["'9ms'", "'3601s'", "1"],
    ),
    Case(
        "worker_rlimit_nofile",
        &[("0", "0"), ("256", "256"), ("1073741824", "1073741824")],
        &["1", "255", "1073741825", "-1", "'0'"],
    ),
    Case(
        "worker_cpu_affinity",
        &[("'off'", "\"off\""), ("'auto'", "\"auto\"")],
        &["false", "'on'"],
    ),
    Case(
        "max_connections",
        &[("1", "1"), ("10000000", "10000000")],
        &["0", "10000001", "'many'", "1e3"],
    ),
    Case("log.directory", PATHS, NOT_PATHS),
    Case(
        "log.level",
        &[
            ("'error'", "\"error\""),
            ("'warn'", "\"warn\""),
            ("'info'", "\"info\""),
            ("'debug'", "\"debug\""),
            ("'trace'", "\"trace\""),
            ("'off'", "\"off\""),
        ],
        &["'INFO'", "''", "3", "false"],
    ),
    Case(
        "log.rotate_size",
        &[("'0'", "0"), ("0", "0"), ("65536", "\"64KiB\""), ("'64GiB'", "\"64GiB\"")],
        &["1", "65535", "68719476737", "'64MB'", "'1.5MiB'", "true"],
    ),
    Case("log.rotate_keep", &[("1", "1"), ("1000", "1000")], &["0", "1001", "'5'"]),
    Case(
        "worker.max_connections",
        &[("1", "1"), ("1000000", "1000000")],
        &["0", "1000001", "-5", "'auto'"],
    ),
    Case("worker.handler_threads", &[("1", "1"), ("128", "128")], &["0", "129", "65538", "'2'"]),
    Case("worker.fuse", &[("true", "true"), ("false", "false")], &["1", "'on'"]),
    Case(
        "worker.deferred_max",
        &[("1", "1"), ("1000000", "1000000")],
        &["0", "1000001", "-1", "'auto'"],
    ),
    Case(
        "frame.max_bytes",
        &[("8", "8"), ("65535", "65535"), ("'32KiB'", "\"32KiB\"")],
        &["7", "65536", "'64KiB'", "0", "-8"],
    ),
    Case("inbox.max_messages", &[("1", "1"), ("65535", "65535")], &["0", "65536", "'1K'"]),
    Case(
        "inbox.max_bytes",
        &[("8", "8"), ("'1GiB'", "\"1GiB\"")],
        &["7", "1073741825", "'2GiB'", "0"],
    ),
    Case(
        "inbox.total_max_bytes",
        &[("8", "8"), ("'64GiB'", "\"64GiB\"")],
        &["7", "68719476737", "[]"],
    ),
    Case("send.outbox_max_bytes", &[("8", "8"), ("'1G'", "\"1GiB\"")], &["7", "1073741825"]),
    Case(
        "send.outbox_total_max_bytes",
        &[("8", "8"), ("'64 GiB'", "\"64GiB\"")],
        &["7", "68719476737", "'999999999999999999999'", "'99999999999GiB'"],
    ),
    Case("send.outbox_max_age", DAY, NOT_DAY),
    Case("send.notsent_lowat", BUFFERS, NOT_BUFFERS),
    Case(
        "send.slow_reader",
        &[("'close'", "\"close\""), ("'drop-newest'", "\"drop-newest\"")],
        &["'drop_newest'", "true"],
    ),
    Case(
        "timeouts.idle",
        &[
            ("'0'", "\"0\""),
            ("0", "\"0\""),
            ("'0s'", "\"0\""),
            ("'10ms'", "\"10ms\""),
            ("'30days'", "\"30days\""),
        ],
        &["'9ms'", "'2592001s'", "300", "'5'", "'five'"],
    ),
    Case("timeouts.frame", DAY, NOT_DAY),
    Case(
        "timeouts.handshake",
        &[
            ("'0'", "\"0\""),
            ("'10ms'", "\"10ms\""),
            ("'1500us 1s 9ms'", "\"1s 10ms 500us\""),
            ("'1day'", "\"1day\""),
        ],
        &["'9ms'", "'86401s'", "60"],
    ),
    Case("timeouts.deferred", DAY, NOT_DAY),
    Case("timeouts.linger", HOUR, NOT_HOUR),
    Case("limits.messages_per_second", COUNT_OR_OFF, NOT_COUNT_OR_OFF),
    Case("limits.messages_burst", COUNT_OR_OFF, NOT_COUNT_OR_OFF),
    Case(
        "limits.bytes_per_second",
        &[("0", "0"), ("8", "8"), ("'1024GiB'", "\"1024GiB\"")],
        &["7", "1099511627777", "-1"],
    ),
    Case("limits.connections_per_ip", COUNT_OR_OFF, NOT_COUNT_OR_OFF),
    Case("topics.enabled", FLAGS, NOT_FLAGS),
    Case(
        "topics.ring_bytes",
        &[("'1MiB'", "\"1MiB\""), ("'1GiB'", "\"1GiB\"")],
        &["1048575", "1073741825", "0", "'16MB'"],
    ),
    Case("topics.max_topics", &[("1", "1"), ("262144", "262144")], &["0", "262145", "'1'"]),
    Case("topics.max_globs", &[("0", "0"), ("65536", "65536")], &["-1", "65537", "'1'"]),
    Case("topics.max_per_connection", &[("1", "1"), ("65536", "65536")], &["0", "65537", "-1"]),
    Case(
        "topics.max_patterns_per_connection",
        &[("0", "0"), ("65536", "65536")],
        &["-1", "65537", "true"],
    ),
    Case(
        "topics.total_max_bytes",
        &[("'64KiB'", "\"64KiB\""), ("'64GiB'", "\"64GiB\"")],
        &["65535", "68719476737", "0"],
    ),
    Case(
        "metrics.address",
        &[
            ("''", "\"\""),
            ("'127.0.0.1:0'", "\"127.0.0.1:0\""),
            ("'[::1]:65535'", "\"[::1]:65535\""),
        ],
        &["'127.0.0.1:65536'", "'localhost:1'", "'unix:run/m.sock'", "7601", "false", "' '"],
    ),
];

const LISTEN_CASES: &[Case] = &[
    Case(
        "address",
        &[
            ("'127.0.0.1:0'", "\"127.0.0.1:0\""),
            ("'0.0.0.0:65535'", "\"0.0.0.0:65535\""),
            ("'[::1]:7600'", "\"[::1]:7600\""),
            ("'unix:run/a.sock'", "\"unix:run/a.sock\""),
        ],
        &["'127.0.0.1:65536'", "'localhost:1'", "'::1:7600'", "':7600'", "'unix:'", "7600", "''"],
    ),
    Case("protocol", &[("'chappe'", "\"chappe\""), ("'resp'", "\"resp\"")], &["'redis'", "1"]),
    Case("resp_admin", FLAGS, NOT_FLAGS),
    Case(
        "topics",
        &[
            ("'off'", "\"off\""),
            ("'subscribe'", "\"subscribe\""),
            ("'on'", "\"on\""),
            ("'auto'", "\"auto\""),
        ],
        &["'publish'", "true", "''"],
    ),
    Case("backlog", &[("1", "1"), ("65535", "65535")], &["0", "65536", "'511'"]),
    Case(
        "accept",
        &[("'shared'", "\"shared\""), ("'reuseport'", "\"reuseport\"")],
        &["'mutex'", "true"],
    ),
    Case("ipv6only", FLAGS, NOT_FLAGS),
    Case("keepalive", FLAGS, NOT_FLAGS),
    Case("receive_buffer", BUFFERS, NOT_BUFFERS),
    Case("send_buffer", BUFFERS, NOT_BUFFERS),
];

fn check<T: Default + PartialEq + std::fmt::Debug>(keys: &[Key<T>], cases: &[Case]) {
    let names: Vec<&str> = keys.iter().map(|key| key.name).collect();
    let tested: Vec<&str> = cases.iter().map(|case| case.0).collect();
    assert_eq!(names, tested, "each key has its row, in order");
    for (key, Case(name, accepted, refused)) in keys.iter().zip(cases) {
        let value = |text: &str| {
            tree::parse_value(text).unwrap_or_else(|| panic!("{name}: {text}")).into_inner()
        };
        let mut target = T::default();
        key.field.read(&mut target, &value(key.default)).expect("a default in its range");
        assert_eq!(target, T::default(), "{name}: the schema's default is the code's");
        for (text, written) in *accepted {
            let mut target = T::default();
            key.field.read(&mut target, &value(text)).unwrap_or_else(|e| panic!("{name} {e}"));
            assert_eq!(key.field.write(&mut target), *written, "{name} = {text}");
            let mut again = T::default();
            key.field.read(&mut again, &value(written)).expect("what was written is read");
            assert_eq!(again, target, "{name} = {written}");
        }
        for text in *refused {
            let mut target = T::default();
            let error = key.field.read(&mut target, &value(text)).expect_err(text);
            assert!(error.contains(", must be "), "{name}: {error}");
            assert_eq!(target, T::default(), "{name}: a refused value changes nothing");
        }
    }
}

#[test]
fn every_key_takes_its_range_and_nothing_else() {
    check::<Config>(KEYS, CASES);
}

#[test]
fn every_key_of_a_listener_takes_its_range_and_nothing_else() {
    check::<Listen>(LISTEN_KEYS, LISTEN_CASES);
}

#[test]
fn the_number_of_workers_is_never_zero() {
    let mut config = Config::default();
    assert!((1..=1024).contains(&config.effective_worker_processes()));
    config.worker_processes = crate::config::model::WorkerProcesses::Count(7);
    assert_eq!(config.effective_worker_processes(), 7);
}
