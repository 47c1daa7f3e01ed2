//! Workers that die at each step of each operation on shared memory, one after the other.
//! Whatever the step, permits, counts of addresses and totals must come out as if the
//! worker had died a moment earlier or later.
//!
//! It forks, so it has a runner of its own.

use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chappe_shm::{
    Admission, AppFigures, Catalog, Counter, Peers, Permits, Slot, ThreadCounters, ThreadRole, Zone,
};
use chappe_sys::crash;
use chappe_sys::process::{self, ExitReason};
use libtest_mimic::{Arguments, Trial};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};

/// More steps than any operation has: a test that goes on beyond is broken.
const STEPS_MAX: u64 = 1000;

fn main() -> ExitCode {
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let trials = OPERATIONS.iter().map(|&(name, limit, operate)| {
        Trial::test(name.replace(' ', "_"), move || {
            each_step(name, limit, operate);
            Ok(())
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn loopback(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))
}

/// Of all workers together, before and after the master lowers it.
const LIMIT: u32 = 20;
const LOWERED: u32 = 5;
/// One fewer than are held then.
const IN_DEBT: u32 = 4;
const PER_IP: u32 = 4;

/// What the application counts of each connection: a counter, and calls of a code.
const GUESTS: &str = "guests";
const CODE: u16 = 16;

/// A worker as far as it shares something.
struct Sharer {
    slot: Slot,
    permits: Permits,
    peers: Peers,
    counters: ThreadCounters,
    figures: AppFigures,
}

impl Sharer {
    fn new(slot: Slot) -> Self {
        let (permits, peers) = (slot.permits(), slot.peers());
        let counters = slot.counters(ThreadRole::EventLoop);
        let figures = slot.app_figures();
        Self { slot, permits, peers, counters, figures }
    }

    fn accept(&mut self, address: IpAddr) {
        assert_eq!(self.peers.admit(address, PER_IP), Admission::Counted);
        assert!(self.permits.try_take());
        self.counters.add(Counter::ConnectionsAccepted, 1);
        self.figures.counter(GUESTS).expect("named").add(1);
        self.figures.called(self.figures.catalog().row_of(CODE), 1);
    }
}

/// What a worker may be doing when it dies, and the limit that the master sets before.
type Operation = (&'static str, u32, fn(&mut Sharer));

const OPERATIONS: &[Operation] = &[
    ("take a permit", LIMIT, |worker| assert!(worker.permits.try_take())),
    ("take none", LOWERED, |worker| assert!(!worker.permits.try_take())),
    ("give a permit back", LIMIT, |worker| assert!(worker.permits.give_back())),
    ("pay debt", IN_DEBT, |worker| assert!(!worker.permits.give_back())),
    ("count an address", LIMIT, |worker| {
        assert_eq!(worker.peers.admit(loopback(9), PER_IP), Admission::Counted);
    }),
    ("count and take back", LIMIT, |worker| {
        assert_eq!(worker.peers.admit(loopback(1), PER_IP), Admission::Refused);
    }),
    ("give an address back", LIMIT, |worker| worker.peers.give_back(loopback(1))),
    ("give the last one back", LIMIT, |worker| worker.peers.give_back(loopback(2))),
    ("be ready", LIMIT, |worker| worker.slot.mark_ready()),
    ("serve", LIMIT, |worker| worker.slot.mark_serving()),
    ("drain", LIMIT, |worker| worker.slot.mark_draining()),
];

fn each_step(name: &str, limit: u32, operate: fn(&mut Sharer)) {
    let nth = (1..STEPS_MAX).find(|&nth| !dies_at(nth, name, limit, operate));
    let steps = nth.expect("an end") - 1;
    println!("{name}: killed at each of {steps} steps");
    assert!(steps >= 2, "{name}");
}

/// Has a worker die at its `nth` step, and looks at what is left. False if it has
/// fewer steps.
fn dies_at(nth: u64, name: &str, limit: u32, operate: fn(&mut Sharer)) -> bool {
    let catalog = Catalog::new(vec![GUESTS.to_owned()], vec![CODE]);
    let zone = Zone::for_application(LIMIT, catalog).expect("zone");
    zone.provide_peer_tables(2).expect("tables of addresses");
    let slot = |number| zone.claim_slot(number, 1).expect("a slot");
    let mut living = Sharer::new(slot(0));
    (0..2).for_each(|_| living.accept(loopback(1)));
    let dying = slot(1);
    let pid = process::fork_worker(|_| {
        let mut worker = Sharer::new(dying.clone());
        [1, 1, 2].into_iter().for_each(|last| worker.accept(loopback(last)));
        zone.worker_ready().post();
        worker.slot.send_semaphore().wait();
        crash::arm(nth);
        operate(&mut worker);
        ExitReason::Stopped
    })
    .expect("fork");
    let deadline = Instant::now() + Duration::from_secs(20);
    assert!(zone.worker_ready().wait_until(deadline));
    zone.set_limit(limit);
    dying.send_semaphore().post();
    let status = waitpid(pid, None).expect("our worker");
    let died = matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _));
    assert!(died || status == WaitStatus::Exited(pid, 0), "{name} at {nth}: {status:?}");
    assert_all_returned(&zone, &dying, &mut living, limit, &format!("{name} at {nth}"));
    died
}

fn assert_all_returned(zone: &Arc<Zone>, dead: &Slot, living: &mut Sharer, limit: u32, what: &str) {
    let accepted = || zone.totals().expect("quiet").get(Counter::ConnectionsAccepted);
    for _ in 0..2 {
        assert_eq!(accepted(), 5, "{what}");
        let figures = zone.figures().expect("quiet");
        let calls = zone.code_reports(&figures)[0].values.calls;
        assert_eq!((figures.counters(), calls), (&[5][..], 5), "{what}");
        zone.free(dead);
    }
    let lost = zone.settle().expect("nobody else is inside");
    assert!((2..=4).contains(&lost), "{what}: {lost}");
    assert_eq!(zone.settle(), Some(0), "{what}: twice");
    let free = || zone.free_permits();
    assert_eq!((free(), zone.debt()), (limit - 2, 0), "{what}");
    for (last, count) in [(1, 2), (2, 0), (9, 0)] {
        assert_eq!(zone.connections_of(loopback(last)), count, "{what}: 127.0.0.{last}");
    }
    // A process that lives on has all there is, and no more.
    for nth in 0..=PER_IP - 2 {
        let room = if nth < PER_IP - 2 { Admission::Counted } else { Admission::Refused };
        assert_eq!(living.peers.admit(loopback(1), PER_IP), room, "{what}");
    }
    for nth in 0..=limit - 2 {
        assert_eq!(living.permits.try_take(), nth < limit - 2, "{what}");
    }
    while living.permits.held() > 0 {
        living.permits.give_back();
    }
    assert_eq!(free(), limit, "{what}");
}
