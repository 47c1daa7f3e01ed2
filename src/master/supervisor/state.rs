//! What the supervisor can be written down as, and read back from. Moments are written as
//! the time that is left, since another program's clock may begin elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chappe_shm::{Orders, Stage, Zone};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Supervisor;
use super::worker::Worker;
use crate::channel::MasterEnd;
use crate::master::deadlines::{Deadlines, What};

/// The supervisor as it is written down: workers, vacancies and their times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::master) struct SupervisorState {
    pub(in crate::master) workers: Vec<WorkerState>,
    pub(in crate::master) vacancies: Vec<VacancyState>,
    /// The pace of each worker number.
    pub(in crate::master) pauses_ms: Vec<u64>,
}

/// A worker that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::master) struct WorkerState {
    pub(in crate::master) number: u16,
    pub(in crate::master) generation: u64,
    pub(in crate::master) pid: i32,
    /// Its place in the zone.
    pub(in crate::master) slot: usize,
    pub(in crate::master) stage: StageName,
    pub(in crate::master) log_level: Option<u8>,
    pub(in crate::master) is_cut: bool,
    pub(in crate::master) uptime_ms: u64,
    /// When it is late, and when it is killed.
    pub(in crate::master) ready_in_ms: Option<u64>,
    pub(in crate::master) leaves_in_ms: Option<u64>,
}

/// A worker number that waits for its next worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::master) struct VacancyState {
    pub(in crate::master) number: u16,
    pub(in crate::master) due_in_ms: u64,
}

/// Why workers that were written down can't be those of a zone.
#[derive(Debug, PartialEq, Eq, Error)]
pub(in crate::master) enum Misfit {
    #[error("worker {pid} has slot {slot}, which is free")]
    FreeSlot { pid: i32, slot: usize },
    #[error("{pid} is the number of no process, or of two workers")]
    Process { pid: i32 },
    #[error("two workers have slot {slot}")]
    SharedSlot { slot: usize },
}

/// [`Stage`] in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::master) enum StageName {
    Wait,
    Serve,
    Drain,
    DrainForReload,
}

impl From<Stage> for StageName {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Wait => Self::Wait,
            Stage::Serve => Self::Serve,
            Stage::Drain => Self::Drain,
            Stage::DrainForReload => Self::DrainForReload,
        }
    }
}

impl From<StageName> for Stage {
    fn from(name: StageName) -> Self {
        match name {
            StageName::Wait => Self::Wait,
            StageName::Serve => Self::Serve,
            StageName::Drain => Self::Drain,
            StageName::DrainForReload => Self::DrainForReload,
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Supervisor {
    pub(in crate::master) fn state(&self, now: Instant, deadlines: &Deadlines) -> SupervisorState {
        let left = |at: Instant| millis(at.saturating_duration_since(now));
        let worker = |worker: &Worker| WorkerState {
            number: worker.number,
            generation: worker.generation,
            pid: worker.pid.as_raw(),
            slot: worker.slot.index(),
            stage: worker.orders.stage.into(),
            log_level: worker.orders.log_level,
            is_cut: worker.is_cut,
            uptime_ms: millis(now.saturating_duration_since(worker.started)),
            ready_in_ms: deadlines.at(What::Ready(worker.pid)).map(left),
            leaves_in_ms: deadlines.at(What::Leave(worker.pid)).map(left),
        };
        let vacancy = |(number, at)| VacancyState { number, due_in_ms: left(at) };
        SupervisorState {
            workers: self.workers.iter().map(worker).collect(),
            vacancies: deadlines.vacancies().map(vacancy).collect(),
            pauses_ms: self.pauses.iter().copied().map(millis).collect(),
        }
    }

    /// Goes on where another master has written down its state. A worker without a channel
    /// is one whose end is gone.
    ///
    /// # Errors
    /// The state and the zone do not fit together.
    #[cfg_attr(not(test), expect(dead_code, reason = "an upgrade in place will use it"))]
    pub(in crate::master) fn restore(
        state: &SupervisorState,
        zone: Arc<Zone>,
        mut channels: BTreeMap<i32, MasterEnd>,
        now: Instant,
        deadlines: &mut Deadlines,
    ) -> Result<Self, Misfit> {
        let mut restored = Self::new(Arc::clone(&zone), 0);
        let at = |in_ms: u64| now + Duration::from_millis(in_ms);
        restored.pauses = state.pauses_ms.iter().copied().map(Duration::from_millis).collect();
        for vacancy in &state.vacancies {
            deadlines.set(What::Vacancy(vacancy.number), at(vacancy.due_in_ms));
        }
        for saved in &state.workers {
            let (pid, slot) = (saved.pid, saved.slot);
            let claimed = zone.claimed_slot(slot);
            let claimed = claimed.ok_or(Misfit::FreeSlot { pid, slot })?;
            if pid <= 0 || restored.pids().iter().any(|known| known.as_raw() == pid) {
                return Err(Misfit::Process { pid });
            }
            if restored.workers.iter().any(|worker| worker.slot.index() == slot) {
                return Err(Misfit::SharedSlot { slot });
            }
            let pid = Pid::from_raw(pid);
            let mut worker = Worker::new(saved.number, saved.generation, pid, claimed);
            worker.channel = channels.remove(&saved.pid);
            worker.orders = Orders { stage: saved.stage.into(), log_level: saved.log_level };
            worker.is_cut = saved.is_cut;
            let lived = Duration::from_millis(saved.uptime_ms);
            worker.started = now.checked_sub(lived).unwrap_or(now);
            deadlines.set_or_clear(What::Ready(pid), saved.ready_in_ms.map(at));
            deadlines.set_or_clear(What::Leave(pid), saved.leaves_in_ms.map(at));
            restored.workers.push(worker);
        }
        Ok(restored)
    }
}
