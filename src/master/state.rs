//! The master's core state: what it has to know to go on with workers that another program
//! has forked. It is JSON, has a version, and can be read back; a state of another version,
//! or one that contradicts itself, is refused with a reason.
//!
//! No program hands it on yet. So that it is what a master really has, and not what this
//! file thinks of it, debug builds write it down and read it back after each start, reload
//! and change of the number of workers.
//!
//! Not part of it: configuration (read again from its file) and descriptors (listeners,
//! channels, logs, the zone), which are passed on as such.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::generations::GenerationsState;
use super::owners::Master;
use super::supervisor::SupervisorState;
use crate::config::LogLevel;

/// Raised with every change of what the state means.
const VERSION: u32 = 1;

/// The longest state that is read: some 300 bytes for each of 4096 workers, and some more.
const BYTES_MAX: usize = 4 << 20;

/// Why a state can't be gone on with.
#[derive(Debug, Error)]
pub(super) enum StateError {
    /// It is longer than any state is.
    #[error("the master's state has {0} bytes, more than {BYTES_MAX}")]
    TooLong(usize),
    /// It is no state at all, or lacks something.
    #[error("the master's state can't be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// It was written by another program.
    #[error("the master's state has version {found}, and this program reads {VERSION}")]
    OtherVersion {
        /// Its version.
        found: u32,
    },
    /// What it says can't be.
    #[error("the master's state contradicts itself: {0}")]
    Contradiction(#[from] Contradiction),
}

/// Two figures of a state that can't both be true.
#[derive(Debug, PartialEq, Eq, Error)]
pub(super) enum Contradiction {
    #[error("generation {number} serves, and {last} was the last")]
    Generation { number: u64, last: u64 },
    #[error("{workers} workers are wanted, and {paces} have a pace")]
    Paces { workers: u16, paces: usize },
    #[error("worker {pid} is of a generation to come")]
    Early { pid: i32 },
    #[error("there is no log level {0:?}")]
    LogLevel(String),
}

/// The master as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CoreState {
    version: u32,
    pub(super) generations: GenerationsState,
    pub(super) supervisor: SupervisorState,
    /// The last number that the desk has given out.
    pub(super) tickets: u64,
    /// The level that an operator has set, by name.
    pub(super) log_level: Option<String>,
    /// How many connections all workers may have together.
    pub(super) max_connections: u32,
}

/// What every version begins with.
#[derive(Deserialize)]
struct AnyVersion {
    version: u32,
}

impl CoreState {
    /// As text.
    pub(super) fn write(&self) -> String {
        serde_json::to_string(self).expect("numbers and words can be written")
    }

    /// From the text that [`write`](Self::write) has made.
    ///
    /// # Errors
    /// [`StateError`].
    pub(super) fn read(text: &str) -> Result<Self, StateError> {
        if text.len() > BYTES_MAX {
            return Err(StateError::TooLong(text.len()));
        }
        let AnyVersion { version } = serde_json::from_str(text)?;
        if version != VERSION {
            return Err(StateError::OtherVersion { found: version });
        }
        let state: Self = serde_json::from_str(text)?;
        state.check()?;
        Ok(state)
    }

    fn check(&self) -> Result<(), Contradiction> {
        let generations = &self.generations;
        let (number, last) = (generations.number, generations.last_number);
        if number == 0 || number > last {
            return Err(Contradiction::Generation { number, last });
        }
        let (workers, paces) = (generations.workers, self.supervisor.pauses_ms.len());
        if usize::from(workers) != paces {
            return Err(Contradiction::Paces { workers, paces });
        }
        let late =
            |worker: &&super::supervisor::WorkerState| worker.generation > generations.last_number;
        if let Some(worker) = self.supervisor.workers.iter().find(late) {
            return Err(Contradiction::Early { pid: worker.pid });
        }
        if let Some(name) = &self.log_level
            && level_of(name).is_none()
        {
            return Err(Contradiction::LogLevel(name.clone()));
        }
        Ok(())
    }

    /// The level that an operator has set.
    #[cfg_attr(not(test), expect(dead_code, reason = "an upgrade in place will use it"))]
    pub(super) fn level(&self) -> Option<LogLevel> {
        self.log_level.as_deref().and_then(level_of)
    }
}

fn level_of(name: &str) -> Option<LogLevel> {
    LogLevel::ALL.into_iter().find(|level| level.name() == name)
}

impl Master<'_> {
    /// In a debug build: that what this master is can be written down and read back as the
    /// same. Not during a reload: a candidate is not part of it.
    ///
    /// # Panics
    /// It can't.
    pub(super) fn check_core_state(&self) {
        if cfg!(debug_assertions) {
            let state = self.core_state();
            match CoreState::read(&state.write()) {
                Ok(read) => assert_eq!(read, state, "the master's state is read as another one"),
                Err(error) => panic!("{error}: {state:?}"),
            }
        }
    }

    /// What another program would have to know to go on.
    fn core_state(&self) -> CoreState {
        CoreState {
            version: VERSION,
            generations: self.generations.state(),
            supervisor: self.supervisor.state(Instant::now(), &self.deadlines),
            tickets: self.desk.tickets(),
            log_level: self.logs.set_level().map(|level| level.name().to_owned()),
            max_connections: self.generations.current().config.max_connections,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::deadlines::{Deadlines, What};
    use super::super::desk::Desk;
    use super::super::generations::Generations;
    use super::super::logs::Logs;
    use super::super::supervisor::{Supervisor, WorkerState};
    use super::*;
    use crate::channel::Channel;
    use crate::config::Config;
    use chappe_shm::{Orders, Slot, Stage, Zone};
    use nix::unistd::Pid;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::Duration;

    /// The state of a master with workers in each stage, and the zone that they share.
    fn written() -> (CoreState, Arc<Zone>, Vec<Slot>) {
        let zone = Zone::create(77).unwrap();
        let slots: Vec<_> = (0..4).map(|number| zone.claim_slot(number, 3).unwrap()).collect();
        let stages = ["wait", "serve", "drain", "drain_for_reload"];
        let workers = slots.iter().zip(stages).zip(100..).map(|((slot, stage), pid)| {
            json!({
                "number": pid - 100, "generation": 3, "pid": pid, "slot": slot.index(),
                "stage": stage, "log_level": if pid == 101 { json!(5) } else { Value::Null },
                "is_cut": pid == 102, "uptime_ms": 70_000,
                "ready_in_ms": if pid == 100 { json!(9000) } else { Value::Null },
                "leaves_in_ms": if pid >= 102 { json!(60_000) } else { Value::Null },
            })
        });
        let text = json!({
            "version": 1,
            "generations": {
                "number": 3, "last_number": 5, "workers": 3, "workers_configured": 2,
                "history": {
                    "count": 4, "failed": 2, "last": { "reason": "port \"taken\"", "at_ms": 7 },
                },
            },
            "supervisor": {
                "workers": workers.collect::<Vec<_>>(),
                "vacancies": [{ "number": 2, "due_in_ms": 30_000 }],
                "pauses_ms": [0, 100, 30_000],
            },
            "tickets": 12, "log_level": "debug", "max_connections": 77,
        });
        (CoreState::read(&text.to_string()).unwrap(), zone, slots)
    }

    #[test]
    fn a_state_is_read_back_and_gone_on_with() {
        let (state, zone, slots) = written();
        let now = Instant::now();
        let mut deadlines = Deadlines::default();
        let (channel, _worker_end) = Channel::pair().unwrap();
        let channels = BTreeMap::from([(101, channel)]);
        let supervisor = Supervisor::restore(
            &state.supervisor,
            Arc::clone(&zone),
            channels,
            now,
            &mut deadlines,
        );
        let supervisor = supervisor.unwrap();
        let config = Arc::new(Config::default());
        let generations =
            Generations::restore(state.generations.clone(), Arc::clone(&config), vec![], vec![]);
        let mut logs = Logs::new(&config, Vec::new(), &mut deadlines);
        logs.restore_level(state.level());
        let desk = Desk::new(None, state.tickets);
        let again = CoreState {
            version: VERSION,
            generations: generations.state(),
            supervisor: supervisor.state(now, &deadlines),
            tickets: desk.tickets(),
            log_level: logs.set_level().map(|level| level.name().to_owned()),
            max_connections: zone.limit(),
        };
        assert_eq!(again, state);
        assert_eq!(CoreState::read(&again.write()).unwrap(), state);
        assert_eq!(supervisor.channels().count(), 1);
        let leaves = deadlines.at(What::Leave(Pid::from_raw(103)));
        assert_eq!(leaves, Some(now + Duration::from_secs(60)));
        // The orders are the master's figures; the slots keep what they have until it rings.
        assert_eq!(slots[1].orders(), Orders { stage: Stage::Wait, log_level: None });
    }

    #[test]
    fn a_state_of_another_version_is_refused() {
        let (state, ..) = written();
        for version in [0, 2, u32::MAX] {
            let text = state.write().replace("\"version\":1", &format!("\"version\":{version}"));
            let error = CoreState::read(&text).unwrap_err();
            let expected =
                format!("the master's state has version {version}, and this program reads 1");
            assert_eq!(error.to_string(), expected);
        }
        // Whatever else is in it.
        let error = CoreState::read("{\"version\": 9, \"workers\": []}").unwrap_err();
        assert!(matches!(error, StateError::OtherVersion { found: 9 }), "{error}");
    }

    #[test]
    fn what_is_no_state_is_refused() {
        let text = written().0.write();
        let doctored = |from: &str, to: &str| text.replacen(from, to, 1);
        for (text, named) in [
            (String::new(), "can't be read"),
            ("{}".to_owned(), "missing field `version`"),
            (text[..text.len() - 1].to_owned(), "can't be read"),
            (doctored("\"tickets\":12,", ""), "missing field `tickets`"),
            (doctored("\"tickets\":12", "\"tickets\":-1"), "invalid value"),
            (doctored("\"tickets\":12", "\"tickets\":12,\"more\":1"), "unknown field `more`"),
            (doctored("\"serve\"", "\"dance\""), "unknown variant `dance`"),
            (doctored("\"debug\"", "\"loud\""), "no log level \"loud\""),
            (doctored("\"number\":3", "\"number\":6"), "generation 6 serves, and 5 was the last"),
            (doctored("\"workers\":3", "\"workers\":4"), "4 workers are wanted, and 3 have a pace"),
            (doctored("\"generation\":3", "\"generation\":9"), "of a generation to come"),
            (" ".repeat(BYTES_MAX + 1), "more than 4194304"),
        ] {
            let error = CoreState::read(&text).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn a_state_that_does_not_fit_the_zone_is_refused() {
        let (state, zone, _) = written();
        type Change = fn(&mut WorkerState);
        let changes: [(Change, &str); 4] = [
            (|worker| worker.slot = 4000, "has slot 4000, which is free"),
            (|worker| worker.slot = 1 << 40, "which is free"),
            (|worker| worker.slot = 0, "two workers have slot 0"),
            (|worker| worker.pid = 100, "of two workers"),
        ];
        for (change, named) in changes {
            let mut state = state.clone();
            change(&mut state.supervisor.workers[3]);
            let mut deadlines = Deadlines::default();
            let restored = Supervisor::restore(
                &state.supervisor,
                Arc::clone(&zone),
                BTreeMap::new(),
                Instant::now(),
                &mut deadlines,
            );
            let error = restored.unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
