//! Topics while the hub and workers are killed, at instants that nobody chose, and the server
//! reloads. What subscribers have got, who connect again and resume, is held against what was
//! published.
//!
//! Each message is numbered by its publisher. One that was answered comes to each of its
//! subscribers once, with the offset of the answer; one whose publisher has lost its connection
//! before comes once or to nobody. Each subscriber has the messages of a topic in their order,
//! and all have the same at an offset; one subscribes to everything, and misses no offset.

mod publisher;
mod subscriber;
mod verdict;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chappe_client::Connection;
use chappe_testkit::{DEADLINE, TestServer, wait_for};

use crate::books::{self, Books};
use crate::operator::{Deeds, Operator, Weather, status};
use crate::random::Random;
use crate::world::World;
use publisher::{Publisher, Sent};
use subscriber::{Heard, Subscriber};

/// What is published to.
const TOPICS: [&str; 4] = ["load.a", "load.b", "load.c", "other"];
/// What is subscribed to, by as many clients; the first one has everything.
const WANTED: [&[&str]; 8] = [
    &["*"],
    &["load.*"],
    &["load.a"],
    &["other"],
    &["load.b", "load.*"],
    &["load.a", "load.b", "load.c", "other"],
    &["load.*", "*"],
    &["o*"],
];
const PUBLISHERS: u32 = 3;
/// How long a round takes at the most, without what it waits for.
const ROUND_MAX: Duration = Duration::from_secs(20);

/// Whose the message is that ends a round.
const NOBODY: u32 = u32::MAX;

fn matches(wanted: &str, topic: &str) -> bool {
    wanted.strip_suffix('*').map_or(wanted == topic, |prefix| topic.starts_with(prefix))
}

/// What was done and seen in all rounds.
#[derive(Debug, Default)]
struct Tally {
    published: u64,
    unknown: u64,
    heard: u64,
    resumed: AtomicU64,
}

/// Small limits but for the outbox, of which half is what a client can resume from.
fn configuration(random: &mut Random) -> String {
    format!(
        "worker_processes = {workers}\nmax_connections = {permits}\n\
         worker_shutdown_timeout = \"{timeout}s\"\nworker_drain_spread = \"200ms\"\n\
         worker_ready_timeout = \"1m\"\n\
         [log]\nlevel = \"info\"\n\
         [[listen]]\naddress = \"127.0.0.1:0\"\naccept = \"{accept}\"\n\
         [worker]\nfuse = {fuse}\n\
         [inbox]\nmax_messages = {messages}\n\
         [send]\noutbox_max_bytes = \"16MiB\"\n\
         [topics]\nring_bytes = \"{ring}MiB\"\n",
        workers = crate::operator::WORKERS,
        permits = books::PERMITS,
        timeout = crate::SHUTDOWN_TIMEOUT.as_secs(),
        accept = random.of(&["shared", "reuseport"]),
        fuse = random.one_in(2),
        messages = random.pick(2, 256),
        ring = random.of(&[16, 64]),
    )
}

/// Returns what was wrong.
pub(crate) fn run(duration: Duration, seed: u64) -> Vec<String> {
    println!("topics: {duration:?}, seed {seed}");
    let mut random = Random::new(seed, u64::MAX / 2);
    let toml = configuration(&mut random);
    let server = TestServer::start("soak_topics", &toml);
    println!("{toml}");
    let world = World::new(server.address);
    let mut books = Books::open(&server);
    let mut operator = Operator::new(&server, &world, random);
    let (mut tally, mut deeds) = (Tally::default(), Deeds::default());
    let until = Instant::now() + duration;
    let mut wrong = Vec::new();
    let mut round = 0;
    while wrong.is_empty() && Instant::now() < until {
        let end = until.min(Instant::now() + ROUND_MAX);
        wrong = play(seed, round, &mut operator, end, &mut tally, &mut deeds);
        wrong.extend(world.failures());
        if wrong.is_empty() {
            settle(&server, &mut books, &mut wrong);
        }
        round += 1;
    }
    println!(
        "{round} rounds: {} published, {} of them perhaps, {} heard, {} times resumed; {deeds}",
        tally.published,
        tally.unknown,
        tally.heard,
        tally.resumed.load(Ordering::Relaxed),
    );
    crate::leave(server, wrong.is_empty());
    wrong
}

/// One round: everybody subscribes, then it storms, then the last messages are waited for.
fn play(
    seed: u64,
    round: u32,
    operator: &mut Operator<'_>,
    until: Instant,
    tally: &mut Tally,
    all_deeds: &mut Deeds,
) -> Vec<String> {
    let world = operator.world;
    let stream = |nth: u32| 1 + u64::from(round) * 100 + u64::from(nth);
    let skipped = skipped(operator);
    let mut subscribers: Vec<_> = Vec::new();
    for (nth, wanted) in (0..).zip(WANTED) {
        let random = Random::new(seed, stream(nth));
        match Subscriber::begin(world.address, wanted, random) {
            Ok(subscriber) => subscribers.push(subscriber),
            Err(what) => return vec![format!("{wanted:?}: {what}")],
        }
    }
    let (all_sent, all_heard) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let mut deeds = std::thread::scope(|scope| {
        // What must not happen ends the round for everybody.
        for subscriber in subscribers {
            let (resumed, all_heard) = (&tally.resumed, &all_heard);
            scope.spawn(move || match subscriber.hear(round, resumed) {
                Ok(heard) => all_heard.lock().expect("no panic").push(heard),
                Err(what) => world.fail(what),
            });
        }
        let publish = |nth: u32| {
            let random = Random::new(seed, stream(50 + nth));
            let mut publisher = Publisher::new(world.address, nth, random);
            match publisher.work(|| world.is_over()) {
                Ok(()) => all_sent.lock().expect("no panic").push(publisher.into_sent()),
                Err(what) => world.fail(what),
            }
        };
        let _end = crate::End(world);
        let deeds = std::thread::scope(|scope| {
            let _end = crate::End(world);
            for nth in 0..PUBLISHERS {
                scope.spawn(move || publish(nth));
            }
            operator.work(Weather::Topics, until)
        });
        if let Err(what) = publisher::end_round(world.address, round) {
            world.fail(what);
        }
        deeds
    });
    if !world.failures().is_empty() {
        return Vec::new();
    }
    operator.restore(&mut deeds);
    world.is_over.store(false, Ordering::Relaxed);
    all_deeds.add(deeds);
    let sent: Vec<Vec<Sent>> = all_sent.into_inner().expect("no panic");
    let heard: Vec<Heard> = all_heard.into_inner().expect("no panic");
    let skipped = self::skipped(operator) - skipped;
    println!("round {}: {deeds}, {skipped} left out", round + 1);
    tally.published += sent.iter().map(|sent| sent.len() as u64).sum::<u64>();
    tally.unknown += sent.iter().flatten().filter(|sent| sent.is_unknown()).count() as u64;
    tally.heard += heard.iter().map(|heard| heard.messages.len() as u64).sum::<u64>();
    verdict::judge(&sent, &heard, skipped)
}

/// Messages that were left out, since two hubs have died on them.
fn skipped(operator: &Operator<'_>) -> u64 {
    status(operator.server)["totals"]["messages_skipped"].as_u64().expect("a counter")
}

/// Nobody is connected: everything is back.
fn settle(server: &TestServer, books: &mut Books, wrong: &mut Vec<String>) {
    let is_at_rest = wait_for(|| {
        let status = status(server);
        let is_at_rest = books::is_at_rest(&status, books::PERMITS);
        (is_at_rest && status["hub"]["topics"] == 0).then_some(())
    });
    let status = status(server);
    if is_at_rest.is_none() {
        wrong.push(format!("connections, permits or topics do not come back: {status:#}"));
    }
    for name in ["messages_lapped", "handler_errors", "handler_panics", "closed_slow"] {
        if status["totals"][name] != 0 {
            wrong.push(format!("{name} is {}", status["totals"][name]));
        }
    }
    books.check_processes(server, wrong);
    let mut said = Vec::new();
    books::check_logs(server, &mut said);
    // It was killed, as often as was meant.
    said.retain(|line| !line.contains(" hub.ended: ") && !line.contains(" hub.skipped: "));
    wrong.extend(said);
}

/// A client that gives up when a server has nobody to accept it for longer than a worker's
/// replacement takes.
fn connect(address: std::net::SocketAddr) -> Result<Connection, String> {
    let mut last = None;
    let connected = wait_for(|| match Connection::connect(address, DEADLINE) {
        Ok(connection) => Some(connection),
        Err(error) => {
            last = Some(error);
            None
        }
    });
    connected.ok_or_else(|| format!("nobody accepts: {last:?}"))
}
