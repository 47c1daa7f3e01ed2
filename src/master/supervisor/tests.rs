//! The supervisor without a fork: workers that are a slot, a channel and the number of a
//! process.

use super::*;
use crate::channel::{Channel, WorkerEnd};
use chappe_shm::{Orders, Slot};
use std::process::{Child, Command};

/// A process that a signal may end.
struct Process(Child);

impl Process {
    fn start() -> Self {
        Self(Command::new("sleep").arg("60").spawn().unwrap())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0.id()).unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _status = self.0.wait();
    }
}

struct Scene {
    supervisor: Supervisor,
    deadlines: Deadlines,
}

impl Scene {
    fn new(numbers: u16) -> Self {
        let supervisor = Supervisor::new(Zone::create(10).unwrap(), numbers);
        Self { supervisor, deadlines: Deadlines::default() }
    }

    /// A worker that is ready, with its slot and its end of the channel. No process has such
    /// a number.
    fn add(&mut self, number: u16, generation: u64) -> (Slot, WorkerEnd) {
        let count = i32::try_from(self.supervisor.count()).unwrap();
        self.add_process(number, generation, Pid::from_raw(i32::MAX - count))
    }

    fn add_process(&mut self, number: u16, generation: u64, pid: Pid) -> (Slot, WorkerEnd) {
        let slot = self.supervisor.zone.claim_slot(number, generation).unwrap();
        let (channel, worker_end) = Channel::pair().unwrap();
        let mut worker = Worker::new(number, generation, pid, slot.clone());
        worker.channel = Some(channel);
        slot.mark_ready();
        self.supervisor.workers.push(worker);
        (slot, worker_end)
    }

    fn hear(&mut self) -> Vec<Heard> {
        let woken = self.supervisor.pids().into_iter().collect();
        self.supervisor.hear(&woken, &mut self.deadlines)
    }

    /// As [`Scene::hear`], of an end that was dropped: a test beside this one may be about to
    /// start a process, which has that end too until it has exec'd.
    fn hear_at_last(&mut self) -> Vec<Heard> {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let heard = self.hear();
            if !heard.is_empty() || Instant::now() > until {
                return heard;
            }
            std::thread::yield_now();
        }
    }
}

fn rings(channel: &WorkerEnd) -> usize {
    let next = || channel.try_receive_parcel().unwrap();
    std::iter::from_fn(next)
        .filter(|received| {
            matches!(received, ReceivedParcel::Parcel(parcel) if parcel.message == Message::Orders)
        })
        .count()
}

fn stage(slot: &Slot) -> Stage {
    slot.orders().stage
}

#[test]
fn workers_of_a_generation_that_are_ready_are_told_to_serve_once() {
    let mut it = Scene::new(3);
    let (one, one_end) = it.add(0, 1);
    let (other, other_end) = it.add(0, 2);
    let late = it.supervisor.zone.claim_slot(1, 1).unwrap();
    let worker = Worker::new(1, 1, Pid::from_raw(7), late.clone());
    it.supervisor.workers.push(worker);
    assert!(!it.supervisor.are_ready(1, 2) && it.supervisor.are_ready(2, 1));
    assert!(!it.supervisor.are_ready(2, 2), "one is missing");
    for _ in 0..2 {
        it.supervisor.serve_ready(1, &mut it.deadlines);
    }
    assert_eq!(
        [stage(&one), stage(&other), stage(&late)],
        [Stage::Serve, Stage::Wait, Stage::Wait]
    );
    assert_eq!((rings(&one_end), rings(&other_end)), (1, 0));
    assert_eq!(it.supervisor.first_behind(1, SlotState::Ready), Some(1));
}

#[test]
fn a_full_channel_loses_no_order() {
    let mut it = Scene::new(1);
    let (slot, end) = it.add(0, 1);
    while it.supervisor.workers[0].ask(Message::Kick, 1) == Delivery::Sent {}
    it.supervisor.serve_ready(1, &mut it.deadlines);
    it.supervisor.order_level(3, &mut it.deadlines);
    it.supervisor.drain_all(&mut it.deadlines);
    let orders = Orders { stage: Stage::Drain, log_level: Some(3) };
    assert_eq!(slot.orders(), orders);
    assert_eq!(rings(&end), 0, "it has kicks to read, and the slot after them");
    assert_eq!(it.deadlines.next(), None, "nothing is to be tried again");
    let asking = it.supervisor.ask_all(Message::Kick, 1);
    assert_eq!((asking.waits_for.len(), asking.untold.len()), (1, 0));
}

#[test]
fn who_drains_is_killed_after_its_time_and_is_not_told_again() {
    let mut it = Scene::new(2);
    let (old, _old_end) = it.add(0, 1);
    let (new, _new_end) = it.add(0, 2);
    let (beyond, _beyond_end) = it.add(1, 2);
    let until = Instant::now() + Duration::from_secs(60);
    it.supervisor.drain_all_but(2, until, &mut it.deadlines);
    assert_eq!([stage(&old), stage(&new)], [Stage::DrainForReload, Stage::Wait]);
    it.deadlines.set(What::Vacancy(1), until);
    it.supervisor.drain_from(2, 1, until, &mut it.deadlines);
    assert_eq!([stage(&new), stage(&beyond)], [Stage::Wait, Stage::DrainForReload]);
    let pids = it.supervisor.pids();
    let leaves = |it: &Scene, nth: usize| it.deadlines.at(What::Leave(pids[nth]));
    assert_eq!([leaves(&it, 0), leaves(&it, 1), leaves(&it, 2)], [Some(until), None, Some(until)]);
    assert_eq!(it.deadlines.vacancies().count(), 0);
    // A later reload gives nobody more time.
    it.supervisor.drain_all_but(3, until + Duration::from_secs(9), &mut it.deadlines);
    assert_eq!(leaves(&it, 0), Some(until));
    assert_eq!(it.supervisor.draining_before(3), [1, 2]);
    assert_eq!(it.supervisor.draining_before(2), [1]);
    // A graceful stop changes nothing for them.
    it.supervisor.drain_all(&mut it.deadlines);
    assert_eq!(stage(&old), Stage::DrainForReload);
}

#[test]
fn who_is_cut_leaves_at_once_and_makes_room() {
    let process = Process::start();
    let mut it = Scene::new(1);
    let (slot, _end) = it.add_process(0, 1, process.pid());
    slot.mark_serving();
    assert!(!it.supervisor.is_making_room());
    assert_eq!(it.supervisor.cut(1, &mut it.deadlines), 1);
    assert!(it.supervisor.is_making_room());
    assert_eq!(slot.state(), SlotState::Draining, "to everybody else");
    assert!(it.deadlines.at(What::Leave(process.pid())).is_some());
    assert!(it.supervisor.draining_before(9).is_empty(), "it was told to hurry");
}

#[test]
fn what_workers_say_is_told_apart_and_bounded() {
    let mut it = Scene::new(1);
    let (_slot, end) = it.add(0, 1);
    for _ in 0..MESSAGES_A_TURN {
        end.send(Message::Ready).unwrap();
    }
    end.send_parcel(Message::Done, 7, None).unwrap();
    end.send(Message::AskReopen).unwrap();
    assert!(matches!(it.hear()[..], [Heard::Ready]), "the rest in the next turn");
    let heard = it.hear();
    assert!(matches!(
        heard[..],
        [Heard::Answer { message: Message::Done, value: 7, .. }, Heard::AskReopen]
    ));
    drop(end);
    assert!(matches!(it.hear_at_last()[..], [Heard::Gone(_)]));
    assert!(it.hear().is_empty());
    let pid = it.supervisor.pids()[0];
    assert!(it.deadlines.at(What::Leave(pid)).is_some(), "its death is made to follow");
}

#[test]
fn a_worker_that_talks_nonsense_is_killed() {
    let mut process = Process::start();
    let mut it = Scene::new(1);
    let (_slot, end) = it.add_process(0, 1, process.pid());
    for nth in 1..=NONSENSE_MAX {
        assert!(process.0.try_wait().unwrap().is_none(), "{nth}");
        // A message of the master's.
        end.send(Message::Orders).unwrap();
        assert!(it.hear().is_empty());
    }
    assert!(!process.0.wait().unwrap().success());
    assert_eq!(it.supervisor.channels().count(), 0);
}

#[test]
fn a_late_worker_is_killed_and_one_that_is_ready_is_not_late() {
    let mut process = Process::start();
    let mut it = Scene::new(2);
    let (_ready, _end) = it.add(0, 1);
    let slot = it.supervisor.zone.claim_slot(1, 1).unwrap();
    it.supervisor.workers.push(Worker::new(1, 1, process.pid(), slot));
    let ready = it.supervisor.pids()[0];
    assert_eq!(it.supervisor.end_of_readiness(ready), None);
    assert_eq!(it.supervisor.end_of_readiness(process.pid()), Some(1));
    assert!(!process.0.wait().unwrap().success());
}

#[test]
fn places_are_filled_after_a_pause_that_grows() {
    let mut it = Scene::new(2);
    let before = Instant::now();
    for (pause_ms, most_ms) in [(100, 150), (200, 250), (400, 450)] {
        it.supervisor.could_not_fork(1, &mut it.deadlines);
        let due = it.deadlines.at(What::Vacancy(1)).unwrap() - before;
        assert!(due >= Duration::from_millis(pause_ms), "{due:?}");
        assert!(due <= Duration::from_millis(most_ms) + before.elapsed(), "{due:?}");
    }
    it.supervisor.could_not_fork(5, &mut it.deadlines);
    assert_eq!(it.deadlines.vacancies().count(), 1, "there is no such number");
    it.supervisor.forget_pauses(2);
    it.supervisor.could_not_fork(1, &mut it.deadlines);
    assert!(
        it.deadlines.at(What::Vacancy(1)).unwrap() < Instant::now() + Duration::from_millis(150)
    );
}

#[test]
fn reports_name_workers_by_the_masters_figures() {
    let mut it = Scene::new(2);
    let (slot, _end) = it.add(1, 4);
    slot.set_pid(1);
    let (_other, _other_end) = it.add(0, 4);
    let reports = it.supervisor.reports();
    let named: Vec<_> = reports.iter().map(|r| (r.worker, r.generation, r.pid)).collect();
    let pid = i32::MAX.unsigned_abs();
    assert_eq!(named, [(0, 4, pid - 1), (1, 4, pid)]);
}
