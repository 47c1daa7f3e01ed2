//! A service that writes down what it is called for, and the tests read that.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::SystemTime;

use chappe::{
    Call, Client as Peer, CloseReason, Deny, Outcome, Routes, Service, StartError, Worker,
};
use serde::Deserialize;

use crate::gate;
use crate::wait::DEADLINE;

/// Counts the messages of its connection and answers with its id and their number.
pub const COUNT: u16 = 16;
/// Begins an answer, then denies with the body as the text.
pub const DENY: u16 = 17;
/// Answers twice, then closes with the body as the text.
pub const CLOSE: u16 = 18;
/// Panics.
pub const PANIC: u16 = 19;
/// Waits at the gate that the body names, and answers.
pub const HOLD: u16 = 20;
/// Admits, with the right word.
pub const LOGIN: u16 = 21;

/// The gate of `closed`, beside the journal.
pub const GATE: &str = "gate";

/// Its configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where it writes down what it is called for.
    journal: PathBuf,
    #[serde(default)]
    check: Manner,
    #[serde(default)]
    start: Manner,
    #[serde(default)]
    connected: Manner,
    #[serde(default)]
    closed: Manner,
    #[serde(default)]
    stopping: Manner,
}

/// How a hook behaves.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Manner {
    #[default]
    Well,
    Denies,
    Panics,
    /// Does not return; `closed` does when the gate beside the journal opens.
    Hangs,
}

/// The service; with a gate, or without.
#[derive(Debug)]
pub struct Diary<const HAS_GATE: bool> {
    /// Each line is one write, to its end: those of all workers stand there whole.
    journal: File,
    /// Where `closed` waits.
    gate: PathBuf,
    connected: Manner,
    closed: Manner,
    stopping: Manner,
}

impl<const HAS_GATE: bool> Diary<HAS_GATE> {
    fn note(&self, line: &str) {
        (&self.journal).write_all(format!("{line}\n").as_bytes()).expect("the journal");
    }

    fn count(&self, count: &mut u32, call: &mut Call<'_, Self>) -> Outcome {
        *count += 1;
        let id = call.client().id();
        self.note(&format!("{id} message {count}"));
        call.reply(COUNT, format!("{id} {count}").as_bytes())
    }

    fn deny(&self, _: &mut u32, call: &mut Call<'_, Self>) -> Outcome {
        call.reply(DENY, b"half an answer")?;
        Err(Deny::close(std::str::from_utf8(call.body())?))?
    }

    fn close(&self, _: &mut u32, call: &mut Call<'_, Self>) -> Outcome {
        call.reply(CLOSE, b"one")?;
        call.reply(CLOSE, b"two")?;
        call.close(std::str::from_utf8(call.body())?);
        assert!(call.reply(CLOSE, b"three").is_err(), "nothing stands behind the goodbye");
        Ok(())
    }

    fn hold(&self, count: &mut u32, call: &mut Call<'_, Self>) -> Outcome {
        let id = call.client().id();
        self.note(&format!("{id} held"));
        gate::wait(call.body());
        *count += 1;
        self.note(&format!("{id} let go"));
        call.reply(HOLD, b"")
    }

    fn login(&self, _: &mut u32, call: &mut Call<'_, Self>) -> Outcome {
        if call.body() == b"sesame" {
            call.admit();
        }
        call.reply(LOGIN, b"")
    }
}

impl<const HAS_GATE: bool> Service for Diary<HAS_GATE> {
    type Config = Config;
    type State = u32;

    fn start(worker: &Worker<Self>) -> Result<Self, StartError> {
        let Config { journal, start, connected, closed, stopping, .. } = worker.config();
        match start {
            Manner::Panics => panic!("planned for start"),
            // A worker that is killed ends this, too.
            Manner::Hangs => loop {
                std::thread::park();
            },
            Manner::Well | Manner::Denies => {}
        }
        let opened = OpenOptions::new().create(true).append(true).open(journal);
        let gate = journal.with_file_name(GATE);
        let journal = opened.map_err(|error| format!("the journal cannot be opened: {error}"))?;
        let (connected, closed, stopping) = (*connected, *closed, *stopping);
        let diary = Self { journal, gate, connected, closed, stopping };
        diary.note(&format!("worker {} of {} starts", worker.number(), worker.generation()));
        Ok(diary)
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.on(COUNT, Self::count).on(DENY, Self::deny).on(CLOSE, Self::close);
        routes.on(PANIC, |_, _, _| panic!("planned")).blocking(HOLD, Self::hold);
        if HAS_GATE {
            routes.before_admit(LOGIN, Self::login);
        }
    }

    fn check(config: &Config) -> Result<(), StartError> {
        assert!(!matches!(config.check, Manner::Panics), "planned for check");
        if config.journal.is_absolute() { Ok(()) } else { Err("the journal has no root")? }
    }

    fn connected(&self, client: &Peer) -> Result<u32, Deny> {
        let (id, listener) = (client.id(), client.listener());
        self.note(&format!("{id} connected to {listener}"));
        let age = SystemTime::now().duration_since(client.connected_at()).unwrap_or_default();
        assert!(age < DEADLINE, "{age:?}");
        match self.connected {
            Manner::Well | Manner::Hangs => Ok(0),
            Manner::Denies => Err(Deny::close("not today")),
            Manner::Panics => panic!("planned for connected"),
        }
    }

    fn closed(&self, client: &Peer, count: u32, why: CloseReason) {
        self.note(&format!("{} closed {why:?} after {count}", client.id()));
        match self.closed {
            Manner::Well | Manner::Denies => {}
            Manner::Hangs => gate::wait(self.gate.as_os_str().as_bytes()),
            Manner::Panics => panic!("planned for closed"),
        }
    }

    fn authenticate(
        &self,
        client: &Peer,
        count: &mut u32,
        user: &[u8],
        password: &[u8],
    ) -> Result<(), Deny> {
        *count += 1;
        let user = String::from_utf8_lossy(user);
        self.note(&format!("{} login {user}", client.id()));
        match password {
            b"sesame" => Ok(()),
            b"panic" => panic!("planned for authenticate"),
            _ => Err(Deny::close(format!("{user} is not known\r\nhere"))),
        }
    }

    fn stopping(&self, worker: &Worker<Self>) {
        assert!(worker.is_stopping());
        self.note(&format!("worker {} of {} stops", worker.number(), worker.generation()));
        assert!(!matches!(self.stopping, Manner::Panics), "planned for stopping");
    }
}
