//! The generations of workers: the one that serves, the one that a reload makes ready, what
//! was asked for and how it went.
//!
//! It binds sockets and forks nobody: what a new generation needs is a [`Candidate`], and
//! everything of the one that serves stays as it is until [`Generations::commit`] exchanges
//! the two. So undoing a reload is dropping the candidate and its workers.

mod state;

use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub(super) use state::GenerationsState;

use super::plan::{Due, Event, Plan, Verdict};
use crate::config::{Address, Changes, Config, ConfigErrors, match_listeners};
use crate::listen::{Bound, ListenError};

/// Why a reload did not come about.
#[derive(Debug)]
pub(super) enum Failure {
    /// The file is wrong.
    Config(ConfigErrors),
    /// An address can't be had.
    Listen(ListenError),
    /// Anything else, in a sentence.
    Other(String),
}

impl Failure {
    pub(super) fn other(error: impl fmt::Display) -> Self {
        Self::Other(error.to_string())
    }

    /// Whether somebody else has an address.
    pub(super) fn is_taken(&self) -> bool {
        matches!(self, Self::Listen(error) if error.is_taken())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(errors) => errors.fmt(f),
            Self::Listen(error) => error.fmt(f),
            Self::Other(reason) => f.write_str(reason),
        }
    }
}

/// A generation of workers, as it serves or is to serve.
#[derive(Debug)]
pub(super) struct Generation {
    /// From 1; no two have the same, also if one of them failed.
    pub(super) number: u64,
    pub(super) config: Arc<Config>,
    /// How many workers it has, after TTIN and TTOU.
    pub(super) workers: u16,
    /// Its listeners. Empty once the server stops.
    pub(super) listeners: Vec<Bound>,
    /// What the operator should know; `status` repeats it.
    pub(super) warnings: Vec<String>,
}

/// The generation that is to be, and its reload.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) next: Generation,
    /// What its configuration changes.
    pub(super) changes: Changes,
    /// Worker numbers that have no process yet, the next one last.
    unforked: Vec<u16>,
    pub(super) begun: Instant,
    /// When its workers are late.
    pub(super) ready_by: Instant,
    /// Clients that wait for the outcome.
    pub(super) waiters: Vec<u64>,
}

/// How a reload went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outcome {
    /// Why it failed; `None`: it went well.
    pub(super) reason: Option<String>,
    /// When, in milliseconds since 1970.
    pub(super) at_ms: u64,
}

/// All reloads so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct History {
    pub(super) count: u64,
    pub(super) failed: u64,
    pub(super) last: Option<Outcome>,
}

impl History {
    fn add(&mut self, reason: Option<&str>) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.count += 1;
        self.failed += u64::from(reason.is_some());
        let at_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        self.last = Some(Outcome { reason: reason.map(str::to_owned), at_ms });
    }
}

/// The generation that serves, the next one, and what is planned.
#[derive(Debug)]
pub(super) struct Generations {
    current: Generation,
    /// Where the listeners listen; kept when a stop closes them.
    addresses: Vec<Address>,
    /// What the configuration comes to, without TTIN and TTOU.
    workers_configured: u16,
    candidate: Option<Candidate>,
    /// The last number that was given to a generation, also to one that failed.
    last_number: u64,
    plan: Plan,
    history: History,
    /// When the reload was begun that waits for an address.
    waits_since: Option<Instant>,
    /// Clients that wait for the reload that has not begun.
    waiters: Vec<u64>,
}

impl Generations {
    /// The first generation, which is not running yet.
    pub(super) fn new(config: Arc<Config>, listeners: Vec<Bound>, warnings: Vec<String>) -> Self {
        let workers = config.effective_worker_processes();
        let current = Generation { number: 1, config, workers, listeners, warnings };
        Self {
            addresses: addresses(&current),
            workers_configured: workers,
            last_number: current.number,
            current,
            candidate: None,
            plan: Plan::new(),
            history: History::default(),
            waits_since: None,
            waiters: Vec::new(),
        }
    }

    /// The one that serves.
    pub(super) fn current(&self) -> &Generation {
        &self.current
    }

    /// The one that a reload makes ready.
    pub(super) fn candidate(&self) -> Option<&Candidate> {
        self.candidate.as_ref()
    }

    pub(super) fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Those of them whose file is gone, so that nobody can connect. One look at each path.
    pub(super) fn unreachable(&self) -> impl Iterator<Item = &Address> {
        let is_gone = |bound: &&Bound| !bound.is_reachable();
        self.current.listeners.iter().filter(is_gone).map(|bound| &bound.local)
    }

    pub(super) fn history(&self) -> &History {
        &self.history
    }

    // What is asked for.

    pub(super) fn note(&mut self, event: Event) -> Verdict {
        self.plan.note(event)
    }

    /// A client waits for the next reload.
    pub(super) fn add_waiter(&mut self, waiter: u64) {
        self.waiters.push(waiter);
    }

    pub(super) fn take_waiters(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.waiters)
    }

    /// When the reload was begun that waits for an address.
    pub(super) fn waits_since(&self) -> Option<Instant> {
        self.waits_since
    }

    /// A reload waits for an address, or none does any more.
    pub(super) fn set_waiting(&mut self, since: Option<Instant>) {
        self.waits_since = since;
    }

    /// The next thing to do, once.
    pub(super) fn due(&mut self) -> Option<Due> {
        self.plan.due()
    }

    /// A resize turned out to need a new generation.
    pub(super) fn resize_is_reload(&mut self) {
        self.plan.resize_is_reload();
    }

    // The candidate.

    /// How many workers a generation with this configuration has: TTIN and TTOU hold until
    /// the configured number changes.
    pub(super) fn workers_for(&self, config: &Config) -> u16 {
        let configured = config.effective_worker_processes();
        if configured == self.workers_configured { self.current.workers } else { configured }
    }

    /// Binds what a generation needs; nobody is let in yet. `key_of` names a listener's address in
    /// messages.
    ///
    /// # Errors
    /// An address is taken or forbidden, or no descriptor is left.
    pub(super) fn bind_next(
        &self,
        config: &Config,
        workers: u16,
        key_of: impl Fn(usize) -> String,
    ) -> Result<Vec<Bound>, ListenError> {
        let listeners = &self.current.listeners;
        let old: Vec<_> = listeners.iter().map(|bound| bound.options.clone()).collect();
        let places = config.listen.iter().zip(match_listeners(&old, &config.listen)).enumerate();
        places
            .map(|(index, (options, place))| {
                let bound = match place.map(|place| &listeners[place]) {
                    Some(bound) if bound.is_reachable() => bound.stay(options, workers),
                    // Nobody can connect any more to a socket whose file was deleted.
                    _ => Bound::bind(options, workers),
                };
                bound.map_err(|error| error.of(key_of(index)))
            })
            .collect()
    }

    /// A candidate of which everything is at hand.
    pub(super) fn prepared(
        &self,
        config: Arc<Config>,
        workers: u16,
        listeners: Vec<Bound>,
        (changes, warnings): (Changes, Vec<String>),
        begun: Instant,
    ) -> Candidate {
        let ready_by = begun + config.worker_ready_timeout;
        let number = self.last_number + 1;
        Candidate {
            next: Generation { number, config, workers, listeners, warnings },
            changes,
            unforked: (0..workers).rev().collect(),
            begun,
            ready_by,
            waiters: Vec::new(),
        }
    }

    pub(super) fn begin(&mut self, candidate: Candidate) {
        // Also when it fails: no two generations have the same number.
        self.last_number = candidate.next.number;
        self.candidate = Some(candidate);
    }

    /// The next worker of the candidate to fork.
    pub(super) fn next_unforked(&self) -> Option<u16> {
        self.candidate.as_ref()?.unforked.last().copied()
    }

    /// That one was forked.
    pub(super) fn forked(&mut self) {
        if let Some(candidate) = &mut self.candidate {
            candidate.unforked.pop();
        }
    }

    /// Makes the candidate the one that serves. Returns what is left of its reload.
    pub(super) fn commit(&mut self) -> Option<Committed> {
        let Candidate { next, changes, begun, waiters, .. } = self.candidate.take()?;
        self.workers_configured = next.config.effective_worker_processes();
        // Sockets that stay have a second descriptor among the new ones.
        self.current = next;
        self.addresses = addresses(&self.current);
        self.history.add(None);
        self.plan.note(Event::Over);
        Some(Committed { changes, begun, waiters })
    }

    /// There is no candidate any more; those who wait for its outcome are returned.
    pub(super) fn drop_candidate(&mut self) -> Option<Candidate> {
        let candidate = self.candidate.take()?;
        candidate.next.listeners.iter().for_each(Bound::give_up);
        Some(candidate)
    }

    /// A reload is over and has failed.
    pub(super) fn note_failure(&mut self, reason: &str) {
        self.history.add(Some(reason));
        self.plan.note(Event::Over);
    }

    // The one that serves.

    /// Changes how many workers the generation has.
    pub(super) fn resize(&mut self, workers: u16) {
        self.current.workers = workers;
    }

    /// For more workers: a socket for each on each listener, or none on any.
    ///
    /// # Errors
    /// The kernel refuses one more; nothing has changed then.
    pub(super) fn grow_listeners(&mut self, workers: u16) -> Result<(), ListenError> {
        grow_all(&mut self.current.listeners, workers)
    }

    /// The server stops. The port is free as soon as the workers let go of it, too.
    pub(super) fn stop(&mut self) {
        self.plan.note(Event::Stop);
        self.current.listeners.clear();
    }
}

/// A reload that went well.
#[derive(Debug)]
pub(super) struct Committed {
    pub(super) changes: Changes,
    pub(super) begun: Instant,
    pub(super) waiters: Vec<u64>,
}

fn addresses(generation: &Generation) -> Vec<Address> {
    generation.listeners.iter().map(|bound| bound.local.clone()).collect()
}

/// A socket for each of `workers` workers on each listener, or none on any: one that
/// listened and belonged to nobody would take connects that nobody accepts.
fn grow_all(listeners: &mut [Bound], workers: u16) -> Result<(), ListenError> {
    let before: Vec<usize> = listeners.iter().map(Bound::sockets).collect();
    let grown = listeners
        .iter_mut()
        .try_for_each(|bound| bound.grow(workers))
        // Only now, when there are enough of all.
        .and_then(|()| listeners.iter().try_for_each(Bound::listen));
    if grown.is_err() {
        for (bound, sockets) in listeners.iter_mut().zip(before) {
            bound.shrink(sockets);
        }
    }
    grown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Accept};
    use std::net::TcpStream;

    fn reuseport() -> Bound {
        let address = Address::Tcp("127.0.0.1:0".parse().unwrap());
        let options =
            config::Listen { address, accept: Accept::Reuseport, ..config::Listen::default() };
        let bound = Bound::bind(&options, 1).unwrap();
        bound.listen().unwrap();
        bound
    }

    #[test]
    fn one_listener_that_cannot_grow_keeps_all_as_they_were() {
        let (first, second) = (reuseport(), reuseport());
        let Address::Tcp(local) = first.local else { panic!("{:?}", first.local) };
        let mut listeners = vec![first, second];
        grow_all(&mut listeners, 2).unwrap();
        assert_eq!(listeners.iter().map(Bound::sockets).collect::<Vec<_>>(), [2, 2]);
        // Nobody has this address, so there is no third socket for it.
        listeners[1].local = Address::Tcp("192.0.2.1:9".parse().unwrap());
        assert!(grow_all(&mut listeners, 3).is_err());
        assert_eq!(listeners.iter().map(Bound::sockets).collect::<Vec<_>>(), [2, 2]);
        TcpStream::connect(local).unwrap();
    }

    fn config(workers: u16) -> Config {
        Config { worker_processes: config::WorkerProcesses::Count(workers), ..Config::default() }
    }

    fn candidate(it: &Generations, workers: u16) -> Candidate {
        let changes = (Changes::default(), vec!["careful".to_owned()]);
        it.prepared(Arc::new(config(workers)), workers, Vec::new(), changes, Instant::now())
    }

    #[test]
    fn a_candidate_changes_nothing_before_its_commit() {
        let mut it = Generations::new(Arc::new(config(2)), Vec::new(), Vec::new());
        it.note(Event::Started);
        it.note(Event::Reload);
        assert_eq!(it.due(), Some(Due::Reload));
        it.begin(candidate(&it, 3));
        assert_eq!((it.current().number, it.current().workers), (1, 2));
        assert!(it.current().warnings.is_empty());
        let forked: Vec<_> = std::iter::from_fn(|| {
            let next = it.next_unforked();
            it.forked();
            next
        })
        .collect();
        assert_eq!(forked, [0, 1, 2]);
        assert!(it.commit().is_some());
        assert_eq!((it.current().number, it.current().workers), (2, 3));
        assert_eq!(it.current().warnings, ["careful"]);
        assert!(it.candidate().is_none() && it.commit().is_none());
        assert_eq!((it.history().count, it.history().failed), (1, 0));
        assert_eq!(it.note(Event::Reload), Verdict::Now, "it is over");
    }

    #[test]
    fn a_failure_leaves_everything_but_the_number() {
        let mut it = Generations::new(Arc::new(config(2)), Vec::new(), Vec::new());
        it.note(Event::Started);
        for round in 1..=3 {
            it.note(Event::Reload);
            assert_eq!(it.due(), Some(Due::Reload));
            it.begin(candidate(&it, 5));
            assert_eq!(it.candidate().unwrap().next.number, 1 + round);
            assert!(it.drop_candidate().is_some());
            it.note_failure("no luck");
            assert_eq!((it.current().number, it.current().workers), (1, 2));
            assert_eq!((it.history().count, it.history().failed), (round, round));
            let last = it.history().last.as_ref().unwrap();
            assert_eq!(last.reason.as_deref(), Some("no luck"));
        }
    }

    #[test]
    fn a_resize_holds_until_the_configured_number_changes() {
        let mut it = Generations::new(Arc::new(config(2)), Vec::new(), Vec::new());
        it.resize(4);
        assert_eq!(it.workers_for(&config(2)), 4);
        assert_eq!(it.workers_for(&config(3)), 3);
        it.begin(candidate(&it, 3));
        it.commit();
        assert_eq!((it.workers_for(&config(3)), it.workers_for(&config(2))), (3, 2));
    }
}
