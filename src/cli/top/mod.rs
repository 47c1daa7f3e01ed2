//! What `chappe top` shows: the last two answers of the master, what happened in between,
//! and what the kernel says of the processes. Pure: `boot` asks the master and has the
//! terminal.

mod codes;
mod keys;
mod processes;
mod table;
mod units;
mod view;
#[cfg(test)]
mod view_tests;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Instant;

use chappe_sys::Usage;

use super::connections::{Rows, connection_rows};
use super::counters::{OTHERS, SECTIONS, section_of};
use crate::control::{ConnectionRow, Counters, Status};
use keys::Choice;
pub(crate) use keys::{Key, keys_of};

/// What was seen at one time.
#[derive(Debug)]
pub(crate) struct Sample {
    at: Instant,
    status: Status,
    /// Or why they could not be had; the rest is shown all the same.
    slow: Result<Vec<ConnectionRow>, String>,
    /// By process, as far as the kernel tells.
    usage: BTreeMap<u32, Usage>,
}

impl Sample {
    /// `status` as the master sends it, `slow` as lines of `connections --slow`.
    pub(crate) fn new(
        at: Instant,
        status: Status,
        slow: Result<&str, String>,
        usage: BTreeMap<u32, Usage>,
    ) -> Self {
        let slow = slow.and_then(|lines| match connection_rows(lines, true) {
            Rows { unread: Some(unread), .. } => Err(unread),
            Rows { rows, .. } => Ok(rows),
        });
        Self { at, status, slow, usage }
    }

    /// All processes of a server.
    pub(crate) fn pids(status: &Status) -> Vec<u32> {
        let workers = status.workers.iter().map(|worker| worker.pid);
        let helpers = processes::helpers(status).map(|(_, pid)| pid);
        [status.master.pid].into_iter().chain(workers).chain(helpers).collect()
    }
}

/// What is on the screen.
#[derive(Debug, Default)]
pub(crate) struct Top {
    last: Option<Sample>,
    /// The one before, of the same master.
    before: Option<Sample>,
    /// Why the last look saw nothing. What was seen before stays on the screen.
    problem: Option<String>,
    choice: Choice,
    /// How many CPUs this machine has for the server; 0 if that is not known.
    cpus: usize,
}

/// A counter, ready to be shown.
#[derive(Debug, PartialEq)]
struct TotalRow {
    name: String,
    total: u64,
    rate: Option<f64>,
}

impl Top {
    pub(crate) fn new(cpus: usize) -> Self {
        Self { cpus, ..Self::default() }
    }

    /// A key; true if the screen is to be closed.
    pub(crate) fn press(&mut self, key: Key) -> bool {
        self.choice.press(key)
    }

    /// What a look has brought.
    pub(crate) fn hear(&mut self, heard: Result<Sample, String>) {
        match heard {
            Ok(sample) => {
                self.before = self.last.replace(sample);
                self.problem = None;
            }
            Err(problem) => self.problem = Some(problem),
        }
        let pid = |sample: &Option<Sample>| sample.as_ref().map(|s| s.status.master.pid);
        if pid(&self.before) != pid(&self.last) {
            // Another master counts from 0.
            self.before = None;
        }
    }

    fn status(&self) -> Option<&Status> {
        self.last.as_ref().map(|sample| &sample.status)
    }

    fn before(&self) -> Option<&Status> {
        self.before.as_ref().map(|sample| &sample.status)
    }

    /// Seconds between the two looks; 0 without two.
    fn seconds(&self) -> f64 {
        match (&self.before, &self.last) {
            (Some(before), Some(last)) => {
                last.at.saturating_duration_since(before.at).as_secs_f64()
            }
            _ => 0.0,
        }
    }

    /// A counter of the whole server, in a second.
    fn rate_of(&self, name: &str) -> Option<f64> {
        let now = self.status()?.total(name);
        rate(now, self.before().map(|before| before.total(name)), self.seconds())
    }

    /// In the order of `chappe status`; those that are 0 only if that was chosen.
    fn totals(&self) -> Vec<TotalRow> {
        let place = |name: &str| {
            let mut names = SECTIONS.iter().flat_map(|(_, names)| *names);
            let in_section = names.position(|known| *known == name);
            (section_of(name) == OTHERS, in_section.unwrap_or(usize::MAX))
        };
        let row = |(name, total): (&str, u64)| TotalRow {
            name: name.to_owned(),
            total,
            rate: self.rate_of(name),
        };
        let totals = self.status().and_then(|status| status.totals.as_ref());
        let totals = totals.into_iter().flat_map(Counters::iter);
        let is_shown = |(_, total): &(&str, u64)| *total > 0 || self.choice.zeros;
        let mut rows: Vec<TotalRow> = totals.filter(is_shown).map(row).collect();
        rows.sort_by_key(|row| place(&row.name));
        rows
    }
}

/// What was counted in a second. `None` without two counts of the same thing.
fn rate(now: u64, before: Option<u64>, seconds: f64) -> Option<f64> {
    let counted = now.checked_sub(before?)?;
    #[expect(clippy::cast_precision_loss, reason = "it is shown with three digits")]
    let counted = counted as f64;
    (seconds > 0.0).then(|| counted / seconds)
}

/// The larger one first; what is not known last.
fn descending(one: Option<f64>, other: Option<f64>) -> Ordering {
    let number = |value: Option<f64>| value.unwrap_or(-1.0);
    number(other).total_cmp(&number(one))
}
