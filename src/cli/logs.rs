//! `chappe logs`: the last lines of the master's and the workers' logs, merged by
//! time, and what is added to them from then on.
//!
//! It reads files and asks nobody, so it also works when the server is gone. To
//! follow a log it looks at the files five times a second: a file that was moved away
//! is read to its end, and on into those between it and the new one.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, ErrorKind, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chappe_sys::regular_file::{self, Unsuitable};
use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::output::{self, print_error};

/// Show the logs of master and workers, merged by time
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct LogsArgs {
    /// Go on with what is added, over rotation and reopening
    #[arg(short = 'f')]
    pub(crate) follow: bool,
    /// Only this worker's log
    #[arg(short = 'w', value_name = "N")]
    pub(crate) worker: Option<u16>,
    /// Only lines of this level, or more urgent ones
    #[arg(short = 'l', value_name = "LEVEL", value_parser = parse_level)]
    pub(crate) level: Option<log::Level>,
    /// How many of the last lines to show
    #[arg(short = 'n', value_name = "LINES", default_value_t = 20)]
    pub(crate) lines: usize,
}

fn parse_level(text: &str) -> Result<log::Level, String> {
    text.parse().map_err(|_| "one of error, warn, info, debug, trace".to_owned())
}

/// How often the files are looked at.
const LOOK_MS: u8 = 200;
/// How much of a file is read at a time.
const PIECE_BYTES: usize = 64 << 10;
/// A line that is longer than this, and not a line of ours, is cut.
const LINE_BYTES_MAX: usize = 1 << 20;
/// How many pieces of a file at a look: what is new may be much.
const PIECES_AT_ONCE: usize = 64;
/// How long a file that was moved away is still read: its writer has until the reopen to
/// write to it.
const TIME_AFTER_MOVE: Duration = Duration::from_secs(2);

/// Runs the command.
///
/// # Errors
/// When there are no logs, or they can't be read; never because the reader of the
/// output went away.
pub(crate) fn logs(directory: &Path, arguments: LogsArgs) -> io::Result<()> {
    let opener = Opener::default();
    let paths = log_paths(directory, arguments.worker)?;
    let is_wanted = |line: &[u8]| is_at_level(line, arguments.level);
    let mut last = Vec::new();
    let mut followed = BTreeMap::new();
    for path in paths {
        let (lines, mut log) = Followed::open_at_end(&path, arguments.lines, is_wanted, &opener)?;
        last.extend(lines.into_iter().map(|line| log.timed(line)));
        followed.insert(path, log);
    }
    if !followed.values().any(|log| log.current.is_some()) {
        return Err(io::Error::new(ErrorKind::NotFound, "there is no such log"));
    }
    sort(&mut last);
    let first = last.len().saturating_sub(arguments.lines);
    if !show(&last[first..])? {
        return Ok(());
    }
    let mut has_more = true;
    while arguments.follow && wait_or_reader_gone(if has_more { 0 } else { LOOK_MS })? {
        has_more = false;
        for path in log_paths(directory, arguments.worker)? {
            // A worker number that is new, or whose first log was just made.
            followed.entry(path).or_insert_with_key(|path| Followed::from_start(path.clone()));
        }
        let mut lines = Vec::new();
        for log in followed.values_mut() {
            let mut new = Vec::new();
            has_more |= log.read_new(&mut new, &opener)?;
            lines.extend(new.into_iter().map(|line| log.timed(line)));
        }
        lines.retain(|line| is_wanted(&line.text));
        sort(&mut lines);
        if !show(&lines)? {
            return Ok(());
        }
    }
    Ok(())
}

/// Sleeps until the next look. False as soon as nobody reads the output any more.
fn wait_or_reader_gone(pause_ms: u8) -> io::Result<bool> {
    let stdout = io::stdout();
    // No events are asked for: an end that is closed is reported in any case.
    let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    match poll(&mut fds, PollTimeout::from(pause_ms)) {
        Ok(0) | Err(nix::errno::Errno::EINTR) => Ok(true),
        Ok(_) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// False if nobody reads the output any more.
fn show(lines: &[Line]) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    let mut text: Vec<u8> = lines.iter().flat_map(|line| &line.text).copied().collect();
    // Into a file or a pipe they go as they are.
    if out.is_terminal() {
        text = output::harmless(&text);
    }
    match out.write_all(&text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        result => result.map(|()| true),
    }
}

/// `master.log`, `hub.log` and `worker-N.log`; of one worker, its own only.
fn log_paths(directory: &Path, worker: Option<u16>) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".log")) else { continue };
        let number = stem.strip_prefix("worker-").and_then(|number| number.parse::<u16>().ok());
        let is_wanted = match worker {
            Some(worker) => number == Some(worker),
            None => matches!(stem, "master" | "hub") || number.is_some(),
        };
        if is_wanted {
            paths.push(directory.join(&name));
        }
    }
    paths.sort();
    Ok(paths)
}

/// A line with the time by which it is sorted.
struct Line {
    time: Vec<u8>,
    text: Vec<u8>,
}

/// Merges. Stable: lines of one millisecond and one file stay in their order.
fn sort(lines: &mut [Line]) {
    lines.sort_by(|a, b| a.time.cmp(&b.time));
}

/// The time at the beginning of a line; such times sort as text.
fn time(line: &[u8]) -> Option<&[u8]> {
    let time = line.split(|byte| *byte == b' ').next().unwrap_or_default();
    (time.ends_with(b"Z") && time.first().is_some_and(u8::is_ascii_digit)).then_some(time)
}

fn is_at_level(line: &[u8], wanted: Option<log::Level>) -> bool {
    let Some(wanted) = wanted else { return true };
    let words = line.split(|byte| *byte == b' ').nth(1);
    let level = words.and_then(|word| std::str::from_utf8(word).ok()?.parse::<log::Level>().ok());
    level.is_some_and(|level| level <= wanted)
}

/// One log that is read on.
struct Followed {
    path: PathBuf,
    current: Option<Reader>,
    /// Files that were moved away, the oldest first, and until when they are looked at.
    moved: Vec<(Reader, Instant)>,
    /// Of the last line that had one.
    time: Vec<u8>,
}

/// An open file and how far it is read.
struct Reader {
    file: File,
    identity: (u64, u64),
    position: u64,
    /// The beginning of a line without its end.
    begun: Vec<u8>,
}

impl Followed {
    fn from_start(path: PathBuf) -> Self {
        Self { path, current: None, moved: Vec::new(), time: Vec::new() }
    }

    /// The next line of this log. One without a time (a full disk has cut it, or it is
    /// another program's) stays behind the line before it.
    fn timed(&mut self, text: Vec<u8>) -> Line {
        if let Some(time) = time(&text) {
            self.time = time.to_vec();
        }
        Line { time: self.time.clone(), text }
    }

    /// The last `count` wanted lines, out of older files too if need be, and the log
    /// from there on.
    fn open_at_end(
        path: &Path,
        count: usize,
        is_wanted: impl Fn(&[u8]) -> bool,
        opener: &Opener,
    ) -> io::Result<(VecDeque<Vec<u8>>, Self)> {
        let mut log = Self::from_start(path.to_owned());
        let mut lines = VecDeque::new();
        log.current = opener.open(path)?;
        if let Some(reader) = &mut log.current {
            match reader.last_lines(count, &is_wanted, &mut lines) {
                // It was emptied in the meantime: what is there now is read on from its beginning.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => reader.position = 0,
                result => result?,
            }
        }
        let mut number = 1;
        while lines.len() < count
            && let Some(mut older) = opener.open(&numbered(path, number))?
        {
            older.last_lines(count, &is_wanted, &mut lines)?;
            number += 1;
        }
        // What the first lines belong to is not shown: they stay in front of the next.
        log.time = lines.iter().find_map(|line| time(line)).unwrap_or_default().to_vec();
        Ok((lines, log))
    }

    /// Reads what is new. True if there may be more at once.
    fn read_new(&mut self, lines: &mut Vec<Vec<u8>>, opener: &Opener) -> io::Result<bool> {
        let now = Instant::now();
        for (reader, _) in &mut self.moved {
            // What is newer waits for it.
            if reader.read_on(lines)? {
                return Ok(true);
            }
        }
        self.moved.retain(|(_, until)| *until > now);
        if let Some(reader) = &mut self.current
            && reader.read_on(lines)?
        {
            return Ok(true);
        }
        let there = match fs::symlink_metadata(&self.path) {
            Ok(there) => Some((there.dev(), there.ino())),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let here = self.current.as_ref().map(|reader| reader.identity);
        if there.is_none() || there == here {
            return Ok(false);
        }
        let Some(new) = opener.open(&self.path)? else { return Ok(false) };
        if let Some(old) = self.current.replace(new) {
            let between = self.missed(old.identity, opener)?;
            let moved = std::iter::once(old).chain(between);
            self.moved.extend(moved.map(|reader| (reader, now + TIME_AFTER_MOVE)));
        }
        Ok(true)
    }

    /// Files that came and were moved away between two looks, the oldest first. None
    /// if the one that we know is not among the moved ones any more.
    fn missed(&self, known: (u64, u64), opener: &Opener) -> io::Result<Vec<Reader>> {
        let mut missed = Vec::new();
        for number in 1.. {
            match opener.open(&numbered(&self.path, number))? {
                Some(reader) if reader.identity == known => {
                    missed.reverse();
                    return Ok(missed);
                }
                Some(reader) => missed.push(reader),
                None => break,
            }
        }
        Ok(Vec::new())
    }
}

/// Opens logs, and says once of each what is no log.
#[derive(Debug, Default)]
struct Opener {
    told: RefCell<BTreeSet<PathBuf>>,
}

impl Opener {
    /// `None` if there is no such file, or something else at its place.
    fn open(&self, path: &Path) -> io::Result<Option<Reader>> {
        let file = match regular_file::open_to_read(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if Unsuitable::is_reason(&error) => {
                if self.told.borrow_mut().insert(path.to_owned()) {
                    let text = format!("warning: {} is left out: {error}", path.display());
                    print_error(&mut io::stderr(), &text);
                }
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let about = file.metadata()?;
        let identity = (about.dev(), about.ino());
        Ok(Some(Reader { file, identity, position: 0, begun: Vec::new() }))
    }
}

impl Reader {
    /// Puts the last wanted lines in front of `lines`, until there are `count`, and
    /// goes to the end of the last whole line. Reads backwards, a piece at a time.
    fn last_lines(
        &mut self,
        count: usize,
        is_wanted: impl Fn(&[u8]) -> bool,
        lines: &mut VecDeque<Vec<u8>>,
    ) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        self.position = self.end_of_last_line(length)?;
        let mut line = Backwards::default();
        let mut end = self.position;
        while end > 0 && lines.len() < count {
            let piece = self.piece_before(end)?;
            end -= piece.len() as u64;
            let mut rest = piece.as_slice();
            while let Some(at) = rest.iter().rposition(|byte| *byte == b'\n') {
                // What follows this end of a line is the beginning of the next one.
                line.put_before(&rest[at + 1..]);
                line.take_to(lines, count, &is_wanted);
                line.put_before(b"\n");
                rest = &rest[..at];
            }
            line.put_before(rest);
        }
        if end == 0 {
            line.take_to(lines, count, &is_wanted);
        }
        Ok(())
    }

    /// Behind the last line that has an end. Of a line that was begun and is longer than
    /// any of ours, the most that is looked through.
    fn end_of_last_line(&self, length: u64) -> io::Result<u64> {
        let first = length.saturating_sub(LINE_BYTES_MAX as u64);
        let mut end = length;
        while end > first {
            let piece = self.piece_before(end)?;
            let start = end - piece.len() as u64;
            if let Some(at) = piece.iter().rposition(|byte| *byte == b'\n') {
                return Ok(start + at as u64 + 1);
            }
            end = start;
        }
        Ok(end)
    }

    fn piece_before(&self, end: u64) -> io::Result<Vec<u8>> {
        let start = end.saturating_sub(PIECE_BYTES as u64);
        let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(end).unwrap_or(PIECE_BYTES))];
        self.file.read_exact_at(&mut piece, start)?;
        Ok(piece)
    }

    /// Reads what was added since, or all if the file was emptied; of much at a time, a
    /// part. True if there may be more.
    fn read_on(&mut self, lines: &mut Vec<Vec<u8>>) -> io::Result<bool> {
        if self.file.metadata()?.len() < self.position {
            self.position = 0;
            self.begun.clear();
        }
        self.file.seek(SeekFrom::Start(self.position))?;
        let mut piece = [0; PIECE_BYTES];
        for _ in 0..PIECES_AT_ONCE {
            let bytes = self.file.read(&mut piece)?;
            if bytes == 0 {
                return Ok(false);
            }
            self.position += bytes as u64;
            for part in piece[..bytes].split_inclusive(|byte| *byte == b'\n') {
                self.begun.extend_from_slice(part);
                if self.begun.len() > LINE_BYTES_MAX {
                    self.begun.push(b'\n');
                }
                if self.begun.ends_with(b"\n") {
                    lines.push(std::mem::take(&mut self.begun));
                }
            }
        }
        Ok(true)
    }
}

/// A line that is read from its end to its beginning. One that is too long loses its end.
#[derive(Default)]
struct Backwards {
    pieces: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Backwards {
    fn put_before(&mut self, piece: &[u8]) {
        if piece.is_empty() {
            return;
        }
        self.bytes += piece.len();
        self.pieces.push_front(piece.to_vec());
        while let Some(last) = self.pieces.back()
            && self.bytes - last.len() >= LINE_BYTES_MAX
        {
            self.bytes -= last.len();
            self.pieces.pop_back();
        }
    }

    /// The line begins here.
    fn take_to(
        &mut self,
        lines: &mut VecDeque<Vec<u8>>,
        count: usize,
        is_wanted: impl Fn(&[u8]) -> bool,
    ) {
        self.bytes = 0;
        let mut line: Vec<u8> = std::mem::take(&mut self.pieces).into_iter().flatten().collect();
        if line.is_empty() || lines.len() >= count {
            return;
        }
        if !line.ends_with(b"\n") {
            line.push(b'\n');
        }
        if is_wanted(&line) {
            lines.push_front(line);
        }
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(lines: &[Vec<u8>]) -> String {
        String::from_utf8(lines.concat()).unwrap()
    }

    fn append(path: &Path, text: &str) {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn the_last_lines_come_from_older_files_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("master.log");
        append(&path, "d\ne\nbegun");
        append(&numbered(&path, 1), "c\n");
        append(&numbered(&path, 2), "a\nb\n");
        for (count, expected) in [(1, "e\n"), (4, "b\nc\nd\ne\n"), (9, "a\nb\nc\nd\ne\n")] {
            let (lines, mut log) =
                Followed::open_at_end(&path, count, |_| true, &Opener::default()).unwrap();
            assert_eq!(text(&Vec::from(lines)), expected);
            let mut lines = Vec::new();
            log.read_new(&mut lines, &Opener::default()).unwrap();
            assert!(lines.is_empty(), "{lines:?}");
        }
        let (_, mut log) = Followed::open_at_end(&path, 1, |_| true, &Opener::default()).unwrap();
        append(&path, " and ended\n");
        let mut lines = Vec::new();
        log.read_new(&mut lines, &Opener::default()).unwrap();
        assert_eq!(text(&lines), "begun and ended\n");
    }

    #[test]
    fn lines_are_found_behind_many_that_are_not_wanted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("master.log");
        append(&path, &("T WARN  x\n".to_owned() + &"T DEBUG y\n".repeat(100_000)));
        let wanted = |line: &[u8]| is_at_level(line, Some(log::Level::Info));
        let (lines, _) = Followed::open_at_end(&path, 3, wanted, &Opener::default()).unwrap();
        assert_eq!(text(&Vec::from(lines)), "T WARN  x\n");
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_and_those_around_it_are_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("master.log");
        for end in ["\n", "\nlast\n", "\nlast\nbegun"] {
            let long = format!("T{}", "x".repeat(3 * LINE_BYTES_MAX));
            fs::write(&path, format!("first\n\n{long}{end}")).unwrap();
            let opener = Opener::default();
            let (lines, _) = Followed::open_at_end(&path, 9, |_| true, &opener).unwrap();
            let lines = Vec::from(lines);
            assert_eq!((text(&lines[..1]), text(&lines[1..2])), ("first\n".into(), "\n".into()));
            let cut = lines[2].len();
            assert!((LINE_BYTES_MAX..LINE_BYTES_MAX + 2 * PIECE_BYTES).contains(&cut), "{cut}");
            assert!(lines[2].starts_with(b"Tx") && lines[2].ends_with(b"x\n"));
            assert_eq!(lines.len(), if end == "\n" { 3 } else { 4 });
        }
        // One that has no end yet, and may never have one.
        fs::write(&path, "x".repeat(3 * LINE_BYTES_MAX)).unwrap();
        let (lines, log) = Followed::open_at_end(&path, 9, |_| true, &Opener::default()).unwrap();
        assert!(lines.len() <= 1 && log.current.unwrap().position >= LINE_BYTES_MAX as u64);
    }

    #[test]
    fn a_log_is_followed_over_moves_and_emptying() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("worker-0.log");
        append(&path, "old\n");
        let (_, mut log) = Followed::open_at_end(&path, 0, |_| true, &Opener::default()).unwrap();
        let mut new = || {
            let mut lines = Vec::new();
            while log.read_new(&mut lines, &Opener::default()).unwrap() {}
            text(&lines)
        };
        append(&path, "1\n");
        fs::rename(&path, numbered(&path, 1)).unwrap();
        assert_eq!(new(), "1\n");
        append(&numbered(&path, 1), "2\n");
        append(&path, "3\n");
        assert_eq!(new(), "2\n3\n");
        append(&numbered(&path, 1), "late\n");
        assert_eq!(new(), "late\n");
        // Moved twice between two looks.
        fs::remove_file(numbered(&path, 1)).unwrap();
        fs::rename(&path, numbered(&path, 2)).unwrap();
        append(&numbered(&path, 1), "7\n");
        append(&path, "8\n");
        assert_eq!(new(), "7\n8\n");
        fs::write(&path, "").unwrap();
        assert_eq!(new(), "");
        append(&path, "9\n");
        assert_eq!(new(), "9\n");
    }

    #[test]
    fn levels_are_told_from_lines() {
        let line = b"2026-11-23T03:04:05.678Z WARN  worker-0 1234 text\n";
        assert!(is_at_level(line, None));
        assert!(is_at_level(line, Some(log::Level::Info)));
        assert!(is_at_level(line, Some(log::Level::Warn)));
        assert!(!is_at_level(line, Some(log::Level::Error)));
        assert!(!is_at_level(b"junk\n", Some(log::Level::Trace)));
        assert_eq!(time(line), Some(&b"2026-11-23T03:04:05.678Z"[..]));
        assert_eq!(time(b"XYZ junk\n"), None);
    }

    #[test]
    fn a_line_without_a_time_stays_behind_the_one_before_it() {
        let line = |second: u8, text: &str| format!("2026-11-23T03:04:0{second}.678Z {text}\n");
        let logs = [
            vec![line(1, "one"), "  more of one\n".into(), line(4, "four")],
            vec![line(2, "two"), "\n".into(), line(3, "three")],
        ];
        let mut merged = Vec::new();
        for lines in &logs {
            let mut log = Followed::from_start(PathBuf::new());
            merged.extend(lines.iter().map(|text| log.timed(text.clone().into_bytes())));
        }
        sort(&mut merged);
        let text: Vec<u8> = merged.into_iter().flat_map(|line| line.text).collect();
        let expected = [
            &line(1, "one"),
            "  more of one\n",
            &line(2, "two"),
            "\n",
            &line(3, "three"),
            &line(4, "four"),
        ];
        assert_eq!(String::from_utf8(text).unwrap(), expected.concat());
    }
}
