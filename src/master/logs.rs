//! Log files: reopened when they were moved, and moved when they are too big; and the
//! level from which on all processes log.
//!
//! The master opens all of them, its own and the workers', and hands the workers
//! theirs: a worker that has dropped its rights may not. So every process changes
//! over in the same way, no matter which program moved the files.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chappe_sys::clock::Moment;

use super::deadlines::{Deadlines, What};
use crate::config::{Config, LogLevel};
use crate::logging::{self, LoggingError, Role};
use crate::throttle::Throttle;

/// How often the logs' sizes are checked.
const ROTATION_TICK: Duration = Duration::from_secs(1);
/// How soon the logs are reopened again because a worker asks for it.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);
/// How many failures are logged in ten seconds.
const WARNINGS_LOGGED: u32 = 5;

/// The logs of a generation's workers.
#[derive(Debug)]
pub(super) struct LogSet {
    directory: PathBuf,
    /// The log of worker N at place N.
    files: Vec<Arc<File>>,
    /// The master's own log, if it is to be another file with this generation.
    master: Option<Arc<File>>,
    /// The hub's log, if that is to be another file then.
    hub: Option<Arc<File>>,
}

/// A log that was just opened, for the workers with this number.
#[derive(Debug)]
pub(super) struct FreshLog {
    pub(super) number: u16,
    /// It is in the directory of a next generation, which is another one.
    pub(super) is_elsewhere: bool,
    pub(super) file: Arc<File>,
}

/// The outcome of reopening all logs.
#[derive(Debug)]
pub(super) struct Reopened {
    pub(super) fresh: Vec<FreshLog>,
    /// The hub's, if there is one.
    pub(super) hub: Option<Arc<File>>,
    /// What can't be opened; the old log stays in use.
    pub(super) failed: Vec<String>,
}

/// All log files, and the level.
#[derive(Debug)]
pub(super) struct Logs {
    /// Of the generation that serves.
    current: LogSet,
    /// Of the one that a reload makes ready.
    next: Option<LogSet>,
    /// The hub's, while there is one: hubs belong to no generation.
    hub: Option<Arc<File>>,
    /// The level that the configuration says, and the one that an operator has set.
    configured_level: LogLevel,
    level: Option<LogLevel>,
    /// At which size a log is moved away, and how many old ones are kept.
    rotate_size: Option<u64>,
    rotate_keep: u32,
    /// A log could not be opened after its file was moved away.
    retry: bool,
    /// When a worker last had the logs reopened.
    reopened: Option<Instant>,
    /// How many lost lines of the master's own log have been counted.
    lines_lost: u64,
    /// What fails at one tick fails at the next one too.
    warnings: Throttle,
}

impl Logs {
    /// Of the first generation. `files`: the log of worker N at place N.
    pub(super) fn new(config: &Config, files: Vec<Arc<File>>, deadlines: &mut Deadlines) -> Self {
        let current =
            LogSet { directory: config.log.directory.clone(), files, master: None, hub: None };
        let mut logs = Self {
            current,
            next: None,
            hub: None,
            configured_level: config.log.level,
            level: None,
            rotate_size: None,
            rotate_keep: 0,
            retry: false,
            reopened: None,
            lines_lost: 0,
            warnings: Throttle::new(WARNINGS_LOGGED),
        };
        logs.configure(config, deadlines);
        logs
    }

    fn configure(&mut self, config: &Config, deadlines: &mut Deadlines) {
        self.configured_level = config.log.level;
        self.rotate_size = config.log.rotate_size;
        self.rotate_keep = config.log.rotate_keep;
        let next = Instant::now() + ROTATION_TICK;
        deadlines.set_or_clear(What::Rotation, self.rotate_size.map(|_| next));
    }

    /// The logs of the workers of the generation that serves.
    pub(super) fn files(&self) -> &[Arc<File>] {
        &self.current.files
    }

    /// Those of the one that a reload makes ready.
    pub(super) fn next_files(&self) -> &[Arc<File>] {
        self.next.as_ref().map_or(&[], |next| &next.files)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.current.directory
    }

    /// From which level on all log.
    pub(super) fn level(&self) -> LogLevel {
        self.level.unwrap_or(self.configured_level)
    }

    /// The level that an operator has set; without one the configuration's holds.
    pub(super) fn set_level(&self) -> Option<LogLevel> {
        self.level
    }

    /// The level of a generation with this configuration: if the file has changed it, that
    /// one.
    pub(super) fn level_with(&self, config: &Config) -> LogLevel {
        if config.log.level == self.configured_level { self.level() } else { config.log.level }
    }

    /// An operator has set this level.
    ///
    /// # Errors
    /// Those of [`logging::set_level`].
    pub(super) fn change_level(&mut self, level: LogLevel) -> Result<(), LoggingError> {
        self.level = Some(level);
        logging::set_level(level)
    }

    /// Another master's state says so.
    #[cfg_attr(not(test), expect(dead_code, reason = "an upgrade in place will use it"))]
    pub(super) fn restore_level(&mut self, level: Option<LogLevel>) {
        self.level = level;
    }

    // Generations.

    /// Opens what a generation with this configuration needs.
    ///
    /// # Errors
    /// A log can't be opened.
    pub(super) fn prepare(&self, config: &Config, workers: u16) -> Result<LogSet, LoggingError> {
        let directory = &config.log.directory;
        let is_same = *directory == self.current.directory;
        let files = (0..workers)
            .map(|number| match self.current.files.get(usize::from(number)) {
                Some(log) if is_same => Ok(Arc::clone(log)),
                _ => logging::open(directory, Role::Worker(number)),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let master = (!is_same).then(|| logging::open(directory, Role::Master)).transpose()?;
        let hub = (!is_same && self.hub.is_some()).then(|| logging::open(directory, Role::Hub));
        Ok(LogSet { directory: directory.clone(), files, master, hub: hub.transpose()? })
    }

    /// A reload makes the generation ready that has these.
    pub(super) fn begin(&mut self, next: LogSet) {
        self.next = Some(next);
    }

    /// There is no such generation any more.
    pub(super) fn drop_next(&mut self) {
        self.next = None;
    }

    /// The generation serves now. In the same directory the master's logger stays, with what
    /// it has counted: its file may have been reopened in the meantime. Returns the log that the
    /// hub is to change over to, if it is another one.
    pub(super) fn commit(
        &mut self,
        config: &Config,
        deadlines: &mut Deadlines,
    ) -> Option<Arc<File>> {
        let mut next = self.next.take()?;
        if config.log.level != self.configured_level {
            self.level = None;
        }
        if let Some(log) = next.master.take() {
            logging::swap(log);
        }
        self.current = next;
        self.configure(config, deadlines);
        if let Err(error) = logging::set_level(self.level()) {
            log::error!(target: "log.level_kept", "the master's log level cannot be changed: {error}");
        }
        let hub = self.current.hub.take().filter(|_| self.hub.is_some());
        self.hub = hub.clone().or(self.hub.take());
        hub
    }

    // The hub's.

    /// There is a hub from now on, in a generation with this configuration.
    ///
    /// # Errors
    /// Its log can't be opened.
    pub(super) fn open_for_hub(&mut self, config: &Config) -> Result<(), LoggingError> {
        self.hub = Some(logging::open(&config.log.directory, Role::Hub)?);
        Ok(())
    }

    /// What it logs to, if there is one.
    pub(super) fn of_hub(&self) -> Option<&Arc<File>> {
        self.hub.as_ref()
    }

    /// There is no hub any more.
    pub(super) fn close_for_hub(&mut self) {
        self.hub = None;
    }

    /// Opens logs for more workers of the generation that serves.
    ///
    /// # Errors
    /// One can't be opened; nothing has changed then.
    pub(super) fn grow(&mut self, workers: u16) -> Result<(), LoggingError> {
        let have = u16::try_from(self.current.files.len()).unwrap_or(u16::MAX);
        let more = (have..workers)
            .map(|number| logging::open(&self.current.directory, Role::Worker(number)))
            .collect::<Result<Vec<_>, _>>()?;
        self.current.files.extend(more);
        Ok(())
    }

    // Reopening.

    /// Reopens every log. One that cannot be opened stays the old one. `running` are the
    /// numbers of the workers that run: draining ones may have no successor.
    pub(super) fn reopen(&mut self, by: &str, running: impl Iterator<Item = u16>) -> Reopened {
        let (mut fresh, mut failed) = (Vec::new(), Vec::new());
        self.reopen_next(&mut fresh, &mut failed);
        let directory = self.current.directory.clone();
        match logging::open(&directory, Role::Master) {
            Ok(file) => logging::swap(file),
            Err(error) => failed.push(error.to_string()),
        }
        for number in self.numbers(running) {
            match logging::open(&directory, Role::Worker(number)) {
                Ok(file) => {
                    let place = usize::from(number);
                    // The next generation's too, or it would go on in the moved file.
                    let next = self.next.as_mut().filter(|next| next.directory == directory);
                    let next = next.and_then(|next| next.files.get_mut(place));
                    for log in self.current.files.get_mut(place).into_iter().chain(next) {
                        *log = Arc::clone(&file);
                    }
                    fresh.push(FreshLog { number, is_elsewhere: false, file });
                }
                Err(error) => failed.push(error.to_string()),
            }
        }
        if self.hub.is_some() {
            match logging::open(&directory, Role::Hub) {
                Ok(file) => self.hub = Some(file),
                Err(error) => failed.push(error.to_string()),
            }
        }
        for error in &failed {
            if let Some(held) = self.warnings.admit(Moment::now()) {
                log::error!(target: "log.kept", "the old log stays in use: {error}{held}");
            }
        }
        self.retry = !failed.is_empty();
        log::info!(target: "logs.reopened", "logs reopened by={by}");
        Reopened { fresh, hub: self.hub.clone(), failed }
    }

    /// Reopens the logs of a next generation that has them in another directory: they
    /// were open before its workers are ready, and may have been moved since.
    fn reopen_next(&mut self, fresh: &mut Vec<FreshLog>, failed: &mut Vec<String>) {
        let Some(next) = self.next.as_mut().filter(|n| n.directory != self.current.directory)
        else {
            return;
        };
        match logging::open(&next.directory, Role::Master) {
            Ok(file) => next.master = Some(file),
            Err(error) => failed.push(error.to_string()),
        }
        if let Some(hub) = &mut next.hub {
            match logging::open(&next.directory, Role::Hub) {
                Ok(file) => *hub = file,
                Err(error) => failed.push(error.to_string()),
            }
        }
        for (number, log) in (0..=u16::MAX).zip(&mut next.files) {
            match logging::open(&next.directory, Role::Worker(number)) {
                Ok(file) => {
                    *log = Arc::clone(&file);
                    fresh.push(FreshLog { number, is_elsewhere: true, file });
                }
                Err(error) => failed.push(error.to_string()),
            }
        }
    }

    /// Whether the next generation has its logs in another directory.
    pub(super) fn is_next_elsewhere(&self) -> bool {
        self.next.as_ref().is_some_and(|next| next.directory != self.current.directory)
    }

    /// The numbers of all workers that have a log.
    fn numbers(&self, running: impl Iterator<Item = u16>) -> Vec<u16> {
        let coming = (0..=u16::MAX).take(self.current.files.len());
        let mut numbers: Vec<u16> = coming.chain(running).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// A worker asks for all logs to be reopened. True if that is due now; otherwise it is
    /// later, since workers asked a moment ago.
    pub(super) fn may_reopen(&mut self, now: Instant, deadlines: &mut Deadlines) -> bool {
        let next = self.reopened.map_or(now, |last| last + REOPEN_PAUSE);
        if next > now {
            deadlines.set(What::Reopen, next);
            return false;
        }
        self.reopened = Some(now);
        true
    }

    // Rotation.

    /// Moves away the logs that are too big. Returns why all are to be reopened, if they
    /// are. Nothing is moved while workers still write to the files that were moved last.
    pub(super) fn rotate(
        &mut self,
        is_reopening: bool,
        running: impl Iterator<Item = u16>,
        deadlines: &mut Deadlines,
    ) -> Option<&'static str> {
        let size = self.rotate_size?;
        deadlines.set(What::Rotation, Instant::now() + ROTATION_TICK);
        if is_reopening {
            return None;
        }
        let roles = self.numbers(running).into_iter().map(Role::Worker);
        let mut rotated = false;
        let hub = self.hub.as_ref().map(|_| Role::Hub);
        for role in std::iter::once(Role::Master).chain(hub).chain(roles) {
            let path = self.current.directory.join(role.file_name());
            // By its path: if somebody else has moved it, it is theirs.
            let is_big = fs::metadata(&path).is_ok_and(|there| there.len() >= size);
            if !is_big {
                continue;
            }
            match rotate(&path, self.rotate_keep) {
                Ok(()) => rotated = true,
                Err(error) => {
                    if let Some(held) = self.warnings.admit(Moment::now()) {
                        log::error!(target: "log.rotate_failed", "cannot rotate {}: {error}{held}", path.display());
                    }
                }
            }
        }
        match (rotated, self.retry) {
            (true, _) => Some("rotation"),
            (false, true) => Some("another try"),
            (false, false) => None,
        }
    }

    /// Lines of the master's own log that were lost since the last call.
    pub(super) fn take_lines_lost(&mut self) -> u64 {
        let lost = logging::lines_lost();
        lost - std::mem::replace(&mut self.lines_lost, lost).min(lost)
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

    fn config(directory: &Path) -> Config {
        let mut config = Config::default();
        config.log.directory = directory.to_owned();
        config
    }

    #[test]
    fn logs_of_a_next_generation_are_reopened_with_the_others() {
        let here = tempfile::tempdir().unwrap();
        let there = tempfile::tempdir().unwrap();
        let mut deadlines = Deadlines::default();
        let mut logs = Logs::new(&config(here.path()), Vec::new(), &mut deadlines);
        logs.grow(2).unwrap();
        logs.open_for_hub(&config(here.path())).unwrap();
        for (directory, elsewhere) in [(here.path(), false), (there.path(), true)] {
            let next = logs.prepare(&config(directory), 3).unwrap();
            logs.begin(next);
            assert_eq!((logs.next_files().len(), logs.is_next_elsewhere()), (3, elsewhere));
            let before = Arc::clone(&logs.next_files()[0]);
            let reopened = logs.reopen("a test", [1, 5].into_iter());
            assert!(reopened.failed.is_empty(), "{:?}", reopened.failed);
            let numbers = |elsewhere| {
                let fresh = reopened.fresh.iter();
                let fresh = fresh.filter(|log| log.is_elsewhere == elsewhere);
                fresh.map(|log| log.number).collect::<Vec<_>>()
            };
            assert_eq!(numbers(false), [0, 1, 5]);
            assert_eq!(numbers(true), if elsewhere { vec![0, 1, 2] } else { vec![] });
            assert!(!Arc::ptr_eq(&before, &logs.next_files()[0]), "it is the new one");
            assert!(reopened.hub.is_some(), "the hub goes on here until the commit");
        }
        let hub = logs.commit(&config(there.path()), &mut deadlines).unwrap();
        assert!(Arc::ptr_eq(&hub, logs.of_hub().unwrap()), "and there from then on");
        assert!(there.path().join("hub.log").exists());
        assert_eq!((logs.directory(), logs.files().len()), (there.path(), 3));
        assert!(logs.next_files().is_empty());
    }

    #[test]
    fn a_level_holds_until_the_file_has_another_one() {
        let directory = tempfile::tempdir().unwrap();
        let mut deadlines = Deadlines::default();
        let mut config = config(directory.path());
        let mut logs = Logs::new(&config, Vec::new(), &mut deadlines);
        logs.change_level(LogLevel::Trace).unwrap();
        for (in_file, level) in
            [(config.log.level, LogLevel::Trace), (LogLevel::Warn, LogLevel::Warn)]
        {
            config.log.level = in_file;
            assert_eq!(logs.level_with(&config), level);
            let next = logs.prepare(&config, 1).unwrap();
            logs.begin(next);
            assert!(logs.commit(&config, &mut deadlines).is_none(), "there is no hub");
            assert_eq!(logs.level(), level);
        }
        assert_eq!(logs.set_level(), None);
    }

    #[test]
    fn workers_have_the_logs_reopened_once_a_second() {
        let directory = tempfile::tempdir().unwrap();
        let mut deadlines = Deadlines::default();
        let mut logs = Logs::new(&config(directory.path()), Vec::new(), &mut deadlines);
        let now = Instant::now();
        assert!(logs.may_reopen(now, &mut deadlines));
        for _ in 0..100 {
            assert!(!logs.may_reopen(now, &mut deadlines));
        }
        assert_eq!(deadlines.at(What::Reopen), Some(now + REOPEN_PAUSE));
        assert!(logs.may_reopen(now + REOPEN_PAUSE, &mut deadlines));
    }
}
