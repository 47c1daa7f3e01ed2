//! What processes of this machine have used, out of /proc: time on a CPU, context
//! switches, memory. A process that is gone, or that may not be looked at, has no figures.

use std::fs;

/// Of one process, or of some together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Nanoseconds on a CPU, of all threads that live.
    pub cpu_ns: u64,
    /// Times that a thread went to sleep.
    pub voluntary_switches: u64,
    /// Times that a thread had to make room.
    pub involuntary_switches: u64,
    /// Memory that is nobody else's and in no file, in bytes.
    pub anonymous_bytes: u64,
}

impl Usage {
    /// Of all of these together; `None` if one of them cannot be read, or there is none.
    #[must_use]
    pub fn of(pids: &[i32]) -> Option<Self> {
        let mut sum = Self::default();
        for pid in pids {
            sum.add(Self::of_process(*pid)?);
        }
        (!pids.is_empty()).then_some(sum)
    }

    /// What was used since an earlier look. Memory is no such thing, and stays.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns.saturating_sub(before.cpu_ns),
            voluntary_switches: self.voluntary_switches.saturating_sub(before.voluntary_switches),
            involuntary_switches: self
                .involuntary_switches
                .saturating_sub(before.involuntary_switches),
            anonymous_bytes: self.anonymous_bytes,
        }
    }

    fn of_process(pid: i32) -> Option<Self> {
        let mut sum = Self::default();
        for task in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
            let task = task.ok()?.path();
            // A thread may end between the listing and this.
            let Ok(schedstat) = fs::read_to_string(task.join("schedstat")) else { continue };
            let Ok(status) = fs::read_to_string(task.join("status")) else { continue };
            sum.cpu_ns += schedstat.split_whitespace().next()?.parse::<u64>().ok()?;
            sum.voluntary_switches += field(&status, "voluntary_ctxt_switches")?;
            sum.involuntary_switches += field(&status, "nonvoluntary_ctxt_switches")?;
            // Each thread tells the memory of its process.
            sum.anonymous_bytes = field(&status, "RssAnon")? * 1024;
        }
        Some(sum)
    }

    fn add(&mut self, other: Self) {
        self.cpu_ns += other.cpu_ns;
        self.voluntary_switches += other.voluntary_switches;
        self.involuntary_switches += other.involuntary_switches;
        self.anonymous_bytes += other.anonymous_bytes;
    }
}

/// The number behind `name:`.
fn field(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let status = "RssAnon:\t     212 kB\nvoluntary_ctxt_switches:\t7\n\
            nonvoluntary_ctxt_switches:\t3\n";
        assert_eq!(field(status, "RssAnon"), Some(212));
        assert_eq!(field(status, "voluntary_ctxt_switches"), Some(7));
        assert_eq!(field(status, "nonvoluntary_ctxt_switches"), Some(3));
        assert_eq!(field(status, "Rss"), None);
    }

    #[test]
    fn this_process_has_figures_and_they_grow() {
        let own = i32::try_from(std::process::id()).unwrap();
        let before = Usage::of(&[own]).unwrap();
        assert!(before.anonymous_bytes > 0);
        let mut sum = 0_u64;
        while Usage::of(&[own]).unwrap().since(before).cpu_ns == 0 {
            sum = sum.wrapping_mul(3).wrapping_add(1);
        }
        assert!(sum != 7);
    }

    #[test]
    fn nobody_has_no_figures() {
        assert_eq!(Usage::of(&[]), None);
        assert_eq!(Usage::of(&[i32::MAX]), None);
    }
}
