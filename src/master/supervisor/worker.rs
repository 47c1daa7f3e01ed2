//! A worker as the master has it: its process, its slot, its orders, its channel.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Instant;

use chappe_shm::{Orders, Slot, SlotReport, SlotState, Stage};
use chappe_sys::clock::Moment;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::owed::{OwedLog, TRY_AGAIN};
use super::stuck::Stall;
use crate::channel::{MasterEnd, Message};
use crate::master::deadlines::{Deadlines, What};
use crate::throttle::Throttle;

/// How many failures of a worker's channel are logged in ten seconds.
const WARNINGS_LOGGED: u32 = 2;

/// A running worker. Its number, generation and process are the master's own figures: what
/// stands in its slot is for others to read.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) number: u16,
    pub(super) generation: u64,
    pub(super) pid: Pid,
    pub(super) slot: Slot,
    /// `None` once its end is gone, or closed by us; its death follows.
    pub(super) channel: Option<MasterEnd>,
    /// What it is to do. Its slot has a copy, which the master only ever writes.
    pub(super) orders: Orders,
    /// The log that it is still to be handed.
    pub(super) log: OwedLog,
    pub(super) started: Instant,
    /// It was told to leave without finishing anything.
    pub(super) is_cut: bool,
    /// Messages from it that were no messages, or not a worker's to send.
    pub(super) nonsense: u32,
    /// What the master has seen of its progress.
    pub(super) stall: Stall,
    warnings: Throttle,
}

/// The outcome of a question to one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// It will answer.
    Sent,
    /// Its channel is full.
    Full,
    /// It is not one of those to be asked, or is gone.
    NotMeant,
}

impl Worker {
    pub(super) fn new(number: u16, generation: u64, pid: Pid, slot: Slot) -> Self {
        Self {
            number,
            generation,
            pid,
            slot,
            channel: None,
            orders: Orders::default(),
            log: OwedLog::default(),
            started: Instant::now(),
            is_cut: false,
            nonsense: 0,
            stall: Stall::default(),
            warnings: Throttle::new(WARNINGS_LOGGED),
        }
    }

    /// Whether it was told to leave, so that nobody takes its place when it ends.
    pub(super) fn is_leaving(&self) -> bool {
        self.orders.stage.is_drain()
    }

    /// Whether it was not told to serve yet.
    pub(super) fn is_coming(&self) -> bool {
        self.orders.stage == Stage::Wait
    }

    pub(super) fn is_ready(&self) -> bool {
        self.slot.state() == SlotState::Ready
    }

    /// To serve or to drain.
    pub(super) fn order(&mut self, stage: Stage, deadlines: &mut Deadlines) {
        deadlines.clear(What::Ready(self.pid));
        self.orders.stage = stage;
        self.ring(deadlines);
    }

    /// Writes its orders into its slot, and rings. If its channel is full it need not be
    /// rung: it reads the slot after the messages that are in there.
    pub(super) fn ring(&mut self, deadlines: &mut Deadlines) {
        self.slot.set_orders(self.orders);
        let Some(channel) = &self.channel else { return };
        if let Err(error) = channel.send(Message::Orders) {
            match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {}
                _ => {
                    deadlines.set(What::Ring(self.pid), Instant::now() + TRY_AGAIN);
                    self.warn(&error, Message::Orders);
                }
            }
        }
    }

    /// It goes now; if it is still there at `until`, it is killed.
    pub(super) fn cut(&mut self, until: Instant, deadlines: &mut Deadlines) {
        deadlines.clear(What::Ready(self.pid));
        deadlines.set(What::Leave(self.pid), until);
        self.is_cut = true;
        // To everybody else it drains from now on; SIGTERM is what it acts on.
        self.orders.stage = Stage::Drain;
        self.slot.set_orders(self.orders);
        self.signal(Signal::SIGTERM);
    }

    /// Its log is another file from now on.
    pub(super) fn hand_log(
        &mut self,
        ticket: u64,
        file: Arc<File>,
        deadlines: &mut Deadlines,
    ) -> Delivery {
        if self.channel.is_none() {
            return Delivery::NotMeant;
        }
        self.log.set(ticket, file);
        self.hand_over_log(deadlines);
        Delivery::Sent
    }

    pub(super) fn hand_over_log(&mut self, deadlines: &mut Deadlines) {
        let Some(channel) = &self.channel else { return };
        if let Err(error) = self.log.hand_over(channel, Instant::now()) {
            self.warn(&error, Message::SwapLog);
        }
        deadlines.set_or_clear(What::Log(self.pid), self.log.due());
    }

    /// Whether this ticket was a log's.
    pub(super) fn log_answered(
        &mut self,
        ticket: u64,
        is_done: bool,
        deadlines: &mut Deadlines,
    ) -> bool {
        let is_log = self.log.answered(ticket, is_done, Instant::now());
        if is_log {
            self.hand_over_log(deadlines);
        }
        is_log
    }

    /// Asks something that is not worth waiting for.
    pub(super) fn ask(&mut self, message: Message, value: u64) -> Delivery {
        let Some(channel) = &self.channel else { return Delivery::NotMeant };
        match channel.send_parcel(message, value, None) {
            Ok(()) => Delivery::Sent,
            Err(error) => {
                self.warn(&error, message);
                let is_full = error.kind() == ErrorKind::WouldBlock;
                if is_full { Delivery::Full } else { Delivery::NotMeant }
            }
        }
    }

    fn warn(&mut self, error: &io::Error, message: Message) {
        if let Some(held) = self.warnings.admit(Moment::now()) {
            let number = self.number;
            log::warn!(target: "channel.failed", "cannot send worker {number} {message:?}: {error}{held}");
        }
    }

    /// Its process can't be another one: it is not reaped yet.
    pub(super) fn signal(&self, signal: Signal) {
        if let Err(error) = kill(self.pid, signal) {
            log::warn!(target: "channel.failed", "cannot send {signal} to worker {}: {error}", self.number);
        }
    }

    /// What it says of itself in its slot, and who it is by our own figures.
    pub(super) fn report(&self) -> SlotReport {
        SlotReport {
            worker: self.number,
            pid: self.pid.as_raw().unsigned_abs(),
            generation: self.generation,
            ..self.slot.report()
        }
    }
}
