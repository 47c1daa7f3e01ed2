//! Whom a question to all workers went to.

use std::fmt;

use nix::unistd::Pid;

/// A worker as an answer names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::master) struct Asked {
    pub(in crate::master) number: u16,
    pub(in crate::master) pid: Pid,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {} (pid {})", self.number, self.pid)
    }
}

/// The workers that a question went to, and those that it could not be sent to.
#[derive(Debug, Default)]
pub(in crate::master) struct Asking {
    pub(in crate::master) waits_for: Vec<Asked>,
    pub(in crate::master) untold: Vec<Asked>,
}
