//! What a call takes of its thread's time, by its own doing.

use nix::sys::resource::{UsageWho, getrusage};
use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// Started before a call. Four system calls in all, so not for every one.
#[derive(Debug)]
pub struct Stopwatch {
    began: Instant,
    cpu_time: Duration,
    waits: i64,
}

impl Stopwatch {
    /// From now on, of this thread.
    #[must_use]
    pub fn start() -> Self {
        Self { waits: waits(), began: Instant::now(), cpu_time: cpu_time() }
    }

    /// All the time since, if the thread has waited for anything in that time; else what it
    /// has computed: a thread that had to make room for another program takes long and
    /// cannot help it. Time that a hypervisor took counts as computed where the kernel is
    /// not informed of it.
    #[must_use]
    pub fn stop(self) -> Duration {
        let cpu_time = cpu_time().saturating_sub(self.cpu_time);
        let elapsed = self.began.elapsed();
        if waits() > self.waits { elapsed } else { cpu_time }
    }
}

/// How often this thread gave the CPU away because it had to wait (getrusage(2),
/// `ru_nvcsw`).
fn waits() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.voluntary_context_switches())
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
    use nix::unistd::Pid;
    use std::sync::atomic::{AtomicBool, Ordering};

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_call_that_waits_takes_all_the_time() {
        let nobody_posts = crate::Semaphore::new(0).expect("a semaphore");
        let watch = Stopwatch::start();
        assert!(!nobody_posts.wait_until(Instant::now() + 20 * MS));
        assert!(watch.stop() >= 20 * MS);
    }

    #[test]
    fn a_call_that_computes_takes_what_it_has_computed() {
        let (watch, before) = (Stopwatch::start(), cpu_time());
        while cpu_time() < before + 5 * MS {
            std::hint::spin_loop();
        }
        assert!(watch.stop() >= 5 * MS);
    }

    /// Of the calling thread, to the first CPU that it may use.
    fn stay_on_one_cpu() {
        let may_use = sched_getaffinity(Pid::from_raw(0)).expect("of this thread");
        let first = (0..CpuSet::count()).find(|&cpu| may_use.is_set(cpu).unwrap_or(false));
        let mut one = CpuSet::new();
        one.set(first.expect("it runs somewhere")).expect("it was set there");
        sched_setaffinity(Pid::from_raw(0), &one).expect("no more than it had");
    }

    /// Two threads that want one CPU displace each other, which is no wait.
    #[test]
    fn a_call_that_is_displaced_does_not_take_what_the_other_does() {
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                stay_on_one_cpu();
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            let displaced = scope.spawn(|| {
                stay_on_one_cpu();
                let deadline = Instant::now() + Duration::from_secs(30);
                let was_displaced = || {
                    let (watch, began, before) = (Stopwatch::start(), Instant::now(), cpu_time());
                    while cpu_time() < before + MS {
                        std::hint::spin_loop();
                    }
                    let (elapsed, took) = (began.elapsed(), watch.stop());
                    elapsed > 3 * MS && took < elapsed / 2
                };
                std::iter::repeat_with(was_displaced)
                    .take_while(|_| Instant::now() < deadline)
                    .any(|displaced| displaced)
            });
            let displaced = displaced.join();
            is_over.store(true, Ordering::Relaxed);
            assert!(displaced.expect("no panic"), "it never showed that it was displaced");
        });
    }
}
