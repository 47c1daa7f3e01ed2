//! A worker that was taken over: it writes what it likes to its channel and to the memory
//! that it shares, and the master and the other worker live on.
//!
//! This program starts itself as the server, as `supervise` does. Of its two workers the
//! first one attacks, once, as `[application] attack` says; what it does it could do in any
//! program: raw messages, and writes to its own memory by /proc/self/mem.

use std::fs::{self, File, OpenOptions};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use chappe::prefork::{Assignment, Message, ReceivedParcel, Stage};
use chappe_sys::process::ExitReason;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;

#[expect(dead_code, reason = "other tests use more of it")]
#[path = "support/site.rs"]
mod site;
#[path = "support/wait.rs"]
mod wait;

use site::{Server, Site, text, worker_pids};
use wait::wait_until;

/// What the master may take for an answer, whatever goes on; on a machine that is overbooked.
const SOON: Duration = Duration::from_secs(5);
/// Words that the attack on everything writes.
const RANDOM_WORDS: usize = 200_000;
/// How far into the zone it writes: all but the last of the slots that are in use.
const RANDOM_BYTES: u64 = 512 << 10;

fn main() -> ExitCode {
    let tests: &[(&str, fn())] = &[
        ("junk_on_the_channel_ends_the_worker_that_sent_it", junk_on_the_channel),
        ("descriptors_that_nobody_asked_for_are_closed", descriptors_are_closed),
        ("a_list_that_would_block_or_never_end_is_refused", lists_are_refused),
        ("a_storm_of_requests_leaves_the_master_its_time", a_storm_of_requests),
        ("a_worker_that_closes_its_channel_is_ended", a_closed_channel),
        ("permits_that_are_overwritten_are_set_right", permits_are_set_right),
        ("totals_and_slots_are_the_masters_own", totals_and_slots),
        ("anything_at_all_in_the_shared_memory", anything_at_all),
    ];
    site::run_as(tests, play)
}

// The worker.

fn play(assignment: Assignment) -> ExitReason {
    let word = |key: &str| {
        let value = assignment.application().get(key).and_then(|value| value.as_str());
        value.unwrap_or_default().to_owned()
    };
    let (attack, marker) = (word("attack"), word("marker"));
    let is_first = assignment.number == 0
        && !attack.is_empty()
        && OpenOptions::new().write(true).create_new(true).open(&marker).is_ok();
    if !is_first {
        return site::play(assignment);
    }
    assignment.slot.mark_ready();
    assignment.channel.send(Message::Ready).expect("the master lives");
    let channel = assignment.channel.as_fd();
    while assignment.slot.orders().stage != Stage::Serve {
        let _interrupted = poll(&mut [PollFd::new(channel, PollFlags::POLLIN)], PollTimeout::NONE);
        let _rings = assignment.channel.try_receive_parcel();
    }
    assignment.slot.mark_serving();
    wait_until("the test has begun", || fs::read(&marker).is_ok_and(|text| text == b"begin"));
    match attack.as_str() {
        "junk" => junk(channel),
        "descriptors" => send_descriptors(channel),
        "pipe" | "endless" | "unsealed" => answer_lists(&assignment, &attack),
        "storm" => storm(channel),
        "close" => drop(assignment.channel),
        "permits" => overwrite_permits(),
        "totals" => overwrite_totals(),
        "anything" => overwrite_anything(),
        other => panic!("no attack {other:?}"),
    }
    fs::write(&marker, "done").expect("marker");
    // It does not go by itself.
    loop {
        std::thread::park();
    }
}

/// Sends a raw message; waits for room. False when the master has closed its end.
fn send(channel: BorrowedFd<'_>, bytes: &[u8], descriptors: &[i32]) -> bool {
    loop {
        let rights = [ControlMessage::ScmRights(descriptors)];
        let rights = if descriptors.is_empty() { &rights[..0] } else { &rights[..] };
        let (parts, flags) = ([IoSlice::new(bytes)], MsgFlags::MSG_NOSIGNAL);
        match sendmsg::<()>(channel.as_raw_fd(), &parts, rights, flags, None) {
            Ok(_) => return true,
            Err(nix::errno::Errno::EAGAIN) => {
                let mut fds = [PollFd::new(channel, PollFlags::POLLOUT)];
                let _interrupted = poll(&mut fds, PollTimeout::from(100_u8));
            }
            Err(_) => return false,
        }
    }
}

fn message(kind: Message, value: u64) -> Vec<u8> {
    let mut bytes = vec![kind as u8];
    bytes.extend(value.to_le_bytes());
    bytes
}

fn junk(channel: BorrowedFd<'_>) {
    let mut random = Random(1);
    while send(channel, &random.next().to_le_bytes()[..1 + random.below(8)], &[]) {}
}

fn send_descriptors(channel: BorrowedFd<'_>) {
    let null = File::open("/dev/null").expect("/dev/null");
    for count in [1, 2, 3, 100, 253] {
        for round in 0..2 {
            let bytes = message(if round == 0 { Message::Done } else { Message::Ready }, 77);
            send(channel, &bytes, &vec![null.as_raw_fd(); count]);
        }
    }
}

fn answer_lists(assignment: &Assignment, attack: &str) {
    loop {
        let channel = assignment.channel.as_fd();
        let _interrupted = poll(&mut [PollFd::new(channel, PollFlags::POLLIN)], PollTimeout::NONE);
        let received = assignment.channel.try_receive_parcel().expect("channel");
        let Some(ReceivedParcel::Parcel(parcel)) = received else { continue };
        if parcel.message == Message::ListConnections {
            let answer = hostile_list(attack);
            let sent =
                assignment.channel.send_parcel(Message::Done, parcel.value, Some(answer.as_fd()));
            sent.expect("the master lives");
            return;
        }
    }
}

fn hostile_list(attack: &str) -> OwnedFd {
    if attack == "pipe" {
        let (reader, writer) = nix::unistd::pipe().expect("pipe");
        // Nobody writes to it, and nobody closes it.
        std::mem::forget(writer);
        return reader;
    }
    let memory = memfd_create("hostile", MFdFlags::MFD_ALLOW_SEALING).expect("memfd");
    let is_endless = attack == "endless";
    nix::unistd::ftruncate(&memory, if is_endless { 1 << 50 } else { 100 }).expect("length");
    if is_endless {
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
        fcntl(&memory, FcntlArg::F_ADD_SEALS(seals)).expect("seals");
    }
    memory
}

fn storm(channel: BorrowedFd<'_>) {
    let kinds = [Message::AskReopen, Message::Ready, Message::Done, Message::Kicked];
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        for kind in kinds {
            send(channel, &message(kind, 3), &[]);
        }
    }
}

/// A pen for the memory that this process shares with the others.
struct Pen {
    memory: File,
    zone: u64,
}

impl Pen {
    fn new() -> Self {
        let maps = fs::read_to_string("/proc/self/maps").expect("maps");
        let zone = maps.lines().find(|line| line.contains("memfd:chappe-zone"));
        let start = zone.expect("the zone is mapped").split('-').next().expect("a range");
        let zone = u64::from_str_radix(start, 16).expect("an address");
        let memory = OpenOptions::new().read(true).write(true).open("/proc/self/mem");
        Self { memory: memory.expect("our own memory"), zone }
    }

    fn write(&self, at: u64, word: u64) {
        self.memory.write_all_at(&word.to_le_bytes(), self.zone + at).expect("written");
    }

    /// Where the semaphore of the connection permits is, the second one in the zone: by the
    /// mark that stands behind each one that is initialised.
    fn permits(&self) -> u64 {
        const READY: u32 = 0x5E3A_9409;
        let mut start = vec![0; 4096];
        self.memory.read_exact_at(&mut start, self.zone).expect("read");
        let marks = start.chunks_exact(4).enumerate();
        let mut marks = marks.filter(|(_, word)| **word == READY.to_le_bytes());
        let (nth, _) = marks.nth(1).expect("two semaphores");
        nth as u64 * 4 - 32
    }
}

/// Value, sleepers, the private flag, the balance, the limit.
fn overwrite_permits() {
    let pen = Pen::new();
    let at = pen.permits();
    pen.write(at, (5 << 32) | 0x7FFF_FFFF);
    pen.write(at + 8, 0x55);
    pen.write(at + 40, (1 << 40) - 3);
    pen.write(at + 48, 0x7FFF_FFFF);
}

/// The sequence of the totals stays odd, the totals are huge, all slots are free.
fn overwrite_totals() {
    let pen = Pen::new();
    let totals = pen.permits() + 64 + 64;
    pen.write(totals, 7);
    (1..48).for_each(|nth| pen.write(totals + nth * 8, u64::MAX / 2));
    // History, the bits of the slots in use, and their states.
    let live = totals + 384 + 64;
    (0..64 + 2048).for_each(|nth| pen.write(live + nth * 8, 0));
}

fn overwrite_anything() {
    let (pen, mut random) = (Pen::new(), Random(u64::from(std::process::id())));
    for _ in 0..RANDOM_WORDS {
        let word = match random.below(4) {
            0 => 0,
            1 => u64::MAX,
            2 => random.below(10) as u64,
            _ => random.next(),
        };
        // The header is what an upgrade reads.
        pen.write(64 + random.next() % (RANDOM_BYTES / 8 - 8) * 8, word);
    }
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("below a usize")
    }
}

// The tests.

/// A server whose first worker attacks so. Workers stay who they are, so that this one can
/// write its marker and its own memory.
fn site(attack: &str) -> Site {
    let site = Site::new("");
    let marker = site.path("marker");
    site.configure(&format!(
        "user = \"\"\nworker_processes = 2\nmax_connections = 1000\n[application]\nattack = \"{attack}\"\n\
         marker = \"{}\"\n[[listen]]\naddress = \"127.0.0.1:0\"\n",
        marker.display()
    ));
    site
}

/// Starts it. The attack begins when [`attack`] says so.
fn start(site: &Site) -> Server<'_> {
    let server = site.start();
    wait_until("the attacker waits", || site.path("marker").exists());
    server
}

fn attack(site: &Site) {
    fs::write(site.path("marker"), "begin").expect("marker");
}

fn marker(site: &Site) -> String {
    fs::read_to_string(site.path("marker")).unwrap_or_default()
}

fn worker(site: &Site, number: u16) -> Pid {
    let status = site.status();
    let workers = status["workers"].as_array().expect("workers");
    let row = workers.iter().find(|row| row["worker"] == number && row["state"] != "draining");
    let pid = row.and_then(|row| row["pid"].as_i64()).expect("a worker");
    Pid::from_raw(i32::try_from(pid).expect("a pid"))
}

fn open_descriptors(server: &Server<'_>) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("the master lives").count()
}

/// The master answers soon, and the other worker is who it was.
fn assert_well(site: &Site, other: Pid) {
    for _ in 0..3 {
        let begun = Instant::now();
        let status = site.status();
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        assert!(worker_pids(&status).contains(&other), "{status:#}");
    }
}

/// A new generation takes over, and all permits are where they should be.
fn assert_reloads(site: &Site) {
    let reload = site.run(&["reload"]);
    assert!(reload.status.success(), "{reload:?}\n{}", site.log("master.log"));
    wait_until("the new generation serves alone", || {
        let status = site.status();
        let workers = status["workers"].as_array().expect("workers");
        workers.len() == 2 && workers.iter().all(|worker| worker["state"] == "serving")
    });
    let permits = &site.status()["permits"];
    assert_eq!(permits["limit"], 1000, "{permits}");
    let number = |key: &str| permits[key].as_i64().expect("a number");
    assert_eq!(number("limit") + number("debt"), number("free") + number("held"), "{permits}");
}

fn end_attacker(site: &Site, attacker: Pid) {
    let _gone = kill(attacker, Signal::SIGKILL);
    wait_until("the attacker is replaced", || {
        let pids = worker_pids(&site.status());
        pids.len() == 2 && !pids.contains(&attacker)
    });
}

fn junk_on_the_channel() {
    let site = site("junk");
    let server = start(&site);
    let other = worker(&site, 1);
    attack(&site);
    wait_until("it is killed", || site.log("master.log").contains("messages were none"));
    wait_until("it is replaced", || worker_pids(&site.status()).len() == 2);
    assert_well(&site, other);
    let log = site.log("master.log");
    assert!(log.lines().count() < 60, "{log}");
    assert_eq!(site.status()["totals"]["workers_died"], 1);
    assert_reloads(&site);
    drop(server);
}

fn descriptors_are_closed() {
    let site = site("descriptors");
    let server = start(&site);
    let other = worker(&site, 1);
    attack(&site);
    wait_until("all were sent", || marker(&site) == "done");
    assert_well(&site, other);
    assert!(open_descriptors(&server) < 30, "{}", open_descriptors(&server));
}

fn lists_are_refused() {
    for (kind, named) in [
        ("pipe", "it is no file in memory"),
        ("endless", "bytes, more than"),
        ("unsealed", "it is not sealed"),
    ] {
        let site = site(kind);
        let server = start(&site);
        let (attacker, other) = (worker(&site, 0), worker(&site, 1));
        attack(&site);
        // The other one is a player and answers nothing either.
        let listed = site.run(&["connections"]);
        let said = text(&listed.stderr);
        assert!(said.contains(&format!("worker 0 (pid {attacker})")), "{kind}: {said}");
        assert!(site.log("master.log").contains(named), "{kind}: {}", site.log("master.log"));
        assert_well(&site, other);
        assert!(open_descriptors(&server) < 30, "{}", open_descriptors(&server));
    }
}

fn a_storm_of_requests() {
    let site = site("storm");
    let _server = start(&site);
    let other = worker(&site, 1);
    attack(&site);
    while marker(&site) != "done" {
        assert_well(&site, other);
    }
    let reopened = site.log("master.log").matches("logs reopened by=a worker").count();
    assert!((1..30).contains(&reopened), "{reopened} times in some seconds");
    assert!(site.log("master.log").lines().count() < 100, "{}", site.log("master.log"));
}

fn a_closed_channel() {
    let site = site("close");
    let _server = start(&site);
    let (attacker, other) = (worker(&site, 0), worker(&site, 1));
    attack(&site);
    wait_until("it is replaced", || {
        let pids = worker_pids(&site.status());
        pids.len() == 2 && !pids.contains(&attacker)
    });
    assert_well(&site, other);
}

fn permits_are_set_right() {
    let site = site("permits");
    let _server = start(&site);
    let (attacker, other) = (worker(&site, 0), worker(&site, 1));
    attack(&site);
    wait_until("they are overwritten", || marker(&site) == "done");
    assert_well(&site, other);
    end_attacker(&site, attacker);
    assert_well(&site, other);
    assert!(site.log("master.log").contains("figures in shared memory were overwritten"));
    assert_eq!(site.status()["permits"]["free"], 1000);
    assert_reloads(&site);
}

fn totals_and_slots() {
    let site = site("totals");
    let _server = start(&site);
    let (attacker, other) = (worker(&site, 0), worker(&site, 1));
    attack(&site);
    wait_until("they are overwritten", || marker(&site) == "done");
    let begun = Instant::now();
    let status = site.status();
    assert!(begun.elapsed() < SOON);
    assert_eq!(status["totals"]["workers_died"], 0, "{status:#}");
    let pids: Vec<_> = status["workers"].as_array().expect("workers").iter().collect();
    assert!(pids.iter().any(|row| row["pid"] == other.as_raw()), "by the master's figures");
    let _gone = kill(attacker, Signal::SIGKILL);
    wait_until("it is replaced", || site.status()["totals"]["workers_died"] == 1);
    assert_reloads(&site);
}

fn anything_at_all() {
    let site = site("anything");
    let mut server = start(&site);
    let attacker = worker(&site, 0);
    attack(&site);
    while marker(&site) != "done" {
        let begun = Instant::now();
        site.status();
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    }
    let _gone = kill(attacker, Signal::SIGKILL);
    wait_until("its end is seen", || site.log("master.log").contains("signal=SIGKILL"));
    // The other one may be told anything by its slot, but a reload makes all good.
    assert_reloads(&site);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait(), Some(0));
    site.assert_nothing_left();
}
