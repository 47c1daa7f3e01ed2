//! A service with timers and a `stopping` hook that takes its time.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use chappe::{Client, Counter, Deny, Outcome, Routes, Service, StartError, Worker};
use serde::Deserialize;

use crate::gate;

/// Answers at once.
pub const ANSWER: u16 = 16;
/// Has a timer run at once.
pub const SOON: u16 = 17;
/// Waits at the gate that the body names.
pub const HOLD: u16 = 18;

/// What it is told by its configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where it writes down what runs.
    journal: PathBuf,
    period_ms: u64,
    #[serde(default)]
    tick: Tick,
    /// What a run of the timer waits at.
    tick_gate: Option<PathBuf>,
    /// What `stopping` waits at.
    stop_gate: Option<PathBuf>,
    /// The worker that cannot start.
    unready: Option<u16>,
    /// A counter that it asks for.
    counter: Option<String>,
}

/// How a run of the timer ends.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Tick {
    #[default]
    Well,
    Fails,
    Panics,
}

/// The service.
#[derive(Debug)]
pub struct Clock {
    /// Each line is one write.
    journal: File,
    ticks: Counter,
}

impl Clock {
    fn note(&self, worker: &Worker<Self>, what: &str) {
        let line = format!("{} of {} {what}\n", worker.number(), worker.generation());
        (&self.journal).write_all(line.as_bytes()).expect("the journal");
    }
}

fn pass(gate: Option<&PathBuf>) {
    if let Some(gate) = gate {
        gate::wait(gate.as_os_str().as_bytes());
    }
}

fn tick(clock: &Clock, worker: &Worker<Clock>) -> Outcome {
    clock.note(worker, "ticks");
    clock.ticks.add(1);
    let config = worker.config();
    pass(config.tick_gate.as_ref());
    match config.tick {
        Tick::Well => Ok(()),
        Tick::Fails => Err("planned failure")?,
        Tick::Panics => panic!("planned for a tick"),
    }
}

impl Service for Clock {
    type Config = Config;
    type State = ();

    fn start(worker: &Worker<Self>) -> Result<Self, StartError> {
        let config = worker.config();
        let journal = OpenOptions::new().create(true).append(true).open(&config.journal)?;
        let counter = config.counter.as_deref().unwrap_or("ticks");
        let clock = Self { journal, ticks: worker.counter(counter) };
        let period = Duration::from_millis(config.period_ms);
        worker.every(period, tick);
        worker.after(period, |clock, worker| {
            clock.note(worker, "once");
            Ok(())
        });
        clock.note(worker, "starts");
        match config.unready {
            Some(number) if number == worker.number() => Err("planned to fail")?,
            _ => Ok(clock),
        }
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.counter("ticks").on(ANSWER, |_, (), call| call.reply(ANSWER, b""));
        routes.blocking(HOLD, |_, (), call| {
            gate::wait(call.body());
            call.reply(HOLD, b"")
        });
        routes.on(SOON, |_, (), call| {
            call.worker().after(Duration::ZERO, |clock, worker| {
                clock.note(worker, "soon");
                Ok(())
            });
            call.reply(SOON, b"")
        });
    }

    fn connected(&self, _: &Client) -> Result<(), Deny> {
        Ok(())
    }

    fn stopping(&self, worker: &Worker<Self>) {
        self.note(worker, "stops");
        pass(worker.config().stop_gate.as_ref());
        self.note(worker, "has stopped");
    }
}
