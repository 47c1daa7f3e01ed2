//! A list of topics.

use serde::{Deserialize, Serialize};

/// A line of a list of topics.
///
/// ```
/// # use chappe::control::*;
/// # let line = r#"{"topic":"room","kind":"topic","subscribers":3,
/// #     "workers":[{"worker":0,"pid":70,"subscribers":3}]}"#;
/// // Each line behind a `Listed`.
/// match serde_json::from_str(line)? {
///     TopicLine::Topic(row) => println!("{} has {} subscribers", row.topic, row.subscribers),
///     TopicLine::LeftOut { left_out } => println!("and {left_out} more"),
///     _ => {} // of a newer server
/// }
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum TopicLine {
    /// A name that somebody subscribes to.
    Topic(TopicRow),
    /// So many had no room: the last line, if there are any.
    LeftOut {
        /// How many.
        left_out: u64,
    },
}

/// A name that somebody subscribes to.
///
/// ```
/// # use chappe::control::*;
/// fn workers(row: &TopicRow) -> Vec<u16> {
///     row.workers.iter().map(|it| it.worker).collect()
/// }
/// ```
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TopicRow {
    /// As it was subscribed to.
    pub topic: String,
    /// `topic`, `pattern`, or `shard` for a shard channel of RESP.
    pub kind: String,
    /// How many subscribers it has, in all workers.
    pub subscribers: u64,
    /// The workers that have them.
    pub workers: Vec<TopicWorker>,
}

/// The subscribers of a name in one worker.
///
/// ```
/// # use chappe::control::*;
/// # fn show(row: &TopicRow) {
/// for TopicWorker { worker, subscribers, .. } in &row.workers {
///     println!("{subscribers} in worker {worker}");
/// }
/// # }
/// ```
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct TopicWorker {
    /// Its number.
    pub worker: u16,
    /// Its process.
    pub pid: u32,
    /// How many.
    pub subscribers: u64,
}
