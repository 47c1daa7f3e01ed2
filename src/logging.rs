//! Logs: log4rs with an appender of our own, one `write(2)` a record.
//!
//! Each process calls `init` once after its fork, and any of its threads logs
//! from then on. A full disk or an I/O error never stops a thread: the line is
//! counted as lost, and the count is logged as soon as there is room again.
//! No lock is held over the write, and one record is one write to a file opened
//! for appending: so the old and the new worker N may share a file. In the foreground
//! each line is also copied to standard error, if that takes it at once: no thread waits
//! for a reader.

use chappe_sys::clock::Moment;
use std::cell::RefCell;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use chappe_sys::regular_file;
use chappe_sys::stderr::Stderr;
use log::{LevelFilter, Record};
use log4rs::append::Append;
use log4rs::config::{Appender, Config, Root};
use log4rs::encode::Encode;
use log4rs::encode::pattern::PatternEncoder;
use log4rs::encode::writer::simple::SimpleWriter;
use nix::errno::Errno;
use nix::unistd::write;
use parking_lot::{Mutex, RwLock};
use thiserror::Error;

use crate::config::LogLevel;
use crate::throttle::Throttle;

/// Which process logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The master.
    Master,
    /// The worker with this number.
    Worker(u16),
    /// The hub.
    Hub,
}

impl Role {
    /// `master.log`, `worker-N.log` or `hub.log`.
    #[must_use]
    pub(crate) fn file_name(self) -> String {
        format!("{}.log", self.name())
    }

    fn name(self) -> String {
        match self {
            Self::Master => "master".to_owned(),
            Self::Worker(number) => format!("worker-{number}"),
            Self::Hub => "hub".to_owned(),
        }
    }
}

/// Where lines go besides the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copies {
    /// Nowhere.
    None,
    /// To standard error, for a server in the foreground.
    Stderr(Stderr),
}

/// Why there is no log.
#[derive(Debug, Error)]
pub(crate) enum LoggingError {
    /// The directory or the file can't be opened.
    #[error("cannot open the log {path}: {cause}")]
    Open {
        /// Which file.
        path: String,
        /// What the kernel said.
        cause: io::Error,
    },
    /// Another logger was installed in this process before.
    #[error("another logger is installed in this process")]
    AlreadyTaken,
    /// The configuration made here was refused.
    #[error("log4rs refused its configuration")]
    Refused,
}

/// Opens a process's log for appending, and makes the directory if it is missing.
///
/// # Errors
/// [`LoggingError::Open`].
pub(crate) fn open(directory: &Path, role: Role) -> Result<Arc<File>, LoggingError> {
    let path = directory.join(role.file_name());
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .and_then(|()| open_or_create(&path))
        .map(Arc::new)
        .map_err(|cause| LoggingError::Open { path: path.display().to_string(), cause })
}

/// A new file has the same mode whatever the umask is: a start in a terminal
/// and a reopen by the daemon make files that are alike. One that is there keeps its
/// own, which may be logrotate's.
fn open_or_create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true);
    let mut new = options.clone();
    match regular_file::open_to_write(path, new.create_new(true).mode(FILE_MODE)) {
        Ok(file) => {
            file.set_permissions(Permissions::from_mode(FILE_MODE))?;
            Ok(file)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let file = regular_file::open_to_write(path, &mut options)?;
            end_last_line(path, &file);
            Ok(file)
        }
        Err(error) => Err(error),
    }
}

/// A process that met a full disk, and is gone, may have left a line without an end. Nothing
/// of this is worth a failure.
fn end_last_line(path: &Path, file: &File) {
    let Ok(reader) = regular_file::open_to_read(path) else { return };
    let length = reader.metadata().map_or(0, |there| there.len());
    let mut last = [b'\n'];
    if length > 0 && reader.read_exact_at(&mut last, length - 1).is_ok() && last != [b'\n'] {
        write_whole(file, b"\n");
    }
}

const FILE_MODE: u32 = 0o640;

/// What this process logs to; its logger since the first `init`.
static LOGGER: Mutex<Option<Installed>> = Mutex::new(None);

struct Installed {
    handle: log4rs::Handle,
    sink: Arc<Sink>,
}

/// Makes this process log into `file`. In a process forked from one that logged it
/// replaces the inherited configuration, and closes the inherited file.
///
/// # Errors
/// [`LoggingError::AlreadyTaken`] when the program has a logger of its own.
pub(crate) fn init(
    role: Role,
    file: Arc<File>,
    level: LogLevel,
    copies: Copies,
) -> Result<(), LoggingError> {
    let sink = Arc::new(Sink::new(role, file, copies));
    let config = config(&sink, level)?;
    let mut logger = LOGGER.lock();
    match logger.as_mut() {
        Some(installed) => {
            installed.handle.set_config(config);
            installed.sink = sink;
        }
        None => {
            let handle = log4rs::init_config(config).map_err(|_| LoggingError::AlreadyTaken)?;
            *logger = Some(Installed { handle, sink });
            log_panics();
        }
    }
    Ok(())
}

fn config(sink: &Arc<Sink>, level: LogLevel) -> Result<Config, LoggingError> {
    let appender = Appender::builder().build("file", Box::new(SinkAppender(Arc::clone(sink))));
    Config::builder()
        .appender(appender)
        .build(Root::builder().appender("file").build(LevelFilter::from(level)))
        .map_err(|_| LoggingError::Refused)
}

/// From now on lines go into `file`. The one before is closed as soon as the last
/// thread that writes to it just now is done.
pub(crate) fn swap(file: Arc<File>) {
    if let Some(installed) = LOGGER.lock().as_ref() {
        *installed.sink.file.write() = file;
        // A process that opens a file first ends its last line.
        installed.sink.cut.store(false, Ordering::Relaxed);
    }
}

/// Logs from another level on.
///
/// # Errors
/// None that are known; log4rs checks its configuration.
pub(crate) fn set_level(level: LogLevel) -> Result<(), LoggingError> {
    if let Some(installed) = LOGGER.lock().as_ref() {
        installed.handle.set_config(config(&installed.sink, level)?);
    }
    Ok(())
}

/// The master has ordered the level in this place of [`LogLevel::ALL`].
pub(crate) fn follow_level(place: u64) {
    let level = usize::try_from(place).ok().and_then(|place| LogLevel::ALL.get(place));
    let Some(&level) = level else {
        log::warn!(target: "master.nonsense", "the master asked for unknown log level {place}");
        return;
    };
    match set_level(level) {
        Ok(()) => log::info!(target: "log.level", "log level changed level={}", level.name()),
        Err(error) => log::error!(target: "log.level_kept", "cannot change the log level: {error}"),
    }
}

/// Log lines that this process could not write since its `init`.
#[must_use]
pub(crate) fn lines_lost() -> u64 {
    LOGGER.lock().as_ref().map_or(0, |installed| installed.sink.lost.load(Ordering::Relaxed))
}

/// How many panics are written out in ten seconds.
const PANICS_TOLD: u32 = 5;

/// A panic's text goes to the log: a daemon's stderr is nowhere.
fn log_panics() {
    let before = std::panic::take_hook();
    let throttle = Mutex::new(Throttle::new(PANICS_TOLD));
    std::panic::set_hook(Box::new(move |panic| {
        let Some(held) = throttle.lock().admit(Moment::now()) else { return };
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref().map(String::as_str)).unwrap_or("no text");
        let place = panic.location().map_or_else(String::new, ToString::to_string);
        log::error!(target: "process.panic", "panic: {text} at={place}{held}");
        before(panic);
    }));
}

/// The file, and what could not be written to it.
#[derive(Debug)]
struct Sink {
    encoder: LineEncoder,
    /// Protects the pointer only: a writer clones it and lets go before it writes.
    file: RwLock<Arc<File>>,
    copies: Copies,
    /// Lines that are in the file and not in the copy, since this was reported there.
    left_out: AtomicU64,
    /// The last line of the copy has no end.
    copy_cut: AtomicBool,
    lost: AtomicU64,
    /// How many of `lost` a line in the log has reported.
    told: AtomicU64,
    /// The last line has no end: the disk became full in the middle of it.
    cut: AtomicBool,
}

#[derive(Debug)]
struct SinkAppender(Arc<Sink>);

thread_local! {
    /// One line at a time, so that it is written at once and nothing is allocated.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A line's buffer beyond this size is not kept.
const LINE_BYTES_KEPT: usize = 16 << 10;

impl Append for SinkAppender {
    fn append(&self, record: &Record<'_>) -> anyhow::Result<()> {
        LINE.with(|line| match line.try_borrow_mut() {
            Ok(mut line) => {
                self.0.append(record, &mut line);
                line.clear();
                line.shrink_to(LINE_BYTES_KEPT);
            }
            // A value that logs while it is being logged.
            Err(_) => self.0.append(record, &mut Vec::new()),
        });
        // Never an error: log4rs would print each of them on stderr.
        Ok(())
    }

    fn flush(&self) {}
}

/// Time, level, process, the event's name if it has one, and the message.
///
/// The name of an event is the target of its record (`log::info!(target: "worker.ready", …)`).
/// Without one the target is the path of a module, which has no dot and is left out.
#[derive(Debug)]
struct LineEncoder {
    event: PatternEncoder,
    other: PatternEncoder,
}

impl LineEncoder {
    fn new(role: Role) -> Self {
        // The pid is a part of the pattern: asking for it at every line is a system
        // call, and `init` is called again after a fork.
        let start = format!(
            "{{d(%Y-%m-%dT%H:%M:%S%.3fZ)(utc)}} {{l:<5}} {} {} ",
            role.name(),
            std::process::id()
        );
        Self {
            event: PatternEncoder::new(&format!("{start}{{t}}: {{m}}{{n}}")),
            other: PatternEncoder::new(&format!("{start}{{m}}{{n}}")),
        }
    }
}

impl Encode for LineEncoder {
    fn encode(
        &self,
        to: &mut dyn log4rs::encode::Write,
        record: &Record<'_>,
    ) -> anyhow::Result<()> {
        let encoder = if record.target().contains('.') { &self.event } else { &self.other };
        encoder.encode(to, record)
    }
}

impl Sink {
    fn new(role: Role, file: Arc<File>, copies: Copies) -> Self {
        Self {
            encoder: LineEncoder::new(role),
            file: RwLock::new(file),
            copies,
            left_out: AtomicU64::new(0),
            copy_cut: AtomicBool::new(false),
            lost: AtomicU64::new(0),
            told: AtomicU64::new(0),
            cut: AtomicBool::new(false),
        }
    }

    fn append(&self, record: &Record<'_>, line: &mut Vec<u8>) {
        line.clear();
        if self.encoder.encode(&mut SimpleWriter(&mut *line), record).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        escape_controls(line);
        if let Copies::Stderr(stderr) = self.copies {
            self.copy(stderr, line);
        }
        let file = Arc::clone(&self.file.read());
        if self.write_line(&file, line) {
            self.tell_of_lost(&file);
        }
    }

    /// The file is the log and this a copy of it: what it does not take is left out,
    /// and reported as soon as there is room.
    fn copy(&self, stderr: Stderr, line: &[u8]) {
        let left_out = self.left_out.swap(0, Ordering::Relaxed);
        if left_out > 0 {
            let text = format!("lines were left out here, the log has them count={left_out}");
            let mut notice = Vec::new();
            if self.copy_cut.load(Ordering::Relaxed) {
                notice.push(b'\n');
            }
            self.encode_warning("log.left_out", &text, &mut notice);
            let written = stderr.try_write(&notice);
            if written < notice.len() {
                let was_cut = self.copy_cut.load(Ordering::Relaxed);
                self.copy_cut.store(is_cut(was_cut, &notice[..written]), Ordering::Relaxed);
                self.left_out.fetch_add(left_out + 1, Ordering::Relaxed);
                return;
            }
            self.copy_cut.store(false, Ordering::Relaxed);
        }
        let written = stderr.try_write(line);
        if written < line.len() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            self.copy_cut.store(written > 0, Ordering::Relaxed);
        }
    }

    /// A line of the log's own, at level warn. False if it can't be encoded.
    fn encode_warning(&self, event: &str, text: &str, line: &mut Vec<u8>) -> bool {
        let encoded = self.encoder.encode(
            &mut SimpleWriter(line),
            &Record::builder()
                .target(event)
                .level(log::Level::Warn)
                .args(format_args!("{text}"))
                .build(),
        );
        encoded.is_ok()
    }

    fn write_line(&self, file: &File, line: &mut Vec<u8>) -> bool {
        let was_cut = self.cut.swap(false, Ordering::Relaxed);
        if was_cut {
            line.insert(0, b'\n');
        }
        let written = write_whole(file, line);
        if written == line.len() {
            return true;
        }
        self.lost.fetch_add(1, Ordering::Relaxed);
        if is_cut(was_cut, &line[..written]) {
            self.cut.store(true, Ordering::Relaxed);
        }
        false
    }

    fn tell_of_lost(&self, file: &File) {
        let lost = self.lost.load(Ordering::Relaxed);
        let told = self.told.swap(lost, Ordering::Relaxed);
        if lost == told {
            return;
        }
        let mut line = Vec::new();
        let text = format!("log lines were lost count={}", lost - told);
        if !self.encode_warning("log.lost", &text, &mut line) || !self.write_line(file, &mut line) {
            // Still untold. The line that failed counts as lost itself.
            self.told.store(told, Ordering::Relaxed);
        }
    }
}

/// Whether the last line has no end, after this much of a line was written.
fn is_cut(was_cut: bool, written: &[u8]) -> bool {
    written.last().map_or(was_cut, |last| *last != b'\n')
}

/// One write; how much of it was written. A signal before the first byte is no
/// reason to lose a line.
fn write_whole(to: impl std::os::fd::AsFd, line: &[u8]) -> usize {
    loop {
        match write(&to, line) {
            Ok(written) => return written,
            Err(Errno::EINTR) => {}
            Err(_) => return 0,
        }
    }
}

/// One record is one line, whatever a peer managed to put into it.
fn escape_controls(line: &mut Vec<u8>) {
    let Some((_newline, text)) = line.split_last() else { return };
    if !text.iter().any(u8::is_ascii_control) {
        return;
    }
    let mut escaped = Vec::with_capacity(line.len() + 16);
    for &byte in text {
        if byte.is_ascii_control() {
            escaped.extend(byte.escape_ascii());
        } else {
            escaped.push(byte);
        }
    }
    escaped.push(b'\n');
    *line = escaped;
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::Level;
    use std::io::{Seek, SeekFrom};

    fn log_to(sink: &Sink, level: Level, text: &str) {
        sink.append(
            &Record::builder().level(level).args(format_args!("{text}")).build(),
            &mut Vec::new(),
        );
    }

    #[test]
    fn a_line_is_as_documented() {
        let directory = tempfile::tempdir().unwrap();
        let file = open(&directory.path().join("new/logs"), Role::Worker(3)).unwrap();
        let sink = Sink::new(Role::Worker(3), file, Copies::None);
        log_to(&sink, Level::Info, "hello key=value");
        log_to(&sink, Level::Error, "two\nlines\x1b[31m");
        let text = std::fs::read_to_string(directory.path().join("new/logs/worker-3.log")).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        let (time, rest) = lines[0].split_at("2026-11-23T03:04:05.678Z".len());
        assert!(time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
        let pid = std::process::id();
        assert_eq!(rest, format!(" INFO  worker-3 {pid} hello key=value"));
        assert!(lines[1].ends_with("two\\nlines\\x1b[31m"), "{}", lines[1]);
    }

    #[test]
    fn lost_lines_are_counted_and_told_when_there_is_room() {
        let full = Arc::new(OpenOptions::new().write(true).open("/dev/full").unwrap());
        let sink = Sink::new(Role::Master, full, Copies::None);
        log_to(&sink, Level::Info, "one");
        log_to(&sink, Level::Info, "two");
        assert_eq!(sink.lost.load(Ordering::Relaxed), 2);

        let directory = tempfile::tempdir().unwrap();
        *sink.file.write() = open(directory.path(), Role::Master).unwrap();
        log_to(&sink, Level::Info, "three");
        log_to(&sink, Level::Info, "four");
        let text = std::fs::read_to_string(directory.path().join("master.log")).unwrap();
        let ends: Vec<_> = text.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
        assert_eq!(ends, ["three", "count=2", "four"]);
    }

    /// A file that takes a few more bytes, as on a disk that is full.
    fn full_but_for(bytes: u32) -> File {
        use nix::fcntl::{FcntlArg, SealFlag, fcntl};
        use nix::sys::memfd::{MFdFlags, memfd_create};
        let file = File::from(memfd_create("full", MFdFlags::MFD_ALLOW_SEALING).unwrap());
        file.set_len(2 * 4096).unwrap();
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).unwrap();
        (&file).seek(SeekFrom::End(-i64::from(bytes))).unwrap();
        file
    }

    #[test]
    fn a_line_that_was_cut_is_ended_before_the_next_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("master.log");
        let sink =
            Sink::new(Role::Master, open(directory.path(), Role::Master).unwrap(), Copies::None);
        let limited = Arc::clone(&sink.file.read());
        // The disk becomes full in the middle of a line and stays so for some more.
        *sink.file.write() = Arc::new(full_but_for(30));
        log_to(&sink, Level::Info, "cut in the middle");
        log_to(&sink, Level::Info, "not written at all");
        log_to(&sink, Level::Info, "nor this");
        assert_eq!(sink.lost.load(Ordering::Relaxed), 3);
        // The same file, as it were, with room again.
        std::fs::write(&path, "2026-11-23T03:04:05.678Z INFO").unwrap();
        *sink.file.write() = limited;
        log_to(&sink, Level::Info, "whole");
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0], "2026-11-23T03:04:05.678Z INFO");
        assert!(lines[1].ends_with("whole") && lines[2].ends_with("count=3"), "{text}");
    }

    #[test]
    fn a_line_that_another_process_has_left_is_ended_by_the_next_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("worker-0.log");
        std::fs::write(&path, "whole\ncut").unwrap();
        drop(open(directory.path(), Role::Worker(0)).unwrap());
        drop(open(directory.path(), Role::Worker(0)).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "whole\ncut\n");
    }

    #[test]
    fn a_new_file_has_its_mode_whatever_the_umask_and_an_old_one_keeps_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("master.log");
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        open(directory.path(), Role::Master).unwrap();
        assert_eq!(mode(), FILE_MODE);
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        open(directory.path(), Role::Master).unwrap();
        assert_eq!(mode(), 0o600);
    }

    #[test]
    fn an_unusable_directory_is_named() {
        let text = open(Path::new("/dev/null/logs"), Role::Master).unwrap_err().to_string();
        assert!(text.contains("/dev/null/logs/master.log"), "{text}");
    }
}
