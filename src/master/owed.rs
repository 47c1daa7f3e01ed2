//! What a worker is still to be told: its channel was full, or it owes an answer.
//!
//! A worker that is stopped, or busy for long, reads nothing. What it is told meanwhile
//! must not be lost and must not pile up. Of the orders for its life, of levels and of
//! logs only the latest counts; so that one is kept, and said as soon as there is room.
//! A question to all workers is not kept: whoever asks hears that one was not reached.

use chappe_sys::clock::Moment;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Worker;
use crate::channel::{MasterEnd, Message};
use crate::throttle::Throttle;

/// When something is tried again that failed for another reason than a full channel.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// How many failures are told of one worker in ten seconds.
const WARNINGS_TOLD: u32 = 2;

/// See the module.
#[derive(Debug)]
pub(super) struct Owed {
    /// To serve or to drain.
    stage: Option<Message>,
    /// The place of the level in `LogLevel::ALL`.
    level: Option<u64>,
    /// The log with its ticket.
    log: Option<(u64, Arc<File>)>,
    /// The log that it was handed and has not answered for: it gets no other one before.
    asked: Option<(u64, Arc<File>)>,
    /// It could not take that log: it is offered another time, then.
    log_not_before: Option<Instant>,
    /// There was no room.
    is_full: bool,
    /// Something failed otherwise: nothing is said before.
    not_before: Option<Instant>,
    warnings: Throttle,
}

/// What became of a question to one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// It will answer.
    Yes,
    /// It was to be told, and its channel is full.
    No,
    /// It is none of those to be told, or is gone.
    NotMeant,
}

impl Owed {
    pub(super) fn new() -> Self {
        Self {
            stage: None,
            level: None,
            log: None,
            asked: None,
            log_not_before: None,
            is_full: false,
            not_before: None,
            warnings: Throttle::new(WARNINGS_TOLD),
        }
    }

    fn is_anything(&self) -> bool {
        self.stage.is_some() || self.level.is_some() || (self.log.is_some() && !self.waits())
    }

    /// For its answer about the log before.
    fn waits(&self) -> bool {
        self.asked.is_some()
    }

    /// Whether the master's poll is to tell when there is room. Never for what waits for
    /// something else: the poll would return at once, and the master spin.
    pub(super) fn wants_room(&self) -> bool {
        let has_log = self.log.is_some() && !self.waits() && self.log_not_before.is_none();
        let is_anything_due = self.stage.is_some() || self.level.is_some() || has_log;
        self.is_full && self.not_before.is_none() && is_anything_due
    }

    /// When something is tried again without that.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let log_at = self.log_not_before.filter(|_| self.log.is_some() && !self.waits());
        self.not_before.filter(|_| self.is_anything()).or(log_at)
    }

    /// Says all that can be said now. `number` is the worker's, for warnings.
    fn pay(&mut self, channel: &MasterEnd, number: u16, now: Instant) {
        if !self.is_anything() || self.not_before.is_some_and(|at| at > now) {
            return;
        }
        (self.is_full, self.not_before) = (false, None);
        if let Some(message) = self.stage
            && self.is_said(channel.send(message), message, number, now)
        {
            self.stage = None;
        }
        if let Some(place) = self.level {
            let result = channel.send_parcel(Message::LogLevel, place, None);
            if self.is_said(result, Message::LogLevel, number, now) {
                self.level = None;
            }
        }
        self.log_not_before = self.log_not_before.filter(|at| *at > now);
        if !self.waits()
            && self.log_not_before.is_none()
            && let Some((ticket, file)) = self.log.take()
        {
            let result = channel.send_parcel(Message::SwapLog, ticket, Some(file.as_fd()));
            let is_said = self.is_said(result, Message::SwapLog, number, now);
            *(if is_said { &mut self.asked } else { &mut self.log }) = Some((ticket, file));
        }
    }

    /// Also true if nobody is left to hear it.
    fn is_said(
        &mut self,
        result: io::Result<()>,
        message: Message,
        number: u16,
        now: Instant,
    ) -> bool {
        let Err(error) = result else { return true };
        match error.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => return true,
            ErrorKind::WouldBlock => self.is_full = true,
            _ => self.not_before = Some(now + TRY_AGAIN),
        }
        self.warn(&error, message, number);
        false
    }

    fn warn(&mut self, error: &io::Error, message: Message, number: u16) {
        if let Some(held) = self.warnings.admit(Moment::now()) {
            log::warn!("cannot tell worker {number} to {message:?}: {error}{held}");
        }
    }

    /// Whether this ticket was the log's. One that it could not take, for lack of a
    /// descriptor, is offered again, unless there is a newer one.
    fn note_log_answer(&mut self, ticket: u64, is_done: bool, now: Instant) -> bool {
        let Some((_, file)) = self.asked.take_if(|(asked, _)| *asked == ticket) else {
            return false;
        };
        if !is_done && self.log.is_none() {
            self.log = Some((ticket, file));
            self.log_not_before = Some(now + TRY_AGAIN);
        }
        true
    }
}

impl Worker {
    /// To serve or to drain: the last such order holds.
    pub(super) fn tell(&mut self, message: Message) {
        self.owed.stage = Some(message);
        self.pay(Instant::now());
    }

    pub(super) fn tell_level(&mut self, place: u64) {
        self.owed.level = Some(place);
        self.pay(Instant::now());
    }

    /// Its log is another file from now on.
    pub(super) fn hand_log(&mut self, ticket: u64, file: Arc<File>) -> Told {
        if self.channel.is_none() {
            return Told::NotMeant;
        }
        self.owed.log = Some((ticket, file));
        self.owed.log_not_before = None;
        self.pay(Instant::now());
        Told::Yes
    }

    /// Asks something that is not worth waiting for.
    pub(super) fn ask(&mut self, message: Message, value: u64) -> Told {
        let Some(channel) = &self.channel else { return Told::NotMeant };
        match channel.send_parcel(message, value, None) {
            Ok(()) => Told::Yes,
            Err(error) => {
                self.owed.warn(&error, message, self.number);
                let is_full = error.kind() == ErrorKind::WouldBlock;
                if is_full { Told::No } else { Told::NotMeant }
            }
        }
    }

    /// Says what is owed, as far as there is room.
    pub(super) fn pay(&mut self, now: Instant) {
        match &self.channel {
            Some(channel) => self.owed.pay(channel, self.number, now),
            None => self.owed = Owed::new(),
        }
    }

    /// Whether this ticket was a log's.
    pub(super) fn note_log_answer(&mut self, ticket: u64, is_done: bool) -> bool {
        let now = Instant::now();
        let is_log = self.owed.note_log_answer(ticket, is_done, now);
        self.pay(now);
        is_log
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::{Channel, Parcel, ReceivedParcel, WorkerEnd};

    fn heard(worker: &WorkerEnd) -> Vec<(Message, u64)> {
        let mut heard = Vec::new();
        while let Some(ReceivedParcel::Parcel(parcel)) = worker.try_receive_parcel().unwrap() {
            let Parcel { message, value, .. } = parcel;
            heard.push((message, value));
        }
        heard
    }

    fn fill(master: &MasterEnd) {
        while master.send_parcel(Message::Kick, 1, None).is_ok() {}
    }

    fn log() -> Arc<File> {
        Arc::new(tempfile::tempfile().unwrap())
    }

    #[test]
    fn what_finds_no_room_is_said_later_and_only_the_last_of_it() {
        let (master, worker) = Channel::pair().unwrap();
        let (mut owed, now) = (Owed::new(), Instant::now());
        fill(&master);
        for (ticket, message) in [(1, Message::Serve), (2, Message::DrainForReload)] {
            owed.stage = Some(message);
            owed.level = Some(ticket);
            owed.log = Some((ticket, log()));
            owed.pay(&master, 0, now);
            assert!(owed.wants_room() && owed.deadline().is_none());
        }
        assert!(heard(&worker).iter().all(|(message, _)| *message == Message::Kick));
        owed.pay(&master, 0, now);
        assert!(!owed.wants_room());
        let said = [(Message::DrainForReload, 0), (Message::LogLevel, 2), (Message::SwapLog, 2)];
        assert_eq!(heard(&worker), said);
        owed.pay(&master, 0, now);
        assert_eq!(heard(&worker), []);
    }

    #[test]
    fn a_worker_that_owes_an_answer_gets_no_second_log_before() {
        let (master, worker) = Channel::pair().unwrap();
        let (mut owed, now) = (Owed::new(), Instant::now());
        for ticket in 1..=1000 {
            owed.log = Some((ticket, log()));
            owed.pay(&master, 0, now);
        }
        assert_eq!(heard(&worker), [(Message::SwapLog, 1)]);
        assert!(!owed.wants_room(), "its answer wakes the master");
        assert!(!owed.note_log_answer(1000, true, now), "that was never said");
        // It could not take it; the newer one is not kept from it for that.
        assert!(owed.note_log_answer(1, false, now));
        owed.pay(&master, 0, now);
        assert_eq!(heard(&worker), [(Message::SwapLog, 1000)]);
        assert!(owed.note_log_answer(1000, true, now));
        assert!(!owed.is_anything());
    }

    #[test]
    fn a_log_that_could_not_be_taken_is_offered_again_after_a_second() {
        let (master, worker) = Channel::pair().unwrap();
        let (mut owed, now) = (Owed::new(), Instant::now());
        owed.log = Some((7, log()));
        for round in 0..3 {
            let now = now + round * TRY_AGAIN;
            owed.pay(&master, 0, now);
            assert_eq!(heard(&worker), [(Message::SwapLog, 7)]);
            assert!(owed.note_log_answer(7, false, now));
            owed.stage = Some(Message::Serve);
            owed.pay(&master, 0, now);
            assert_eq!(heard(&worker), [(Message::Serve, 0)], "nothing else waits for that");
            assert_eq!(owed.deadline(), Some(now + TRY_AGAIN));
            assert!(!owed.wants_room());
        }
    }

    #[test]
    fn nothing_is_owed_to_the_dead() {
        let (master, worker) = Channel::pair().unwrap();
        drop(worker);
        let mut owed = Owed::new();
        owed.stage = Some(Message::Drain);
        owed.pay(&master, 0, Instant::now());
        assert!(!owed.is_anything() && !owed.wants_room());
    }
}
