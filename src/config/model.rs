//! The configuration as the rest of the server sees it: one struct a table, one field a key,
//! and types that mean something (a time-out that can be off is an `Option<Duration>`, not a 0).
//!
//! Pure data, used by every process and thread; nothing here reads a file. The text behind it
//! (names, ranges, defaults as written) stands in `schema`, and a test holds both together.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::Duration;

/// Most workers that can be configured. `auto` stops here too.
pub(crate) const WORKER_PROCESSES_MAX: u16 = 1024;

/// Descriptors that a worker keeps for itself: refused connections that linger, and
/// its own. `docs/ARCHITECTURE.md` lists them.
pub(crate) const DESCRIPTORS_RESERVED: u64 = 128;

/// Everything `chappe.toml` says, checked, with the defaults filled in.
///
/// Paths of a loaded configuration are absolute; those of `Config::default()` are relative,
/// as a person would write them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    /// How many workers run.
    pub(crate) worker_processes: WorkerProcesses,
    /// Whether the master leaves the terminal.
    pub(crate) daemon: bool,
    /// The file that holds the master's pid and its lock.
    pub(crate) pid_file: PathBuf,
    /// The Unix socket through which the operator's commands reach the master.
    pub(crate) control_socket: PathBuf,
    /// Whom the workers become when the master runs as root; `None`: they stay who they are.
    pub(crate) user: Option<User>,
    /// How long a graceful stop may take before what is left is cut.
    pub(crate) worker_shutdown_timeout: Duration,
    /// The time over which a reload spreads its goodbyes.
    pub(crate) worker_drain_spread: Duration,
    /// How long new workers may take until they are ready.
    pub(crate) worker_ready_timeout: Duration,
    /// How long a worker may make no progress before it is replaced; `None`: forever.
    pub(crate) worker_stuck_timeout: Option<Duration>,
    /// The soft limit of open descriptors; 0: as high as the hard limit allows.
    pub(crate) worker_rlimit_nofile: u64,
    /// Whether workers are bound to CPUs.
    pub(crate) worker_cpu_affinity: CpuAffinity,
    /// Most connections of all workers together.
    pub(crate) max_connections: u32,
    /// `[log]`.
    pub(crate) log: Log,
    /// `[[listen]]`, in the order of the file; never empty.
    pub(crate) listen: Vec<Listen>,
    /// `[worker]`.
    pub(crate) worker: Worker,
    /// `[frame]`.
    pub(crate) frame: Frame,
    /// `[inbox]`.
    pub(crate) inbox: Inbox,
    /// `[send]`.
    pub(crate) send: Send,
    /// `[timeouts]`.
    pub(crate) timeouts: Timeouts,
    /// `[limits]`.
    pub(crate) limits: Limits,
    /// `[topics]`.
    pub(crate) topics: Topics,
    /// `[metrics]`.
    pub(crate) metrics: Metrics,
    /// `[application]`: free form, for the handlers of the programmer.
    pub(crate) application: toml::Table,
}

impl Config {
    /// The number of workers to run, 1..=[`WORKER_PROCESSES_MAX`]. `auto` is the number of CPUs
    /// this process may use (its affinity mask and CPU quota), or 1 if the kernel won't say.
    pub(crate) fn effective_worker_processes(&self) -> u16 {
        match self.worker_processes {
            WorkerProcesses::Count(count) => count,
            WorkerProcesses::Auto => available_parallelism()
                .ok()
                .and_then(|cpus| u16::try_from(cpus.get()).ok())
                .map_or(1, |cpus| cpus.min(WORKER_PROCESSES_MAX)),
        }
    }
}

impl Config {
    /// The most connections of a worker that may open `nofile` descriptors: what is
    /// configured, or what there is room for.
    pub(crate) fn effective_worker_connections(&self, descriptors: u64) -> u32 {
        let room = descriptors.saturating_sub(DESCRIPTORS_RESERVED).max(1);
        self.worker.max_connections.min(u32::try_from(room).unwrap_or(u32::MAX))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            worker_processes: WorkerProcesses::Auto,
            daemon: true,
            pid_file: PathBuf::from("run/chappe.pid"),
            control_socket: PathBuf::from("run/chappe.sock"),
            user: Some(User { user: "nobody".into(), group: None }),
            worker_shutdown_timeout: Duration::from_secs(30),
            worker_drain_spread: Duration::from_secs(1),
            worker_ready_timeout: Duration::from_secs(10),
            worker_stuck_timeout: None,
            worker_rlimit_nofile: 0,
            worker_cpu_affinity: CpuAffinity::Off,
            max_connections: 100_000,
            log: Log::default(),
            listen: vec![Listen::default()],
            worker: Worker::default(),
            frame: Frame::default(),
            inbox: Inbox::default(),
            send: Send::default(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            topics: Topics::default(),
            metrics: Metrics::default(),
            application: toml::Table::new(),
        }
    }
}

/// How many workers run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerProcesses {
    /// One for each CPU this process may use.
    Auto,
    /// This many, 1..=[`WORKER_PROCESSES_MAX`].
    Count(u16),
}

/// Whether worker N is bound to CPU N modulo the number of CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CpuAffinity {
    /// The kernel places the workers.
    Off,
    /// Worker N runs on CPU N modulo CPUs.
    Auto,
}

/// Whom a worker becomes, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    /// The user's name.
    pub(crate) user: String,
    /// The group's name; `None`: the user's own group.
    pub(crate) group: Option<String>,
}

/// Writes the form that stands in the configuration.
impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.group {
            None => f.write_str(&self.user),
            Some(group) => write!(f, "{}:{group}", self.user),
        }
    }
}

/// `[log]`: where the logs go and what they hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Log {
    /// The directory of `master.log` and the `worker-N.log` files.
    pub(crate) directory: PathBuf,
    /// The least important level that is written.
    pub(crate) level: LogLevel,
    /// The size at which a log is rotated, in bytes; `None`: never.
    pub(crate) rotate_size: Option<u64>,
    /// How many rotated logs are kept.
    pub(crate) rotate_keep: u32,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("logs"),
            level: LogLevel::Info,
            rotate_size: Some(64 << 20),
            rotate_keep: 5,
        }
    }
}

/// What a log holds: this level and those more important.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogLevel {
    /// A person must act.
    Error,
    /// Handled, but not normal.
    Warn,
    /// The life of processes.
    Info,
    /// Connections.
    Debug,
    /// Frames.
    Trace,
    /// Nothing.
    Off,
}

impl LogLevel {
    /// All of them, from silent to chatty.
    pub(crate) const ALL: [Self; 6] =
        [Self::Off, Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// Its place among them.
    #[must_use]
    pub(crate) fn place(self) -> u8 {
        (0..).zip(Self::ALL).find(|(_, level)| *level == self).map_or(0, |(place, _)| place)
    }

    /// As it stands in the configuration.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl From<LogLevel> for log::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
            LogLevel::Trace => Self::Trace,
            LogLevel::Off => Self::Off,
        }
    }
}

/// One `[[listen]]`: an address and how its connections are treated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listen {
    /// Where clients connect to.
    pub(crate) address: Address,
    /// What they speak.
    pub(crate) protocol: Protocol,
    /// Whether clients that speak RESP see and end others, and see the configuration.
    pub(crate) resp_admin: bool,
    /// What they may do with topics.
    pub(crate) topics: TopicAccess,
    /// How many connections may wait to be accepted.
    pub(crate) backlog: u32,
    /// How the workers share the address.
    pub(crate) accept: Accept,
    /// Whether an IPv6 listener leaves IPv4 alone.
    pub ipv6only: bool,
    /// Whether the kernel probes idle connections (`SO_KEEPALIVE`).
    pub(crate) keepalive: bool,
    /// `SO_RCVBUF` of accepted sockets in bytes; 0: the kernel's choice.
    pub(crate) receive_buffer: usize,
    /// `SO_SNDBUF` of accepted sockets in bytes; 0: the kernel's choice.
    pub(crate) send_buffer: usize,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            address: Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 7600))),
            protocol: Protocol::Chappe,
            resp_admin: false,
            topics: TopicAccess::Auto,
            backlog: 511,
            accept: Accept::Shared,
            ipv6only: true,
            keepalive: false,
            receive_buffer: 0,
            send_buffer: 0,
        }
    }
}

/// Where a listener listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Address {
    /// An IPv4 or IPv6 address; port 0 lets the kernel choose one.
    Tcp(SocketAddr),
    /// A Unix socket at this path.
    Unix(PathBuf),
}

/// Writes the form that stands in the configuration: `127.0.0.1:7600`, `[::1]:7600`,
/// `unix:/path`. Reading it gives the same address.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What the peers of a listener speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Length-prefixed frames, as docs/PROTOCOL.md describes them.
    Chappe,
    /// The protocol of Redis, as docs/RESP.md describes it.
    Resp,
}

impl Protocol {
    /// As it stands in the configuration.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Chappe => "chappe",
            Self::Resp => "resp",
        }
    }
}

/// What the clients of a listener may do with topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TopicAccess {
    /// Nothing.
    Off,
    /// Subscribe.
    Subscribe,
    /// Subscribe and publish.
    On,
    /// On for Unix sockets and loopback addresses, else off.
    Auto,
}

impl Listen {
    /// Whether its clients may subscribe, and whether they may publish.
    pub(crate) fn topic_rights(&self) -> (bool, bool) {
        match self.topics {
            TopicAccess::Off => (false, false),
            TopicAccess::Subscribe => (true, false),
            TopicAccess::On => (true, true),
            TopicAccess::Auto => {
                let is_local = match &self.address {
                    Address::Tcp(address) => address.ip().is_loopback(),
                    Address::Unix(_) => true,
                };
                (is_local, is_local)
            }
        }
    }
}

/// How the workers share a listening address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accept {
    /// One socket for all workers, woken one at a time (`EPOLLEXCLUSIVE`).
    Shared,
    /// One socket a worker number (`SO_REUSEPORT`).
    Reuseport,
}

/// `[worker]`: one worker process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Worker {
    /// Most connections of one worker.
    pub(crate) max_connections: u32,
    /// How many threads run message handlers.
    pub(crate) handler_threads: u16,
    /// Whether the event loop runs quick handlers itself.
    pub(crate) fuse: bool,
    /// Most messages whose reply is deferred.
    pub(crate) deferred_max: u32,
}

impl Default for Worker {
    fn default() -> Self {
        Self { max_connections: 65_536, handler_threads: 2, fuse: true, deferred_max: 65_536 }
    }
}

/// `[frame]`: the received frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Longest frame that is received, in bytes, header included: 8..=65535.
    pub(crate) max_bytes: usize,
}

impl Default for Frame {
    fn default() -> Self {
        Self { max_bytes: 65_535 }
    }
}

/// `[inbox]`: what is received and not yet handled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inbox {
    /// Most messages of a connection.
    pub(crate) max_messages: usize,
    /// Most bytes of a connection; at least one frame.
    pub(crate) max_bytes: usize,
    /// Most bytes of a worker, partial frames included.
    pub(crate) total_max_bytes: usize,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { max_messages: 256, max_bytes: 256 << 10, total_max_bytes: 256 << 20 }
    }
}

/// `[send]`: what is answered or pushed and not yet sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Send {
    /// The high mark of a connection, in bytes; the low mark is a half of it.
    pub(crate) outbox_max_bytes: usize,
    /// Most bytes of a worker.
    pub(crate) outbox_total_max_bytes: usize,
    /// How long a peer may acknowledge nothing while its outbox is blocked.
    pub(crate) outbox_max_age: Duration,
    /// `TCP_NOTSENT_LOWAT` in bytes; 0: the kernel's choice.
    pub(crate) notsent_lowat: usize,
    /// What happens to a push beyond `outbox_max_bytes`.
    pub(crate) slow_reader: SlowReader,
}

impl Default for Send {
    fn default() -> Self {
        Self {
            outbox_max_bytes: 1 << 20,
            outbox_total_max_bytes: 256 << 20,
            outbox_max_age: Duration::from_secs(30),
            notsent_lowat: 64 << 10,
            slow_reader: SlowReader::Close,
        }
    }
}

/// What happens to a push for a connection that doesn't read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlowReader {
    /// The connection is closed.
    Close,
    /// The new message is dropped and counted.
    DropNewest,
}

/// `[timeouts]` of a connection. Their clocks stand while the server itself pauses reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Timeouts {
    /// Nothing was received for this long; `None`: off.
    pub(crate) idle: Option<Duration>,
    /// A begun frame must be complete by then.
    pub(crate) frame: Duration,
    /// The first complete frame must be there this long after accept; `None`: off.
    pub(crate) handshake: Option<Duration>,
    /// A deferred reply must be given by then. This clock never stands.
    pub(crate) deferred: Duration,
    /// How long the unread input of a closing connection is discarded.
    pub(crate) linger: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            idle: Some(Duration::from_secs(300)),
            frame: Duration::from_secs(10),
            handshake: Some(Duration::from_secs(60)),
            deferred: Duration::from_secs(20),
            linger: Duration::from_secs(2),
        }
    }
}

/// `[limits]`: how fast and how often one peer may come. 0 is off, for each of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Limits {
    /// Messages of a connection in a second.
    pub(crate) messages_per_second: u32,
    /// Messages a connection may send at once; 0: one second's worth.
    pub(crate) messages_burst: u32,
    /// Bytes of a connection in a second.
    pub(crate) bytes_per_second: u64,
    /// Connections of one address, all workers together.
    pub(crate) connections_per_ip: u32,
}

/// `[topics]`: publish and subscribe over all workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Topics {
    /// Whether there is a hub.
    pub(crate) enabled: bool,
    /// The broadcast ring, a power of two.
    pub(crate) ring_bytes: usize,
    /// Names with subscribers, all workers together.
    pub(crate) max_topics: u32,
    /// Globs among them.
    pub(crate) max_globs: u32,
    /// Subscriptions of a connection.
    pub(crate) max_per_connection: u32,
    /// Patterns among them.
    pub(crate) max_patterns_per_connection: u32,
    /// Memory of all subscriptions of a worker.
    pub(crate) total_max_bytes: usize,
}

impl Default for Topics {
    fn default() -> Self {
        Self {
            enabled: true,
            ring_bytes: 16 << 20,
            max_topics: 262_144,
            max_globs: 1024,
            max_per_connection: 1024,
            max_patterns_per_connection: 16,
            total_max_bytes: 64 << 20,
        }
    }
}

impl Topics {
    /// How many names there may be.
    pub(crate) fn names(&self) -> chappe_topics::NameLimits {
        chappe_topics::NameLimits {
            names: self.max_topics as usize,
            globs: self.max_globs as usize,
        }
    }
}

/// `[metrics]`: counters and gauges over HTTP, for monitoring.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Metrics {
    /// Where they are served; `None`: nowhere.
    pub(crate) address: Option<SocketAddr>,
}
