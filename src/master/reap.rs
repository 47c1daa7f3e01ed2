//! After a worker's end: what it leaves is settled, and its place is filled.

use std::time::{Duration, Instant};

use chappe_shm::{Counter, SlotState};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::policy::{self, Death, Verdict};
use super::{Master, Phase, StartError, Worker};
use crate::logging::Role;

/// How soon permits are settled again when a live worker was just using them.
const SETTLE_AGAIN: Duration = Duration::from_millis(10);

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

impl Master<'_> {
    /// Takes every child that has ended. One SIGCHLD may stand for many of them, and
    /// as PID 1 there are children that are no workers of ours.
    pub(super) fn reap(&mut self) {
        // An error is ECHILD: there is no child at all.
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
            let Some((pid, death, how)) = ending(status) else { continue };
            match self.workers.iter().position(|worker| worker.pid == pid) {
                Some(index) => {
                    let worker = self.workers.swap_remove(index);
                    self.bury(worker, death, &how);
                }
                None if self.bury_metrics(pid, death, &how) => {}
                None => log::debug!("a child that is no worker ended pid={pid} {how}"),
            }
        }
    }

    fn bury(&mut self, worker: Worker, death: Death, how: &str) {
        let lived = worker.started.elapsed();
        let report = worker.slot.report();
        let is_served = !matches!(report.state, SlotState::Starting | SlotState::Ready);
        let death = if is_served { death } else { death.before_serving() };
        let was_killed = self.stop.is_stopping() || worker.is_cut;
        let level = match death {
            Death::Failed | Death::Unserved if !was_killed => log::Level::Warn,
            Death::Failed | Death::Unserved | Death::Stopped => log::Level::Info,
        };
        log::log!(
            level,
            "worker ended worker={} pid={} {how} uptime_ms={} connections={}",
            worker.number,
            worker.pid,
            lived.as_millis(),
            report.connections,
        );
        if death != Death::Stopped && !was_killed {
            self.zone.count(Counter::WorkersDied, 1);
        }
        // What it had open when it died is closed now, whoever was to count that.
        let counted = worker.slot.counter_values();
        let open = counted.get(Counter::ConnectionsAccepted);
        let open = open.saturating_sub(counted.get(Counter::ConnectionsClosed));
        self.zone.count(Counter::ConnectionsClosed, open);
        self.zone.free(&worker.slot);
        self.settle();

        if self.phase != Phase::Running && !self.stop.is_stopping() {
            self.start_failure.get_or_insert_with(|| StartError::WorkerDied {
                number: worker.number,
                pid: worker.pid,
                how: how.to_owned(),
                log: self
                    .config
                    .log
                    .directory
                    .join(Role::Worker(worker.number).file_name())
                    .display()
                    .to_string(),
            });
        }
        if worker.leaves_by.is_some() {
            // Its place was another one's already; its slot may be waited for.
            self.fork_candidate();
            return;
        }
        if worker.generation != self.generation {
            let (number, pid) = (worker.number, worker.pid);
            let log = Role::Worker(number).file_name();
            self.fail_reload(&format!(
                "worker {number} (pid {pid}) ended before all were ready: {how}; see {log}"
            ));
            return;
        }
        let Some(pause) = self.pauses.get_mut(usize::from(worker.number)) else { return };
        match policy::judge(self.stop.is_stopping(), death, lived, pause) {
            Verdict::Forget => {}
            Verdict::Respawn(after) => self.fill_later(worker.number, after),
        }
    }

    fn fill_later(&mut self, number: u16, after: Duration) {
        if !after.is_zero() {
            log::warn!("worker will be replaced worker={number} pause_ms={}", after.as_millis());
        }
        self.vacancies.push(super::Vacancy { number, due: Instant::now() + after });
    }

    /// Forks the next worker of a number. That it can't be forked is paced like a
    /// worker that can't boot.
    pub(super) fn respawn(&mut self, number: u16) {
        if let Err(error) = self.spawn(number) {
            log::error!("cannot fork a worker: {error} worker={number}");
            let Some(pause) = self.pauses.get_mut(usize::from(number)) else { return };
            let verdict = policy::judge(false, Death::Unserved, Duration::ZERO, pause);
            if let Verdict::Respawn(after) = verdict {
                self.fill_later(number, after);
            }
        }
    }

    /// Gives the permits of the dead back to the living, or tries again soon.
    pub(super) fn settle(&mut self) {
        self.settle_at = match self.zone.settle() {
            Some(0) => None,
            Some(permits) => {
                log::info!("connection permits came back permits={permits}");
                None
            }
            None => Some(Instant::now() + SETTLE_AGAIN),
        };
    }

    /// Logs, once, that a worker has written over a semaphore that it shares with us.
    pub(super) fn report_damage(&self) {
        if self.zone.take_damage() {
            log::error!(
                "a semaphore in shared memory was overwritten, and connection permits are no \
                 longer right: a worker is broken or taken over; restart the server"
            );
        }
    }

    /// After a failed start: nothing is left running.
    pub(super) fn kill_and_reap_all(&mut self) {
        for worker in self.workers.drain(..) {
            worker.signal(Signal::SIGKILL);
            // An error is ECHILD: it was reaped already.
            let _ = waitpid(worker.pid, None);
            self.zone.free(&worker.slot);
        }
    }
}
