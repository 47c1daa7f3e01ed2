//! The few configured values that the event loop needs.

use chappe_engine::Hooks;
use std::time::Duration;

/// How long a draining connection must be quiet before it is ended.
pub(super) const DRAIN_QUIET: Duration = Duration::from_millis(250);
/// How many unread bytes of a closing connection are discarded at most.
pub(super) const LINGER_BYTES_MAX: u64 = 1024 * 1024;
/// How many refused connections may linger at a time; their descriptors are
/// reserved beside those of `connections_max`.
pub(super) const REFUSED_LINGERING_MAX: usize = 64;
/// The pause before a send is tried again for which the kernel had no memory.
pub(super) const NO_BUFFERS_PAUSE: Duration = Duration::from_millis(10);
/// How long a peer may stay above its rate before it is closed.
pub(super) const TOO_FAST_MAX: Duration = Duration::from_secs(10);
/// A second without a refused frame ends such a time.
pub(super) const TOO_FAST_QUIET: Duration = Duration::from_secs(1);
/// How long connections may wait for room in the inbox total before the largest
/// holders are closed.
pub(super) const STARVED_MAX: Duration = Duration::from_secs(1);
/// What a connection that holds nothing may bring while the inbox total is exhausted.
pub(super) const SCARCE_READ_BYTES: usize = 512;
/// How long a goodbye waits for a connection that is not read for the moment.
pub(super) const DRAIN_POSTPONED_MAX: Duration = Duration::from_secs(1);
/// How often it looks.
pub(super) const DRAIN_RETRY: Duration = Duration::from_millis(10);
/// How many reads a draining connection gets before its goodbye.
pub(super) const DRAIN_READS_MAX: usize = 16;
/// How many connections a worker that leaves its listeners still accepts.
pub(super) const LAST_ACCEPTS_MAX: usize = 4096;
/// Stale entries that the timers may have beside two a connection.
pub(super) const TIMERS_SLACK: usize = 1024;
/// How many connections are written to a list in one turn of the loop.
pub(super) const LISTED_AT_ONCE: usize = 512;
/// How many lists a worker writes at a time.
pub(super) const LISTINGS_MAX: usize = 8;
/// The shared read buffer: what one connection may bring in one turn of the loop.
pub(super) const READ_BYTES_MAX: usize = 64 * 1024;
/// How many events one epoll_wait takes.
pub(super) const EVENTS_MAX: usize = 256;
/// How many connections one listener may bring in one turn of the loop.
pub(super) const ACCEPTS_MAX: usize = 64;
/// A handler that runs longer than this is logged.
pub(super) const HANDLER_LONG_MS: u64 = 1000;
/// Bytes that must have been queued before the allocator is asked to return memory.
pub(super) const GIVE_BACK_MIN: usize = 32 * 1024 * 1024;
/// The pulse of everything that is not urgent.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// See `docs/CONFIGURATION.md` for each.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// `worker.max_connections`, or what descriptors allow if that is less.
    pub(crate) connections_max: usize,
    /// `frame.max_bytes`.
    pub(crate) frame_bytes_max: usize,
    /// `timeouts.idle`.
    pub(crate) idle: Option<Duration>,
    /// `timeouts.frame`.
    pub(crate) frame: Duration,
    /// `timeouts.handshake`.
    pub(crate) handshake: Option<Duration>,
    /// `timeouts.deferred`.
    pub(crate) deferred: Duration,
    /// `timeouts.linger`.
    pub(crate) linger: Duration,
    /// `send.outbox_max_age`.
    pub(crate) outbox_age_max: Duration,
    /// `worker.fuse`: the loop runs quick handlers and writes their replies itself.
    pub(crate) fuse: bool,
    /// What the application wants to know of connections.
    pub(crate) hooks: Hooks,
    /// `limits.messages_per_second`; 0 = off.
    pub(crate) messages_per_second: u32,
    /// `limits.messages_burst`.
    pub(crate) messages_burst: u32,
    /// `limits.bytes_per_second`; 0 = off.
    pub(crate) bytes_per_second: u64,
    /// `limits.connections_per_ip`; 0 = off.
    pub(crate) connections_per_ip: u32,
}
