//! What all clients and the operator share: the address, what was done to the
//! server, and the outcome.

use std::collections::HashSet;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::plan::Kind;

/// How long a worker drains at most, and a little more.
const DRAIN_MAX: Duration = Duration::from_secs(12);

/// How a connection ended. All of these are documented; anything else is a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every byte it was owed came, then the end of the stream.
    Whole,
    /// Every byte came, after a goodbye, with fewer questions than planned.
    Drained,
    /// Reset by the client itself.
    Reset,
    /// Closed for not reading.
    Slow,
    /// It was told to go, was quiet for longer than the server waits, and then asked.
    Late,
    /// `worker_shutdown_timeout` was over.
    Cut,
    /// Its worker was killed.
    Killed,
}

impl Outcome {
    pub(crate) const ALL: [Self; 7] =
        [Self::Whole, Self::Drained, Self::Reset, Self::Slow, Self::Late, Self::Cut, Self::Killed];
}

/// What clients have seen since a round began.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) connects: u64,
    pub(crate) outcomes: [[u64; Outcome::ALL.len()]; Kind::ALL.len()],
    /// Frames that were written to their last byte.
    pub(crate) asked: u64,
    /// Replies that came, were right and stood in order, by kind of client.
    pub(crate) answered: [u64; Kind::ALL.len()],
    /// Bytes of them.
    pub(crate) bytes: [u64; Kind::ALL.len()],
    pub(crate) goodbyes: u64,
    /// Connections that may be closed for not reading.
    pub(crate) paused_long: u64,
}

impl Seen {
    pub(crate) fn outcomes(&self, outcome: Outcome) -> u64 {
        self.outcomes.iter().map(|row| row[outcome as usize]).sum()
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.connects += other.connects;
        self.asked += other.asked;
        self.goodbyes += other.goodbyes;
        self.paused_long += other.paused_long;
        for kind in 0..Kind::ALL.len() {
            self.answered[kind] += other.answered[kind];
            self.bytes[kind] += other.bytes[kind];
            for outcome in 0..Outcome::ALL.len() {
                self.outcomes[kind][outcome] += other.outcomes[kind][outcome];
            }
        }
    }

    pub(crate) fn table(&self) -> String {
        let mut text = format!("{:<10}{:>9}", "clients", "closed");
        for outcome in Outcome::ALL {
            let _ = write!(text, "{:>9}", format!("{outcome:?}").to_lowercase());
        }
        let _ = writeln!(text, "{:>12}{:>12}", "replies", "KiB");
        for (row, kind) in self.outcomes.iter().zip(Kind::ALL) {
            let name = format!("{kind:?}").to_lowercase();
            let _ = write!(text, "{name:<10}{:>9}", row.iter().sum::<u64>());
            for count in row {
                let _ = write!(text, "{count:>9}");
            }
            let at = kind as usize;
            let _ = writeln!(text, "{:>12}{:>12}", self.answered[at], self.bytes[at] / 1024);
        }
        text
    }
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) address: SocketAddr,
    /// Clients finish what they do and begin nothing new.
    pub(crate) is_over: AtomicBool,
    streams: AtomicU32,
    kills: AtomicU64,
    killed: Mutex<HashSet<i32>>,
    /// When the operator last made a worker drain.
    drained: Mutex<Option<Instant>>,
    /// Ids of connections; none may come twice.
    ids: Mutex<HashSet<u64>>,
    seen: Mutex<Seen>,
    failures: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            is_over: AtomicBool::new(false),
            streams: AtomicU32::new(0),
            kills: AtomicU64::new(0),
            killed: Mutex::default(),
            drained: Mutex::default(),
            ids: Mutex::default(),
            seen: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// A number that no other connection has.
    pub(crate) fn next_stream(&self) -> u32 {
        self.streams.fetch_add(1, Ordering::Relaxed)
    }

    /// To be told before it is done.
    pub(crate) fn note_kill(&self, worker: i32) {
        lock(&self.killed).insert(worker);
        self.kills.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn kills(&self) -> u64 {
        self.kills.load(Ordering::Relaxed)
    }

    pub(crate) fn was_killed(&self, worker: i32) -> bool {
        lock(&self.killed).contains(&worker)
    }

    /// To be told before it is done.
    pub(crate) fn note_drain(&self) {
        *lock(&self.drained) = Some(Instant::now());
    }

    /// Whether a worker may have drained since.
    pub(crate) fn may_have_drained(&self, since: Instant) -> bool {
        lock(&self.drained).is_some_and(|at| at + DRAIN_MAX > since)
    }

    /// Whether nobody had this id before.
    pub(crate) fn is_new_id(&self, id: u64) -> bool {
        lock(&self.ids).insert(id)
    }

    pub(crate) fn note(&self, add: impl FnOnce(&mut Seen)) {
        add(&mut lock(&self.seen));
    }

    /// What was seen since the last time this was asked.
    pub(crate) fn take_seen(&self) -> Seen {
        std::mem::take(&mut *lock(&self.seen))
    }

    /// A failure ends the run: what comes later says less than what was first.
    pub(crate) fn fail(&self, what: String) {
        let mut failures = lock(&self.failures);
        if failures.len() < 20 {
            failures.push(what);
        }
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub(crate) fn failures(&self) -> Vec<String> {
        lock(&self.failures).clone()
    }
}
