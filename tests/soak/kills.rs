//! Workers killed one after the other, thousands of them, under load and at instants that
//! nobody chose; after each the invariants of the shared memory are checked, and now and
//! then, when nobody is connected, everything.
//!
//! The load: *peers* of the soak, who check each byte of their replies; *crowds*, each
//! from one address, who pipeline, leave and reset, and want more connections than their
//! address may have; and *residents*, who hold exactly as many as theirs may have: after
//! each kill they get those back that died, and not one more.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chappe_client::{CODE_ECHO, CODE_PING, ClientError, Connection, ErrorNumber};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::books::{self, Books};
use crate::operator::status;
use crate::peer;
use crate::plan::{Kind, Plan};
use crate::random::Random;
use crate::residents::{Resident, connect};
use crate::world::{Outcome, Seen, World};
use chappe_testkit::site::configuration;
use chappe_testkit::{DEADLINE, TestServer, pause, reset_on_close, wait_for};

/// Enough that several a second are older than a second.
const WORKERS: usize = 20;
/// One that dies before it is a second old is replaced after a pause.
const KILL_AGE_MS: u64 = 1100;
/// What each address may have; it is what residents have.
pub(crate) const PER_IP: usize = 40;
/// What a crowd would have if it could.
const WANTED: usize = 45;
const PEERS: u8 = 24;
const PEER_ADDRESSES: u8 = 3;
const CROWDS: u8 = 2;
/// What all of them together never have.
const LIMITS: [u64; 3] = [300, 400, 500];
/// Kills from one look at everything to the next.
const CALM_EVERY: u64 = 50;
/// What one read can bring, and so what a killed worker may have done and not counted.
const FRAMES_A_READ: u64 = 64 * 1024 / 8;

fn loopback(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))
}

fn peer_address(nth: u8) -> IpAddr {
    loopback(11 + nth % PEER_ADDRESSES)
}

fn crowd_address(nth: u8) -> IpAddr {
    loopback(21 + nth)
}

const RESIDENTS: u8 = 31;

/// Kills `kills` workers. Returns what was wrong.
pub(crate) fn run(kills: u64, seed: u64) -> Vec<String> {
    println!("kills: {kills}, seed {seed}");
    let mut random = Random::new(seed, u64::MAX);
    let accept = random.of(&["shared", "reuseport"]);
    let settings = Settings::draw(&mut random, accept);
    let server = TestServer::start(&format!("soak_kills_{seed}"), &settings.toml());
    println!("{}", settings.toml());
    let world = World::new(server.address);
    let books = Books::open(&server);
    let resident = Resident::new(&world, loopback(RESIDENTS));
    let mut storm = Storm::new(&server, &world, random, settings, books, resident);
    let begun = Instant::now();
    let mut wrong = Vec::new();
    let mut segment = 0;
    while wrong.is_empty() && storm.kills < kills {
        let until = kills.min(storm.kills + CALM_EVERY);
        let failed = storm.rage(seed, segment, until);
        wrong = world.failures();
        wrong.extend(failed.err());
        if wrong.is_empty() {
            wrong = storm.calm();
        }
        segment += 1;
    }
    storm.report(begun.elapsed());
    for what in &mut wrong {
        *what = format!("at kill {} of seed {seed}: {what}", storm.kills);
    }
    if !wrong.is_empty() {
        let file = server.dir.join("status.json");
        let told = fs::write(&file, format!("{:#}", storm.last));
        told.expect("the test's own directory");
        println!("the last status is {}", file.display());
    }
    drop(storm);
    crate::leave(server, wrong.is_empty());
    wrong
}

/// What a calm point may change.
struct Settings {
    accept: &'static str,
    limit: u64,
    fuse: bool,
    outbox_kib: u64,
}

impl Settings {
    fn draw(random: &mut Random, accept: &'static str) -> Self {
        Self {
            accept,
            limit: random.of(&LIMITS),
            fuse: random.one_in(2),
            outbox_kib: random.of(&[16, 64, 1024]),
        }
    }

    fn toml(&self) -> String {
        let Self { accept, limit, fuse, outbox_kib } = self;
        format!(
            "worker_processes = {WORKERS}\nmax_connections = {limit}\n\
             worker_ready_timeout = \"1m\"\nworker_drain_spread = \"0\"\n\
             [log]\nlevel = \"info\"\n\
             [[listen]]\naddress = \"127.0.0.1:0\"\naccept = \"{accept}\"\n\
             [worker]\nfuse = {fuse}\n\
             [send]\noutbox_max_bytes = \"{outbox_kib}KiB\"\n\
             [limits]\nconnections_per_ip = {PER_IP}\n"
        )
    }
}

/// All counters by name.
type Counts = BTreeMap<String, u64>;

fn counts(value: &Value) -> Counts {
    let object = value.as_object().expect("counters");
    object.iter().map(|(name, n)| (name.clone(), n.as_u64().expect("a counter"))).collect()
}

fn rows(status: &Value) -> &[Value] {
    status["workers"].as_array().expect("workers")
}

fn pid(row: &Value) -> i32 {
    i32::try_from(row["pid"].as_i64().expect("a pid")).expect("a pid")
}

/// What those that are gone have counted, or a little more: the living go on counting
/// while one after the other is read.
fn counted_by_the_gone(status: &Value) -> Counts {
    let mut gone = counts(&status["totals"]);
    for row in rows(status) {
        for (name, n) in counts(&row["counters"]) {
            let left = gone.get_mut(&name).expect("each counter has a total");
            *left = left.saturating_sub(n);
        }
    }
    gone
}

struct Storm<'a> {
    server: &'a TestServer,
    world: &'a World,
    random: Random,
    settings: Settings,
    books: Books,
    resident: Resident<'a>,
    kills: u64,
    /// The last status, and the totals of it: none may become less.
    last: Value,
    totals: Counts,
    /// What those that are gone have counted at the least.
    gone: Counts,
    /// Totals and kills at the last calm point.
    before: (Counts, u64),
    seen: Seen,
    /// From each kill to the moment when all was settled and somebody served.
    settled_ms: Vec<u128>,
    calm_points: u64,
}

impl<'a> Storm<'a> {
    fn new(
        server: &'a TestServer,
        world: &'a World,
        random: Random,
        settings: Settings,
        books: Books,
        resident: Resident<'a>,
    ) -> Self {
        let last = status(server);
        let totals = counts(&last["totals"]);
        Self {
            server,
            world,
            random,
            settings,
            books,
            resident,
            kills: 0,
            gone: counted_by_the_gone(&last),
            before: (totals.clone(), 0),
            last,
            totals,
            seen: Seen::default(),
            settled_ms: Vec::new(),
            calm_points: 0,
        }
    }

    /// Load, and kills until there were `kills` of them.
    fn rage(&mut self, seed: u64, segment: u64, until: u64) -> Result<(), String> {
        let world = self.world;
        std::thread::scope(|scope| {
            let _end = crate::End(world);
            let stream = |nth: u8| 1 + segment * 256 + u64::from(nth);
            for nth in 0..PEERS {
                let mut random = Random::new(seed, stream(nth));
                scope.spawn(move || peers(world, peer_address(nth), &mut random));
            }
            for nth in 0..CROWDS {
                let mut random = Random::new(seed, stream(128 + nth));
                scope.spawn(move || crowd(world, crowd_address(nth), &mut random));
            }
            self.resident.fill()?;
            while self.kills < until && !world.is_over() {
                self.kill_and_check()?;
            }
            self.resident.leave();
            Ok(())
        })
    }

    /// A look, which shows what may never be.
    fn look(&mut self) -> Result<(), String> {
        self.last = status(self.server);
        for (name, now) in counts(&self.last["totals"]) {
            let before = self.totals.insert(name.clone(), now).unwrap_or(0);
            if now < before {
                return Err(format!("the total {name} went from {before} to {now}"));
            }
        }
        let died = self.totals["workers_died"];
        if died > self.kills {
            return Err(format!("workers_died is {died} after {} kills", self.kills));
        }
        Ok(())
    }

    /// Kills one that has grown up, or two at once, and waits until all is as it must be.
    fn kill_and_check(&mut self) -> Result<(), String> {
        let grown = self.wait("one has grown up", |storm| {
            let is_grown = |row: &&Value| row["uptime_ms"].as_u64() > Some(KILL_AGE_MS);
            let serving = rows(&storm.last).iter().filter(|row| row["state"] == "serving");
            let grown: Vec<Value> = serving.filter(is_grown).cloned().collect();
            if grown.is_empty() { Err("none yet".to_owned()) } else { Ok(grown) }
        })?;
        let first = self.random.size(0, grown.len() - 1);
        let mut victims = vec![&grown[first]];
        if grown.len() > 1 && self.random.one_in(10) {
            victims.push(&grown[(first + 1) % grown.len()]);
        }
        let instant = Duration::from_micros(self.random.pick(0, 30_000));
        pause(instant, "a worker is killed at any instant, also between two events");
        for victim in &victims {
            for (name, n) in counts(&victim["counters"]) {
                *self.gone.entry(name).or_default() += n;
            }
            self.world.note_kill(pid(victim));
            // Still the master's child: until it is reaped the number is nobody else's.
            let killed = kill(Pid::from_raw(pid(victim)), Signal::SIGKILL);
            killed.map_err(|errno| format!("worker {} is gone: {errno}", pid(victim)))?;
            self.kills += 1;
        }
        let begun = Instant::now();
        let killed: Vec<i32> = victims.into_iter().map(pid).collect();
        self.wait("what the dead had is settled, and another one serves", |storm| {
            storm.settled(&killed)
        })?;
        self.settled_ms.push(begun.elapsed().as_millis());
        self.resident.lose(&killed)?;
        self.resident.fill()?;
        self.resident.ask_one(&mut self.random)
    }

    /// Looks until there is a value. What is missing is an error of `value`.
    fn wait<T>(
        &mut self,
        what: &str,
        mut value: impl FnMut(&Self) -> Result<T, String>,
    ) -> Result<T, String> {
        let mut missing = String::new();
        let found = wait_for(|| {
            if let Err(never) = self.look() {
                return Some(Err(never));
            }
            value(self).map_err(|why| missing = why).ok().map(Ok)
        });
        found.unwrap_or_else(|| Err(format!("not within {DEADLINE:?}: {what}: {missing}")))
    }

    /// What must hold a moment after a death.
    fn settled(&self, killed: &[i32]) -> Result<(), String> {
        let must = |holds: bool, what: String| if holds { Ok(()) } else { Err(what) };
        let rows = rows(&self.last);
        let serving = rows.iter().filter(|row| row["state"] == "serving").count();
        must(!rows.iter().any(|row| killed.contains(&pid(row))), format!("{killed:?} live"))?;
        must(rows.len() == WORKERS && serving == WORKERS, format!("{serving} workers serve"))?;
        must(self.last["vacancies"] == Value::Array(Vec::new()), "a place is empty".to_owned())?;
        let died = self.totals["workers_died"];
        must(died == self.kills, format!("workers_died is {died}, not {}", self.kills))?;
        let permits = &self.last["permits"];
        let number = |name: &str| permits[name].as_u64();
        let sum = |one, other| Some(number(one)? + number(other)?);
        let is_settled = permits.is_object() && sum("free", "held") == sum("limit", "debt");
        must(is_settled, format!("the permits do not add up: {permits}"))?;
        let gone = counted_by_the_gone(&self.last);
        let lost = self.gone.iter().find(|&(name, least)| gone[name] < *least);
        let what = |(name, least): (&String, &u64)| {
            format!("{name} of the dead is {}, but they had {least}", gone[name])
        };
        lost.map_or(Ok(()), |lost| Err(what(lost)))
    }

    /// Nobody is connected: everything must be back, and the books balance.
    fn calm(&mut self) -> Vec<String> {
        self.world.is_over.store(false, Ordering::Relaxed);
        self.calm_points += 1;
        let seen = self.world.take_seen();
        let mut wrong = Vec::new();
        wrong.extend(self.wait_at_rest().err());
        self.balance(&seen, &mut wrong);
        self.seen.add(&seen);
        self.gone = counted_by_the_gone(&self.last);
        self.before = (self.totals.clone(), self.kills);
        if wrong.is_empty() {
            wrong.extend(self.every_address_has_its_limit().err());
            wrong.extend(self.wait_at_rest().err());
            self.books.check_processes(self.server, &mut wrong);
            books::check_logs(self.server, &mut wrong);
            wrong.extend(self.reload().err());
        }
        wrong
    }

    fn wait_at_rest(&mut self) -> Result<(), String> {
        self.wait("nobody is connected and all permits are back", |storm| {
            let accepted = storm.totals["connections_accepted"];
            let closed = storm.totals["connections_closed"];
            let is_over = books::is_at_rest(&storm.last, storm.settings.limit)
                && storm.last["semaphores"]["worker_ready"] == 0
                && accepted == closed;
            if is_over {
                return storm.settled(&[]);
            }
            let (semaphores, permits) = (&storm.last["semaphores"], &storm.last["permits"]);
            Err(format!("accepted {accepted}, closed {closed}, {semaphores}, {permits}"))
        })
    }

    /// What came since the last time, beside what clients say that it must have been.
    fn balance(&self, seen: &Seen, wrong: &mut Vec<String>) {
        let get = |name: &str| self.totals[name] - self.before.0[name];
        let kills = self.kills - self.before.1;
        let mut must = |holds: bool, what: &str| {
            if !holds {
                let news: Counts =
                    self.totals.keys().map(|name| (name.clone(), get(name))).collect();
                wrong.push(format!("{what}; kills {kills}, {news:?}, {seen:?}"));
            }
        };
        let nor = ["connections_cut", "connections_uncounted", "workers_stuck"];
        for name in books::NEVER.into_iter().chain(nor) {
            must(get(name) == 0, &format!("{name} is {}", get(name)));
        }
        let (accepted, refused) = (get("connections_accepted"), get("connections_refused"));
        must(refused == get("connections_refused_per_ip"), "refused for want of permits");
        // A worker can die when it has accepted one and has not counted it yet.
        let met = accepted + refused;
        let is_each_met = met <= seen.connects && met + kills >= seen.connects;
        must(is_each_met, &format!("{met} connects were counted, of {}", seen.connects));
        let (received, sent) = (get("frames_received"), get("frames_sent"));
        let answered: u64 = seen.answered.iter().sum();
        let uncounted = kills * FRAMES_A_READ;
        must(received <= seen.asked, "more was received than sent");
        let accounted = sent + get("messages_expired") + get("messages_dropped");
        must(accounted <= received + uncounted, "more was answered than received");
        must(answered <= sent + uncounted, "more was read than sent");
        must(seen.outcomes(Outcome::Killed) > 0 || kills < 10, "no peer was ever hit");
    }

    /// Of each address that was there: as many connections as it may have, and no more.
    fn every_address_has_its_limit(&mut self) -> Result<(), String> {
        let peers = (0..PEER_ADDRESSES).map(peer_address);
        let crowds = (0..CROWDS).map(crowd_address);
        for address in peers.chain(crowds).chain([loopback(RESIDENTS)]) {
            let mut resident = Resident::new(self.world, address);
            resident.fill()?;
            resident.leave();
        }
        Ok(())
    }

    /// New workers with other settings.
    fn reload(&mut self) -> Result<(), String> {
        self.settings = Settings::draw(&mut self.random, self.settings.accept);
        let toml = configuration(&self.settings.toml());
        fs::write(self.server.dir.join("chappe.toml"), toml).expect("the configuration");
        let reload = self.server.run(&["reload"]);
        if reload.code != Some(0) {
            return Err(format!("a reload at rest: {reload:?}"));
        }
        self.wait_at_rest()
    }

    fn report(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let rate = self.kills as f64 / seconds;
        println!("\n{}", self.seen.table());
        println!(
            "{} kills in {seconds:.0} s, {rate:.2} a second; {} connections, {} frames received, \
             {} refused; everything checked {} times",
            self.kills,
            self.seen.connects,
            self.totals["frames_received"],
            self.totals["connections_refused"],
            self.calm_points,
        );
        self.settled_ms.sort_unstable();
        let at = |share: usize| self.settled_ms.get(self.settled_ms.len() * share / 100);
        println!(
            "settled and replaced, as seen by status: median {:?} ms, 99 % {:?} ms, longest {:?} ms",
            at(50).unwrap_or(&0),
            at(99).unwrap_or(&0),
            self.settled_ms.last().unwrap_or(&0),
        );
        println!(
            "the master at rest: anonymous memory {} KiB, shared {} KiB",
            self.books.master_bytes / 1024,
            books::memory(self.server.pid(), "RssShmem:") / 1024,
        );
    }
}

/// One client after the other, whose replies are checked byte by byte.
fn peers(world: &World, address: IpAddr, random: &mut Random) {
    while !world.is_over() {
        let mut plan = Plan::draw(random);
        // Those that take many seconds would only make calm points rare.
        if matches!(plan.kind, Kind::Never | Kind::Slow) {
            continue;
        }
        plan.source = Some(address);
        plan.write_pause_ms = plan.write_pause_ms.min(50);
        peer::run(world, &plan, random);
    }
}

/// Connects, asks much or little, leaves or resets, and wants more than it may have.
fn crowd(world: &World, address: IpAddr, random: &mut Random) {
    let mut clients: VecDeque<Connection> = VecDeque::new();
    while !world.is_over() {
        let mut client = match connect(world, address) {
            Ok(client) => client,
            Err(what) => return world.fail(what),
        };
        if let Err(what) = visit(world, &mut client, random) {
            return world.fail(format!("a crowd of {address}: {what}"));
        }
        clients.push_back(client);
        if clients.len() > WANTED {
            let nth = random.size(0, clients.len() - 1);
            let leaves = clients.remove(nth).expect("it is one of them");
            if random.one_in(2) {
                reset_on_close(&leaves);
            }
        }
    }
}

fn visit(world: &World, client: &mut Connection, random: &mut Random) -> Result<(), String> {
    let (frames, bytes) = (random.pick(0, 30), random.size(0, 500));
    let (body, code) = (vec![7; bytes], if bytes == 0 { CODE_PING } else { CODE_ECHO });
    world.note(|seen| seen.asked += frames);
    if (0..frames).any(|_| client.send(code, &body).is_err()) || random.one_in(3) {
        // Its worker died, it was refused, or it does not wait for the replies.
        return Ok(());
    }
    for _ in 0..frames {
        match client.receive() {
            Ok(frame) if frame.code == code && frame.body == body => {}
            Ok(frame) => {
                let is_known = |error: &chappe_client::ServerError| {
                    error.is(ErrorNumber::Busy) && error.text.contains("connections_per_ip")
                };
                return match frame.as_error() {
                    Some(error) if is_known(&error) => Ok(()),
                    _ => Err(format!("a strange reply: {frame:?}")),
                };
            }
            Err(ClientError::TimedOut(time)) => return Err(format!("no reply in {time:?}")),
            Err(_) => return Ok(()),
        }
    }
    Ok(())
}
