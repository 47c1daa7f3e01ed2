//! What a POSIX semaphore does, part by part: the program to docs/SEMAPHORES.md.
//!
//! ```sh
//! cargo run --example semaphores
//! ```
//!
//! Each line that it prints was checked just before; the first one that does not hold
//! ends it with exit code 1. Parts 1 to 8 are of one process and its threads, the others
//! fork. A process with threads must not fork, so each part joins what it started.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use chappe_shm::{Slot, Zone};
use chappe_sys::process::{self, ExitReason};
use chappe_sys::{Semaphore, SemaphorePlace, SharedMapping};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, alarm, gettid};
use parking_lot::{Condvar, Mutex};
use signal_hook::consts::{SIGALRM, SIGUSR1};
use signal_hook::flag;

/// A title and what shows it.
type Part = (&'static str, fn() -> Result<()>);

const PARTS: &[Part] = &[
    ("1. The five operations", five_operations),
    ("2. A wait that sleeps", a_wait_that_sleeps),
    ("3. Mutex and semaphore", mutex_and_semaphore),
    ("4. Order", order),
    ("5. Rendezvous", rendezvous),
    ("6. Counting permits", counting_permits),
    ("7. A queue: one mutex, two semaphores", a_queue),
    ("8. What can fail", what_can_fail),
    ("9. Between processes", between_processes),
    ("10. A signal is not a permit", a_signal_is_not_a_permit),
    ("11. A killed process gives nothing back", a_killed_process_gives_nothing_back),
    ("12. How this server gives permits back", how_this_server_gives_permits_back),
];

/// The most permits a semaphore can have: `SEM_VALUE_MAX` of limits.h.
const PERMITS_MAX: u32 = Semaphore::VALUE_MAX;

/// How long a process waits for another one. What that one does not do, because it was
/// killed or has failed, must not keep us forever.
const PATIENCE: Duration = Duration::from_secs(30);

/// Visible to the test that runs this file.
pub(crate) fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("semaphores: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    // A wait that nobody ends would be a claim that does not hold: exit code 1, too.
    flag::register_conditional_shutdown(SIGALRM, 1, Arc::new(AtomicBool::new(true)))?;
    alarm::set(120);
    for (title, part) in PARTS {
        println!("== {title}");
        part()?;
        println!();
    }
    Ok(())
}

/// Prints a statement, if it holds. Otherwise it ends the process, from any thread.
fn show(holds: bool, statement: &str) {
    if !holds {
        eprintln!("semaphores: this does not hold: {statement}");
        process::exit_now(ExitReason::Failed);
    }
    println!("{statement}");
}

// --- one process ---

fn five_operations() -> Result<()> {
    let semaphore = Semaphore::new(2)?;
    show(semaphore.value() == 2, "create: 2 permits");
    semaphore.wait();
    show(semaphore.value() == 1, "wait: took one, 1 left");
    show(semaphore.try_wait(), "try-wait: took one");
    show(!semaphore.try_wait(), "try-wait: no permit is left, and it returns at once");
    semaphore.post();
    show(semaphore.value() == 1, "post: 1 permit, although no thread waits for it");

    let last = semaphore.clone();
    drop(semaphore);
    show(last.try_wait(), "one handle of two is dropped: the other still works");
    // Destroy: with the last handle, so that nobody can be waiting.
    drop(last);
    Ok(())
}

fn a_wait_that_sleeps() -> Result<()> {
    let letterbox = AtomicUsize::new(0);
    let flag_up = Semaphore::new(0)?;
    let sleeper = AtomicI32::new(0);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            sleeper.store(gettid().as_raw(), Ordering::Relaxed);
            flag_up.wait();
            letterbox.load(Ordering::Relaxed)
        });
        until("the thread sleeps", || is_asleep(sleeper.load(Ordering::Relaxed)));
        show(flag_up.value() == 0, "0 permits: the thread that waits is asleep");
        letterbox.store(1794, Ordering::Relaxed);
        flag_up.post();
        let read = reader.join().expect("it cannot panic");
        show(read == 1794, "post: it is awake, and sees what was written before the post");
        show(flag_up.value() == 0, "it took the permit with it: 0 again");
    });
    Ok(())
}

fn mutex_and_semaphore() -> Result<()> {
    let guarded = Mutex::new(0_usize);
    in_threads(4, || {
        for _ in 0..10_000 {
            *guarded.lock() += 1;
        }
    });
    show(*guarded.lock() == 40_000, "mutex: 4 threads added 1 to it 10000 times each: 40000");

    // A load and a store, not an atomic addition: two threads at a time would lose counts.
    let (one_at_a_time, count) = (Semaphore::new(1)?, AtomicUsize::new(0));
    in_threads(4, || {
        for _ in 0..10_000 {
            one_at_a_time.wait();
            count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            one_at_a_time.post();
        }
    });
    let counted = count.load(Ordering::Relaxed);
    show(counted == 40_000, "semaphore of one permit: the same, 40000");

    let held = guarded.lock();
    in_threads(1, || {
        show(guarded.try_lock().is_none(), "mutex: locked here, so no other thread gets it");
    });
    drop(held);

    one_at_a_time.wait();
    in_threads(1, || one_at_a_time.post());
    show(one_at_a_time.try_wait(), "semaphore: taken here, given back by another thread");
    one_at_a_time.post();
    one_at_a_time.post();
    show(one_at_a_time.value() == 2, "one post too many: now two at a time, and no error");

    show(!Condvar::new().notify_one(), "condition variable: a notify without a sleeper is lost");
    let bell = Semaphore::new(0)?;
    in_threads(3, || bell.post());
    for _ in 0..3 {
        bell.wait();
    }
    show(bell.value() == 0, "semaphore: 3 posts without a sleeper, then 3 waits: none was lost");
    Ok(())
}

fn order() -> Result<()> {
    // Permit for the first alone; each one lets its successor through.
    let doors = [Semaphore::new(1)?, Semaphore::new(0)?, Semaphore::new(0)?, Semaphore::new(0)?];
    let (doors, went) = (&doors, &Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for turn in [2, 1, 0] {
            scope.spawn(move || {
                doors[turn].wait();
                went.lock().push(turn + 1);
                doors[turn + 1].post();
            });
        }
        doors[3].wait();
    });
    show(*went.lock() == [1, 2, 3], "started in the order 3, 2, 1; ran in the order 1, 2, 3");
    Ok(())
}

fn rendezvous() -> Result<()> {
    const MEETINGS: usize = 1000;
    let came = [Semaphore::new(0)?, Semaphore::new(0)?];
    let arrivals = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let meet = |me: usize| {
        let other = 1 - me;
        for meeting in 1..=MEETINGS {
            arrivals[me].store(meeting, Ordering::Relaxed);
            came[me].post();
            came[other].wait();
            if arrivals[other].load(Ordering::Relaxed) < meeting {
                show(false, "both have come before one goes on");
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| meet(1));
        meet(0);
    });
    show(came[0].value() == 0, "1000 meetings of two: neither went on before both had arrived");
    Ok(())
}

fn counting_permits() -> Result<()> {
    let seats = Semaphore::new(3)?;
    let (seated, leave) = (Semaphore::new(0)?, Semaphore::new(0)?);
    let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let guest = || {
        seats.wait();
        most.fetch_max(inside.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        seated.post();
        leave.wait();
        inside.fetch_sub(1, Ordering::Relaxed);
        seats.post();
    };
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(guest);
        }
        for _ in 0..3 {
            seated.wait();
        }
        show(seats.value() == 0, "3 permits, 8 threads: 3 are inside, 0 permits");
        for _ in 0..8 {
            leave.post();
        }
    });
    let most = most.into_inner();
    show(most == 3, "all 8 were inside, never more than 3 at a time");
    show(seats.value() == 3, "all permits are back: 3");
    Ok(())
}

/// At most as many items as `free` had permits. The mutex guards the list, for
/// nanoseconds; a semaphore counts what a thread may have to sleep for.
struct Queue {
    items: Mutex<VecDeque<usize>>,
    free: Semaphore,
    filled: Semaphore,
    longest: AtomicUsize,
}

impl Queue {
    fn put(&self, item: usize) {
        self.free.wait();
        let mut items = self.items.lock();
        items.push_back(item);
        self.longest.fetch_max(items.len(), Ordering::Relaxed);
        drop(items);
        self.filled.post();
    }

    /// `None` is for a permit without an item: stop.
    fn take(&self) -> Option<usize> {
        self.filled.wait();
        let item = self.items.lock().pop_front();
        self.free.post();
        item
    }

    fn stop(&self) {
        self.filled.post();
    }
}

fn a_queue() -> Result<()> {
    const ITEMS: usize = 10_000;
    let queue = Queue {
        items: Mutex::new(VecDeque::new()),
        free: Semaphore::new(4)?,
        filled: Semaphore::new(0)?,
        longest: AtomicUsize::new(0),
    };
    let taken = thread::scope(|scope| {
        let consumer = scope.spawn(|| std::iter::from_fn(|| queue.take()).collect::<Vec<_>>());
        for item in 0..ITEMS {
            queue.put(item);
        }
        queue.stop();
        consumer.join().expect("it cannot panic")
    });
    show(taken.into_iter().eq(0..ITEMS), "10000 items through 4 places: all there, in order");
    show(
        queue.longest.into_inner() <= 4,
        "never more than 4 in the queue: the producer had to wait",
    );
    show(queue.items.into_inner().is_empty(), "one post more than items: the consumer has stopped");
    Ok(())
}

fn what_can_fail() -> Result<()> {
    let too_much = Semaphore::new(PERMITS_MAX + 1).map(drop);
    show(is(&too_much, libc::EINVAL), "create with SEM_VALUE_MAX + 1 permits: EINVAL");
    let full = Semaphore::new(PERMITS_MAX)?;
    show(full.checked_post().is_none(), "post at SEM_VALUE_MAX: EOVERFLOW, here `None`");
    show(full.value() == PERMITS_MAX, "and nothing has changed: 2147483647 permits");

    let empty = Semaphore::new(0)?;
    show(!empty.try_wait(), "try-wait without a permit: EAGAIN, here `false`");
    let now = Instant::now();
    show(!empty.wait_until(now), "wait until a moment in the past: ETIMEDOUT, here `false`");
    empty.post();
    show(empty.wait_until(now), "the same with a permit there: it is taken, whatever the time");
    Ok(())
}

// --- several processes ---

fn between_processes() -> Result<()> {
    let private = Semaphore::new(0)?;
    let child = fork(|| {
        private.post();
        Ok(true)
    })?;
    show(ended_well(child)?, "pshared = 0: the child has posted");
    show(private.value() == 0, "to its own copy: 0 permits here");

    let [ping, pong] = shared([0, 0])?;
    let child = fork(|| {
        for _ in 0..3 {
            if !ping.wait_until(Instant::now() + PATIENCE) {
                return Ok(false);
            }
            pong.post();
        }
        Ok(true)
    })?;
    for _ in 0..3 {
        ping.post();
        show(pong.wait_until(Instant::now() + PATIENCE), "pshared = 1: ping, and the child's pong");
    }
    show(
        ended_well(child)?,
        "the child has ended; the semaphores are in the mapping, not in the child",
    );
    show(ping.value() + pong.value() == 0, "as many posts as waits: 0 permits");
    Ok(())
}

fn a_signal_is_not_a_permit() -> Result<()> {
    let [about_to_wait, permit] = shared([0, 0])?;
    let child = fork(|| {
        let was_signalled = Arc::new(AtomicBool::new(false));
        flag::register(SIGUSR1, Arc::clone(&was_signalled))?;
        about_to_wait.post();
        let taken = permit.wait_until(Instant::now() + PATIENCE);
        Ok(taken && was_signalled.load(Ordering::Relaxed))
    })?;
    show(about_to_wait.wait_until(Instant::now() + PATIENCE), "the child starts to wait");
    until("the child sleeps", || is_asleep(child.as_raw()));
    kill(child, Signal::SIGUSR1)?;
    until("the signal is delivered", || !is_signal_pending(child) && is_asleep(child.as_raw()));
    let still_there = waitpid(child, Some(WaitPidFlag::WNOHANG))? == WaitStatus::StillAlive;
    show(still_there, "a signal came, its handler ran: the child keeps sleeping");
    permit.post();
    show(ended_well(child)?, "the permit came: the child has it, and has seen the signal");
    Ok(())
}

fn a_killed_process_gives_nothing_back() -> Result<()> {
    let [permits, has_taken, never] = shared([3, 0, 0])?;
    let child = fork(|| {
        let taken = (0..2).all(|_| permits.wait_until(Instant::now() + PATIENCE));
        has_taken.post();
        Ok(never.wait_until(Instant::now() + PATIENCE) && taken)
    })?;
    show(has_taken.wait_until(Instant::now() + PATIENCE), "3 permits; the child took 2");
    until("the child sleeps", || is_asleep(child.as_raw()));
    killed(child)?;
    show(permits.value() == 1, "SIGKILL: still 1 permit; a semaphore has no owner");

    never.post();
    show(never.value() == 1, "it was killed in a wait: it took no permit, the next post is kept");
    Ok(())
}

fn how_this_server_gives_permits_back() -> Result<()> {
    const LIMIT: u32 = 100;
    let zone = Zone::create(LIMIT)?;
    let (slot, child) = worker(&zone, |slot| {
        let mut permits = slot.permits();
        let taken = permits.try_take() && permits.try_take();
        slot.mark_ready();
        Ok(taken && slot.send_semaphore().wait_until(Instant::now() + PATIENCE))
    })?;
    let ready = zone.worker_ready().wait_until(Instant::now() + PATIENCE);
    show(ready, "100 permits; a worker took 2 and noted it in its slot");
    killed(child)?;
    show(zone.free_permits() == 98, "SIGKILL: 98 permits");
    zone.free(&slot);
    show(zone.settle() == Some(2), "the master asks what is missing: 2");
    show(zone.free_permits() == LIMIT, "and gives that many back: 100 permits");

    for _ in 0..25 {
        let workers = [worker(&zone, churn)?, worker(&zone, churn)?];
        for _ in &workers {
            let is_ready = zone.worker_ready().wait_until(Instant::now() + PATIENCE);
            anyhow::ensure!(is_ready, "a worker is not ready");
        }
        for (slot, pid) in workers {
            killed(pid)?;
            zone.free(&slot);
        }
        if zone.settle().is_none() || zone.free_permits() != LIMIT {
            show(false, "all permits come back");
        }
    }
    show(true, "50 workers killed while they took and gave back as fast as they could:");
    show(zone.free_permits() == LIMIT, "100 permits, each time");
    Ok(())
}

/// Takes and gives back until it is killed, at an instant that nobody chose.
fn churn(slot: &Slot) -> io::Result<bool> {
    let mut permits = slot.permits();
    let started = Instant::now();
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
        if started.elapsed() > PATIENCE {
            break;
        }
    }
    Ok(false)
}

// --- what the parts stand on ---

fn in_threads(threads: usize, work: impl Fn() + Sync) {
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(&work);
        }
    });
}

/// Semaphores with `pshared = 1`, in memory that each process forked later has too.
fn shared<const N: usize>(permits: [u32; N]) -> io::Result<[Semaphore; N]> {
    let mapping = SharedMapping::<[SemaphorePlace; N]>::create("semaphores")?;
    for (index, permits) in permits.into_iter().enumerate() {
        mapping.init_semaphore(|places| &places[index], permits)?;
    }
    Ok(std::array::from_fn(|index| mapping.semaphore(|places| &places[index])))
}

/// A child that ends well if `body` says `true`.
fn fork(body: impl FnOnce() -> io::Result<bool>) -> io::Result<Pid> {
    // The kernel may still list a thread that was joined just now.
    until("one thread is left", || process::current_thread_count().is_ok_and(|count| count == 1));
    let child = process::fork_worker(|_forked| match body() {
        Ok(true) => ExitReason::Stopped,
        Ok(false) | Err(_) => ExitReason::Failed,
    })?;
    Ok(child)
}

fn worker(zone: &Arc<Zone>, body: impl FnOnce(&Slot) -> io::Result<bool>) -> Result<(Slot, Pid)> {
    let slot = zone.claim_slot(0, 1).ok_or_else(|| anyhow::anyhow!("no free slot"))?;
    let child = fork(|| body(&slot))?;
    Ok((slot, child))
}

fn ended_well(child: Pid) -> Result<bool> {
    Ok(waitpid(child, None)? == WaitStatus::Exited(child, ExitReason::Stopped.code()))
}

/// SIGKILL: no handler, no destructor, not one instruction more.
fn killed(child: Pid) -> Result<()> {
    kill(child, Signal::SIGKILL)?;
    let status = waitpid(child, None)?;
    anyhow::ensure!(matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{status:?}");
    Ok(())
}

fn is(result: &io::Result<()>, errno: i32) -> bool {
    result.as_ref().is_err_and(|error| error.raw_os_error() == Some(errno))
}

/// Looks until it is so: no semaphore tells what the kernel does with a task.
fn until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        if started.elapsed() > PATIENCE {
            show(false, what);
        }
        thread::yield_now();
    }
}

/// Whether a thread, or a process of one thread, sleeps in the kernel.
fn is_asleep(task: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{task}/stat")).unwrap_or_default();
    // "pid (name) state …", and a name may have blanks and brackets in it.
    stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('S'))
}

fn is_signal_pending(process: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
    pending.is_some_and(|mask| mask.trim().bytes().any(|digit| digit != b'0'))
}
