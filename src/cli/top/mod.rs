//! What `chappe top` shows: the last two answers of the master, and what happened in
//! between. Pure: `boot` asks the master and has the terminal.

mod view;

use std::time::Instant;

use super::connections::{Rows, connection_rows};
use crate::control::{ConnectionRow, Counters, Status, WorkerStatus};

/// What was seen at one time.
#[derive(Debug)]
pub(crate) struct Sample {
    at: Instant,
    status: Status,
    /// Or why they could not be had; the rest is shown all the same.
    slow: Result<Vec<ConnectionRow>, String>,
}

impl Sample {
    /// `status` as the master sends it, `slow` as lines of `connections --slow`.
    pub(crate) fn new(at: Instant, status: Status, slow: Result<&str, String>) -> Self {
        let slow = slow.and_then(|lines| match connection_rows(lines, true) {
            Rows { unread: Some(unread), .. } => Err(unread),
            Rows { rows, .. } => Ok(rows),
        });
        Self { at, status, slow }
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
}

/// A worker, ready to be shown.
#[derive(Debug, PartialEq)]
struct WorkerRow {
    number: u16,
    generation: u64,
    pid: u32,
    state: String,
    uptime_ms: u64,
    connections: u32,
    blocked: u32,
    handlers_busy: u32,
    /// Frames in a second; `None`: it was not there at the last look.
    received: Option<f64>,
    sent: Option<f64>,
    inbox_bytes: u64,
    outbox_bytes: u64,
}

/// A counter that is not 0.
#[derive(Debug, PartialEq)]
struct TotalRow {
    name: String,
    total: u64,
    rate: Option<f64>,
}

impl Top {
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

    fn workers(&self) -> Vec<WorkerRow> {
        let before = self.before().map_or(&[][..], |status| &status.workers);
        let row = |worker: &WorkerStatus| {
            let before = before.iter().find(|other| other.pid == worker.pid);
            let rate_of = |counter: &str| {
                let before = before.map(|worker| worker.counters.get(counter));
                rate(worker.counters.get(counter), before, self.seconds())
            };
            WorkerRow {
                number: worker.worker,
                generation: worker.generation,
                pid: worker.pid,
                state: worker.state.clone(),
                uptime_ms: worker.uptime_ms,
                connections: worker.connections,
                blocked: worker.connections_blocked,
                handlers_busy: worker.handlers_busy,
                received: rate_of("frames_received"),
                sent: rate_of("frames_sent"),
                inbox_bytes: worker.inbox_bytes,
                outbox_bytes: worker.outbox_bytes,
            }
        };
        self.status().into_iter().flat_map(|status| &status.workers).map(row).collect()
    }

    /// Those that move first, in the order of `status`; those that are 0 not at all.
    fn totals(&self) -> Vec<TotalRow> {
        let before = self.before().and_then(|status| status.totals.as_ref());
        let row = |(name, total): (&str, u64)| {
            let before = before.map(|before| before.get(name));
            let rate = rate(total, before, self.seconds());
            TotalRow { name: name.to_owned(), total, rate }
        };
        let totals = self.status().and_then(|status| status.totals.as_ref());
        let totals = totals.into_iter().flat_map(Counters::iter);
        let mut rows: Vec<TotalRow> = totals.filter(|(_, total)| *total > 0).map(row).collect();
        rows.sort_by_key(|row| row.rate.is_none_or(|rate| rate <= 0.0));
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn status(master: u32, worker: u32, frames: u64) -> Status {
        let mut status = Status::example();
        status.master.pid = master;
        status.workers.truncate(1);
        status.workers[0].pid = worker;
        let counters = [("frames_received", frames), ("frames_sent", 2 * frames)];
        status.workers[0].counters = counters.into_iter().collect();
        let totals =
            [("accept_errors", 0), ("connections_accepted", 3), ("frames_received", frames)];
        status.totals = Some(totals.into_iter().collect());
        status
    }

    /// Looks two seconds apart.
    fn top(statuses: Vec<Status>) -> Top {
        let start = Instant::now();
        let mut top = Top::default();
        for (nth, status) in (0..).zip(statuses) {
            let at = start + 2 * nth * Duration::from_secs(1);
            top.hear(Ok(Sample::new(at, status, Ok(""))));
        }
        top
    }

    #[test]
    fn a_rate_needs_two_counts_that_go_forwards_and_time_between_them() {
        let rows = [
            (300, Some(100), 2.0, Some(100.0)),
            (100, Some(100), 2.0, Some(0.0)),
            (1, Some(0), 4.0, Some(0.25)),
            (100, None, 2.0, None),
            (99, Some(100), 2.0, None),
            (300, Some(100), 0.0, None),
        ];
        for (now, before, seconds, expected) in rows {
            assert_eq!(rate(now, before, seconds), expected, "{now} {before:?} {seconds}");
        }
    }

    #[test]
    fn rates_are_of_the_same_worker_and_the_same_master() {
        let rates = |statuses| {
            let row = top(statuses).workers().remove(0);
            (row.received, row.sent)
        };
        assert_eq!(rates(vec![status(1, 7, 100)]), (None, None));
        let (first, second) = (status(1, 7, 100), status(1, 7, 300));
        assert_eq!(rates(vec![first.clone(), second]), (Some(100.0), Some(200.0)));
        assert_eq!(rates(vec![first.clone(), status(1, 8, 300)]), (None, None), "replaced");
        assert_eq!(rates(vec![first, status(2, 7, 300)]), (None, None), "restarted");
    }

    #[test]
    fn totals_that_move_come_first_and_zeros_not_at_all() {
        let top = top(vec![status(1, 7, 100), status(1, 7, 300)]);
        let names: Vec<_> = top.totals().into_iter().map(|row| (row.name, row.rate)).collect();
        let expected = [
            ("frames_received".to_owned(), Some(100.0)),
            ("connections_accepted".to_owned(), Some(0.0)),
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn a_server_that_is_gone_and_back_is_heard_again() {
        let mut top = top(vec![status(1, 7, 100)]);
        top.hear(Err("nobody there".to_owned()));
        assert_eq!(top.problem.as_deref(), Some("nobody there"));
        assert_eq!(top.workers().len(), 1, "what was seen stays");
        top.hear(Ok(Sample::new(Instant::now(), status(2, 9, 5), Ok(""))));
        assert_eq!((top.problem.as_deref(), top.workers()[0].received), (None, None));
    }

    #[test]
    fn a_list_of_another_version_is_told_where_the_list_would_be() {
        let sample = Sample::new(Instant::now(), status(1, 7, 1), Ok("{}\n"));
        assert!(sample.slow.unwrap_err().contains("another version"));
    }
}
