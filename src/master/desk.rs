//! The desk: the control socket, what its clients have asked, and what workers were asked
//! for them.
//!
//! Every request gets a number, its *ticket*, and the answer goes to the client that waits for it.
//! The desk does nothing by itself: requests go out as values, and the loop brings the
//! answers. What all workers are asked at a time is an [`Order`]: it is over when each worker
//! that it went to has answered, is gone, or had its time; then the client gets the
//! outcome.

use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::unistd::Pid;

use super::control::{Answer, ControlSocket, List, Request};
use super::deadlines::{Deadlines, What};
use super::supervisor::{Asked, Asking};
use crate::channel::Message;
use crate::control::{Listed, Reply};

/// How long workers may take for an answer. A worker answers between two turns of
/// its loop, and lists all it has in less than a second.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// How many workers are named one by one.
const NAMED_MAX: usize = 8;

/// How many lists are made at a time; each is as long as there are connections.
const LISTS_MAX: usize = 4;

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
pub(super) enum Kind {
    /// Log files swapped. Those that can't be opened were found before.
    Reopen {
        /// What has failed.
        failed: Vec<String>,
    },
    /// Lists of connections, each of a bounded length.
    List {
        /// Those that have come.
        lists: VecDeque<List>,
        /// Those that have none.
        missing: Vec<Asked>,
        /// What is longer is not believed.
        bytes_max: u64,
    },
    /// A connection closed.
    Kick {
        /// Its number.
        id: u64,
        /// A worker had it.
        done: bool,
    },
}

#[derive(Debug)]
struct Order {
    /// The workers' answers name it, and the client waits for it.
    ticket: u64,
    waits_for: Vec<Asked>,
    /// Those that should have been asked and could not.
    untold: Vec<Asked>,
    kind: Kind,
}

impl Order {
    /// Who that is, if it is waited for; it is no longer.
    fn take(&mut self, from: Pid) -> Option<Asked> {
        let place = self.waits_for.iter().position(|asked| asked.pid == from)?;
        Some(self.waits_for.remove(place))
    }

    fn is_reopen(&self) -> bool {
        matches!(self.kind, Kind::Reopen { .. })
    }

    fn is_over(&self) -> bool {
        self.waits_for.is_empty() || matches!(self.kind, Kind::Kick { done: true, .. })
    }
}

/// The control socket and the orders that its clients wait for.
#[derive(Debug)]
pub(super) struct Desk {
    /// `None` once it is closed.
    control: Option<ControlSocket>,
    orders: Vec<Order>,
    /// The last number that was given out.
    tickets: u64,
}

impl Desk {
    pub(super) fn new(control: Option<ControlSocket>, tickets: u64) -> Self {
        Self { control, orders: Vec::new(), tickets }
    }

    /// Ends: the socket file is removed, clients see the end.
    pub(super) fn close(&mut self) {
        if let Some(control) = self.control.take() {
            control.remove();
        }
    }

    /// The last number that was given out.
    pub(super) fn tickets(&self) -> u64 {
        self.tickets
    }

    pub(super) fn next_ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    /// What the loop's poll looks at, for what.
    pub(super) fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        self.control.as_ref().map(ControlSocket::interests).unwrap_or_default()
    }

    /// Lets clients in, reads and writes. Returns what was asked, each with its ticket.
    pub(super) fn turn(&mut self, now: Instant, deadlines: &mut Deadlines) -> Vec<(u64, Request)> {
        let mut asked = Vec::new();
        let Some(control) = &mut self.control else { return asked };
        control.turn(now, |request| {
            self.tickets += 1;
            asked.push((self.tickets, request));
            Answer::Later(self.tickets)
        });
        deadlines.set_or_clear(What::Control, control.next_deadline());
        asked
    }

    /// The answer goes to the client that waits for it, if one still does.
    pub(super) fn answer(&mut self, ticket: u64, reply: &Reply, deadlines: &mut Deadlines) {
        self.answer_with(ticket, reply, VecDeque::new(), deadlines);
    }

    fn answer_with(
        &mut self,
        ticket: u64,
        reply: &Reply,
        lists: VecDeque<List>,
        deadlines: &mut Deadlines,
    ) {
        if let Some(control) = &mut self.control {
            control.resolve(ticket, reply, lists);
            deadlines.set_or_clear(What::Control, control.next_deadline());
        }
    }

    /// Whether one more list may be made.
    pub(super) fn has_room_for_list(&self) -> bool {
        let lists = self.orders.iter().filter(|order| matches!(order.kind, Kind::List { .. }));
        lists.count() < LISTS_MAX
    }

    /// Whether workers have still to change over to logs.
    pub(super) fn is_reopening(&self) -> bool {
        self.orders.iter().any(Order::is_reopen)
    }

    /// Waits for the answers of these workers.
    pub(super) fn open(
        &mut self,
        ticket: u64,
        kind: Kind,
        asking: Asking,
        deadlines: &mut Deadlines,
    ) {
        let Asking { waits_for, untold } = asking;
        self.orders.push(Order { ticket, waits_for, untold, kind });
        deadlines.set(What::Order(ticket), Instant::now() + ANSWER_TIME_MAX);
    }

    /// What a worker has answered to a question.
    pub(super) fn note_answer(
        &mut self,
        from: Pid,
        message: Message,
        value: u64,
        file: Option<OwnedFd>,
    ) {
        let is_kick = matches!(message, Message::Kicked | Message::NotKicked);
        let is_meant = |order: &&mut Order| {
            let matches_kind = match order.kind {
                // The answers name the connection: of two clients that kick it both hear.
                Kind::Kick { id, .. } => is_kick && id == value,
                Kind::List { .. } => !is_kick && order.ticket == value,
                Kind::Reopen { .. } => false,
            };
            matches_kind && order.waits_for.iter().any(|asked| asked.pid == from)
        };
        // An answer that nobody waits for any more changes nothing.
        let Some(order) = self.orders.iter_mut().find(is_meant) else { return };
        let Some(asked) = order.take(from) else { return };
        match (&mut order.kind, message, file) {
            (Kind::List { lists, missing, bytes_max }, Message::Done, Some(file)) => {
                match List::new(file, *bytes_max) {
                    Ok(list) => lists.push_back(list),
                    Err(error) => {
                        log::warn!(target: "list.refused", "ignoring the list of {asked}: {error}");
                        missing.push(asked);
                    }
                }
            }
            (Kind::List { missing, .. }, _, _) => missing.push(asked),
            (Kind::Kick { done, .. }, Message::Kicked, _) => *done = true,
            (Kind::Kick { .. } | Kind::Reopen { .. }, _, _) => {}
        }
    }

    /// A worker that writes to this log writes to none of those before: the orders for them
    /// are answered, too.
    pub(super) fn note_log_answer(&mut self, from: Pid, ticket: u64, is_done: bool) {
        for order in self.orders.iter_mut().filter(|order| order.ticket <= ticket) {
            if !order.is_reopen() {
                continue;
            }
            let Some(asked) = order.take(from) else { continue };
            if !is_done && let Kind::Reopen { failed } = &mut order.kind {
                failed.push(format!("{asked} keeps its old log"));
            }
        }
    }

    /// A worker that is gone answers nothing, and has nothing. A hub's list is missing then.
    pub(super) fn forget(&mut self, pid: Pid) {
        for order in &mut self.orders {
            let hub = order.take(pid).filter(|asked| asked.number.is_none());
            if let (Some(hub), Kind::List { missing, .. }) = (hub, &mut order.kind) {
                missing.push(hub);
            }
        }
    }

    /// An order has had its time.
    pub(super) fn end_order(&mut self, ticket: u64, deadlines: &mut Deadlines) {
        self.end(|order| order.ticket == ticket, deadlines);
    }

    /// Ends the orders that are over.
    pub(super) fn end_orders(&mut self, deadlines: &mut Deadlines) {
        self.end(Order::is_over, deadlines);
    }

    fn end(&mut self, ends: impl Fn(&Order) -> bool, deadlines: &mut Deadlines) {
        let over: Vec<Order> = self.orders.extract_if(.., |order| ends(order)).collect();
        for Order { ticket, mut waits_for, untold, kind } in over {
            deadlines.clear(What::Order(ticket));
            if matches!(kind, Kind::Kick { done: true, .. }) {
                waits_for.clear();
            }
            if !waits_for.is_empty() {
                log::warn!(target: "list.late", "no answer in time from {}", names(&waits_for));
            }
            waits_for.extend(untold);
            let (reply, lists) = outcome(kind, waits_for);
            self.answer_with(ticket, &reply, lists, deadlines);
        }
    }
}

/// The answer to the client that asked. `silent` are those that have not answered.
fn outcome(kind: Kind, mut silent: Vec<Asked>) -> (Reply, VecDeque<List>) {
    let reply = match kind {
        Kind::List { lists, missing, .. } => {
            silent.extend(missing);
            silent.sort_by_key(|asked| asked.number);
            let missing = (!silent.is_empty()).then(|| names(&silent));
            let listed = Listed { ok: true, missing_workers: silent.len() as u64, missing };
            return (Reply::Listed(listed), lists);
        }
        Kind::Kick { done: true, .. } => Reply::accepted(),
        Kind::Kick { id, .. } if !silent.is_empty() => {
            let silent = names(&silent);
            Reply::refused(format!(
                "cannot tell whether connection {id} exists, no answer from {silent}"
            ))
        }
        Kind::Kick { id, .. } => Reply::refused(format!("there is no connection {id}")),
        Kind::Reopen { mut failed } => {
            if !silent.is_empty() {
                failed.push(format!("no answer in time from {}", names(&silent)));
            }
            match failed.as_slice() {
                [] => Reply::accepted(),
                _ => Reply::refused(format!("not all logs were reopened: {}", failed.join("; "))),
            }
        }
    };
    (reply, VecDeque::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(count: u16) -> Vec<Asked> {
        let asked = |number: u16| {
            let pid = Pid::from_raw(100 + i32::from(number));
            Asked { number: Some(number), pid }
        };
        (0..count).map(asked).collect()
    }

    fn asking(count: u16) -> Asking {
        Asking { waits_for: asked(count), untold: Vec::new() }
    }

    fn list(missing: Vec<Asked>) -> Kind {
        Kind::List { lists: VecDeque::new(), missing, bytes_max: 1000 }
    }

    #[test]
    fn who_did_not_answer_is_named() {
        let error = |kind, silent| match outcome(kind, silent).0 {
            Reply::Refused(refused) => refused.error,
            reply => panic!("{reply:?}"),
        };
        assert_eq!(
            error(Kind::Kick { id: 7, done: false }, asked(2)),
            "cannot tell whether connection 7 exists, no answer from worker 0 (pid 100), \
             worker 1 (pid 101)"
        );
        assert_eq!(
            error(Kind::Reopen { failed: vec!["a".into()] }, asked(1)),
            "not all logs were reopened: a; no answer in time from worker 0 (pid 100)"
        );
        let missing = Some("worker 0 (pid 100)".to_owned());
        let listed = Listed { ok: true, missing_workers: 1, missing };
        assert_eq!(outcome(list(asked(1)), Vec::new()).0, Reply::Listed(listed));
        assert!(names(&asked(1024)).ends_with("worker 7 (pid 107), and 1016 more"));
    }

    #[test]
    fn when_all_have_answered_nobody_is_named() {
        let listed = Listed { ok: true, missing_workers: 0, missing: None };
        assert_eq!(outcome(list(Vec::new()), Vec::new()).0, Reply::Listed(listed));
    }

    #[test]
    fn an_order_is_over_when_all_have_answered_or_are_gone() {
        let (mut desk, mut deadlines) = (Desk::new(None, 0), Deadlines::default());
        let ticket = desk.next_ticket();
        desk.open(ticket, list(Vec::new()), asking(2), &mut deadlines);
        assert!(deadlines.at(What::Order(ticket)).is_some());
        let pid = |number| Pid::from_raw(100 + number);
        // Not its ticket, not a worker that was asked, not an answer of that kind.
        desk.note_answer(pid(0), Message::NotDone, ticket + 1, None);
        desk.note_answer(pid(9), Message::NotDone, ticket, None);
        desk.note_answer(pid(0), Message::NotKicked, ticket, None);
        desk.end_orders(&mut deadlines);
        assert_eq!(desk.orders[0].waits_for.len(), 2);
        desk.note_answer(pid(0), Message::NotDone, ticket, None);
        desk.forget(pid(1));
        desk.end_orders(&mut deadlines);
        assert!(desk.orders.is_empty());
        assert_eq!(deadlines.next(), None);
    }

    #[test]
    fn the_list_of_a_hub_that_is_gone_is_missing() {
        let (mut desk, mut deadlines) = (Desk::new(None, 0), Deadlines::default());
        let hub = Asked { number: None, pid: Pid::from_raw(100) };
        let asking = Asking { waits_for: vec![hub], untold: Vec::new() };
        desk.open(1, list(Vec::new()), asking, &mut deadlines);
        desk.forget(hub.pid);
        let Kind::List { missing, .. } = &desk.orders[0].kind else { panic!("a list") };
        assert_eq!(missing, &[hub]);
        desk.end_orders(&mut deadlines);
        assert!(desk.orders.is_empty());
    }

    #[test]
    fn one_worker_that_had_the_connection_is_enough() {
        let (mut desk, mut deadlines) = (Desk::new(None, 0), Deadlines::default());
        let kick = Kind::Kick { id: 7, done: false };
        desk.open(1, kick, asking(3), &mut deadlines);
        desk.note_answer(Pid::from_raw(101), Message::Kicked, 7, None);
        desk.end_orders(&mut deadlines);
        assert!(desk.orders.is_empty());
    }

    #[test]
    fn a_log_answers_for_those_before_it() {
        let (mut desk, mut deadlines) = (Desk::new(None, 0), Deadlines::default());
        for ticket in 1..=3 {
            let kind = Kind::Reopen { failed: Vec::new() };
            desk.open(ticket, kind, asking(1), &mut deadlines);
        }
        desk.note_log_answer(Pid::from_raw(100), 2, true);
        desk.end_orders(&mut deadlines);
        assert_eq!(desk.orders.iter().map(|order| order.ticket).collect::<Vec<_>>(), [3]);
        desk.end_order(3, &mut deadlines);
        assert!(!desk.is_reopening());
    }
}
