//! A worker's end, from the kernel's word to its successor: it is logged and counted, what
//! it leaves is settled, and its place is filled. Whether a start or a reload fails by it is
//! theirs to say (`start`, `reload`).

use std::time::{Duration, Instant};

use chappe_shm::{Counter, SlotState};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::policy::{self, Death, Verdict};
use super::worker::Worker;
use super::{SETTLE_AGAIN, SETTLE_AGAIN_MAX, Supervisor};
use crate::master::deadlines::{Deadlines, What};

/// A child of the master's that has ended.
#[derive(Debug)]
pub(in crate::master) enum Child {
    /// One of the workers.
    Worker(Ended),
    /// Another one: the metrics process, or as PID 1 anybody's.
    Other {
        /// Its process.
        pid: Pid,
        /// How it ended, for the judge.
        death: Death,
        /// How it ended, as the log has it: `exit=1`, `signal=SIGSEGV`.
        how: String,
    },
}

/// A worker that has ended.
#[derive(Debug)]
pub(in crate::master) struct Ended {
    pub(in crate::master) number: u16,
    pub(in crate::master) pid: Pid,
    pub(in crate::master) generation: u64,
    /// It was told to leave: its place is another one's, or nobody's.
    pub(in crate::master) was_leaving: bool,
    pub(in crate::master) how: String,
    death: Death,
    lived: Duration,
}

/// How a process ended, for the judge and for people.
fn ending(status: WaitStatus) -> Option<(Pid, Death, String)> {
    match status {
        WaitStatus::Exited(pid, 0) => Some((pid, Death::Stopped, "exit=0".to_owned())),
        WaitStatus::Exited(pid, code) => Some((pid, Death::Failed, format!("exit={code}"))),
        WaitStatus::Signaled(pid, signal, _) => {
            Some((pid, Death::Failed, format!("signal={}", signal.as_str())))
        }
        _ => None,
    }
}

impl Supervisor {
    /// Takes every child that has ended. One SIGCHLD may stand for many of them, and
    /// as PID 1 there are children that are no workers of ours.
    pub(in crate::master) fn reap(
        &mut self,
        is_stopping: bool,
        deadlines: &mut Deadlines,
    ) -> Vec<Child> {
        let mut ended = Vec::new();
        // An error is ECHILD: there is no child at all.
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
            let Some((pid, death, how)) = ending(status) else { continue };
            ended.push(match self.workers.iter().position(|worker| worker.pid == pid) {
                Some(index) => {
                    let worker = self.workers.swap_remove(index);
                    Child::Worker(self.note_end(&worker, death, how, is_stopping, deadlines))
                }
                None => Child::Other { pid, death, how },
            });
        }
        // Once for all of them: it looks at each live worker.
        if ended.iter().any(|child| matches!(child, Child::Worker(_))) {
            self.settle(deadlines);
        }
        ended
    }

    /// Logs and counts the end of a worker, and frees its slot.
    fn note_end(
        &mut self,
        worker: &Worker,
        death: Death,
        how: String,
        is_stopping: bool,
        deadlines: &mut Deadlines,
    ) -> Ended {
        let (pid, lived) = (worker.pid, worker.started.elapsed());
        for what in [What::Ready(pid), What::Leave(pid), What::Ring(pid), What::Log(pid)] {
            deadlines.clear(what);
        }
        let report = worker.report();
        let has_served = !matches!(report.state, SlotState::Starting | SlotState::Ready);
        let death = if has_served { death } else { death.before_serving() };
        let was_killed = is_stopping || worker.is_cut;
        let level = match death {
            Death::Failed | Death::Unserved if !was_killed => log::Level::Warn,
            Death::Failed | Death::Unserved | Death::Stopped => log::Level::Info,
        };
        log::log!(
            target: "worker.ended",
            level,
            "worker ended worker={} pid={pid} {how} uptime_ms={} connections={}",
            worker.number,
            lived.as_millis(),
            report.connections,
        );
        if death != Death::Stopped && !was_killed {
            self.zone.count(Counter::WorkersDied, 1);
        }
        // What it had open when it died is closed now, though nobody counted it.
        let counted = worker.slot.counter_values();
        let open = counted.get(Counter::ConnectionsAccepted);
        let open = open.saturating_sub(counted.get(Counter::ConnectionsClosed));
        self.zone.count(Counter::ConnectionsClosed, open);
        if let Some(hub) = &mut self.hub {
            hub.end_life(worker.slot.index());
        }
        match is_stopping {
            true => self.zone.free_at_stop(&worker.slot),
            false => self.zone.free(&worker.slot),
        }
        let (number, generation) = (worker.number, worker.generation);
        let was_leaving = worker.is_leaving();
        Ended { number, pid, generation, was_leaving, how, death, lived }
    }

    /// Gives the permits of the dead back to the living, or tries again soon.
    pub(in crate::master) fn settle(&mut self, deadlines: &mut Deadlines) {
        match self.zone.settle() {
            Some(permits) => {
                if permits > 0 {
                    log::info!(target: "permits.returned", "connection permits came back permits={permits}");
                }
                self.settle_pause = SETTLE_AGAIN;
                deadlines.clear(What::Settle);
            }
            None => {
                deadlines.set(What::Settle, Instant::now() + self.settle_pause);
                self.settle_pause = (self.settle_pause * 2).min(SETTLE_AGAIN_MAX);
            }
        }
    }

    /// Fills the place of a worker that was not told to leave, now or after a pause.
    pub(in crate::master) fn replace(
        &mut self,
        ended: &Ended,
        is_stopping: bool,
        deadlines: &mut Deadlines,
    ) {
        self.fill(ended.number, ended.death, ended.lived, is_stopping, deadlines);
    }

    /// The next worker of a number could not be forked: paced like one that can't boot.
    pub(in crate::master) fn could_not_fork(&mut self, number: u16, deadlines: &mut Deadlines) {
        self.fill(number, Death::Unserved, Duration::ZERO, false, deadlines);
    }

    fn fill(
        &mut self,
        number: u16,
        death: Death,
        lived: Duration,
        is_stopping: bool,
        deadlines: &mut Deadlines,
    ) {
        let Some(pause) = self.pauses.get_mut(usize::from(number)) else { return };
        let Verdict::Respawn(after) = policy::judge(is_stopping, death, lived, pause) else {
            return;
        };
        if !after.is_zero() {
            log::warn!(target: "worker.paused", "worker will be replaced worker={number} pause_ms={}", after.as_millis());
        }
        deadlines.set(What::Vacancy(number), Instant::now() + after);
    }

    /// After a failed start: nothing is left running.
    pub(in crate::master) fn kill_and_reap_all(&mut self) {
        for worker in self.workers.drain(..) {
            worker.signal(Signal::SIGKILL);
            // An error is ECHILD: it was reaped already.
            let _ = waitpid(worker.pid, None);
            self.zone.free_at_stop(&worker.slot);
        }
    }
}
