//! What a call takes of its thread's time, by its own doing.

use nix::sys::resource::{UsageWho, getrusage};
use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// Started before a call. A microsecond or so each time, so not for every call.
#[derive(Debug)]
pub(super) struct Stopwatch {
    began: Instant,
    cpu_time: Duration,
    waits: i64,
}

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self { waits: waits(), began: Instant::now(), cpu_time: cpu_time() }
    }

    /// All the time since, if the thread has waited for something; else what it has
    /// computed. A thread that had to make room for another program, or a machine that
    /// stood still, makes every call look long and is not its doing.
    pub(super) fn stop(self) -> Duration {
        let cpu_time = cpu_time().saturating_sub(self.cpu_time);
        let elapsed = self.began.elapsed();
        if waits() > self.waits { elapsed } else { cpu_time }
    }
}

/// How often this thread gave the CPU away itself, because it had to wait
/// (getrusage(2), `ru_nvcsw`).
fn waits() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.voluntary_context_switches())
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_call_that_waits_takes_all_the_time() {
        let (watch, began) = (Stopwatch::start(), Instant::now());
        while began.elapsed() < 20 * MS {
            std::thread::park_timeout(20 * MS - began.elapsed().min(20 * MS));
        }
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

    /// Hands the CPU to threads that do nothing else, which is no wait.
    #[test]
    fn a_call_that_is_displaced_does_not_take_what_others_do() {
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 * std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            // Until it was displaced for long: what it took is what it has computed.
            let (mut displaced, deadline) = (false, Instant::now() + Duration::from_secs(30));
            while !displaced && Instant::now() < deadline {
                let (watch, began, before) = (Stopwatch::start(), Instant::now(), cpu_time());
                while cpu_time() < before + MS {
                    std::hint::spin_loop();
                }
                let (elapsed, took) = (began.elapsed(), watch.stop());
                displaced = elapsed > 3 * MS && took < elapsed / 2;
            }
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(displaced, "it never showed that it was displaced");
        });
    }
}
