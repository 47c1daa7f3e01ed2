//! What needs a fork: semaphores and memory across processes, descriptors after a
//! fork, titles. A runner of its own, because a process with threads must not fork
//! and the usual test runner is made of threads.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use chappe_shm::{Counter, SlotState, ThreadRole, Zone};
use chappe_sys::process::{self, ExitReason};
use libtest_mimic::{Arguments, Trial};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// How long a test waits for something before it has failed.
const DEADLINE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    chappe_sys::prepare_title().expect("one thread");
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let trial = |(name, test): (&str, fn())| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    let tests: [(&str, fn()); 8] = [
        ("exit_reasons_arrive_as_exit_codes", exit_reasons_arrive_as_exit_codes),
        ("a_panic_is_an_exit_code", a_panic_is_an_exit_code),
        ("the_bell_rings_across_processes", the_bell_rings_across_processes),
        ("counts_arrive_and_survive_the_worker", counts_arrive_and_survive_the_worker),
        ("permits_of_killed_workers_come_back", permits_of_killed_workers_come_back),
        ("only_kept_descriptors_survive", only_kept_descriptors_survive),
        ("a_worker_gives_the_zones_descriptor_up", a_worker_gives_the_zones_descriptor_up),
        ("the_title_is_what_ps_shows", the_title_is_what_ps_shows),
    ];
    libtest_mimic::run(&arguments, tests.map(trial).into()).exit_code()
}

fn exit_code(pid: Pid) -> i32 {
    match waitpid(pid, None).expect("our worker") {
        WaitStatus::Exited(_, code) => code,
        other => panic!("ended by {other:?}"),
    }
}

fn killed(pid: Pid) {
    kill(pid, Signal::SIGKILL).expect("our worker");
    let status = waitpid(pid, None).expect("our worker");
    assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{status:?}");
}

/// In a worker: fails it by exit code, since a panic message is enough to see why.
fn succeed(result: io::Result<bool>) -> ExitReason {
    match result {
        Ok(true) => ExitReason::Stopped,
        Ok(false) | Err(_) => ExitReason::Failed,
    }
}

fn exit_reasons_arrive_as_exit_codes() {
    for reason in [ExitReason::Stopped, ExitReason::Failed, ExitReason::CannotBoot] {
        let pid = process::fork_worker(|_| reason).expect("fork");
        assert_eq!(exit_code(pid), reason.code());
    }
}

fn a_panic_is_an_exit_code() {
    let pid = process::fork_worker(|_| {
        process::redirect_stderr_to_null().expect("/dev/null");
        panic!("on purpose")
    });
    assert_eq!(exit_code(pid.expect("fork")), ExitReason::Panic.code());
}

fn the_bell_rings_across_processes() {
    let zone = Zone::create(1).expect("zone");
    let slot = zone.claim_slot(0, 1).expect("slot");
    let pid = process::fork_worker(|_| {
        slot.mark_ready();
        slot.send_semaphore().wait();
        ExitReason::Stopped
    })
    .expect("fork");
    assert!(zone.worker_ready().wait_until(Instant::now() + DEADLINE));
    assert_eq!(slot.state(), SlotState::Ready);
    slot.send_semaphore().post();
    assert_eq!(exit_code(pid), 0);
}

fn counts_arrive_and_survive_the_worker() {
    let zone = Zone::create(1).expect("zone");
    for round in 1..=3 {
        let slot = zone.claim_slot(0, 1).expect("slot");
        let pid = process::fork_worker(|_| {
            slot.counters(ThreadRole::SendThread).add(Counter::FramesSent, 1000);
            ExitReason::Stopped
        })
        .expect("fork");
        assert_eq!(exit_code(pid), 0);
        assert_eq!(zone.totals().expect("quiet").get(Counter::FramesSent), round * 1000);
        zone.free(&slot);
        assert_eq!(zone.totals().expect("quiet").get(Counter::FramesSent), round * 1000);
    }
}

/// Workers that take and give back as fast as they can, killed at instants that
/// nobody chose: the sum must come out each time.
fn permits_of_killed_workers_come_back() {
    const LIMIT: u32 = 100;
    let zone = Zone::create(LIMIT).expect("zone");
    for _ in 0..100 {
        let workers: Vec<_> = (0..2)
            .map(|number| {
                let slot = zone.claim_slot(number, 1).expect("slot");
                let pid = process::fork_worker(|_| churn_permits(&slot)).expect("fork");
                (slot, pid)
            })
            .collect();
        for _ in &workers {
            assert!(zone.worker_ready().wait_until(Instant::now() + DEADLINE));
        }
        for (slot, pid) in &workers {
            killed(*pid);
            zone.free(slot);
        }
        zone.settle().expect("nobody is left to disturb");
        assert_eq!(zone.free_permits(), LIMIT);
    }
}

fn churn_permits(slot: &chappe_shm::Slot) -> ExitReason {
    let mut permits = slot.permits();
    for round in 0_u64.. {
        for _ in 0..30 {
            permits.try_take();
        }
        for _ in 0..permits.held() {
            permits.give_back();
        }
        if round == 20 {
            slot.mark_ready();
        }
    }
    ExitReason::Failed
}

fn only_kept_descriptors_survive() {
    let (kept, dropped) = (open_null(), open_null());
    let highest = nix::unistd::dup(&dropped).expect("dup");
    let pid = process::fork_worker(|forked| {
        let streams = (io::stdin(), io::stdout(), io::stderr());
        let keep = [streams.2.as_fd(), kept.as_fd(), streams.0.as_fd(), streams.1.as_fd()];
        let closed = process::close_all_except(&forked, &keep);
        let is_open = |fd: i32| fs::exists(format!("/proc/self/fd/{fd}")).unwrap_or(false);
        let right = is_open(kept.as_raw_fd())
            && [0, 1, 2].into_iter().all(is_open)
            && !is_open(dropped.as_raw_fd())
            && !is_open(highest.as_raw_fd());
        succeed(closed.map(|()| right))
    })
    .expect("fork");
    assert_eq!(exit_code(pid), 0);
}

/// Its number is another file's afterwards, and nobody closes that one.
fn a_worker_gives_the_zones_descriptor_up() {
    let zone = Zone::create(1).expect("zone");
    let pid = process::fork_worker(|_| {
        let before = zones();
        zone.close_descriptor();
        let is_closed = before.len() == 1 && zones().is_empty() && zone.descriptor().is_err();
        let reused = open_null();
        zone.close_descriptor();
        let is_reused = before == [reused.as_raw_fd()];
        // Still there, and still the same zone.
        zone.connection_permits().post();
        succeed(reused.metadata().map(|_| is_closed && is_reused))
    })
    .expect("fork");
    assert_eq!(exit_code(pid), 0);
    assert_eq!(zones().len(), 1, "the master keeps its own");
    let again = Zone::from_descriptor(zone.descriptor().expect("descriptor")).expect("zone");
    assert_eq!(again.connection_permits().value(), 2);
}

/// The descriptors of zones that this process has.
fn zones() -> Vec<i32> {
    let entries = fs::read_dir("/proc/self/fd").expect("/proc").flatten();
    let is_zone = |target: &std::path::Path| target.starts_with("/memfd:chappe-zone (deleted)");
    entries
        .filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| is_zone(&target)))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

fn open_null() -> fs::File {
    fs::File::open("/dev/null").expect("/dev/null")
}

fn the_title_is_what_ps_shows() {
    let zone = Zone::create(1).expect("zone");
    let slot = zone.claim_slot(7, 1).expect("slot");
    let path = std::env::var("PATH");
    let pid = process::fork_worker(|_| {
        chappe_sys::set_title("chappe: worker process 7");
        slot.mark_ready();
        slot.send_semaphore().wait();
        succeed(Ok(std::env::var("PATH") == path))
    })
    .expect("fork");
    assert!(zone.worker_ready().wait_until(Instant::now() + DEADLINE));
    let line = fs::read(format!("/proc/{pid}/cmdline")).expect("cmdline");
    let line = String::from_utf8(line).expect("text");
    slot.send_semaphore().post();
    assert_eq!(exit_code(pid), 0);
    assert_eq!(line.trim_end_matches('\0'), "chappe: worker process 7");
    assert!(std::env::args().next().is_some_and(|name| name.contains("fork")));
}
