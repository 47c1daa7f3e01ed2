//! One turn of the master's loop: what has happened goes to the owner whose it is, and what
//! comes of it to those that it concerns.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use chappe_shm::{Counter, History};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::control::Request;
use super::deadlines::What;
use super::desk::Kind;
use super::metrics::Outfit;
use super::owners::Master;
use super::supervisor::{Child, Ended, Heard};
use crate::channel::Message;
use crate::config::LogLevel;
use crate::control::Reply;

/// The most that one connection takes in a list; a list that is longer is not believed.
const LISTED_BYTES_MAX: u64 = 4096;
/// The hub's list of topics has at most so many.
const TOPICS_BYTES_MAX: u64 = 1 << 20;

/// What a start and a running server answer differently.
#[derive(Debug)]
pub(super) enum Event {
    /// A worker has ended.
    Ended(Ended),
    /// A worker is ready; the slots say which.
    Ready,
    /// The worker with this number was not ready in time. It is killed.
    Late(u16),
}

impl Master<'_> {
    /// The life of a server that runs: until it was told to stop and every worker is gone.
    pub(super) fn supervise(&mut self) {
        while !(self.stop.is_stopping() && self.supervisor.is_empty()) {
            let woken = self.sleep().unwrap_or_else(|cause| self.sleep_blindly(&cause));
            self.act(&woken, &mut Self::on_event);
        }
    }

    /// What a running server does about an event.
    fn on_event(&mut self, event: Event) {
        match event {
            Event::Ready => {
                if !self.stop.is_stopping() {
                    let serving = self.generations.current().number;
                    self.supervisor.serve_ready(serving, &mut self.deadlines);
                    self.try_commit();
                }
            }
            // Its end is paced like any other.
            Event::Late(_) => {}
            // Its place was another one's already; its slot may be waited for.
            Event::Ended(ended) if ended.was_leaving => self.fork_candidate(),
            Event::Ended(ended) if ended.generation != self.generations.current().number => {
                self.candidate_lost(&ended);
            }
            Event::Ended(ended) => {
                let is_stopping = self.stop.is_stopping();
                self.supervisor.replace(&ended, is_stopping, &mut self.deadlines);
            }
        }
    }

    /// One turn: sleeps until something happens, and acts on it.
    ///
    /// # Errors
    /// Of poll.
    pub(super) fn turn(&mut self, on: &mut dyn FnMut(&mut Self, Event)) -> io::Result<()> {
        let woken = self.sleep()?;
        self.act(&woken, on);
        Ok(())
    }

    fn act(&mut self, woken: &BTreeSet<Pid>, on: &mut dyn FnMut(&mut Self, Event)) {
        self.count_for_hub();
        self.take_signals(on);
        self.hear_workers(woken, on);
        for (ticket, request) in self.desk.turn(Instant::now(), &mut self.deadlines) {
            self.carry_out(ticket, request);
        }
        let now = Instant::now();
        while let Some(what) = self.deadlines.take_due(now) {
            self.do_what_is_due(what, on);
        }
        self.act_on_plan();
        self.desk.end_orders(&mut self.deadlines);
        let lost = self.logs.take_lines_lost();
        if lost > 0 {
            self.supervisor.zone().count(Counter::LogLinesLost, lost);
        }
        self.supervisor.report_damage();
        self.end_unused_hub();
        self.publish_history();
    }

    fn take_signals(&mut self, on: &mut dyn FnMut(&mut Self, Event)) {
        for signal in reap_first(self.signals.pending()) {
            match signal {
                Signal::SIGCHLD => self.reap(on),
                Signal::SIGTERM | Signal::SIGINT => self.stop_fast(signal.as_str()),
                Signal::SIGQUIT => self.stop_gracefully(signal.as_str()),
                Signal::SIGUSR1 => {
                    self.reopen_logs(signal.as_str());
                }
                Signal::SIGHUP => self.request_reload(signal.as_str(), None),
                Signal::SIGTTIN => self.request_resize(1, signal.as_str()),
                Signal::SIGTTOU => self.request_resize(-1, signal.as_str()),
                other => {
                    log::warn!(target: "signal.unavailable", "{other} is not available in this version and does nothing")
                }
            }
        }
    }

    fn reap(&mut self, on: &mut dyn FnMut(&mut Self, Event)) {
        let is_stopping = self.stop.is_stopping();
        for child in self.supervisor.reap(is_stopping, &mut self.deadlines) {
            match child {
                Child::Worker(ended) => {
                    self.desk.forget(ended.pid);
                    on(self, Event::Ended(ended));
                }
                Child::Other { pid, death, how } => {
                    let deadlines = &mut self.deadlines;
                    let hub = self.supervisor.hub_mut();
                    let is_hub = hub.is_some_and(|hub| hub.ended(pid, death, &how, deadlines));
                    if is_hub {
                        self.desk.forget(pid);
                    } else if !self.metrics.ended(pid, death, &how, is_stopping, deadlines) {
                        log::debug!("a child that is not a worker ended pid={pid} {how}");
                    }
                }
            }
        }
    }

    /// And the hub.
    fn hear_workers(&mut self, woken: &BTreeSet<Pid>, on: &mut dyn FnMut(&mut Self, Event)) {
        let mut reopen = false;
        let mut all = self.supervisor.hear(woken, &mut self.deadlines);
        all.extend(self.supervisor.hear_hub());
        for heard in all {
            match heard {
                Heard::Ready => on(self, Event::Ready),
                Heard::AskReopen => reopen = true,
                Heard::Gone(pid) => self.desk.forget(pid),
                Heard::Answer { from, message, value, file } => {
                    let is_done = message == Message::Done;
                    let is_kick = matches!(message, Message::Kicked | Message::NotKicked);
                    let deadlines = &mut self.deadlines;
                    if !is_kick && self.supervisor.log_answered(from, value, is_done, deadlines) {
                        self.desk.note_log_answer(from, value, is_done);
                    } else {
                        self.desk.note_answer(from, message, value, file);
                    }
                }
            }
        }
        if reopen && self.logs.may_reopen(Instant::now(), &mut self.deadlines) {
            self.reopen_logs("a worker");
        }
    }

    fn do_what_is_due(&mut self, what: What, on: &mut dyn FnMut(&mut Self, Event)) {
        let now = Instant::now();
        let deadlines = &mut self.deadlines;
        match what {
            What::Ping => self.manager.ping(now, deadlines),
            What::Stop => self.end_of_stop(),
            What::Leave(pid) => self.supervisor.end_of_leaving(pid, deadlines),
            What::Address => self.try_reload_again(),
            What::Candidate => self.end_of_candidate(),
            What::Ready(pid) => match self.supervisor.end_of_readiness(pid) {
                Some(number) => on(self, Event::Late(number)),
                None => on(self, Event::Ready),
            },
            // It only wakes.
            What::Start | What::Control => {}
            What::Hub => self.tend_hub(),
            What::Metrics => self.fork_metrics(),
            What::Ring(pid) => self.supervisor.ring(pid, deadlines),
            What::Log(pid) => self.supervisor.hand_over_log(pid, deadlines),
            What::Progress => {
                if let Some(limit) = self.generations.current().config.worker_stuck_timeout {
                    self.supervisor.check_progress(limit, now, deadlines);
                }
            }
            What::Settle => self.supervisor.settle(deadlines),
            What::Vacancy(number) => self.fill_vacancy(number),
            What::Rotation => {
                let running = self.supervisor.members().map(|(number, _)| number);
                let is_reopening = self.desk.is_reopening();
                if let Some(by) = self.logs.rotate(is_reopening, running, deadlines) {
                    self.reopen_logs(by);
                }
            }
            What::Reopen => {
                if self.logs.may_reopen(now, deadlines) {
                    self.reopen_logs("a worker");
                }
            }
            What::Order(ticket) => self.desk.end_order(ticket, deadlines),
        }
    }

    /// Does what a client asks for. The answer goes to its ticket, now or later.
    fn carry_out(&mut self, ticket: u64, request: Request) {
        let by = "the control socket";
        let reply = match request {
            Request::Status {} => Reply::Status(Box::new(self.status())),
            Request::Stop {} => {
                self.stop_fast(by);
                Reply::accepted()
            }
            Request::Quit {} => {
                self.stop_gracefully(by);
                Reply::accepted()
            }
            Request::Reload {} => return self.request_reload(by, Some(ticket)),
            Request::Reopen { wait: true } => return self.reopen_logs_for(by, ticket),
            Request::Reopen { wait: false } => {
                self.reopen_logs(by);
                Reply::accepted()
            }
            Request::LogLevel { level } => self.change_log_level(level.0),
            Request::Connections { .. } | Request::Topics {} if !self.desk.has_room_for_list() => {
                Reply::refused("other lists are being made, try again")
            }
            Request::Connections { slow } => return self.list_connections(ticket, slow),
            Request::Topics {} => match self.list_topics(ticket) {
                Ok(()) => return,
                Err(why) => Reply::refused(why),
            },
            Request::Kick { id } => {
                // Nobody knows which worker has the connection, so all are asked.
                let asking = self.supervisor.ask_all(Message::Kick, id);
                let kind = Kind::Kick { id, done: false };
                return self.desk.open(ticket, kind, asking, &mut self.deadlines);
            }
        };
        self.desk.answer(ticket, &reply, &mut self.deadlines);
    }

    fn list_connections(&mut self, ticket: u64, slow: bool) {
        let message = if slow { Message::ListSlowConnections } else { Message::ListConnections };
        let connections = self.generations.current().config.worker.max_connections;
        let bytes_max = u64::from(connections).max(1 << 16) * LISTED_BYTES_MAX;
        let kind = Kind::List { lists: Default::default(), missing: Vec::new(), bytes_max };
        let asking = self.supervisor.ask_all(message, ticket);
        self.desk.open(ticket, kind, asking, &mut self.deadlines);
    }

    fn list_topics(&mut self, ticket: u64) -> Result<(), &'static str> {
        let hub = self.supervisor.hub().ok_or("topics are off (topics.enabled)")?;
        let asking = hub.ask(Message::ListTopics, ticket);
        let asking = asking.ok_or("the hub is being replaced, try again")?;
        let bytes_max = TOPICS_BYTES_MAX;
        let kind = Kind::List { lists: Default::default(), missing: Vec::new(), bytes_max };
        self.desk.open(ticket, kind, asking, &mut self.deadlines);
        Ok(())
    }

    /// For this master and all workers, those to come included.
    fn change_log_level(&mut self, level: LogLevel) -> Reply {
        if let Err(error) = self.logs.change_level(level) {
            return Reply::refused(error);
        }
        self.supervisor.order_level(level.place(), &mut self.deadlines);
        if let Some(hub) = self.supervisor.hub() {
            hub.set_level(level);
        }
        let workers = self.supervisor.count();
        log::info!(target: "log.level", "log level changed level={} workers={workers}", level.name());
        Reply::accepted()
    }

    /// Reopens all logs, and hands every worker its own.
    fn reopen_logs(&mut self, by: &str) {
        let ticket = self.desk.next_ticket();
        self.reopen_logs_for(by, ticket);
    }

    /// A client waits for the outcome by the ticket.
    fn reopen_logs_for(&mut self, by: &str, ticket: u64) {
        let running = self.supervisor.members().map(|(number, _)| number);
        let reopened = self.logs.reopen(by, running);
        // A next generation in another directory has its own.
        let candidate = self.generations.candidate().filter(|_| self.logs.is_next_elsewhere());
        let elsewhere = candidate.map(|candidate| candidate.next.number);
        let log_of = |number, generation| {
            let is_elsewhere = elsewhere == Some(generation);
            let is_its_own = |log: &&super::logs::FreshLog| {
                (log.number, log.is_elsewhere) == (number, is_elsewhere)
            };
            reopened.fresh.iter().find(is_its_own).map(|log| log.file.clone())
        };
        let mut asking = self.supervisor.hand_logs(ticket, log_of, &mut self.deadlines);
        if let (Some(hub), Some(log)) = (self.supervisor.hub_mut(), reopened.hub) {
            asking.waits_for.extend(hub.hand_log(ticket, log, &mut self.deadlines));
        }
        let kind = Kind::Reopen { failed: reopened.failed };
        self.desk.open(ticket, kind, asking, &mut self.deadlines);
    }

    /// Forks the metrics process, which reads in the zone what was told last.
    fn fork_metrics(&mut self) {
        self.publish_history();
        let outfit = Outfit {
            zone: Arc::clone(self.supervisor.zone()),
            started: self.started,
            copies: self.copies,
            identity: self.identity.clone(),
        };
        let is_stopping = self.stop.is_stopping();
        self.metrics.fork(outfit, is_stopping, &mut self.signals, &mut self.deadlines);
    }

    /// Writes down for readers of the zone what they can't find there otherwise.
    fn publish_history(&self) {
        let history = self.generations.history();
        self.supervisor.zone().tell_history(&History {
            generation: self.generations.current().number,
            reloads: history.count,
            reloads_failed: history.failed,
            last: history.last.as_ref().map(|last| (last.reason.is_none(), last.at_ms)),
        });
    }
}

/// First the processes that have ended: what is alive decides whether a stop is complete.
fn reap_first(mut signals: Vec<Signal>) -> Vec<Signal> {
    signals.sort_by_key(|&signal| signal != Signal::SIGCHLD);
    signals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_ended_comes_before_what_is_asked_for_and_that_in_its_order() {
        use Signal::{SIGCHLD, SIGHUP, SIGQUIT, SIGTERM, SIGUSR1};
        let pending = vec![SIGTERM, SIGHUP, SIGCHLD, SIGQUIT, SIGUSR1];
        assert_eq!(reap_first(pending), [SIGCHLD, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1]);
    }
}
