//! Rings between real processes, with a checksum in each record: at full speed, with a reader
//! that is stopped again and again, with a writer that is killed at any instant and at each of
//! its steps. It forks, so it has a runner of its own.
//!
//! `CHAPPE_RECORDS` says how many records go through each ring.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chappe_rings::{Bell, Broadcast, Found, Full, Queue, Reader, Writer};
use chappe_sys::process::{self, ExitReason};
use chappe_sys::{Semaphore, SemaphorePlace, SharedFile, SharedMapping, crash, shared_layout};
use libtest_mimic::{Arguments, Trial};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How long a test waits for a wake-up before it has failed.
const DEADLINE: Duration = Duration::from_secs(20);
/// Words of a ring: 64 KiB, so that it goes round often.
const WORDS: usize = 8192;
/// More than a writer has steps.
const STEPS_MAX: u64 = 100;
/// The longest record of these tests.
const RECORD_BYTES_MAX: u64 = 300;

fn main() -> ExitCode {
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let trial = |(name, test): (&str, fn())| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    let tests: [(&str, fn()); _] = [
        ("a_queue_between_processes_loses_nothing", a_queue_between_processes_loses_nothing),
        ("no_reader_believes_a_record_of_two_laps", no_reader_believes_a_record_of_two_laps),
        ("a_writer_that_is_killed_is_succeeded", a_writer_that_is_killed_is_succeeded),
        ("a_writer_dies_at_each_of_its_steps", a_writer_dies_at_each_of_its_steps),
        ("a_producer_dies_at_each_of_its_steps", a_producer_dies_at_each_of_its_steps),
    ];
    libtest_mimic::run(&arguments, tests.map(trial).into()).exit_code()
}

fn records() -> u64 {
    std::env::var("CHAPPE_RECORDS").map_or(200_000, |count| count.parse().expect("a number"))
}

shared_layout! {
    /// What each side sleeps on.
    #[derive(Debug)]
    struct Sleepers {
        consumer: SemaphorePlace,
        consumer_bell: Bell,
        producer: SemaphorePlace,
        producer_bell: Bell,
    }
}

struct Side {
    sleepers: Arc<SharedMapping<Sleepers>>,
    bell: fn(&Sleepers) -> &Bell,
    semaphore: Semaphore,
}

impl Side {
    fn ring(&self) {
        (self.bell)(&self.sleepers).ring(|| self.semaphore.post());
    }

    fn wait(&self) {
        assert!(self.semaphore.wait_until(Instant::now() + DEADLINE), "nobody rings");
        (self.bell)(&self.sleepers).hear();
    }
}

fn sides() -> (Side, Side) {
    let sleepers = SharedMapping::<Sleepers>::create("test").expect("memory");
    sleepers.init_semaphore(|all| &all.consumer, 0).expect("a semaphore");
    sleepers.init_semaphore(|all| &all.producer, 0).expect("a semaphore");
    let (consumer, producer) =
        (sleepers.semaphore(|all| &all.consumer), sleepers.semaphore(|all| &all.producer));
    (
        Side {
            sleepers: Arc::clone(&sleepers),
            bell: |all| &all.consumer_bell,
            semaphore: consumer,
        },
        Side { sleepers, bell: |all| &all.producer_bell, semaphore: producer },
    )
}

fn queue(words: usize) -> Queue {
    let file = SharedFile::create("test", 4096 + 8 * words as u64).expect("memory");
    Queue::new(file.map(0).expect("cursors"), file.map_array(4096, words).expect("words"))
}

fn ring(words: usize) -> Broadcast {
    let file = SharedFile::create("test", 4096 + 8 * words as u64).expect("memory");
    Broadcast::new(file.map(0).expect("cursors"), file.map_array(4096, words).expect("words"))
}

/// Fills `record` with what the record of this number says: its number, bytes that follow from
/// it, and a checksum of both.
fn compose(number: u64, record: &mut Vec<u8>) {
    let mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    let length = usize::try_from(12 + mixed % (RECORD_BYTES_MAX - 11)).expect("short");
    record.clear();
    record.extend_from_slice(&number.to_le_bytes());
    record.resize(length - 4, mixed.to_le_bytes()[0]);
    let checksum = crc32fast::hash(record);
    record.extend_from_slice(&checksum.to_le_bytes());
}

/// The number of a record that is whole.
fn verify(record: &[u8]) -> u64 {
    let (text, checksum) = record.split_last_chunk().expect("a checksum");
    assert_eq!(crc32fast::hash(text), u32::from_le_bytes(*checksum), "a record of two laps");
    u64::from_le_bytes(*text.first_chunk().expect("a number"))
}

fn fork(body: impl FnOnce()) -> Pid {
    let body = |_| {
        body();
        ExitReason::Stopped
    };
    process::fork_worker(body).expect("fork")
}

fn assert_ends_well(pid: Pid) {
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 0)));
}

fn a_queue_between_processes_loses_nothing() {
    let (queue, count, (consumer_side, producer_side)) = (queue(WORDS), records(), sides());
    let pid = fork(|| {
        let (mut producer, mut record) = (queue.producer(), Vec::new());
        for number in 0..count {
            compose(number, &mut record);
            while producer.push(&record) == Err(Full) {
                producer_side.wait();
            }
            consumer_side.ring();
        }
    });
    let (mut consumer, mut record, mut next) = (queue.consumer(), Vec::new(), 0);
    while next < count {
        while consumer.next(&mut record).expect("it is sound") {
            assert_eq!(verify(&record), next);
            next += 1;
            if consumer.advance() {
                producer_side.ring();
            }
        }
        if next < count {
            consumer_side.wait();
        }
    }
    assert_ends_well(pid);
}

/// Reads until `last` was read or lost; how many were lost.
fn follow(reader: &mut Reader, last: u64) -> u64 {
    let (mut record, mut lost) = (Vec::new(), 0);
    while reader.offset() < last {
        match reader.next(&mut record).expect("it is sound") {
            Found::Record => assert_eq!(verify(&record), reader.offset()),
            Found::Lapped(count) => lost += count,
            Found::Nothing => std::hint::spin_loop(),
        }
    }
    lost
}

fn write(writer: &mut Writer, last: u64) {
    let mut record = Vec::new();
    while writer.offset() < last {
        compose(writer.offset() + 1, &mut record);
        writer.write(&record);
    }
}

fn no_reader_believes_a_record_of_two_laps() {
    let (ring, count) = (ring(WORDS), records());
    let reads = |mut reader: Reader| {
        fork(move || {
            follow(&mut reader, count);
        })
    };
    let reader = ring.reader().expect("it is sound");
    let (one, stopped) = (reads(reader.clone()), reads(reader));
    let writer = fork(|| write(&mut ring.writer().expect("it is sound"), count));
    // Wherever it is in its copy.
    while waitpid(writer, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive) {
        kill(stopped, Signal::SIGSTOP).expect("our reader");
        std::hint::spin_loop();
        kill(stopped, Signal::SIGCONT).expect("our reader");
    }
    assert_ends_well(one);
    assert_ends_well(stopped);
}

fn a_writer_that_is_killed_is_succeeded() {
    let ring = ring(WORDS);
    let mut reader = ring.reader().expect("it is sound");
    for round in 1..=100 {
        let before = ring.writer().expect("it is sound").offset();
        let pid = fork(|| write(&mut ring.writer().expect("it is sound"), u64::MAX));
        // It writes when it is killed.
        follow(&mut reader, before + round);
        kill(pid, Signal::SIGKILL).expect("our writer");
        let status = waitpid(pid, None).expect("our writer");
        assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{status:?}");
        let successor = ring.writer().expect("it is sound");
        let last = successor.last().expect("it is sound").expect("a record");
        assert_eq!(verify(&last), successor.offset());
        follow(&mut reader, successor.offset());
    }
}

/// Has a process die at each step of what it does, and calls `look` after each; how many steps
/// there are.
fn each_step(act: impl Fn(), look: impl Fn(u64)) -> u64 {
    for nth in 1..STEPS_MAX {
        let pid = fork(|| {
            crash::arm(nth);
            act();
        });
        let status = waitpid(pid, None).expect("our process");
        if status == WaitStatus::Exited(pid, 0) {
            return nth - 1;
        }
        assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{status:?}");
        look(nth);
    }
    panic!("no end after {STEPS_MAX} steps");
}

fn a_writer_dies_at_each_of_its_steps() {
    let ring = ring(512);
    write(&mut ring.writer().expect("it is sound"), 50);
    let reader = std::cell::RefCell::new(ring.reader().expect("it is sound"));
    let act = || {
        let mut writer = ring.writer().expect("it is sound");
        let last = writer.offset() + 2;
        write(&mut writer, last);
    };
    let look = |_| {
        let mut successor = ring.writer().expect("it is sound");
        let last = successor.last().expect("it is sound").expect("a record");
        assert_eq!(verify(&last), successor.offset());
        let end = successor.offset() + 1;
        write(&mut successor, end);
        assert_eq!(follow(&mut reader.borrow_mut(), end), 0);
    };
    assert_eq!(each_step(act, look), 8, "four for each record");
}

fn a_producer_dies_at_each_of_its_steps() {
    let queue = queue(256);
    let next = std::cell::Cell::new(0);
    let act = || {
        let (mut producer, mut record) = (queue.producer(), Vec::new());
        for number in next.get()..next.get() + 2 {
            compose(number, &mut record);
            producer.push(&record).expect("there is room");
        }
    };
    let look = |nth| {
        let (mut consumer, mut record) = (queue.consumer(), Vec::new());
        let mut found = 0;
        while consumer.next(&mut record).expect("it is sound") {
            assert_eq!(verify(&record), next.get());
            next.set(next.get() + 1);
            found += 1;
            assert!(!consumer.advance());
        }
        assert_eq!(found, (nth - 1) / 2, "what was shown at step {nth}");
    };
    assert_eq!(each_step(act, look), 4, "two for each record");
}
