//! The hub as the master has it: forked before the first worker, replaced when it dies, ended
//! after the last one; and the memory of each worker's life, which outlives its worker until
//! the hub has read what it left.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chappe_shm::{Counter, HubFigures};
use chappe_sys::privileges::{self, Identity};
use chappe_sys::process::{self, ExitReason, Forked};
use chappe_sys::{SharedFile, random};
use chappe_topics::{Board, Figures, Life, NameLimits, Pen, Ring};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::Master;
use super::deadlines::{Deadlines, What};
use super::supervisor::{Asked, Asking, Death, Heard, OwedLog, Verdict, judge};
use crate::channel::{Channel, MasterEnd, Message, Parcel, ReceivedParcel};
use crate::config::{Config, LogLevel};
use crate::control::{HubReader, HubStatus};
use crate::hub;
use crate::logging::{self, Copies, Role};
use crate::topics::{Joined, LifeId};

/// How often the master looks whether the hub works.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A hub is stuck at so many looks in a row at which it has made no round since the one before,
/// although there was work: two seconds.
const STANDING_MAX: u32 = 4;

/// What a worker is born with that has topics. In the new process, before its descriptors are
/// closed, [`Birth::join`] makes its part of it.
#[derive(Debug)]
pub(super) struct Birth {
    id: LifeId,
    life: SharedFile,
    /// As the master has it: mapped to read, without a descriptor.
    ring: Ring,
    board: Board,
}

impl Birth {
    /// # Errors
    /// Of mmap(2).
    pub(super) fn join(self) -> io::Result<Joined> {
        let Self { id, life, ring, board } = self;
        Ok(Joined { id, life: Life::map(&life)?, ring, board })
    }
}

/// The process that runs.
#[derive(Debug)]
struct Helper {
    pid: Pid,
    channel: MasterEnd,
    started: Instant,
    /// It has said that it works.
    is_ready: bool,
    /// The log that it is still to be handed.
    log: OwedLog,
    watch: Watch,
}

/// What the master has seen of the hub's progress.
#[derive(Debug, Default)]
struct Watch {
    /// The rounds that it had made at the last look.
    rounds: u64,
    /// Whether it had work then.
    had_work: bool,
    /// Looks in a row since which it has made none, and had work all the time.
    standing: u32,
}

impl Watch {
    /// Whether it has had work and made no round for too long. Looks are counted and not time: in a
    /// group of processes that was stopped, the hub has a round between two of them.
    fn is_stuck(&mut self, rounds: u64, has_work: bool) -> bool {
        let has_made_none = std::mem::replace(&mut self.rounds, rounds) == rounds;
        let had_work = std::mem::replace(&mut self.had_work, has_work) && has_work;
        self.standing = if has_made_none && had_work { self.standing + 1 } else { 0 };
        self.standing >= STANDING_MAX
    }
}

#[derive(Debug)]
struct LifeRecord {
    file: SharedFile,
    is_over: bool,
}

/// What all hubs and lives share.
#[derive(Debug)]
pub(super) struct HubKeeper {
    board: Board,
    /// By which a hub writes the board's figures.
    figures: SharedFile,
    /// By which a hub writes the ring.
    ring_file: SharedFile,
    /// The ring, to read.
    ring: Ring,
    lives: BTreeMap<LifeId, LifeRecord>,
    /// How many lives there were.
    count: u64,
    limits: NameLimits,
    helper: Option<Helper>,
    /// The pace, for `policy::judge`.
    pause: Duration,
    /// What has been taken of the figures that only grow.
    counted: Figures,
}

impl HubKeeper {
    /// What is there before the first worker that needs it. The hub itself is due at once.
    ///
    /// # Errors
    /// No descriptor or no memory is left, or `/proc` is not mounted.
    pub(super) fn new(config: &Config, deadlines: &mut Deadlines) -> io::Result<Self> {
        let bytes = config.topics.ring_bytes.next_power_of_two();
        let [epoch, _] = random::key()?;
        let (board, figures) = Board::create()?;
        let ring_file = Ring::create(bytes, epoch)?;
        let ring = Ring::map(&ring_file.to_read()?)?;
        deadlines.set(What::Hub, Instant::now());
        Ok(Self {
            board,
            figures,
            ring_file,
            ring,
            lives: BTreeMap::new(),
            count: 0,
            limits: config.topics.names(),
            helper: None,
            pause: Duration::ZERO,
            counted: Figures::default(),
        })
    }

    pub(super) fn status(&self, workers: Vec<HubReader>) -> HubStatus {
        let Figures { offset, names, patterns, .. } = self.board.figures();
        let pid = self.helper.as_ref().map(|helper| helper.pid.as_raw());
        HubStatus { pid, epoch: self.ring.epoch(), offset, topics: names, patterns, workers }
    }

    /// For readers in other processes.
    pub(super) fn figures(&self) -> HubFigures {
        let Figures { offset, names, patterns, .. } = self.board.figures();
        HubFigures { epoch: self.ring.epoch(), offset, topics: names, patterns }
    }

    /// How many bytes the worker in this place has yet to read. `None`: it has no topics.
    pub(super) fn behind(&self, place: usize) -> Option<u64> {
        let mut lives = self.lives.iter().filter(|(_, life)| !life.is_over);
        let (_, life) = lives.find(|(id, _)| id.place() == place)?;
        Some(self.ring.bytes_behind(Life::read_of(&life.file).ok()?))
    }

    /// What hubs have counted since the last call.
    pub(super) fn take_counts(&mut self) -> [(Counter, u64); 3] {
        let figures = self.board.figures();
        let before = std::mem::replace(&mut self.counted, figures);
        [
            (Counter::MessagesPublished, figures.published.wrapping_sub(before.published)),
            (Counter::MessagesSkipped, figures.skipped.wrapping_sub(before.skipped)),
            (Counter::HubBells, figures.bells.wrapping_sub(before.bells)),
        ]
    }

    // Lives.

    /// A worker is about to be forked into this place of the zone. The hub learns of its life
    /// first: what it will have written before it dies is then read in any case.
    ///
    /// # Errors
    /// No descriptor or no memory is left.
    pub(super) fn begin_life(&mut self, place: usize) -> io::Result<Birth> {
        self.count += 1;
        let (id, life) = (LifeId::new(self.count, place), Life::create()?);
        let birth = Birth {
            id,
            life: SharedFile::from_descriptor(life.descriptor()?)?,
            ring: self.ring.clone(),
            board: self.board.clone(),
        };
        self.tell(Message::LifeBegins, id.0, Some(&life));
        self.lives.insert(id, LifeRecord { file: life, is_over: false });
        Ok(birth)
    }

    /// The worker in this place is dead, or was never born.
    pub(super) fn end_life(&mut self, place: usize) {
        let lives = self.lives.iter_mut().filter(|(id, life)| id.place() == place && !life.is_over);
        let ended: Vec<LifeId> = lives
            .map(|(id, life)| {
                life.is_over = true;
                *id
            })
            .collect();
        for id in ended {
            self.tell(Message::LifeEnds, id.0, None);
        }
    }

    /// Whether there are lives that were not read to their end.
    pub(super) fn has_lives(&self) -> bool {
        !self.lives.is_empty()
    }

    /// Reads what the hub has said, and takes what is about lives. Returns the rest, and the
    /// places of workers that have written over their memory, and are to be killed.
    pub(super) fn hear(&mut self) -> (Vec<Heard>, Vec<usize>) {
        let (mut heard, mut corrupt) = (Vec::new(), Vec::new());
        let Some(helper) = &mut self.helper else { return (heard, corrupt) };
        while let Ok(Some(received)) = helper.channel.try_receive_parcel() {
            let ReceivedParcel::Parcel(Parcel { message, value, file }) = received else { break };
            let id = LifeId(value);
            match message {
                Message::Ready => {
                    helper.is_ready = true;
                    heard.push(Heard::Ready);
                }
                Message::LifeIsRead => drop(self.lives.remove(&id)),
                Message::LifeIsCorrupt => {
                    if self.lives.remove(&id).is_some_and(|life| !life.is_over) {
                        corrupt.push(id.place());
                    }
                }
                Message::AskReopen => heard.push(Heard::AskReopen),
                Message::Done | Message::NotDone => {
                    heard.push(Heard::Answer { from: helper.pid, message, value, file });
                }
                other => log::warn!(target: "hub.nonsense", "the hub has sent {other:?}"),
            }
        }
        (heard, corrupt)
    }

    /// Asks the hub, which answers within a second. `None`: there is none just now.
    pub(super) fn ask(&self, message: Message, ticket: u64) -> Option<Asking> {
        let helper = self.helper.as_ref()?;
        let asked = vec![Asked { number: None, pid: helper.pid }];
        Some(match helper.channel.send_parcel(message, ticket, None) {
            Ok(()) => Asking { waits_for: asked, untold: Vec::new() },
            Err(_) => Asking { waits_for: Vec::new(), untold: asked },
        })
    }

    /// The master's end of its channel.
    pub(super) fn channel(&self) -> Option<&MasterEnd> {
        self.helper.as_ref().map(|helper| &helper.channel)
    }

    /// The hub hears it when it wakes next, after a second at the latest: the master posts no
    /// semaphore that a worker can write over, since glibc may end the process that does.
    /// A hub that does not take it in is stuck, and its successor gets all lives.
    fn tell(&self, message: Message, value: u64, file: Option<&SharedFile>) {
        let Some(helper) = &self.helper else { return };
        let descriptor = file.and_then(|file| file.descriptor().ok());
        let sent = helper.channel.send_parcel(message, value, descriptor.as_ref().map(AsFd::as_fd));
        if let Err(error) = sent {
            log::warn!(target: "hub.deaf", "cannot send the hub {message:?}, killing it: {error}");
            // It is not reaped yet, so its number can't be another one's.
            _ = kill(helper.pid, Signal::SIGKILL);
        }
    }

    /// After a reload: it logs from the level in this place on.
    pub(super) fn configure(&mut self, config: &Config, level: LogLevel) {
        self.limits = config.topics.names();
        self.tell(Message::NamesMax, hub::packed(self.limits), None);
        self.set_level(level);
    }

    pub(super) fn set_level(&self, level: LogLevel) {
        self.tell(Message::LogLevel, u64::from(level.place()), None);
    }

    // Its log.

    /// Its log is another file from now on. Returns who answers, if there is a hub.
    pub(super) fn hand_log(
        &mut self,
        ticket: u64,
        file: Arc<File>,
        deadlines: &mut Deadlines,
    ) -> Option<Asked> {
        let helper = self.helper.as_mut()?;
        helper.log.set(ticket, file);
        let asked = Asked { number: None, pid: helper.pid };
        self.hand_over_log(deadlines);
        Some(asked)
    }

    pub(super) fn hand_over_log(&mut self, deadlines: &mut Deadlines) {
        let Some(helper) = &mut self.helper else { return };
        if let Err(error) = helper.log.hand_over(&helper.channel, Instant::now()) {
            log::warn!(target: "channel.failed", "cannot send the hub its log: {error}");
        }
        deadlines.set_or_clear(What::Log(helper.pid), helper.log.due());
    }

    /// Whether this ticket was a log's.
    pub(super) fn log_answered(
        &mut self,
        ticket: u64,
        is_done: bool,
        deadlines: &mut Deadlines,
    ) -> bool {
        let Some(helper) = &mut self.helper else { return false };
        let is_log = helper.log.answered(ticket, is_done, Instant::now());
        if is_log {
            self.hand_over_log(deadlines);
        }
        is_log
    }

    // The process.

    pub(super) fn is_process(&self, pid: Pid) -> bool {
        self.helper.as_ref().is_some_and(|helper| helper.pid == pid)
    }

    pub(super) fn is_ready(&self) -> bool {
        self.helper.as_ref().is_some_and(|helper| helper.is_ready)
    }

    /// True when the child that ended was the hub.
    pub(super) fn ended(
        &mut self,
        pid: Pid,
        death: Death,
        how: &str,
        deadlines: &mut Deadlines,
    ) -> bool {
        let Some(helper) = self.helper.take_if(|helper| helper.pid == pid) else { return false };
        let lived = helper.started.elapsed();
        log::error!(target: "hub.ended", "hub ended pid={pid} {how} uptime_ms={}", lived.as_millis());
        deadlines.clear(What::Log(pid));
        // Also while the server stops: workers that drain still publish.
        self.fill(death, lived, deadlines);
        true
    }

    fn fill(&mut self, death: Death, lived: Duration, deadlines: &mut Deadlines) {
        if let Verdict::Respawn(after) = judge(false, death, lived, &mut self.pause) {
            deadlines.set(What::Hub, Instant::now() + after);
        }
    }

    /// Kills a hub that has something to do and makes no rounds. Looks again after a while.
    fn look(&mut self, now: Instant, deadlines: &mut Deadlines) {
        let Some(helper) = &mut self.helper else { return };
        deadlines.set(What::Hub, now + LOOK_EVERY);
        // What it notes before it begins is its predecessor's.
        let has_work = !helper.is_ready || self.board.has_work();
        if helper.watch.is_stuck(self.board.figures().rounds, has_work) {
            log::error!(target: "hub.stuck", "the hub stands still, it is ended pid={}", helper.pid);
            _ = kill(helper.pid, Signal::SIGKILL);
        }
    }

    /// No worker needs it any more. Its end is not waited for.
    pub(super) fn dismiss(&mut self, deadlines: &mut Deadlines) {
        deadlines.clear(What::Hub);
        if let Some(helper) = self.helper.take() {
            deadlines.clear(What::Log(helper.pid));
            log::info!(target: "hub.dismissed", "the hub is not needed any more, it is ended pid={}", helper.pid);
            // It is not reaped yet, so its number can't be another one's.
            _ = kill(helper.pid, Signal::SIGKILL);
        }
    }

    /// At the master's end, when no worker is left.
    pub(super) fn end(&mut self) {
        if let Some(helper) = self.helper.take() {
            _ = kill(helper.pid, Signal::SIGKILL);
            // An error is ECHILD: it was reaped already.
            _ = waitpid(helper.pid, None);
        }
    }
}

impl Master<'_> {
    /// Sees to it that there is a hub, if a generation with this configuration needs one.
    ///
    /// # Errors
    /// As [`HubKeeper::new`]; its log can't be opened.
    pub(super) fn provide_hub(&mut self, config: &Config) -> io::Result<()> {
        if config.topics.enabled && self.supervisor.hub().is_none() {
            self.logs.open_for_hub(config).map_err(io::Error::other)?;
            let hub = HubKeeper::new(config, &mut self.deadlines)?;
            self.supervisor.set_hub(Some(hub));
        }
        Ok(())
    }

    /// A reload is done: what it has changed for the hub. `log`: it has another one.
    pub(super) fn configure_hub(&mut self, config: &Config, log: Option<Arc<File>>) {
        let (level, ticket) = (self.logs.level(), self.desk.next_ticket());
        let Some(hub) = self.supervisor.hub_mut() else { return };
        if config.topics.enabled {
            hub.configure(config, level);
        }
        if let Some(log) = log {
            hub.hand_log(ticket, log, &mut self.deadlines);
        }
    }

    /// Ends the hub when a reload has turned topics off and the last worker of before is gone,
    /// and all that it has published is there for nobody.
    pub(super) fn end_unused_hub(&mut self) {
        let candidate = self.generations.candidate().map(|candidate| &candidate.next);
        let mut generations = [self.generations.current()].into_iter().chain(candidate);
        if generations.any(|generation| generation.config.topics.enabled) {
            return;
        }
        let Some(hub) = self.supervisor.hub_mut().filter(|hub| !hub.has_lives()) else { return };
        hub.dismiss(&mut self.deadlines);
        self.supervisor.set_hub(None);
        self.supervisor.publish_hub();
        self.logs.close_for_hub();
    }

    /// Takes over what hubs have counted.
    pub(super) fn count_for_hub(&mut self) {
        let Some(hub) = self.supervisor.hub_mut() else { return };
        let counts = hub.take_counts();
        for (counter, n) in counts.into_iter().filter(|(_, n)| *n > 0) {
            self.supervisor.zone().count(counter, n);
        }
    }

    /// Forks the hub, or looks at the one that there is.
    pub(super) fn tend_hub(&mut self) {
        self.supervisor.publish_hub();
        let deadlines = &mut self.deadlines;
        let Some(hub) = self.supervisor.hub_mut() else { return };
        if hub.helper.is_some() {
            return hub.look(Instant::now(), deadlines);
        }
        match self.try_fork_hub() {
            Ok(helper) => {
                log::info!(target: "hub.forked", "hub forked pid={}", helper.pid);
                let Some(hub) = self.supervisor.hub_mut() else { return };
                hub.helper = Some(helper);
                self.deadlines.set(What::Hub, Instant::now() + LOOK_EVERY);
            }
            Err(error) => {
                log::error!(target: "fork.failed", "cannot fork the hub: {error}");
                let Some(hub) = self.supervisor.hub_mut() else { return };
                hub.fill(Death::Failed, Duration::ZERO, &mut self.deadlines);
            }
        }
    }

    fn try_fork_hub(&mut self) -> io::Result<Helper> {
        let hub = self.supervisor.hub().ok_or(io::ErrorKind::NotFound)?;
        let (channel, hub_end) = Channel::pair()?;
        let log = self.logs.of_hub().ok_or(io::ErrorKind::NotFound)?;
        // Nobody sleeps on it: the last one is dead.
        hub.board.reset()?;
        let lives =
            hub.lives.iter().map(|(id, life)| Ok((*id, Life::map(&life.file)?, life.is_over)));
        let start = hub::Start {
            zone: Arc::clone(self.supervisor.zone()),
            channel: hub_end,
            semaphore: hub.board.semaphore(),
            pen: Pen::map(&hub.figures)?,
            ring: Ring::map(&hub.ring_file)?,
            lives: lives.collect::<io::Result<_>>()?,
            limits: hub.limits,
        };
        let birth = HubBirth {
            start,
            log: log.try_clone()?,
            level: self.logs.level(),
            copies: self.copies,
            identity: self.identity.clone(),
        };
        let pid = self
            .signals
            .fork(|forked| birth.begin(&forked).map_or(ExitReason::CannotBoot, hub::run))?;
        Ok(Helper {
            pid,
            channel,
            started: Instant::now(),
            is_ready: false,
            log: OwedLog::default(),
            watch: Watch::default(),
        })
    }
}

/// What the process is born with, see the workers' `Birth`.
struct HubBirth {
    start: hub::Start,
    /// A descriptor of its own, which the process closes when it gets another log.
    log: File,
    level: LogLevel,
    copies: Copies,
    identity: Option<Identity>,
}

impl HubBirth {
    /// In the new process, in the order of a worker.
    fn begin(self, forked: &Forked) -> io::Result<hub::Start> {
        let Self { start, log, level, copies, identity } = self;
        let log = Arc::new(log);
        logging::init(Role::Hub, Arc::clone(&log), level, copies).map_err(io::Error::other)?;
        start.zone.close_descriptor();
        let streams = (io::stdin(), io::stdout(), io::stderr());
        let keep = [
            streams.0.as_fd(),
            streams.1.as_fd(),
            streams.2.as_fd(),
            start.channel.as_fd(),
            log.as_fd(),
        ];
        process::close_all_except(forked, &keep)?;
        process::redirect_stdin_stdout_to_null()?;
        if copies == Copies::None {
            process::redirect_stderr_to_null()?;
        }
        crate::program::set_title("hub process");
        if let Some(identity) = identity {
            identity.assume(forked)?;
        }
        privileges::give_up_new_privileges(forked)?;
        Ok(start)
    }
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
