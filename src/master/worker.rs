//! A worker as the master has it: its process, its slot, its orders, its channel.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Instant;

use chappe_shm::{Orders, Slot, Stage};
use chappe_sys::clock::Moment;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::owed::{self, OwedLog};
use super::stuck::Stall;
use crate::channel::{MasterEnd, Message};
use crate::throttle::Throttle;

/// A running worker, as the master sees it.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) number: u16,
    pub(super) generation: u64,
    pub(super) pid: Pid,
    pub(super) slot: Slot,
    /// `None` once its end is gone; the signal of its death follows.
    pub(super) channel: Option<MasterEnd>,
    /// What it is to do. Its slot has a copy, which the master only ever writes.
    pub(super) orders: Orders,
    /// Its bell could not be rung, for another reason than a full channel: not before.
    pub(super) ring_at: Option<Instant>,
    /// The log that it is still to be handed.
    pub(super) log: OwedLog,
    pub(super) warnings: Throttle,
    pub(super) started: Instant,
    /// When it must be ready; `None` once `serve` was sent.
    pub(super) ready_by: Option<Instant>,
    /// When it is killed; `None` unless it was told to leave. Nobody replaces it.
    pub(super) leaves_by: Option<Instant>,
    /// It was told to leave without finishing anything.
    pub(super) is_cut: bool,
    /// What the master has seen of its progress.
    pub(super) stall: Stall,
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

impl Worker {
    /// To serve or to drain.
    pub(super) fn order(&mut self, stage: Stage) {
        self.orders.stage = stage;
        self.ring();
    }

    pub(super) fn order_level(&mut self, place: u8) {
        self.orders.log_level = Some(place);
        self.ring();
    }

    /// Writes its orders into its slot, and rings. If its channel is full it need not be
    /// rung: it reads the slot after the messages that are in there.
    pub(super) fn ring(&mut self) {
        self.slot.set_orders(self.orders);
        self.ring_at = None;
        let Some(channel) = &self.channel else { return };
        if let Err(error) = channel.send(Message::Orders) {
            match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {}
                _ => {
                    self.ring_at = Some(Instant::now() + owed::TRY_AGAIN);
                    self.warn(&error, Message::Orders);
                }
            }
        }
    }

    /// Its log is another file from now on.
    pub(super) fn hand_log(&mut self, ticket: u64, file: Arc<File>) -> Told {
        if self.channel.is_none() {
            return Told::NotMeant;
        }
        self.log.set(ticket, file);
        self.hand_over_log(Instant::now());
        Told::Yes
    }

    pub(super) fn hand_over_log(&mut self, now: Instant) {
        let Some(channel) = &self.channel else { return };
        if let Err(error) = self.log.hand_over(channel, now) {
            self.warn(&error, Message::SwapLog);
        }
    }

    /// Asks something that is not worth waiting for.
    pub(super) fn ask(&mut self, message: Message, value: u64) -> Told {
        let Some(channel) = &self.channel else { return Told::NotMeant };
        match channel.send_parcel(message, value, None) {
            Ok(()) => Told::Yes,
            Err(error) => {
                self.warn(&error, message);
                let is_full = error.kind() == ErrorKind::WouldBlock;
                if is_full { Told::No } else { Told::NotMeant }
            }
        }
    }

    /// Whether this ticket was a log's.
    pub(super) fn note_log_answer(&mut self, ticket: u64, is_done: bool) -> bool {
        let now = Instant::now();
        let is_log = self.log.answered(ticket, is_done, now);
        self.hand_over_log(now);
        is_log
    }

    /// What failed before and is due again.
    pub(super) fn try_again(&mut self, now: Instant) {
        if self.ring_at.is_some_and(|at| at <= now) {
            self.ring();
        }
        if self.log.due().is_some_and(|at| at <= now) {
            self.hand_over_log(now);
        }
    }

    pub(super) fn warn(&mut self, error: &io::Error, message: Message) {
        if let Some(held) = self.warnings.admit(Moment::now()) {
            let number = self.number;
            log::warn!("cannot send worker {number} {message:?}: {error}{held}");
        }
    }

    /// Its process can't be another one: it is not reaped yet.
    pub(super) fn signal(&self, signal: Signal) {
        if let Err(error) = nix::sys::signal::kill(self.pid, signal) {
            log::warn!("cannot send {signal} to worker {}: {error}", self.number);
        }
    }
}
