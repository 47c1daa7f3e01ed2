//! Log files: opened anew when they were moved, and moved when they are too big.
//!
//! The master opens all of them, its own and the workers', and hands the workers
//! theirs: a worker that has dropped its rights may not. So every process changes
//! over in the same way, whoever moved the files.

use chappe_sys::clock::Moment;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Master;
use crate::logging::{self, Role};
use crate::throttle::Throttle;

/// How often the logs' sizes are looked at.
const ROTATION_TICK: Duration = Duration::from_secs(1);

/// How many failures are told in ten seconds.
const WARNINGS_TOLD: u32 = 5;

/// When the logs are looked at next, and what is left to do.
#[derive(Debug)]
pub(super) struct Rotation {
    next: Instant,
    /// A log could not be opened after its file was moved away.
    retry: bool,
    /// What fails at one tick fails at the next one too.
    warnings: Throttle,
}

/// A log that was just opened, on its way to the workers with this number.
#[derive(Debug)]
pub(super) struct FreshLog {
    pub(super) number: u16,
    /// It is in the directory of a next generation, which is another one.
    pub(super) is_elsewhere: bool,
    pub(super) file: Arc<File>,
}

impl Rotation {
    pub(super) fn new(now: Instant) -> Self {
        let warnings = Throttle::new(WARNINGS_TOLD);
        Self { next: now + ROTATION_TICK, retry: false, warnings }
    }
}

impl Master<'_> {
    /// Opens every log anew. One that cannot be opened stays the old one. Returns the
    /// number under which a client can wait until all processes have changed over.
    pub(super) fn reopen_logs(&mut self, by: &str) -> u64 {
        let directory = self.config.log.directory.clone();
        let mut failed = self.reopen_next_logs(&directory);
        match logging::open(&directory, Role::Master) {
            Ok(file) => logging::swap(file),
            Err(error) => failed.push(error.to_string()),
        }
        for number in self.log_numbers() {
            match logging::open(&directory, Role::Worker(number)) {
                Ok(file) => {
                    let place = usize::from(number);
                    // The next generation's too, or it would go on in the moved file.
                    let next = self.candidate.as_mut();
                    let next = next.filter(|next| next.config.log.directory == directory);
                    let next = next.and_then(|next| next.worker_logs.get_mut(place));
                    for log in self.worker_logs.get_mut(place).into_iter().chain(next) {
                        *log = Arc::clone(&file);
                    }
                    self.fresh_logs.push(FreshLog { number, is_elsewhere: false, file });
                }
                Err(error) => failed.push(error.to_string()),
            }
        }
        for error in &failed {
            if let Some(held) = self.rotation.warnings.admit(Moment::now()) {
                log::error!("the old log stays in use: {error}{held}");
            }
        }
        self.rotation.retry = !failed.is_empty();
        log::info!("logs reopened by={by}");
        self.order_reopen(failed)
    }

    /// Opens the logs of a next generation anew that has them in another directory: they
    /// were open before its workers are ready, and may have been moved since. Returns
    /// what can't be opened.
    fn reopen_next_logs(&mut self, directory: &Path) -> Vec<String> {
        let mut failed = Vec::new();
        let Some(next) = &mut self.candidate else { return failed };
        let elsewhere = next.config.log.directory.clone();
        if elsewhere == *directory {
            return failed;
        }
        match logging::open(&elsewhere, Role::Master) {
            Ok(file) => next.master_log = Some(file),
            Err(error) => failed.push(error.to_string()),
        }
        for (number, log) in (0..=u16::MAX).zip(&mut next.worker_logs) {
            match logging::open(&elsewhere, Role::Worker(number)) {
                Ok(file) => {
                    *log = Arc::clone(&file);
                    self.fresh_logs.push(FreshLog { number, is_elsewhere: true, file });
                }
                Err(error) => failed.push(error.to_string()),
            }
        }
        failed
    }

    /// The numbers of all workers that have a log: those to come, and draining ones
    /// whose number will have no successor.
    fn log_numbers(&self) -> Vec<u16> {
        let coming = (0..=u16::MAX).take(self.worker_logs.len());
        let mut numbers: Vec<u16> =
            coming.chain(self.workers.iter().map(|worker| worker.number)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// When [`Master::rotate_logs`] wants to be called; never, without a size.
    pub(super) fn next_rotation(&self) -> Option<Instant> {
        self.config.log.rotate_size.map(|_| self.rotation.next)
    }

    /// Moves away the logs that are too big, and has all opened anew.
    pub(super) fn rotate_logs(&mut self, now: Instant) {
        let Some(size) = self.config.log.rotate_size else { return };
        if now < self.rotation.next {
            return;
        }
        self.rotation.next = now + ROTATION_TICK;
        // Not before everybody has left the files that were moved last.
        if self.orders.iter().any(super::orders::Order::is_reopen) {
            return;
        }
        let roles = self.log_numbers().into_iter().map(Role::Worker);
        let log = &self.config.log;
        let mut rotated = false;
        for role in std::iter::once(Role::Master).chain(roles) {
            let path = log.directory.join(role.file_name());
            // By its path: if somebody else has moved it, it is theirs.
            let is_big = fs::metadata(&path).is_ok_and(|there| there.len() >= size);
            if !is_big {
                continue;
            }
            match rotate(&path, log.rotate_keep) {
                Ok(()) => rotated = true,
                Err(error) => {
                    if let Some(held) = self.rotation.warnings.admit(Moment::now()) {
                        log::error!("cannot rotate {}: {error}{held}", path.display());
                    }
                }
            }
        }
        if rotated || self.rotation.retry {
            let by = if rotated { "rotation" } else { "another try" };
            self.reopen_logs(by);
        }
    }
}

/// `log.4` → `log.5`, …, `log` → `log.1`. What was `log.5` is gone then.
fn rotate(path: &Path, keep: u32) -> io::Result<()> {
    for number in (1..keep).rev() {
        match fs::rename(numbered(path, number), numbered(path, number + 1)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(path, numbered(path, 1))
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_old_logs_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("master.log");
        for number in 0..5 {
            fs::write(&path, number.to_string()).unwrap();
            rotate(&path, 3).unwrap();
        }
        let read = |number| fs::read_to_string(numbered(&path, number)).unwrap();
        assert_eq!([1, 2, 3].map(read), ["4", "3", "2"]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
        assert!(rotate(&path, 1).is_err(), "there is none");
    }
}
