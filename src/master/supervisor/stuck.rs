//! Workers whose event loop makes no progress: logged, with where each of their
//! threads is, and replaced. Off unless `worker_stuck_timeout` is set.
//!
//! An event loop says in its slot when it came round last, and by when it comes round
//! again at the latest. The master looks four times in that time-out: a worker counts
//! as stuck when it is that long overdue, and was seen so at four looks in a row
//! without any progress. Without the second rule a machine whose processes were all
//! stopped for a while (a container that was paused) would see all its workers killed.
//!
//! In the master's loop, like everything of the master; it reads `/proc` and waits
//! for nothing.

use std::fs;
use std::time::Duration;

use nix::unistd::Pid;

/// How often a worker is looked at within the time-out.
const LOOKS: u32 = 4;
/// How many threads are logged.
const THREADS_MAX: usize = 16;
/// How many places of a thread's kernel stack are logged, from the innermost on.
const FRAMES_MAX: usize = 6;

/// How long a worker has made no progress, as far as the master has seen.
#[derive(Debug, Default)]
pub(super) struct Stall {
    /// The heartbeat at the last look.
    seen_ms: u64,
    /// Looks in a row at which it was overdue and the same.
    looks: u32,
    /// It was logged and killed.
    is_over: bool,
}

impl Stall {
    /// One look. True, once, if the worker is stuck.
    pub(super) fn check(
        &mut self,
        (last_ms, wakes_by_ms): (u64, u64),
        now_ms: u64,
        limit_ms: u64,
    ) -> bool {
        let due_ms = last_ms.max(wakes_by_ms);
        // Without a heartbeat it has not begun: worker_ready_timeout bounds that.
        let is_overdue = last_ms > 0 && now_ms > due_ms && last_ms == self.seen_ms;
        self.looks = if is_overdue { self.looks.saturating_add(1) } else { 0 };
        self.seen_ms = last_ms;
        let is_stuck = self.looks >= LOOKS && now_ms - due_ms >= limit_ms && !self.is_over;
        self.is_over |= is_stuck;
        is_stuck
    }
}

/// How long the master waits between two looks at all workers.
pub(super) fn pause(limit: Duration) -> Duration {
    (limit / LOOKS).max(Duration::from_millis(1))
}

/// Logs that a worker is stuck, and where its threads are.
pub(super) fn report(number: u16, pid: Pid, since_ms: u64, connections: u32) {
    log::error!(
        target: "worker.stuck", "worker is stuck, killing it (worker_stuck_timeout) worker={number} pid={pid} \
         no_progress_ms={since_ms} connections={connections}",
    );
    let threads = threads_of(pid);
    for thread in threads.iter().take(THREADS_MAX) {
        log::error!(target: "worker.stuck_thread", "worker={number} pid={pid} {thread}");
    }
    if threads.len() > THREADS_MAX {
        log::error!(target: "worker.stuck_thread", "worker={number} and {} threads more", threads.len() - THREADS_MAX);
    }
}

/// Where each thread of a process is, as far as we may read it.
fn threads_of(pid: Pid) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut threads: Vec<u32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    threads.sort_unstable();
    threads.into_iter().map(|thread| thread_at(pid, thread)).collect()
}

fn thread_at(pid: Pid, thread: u32) -> String {
    let read = |file: &str| {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/{file}"));
        text.ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    // `123 (name) S 1 …`; the name may hold anything.
    let state = read("stat").and_then(|stat| {
        let (_, rest) = stat.rsplit_once(')')?;
        rest.split_whitespace().next().map(str::to_owned)
    });
    // The number of the call, then its arguments; `running` if it is in none.
    let call = read("syscall").and_then(|call| Some(call.split_whitespace().next()?.to_owned()));
    let stack = read("stack").map(|stack| {
        // `[<0>] do_epoll_wait+0x77/0x80` a line.
        let frames = stack.lines().filter_map(|line| line.split_whitespace().nth(1));
        let names = frames.map(|frame| frame.split('+').next().unwrap_or(frame));
        names.take(FRAMES_MAX).collect::<Vec<_>>().join("<")
    });
    format!(
        "thread={thread} name={} state={} wchan={} syscall={} stack={}",
        or_dash(read("comm")),
        or_dash(state),
        or_dash(read("wchan")),
        or_dash(call),
        or_dash(stack),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 400;

    #[test]
    fn a_worker_is_stuck_when_it_is_overdue_for_so_long_and_was_seen_so() {
        let mut stall = Stall::default();
        let looks = |stall: &mut Stall, at: &[u64]| -> Vec<bool> {
            at.iter().map(|&now| stall.check((1000, 2000), now, LIMIT)).collect()
        };
        // Asleep until 2000, and overdue from then on.
        assert!(!looks(&mut stall, &[1100, 1500, 1999, 2000]).contains(&true));
        assert_eq!(looks(&mut stall, &[2100, 2200, 2300, 2399]), [false; 4]);
        assert_eq!(looks(&mut stall, &[2400, 2500]), [true, false], "reported once");
    }

    #[test]
    fn progress_starts_the_time_again() {
        let mut stall = Stall::default();
        // Overdue at three looks of four, again and again.
        for look in 1..400 {
            let last = look / 4 * 4000;
            assert!(!stall.check((last.max(1), 0), look * 1000, LIMIT), "{look}");
        }
    }

    #[test]
    fn who_was_stopped_together_with_the_master_is_given_time() {
        let mut stall = Stall::default();
        assert!(!stall.check((1000, 1010), 1005, LIMIT));
        // An hour later, both go on.
        assert!(!stall.check((1000, 1010), 3_601_000, LIMIT));
        assert!(!stall.check((3_601_001, 3_602_000), 3_601_100, LIMIT));
    }

    #[test]
    fn who_has_not_begun_is_not_stuck() {
        let mut stall = Stall::default();
        assert!((1..100).all(|look| !stall.check((0, 0), look * 100, LIMIT)));
    }

    #[test]
    fn our_own_threads_can_be_told() {
        let threads = threads_of(nix::unistd::getpid());
        assert!(!threads.is_empty());
        for thread in threads {
            let fields: Vec<_> =
                thread.split(' ').filter_map(|field| field.split('=').next()).collect();
            for name in ["thread", "name", "state", "wchan", "syscall", "stack"] {
                assert!(fields.contains(&name), "{thread}");
            }
        }
    }
}
