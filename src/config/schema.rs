//! Every key once: name, type and range, default, what it does, and whether a reload applies it.
//!
//! The single source: reading, writing, messages and `-T` walk these tables, and tests hold the
//! manual (`conf/chappe.toml`), `docs/CONFIGURATION.md` and `Config::default()` against them.

use super::field::{Bounds, Field, Number};
use super::model::{Config, Listen};

/// When a changed value takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Reload,
    Restart,
}

/// One key.
pub(super) struct Key<T: 'static> {
    /// Dotted, from the top of the file; of a listener: the name inside its table.
    pub(super) name: &'static str,
    pub(super) field: Field<T>,
    /// As TOML, the way the manual writes it.
    pub(super) default: &'static str,
    /// One line, for the manual.
    pub(super) doc: &'static str,
    pub(super) change: Change,
}

impl<T> Key<T> {
    const fn new(
        name: &'static str,
        field: Field<T>,
        default: &'static str,
        doc: &'static str,
    ) -> Self {
        Self { name, field, default, doc, change: Change::Reload }
    }

    const fn needs_restart(mut self) -> Self {
        self.change = Change::Restart;
        self
    }
}

impl<T: Default> Key<T> {
    /// Whether the field holds its default. `&mut` only because that is the way to a field.
    pub(super) fn is_default(&self, target: &mut T) -> bool {
        self.field.write(target) == self.field.write(&mut T::default())
    }
}

const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;
const SECOND: u64 = 1000;
const HOUR: u64 = 3600 * SECOND;
const DAY: u64 = 24 * HOUR;

/// Most open descriptors the kernel lets an administrator allow (`fs.nr_open`'s upper end).
const NOFILE_MAX: u64 = 1 << 30;
/// What a worker needs beside its connections is 128; below twice that nothing useful runs.
const NOFILE_MIN: u64 = 256;
/// The shortest time that is worth a timer, and long enough for a worker to do anything.
const TIME_MIN: u64 = 10;

/// The keys outside of `[[listen]]`, in the order of the manual.
pub(super) static KEYS: &[Key<Config>] = &[
    Key::new("include", Field::Include, "[]", "more files to read, relative to this one"),
    Key::new(
        "worker_processes",
        Field::Processes(|c: &mut Config| &mut c.worker_processes),
        "\"auto\"",
        "how many workers; auto: one for each CPU this process may use",
    ),
    Key::new(
        "daemon",
        Field::Flag(|c: &mut Config| &mut c.daemon),
        "true",
        "leave the terminal once every worker serves",
    )
    .needs_restart(),
    Key::new(
        "pid_file",
        Field::Path(|c: &mut Config| &mut c.pid_file),
        "\"run/chappe.pid\"",
        "holds the master's pid and a lock: one server a file; mode 0600, for its owner alone",
    )
    .needs_restart(),
    Key::new(
        "control_socket",
        Field::Path(|c: &mut Config| &mut c.control_socket),
        "\"run/chappe.sock\"",
        "where `chappe status` and its like reach the master; mode 0600",
    )
    .needs_restart(),
    Key::new(
        "user",
        Field::User(|c: &mut Config| &mut c.user),
        "\"nobody\"",
        "whom workers become when the master runs as root",
    )
    .needs_restart(),
    Key::new(
        "worker_shutdown_timeout",
        Field::Time(
            |c: &mut Config| &mut c.worker_shutdown_timeout,
            Bounds::range(TIME_MIN, 7 * DAY),
        ),
        "\"30s\"",
        "how long a graceful stop may take before the rest is cut",
    ),
    Key::new(
        "worker_drain_spread",
        Field::Time(|c: &mut Config| &mut c.worker_drain_spread, Bounds::zero_or(TIME_MIN, HOUR)),
        "\"1s\"",
        "a reload's goodbyes are spread over this time; 0: all at once",
    ),
    Key::new(
        "worker_ready_timeout",
        Field::Time(|c: &mut Config| &mut c.worker_ready_timeout, Bounds::range(TIME_MIN, HOUR)),
        "\"10s\"",
        "how long new workers may take until they are ready",
    ),
    Key::new(
        "worker_stuck_timeout",
        Field::TimeOrOff(
            |c: &mut Config| &mut c.worker_stuck_timeout,
            Bounds::zero_or(TIME_MIN, HOUR),
        ),
        "\"0\"",
        "a worker whose event loop is overdue for this long is killed and replaced; 0: never",
    ),
    Key::new(
        "worker_rlimit_nofile",
        Field::Integer(
            Number::U64(|c: &mut Config| &mut c.worker_rlimit_nofile),
            Bounds::zero_or(NOFILE_MIN, NOFILE_MAX),
        ),
        "0",
        "open descriptors of a worker; 0: as many as the hard limit allows",
    ),
    Key::new(
        "worker_cpu_affinity",
        Field::Choice(|c: &mut Config| &mut c.worker_cpu_affinity),
        "\"off\"",
        "auto: worker N runs on CPU N modulo CPUs",
    ),
    Key::new(
        "max_connections",
        Field::Integer(
            Number::U32(|c: &mut Config| &mut c.max_connections),
            Bounds::range(1, 10_000_000),
        ),
        "100000",
        "connections of all workers together; one more is refused as busy",
    ),
    Key::new(
        "log.directory",
        Field::Path(|c: &mut Config| &mut c.log.directory),
        "\"logs\"",
        "holds master.log, hub.log, worker-0.log, worker-1.log and so on",
    ),
    Key::new(
        "log.level",
        Field::Choice(|c: &mut Config| &mut c.log.level),
        "\"info\"",
        "the least important level that is written",
    ),
    Key::new(
        "log.rotate_size",
        Field::SizeOrOff(
            |c: &mut Config| &mut c.log.rotate_size,
            Bounds::zero_or(64 * KIB, 64 * GIB),
        ),
        "\"64MiB\"",
        "a log of this size is rotated; 0: never",
    ),
    Key::new(
        "log.rotate_keep",
        Field::Integer(
            Number::U32(|c: &mut Config| &mut c.log.rotate_keep),
            Bounds::range(1, 1000),
        ),
        "5",
        "how many rotated logs are kept",
    ),
    Key::new(
        "worker.max_connections",
        Field::Integer(
            Number::U32(|c: &mut Config| &mut c.worker.max_connections),
            Bounds::range(1, 1_000_000),
        ),
        "65536",
        "connections of one worker; at it, it leaves new ones to the others",
    ),
    Key::new(
        "worker.handler_threads",
        Field::Integer(
            Number::U16(|c: &mut Config| &mut c.worker.handler_threads),
            Bounds::range(1, 128),
        ),
        "2",
        "threads of one worker that run message handlers",
    ),
    Key::new(
        "worker.fuse",
        Field::Flag(|c: &mut Config| &mut c.worker.fuse),
        "true",
        "the event loop runs quick handlers itself, and writes their replies",
    ),
    Key::new(
        "worker.deferred_max",
        Field::Integer(
            Number::U32(|c: &mut Config| &mut c.worker.deferred_max),
            Bounds::range(1, 1_000_000),
        ),
        "65536",
        "messages of one worker whose reply is deferred; beyond it the peer gets error 9",
    ),
    Key::new(
        "frame.max_bytes",
        Field::Size(
            Number::Usize(|c: &mut Config| &mut c.frame.max_bytes),
            Bounds::range(8, 65_535),
        ),
        "65535",
        "longest received frame, its header of 8 bytes included",
    ),
    Key::new(
        "inbox.max_messages",
        Field::Integer(
            Number::Usize(|c: &mut Config| &mut c.inbox.max_messages),
            Bounds::range(1, 65_535),
        ),
        "256",
        "messages a connection may have waiting before its reading pauses",
    ),
    Key::new(
        "inbox.max_bytes",
        Field::Size(Number::Usize(|c: &mut Config| &mut c.inbox.max_bytes), Bounds::range(8, GIB)),
        "\"256KiB\"",
        "the same in bytes; one frame always fits",
    ),
    Key::new(
        "inbox.total_max_bytes",
        Field::Size(
            Number::Usize(|c: &mut Config| &mut c.inbox.total_max_bytes),
            Bounds::range(8, 64 * GIB),
        ),
        "\"256MiB\"",
        "received bytes of one worker, partial frames included; while it is exhausted, connections that bring their message to an end are served, and those that have brought nothing for a second are closed, the largest first",
    ),
    Key::new(
        "send.outbox_max_bytes",
        Field::Size(
            Number::Usize(|c: &mut Config| &mut c.send.outbox_max_bytes),
            Bounds::range(8, GIB),
        ),
        "\"1MiB\"",
        "unsent bytes of a connection that pause its handling",
    ),
    Key::new(
        "send.outbox_total_max_bytes",
        Field::Size(
            Number::Usize(|c: &mut Config| &mut c.send.outbox_total_max_bytes),
            Bounds::range(8, 64 * GIB),
        ),
        "\"256MiB\"",
        "unsent bytes of one worker; those of a message that many get are counted once",
    ),
    Key::new(
        "send.outbox_max_age",
        Field::Time(|c: &mut Config| &mut c.send.outbox_max_age, Bounds::range(TIME_MIN, DAY)),
        "\"30s\"",
        "blocked for this long and nothing acknowledged in between: closed",
    ),
    Key::new(
        "send.notsent_lowat",
        Field::Size(
            Number::Usize(|c: &mut Config| &mut c.send.notsent_lowat),
            Bounds::zero_or(KIB, GIB),
        ),
        "\"64KiB\"",
        "TCP_NOTSENT_LOWAT of accepted sockets; 0: the kernel's choice",
    ),
    Key::new(
        "send.slow_reader",
        Field::Choice(|c: &mut Config| &mut c.send.slow_reader),
        "\"close\"",
        "what happens when a handler pushes to a connection beyond outbox_max_bytes: it is \
         closed, with a goodbye behind what is half sent; or only that message is lost. The \
         handler gets an error in both cases. A reply is never dropped: it pauses reading",
    ),
    Key::new(
        "timeouts.idle",
        Field::TimeOrOff(
            |c: &mut Config| &mut c.timeouts.idle,
            Bounds::zero_or(TIME_MIN, 30 * DAY),
        ),
        "\"5m\"",
        "nothing received for this long: goodbye; any byte is a sign of life",
    ),
    Key::new(
        "timeouts.frame",
        Field::Time(|c: &mut Config| &mut c.timeouts.frame, Bounds::range(TIME_MIN, DAY)),
        "\"10s\"",
        "a begun frame must be complete by then",
    ),
    Key::new(
        "timeouts.handshake",
        Field::TimeOrOff(
            |c: &mut Config| &mut c.timeouts.handshake,
            Bounds::zero_or(TIME_MIN, DAY),
        ),
        "\"60s\"",
        "the first frame must be complete this long after accept; where the application has a \
         gate, it must have admitted the peer by then",
    ),
    Key::new(
        "timeouts.deferred",
        Field::Time(|c: &mut Config| &mut c.timeouts.deferred, Bounds::range(TIME_MIN, DAY)),
        "\"20s\"",
        "a reply that a handler has deferred must be given by then, or the peer gets error 4; \
         a drain waits for it, worker_shutdown_timeout at most",
    ),
    Key::new(
        "timeouts.linger",
        Field::Time(|c: &mut Config| &mut c.timeouts.linger, Bounds::range(TIME_MIN, HOUR)),
        "\"2s\"",
        "how long a closing connection's unread input is discarded",
    ),
    Key::new(
        "limits.messages_per_second",
        Field::Integer(
            Number::U32(|c: &mut Config| &mut c.limits.messages_per_second),
            Bounds::range(0, 10_000_000),
        ),
        "0",
        "messages of one connection in a second; 0: off",
    ),
    Key::new(
        "limits.messages_burst",
        Field::Integer(
            Number::U32(|c: &mut Config| &mut c.limits.messages_burst),
            Bounds::range(0, 10_000_000),
        ),
        "0",
        "messages at once; 0: one second's worth; needs messages_per_second",
    ),
    Key::new(
        "limits.bytes_per_second",
        Field::Size(
            Number::U64(|c: &mut Config| &mut c.limits.bytes_per_second),
            Bounds::zero_or(8, 1024 * GIB),
        ),
        "0",
        "bytes of one connection in a second, and at once one frame of frame.max_bytes; 0: off",
    ),
    Key::new(
        "limits.connections_per_ip",
        Field::Integer(
            Number::U32(|c: &mut Config| &mut c.limits.connections_per_ip),
            Bounds::range(0, 10_000_000),
        ),
        "0",
        "connections of one address (IPv6: of one /64), all workers together; 0: off",
    ),
    Key::new(
        "topics.enabled",
        Field::Flag(|c: &mut Config| &mut c.topics.enabled),
        "true",
        "run the hub, and let clients and the service publish and subscribe",
    ),
    Key::new(
        "topics.ring_bytes",
        Field::Size(
            Number::Usize(|c: &mut Config| &mut c.topics.ring_bytes),
            Bounds::range(1 << 20, GIB),
        ),
        "\"16MiB\"",
        "the log of the last messages, which all workers read; rounded up to a power of two",
    )
    .needs_restart(),
    Key::new(
        "topics.max_topics",
        Field::Integer(
            Number::U32(|c: &mut Config| &mut c.topics.max_topics),
            Bounds::range(1, 262_144),
        ),
        "262144",
        "names with subscribers, all workers together",
    ),
    Key::new(
        "topics.max_globs",
        Field::Integer(
            Number::U32(|c: &mut Config| &mut c.topics.max_globs),
            Bounds::range(0, 65_536),
        ),
        "1024",
        "globs among them: patterns of RESP that are more than a prefix",
    ),
    Key::new(
        "topics.max_per_connection",
        Field::Integer(
            Number::U32(|c: &mut Config| &mut c.topics.max_per_connection),
            Bounds::range(1, 65_536),
        ),
        "1024",
        "subscriptions of a connection",
    ),
    Key::new(
        "topics.max_patterns_per_connection",
        Field::Integer(
            Number::U32(|c: &mut Config| &mut c.topics.max_patterns_per_connection),
            Bounds::range(0, 65_536),
        ),
        "16",
        "patterns among them",
    ),
    Key::new(
        "topics.total_max_bytes",
        Field::Size(
            Number::Usize(|c: &mut Config| &mut c.topics.total_max_bytes),
            Bounds::range(64 * KIB, 64 * GIB),
        ),
        "\"64MiB\"",
        "memory of all subscriptions of a worker",
    ),
    Key::new(
        "metrics.address",
        Field::AddressOrOff(|c: &mut Config| &mut c.metrics.address),
        "\"\"",
        "where metrics are served over HTTP, by a process of their own; no passwords: keep it local",
    ),
];

/// The keys of one `[[listen]]`.
pub(super) static LISTEN_KEYS: &[Key<Listen>] = &[
    Key::new(
        "address",
        Field::Address(|l: &mut Listen| &mut l.address),
        "\"127.0.0.1:7600\"",
        "where clients connect; port 0: the kernel chooses one",
    ),
    Key::new(
        "protocol",
        Field::Choice(|l: &mut Listen| &mut l.protocol),
        "\"chappe\"",
        "what the clients speak: frames (PROTOCOL.md) or the protocol of Redis (RESP.md)",
    ),
    Key::new(
        "resp_admin",
        Field::Flag(|l: &mut Listen| &mut l.resp_admin),
        "false",
        "RESP clients may list and kill others, and read the configuration",
    ),
    Key::new(
        "topics",
        Field::Choice(|l: &mut Listen| &mut l.topics),
        "\"auto\"",
        "what clients may do with topics; auto: on for unix sockets and loopback addresses, else off",
    ),
    Key::new(
        "backlog",
        Field::Integer(Number::U32(|l: &mut Listen| &mut l.backlog), Bounds::range(1, 65_535)),
        "511",
        "connections that may wait for accept; the kernel caps it at net.core.somaxconn",
    ),
    Key::new(
        "accept",
        Field::Choice(|l: &mut Listen| &mut l.accept),
        "\"shared\"",
        "shared: one socket for all workers; reuseport: one per worker number",
    )
    .needs_restart(),
    Key::new(
        "ipv6only",
        Field::Flag(|l: &mut Listen| &mut l.ipv6only),
        "true",
        "an IPv6 listener takes IPv6 clients only",
    )
    .needs_restart(),
    Key::new(
        "keepalive",
        Field::Flag(|l: &mut Listen| &mut l.keepalive),
        "false",
        "the kernel probes silent connections (SO_KEEPALIVE)",
    ),
    Key::new(
        "receive_buffer",
        Field::Size(
            Number::Usize(|l: &mut Listen| &mut l.receive_buffer),
            Bounds::zero_or(KIB, GIB),
        ),
        "0",
        "SO_RCVBUF of accepted sockets; 0: the kernel's choice",
    ),
    Key::new(
        "send_buffer",
        Field::Size(Number::Usize(|l: &mut Listen| &mut l.send_buffer), Bounds::zero_or(KIB, GIB)),
        "0",
        "SO_SNDBUF of accepted sockets; 0: the kernel's choice",
    ),
];

/// The tables that hold keys, in the order of the manual; `[[listen]]` stands before `worker`.
pub(super) const SECTIONS: &[&str] =
    &["log", "worker", "frame", "inbox", "send", "timeouts", "limits", "topics", "metrics"];

/// What the top of a file may hold beside [`KEYS`] and [`SECTIONS`].
pub(super) const LISTEN: &str = "listen";
/// The free-form table.
pub(super) const APPLICATION: &str = "application";
/// The key that reads more files.
pub(super) const INCLUDE: &str = "include";

/// The keys of one table; `""`: those above the first table.
pub(super) fn keys_of(section: &str) -> impl Iterator<Item = &'static Key<Config>> {
    KEYS.iter()
        .filter(move |key| key.name.split_once('.').map_or("", |(table, _)| table) == section)
}

/// What a wrong name may have been meant to be: the closest of `known`, if it is close.
pub(super) fn closest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Beyond any key's length there is nothing to compare, and the cost is bounded.
    if name.len() > 64 {
        return None;
    }
    let near = |candidate: &&str| distance(name, candidate) <= candidate.len().max(3) / 3;
    known.into_iter().filter(near).min_by_key(|candidate| distance(name, candidate))
}

/// Edits (insert, delete, replace) between two words.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::closest;

    #[test]
    fn a_slip_is_recognised_and_another_word_is_not() {
        let known = ["handler_threads", "max_connections", "idle"];
        for (name, expected) in [
            ("handler_thread", Some("handler_threads")),
            ("max_conections", Some("max_connections")),
            ("ilde", None),
            ("idel", None),
            ("idles", Some("idle")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(closest(name, known), expected, "{name}");
        }
    }
}
