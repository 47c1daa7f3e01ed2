//! A directory for one test, with a configuration, and commands that run there.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chappe::control::{Status, WorkerStatus};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::Value;

use super::wait::{DEADLINE, wait_for, wait_for_within, wait_until};

/// A program that Cargo has built for the tests that run: it is above the folder of theirs.
pub fn program(name: &str) -> String {
    let test = std::env::current_exe().expect("a test is a program");
    let folder = test.ancestors().nth(2).expect("target/debug/deps/test");
    folder.join(name).to_str().expect("UTF-8").to_owned()
}

/// A new, empty directory for one test, also where the same test runs twice at a time. It
/// goes with the last handle, unless the test has failed.
#[derive(Clone, Debug)]
pub struct TestDir(Arc<Removed>);

#[derive(Debug)]
struct Removed {
    path: PathBuf,
    is_kept: AtomicBool,
}

impl TestDir {
    /// Leaves the directory where it is.
    pub fn keep(&self) {
        self.0.is_kept.store(true, Ordering::Relaxed);
    }
}

impl Drop for Removed {
    fn drop(&mut self) {
        if !std::thread::panicking() && !self.is_kept.load(Ordering::Relaxed) {
            // A test may have made it impossible: what is left is in a folder of builds.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

impl Deref for TestDir {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0.path
    }
}

impl AsRef<Path> for TestDir {
    fn as_ref(&self) -> &Path {
        self
    }
}

impl AsRef<OsStr> for TestDir {
    fn as_ref(&self) -> &OsStr {
        self.as_os_str()
    }
}

/// Makes a directory with the test's name in its own.
pub fn fresh_dir(test: &str) -> TestDir {
    let program = std::env::current_exe().expect("a test is a program");
    let tests = program.ancestors().nth(3).expect("target/debug/deps/test").join("tmp");
    fs::create_dir_all(&tests).expect("a folder for tests");
    let process = std::process::id();
    for number in 0.. {
        let dir = tests.join(format!("{test}-{process}-{number}"));
        match fs::create_dir(&dir) {
            Ok(()) => {
                return TestDir(Arc::new(Removed { path: dir, is_kept: AtomicBool::new(false) }));
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => panic!("{}: {error}", dir.display()),
        }
    }
    unreachable!("there is always a next number")
}

/// The configuration of a test: two workers that log much, on a port that the
/// kernel picks, unless `toml` says otherwise.
pub fn configuration(toml: &str) -> String {
    let mut text = String::new();
    // What stands before the first table must stay there.
    if !toml.contains("worker_processes") {
        text += "worker_processes = 2\n";
    }
    text += toml;
    if !toml.contains("[log]") {
        text += "\n[log]\nlevel = \"debug\"\n";
    }
    if !toml.contains("[[listen]]") {
        text += "\n[[listen]]\naddress = \"127.0.0.1:0\"\n";
    }
    text
}

/// The command line of the stock server for a directory made by [`fresh_dir`].
pub fn command(dir: &Path) -> Command {
    let mut command = command_of(Command::new(program("chappe")), dir);
    command.stdin(Stdio::null());
    command
}

/// Adds what makes a program use this directory.
pub(crate) fn command_of(mut command: Command, dir: &Path) -> Command {
    command.arg("-p").arg(dir).arg("-c").arg(dir.join("chappe.toml"));
    command
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// `None`: ended by a signal.
    pub code: Option<i32>,
    /// What it has printed to standard output.
    pub stdout: String,
    /// What it has printed to standard error.
    pub stderr: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let code = output.status.code();
        Self { code, stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// Runs a command to its end, within the deadline.
///
/// Its output goes to files: a pipe would be read until the last process that
/// holds it is gone, and a command may leave a daemon behind.
#[track_caller]
pub fn finish(command: &mut Command) -> Finished {
    finish_within(DEADLINE, command)
}

/// As [`finish`], for a command that has more to do.
#[track_caller]
pub fn finish_within(time: Duration, command: &mut Command) -> Finished {
    let file = || tempfile::tempfile().expect("a file for the output");
    let handle = |file: &File| file.try_clone().expect("a second handle");
    let (mut stdout, mut stderr) = (file(), file());
    let mut child = command
        .stdout(handle(&stdout))
        .stderr(handle(&stderr))
        .spawn()
        .expect("the command starts");
    let status = wait_for_within(time, || child.try_wait().expect("our own child"));
    if status.is_none() {
        child.kill().expect("our own child");
        child.wait().expect("our own child");
    }
    let text = |file: &mut File| {
        let mut text = String::new();
        file.rewind().expect("a file can be read again");
        file.read_to_string(&mut text).expect("UTF-8");
        text
    };
    let (stdout, stderr) = (text(&mut stdout), text(&mut stderr));
    let Some(status) = status else {
        panic!("not within {time:?}: {command:?}, stdout {stdout:?}, stderr {stderr:?}");
    };
    Finished { code: status.code(), stdout, stderr }
}

/// A directory with a configuration, and the program that is started there.
#[derive(Clone, Debug)]
pub struct Site {
    program: String,
    /// All files of the server.
    pub dir: TestDir,
}

impl Site {
    /// A new directory for `test`. `name` is that of a program; `text` is the configuration,
    /// as it stands in the file.
    pub fn new(name: &str, test: &str, text: &str) -> Self {
        let site = Self { program: program(name), dir: fresh_dir(test) };
        site.configure(text);
        site
    }

    /// Replaces the configuration.
    pub fn configure(&self, text: &str) {
        fs::write(self.path("chappe.toml"), text).expect("the configuration");
    }

    /// A file of the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What a file of the directory contains; empty while it is not there.
    pub fn read(&self, name: &str) -> String {
        let bytes = fs::read(self.dir.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What a log, `master` or `worker-N`, contains.
    pub fn log(&self, name: &str) -> String {
        self.read(&format!("logs/{name}.log"))
    }

    /// The lines of an event in a log, `master` or `worker-N`; docs/OPERATIONS.md lists events.
    pub fn events(&self, log: &str, event: &str) -> Vec<String> {
        let name = format!(" {event}: ");
        let log = self.log(log);
        log.lines().filter(|line| line.contains(&name)).map(str::to_owned).collect()
    }

    /// Waits until a log has a line of this event, with `values` in it.
    #[track_caller]
    pub fn wait_event(&self, log: &str, event: &str, values: &str) {
        let is_it = |line: &String| line.contains(values);
        wait_until(&format!("{event} {values} in {log}.log"), || {
            self.events(log, event).iter().any(is_it)
        });
    }

    /// The program, with the directory and these arguments, not yet started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command_of(Command::new(&self.program), &self.dir);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs the program with these arguments to its end.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Finished {
        finish(&mut self.command(arguments))
    }

    /// Starts the program with these arguments, and reads what it prints.
    pub fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts")
    }

    /// What `chappe status --json` prints.
    #[track_caller]
    pub fn status_json(&self) -> Value {
        let status = self.run(&["status", "--json"]);
        assert_eq!(status.code, Some(0), "{status:?}");
        serde_json::from_str(&status.stdout).unwrap_or_else(|e| panic!("{e} in {}", status.stdout))
    }

    /// The status, as the type that master and commands share.
    #[track_caller]
    pub fn status(&self) -> Status {
        let status = self.status_json();
        Status::deserialize(&status).unwrap_or_else(|e| panic!("{e} in {status:#}"))
    }

    /// A counter of the whole server. One that is not there is a mistake of the test's.
    #[track_caller]
    pub fn total(&self, name: &str) -> u64 {
        let totals = self.status().totals.expect("totals");
        let found = totals.iter().find_map(|(known, value)| (known == name).then_some(value));
        found.unwrap_or_else(|| panic!("there is no counter {name}"))
    }

    /// A number in the status, by its JSON pointer.
    #[track_caller]
    pub fn status_number(&self, pointer: &str) -> u64 {
        let status = self.status_json();
        let value = status.pointer(pointer).and_then(Value::as_u64);
        value.unwrap_or_else(|| panic!("no number at {pointer} in {status:#}"))
    }

    /// Waits until a number in the status is as it should be.
    #[track_caller]
    pub fn wait_status(&self, pointer: &str, is_right: impl Fn(u64) -> bool) {
        let mut last = 0;
        let held = wait_for(|| {
            last = self.status_number(pointer);
            is_right(last).then_some(())
        });
        assert!(held.is_some(), "{pointer} is still {last}");
    }

    /// Waits until `count` workers serve, and no other is left.
    #[track_caller]
    pub fn wait_serving(&self, count: usize) {
        wait_until("all workers serve", || {
            let status = self.status();
            status.workers.len() == count && status.serving().count() == count
        });
    }

    /// Connections of all workers together.
    #[track_caller]
    pub fn connections(&self) -> u64 {
        self.status().workers.iter().map(|worker| u64::from(worker.connections)).sum()
    }

    /// The workers that serve, as the status lists them.
    #[track_caller]
    pub fn serving(&self) -> Vec<Pid> {
        serving(&self.status())
    }

    /// Everything the server has written, for the report of a failed test.
    pub(crate) fn print_files(&self, files: &[&str]) {
        let mut files: Vec<_> = files.iter().map(|file| self.path(file)).collect();
        let logs = fs::read_dir(self.dir.join("logs")).into_iter().flatten().flatten();
        // A test may have put something else there, which would be waited for.
        files.extend(logs.map(|entry| entry.path()).filter(|path| path.is_file()));
        for file in files {
            let bytes = fs::read(&file).unwrap_or_default();
            // A log at level debug can be long: its end says most.
            let tail = &bytes[bytes.len().saturating_sub(16 * 1024)..];
            eprintln!("--- {}\n{}", file.display(), String::from_utf8_lossy(tail));
        }
    }
}

/// The workers that serve, out of a status.
pub fn serving(status: &Status) -> Vec<Pid> {
    status.serving().map(pid_of).collect()
}

/// The process of a worker.
pub fn pid_of(worker: &WorkerStatus) -> Pid {
    Pid::from_raw(i32::try_from(worker.pid).expect("a pid"))
}
