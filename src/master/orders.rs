//! What all workers are asked at a time, and who waits for their answers.
//!
//! An order is over when each worker that it went to has answered, is gone, or had
//! its time; then the client that asked hears what came of it.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use serde_json::{Value, json};

use super::control::Answer;
use super::logs::FreshLog;
use super::{Master, Told, Worker, status};
use crate::channel::{Message, Parcel};
use crate::config::LogLevel;
use crate::logging;

/// How long workers may take for an answer. A worker answers between two turns of
/// its loop, and lists all it has in less than a second.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// How many workers are named one by one.
const NAMED_MAX: usize = 8;

/// How many lists are made at a time; each is as long as there are connections.
const LISTS_MAX: usize = 4;

/// A worker as it is named to whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    number: u16,
    pid: Pid,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {} (pid {})", self.number, self.pid)
    }
}

/// Some of them; the rest, if they are many, is counted.
fn names(asked: &[Asked]) -> String {
    let mut names: Vec<_> = asked.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    if asked.len() > NAMED_MAX {
        names.push(format!("and {} more", asked.len() - NAMED_MAX));
    }
    names.join(", ")
}

/// What is asked for, with what is known of it so far.
#[derive(Debug)]
enum Kind {
    /// Log files swapped. Those that can't be opened were found before.
    Reopen { failed: Vec<String> },
    /// Lists of connections.
    List { files: VecDeque<File>, missing: Vec<Asked> },
    /// A connection closed.
    Kick { id: u64, done: bool },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Order {
    /// The workers' answers name it, and the client waits for it.
    ticket: u64,
    waits_for: Vec<Asked>,
    /// Those that should have been asked and could not.
    untold: Vec<Asked>,
    deadline: Instant,
    kind: Kind,
}

impl Order {
    /// Who that is, if it is waited for; it is no longer.
    fn heard(&mut self, from: Pid) -> Option<Asked> {
        let place = self.waits_for.iter().position(|asked| asked.pid == from)?;
        Some(self.waits_for.remove(place))
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(super) fn is_reopen(&self) -> bool {
        matches!(self.kind, Kind::Reopen { .. })
    }
}

impl Master<'_> {
    pub(super) fn next_ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    /// Has each living worker told by `tell`, and waits for those that it reached.
    fn order(&mut self, ticket: u64, kind: Kind, mut tell: impl FnMut(&mut Worker) -> Told) {
        let deadline = Instant::now() + ANSWER_TIME_MAX;
        let mut order = Order { ticket, waits_for: Vec::new(), untold: Vec::new(), deadline, kind };
        for worker in &mut self.workers {
            let asked = Asked { number: worker.number, pid: worker.pid };
            match tell(worker) {
                Told::Yes => order.waits_for.push(asked),
                Told::No => order.untold.push(asked),
                Told::NotMeant => {}
            }
        }
        self.orders.push(order);
    }

    /// Hands every worker its newly opened log. Returns the number under which a
    /// client can wait for the outcome.
    pub(super) fn order_reopen(&mut self, failed: Vec<String>) -> u64 {
        let ticket = self.next_ticket();
        let logs = std::mem::take(&mut self.fresh_logs);
        // A next generation in another directory has its own.
        let directory = &self.config.log.directory;
        let next = self.candidate.as_ref();
        let elsewhere = next.filter(|next| next.config.log.directory != *directory);
        let elsewhere = elsewhere.map(|next| next.generation);
        self.order(ticket, Kind::Reopen { failed }, |worker| {
            let is_elsewhere = elsewhere == Some(worker.generation);
            let is_its_own =
                |log: &&FreshLog| log.number == worker.number && log.is_elsewhere == is_elsewhere;
            let Some(log) = logs.iter().find(is_its_own) else { return Told::NotMeant };
            worker.hand_log(ticket, Arc::clone(&log.file))
        });
        ticket
    }

    pub(super) fn list_connections(&mut self, slow: bool) -> Answer {
        let lists = self.orders.iter().filter(|order| matches!(order.kind, Kind::List { .. }));
        if lists.count() >= LISTS_MAX {
            return Answer::Now(json!({ "error": "other lists are being made, try again" }));
        }
        let message = if slow { Message::ListSlowConnections } else { Message::ListConnections };
        let ticket = self.next_ticket();
        let kind = Kind::List { files: VecDeque::new(), missing: Vec::new() };
        self.order(ticket, kind, |worker| worker.ask(message, ticket));
        Answer::Later(ticket)
    }

    /// Nobody knows which worker has the connection, so all are asked.
    pub(super) fn kick(&mut self, id: u64) -> Answer {
        let ticket = self.next_ticket();
        // The answers name the connection: to two who kick it, both are told.
        let kind = Kind::Kick { id, done: false };
        self.order(ticket, kind, |worker| worker.ask(Message::Kick, id));
        Answer::Later(ticket)
    }

    /// For this master and all workers, those to come included.
    pub(super) fn change_log_level(&mut self, level: LogLevel) -> Value {
        self.log_level = Some(level);
        if let Err(error) = logging::set_level(level) {
            return json!({ "error": error.to_string() });
        }
        let place = LogLevel::ALL.iter().position(|known| *known == level);
        let place = place.and_then(|place| u8::try_from(place).ok()).unwrap_or(0);
        self.workers.iter_mut().for_each(|worker| worker.order_level(place));
        log::info!("log level changed level={} workers={}", level.name(), self.workers.len());
        status::accepted()
    }

    /// What a worker answered.
    pub(super) fn note_answer(&mut self, from: Pid, parcel: Parcel) {
        let Parcel { message, value, file } = parcel;
        let is_kick = matches!(message, Message::Kicked | Message::NotKicked);
        let is_done = message == Message::Done;
        let worker = self.workers.iter_mut().find(|worker| worker.pid == from);
        if !is_kick && worker.is_some_and(|worker| worker.note_log_answer(value, is_done)) {
            self.note_log_answer(from, value, is_done);
            return;
        }
        let is_meant = |order: &&mut Order| {
            let matches_kind = match order.kind {
                Kind::Kick { id, .. } => is_kick && id == value,
                Kind::List { .. } => !is_kick && order.ticket == value,
                Kind::Reopen { .. } => false,
            };
            matches_kind && order.waits_for.iter().any(|asked| asked.pid == from)
        };
        // An answer that nobody waits for any more is none.
        let Some(order) = self.orders.iter_mut().find(is_meant) else { return };
        let Some(asked) = order.heard(from) else { return };
        match (&mut order.kind, message, file) {
            (Kind::List { files, .. }, Message::Done, Some(file)) => files.push_back(file.into()),
            (Kind::List { missing, .. }, _, _) => missing.push(asked),
            (Kind::Kick { done, .. }, Message::Kicked, _) => *done = true,
            (Kind::Kick { .. } | Kind::Reopen { .. }, _, _) => {}
        }
    }

    /// Who writes to this log writes to none of those before: the orders for them are
    /// answered, too.
    fn note_log_answer(&mut self, from: Pid, ticket: u64, is_done: bool) {
        for order in self.orders.iter_mut().filter(|order| order.ticket <= ticket) {
            if !order.is_reopen() {
                continue;
            }
            let Some(asked) = order.heard(from) else { continue };
            if !is_done && let Kind::Reopen { failed } = &mut order.kind {
                failed.push(format!("{asked} keeps its old log"));
            }
        }
    }

    /// Ends the orders that are over.
    pub(super) fn end_orders(&mut self, now: Instant) {
        let workers = &self.workers;
        for order in &mut self.orders {
            // A worker that is gone answers nothing, and has nothing.
            order.waits_for.retain(|asked| {
                workers.iter().any(|worker| worker.pid == asked.pid && worker.channel.is_some())
            });
            if matches!(order.kind, Kind::Kick { done: true, .. }) {
                order.waits_for.clear();
            }
        }
        let is_over = |order: &mut Order| order.waits_for.is_empty() || order.deadline <= now;
        let over: Vec<Order> = self.orders.extract_if(.., is_over).collect();
        for order in over {
            let Order { mut waits_for, untold, kind, .. } = order;
            if !waits_for.is_empty() {
                log::warn!("no answer in time from {}", names(&waits_for));
            }
            waits_for.extend(untold);
            let (reply, files) = outcome(kind, waits_for);
            // Perhaps nobody waits for it.
            if let Some(control) = &mut self.control {
                control.resolve_with(order.ticket, &reply, files);
            }
        }
    }
}

/// What the one who asked hears. `silent` are those that have not answered.
fn outcome(kind: Kind, mut silent: Vec<Asked>) -> (Value, VecDeque<File>) {
    let reply = match kind {
        Kind::List { files, missing } => {
            silent.extend(missing);
            silent.sort_by_key(|asked| asked.number);
            let mut reply = json!({ "ok": true, "missing_workers": silent.len() });
            if !silent.is_empty() {
                reply["missing"] = names(&silent).into();
            }
            return (reply, files);
        }
        Kind::Kick { done: true, .. } => status::accepted(),
        Kind::Kick { id, .. } if !silent.is_empty() => {
            let error = format!("no answer whether connection {id} is there: {}", names(&silent));
            json!({ "error": error })
        }
        Kind::Kick { id, .. } => json!({ "error": format!("there is no connection {id}") }),
        Kind::Reopen { mut failed } => {
            if !silent.is_empty() {
                failed.push(format!("no answer in time from {}", names(&silent)));
            }
            match failed.as_slice() {
                [] => status::accepted(),
                _ => {
                    json!({ "error": format!("not all logs were reopened: {}", failed.join("; ")) })
                }
            }
        }
    };
    (reply, VecDeque::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(count: u16) -> Vec<Asked> {
        let asked = |number: u16| Asked { number, pid: Pid::from_raw(100 + i32::from(number)) };
        (0..count).map(asked).collect()
    }

    #[test]
    fn who_did_not_answer_is_named() {
        let error = |kind, silent| outcome(kind, silent).0["error"].as_str().unwrap().to_owned();
        assert_eq!(
            error(Kind::Kick { id: 7, done: false }, asked(2)),
            "no answer whether connection 7 is there: worker 0 (pid 100), worker 1 (pid 101)"
        );
        assert_eq!(
            error(Kind::Reopen { failed: vec!["a".into()] }, asked(1)),
            "not all logs were reopened: a; no answer in time from worker 0 (pid 100)"
        );
        let list = Kind::List { files: VecDeque::new(), missing: asked(1) };
        let reply = outcome(list, Vec::new()).0;
        assert_eq!(
            reply,
            json!({ "ok": true, "missing_workers": 1, "missing": "worker 0 (pid 100)" })
        );
        assert!(names(&asked(1024)).ends_with("worker 7 (pid 107), and 1016 more"));
    }

    #[test]
    fn when_all_have_answered_nobody_is_named() {
        let list = Kind::List { files: VecDeque::new(), missing: Vec::new() };
        assert_eq!(outcome(list, Vec::new()).0, json!({ "ok": true, "missing_workers": 0 }));
    }
}
