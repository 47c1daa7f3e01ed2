//! Steps at which a process can be made to die, so that tests can kill it between any
//! two changes of shared memory, one after the other, and not only where chance has it.
//!
//! A normal build has nothing of this: [`step`] is empty. With the feature
//! `crash-steps` a process of the role named in `CHAPPE_CRASH=ROLE:N:FILE` (`worker`,
//! `hub` or `master`) counts its steps from the moment that FILE is there, and kills itself by
//! SIGKILL at the Nth, if it can remove FILE: so one process dies, once. Any thread may
//! call it; it never returns from the last step.

#[cfg(not(feature = "crash-steps"))]
pub use absent::{begin_hub, begin_worker, step};
#[cfg(feature = "crash-steps")]
pub use armed::{arm, begin_hub, begin_worker, step};

#[cfg(not(feature = "crash-steps"))]
mod absent {
    /// A place between two changes of shared memory.
    #[inline(always)]
    pub const fn step(_place: &str) {}

    /// This process is a worker from now on.
    #[inline(always)]
    pub const fn begin_worker() {}

    /// This process is the hub from now on.
    #[inline(always)]
    pub const fn begin_hub() {}
}

#[cfg(feature = "crash-steps")]
mod armed {
    use std::io::Write;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

    use nix::sys::signal::{Signal, raise};

    /// Steps until the end; 0: not armed.
    static LEFT: AtomicU64 = AtomicU64::new(0);
    static ROLE: AtomicU8 = AtomicU8::new(MASTER);

    const MASTER: u8 = 0;
    const WORKER: u8 = 1;
    const HUB: u8 = 2;

    struct Plan {
        role: u8,
        nth: u64,
        file: String,
    }

    /// What the environment asks for.
    fn plan() -> Option<&'static Plan> {
        static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
        let read = || {
            let text = std::env::var("CHAPPE_CRASH").ok()?;
            let mut parts = text.splitn(3, ':');
            let role = match parts.next()? {
                "worker" => WORKER,
                "hub" => HUB,
                _ => MASTER,
            };
            let nth = parts.next()?.parse().ok()?;
            Some(Plan { role, nth, file: parts.next()?.to_owned() })
        };
        PLAN.get_or_init(read).as_ref()
    }

    /// This process is a worker from now on, and begins to count from 0.
    pub fn begin_worker() {
        begin(WORKER);
    }

    /// This process is the hub from now on, and begins to count from 0.
    pub fn begin_hub() {
        begin(HUB);
    }

    fn begin(role: u8) {
        ROLE.store(role, Ordering::Relaxed);
        LEFT.store(0, Ordering::Relaxed);
    }

    /// This process dies at its `nth` step from now on, the first one is 1.
    pub fn arm(nth: u64) {
        LEFT.store(nth, Ordering::Relaxed);
    }

    /// A place between two changes of shared memory.
    pub fn step(place: &str) {
        let plan = plan().filter(|plan| plan.role == ROLE.load(Ordering::Relaxed));
        if let Some(plan) = plan
            && LEFT.load(Ordering::Relaxed) == 0
            && std::fs::exists(&plan.file).unwrap_or(false)
        {
            arm(plan.nth);
        }
        let left = LEFT.load(Ordering::Relaxed);
        if left == 0 {
            return;
        }
        LEFT.store(left - 1, Ordering::Relaxed);
        if left == 1 && plan.is_none_or(|plan| std::fs::remove_file(&plan.file).is_ok()) {
            let pid = std::process::id();
            let _nobody_may_listen = writeln!(std::io::stderr(), "crash step {place} pid={pid}");
            let _ = raise(Signal::SIGKILL);
        }
    }
}
