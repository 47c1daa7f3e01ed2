//! Whom a question to all workers went to.

use std::fmt;

use nix::unistd::Pid;

/// A worker, or the hub, as an answer names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::master) struct Asked {
    /// `None`: the hub.
    pub(in crate::master) number: Option<u16>,
    pub(in crate::master) pid: Pid,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, pid } = self;
        match number {
            Some(number) => write!(f, "worker {number} (pid {pid})"),
            None => write!(f, "the hub (pid {pid})"),
        }
    }
}

/// The workers that a question went to, and those that it could not be sent to.
#[derive(Debug, Default)]
pub(in crate::master) struct Asking {
    pub(in crate::master) waits_for: Vec<Asked>,
    pub(in crate::master) untold: Vec<Asked>,
}
