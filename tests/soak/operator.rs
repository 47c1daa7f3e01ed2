//! The operator: signals, looks, and SIGKILL for workers, at random.

use std::cmp::Ordering;
use std::fmt;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::random::Random;
use crate::world::World;
use chappe_testkit::{TestServer, pause, proc, wait_for, wait_until};

pub(crate) const WORKERS: usize = 2;
const WORKERS_MAX: usize = 4;
/// A worker that dies younger is replaced after a pause, and after a longer one the
/// next time.
const KILL_AGE_MS: u64 = 1500;
/// A fourth old generation would end the first, and with it connections. One may be
/// about to begin.
const OLD_GENERATIONS_MAX: usize = 1;

/// What may be done to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Nothing but looks and USR1: no worker comes or goes.
    Calm,
    /// Reloads, and workers more or fewer.
    Storm { kill: bool },
    /// A storm in which the hub is killed more often than anything else happens.
    Topics,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deeds {
    pub(crate) reloads: u64,
    reopens: u64,
    more: u64,
    fewer: u64,
    pub(crate) kills: u64,
    hub_kills: u64,
    looks: u64,
}

impl Deeds {
    pub(crate) fn add(&mut self, other: Self) {
        self.reloads += other.reloads;
        self.reopens += other.reopens;
        self.more += other.more;
        self.fewer += other.fewer;
        self.kills += other.kills;
        self.hub_kills += other.hub_kills;
        self.looks += other.looks;
    }
}

impl fmt::Display for Deeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reloads, reopens, more, fewer, kills, hub_kills, looks } = self;
        write!(
            f,
            "HUP {reloads}, USR1 {reopens}, TTIN {more}, TTOU {fewer}, SIGKILL {kills} and \
             {hub_kills} for the hub, looks {looks}"
        )
    }
}

pub(crate) struct Operator<'a> {
    pub(crate) server: &'a TestServer,
    pub(crate) world: &'a World,
    pub(crate) random: Random,
    workers: usize,
}

/// What a command says. A machine on which much else runs may stand still for longer than
/// a command waits: then it is asked again.
fn ask(server: &TestServer, arguments: &[&str]) -> String {
    let mut last = None;
    let said = wait_for(|| {
        let said = server.run(arguments);
        let is_done = said.code == Some(0);
        last = Some(format!("{said:?}"));
        is_done.then_some(said.stdout)
    });
    said.unwrap_or_else(|| panic!("chappe {arguments:?}: {last:?}"))
}

/// `chappe status --json`.
pub(crate) fn status(server: &TestServer) -> Value {
    let text = ask(server, &["status", "--json"]);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

impl<'a> Operator<'a> {
    pub(crate) fn new(server: &'a TestServer, world: &'a World, random: Random) -> Self {
        Self { server, world, random, workers: WORKERS }
    }

    /// Until the time is over, or somebody has failed.
    pub(crate) fn work(&mut self, weather: Weather, until: Instant) -> Deeds {
        let mut deeds = Deeds::default();
        let mut reloaded = Instant::now();
        while !self.world.is_over() {
            let now = Instant::now();
            if now >= until {
                break;
            }
            let next = self.random.ms(100, 900).min(until - now);
            pause(next, "an operator acts now and then, whatever the clients do");
            match (weather, self.random.pick(0, 9)) {
                (_, 0) => self.look(&mut deeds),
                (_, 1) => {
                    self.server.signal(Signal::SIGUSR1);
                    deeds.reopens += 1;
                }
                (Weather::Calm, _) => {}
                (_, 2) => self.more(&mut deeds),
                (_, 3) => self.fewer(&mut deeds),
                (Weather::Storm { kill: true }, 4 | 5) => self.kill_one(&mut deeds),
                (Weather::Topics, 4) => self.kill_one(&mut deeds),
                (Weather::Topics, 5..=7) => self.kill_hub(&mut deeds),
                (Weather::Topics, 8) => {
                    self.kill_hub(&mut deeds);
                    self.kill_one(&mut deeds);
                }
                _ if reloaded.elapsed() < Duration::from_secs(2) => {}
                _ => {
                    self.reload(&mut deeds);
                    reloaded = Instant::now();
                }
            }
        }
        deeds
    }

    /// Lists who is connected, which costs the event loops something.
    fn look(&mut self, deeds: &mut Deeds) {
        let list = ask(self.server, &["connections", "--json"]);
        let is_json = |line: &str| serde_json::from_str::<Value>(line).is_ok();
        if !list.lines().all(is_json) {
            self.world.fail(format!("chappe connections: {list:?}"));
        }
        deeds.looks += 1;
    }

    /// Whether one more generation may drain. With a socket for each worker, a worker
    /// more or fewer can be a new generation too.
    fn may_drain(&self) -> bool {
        let status = status(self.server);
        let now = status["master"]["generation"].as_u64();
        let rows = status["workers"].as_array().expect("workers");
        let mut old: Vec<_> = rows.iter().map(|row| row["generation"].as_u64()).collect();
        old.retain(|generation| *generation != now);
        old.sort_unstable();
        old.dedup();
        if old.len() > OLD_GENERATIONS_MAX {
            return false;
        }
        self.world.note_drain();
        true
    }

    fn reload(&mut self, deeds: &mut Deeds) {
        if self.may_drain() {
            self.server.signal(Signal::SIGHUP);
            deeds.reloads += 1;
        }
    }

    fn more(&mut self, deeds: &mut Deeds) {
        if self.workers < WORKERS_MAX && self.may_drain() {
            self.server.signal(Signal::SIGTTIN);
            self.workers += 1;
            deeds.more += 1;
        }
    }

    fn fewer(&mut self, deeds: &mut Deeds) {
        if self.workers > 1 && self.may_drain() {
            self.server.signal(Signal::SIGTTOU);
            self.workers -= 1;
            deeds.fewer += 1;
        }
    }

    fn kill_one(&mut self, deeds: &mut Deeds) {
        let status = status(self.server);
        let rows = status["workers"].as_array().expect("workers");
        let grown: Vec<i32> = rows
            .iter()
            .filter(|row| row["uptime_ms"].as_u64() > Some(KILL_AGE_MS))
            .filter(|row| row["state"] == "serving")
            .filter_map(|row| i32::try_from(row["pid"].as_i64()?).ok())
            .collect();
        if grown.is_empty() {
            return;
        }
        let worker = self.random.of(&grown);
        // Still the master's child: until it is reaped the number is nobody else's.
        if proc::children(self.server.pid()).contains(&worker) {
            self.world.note_kill(worker);
            if kill(Pid::from_raw(worker), Signal::SIGKILL).is_ok() {
                deeds.kills += 1;
            }
        }
    }

    /// Also one that has just begun to go on where the last one was killed.
    fn kill_hub(&mut self, deeds: &mut Deeds) {
        for _ in 0..self.random.pick(1, 2) {
            let pid = status(self.server)["hub"]["pid"].as_i64();
            let Some(hub) = pid.and_then(|pid| i32::try_from(pid).ok()) else { return };
            let is_child = proc::children(self.server.pid()).contains(&hub);
            if is_child && kill(Pid::from_raw(hub), Signal::SIGKILL).is_ok() {
                deeds.hub_kills += 1;
            }
        }
    }

    /// As many workers as at the start, all serving, nobody draining, and a hub.
    pub(crate) fn restore(&mut self, deeds: &mut Deeds) {
        wait_until("the number of workers is as at the start", || {
            match self.workers.cmp(&WORKERS) {
                Ordering::Less => self.more(deeds),
                Ordering::Equal => {}
                Ordering::Greater => self.fewer(deeds),
            }
            self.workers == WORKERS
        });
        wait_until("the workers are as many as at the start, and serve", || {
            let status = status(self.server);
            let rows = status["workers"].as_array().expect("workers");
            let has_hub = status["hub"].is_null() || status["hub"]["pid"].is_i64();
            rows.len() == WORKERS && rows.iter().all(|row| row["state"] == "serving") && has_hub
        });
    }
}
