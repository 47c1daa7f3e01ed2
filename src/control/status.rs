//! The answer to `chappe status`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Who runs, and what was counted.
///
/// ```
/// # use chappe::control::*;
/// # use std::error::Error;
/// # fn show(status: &Status) {
/// for worker in &status.workers {
///     println!("worker {} of generation {}: {}", worker.worker, worker.generation, worker.state);
/// }
/// println!("{} connections so far", status.total("connections_accepted"));
/// # }
/// ```
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// The master.
    pub master: MasterStatus,
    /// Reloads since the start.
    pub reload: ReloadStatus,
    /// The metrics page; `None` if it is off.
    pub metrics: Option<MetricsStatus>,
    /// The hub; `None`: there are no topics.
    #[serde(default)]
    pub hub: Option<HubStatus>,
    /// Workers of all generations, the oldest generation first.
    pub workers: Vec<WorkerStatus>,
    /// Workers that are to be replaced in a moment.
    pub vacancies: Vec<Vacancy>,
    /// The limits of each worker that are in effect.
    pub limits: Limits,
    /// Values of the shared semaphores.
    pub semaphores: Semaphores,
    /// Where the connection permits are; `None` if they moved whenever that was looked at.
    pub permits: Option<Permits>,
    /// Counters of the server since its start; those of its application begin with `app_`.
    pub totals: Option<Counters>,
    /// Each message code that has a handler, the lowest first.
    #[serde(default)]
    pub codes: Vec<CodeStatus>,
}

impl Status {
    /// Workers that serve.
    ///
    /// ```
    /// # use chappe::control::*;
    /// # use std::error::Error;
    /// # fn show(status: &Status) {
    /// let connections: u32 = status.serving().map(|worker| worker.connections).sum();
    /// # }
    /// ```
    pub fn serving(&self) -> impl Iterator<Item = &WorkerStatus> {
        self.workers.iter().filter(|worker| worker.state == "serving")
    }

    /// A counter of the whole server; 0 if it is not known.
    ///
    /// ```
    /// # use chappe::control::*;
    /// # use std::error::Error;
    /// # fn show(status: &Status) {
    /// let logins = status.total("app_logins"); // a counter of the application's own
    /// assert_eq!(status.total("no_such_counter"), 0);
    /// # }
    /// ```
    #[must_use]
    pub fn total(&self, name: &str) -> u64 {
        self.totals.as_ref().map_or(0, |totals| totals.get(name))
    }
}

/// The master.
///
/// ```
/// # use chappe::control::*;
/// # use std::error::Error;
/// # fn show(status: &Status) {
/// let MasterStatus { pid, uptime_ms, unreachable, .. } = &status.master;
/// println!("process {pid}, up for {} s", uptime_ms / 1000);
/// if !unreachable.is_empty() {
///     eprintln!("nobody can connect to {unreachable:?}: `chappe reload` makes them again");
/// }
/// # }
/// ```
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MasterStatus {
    /// The process id of the master.
    pub pid: u32,
    /// The version of the program.
    pub version: String,
    /// Milliseconds since the start of the server.
    pub uptime_ms: u64,
    /// The generation that serves: 1 after the start. Each reload takes the next number, also
    /// one that fails.
    pub generation: u64,
    /// Addresses at which the server listens, `unix:PATH` included.
    pub listen: Vec<String>,
    /// What is spoken at each of these addresses, in their order.
    #[serde(default)]
    pub listeners: Vec<ListenerStatus>,
    /// Those of them that nobody can connect to: the file of the Unix socket was deleted, or
    /// is another one's by now. A reload makes it again.
    #[serde(default)]
    pub unreachable: Vec<String>,
    /// Whether a stop has begun.
    pub stopping: bool,
    /// The log level in effect, by its name in the configuration.
    pub log_level: String,
    /// Warnings about the configuration.
    pub warnings: Vec<String>,
}

/// An address at which the server listens.
///
/// ```
/// # use chappe::control::*;
/// # use std::error::Error;
/// # fn show(status: &Status) {
/// for ListenerStatus { address, protocol, .. } in &status.master.listeners {
///     println!("{address} speaks {protocol}");
/// }
/// # }
/// ```
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ListenerStatus {
    /// The address, as in [`MasterStatus::listen`].
    pub address: String,
    /// `chappe` or `resp`: `protocol` of its `[[listen]]` table.
    pub protocol: String,
}

/// Reloads since the start.
///
/// ```
/// # use chappe::control::*;
/// let reloads: ReloadStatus = serde_json::from_str(r#"{"count":0,"last":null}"#)?;
/// assert!(reloads.last.is_none()); // there was none yet
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ReloadStatus {
    /// How many reloads were begun.
    pub count: u64,
    /// The last reload; `None` if there was none.
    pub last: Option<LastReload>,
}

/// The last reload.
///
/// ```
/// # use chappe::control::*;
/// # use std::error::Error;
/// # fn show(status: &Status) {
/// if let Some(LastReload { outcome: ReloadOutcome::Failed, reason: Some(reason), .. }) =
///     &status.reload.last
/// {
///     eprintln!("the old generation continues to serve: {reason}");
/// }
/// # }
/// ```
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LastReload {
    /// How it ended.
    pub outcome: ReloadOutcome,
    /// Why it failed; `None` if it did not.
    pub reason: Option<String>,
    /// When it was over, in milliseconds since 1970.
    pub at: u64,
}

/// How a reload ended.
///
/// ```
/// # use chappe::control::*;
/// assert_eq!(serde_json::from_str::<ReloadOutcome>(r#""failed""#)?, ReloadOutcome::Failed);
/// assert_eq!(ReloadOutcome::Ok.to_string(), "ok"); // its name in JSON
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReloadOutcome {
    /// The new generation serves.
    Ok,
    /// The old generation continues to serve.
    Failed,
}

impl std::fmt::Display for ReloadOutcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
        })
    }
}

/// The hub, through which topics go.
///
/// ```
/// # use chappe::control::*;
/// let json = r#"{"pid":73,"epoch":7,"offset":12,"topics":3,"patterns":1,
///     "workers":[{"worker":0,"pid":70,"behind_bytes":4096}]}"#;
/// let HubStatus { offset, topics, patterns, workers, .. } = serde_json::from_str(json)?;
/// assert_eq!((offset, topics, patterns, workers.len()), (12, 3, 1, 1));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HubStatus {
    /// The process; `None` while it is being replaced.
    pub pid: Option<i32>,
    /// What tells its offsets from those of another server.
    pub epoch: u64,
    /// Of the last message.
    pub offset: u64,
    /// Topics and patterns that somebody subscribes to.
    pub topics: u64,
    /// The patterns among them.
    pub patterns: u64,
    /// How far each worker that has topics has read.
    pub workers: Vec<HubReader>,
}

/// How far a worker has read what was published.
///
/// ```
/// # use chappe::control::*;
/// # use std::error::Error;
/// # fn show(status: &Status) {
/// for reader in status.hub.iter().flat_map(|hub| &hub.workers) {
///     println!("worker {} has yet to read {} bytes", reader.worker, reader.behind_bytes);
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HubReader {
    /// Its number.
    pub worker: u16,
    /// Its process.
    pub pid: u32,
    /// What it has yet to read, of all topics.
    pub behind_bytes: u64,
}

/// The metrics page.
///
/// ```
/// # use chappe::control::*;
/// let json = r#"{"address":"127.0.0.1:9600","pid":72}"#;
/// let MetricsStatus { address, pid, .. } = serde_json::from_str(json)?;
/// assert_eq!((&*address, pid), ("127.0.0.1:9600", Some(72)));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MetricsStatus {
    /// The address of the page.
    pub address: String,
    /// The process that serves it; `None` while it is being replaced.
    pub pid: Option<i32>,
}

/// A worker.
///
/// ```
/// # use chappe::control::*;
/// # use std::error::Error;
/// # fn show(status: &Status) {
/// for worker in &status.workers {
///     let is_stuck = worker.heartbeat_age_ms.is_some_and(|age_ms| age_ms > 10_000);
///     let is_behind = worker.oldest_handler_ms > 1000 || worker.messages_waiting > 1000;
///     println!("worker {}: {is_stuck} {is_behind}", worker.worker);
/// }
/// # }
/// ```
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// The number of the worker, from 0.
    pub worker: u16,
    /// The process id of the worker.
    pub pid: u32,
    /// The generation that the worker belongs to.
    pub generation: u64,
    /// `starting`, `serving` or `draining`.
    pub state: String,
    /// Milliseconds since the worker was forked.
    pub uptime_ms: u64,
    /// Open connections.
    pub connections: u32,
    /// Connections whose socket is full.
    pub connections_blocked: u32,
    /// How long the longest-blocked connection has been blocked.
    pub oldest_blocked_ms: u64,
    /// Bytes received and not handled yet.
    pub inbox_bytes: u64,
    /// Bytes queued and not sent yet.
    pub outbox_bytes: u64,
    /// Messages that wait for a deferred reply.
    #[serde(default)]
    pub messages_waiting: u32,
    /// Handler threads inside a turn.
    pub handlers_busy: u32,
    /// How long the oldest of these turns has been running.
    pub oldest_handler_ms: u64,
    /// How many turns of handler threads took how long, the shortest first.
    pub handler_times: Vec<HandlerTime>,
    /// The time since the event loop's last heartbeat; `None` before the first.
    pub heartbeat_age_ms: Option<u64>,
    /// The value of its send semaphore; `None` if it can't be read.
    #[serde(default)]
    pub send_semaphore: Option<u32>,
    /// The counters of this worker, since it was forked.
    pub counters: Counters,
}

/// How many turns of handler threads took up to a time, and longer than that of the row before.
///
/// ```
/// # use chappe::control::*;
/// # use std::error::Error;
/// # fn show(status: &Status) {
/// for HandlerTime { up_to_us, turns, .. } in &status.workers[0].handler_times {
///     match up_to_us {
///         Some(bound_us) => println!("{turns} took {bound_us} us at most"),
///         None => println!("{turns} took longer"),
///     }
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HandlerTime {
    /// The bound in microseconds; `None` in the last row, which has no bound.
    pub up_to_us: Option<u64>,
    /// The number of these turns.
    pub turns: u64,
}

/// What was counted of a message code since the start of the server.
///
/// ```
/// # use chappe::control::*;
/// # use std::error::Error;
/// # fn show(status: &Status) {
/// for CodeStatus { code, calls, errors, p99_us, .. } in &status.codes {
///     println!("{code:?}: {calls} calls, {errors} errors, 99 of 100 took {p99_us:?} us at most");
/// }
/// # }
/// ```
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CodeStatus {
    /// The message code; `None`: all codes beyond the first 255, together.
    pub code: Option<u16>,
    /// Calls of its handler.
    pub calls: u64,
    /// Calls that returned an error or panicked.
    pub errors: u64,
    /// Calls that were timed: all on handler threads that are not known to be short, and some
    /// of the others.
    pub timed: u64,
    /// What half of the timed calls took at most, in microseconds, as far as the buckets
    /// tell; `None`: none was timed, or it is more than 100 seconds.
    pub p50_us: Option<u64>,
    /// What 99 of 100 timed calls took at most, in microseconds; otherwise like `p50_us`.
    pub p99_us: Option<u64>,
    /// Where the handler runs: `loop`, in one worker at least; `threads`; `blocking`, if it
    /// was declared so. `None`: no worker has said, or several codes are meant.
    pub runs: Option<String>,
    /// Workers in which the handler runs on the event loop.
    pub on_loop: u32,
    /// All workers, those that drain included.
    pub workers: u32,
}

/// A worker that died young, or could not be forked, and is replaced after a pause.
///
/// ```
/// # use chappe::control::*;
/// let vacancy: Vacancy = serde_json::from_str(r#"{"worker":2,"due_in_ms":100}"#)?;
/// assert_eq!((vacancy.worker, vacancy.due_in_ms), (2, 100));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Vacancy {
    /// The number of the worker.
    pub worker: u16,
    /// Milliseconds until its successor is forked.
    pub due_in_ms: u64,
}

/// The limits of each worker that are in effect: what was configured, or less if the system has less.
///
/// ```
/// # use chappe::control::*;
/// # use std::error::Error;
/// # fn show(status: &Status) {
/// // Fewer than `worker_connections` of the configuration if descriptors are short.
/// println!("{} connections for a worker", status.limits.worker_connections);
/// # }
/// ```
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Limits {
    /// How many descriptors a worker can open.
    pub worker_descriptors: u64,
    /// How many connections a worker accepts.
    pub worker_connections: u32,
}

/// Values of the shared semaphores; `None` if one can't be read.
///
/// ```
/// # use chappe::control::*;
/// # use std::error::Error;
/// # fn show(status: &Status) {
/// if status.semaphores.connection_permits == Some(0) {
///     eprintln!("the server is full: one more connection is refused (error 6)");
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Semaphores {
    /// Workers that have become ready and that the master has not seen yet.
    pub worker_ready: Option<u32>,
    /// How many more connections the server accepts.
    pub connection_permits: Option<u32>,
}

/// Where the connection permits are at one moment.
///
/// ```
/// # use chappe::control::*;
/// # use std::error::Error;
/// # fn show(status: &Status) {
/// if let Some(permits) = &status.permits {
///     println!("{} of {} connections", permits.held, permits.limit);
/// }
/// # }
/// ```
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Permits {
    /// All connection permits: `max_connections`.
    pub limit: u64,
    /// Permits in use that vanish when they come back, since the limit was lowered.
    pub debt: u64,
    /// Permits that no worker has.
    pub free: u64,
    /// Those of the free permits that are beside the semaphore: the master has given them back.
    #[serde(default)]
    pub credit: u64,
    /// Permits that workers have.
    pub held: u64,
    /// How many permits each worker has.
    #[serde(default)]
    pub workers: Vec<PermitShare>,
}

/// The connection permits of a worker.
///
/// ```
/// # use chappe::control::*;
/// # use std::error::Error;
/// # fn show(status: &Status) {
/// for share in status.permits.iter().flat_map(|permits| &permits.workers) {
///     println!("worker {} (process {}): {}", share.worker, share.pid, share.held);
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PermitShare {
    /// The number of the worker.
    pub worker: u16,
    /// The process id of the worker.
    pub pid: u32,
    /// How many permits it has.
    pub held: u64,
}

/// Counters by name.
///
/// ```
/// # use chappe::control::*;
/// let counters: Counters = [("frames_sent", 7), ("frames_received", 8)].into_iter().collect();
/// assert_eq!(counters.get("frames_sent"), 7);
/// assert_eq!(serde_json::to_string(&counters)?, r#"{"frames_received":8,"frames_sent":7}"#);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// A counter; 0 if it is not known.
    ///
    /// ```
    /// # use chappe::control::*;
    /// let counters: Counters = serde_json::from_str(r#"{"frames_sent":7}"#)?;
    /// assert_eq!((counters.get("frames_sent"), counters.get("no_such_counter")), (7, 0));
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// All of them, in the order of their names.
    ///
    /// ```
    /// # use chappe::control::*;
    /// # use std::error::Error;
    /// # fn show(status: &Status) {
    /// for (name, value) in status.totals.iter().flat_map(Counters::iter) {
    ///     println!("{name} {value}");
    /// }
    /// # }
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }
}

impl<S: Into<String>> FromIterator<(S, u64)> for Counters {
    fn from_iter<I: IntoIterator<Item = (S, u64)>>(counters: I) -> Self {
        Self(counters.into_iter().map(|(name, value)| (name.into(), value)).collect())
    }
}

/// One connection of a list.
///
/// ```
/// # use chappe::control::*;
/// # let line = r#"{"id":7,"worker":0,"peer":"127.0.0.1:40000","state":"open","connected_ms":5000,
/// #     "received_bytes":80,"sent_bytes":80,"queued_bytes":65536,"blocked_ms":1500}"#;
/// // Each line behind a `Listed`.
/// let row: ConnectionRow = serde_json::from_str(line)?;
/// if row.blocked_ms.is_some_and(|blocked_ms| blocked_ms > 1000) {
///     println!("{} reads slowly: {} bytes wait for it", row.peer, row.queued_bytes);
/// }
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ConnectionRow {
    /// The connection id, which logs and `kick` use.
    pub id: u64,
    /// The worker that has it.
    pub worker: u16,
    /// The peer's address.
    pub peer: String,
    /// The state of the connection.
    pub state: String,
    /// Milliseconds since it was accepted.
    pub connected_ms: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes queued and not sent yet.
    pub queued_bytes: u64,
    /// How long its socket has been full; `None`: it is not.
    pub blocked_ms: Option<u64>,
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
