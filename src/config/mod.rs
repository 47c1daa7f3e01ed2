//! `chappe.toml` → [`Config`], checked.
//!
//! Runs in the launcher and in the master, before anything is forked; workers get values.
//! It names nothing else of the crate and must never panic, whatever a file holds.

mod model;

pub use model::{
    Accept, Address, Config, CpuAffinity, Frame, Inbox, Limits, Listen, Log, LogLevel, Protocol,
    Send, SlowReader, Timeouts, User, WORKER_PROCESSES_MAX, Worker, WorkerProcesses,
};

use std::error::Error;
use std::fmt;

/// A configuration that holds, and what to tell the operator about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The configuration, with absolute paths.
    pub config: Config,
    /// One line each: what is accepted but will not have the effect it names.
    pub warnings: Vec<String>,
}

/// All mistakes of a configuration, in the order of its files; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    lines: Vec<String>,
}

/// One line a mistake, without a newline at the end.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}

impl Error for ConfigErrors {}
