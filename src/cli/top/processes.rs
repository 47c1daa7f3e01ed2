//! The processes of the server: one row each, with what they have done since the last look.

use chappe_sys::Usage;

use super::keys::Sort;
use super::{Top, descending, rate};
use crate::cli::counters::{SEND_POSTS, percentile};
use crate::control::{HandlerTime, Status, WorkerStatus};

/// A process, ready to be shown. What a master has not, and what is not known, is `None`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ProcessRow {
    pub(super) name: String,
    pub(super) pid: u32,
    pub(super) state: String,
    pub(super) uptime_ms: Option<u64>,
    /// Of one CPU, in percent.
    pub(super) cpu: Option<f64>,
    /// Memory that no other process has.
    pub(super) memory: Option<u64>,
    pub(super) worker: Option<WorkerRow>,
}

/// What only a worker has. Rates are `None` at the first look.
#[derive(Debug, Default, PartialEq)]
pub(super) struct WorkerRow {
    pub(super) number: u16,
    pub(super) generation: u64,
    pub(super) connections: u32,
    pub(super) blocked: u32,
    pub(super) handlers_busy: u32,
    /// Frames.
    pub(super) received: Option<f64>,
    pub(super) sent: Option<f64>,
    pub(super) bytes_received: Option<f64>,
    pub(super) bytes_sent: Option<f64>,
    /// Of its send semaphore: the value, the posts since its fork, and per second.
    pub(super) semaphore: Option<u64>,
    pub(super) posts: u64,
    pub(super) posts_rate: Option<f64>,
    /// Of the turns of handler threads since the last look.
    pub(super) p50: String,
    pub(super) p99: String,
    pub(super) inbox_bytes: u64,
    pub(super) outbox_bytes: u64,
}

/// The processes beside master and workers, by name.
pub(super) fn helpers(status: &Status) -> impl Iterator<Item = (&'static str, u32)> {
    let hub = status.hub.as_ref().and_then(|hub| hub.pid);
    let metrics = status.metrics.as_ref().and_then(|metrics| metrics.pid);
    let pids = [("hub", hub), ("metrics", metrics)].into_iter();
    pids.filter_map(|(name, pid)| Some((name, u32::try_from(pid?).ok()?)))
}

impl Top {
    /// The master, the workers as they are sorted, the hub, the metrics process.
    pub(super) fn processes(&self) -> Vec<ProcessRow> {
        let Some(status) = self.status() else { return Vec::new() };
        let master = ProcessRow {
            name: "master".to_owned(),
            state: if status.master.stopping { "stopping" } else { "" }.to_owned(),
            uptime_ms: Some(status.master.uptime_ms),
            ..self.process(status.master.pid)
        };
        let mut workers: Vec<_> = status.workers.iter().map(|worker| self.worker(worker)).collect();
        workers.sort_by(|one, other| self.compare(one, other));
        let helpers = helpers(status)
            .map(|(name, pid)| ProcessRow { name: name.to_owned(), ..self.process(pid) });
        [master].into_iter().chain(workers).chain(helpers).collect()
    }

    /// What the kernel says of a process.
    fn process(&self, pid: u32) -> ProcessRow {
        let now = self.last.as_ref().and_then(|sample| sample.usage.get(&pid));
        let before = self.before.as_ref().and_then(|sample| sample.usage.get(&pid));
        ProcessRow {
            pid,
            cpu: cpu(now, before, self.seconds()),
            memory: now.map(|usage| usage.anonymous_bytes),
            ..ProcessRow::default()
        }
    }

    fn worker(&self, worker: &WorkerStatus) -> ProcessRow {
        let before = self.before().map_or(&[][..], |status| &status.workers);
        let before = before.iter().find(|other| other.pid == worker.pid);
        let rate_of = |counter: &str| {
            let before = before.map(|worker| worker.counters.get(counter));
            rate(worker.counters.get(counter), before, self.seconds())
        };
        let times = times_since(worker, before);
        ProcessRow {
            name: format!("worker {}", worker.worker),
            state: worker.state.clone(),
            uptime_ms: Some(worker.uptime_ms),
            worker: Some(WorkerRow {
                number: worker.worker,
                generation: worker.generation,
                connections: worker.connections,
                blocked: worker.connections_blocked,
                handlers_busy: worker.handlers_busy,
                received: rate_of("frames_received"),
                sent: rate_of("frames_sent"),
                bytes_received: rate_of("bytes_received"),
                bytes_sent: rate_of("bytes_sent"),
                semaphore: worker.send_semaphore.map(u64::from),
                posts: worker.counters.get(SEND_POSTS),
                posts_rate: rate_of(SEND_POSTS),
                p50: percentile(&times, 50),
                p99: percentile(&times, 99),
                inbox_bytes: worker.inbox_bytes,
                outbox_bytes: worker.outbox_bytes,
            }),
            ..self.process(worker.pid)
        }
    }

    fn compare(&self, one: &ProcessRow, other: &ProcessRow) -> std::cmp::Ordering {
        let of = |row: &ProcessRow| -> Option<f64> {
            let worker = row.worker.as_ref()?;
            #[expect(clippy::cast_precision_loss, reason = "for an order")]
            match self.choice.sort {
                Sort::Worker => None,
                Sort::Cpu => row.cpu,
                Sort::Memory => row.memory.map(|bytes| bytes as f64),
                Sort::Connections => Some(f64::from(worker.connections)),
                Sort::Received => worker.received,
                Sort::Sent => worker.sent,
            }
        };
        let place = |row: &ProcessRow| row.worker.as_ref().map(|it| (it.generation, it.number));
        let order = descending(of(one), of(other)).then(place(one).cmp(&place(other)));
        if self.choice.is_reversed { order.reverse() } else { order }
    }

    /// Of all processes together, in percent of one CPU.
    pub(super) fn cpu_of_all(&self) -> Option<f64> {
        let of_each: Vec<_> = self.processes().into_iter().filter_map(|row| row.cpu).collect();
        (!of_each.is_empty()).then(|| of_each.iter().sum())
    }

    /// Of all processes together.
    pub(super) fn memory_of_all(&self) -> u64 {
        self.processes().iter().filter_map(|row| row.memory).sum()
    }
}

fn cpu(now: Option<&Usage>, before: Option<&Usage>, seconds: f64) -> Option<f64> {
    let used = now?.since(*before?).cpu_ns;
    rate(used, Some(0), seconds).map(|nanoseconds| nanoseconds / 1e7)
}

/// Turns since the last look; all of them if there was none.
fn times_since(worker: &WorkerStatus, before: Option<&WorkerStatus>) -> Vec<HandlerTime> {
    let mut times = worker.handler_times.clone();
    for (row, earlier) in times.iter_mut().zip(before.iter().flat_map(|it| &it.handler_times)) {
        row.turns = row.turns.saturating_sub(earlier.turns);
    }
    times
}

#[cfg(test)]
mod tests {
    use super::super::{Key, Sample};
    use super::*;
    use std::collections::BTreeMap;
    use std::time::{Duration, Instant};

    fn status(master: u32, worker: u32, frames: u64) -> Status {
        let mut status = Status::example();
        status.master.pid = master;
        status.workers.truncate(1);
        status.workers[0].pid = worker;
        let counters = [("frames_received", frames), ("frames_sent", 2 * frames)];
        status.workers[0].counters = counters.into_iter().collect();
        status.workers[0].handler_times[0].turns = frames;
        let totals =
            [("accept_errors", 0), ("frames_received", frames), ("connections_accepted", 3)];
        status.totals = Some(totals.into_iter().collect());
        status
    }

    /// Looks two seconds apart. Each process takes as many milliseconds as its number is,
    /// in each of them.
    fn top(statuses: Vec<Status>) -> Top {
        let start = Instant::now();
        let mut top = Top::default();
        for (nth, status) in (0..).zip(statuses) {
            let at = start + 2 * nth * Duration::from_secs(1);
            let used = |pid: u32| {
                let cpu_ns = u64::from(pid) * u64::from(nth) * 1_000_000;
                (pid, Usage { cpu_ns, anonymous_bytes: u64::from(pid), ..Usage::default() })
            };
            let usage: BTreeMap<_, _> = Sample::pids(&status).into_iter().map(used).collect();
            top.hear(Ok(Sample::new(at, status, Ok(""), usage)));
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
            let row = top(statuses).processes().remove(1);
            let worker = row.worker.unwrap();
            (worker.received, worker.sent, row.cpu)
        };
        assert_eq!(rates(vec![status(1, 7, 100)]), (None, None, None));
        let (first, second) = (status(1, 7, 100), status(1, 7, 300));
        let expected = (Some(100.0), Some(200.0), Some(0.35));
        assert_eq!(rates(vec![first.clone(), second]), expected);
        let none = (None, None, None);
        assert_eq!(rates(vec![first.clone(), status(1, 8, 300)]), none, "replaced");
        assert_eq!(rates(vec![first, status(2, 7, 300)]), none, "restarted");
    }

    #[test]
    fn percentiles_are_of_the_turns_since_the_last_look() {
        let mut later = status(1, 7, 100);
        later.workers[0].handler_times[1].turns = 1;
        let row = top(vec![status(1, 7, 100), later]).processes().remove(1);
        assert_eq!(row.worker.unwrap().p50, ">10us", "the 100 before are not in it");
    }

    #[test]
    fn all_processes_are_shown_with_cpu_and_memory() {
        let top = top(vec![status(1, 7, 100), status(1, 7, 300)]);
        let rows = top.processes();
        let shown: Vec<_> =
            rows.iter().map(|row| (row.name.as_str(), row.cpu, row.memory)).collect();
        let expected = [
            ("master", Some(0.05), Some(1)),
            ("worker 0", Some(0.35), Some(7)),
            ("hub", Some(3.65), Some(73)),
            ("metrics", Some(3.6), Some(72)),
        ];
        assert_eq!(shown, expected);
        assert_eq!((top.cpu_of_all(), top.memory_of_all()), (Some(7.65), 153));
    }

    #[test]
    fn workers_are_sorted_as_was_chosen_and_the_others_stay_where_they_are() {
        let mut status = Status::example();
        let third = status.workers[0].clone();
        status.workers.push(WorkerStatus { worker: 2, pid: 60, connections: 99, ..third });
        let mut top = top(vec![status.clone(), status]);
        let mut pids = |keys: &[u8]| {
            keys.iter().for_each(|key| assert!(!top.press(Key::Letter(*key))));
            top.processes().iter().map(|row| row.pid).collect::<Vec<_>>()
        };
        assert_eq!(pids(b""), [1, 70, 71, 60, 73, 72]);
        assert_eq!(pids(b"c"), [1, 71, 70, 60, 73, 72]);
        assert_eq!(pids(b"r"), [1, 60, 70, 71, 73, 72]);
        assert_eq!(pids(b"n"), [1, 60, 70, 71, 73, 72]);
        assert_eq!(pids(b"w"), [1, 70, 71, 60, 73, 72]);
    }

    #[test]
    fn totals_stand_still_and_zeros_are_shown_on_demand() {
        let mut top = top(vec![status(1, 7, 100), status(1, 7, 300)]);
        let row = |row: super::super::TotalRow| (row.name, row.rate);
        let names: Vec<_> = top.totals().into_iter().map(row).collect();
        let expected = [
            ("connections_accepted".to_owned(), Some(0.0)),
            ("frames_received".to_owned(), Some(100.0)),
        ];
        assert_eq!(names, expected);
        top.press(Key::Letter(b'z'));
        assert_eq!(top.totals().len(), 3);
    }

    #[test]
    fn a_server_that_is_gone_and_back_is_heard_again() {
        let mut top = top(vec![status(1, 7, 100)]);
        top.hear(Err("nobody there".to_owned()));
        assert_eq!(top.problem.as_deref(), Some("nobody there"));
        assert_eq!(top.processes().len(), 4, "what was seen stays");
        let sample = Sample::new(Instant::now(), status(2, 9, 5), Ok(""), BTreeMap::new());
        top.hear(Ok(sample));
        let worker = top.processes().remove(1).worker.unwrap();
        assert_eq!((top.problem.as_deref(), worker.received), (None, None));
    }

    #[test]
    fn a_list_of_another_version_is_told_where_the_list_would_be() {
        let sample = Sample::new(Instant::now(), status(1, 7, 1), Ok("{}\n"), BTreeMap::new());
        assert!(sample.slow.unwrap_err().contains("another version"));
    }
}
