//! A server with a worker that was taken over. Of its two workers the first one attacks,
//! once, as `[application] attack` says; what it does it could do in any program: raw
//! messages, and writes to its own memory by /proc/self/mem.

use std::fs::{self, File, OpenOptions};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use chappe::prefork::{self, Assignment, Message, ReceivedParcel, Stage};
use chappe_sys::process::ExitReason;
use chappe_testkit::{players, wait_until};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Words that the attack on everything writes.
const RANDOM_WORDS: usize = 400_000;
/// How far into the zone it writes: all but the last of the slots that are in use.
const RANDOM_BYTES: u64 = 1 << 20;

fn main() -> ExitCode {
    prefork::run(std::env::args_os(), play)
}

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
        return players::play(assignment);
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
        "life" => overwrite_all("chappe-life"),
        "call" => overwrite_all("chappe-hub"),
        "log" => ["chappe-topics", "chappe-figures"].into_iter().for_each(try_to_write),
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
    (1..56).for_each(|nth| pen.write(totals + nth * 8, u64::MAX / 2));
    // History, the bits of the slots in use, and their states.
    let live = totals + 448 + 64;
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

/// Where this process has mapped files whose name begins so.
fn mapped(name: &str) -> Vec<(u64, u64)> {
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    let lines = maps.lines().filter(|line| line.contains(&format!("/memfd:{name}")));
    let range = |line: &str| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        let address = |text| u64::from_str_radix(text, 16).ok();
        Some((address(start)?, address(end)?))
    };
    lines.map(|line| range(line).expect("a range")).collect()
}

/// All ones, over the first page of each part.
fn overwrite_all(name: &str) {
    let memory = OpenOptions::new().write(true).open("/proc/self/mem").expect("our own memory");
    let parts = mapped(name);
    assert!(!parts.is_empty(), "{name} is mapped");
    for (start, end) in parts {
        for at in (start..end.min(start + 4096)).step_by(8) {
            memory.write_all_at(&u64::MAX.to_le_bytes(), at).expect("written");
        }
    }
}

/// It must not succeed.
fn try_to_write(name: &str) {
    let memory = OpenOptions::new().write(true).open("/proc/self/mem").expect("our own memory");
    let parts = mapped(name);
    assert!(!parts.is_empty(), "{name} is mapped");
    for (start, _) in parts {
        let refused = memory.write_all_at(&u64::MAX.to_le_bytes(), start);
        assert!(refused.is_err(), "{name} can be written");
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
