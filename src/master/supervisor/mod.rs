//! The supervisor: the workers that run, the places that wait for one, and the memory that
//! they share.
//!
//! It knows no generation but by its number, no client and no configuration: the loop says
//! which workers are to be there and what they are to do, and gets back the outcomes
//! ([`Heard`], [`Ended`]). What has a time goes into the one queue of deadlines.

mod asking;
mod owed;
mod policy;
mod reap;
mod spawn;
mod state;
mod stuck;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chappe_shm::{Counter, SlotReport, SlotState, Stage, Zone};
use chappe_sys::clock::{Moment, monotonic_ms};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

pub(super) use asking::{Asked, Asking};
pub(super) use owed::OwedLog;
pub(super) use policy::{Death, Verdict, judge};
pub(super) use reap::{Child, Ended};
pub(super) use spawn::Outfit;
pub(super) use state::{SupervisorState, WorkerState};

use super::deadlines::{Deadlines, What};
use super::hub::HubKeeper;
use crate::channel::{Message, Parcel, ReceivedParcel};
use crate::control::{HubReader, HubStatus};
use crate::throttle::Throttle;
use worker::{Delivery, Worker};

/// How many messages of one worker are read in a turn of the loop; the rest comes in the
/// next turn, so that a worker that sends without end does not keep the master.
const MESSAGES_A_TURN: usize = 64;
/// How many invalid messages are taken from a worker before it is killed.
const NONSENSE_MAX: u32 = 16;
/// How long a worker may take that is told to go at once: it only has sockets to close.
pub(super) const FAST_STOP_MAX: Duration = Duration::from_secs(5);
/// How long a worker may live on after its end of the channel is gone.
const MUTE_MAX: Duration = Duration::from_secs(5);
/// How soon permits are settled again when a live worker was just using them; the pause
/// doubles up to the second one.
const SETTLE_AGAIN: Duration = Duration::from_millis(10);
const SETTLE_AGAIN_MAX: Duration = Duration::from_secs(1);

/// What workers have sent, and the hub.
#[derive(Debug)]
pub(super) enum Heard {
    /// Some are ready; the slots say which.
    Ready,
    /// All logs are to be reopened.
    AskReopen,
    /// The answer to an order.
    Answer {
        /// Which process answers.
        from: Pid,
        /// Done, not done, kicked or not kicked.
        message: Message,
        /// The number of the order, or of the connection.
        value: u64,
        /// What came with it.
        file: Option<OwnedFd>,
    },
    /// It answers nothing any more.
    Gone(Pid),
}

/// The workers that there are, and the places without one.
#[derive(Debug)]
pub(super) struct Supervisor {
    zone: Arc<Zone>,
    workers: Vec<Worker>,
    /// The pace of each worker number, for `policy::judge`.
    pauses: Vec<Duration>,
    settle_pause: Duration,
    warnings: Throttle,
    /// `None`: there are no topics.
    hub: Option<HubKeeper>,
}

impl Supervisor {
    /// Without a worker yet; `numbers` is how many worker numbers there are.
    pub(super) fn new(zone: Arc<Zone>, numbers: u16) -> Self {
        Self {
            zone,
            workers: Vec::new(),
            pauses: vec![Duration::ZERO; usize::from(numbers)],
            settle_pause: SETTLE_AGAIN,
            warnings: Throttle::new(2),
            hub: None,
        }
    }

    /// From now on there are topics, or none any more.
    pub(super) fn set_hub(&mut self, hub: Option<HubKeeper>) {
        self.hub = hub;
    }

    pub(super) fn hub(&self) -> Option<&HubKeeper> {
        self.hub.as_ref()
    }

    pub(super) fn hub_mut(&mut self) -> Option<&mut HubKeeper> {
        self.hub.as_mut()
    }

    /// Whether the hub works, if there is to be one.
    pub(super) fn is_hub_ready(&self) -> bool {
        self.hub.as_ref().is_none_or(HubKeeper::is_ready)
    }

    /// Reads what the hub has said, and kills the workers that it accuses.
    pub(super) fn hear_hub(&mut self) -> Vec<Heard> {
        let Some(hub) = &mut self.hub else { return Vec::new() };
        let (heard, corrupt) = hub.hear();
        for place in corrupt {
            let worker = self.workers.iter().find(|worker| worker.slot.index() == place);
            if let Some(worker) = worker {
                log::error!(target: "worker.corrupt", "worker has written over its memory, it is ended worker={} pid={}", worker.number, worker.pid);
                worker.signal(Signal::SIGKILL);
            }
        }
        heard
    }

    /// What is shown of the hub.
    pub(super) fn hub_status(&self) -> Option<HubStatus> {
        let hub = self.hub.as_ref()?;
        let workers = self.workers.iter().filter_map(|worker| {
            let behind_bytes = hub.behind(worker.slot.index())?;
            let pid = worker.pid.as_raw().unsigned_abs();
            Some(HubReader { worker: worker.number, pid, behind_bytes })
        });
        Some(hub.status(workers.collect()))
    }

    /// Shows it to readers in other processes.
    pub(super) fn publish_hub(&self) {
        let hub = self.hub.as_ref();
        self.zone.tell_hub(hub.map(HubKeeper::figures));
        for Worker { slot, .. } in &self.workers {
            slot.tell_behind(hub.and_then(|hub| hub.behind(slot.index())).unwrap_or(0));
        }
    }

    pub(super) fn zone(&self) -> &Arc<Zone> {
        &self.zone
    }

    pub(super) fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    pub(super) fn count(&self) -> usize {
        self.workers.len()
    }

    /// How many worker numbers there are.
    pub(super) fn numbers(&self) -> usize {
        self.pauses.len()
    }

    /// Changes how many worker numbers there are; the new ones have no past.
    pub(super) fn set_numbers(&mut self, numbers: u16) {
        self.pauses.resize(usize::from(numbers), Duration::ZERO);
    }

    /// What went wrong before is no fault of workers that have just come up.
    pub(super) fn forget_pauses(&mut self, numbers: u16) {
        self.pauses = vec![Duration::ZERO; usize::from(numbers)];
    }

    /// The numbers and generations of all workers.
    pub(super) fn members(&self) -> impl Iterator<Item = (u16, u64)> {
        self.workers.iter().map(|worker| (worker.number, worker.generation))
    }

    /// What all say of themselves, in the order of generations and numbers.
    pub(super) fn reports(&self) -> Vec<SlotReport> {
        let mut reports: Vec<_> = self.workers.iter().map(Worker::report).collect();
        reports.sort_by_key(|report| (report.generation, report.worker));
        reports
    }

    /// What the loop's poll looks at.
    pub(super) fn channels(&self) -> impl Iterator<Item = (Pid, BorrowedFd<'_>)> {
        self.workers
            .iter()
            .filter_map(|worker| Some((worker.pid, worker.channel.as_ref()?.as_fd())))
    }

    pub(super) fn pids(&self) -> Vec<Pid> {
        self.workers.iter().map(|worker| worker.pid).collect()
    }

    fn find(&mut self, pid: Pid) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|worker| worker.pid == pid)
    }

    fn of(&self, generation: u64) -> impl Iterator<Item = &Worker> {
        self.workers.iter().filter(move |worker| worker.generation == generation)
    }

    // What workers say.

    /// Reads what these workers have sent.
    pub(super) fn hear(&mut self, woken: &BTreeSet<Pid>, deadlines: &mut Deadlines) -> Vec<Heard> {
        let mut heard = Vec::new();
        let mut rang = false;
        for worker in self.workers.iter_mut().filter(|worker| woken.contains(&worker.pid)) {
            for _ in 0..MESSAGES_A_TURN {
                let Some(channel) = &worker.channel else { break };
                let parcel = match channel.try_receive_parcel() {
                    Ok(Some(ReceivedParcel::Parcel(parcel))) => parcel,
                    Ok(None) => break,
                    Ok(Some(ReceivedParcel::Nonsense)) => {
                        worker.note_nonsense("an invalid message", &mut self.warnings);
                        continue;
                    }
                    Ok(Some(ReceivedParcel::Closed)) => {
                        worker.let_go(deadlines);
                        heard.push(Heard::Gone(worker.pid));
                        break;
                    }
                    Err(error) => {
                        log::warn!(target: "channel.failed", "channel of worker {}: {error}", worker.number);
                        worker.let_go(deadlines);
                        heard.push(Heard::Gone(worker.pid));
                        break;
                    }
                };
                let Parcel { message, value, file } = parcel;
                match message {
                    Message::Ready => rang = true,
                    Message::AskReopen => heard.push(Heard::AskReopen),
                    Message::Done | Message::NotDone | Message::Kicked | Message::NotKicked => {
                        heard.push(Heard::Answer { from: worker.pid, message, value, file });
                    }
                    _ => worker.note_nonsense("a message of the master's", &mut self.warnings),
                }
            }
        }
        if rang {
            // The slots say whose rings they were.
            self.zone.silence_ready();
            heard.push(Heard::Ready);
        }
        heard
    }

    /// Whether the ticket of an answer, a worker's or the hub's, was a log's.
    pub(super) fn log_answered(
        &mut self,
        from: Pid,
        ticket: u64,
        is_done: bool,
        deadlines: &mut Deadlines,
    ) -> bool {
        if let Some(worker) = self.find(from) {
            return worker.log_answered(ticket, is_done, deadlines);
        }
        let hub = self.hub.as_mut().filter(|hub| hub.is_process(from));
        hub.is_some_and(|hub| hub.log_answered(ticket, is_done, deadlines))
    }

    // What workers are to do.

    /// Whether a generation has `count` workers, all of them ready.
    pub(super) fn are_ready(&self, generation: u64, count: usize) -> bool {
        self.of(generation).count() == count && self.of(generation).all(Worker::is_ready)
    }

    /// Whether all of a generation have begun to accept.
    pub(super) fn are_serving(&self, generation: u64) -> bool {
        self.of(generation).all(|worker| worker.slot.state() == SlotState::Serving)
    }

    /// The first of a generation that is not as far as this.
    pub(super) fn first_behind(&self, generation: u64, state: SlotState) -> Option<u16> {
        self.of(generation).find(|worker| worker.slot.state() != state).map(|worker| worker.number)
    }

    /// Those of a generation that are ready and wait are to serve.
    pub(super) fn serve_ready(&mut self, generation: u64, deadlines: &mut Deadlines) {
        for worker in &mut self.workers {
            if worker.generation == generation && worker.is_coming() && worker.is_ready() {
                worker.order(Stage::Serve, deadlines);
            }
        }
    }

    /// Orders the workers that fit, and were not ordered to leave yet, to drain; one that is
    /// still there at `until` is killed. Returns how many were ordered.
    fn drain(
        &mut self,
        fits: impl Fn(&Worker) -> bool,
        stage: Stage,
        until: Instant,
        deadlines: &mut Deadlines,
    ) -> usize {
        let mut count = 0;
        for worker in self.workers.iter_mut().filter(|w| !w.is_leaving() && fits(w)) {
            deadlines.set(What::Leave(worker.pid), until);
            worker.order(stage, deadlines);
            count += 1;
        }
        count
    }

    /// All but this generation, which serves now, are to drain.
    pub(super) fn drain_all_but(
        &mut self,
        generation: u64,
        until: Instant,
        deadlines: &mut Deadlines,
    ) {
        let is_other = |worker: &Worker| worker.generation != generation;
        self.drain(is_other, Stage::DrainForReload, until, deadlines);
    }

    /// Of this generation only the workers below this number are to stay.
    pub(super) fn drain_from(
        &mut self,
        generation: u64,
        number: u16,
        until: Instant,
        deadlines: &mut Deadlines,
    ) {
        let is_beyond =
            |worker: &Worker| worker.generation == generation && worker.number >= number;
        for worker in self.workers.iter().filter(|w| is_beyond(w) && !w.is_leaving()) {
            log::info!(target: "worker.left", "worker is drained worker={} pid={}", worker.number, worker.pid);
        }
        deadlines.clear_all(|what| matches!(what, What::Vacancy(vacant) if vacant >= number));
        self.drain(is_beyond, Stage::DrainForReload, until, deadlines);
    }

    /// All are to stop gracefully, and none has a time of its own for it.
    pub(super) fn drain_all(&mut self, deadlines: &mut Deadlines) {
        for worker in &mut self.workers {
            // Of one that drains already nothing changes.
            let stage = worker.orders.stage.max(Stage::Drain);
            worker.order(stage, deadlines);
        }
    }

    pub(super) fn signal_all(&self, signal: Signal) {
        self.workers.iter().for_each(|worker| worker.signal(signal));
    }

    /// The workers of a generation are to go at once. Returns how many there were.
    pub(super) fn cut(&mut self, generation: u64, deadlines: &mut Deadlines) -> usize {
        let until = Instant::now() + FAST_STOP_MAX;
        let mut count = 0;
        for worker in self.workers.iter_mut().filter(|w| w.generation == generation) {
            worker.cut(until, deadlines);
            count += 1;
        }
        count
    }

    /// Whether a worker that leaves may still have its listening sockets.
    pub(super) fn is_letting_go(&self) -> bool {
        self.workers.iter().any(|worker| worker.is_leaving() && !worker.slot.has_left_listeners())
    }

    /// Whether a worker was told to go at once: its slot comes free soon.
    pub(super) fn is_making_room(&self) -> bool {
        self.workers.iter().any(|worker| worker.is_cut)
    }

    /// Generations before this one that drain and were not told to hurry, the oldest first.
    pub(super) fn draining_before(&self, generation: u64) -> Vec<u64> {
        let drains = |w: &&Worker| w.is_leaving() && !w.is_cut && w.generation < generation;
        let mut generations: Vec<u64> =
            self.workers.iter().filter(drains).map(|worker| worker.generation).collect();
        generations.sort_unstable();
        generations.dedup();
        generations
    }

    /// All are to log from another level on.
    pub(super) fn order_level(&mut self, place: u8, deadlines: &mut Deadlines) {
        for worker in &mut self.workers {
            worker.orders.log_level = Some(place);
            worker.ring(deadlines);
        }
    }

    /// Asks all workers something.
    pub(super) fn ask_all(&mut self, message: Message, value: u64) -> Asking {
        self.each(|worker| worker.ask(message, value))
    }

    /// Hands each worker the log that `log_of` has for its number and generation.
    pub(super) fn hand_logs(
        &mut self,
        ticket: u64,
        log_of: impl Fn(u16, u64) -> Option<Arc<File>>,
        deadlines: &mut Deadlines,
    ) -> Asking {
        self.each(|worker| match log_of(worker.number, worker.generation) {
            Some(file) => worker.hand_log(ticket, file, deadlines),
            None => Delivery::NotMeant,
        })
    }

    fn each(&mut self, mut ask: impl FnMut(&mut Worker) -> Delivery) -> Asking {
        let mut asking = Asking::default();
        for worker in &mut self.workers {
            let asked = Asked { number: Some(worker.number), pid: worker.pid };
            match ask(worker) {
                Delivery::Sent => asking.waits_for.push(asked),
                Delivery::Full => asking.untold.push(asked),
                Delivery::NotMeant => {}
            }
        }
        asking
    }

    // What is due.

    /// A worker has had its time to get ready. Its number, if it is late: it is killed then.
    pub(super) fn end_of_readiness(&mut self, pid: Pid) -> Option<u16> {
        let worker = self.find(pid)?;
        // At the start one that is ready only waits for the others.
        if !worker.is_coming() || worker.is_ready() {
            return None;
        }
        log::error!(target: "worker.late", "worker was not ready in time worker={} pid={pid}", worker.number);
        worker.signal(Signal::SIGKILL);
        Some(worker.number)
    }

    /// A worker has had its time to leave.
    pub(super) fn end_of_leaving(&mut self, pid: Pid, deadlines: &mut Deadlines) {
        let Some(worker) = self.find(pid) else { return };
        log::warn!(target: "worker.killed", "killing a worker that does not leave worker={}", worker.number);
        worker.is_cut = true;
        worker.signal(Signal::SIGKILL);
        deadlines.set(What::Leave(pid), Instant::now() + FAST_STOP_MAX);
    }

    pub(super) fn ring(&mut self, pid: Pid, deadlines: &mut Deadlines) {
        if let Some(worker) = self.find(pid) {
            worker.ring(deadlines);
        }
    }

    pub(super) fn hand_over_log(&mut self, pid: Pid, deadlines: &mut Deadlines) {
        if let Some(worker) = self.find(pid) {
            worker.hand_over_log(deadlines);
        } else if let Some(hub) = self.hub.as_mut().filter(|hub| hub.is_process(pid)) {
            hub.hand_over_log(deadlines);
        }
    }

    /// Checks all workers for progress, and kills those that are stuck.
    pub(super) fn check_progress(&mut self, limit: Duration, now: Instant, queue: &mut Deadlines) {
        queue.set(What::Progress, now + stuck::pause(limit));
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let now_ms = monotonic_ms();
        for worker in &mut self.workers {
            let heartbeats = worker.slot.heartbeats();
            if worker.stall.check(heartbeats, now_ms, limit_ms) {
                let since_ms = now_ms.saturating_sub(heartbeats.0);
                let connections = worker.slot.report().connections;
                stuck::report(worker.number, worker.pid, since_ms, connections);
                worker.signal(Signal::SIGKILL);
                self.zone.count(Counter::WorkersStuck, 1);
            }
        }
    }

    /// Logs, once, that a worker has written over what it shares with us.
    pub(super) fn report_damage(&self) {
        if self.zone.take_damage() {
            log::error!(
                target: "zone.repaired", "figures in shared memory were overwritten: a worker is broken or taken over; \
                 connection permits were set right as far as they can be known; restart the server"
            );
        }
    }
}

impl Worker {
    /// It has sent what no worker sends. After some of it the worker is killed: it is
    /// broken, or taken over.
    fn note_nonsense(&mut self, what: &str, warnings: &mut Throttle) {
        self.nonsense = self.nonsense.saturating_add(1);
        let (number, pid) = (self.number, self.pid);
        if let Some(held) = warnings.admit(Moment::now()) {
            log::warn!(target: "worker.nonsense", "worker has sent {what} worker={number} pid={pid}{held}");
        }
        if self.nonsense == NONSENSE_MAX {
            log::error!(
                target: "worker.nonsense_max", "killing worker: it sent {NONSENSE_MAX} invalid messages worker={number} pid={pid}"
            );
            self.channel = None;
            self.signal(Signal::SIGKILL);
        }
    }

    /// Its end of the channel is gone. Its death follows, or is made to.
    fn let_go(&mut self, deadlines: &mut Deadlines) {
        self.channel = None;
        if deadlines.at(What::Leave(self.pid)).is_none() {
            deadlines.set(What::Leave(self.pid), Instant::now() + MUTE_MAX);
        }
    }
}
