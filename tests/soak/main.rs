//! A soak: the real server, clients of every kind for as long as one likes, an operator
//! who reloads, resizes and kills, and books that must balance.
//!
//! Every reply is compared byte by byte, in order; every client that reads to the end
//! gets every byte it is owed, or the connection ended for a reason that is documented
//! and counted. Calm rounds, in which no worker comes or goes and the counters must add
//! up exactly, take turns with stormy ones.
//!
//! With `--kills N` workers are killed one after the other instead, and what they share is
//! checked after each. With `--topics` it is about publish and subscribe, and the hub is killed too.
//!
//! `scripts/soak` runs it on a release build. Without arguments it is short, so that the
//! normal tests keep it alive.

mod books;
mod kills;
mod operator;
mod peer;
mod plan;
mod random;
mod residents;
mod topics;
mod world;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use books::Books;
use chappe_testkit::TestServer;
use operator::{Deeds, Operator, Weather};
use plan::Plan;
use random::Random;
use world::{Seen, World};

/// Clients at a time.
const CLIENTS: u64 = 48;
/// `worker_shutdown_timeout`: longer than any honest client takes.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// Kills of a run without arguments.
const FEW_KILLS: u64 = 20;

struct Options {
    /// `None`: only what `kills` says.
    duration: Option<Duration>,
    seed: u64,
    kill: bool,
    /// Kills with a check after each; 0: none.
    kills: u64,
    /// Of topics.
    topics: Option<Duration>,
}

/// What to do, if not the default: `--seconds N`, `--kills N`, `--topics N`, `--seed N`, `--kill`.
const SOAK: &str = "CHAPPE_SOAK";

#[test]
fn all_at_once_and_every_reply_is_right() {
    let options = options();
    let seed = options.seed;
    if let Some(duration) = options.duration {
        println!("soak: {duration:?}, seed {seed}, kill {}", options.kill);
        let wrong = soak(&options, duration);
        assert!(wrong.is_empty(), "seed {seed}:\n{}", wrong.join("\n"));
    }
    if options.kills > 0 {
        let wrong = kills::run(options.kills, seed);
        assert!(wrong.is_empty(), "seed {seed}:\n{}", wrong.join("\n"));
    }
    if let Some(duration) = options.topics {
        let wrong = topics::run(duration, seed);
        assert!(wrong.is_empty(), "seed {seed}:\n{}", wrong.join("\n"));
    }
}

fn options() -> Options {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seed = now.as_secs();
    let mut options = Options { duration: None, seed, kill: false, kills: 0, topics: None };
    let text = std::env::var(SOAK).unwrap_or_default();
    let mut words = text.split_whitespace();
    while let Some(word) = words.next() {
        let mut number = || {
            let value = words.next().and_then(|value| value.parse().ok());
            value.unwrap_or_else(|| panic!("{SOAK}: {word} takes a number"))
        };
        match word {
            "--seconds" => options.duration = Some(Duration::from_secs(number())),
            "--seed" => options.seed = number(),
            "--kill" => options.kill = true,
            "--kills" => options.kills = number(),
            "--topics" => options.topics = Some(Duration::from_secs(number())),
            _ => panic!("{SOAK}: unknown option {word}"),
        }
    }
    if options.duration.is_none() && options.kills == 0 && options.topics.is_none() {
        options.duration = Some(Duration::from_secs(6));
        options.kills = FEW_KILLS;
        options.topics = Some(Duration::from_secs(6));
    }
    options
}

/// Small limits, so that everything fills up; which ones is left to chance. But for the
/// receive buffer: a window that is smaller than a segment of the loopback is opened by
/// the kernel's timers, which may take longer than a draining server waits.
fn configuration(random: &mut Random) -> String {
    let accept = random.of(&["shared", "reuseport"]);
    let buffer = random.of(&[0, 16 * 1024]);
    let timeout = SHUTDOWN_TIMEOUT.as_secs();
    format!(
        "worker_processes = {workers}\nmax_connections = {permits}\n\
         worker_shutdown_timeout = \"{timeout}s\"\nworker_drain_spread = \"200ms\"\n\
         worker_ready_timeout = \"1m\"\n\
         [log]\nlevel = \"info\"\n\
         [[listen]]\naddress = \"127.0.0.1:0\"\naccept = \"{accept}\"\n\
         send_buffer = {buffer}\n\
         [worker]\nhandler_threads = {threads}\n\
         [inbox]\nmax_messages = {messages}\nmax_bytes = \"64KiB\"\n\
         [send]\noutbox_max_bytes = \"{outbox}KiB\"\noutbox_max_age = \"4s\"\n\
         notsent_lowat = \"{lowat}KiB\"\n",
        workers = operator::WORKERS,
        permits = books::PERMITS,
        threads = random.pick(1, 4),
        messages = random.pick(2, 256),
        outbox = random.of(&[16, 64, 128]),
        lowat = random.of(&[4, 16, 64]),
    )
}

fn soak(options: &Options, duration: Duration) -> Vec<String> {
    let mut random = Random::new(options.seed, 0);
    let toml = configuration(&mut random);
    let server = TestServer::start("soak", &toml);
    println!("{toml}");
    let world = World::new(server.address);
    let mut books = Books::open(&server);
    let mut operator = Operator::new(&server, &world, random);
    let (mut all, mut deeds) = (Seen::default(), Deeds::default());
    let rounds = if duration < Duration::from_secs(30) { 2 } else { 6 };
    let mut wrong = Vec::new();
    for round in 0..rounds {
        let storm = Weather::Storm { kill: options.kill };
        let weather = if round % 2 == 0 { Weather::Calm } else { storm };
        let until = Instant::now() + duration / rounds;
        let (seen, done) = play(options, round, &mut operator, weather, until);
        wrong = world.failures();
        if wrong.is_empty() {
            wrong = books.settle(&server, weather, &seen, &done);
        }
        all.add(&seen);
        deeds.add(done);
        println!("round {}: {weather:?}, {} connections, {done}", round + 1, seen.connects);
        if !wrong.is_empty() {
            break;
        }
    }
    report(&all, &deeds, &books);
    leave(server, wrong.is_empty());
    wrong
}

/// Ends the server; with something wrong its logs stay.
fn leave(server: TestServer, is_well: bool) {
    if !is_well {
        println!("logs are in {}", server.dir.join("logs").display());
        server.dir.keep();
    }
}

/// However the operator ends, the clients do too.
pub(crate) struct End<'a>(&'a World);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

/// One round: clients and operator, until the time is over and the last client is gone.
fn play(
    options: &Options,
    round: u32,
    operator: &mut Operator<'_>,
    weather: Weather,
    until: Instant,
) -> (Seen, Deeds) {
    let world = operator.world;
    let mut deeds = std::thread::scope(|scope| {
        let _end = End(world);
        for client in 0..CLIENTS {
            let mut random = Random::new(options.seed, 1 + client + u64::from(round) * CLIENTS);
            scope.spawn(move || {
                while !world.is_over() {
                    let plan = Plan::draw(&mut random);
                    peer::run(world, &plan, &mut random);
                }
            });
        }
        operator.work(weather, until)
    });
    if world.failures().is_empty() {
        operator.restore(&mut deeds);
        world.is_over.store(false, Ordering::Relaxed);
    }
    (world.take_seen(), deeds)
}

fn report(seen: &Seen, deeds: &Deeds, books: &Books) {
    println!("\n{}", seen.table());
    println!("signals: {deeds}");
    for names in [
        ["connections_accepted", "frames_received", "frames_sent", "messages_expired"],
        ["messages_dropped", "sends_blocked", "partial_sends", "reads_paused"],
        ["semaphore_posts", "send_calls", "closed_slow", "connections_cut"],
    ] {
        let columns = names.map(|name| format!("{name} {}", books.total(name)));
        println!("{}", columns.join(", "));
    }
    println!(
        "anonymous memory at rest: a worker {} KiB at most, the master {} KiB",
        books.worker_bytes_max / 1024,
        books.master_bytes / 1024
    );
}
