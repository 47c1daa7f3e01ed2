//! The hub: the process that gives every published message its place in the one log. The work
//! itself is `chappe-topics`; here are its life and its sleep.
//!
//! It is forked by the master, has no client's connection, and listens to nobody but the
//! master. One thread, one place that sleeps: on the semaphore that workers post when they
//! have something, and the master when it has said something. It ends by SIGKILL, after the
//! last worker: what it has to keep lies in shared memory, where its successor finds it.
//! Without a master it goes on until the workers are gone, and then ends by itself.

mod list;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chappe_shm::Zone;
use chappe_sys::crash::step;
use chappe_sys::process::ExitReason;
use chappe_sys::signals::{Signals, USED, unblock};
use chappe_sys::{Semaphore, random};
use chappe_topics::{Corrupt, Figures, Hub, Life, NameLimits, Pen, Ring};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::channel::{Message, Parcel, ReceivedParcel, WorkerEnd};
use crate::logging;
use crate::topics::LifeId;

/// How long it sleeps at the most: a net under every wake-up.
const TICK: Duration = Duration::from_secs(1);
/// How long it sleeps while it waits for a worker to read.
const PATIENCE: Duration = Duration::from_millis(2);
/// After its master's death it ends when all workers have left or are dead, or when none has made
/// progress for so many ticks: a process may look alive that nobody has reaped.
const TICKS_ALONE: u32 = 10;

/// What the process starts with, all of it its own.
#[derive(Debug)]
pub(crate) struct Start {
    /// For the semaphores of the send threads.
    pub(crate) zone: Arc<Zone>,
    /// The line to the master.
    pub(crate) channel: WorkerEnd,
    /// What it sleeps on.
    pub(crate) semaphore: Semaphore,
    /// For its figures.
    pub(crate) pen: Pen,
    pub(crate) ring: Ring,
    /// Of the workers that there are, and of dead ones that were not read to the end.
    pub(crate) lives: Vec<(LifeId, Life, bool)>,
    pub(crate) limits: NameLimits,
}

/// Limits as a number for the channel.
pub(crate) fn packed(limits: NameLimits) -> u64 {
    let half = |number: usize| u64::try_from(number).unwrap_or(u64::MAX).min(u32::MAX.into());
    half(limits.names) << 32 | half(limits.globs)
}

fn unpacked(value: u64) -> NameLimits {
    let half = |number: u64| usize::try_from(number & u64::from(u32::MAX)).unwrap_or(usize::MAX);
    NameLimits { names: half(value >> 32), globs: half(value) }
}

/// Runs until it is killed, or until nobody is left.
pub(crate) fn run(start: Start) -> ExitReason {
    chappe_sys::crash::begin_hub();
    match Process::new(start).and_then(|mut process| process.run()) {
        Ok(()) => ExitReason::Stopped,
        Err(error) => {
            log::error!(target: "hub.failed", "the hub failed: {error}");
            ExitReason::Failed
        }
    }
}

struct Process {
    zone: Arc<Zone>,
    channel: WorkerEnd,
    semaphore: Semaphore,
    pen: Pen,
    /// Times that it has posted a worker's semaphore, and not noted.
    bells: u64,
    signals: Signals,
    hub: Hub,
    lives: HashMap<LifeId, Attached>,
    clock: Instant,
    /// The master is gone; ticks without any worker's progress.
    alone: Option<u32>,
}

struct Attached {
    life: Life,
    /// What its send thread sleeps on; `None`: it was written over.
    semaphore: Option<Semaphore>,
    progress: u64,
}

/// Whether a worker has said that it leaves, or can't any more: the hub is nobody's parent, and so
/// has no better way to ask.
fn has_ended(life: &Life) -> bool {
    let is_dead = |pid| kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH);
    let process = i32::try_from(life.process()).ok().filter(|&pid| pid > 0);
    life.has_left() || process.is_some_and(is_dead)
}

impl Process {
    fn new(start: Start) -> io::Result<Self> {
        let Start { zone, channel, semaphore, pen, ring, lives: lives_now, limits } = start;
        let taken: Vec<Signal> = USED.into_iter().filter(|s| *s != Signal::SIGCHLD).collect();
        let signals = Signals::new(&taken)?;
        unblock()?;
        let [id, _] = random::key()?;
        let hub = Hub::new(ring.broadcast(), id, limits, 0).map_err(io::Error::other)?;
        let mut process = Self {
            zone,
            channel,
            semaphore,
            pen,
            bells: 0,
            signals,
            hub,
            lives: HashMap::new(),
            clock: Instant::now(),
            alone: None,
        };
        for (id, life, is_over) in lives_now {
            process.attach(id, life);
            if is_over {
                process.hub.end(id.0);
            }
        }
        log::info!(target: "hub.started", "hub started offset={} lives={}", process.hub.offset(), process.lives.len());
        step("hub: begun");
        process.channel.send(Message::Ready)?;
        Ok(process)
    }

    /// The only loop, with the only sleep.
    fn run(&mut self) -> io::Result<()> {
        loop {
            for signal in self.signals.pending() {
                match signal {
                    Signal::SIGTERM => return Ok(()),
                    Signal::SIGUSR1 => self.send(Message::AskReopen, 0),
                    // The master answers a terminal's keys, which reach every process of its
                    // group.
                    _ => {}
                }
            }
            self.hear_master()?;
            let round = self.hub.round(self.now());
            for (id, corrupt) in &round.corrupt {
                self.report_corrupt(LifeId(*id), *corrupt);
            }
            for id in &round.over {
                self.lives.remove(&LifeId(*id));
                self.send(Message::LifeIsRead, *id);
            }
            // First: who is woken may look at it.
            self.note(&round);
            for id in &round.to_ring {
                self.ring(LifeId(*id));
            }
            if round.is_more {
                continue;
            }
            if self.alone.is_some() && self.lives.values().all(|attached| has_ended(&attached.life))
            {
                return Ok(());
            }
            let patience = if round.waits { PATIENCE } else { TICK };
            self.pen.note_asleep(!round.waits);
            let is_called = self.semaphore.wait_until(Instant::now() + patience);
            self.pen.note_asleep(false);
            if !is_called && !round.waits && self.is_over() {
                return Ok(());
            }
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn hear_master(&mut self) -> io::Result<()> {
        while self.alone.is_none() {
            match self.channel.try_receive_parcel()? {
                Some(ReceivedParcel::Parcel(parcel)) => self.obey(parcel),
                Some(ReceivedParcel::Nonsense) => {
                    log::warn!(target: "master.nonsense", "received an invalid message from the master")
                }
                Some(ReceivedParcel::Closed) => {
                    log::warn!(target: "master.gone", "the master is gone");
                    self.alone = Some(0);
                }
                None => break,
            }
        }
        Ok(())
    }

    fn obey(&mut self, parcel: Parcel) {
        let Parcel { message, value, file } = parcel;
        match (message, file) {
            (Message::LifeBegins, Some(file)) => self.begin(LifeId(value), file),
            (Message::LifeEnds, None) => self.hub.end(value),
            (Message::NamesMax, None) => {
                self.hub.set_limits(unpacked(value));
            }
            (Message::LogLevel, None) => logging::follow_level(value),
            (Message::ListTopics, None) => self.send_list(value),
            (Message::SwapLog, Some(file)) => {
                logging::swap(Arc::new(File::from(file)));
                log::info!(target: "log.reopened", "log reopened");
                self.send(Message::Done, value);
            }
            (Message::SwapLog, None) => {
                log::error!(target: "log.kept", "keeping the old log: no descriptor left for the new one");
                self.send(Message::NotDone, value);
            }
            other => {
                log::warn!(target: "master.nonsense", "the master has sent {other:?} to the hub")
            }
        }
    }

    /// For an operator. The number is that of the question.
    fn send_list(&self, ticket: u64) {
        let sent = list::file_of(&self.hub, &self.zone)
            .and_then(|file| self.channel.send_parcel(Message::Done, ticket, Some(file.as_fd())));
        if let Err(error) = sent {
            log::warn!(target: "list.failed", "cannot list the topics: {error}");
            self.send(Message::NotDone, ticket);
        }
    }

    fn begin(&mut self, id: LifeId, file: OwnedFd) {
        match Life::from_descriptor(file) {
            Ok(life) => self.attach(id, life),
            Err(error) => {
                log::error!(
                    target: "hub.attach_failed",
                    "the memory of a worker cannot be mapped: {error} place={}",
                    id.place()
                );
                self.send(Message::LifeIsCorrupt, id.0);
            }
        }
    }

    fn attach(&mut self, id: LifeId, life: Life) {
        let place = u32::try_from(id.place()).unwrap_or(0);
        let progress = life.progress();
        self.hub.attach(id.0, place, life.clone());
        let semaphore = self.zone.send_semaphore(id.place());
        // A hub that has died may have rung the worker's bell and not posted.
        semaphore.as_ref().and_then(Semaphore::checked_post);
        self.lives.insert(id, Attached { life, semaphore, progress });
    }

    fn report_corrupt(&mut self, id: LifeId, corrupt: Corrupt) {
        log::error!(target: "hub.corrupt", "a worker has written over its memory: {corrupt} place={}", id.place());
        self.lives.remove(&id);
        self.send(Message::LifeIsCorrupt, id.0);
    }

    /// A master that does not read any more notices by itself: it has all lives in its books.
    fn send(&self, message: Message, value: u64) {
        if let Err(error) = self.channel.send_parcel(message, value, None) {
            log::debug!("cannot send the master {message:?}: {error}");
        }
    }

    fn ring(&mut self, id: LifeId) {
        let Some(attached) = self.lives.get(&id) else { return };
        attached.life.to_worker().ring(|| {
            self.bells += 1;
            // Refused where the worker has written over it, whose loss it is.
            attached.semaphore.as_ref().and_then(Semaphore::checked_post);
        });
    }

    fn note(&mut self, round: &chappe_topics::Round) {
        let registry = self.hub.registry();
        self.pen.note(Figures {
            rounds: 0,
            offset: self.hub.offset(),
            names: registry.names() as u64,
            patterns: registry.patterns() as u64,
            published: round.published,
            skipped: round.skipped,
            bells: std::mem::take(&mut self.bells),
        });
        if round.skipped > 0 {
            log::error!(target: "hub.skipped", "requests that two hubs have died on are left out count={}", round.skipped);
        }
    }

    /// Without a master: whether no worker has made progress for long.
    fn is_over(&mut self) -> bool {
        let Some(ticks) = self.alone else { return false };
        let mut has_progress = false;
        for attached in self.lives.values_mut() {
            let progress = attached.life.progress();
            has_progress |= std::mem::replace(&mut attached.progress, progress) != progress;
        }
        let ticks = if has_progress { 0 } else { ticks + 1 };
        self.alone = Some(ticks);
        ticks >= TICKS_ALONE
    }
}
