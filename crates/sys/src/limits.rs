//! What a process may use: descriptors and CPUs.

use std::io;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

/// The limit of open descriptors that [`set_descriptors`] sets: `wanted`, or for 0 the
/// hard limit, or that one too where this process may not go beyond it.
///
/// Whether it may is tried out, for a moment: root alone does not tell. A container's
/// root may lack the right, and nobody may have more than `fs.nr_open`.
///
/// # Errors
/// None that Linux reports.
pub fn target_descriptors(wanted: u64) -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if wanted == 0 {
        return Ok(hard);
    }
    if wanted <= hard {
        return Ok(wanted);
    }
    if setrlimit(Resource::RLIMIT_NOFILE, soft, wanted).is_err() {
        return Ok(hard);
    }
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    Ok(wanted)
}

/// The limit of open descriptors in force.
///
/// # Errors
/// None that Linux reports.
pub fn descriptors() -> io::Result<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(soft)
}

/// Sets the limit of open descriptors of this process as [`target_descriptors`] says.
///
/// # Errors
/// None that Linux reports.
pub fn set_descriptors(wanted: u64) -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let target = target_descriptors(wanted)?;
    if target != soft {
        setrlimit(Resource::RLIMIT_NOFILE, target, hard.max(target))?;
    }
    Ok(())
}

/// The CPUs on which this process may run, by number.
///
/// # Errors
/// `EINVAL` on a machine with more than 1024 CPUs.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu) == Ok(true)).collect())
}

/// Binds this thread, and the threads that it starts later, to one CPU.
///
/// # Errors
/// `EINVAL` if there is no such CPU, or none that this process may use.
pub fn bind_to_cpu(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu).map_err(|_: Errno| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// The CPU of the worker of this number: N modulo the CPUs that this process may use.
///
/// # Errors
/// Those of [`allowed_cpus`].
pub fn cpu_of(number: u16) -> io::Result<usize> {
    let cpus = allowed_cpus()?;
    let nth = usize::from(number).checked_rem(cpus.len()).unwrap_or(0);
    Ok(*cpus.get(nth).ok_or(io::ErrorKind::NotFound)?)
}

/// Makes this thread, and those that it starts later, one of `SCHED_BATCH`, sched(7):
/// where it is woken, it does not interrupt what runs.
///
/// # Errors
/// Those of sched_setscheduler(2).
pub fn schedule_as_batch() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: sched_setscheduler reads one sched_param at the pointer, which is to a live
    // local; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_can_be_bound_to_a_cpu_that_it_may_use() {
        // Affinity is a thread's: this one ends with the test.
        std::thread::spawn(|| {
            let cpus = allowed_cpus().unwrap();
            let last = *cpus.last().unwrap();
            bind_to_cpu(last).unwrap();
            assert_eq!(allowed_cpus().unwrap(), [last]);
            assert!(bind_to_cpu(usize::MAX).is_err());
            assert_eq!(cpu_of(7).unwrap(), last);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_thread_can_be_scheduled_as_batch() {
        std::thread::spawn(|| {
            schedule_as_batch().unwrap();
            // SAFETY: sched_getscheduler takes no pointer; 0 is the calling thread.
            assert_eq!(unsafe { libc::sched_getscheduler(0) }, libc::SCHED_BATCH);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn nothing_wanted_is_the_hard_limit() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(target_descriptors(0).unwrap(), hard);
        assert_eq!(target_descriptors(300).unwrap(), 300);
    }

    #[test]
    fn what_nobody_may_have_is_the_hard_limit_and_asking_changes_nothing() {
        let before = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // More than fs.nr_open can be.
        assert_eq!(target_descriptors(u64::MAX - 1).unwrap(), before.1);
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), before);
    }
}
