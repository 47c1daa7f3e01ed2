//! Starting, watching and ending the real server.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use chappe::control::Status;
use chappe_client::Client;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::Value;

use super::proc;
use super::wait::{DEADLINE, wait_for, wait_until};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_chappe");

/// What a server's output is written to, in its directory.
const STDOUT: &str = "stdout.txt";
const STDERR: &str = "stderr.txt";

/// A server in the foreground, in a directory and a process group of its own.
/// Dropping it ends its processes, whatever state they are in.
pub(crate) struct TestServer {
    master: Child,
    /// The first address of the `ready` line.
    pub(crate) address: SocketAddr,
    /// All of its files.
    pub(crate) dir: PathBuf,
    exit: Option<ExitStatus>,
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A new, empty directory for one test.
pub(crate) fn fresh_dir(test: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    if dir.exists() {
        fs::remove_dir_all(&dir).expect("the last run's directory can go");
    }
    fs::create_dir_all(&dir).expect("a directory for the test");
    dir
}

/// If this variable is set, every message goes through all three threads: the same
/// tests then show the same of the long way.
const IS_UNFUSED: &str = "CHAPPE_TEST_UNFUSED";
const UNFUSED: [&str; 2] = ["--set", "worker.fuse=false"];

/// The configuration of a test: two workers that log much, on a port that the
/// kernel picks, unless `toml` says otherwise.
pub(crate) fn configuration(toml: &str) -> String {
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

/// The command line for a directory made by [`fresh_dir`].
pub(crate) fn command(dir: &Path) -> Command {
    let mut command = command_of(Command::new(PROGRAM), dir);
    command.stdin(Stdio::null());
    command
}

fn command_of(mut command: Command, dir: &Path) -> Command {
    command.arg("-p").arg(dir).arg("-c").arg(dir.join("chappe.toml"));
    command
}

/// Runs a command to its end, within the deadline.
///
/// Its output goes to files: a pipe would be read until the last process that
/// holds it is gone, and a command may leave a daemon behind.
#[track_caller]
pub(crate) fn finish(command: &mut Command) -> Finished {
    let file = || tempfile::tempfile().expect("a file for the output");
    let handle = |file: &File| file.try_clone().expect("a second handle");
    let (mut stdout, mut stderr) = (file(), file());
    let mut child = command
        .stdout(handle(&stdout))
        .stderr(handle(&stderr))
        .spawn()
        .expect("the command starts");
    let status = wait_for(|| child.try_wait().expect("our own child"));
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
        panic!("not within {DEADLINE:?}: {command:?}, stdout {stdout:?}, stderr {stderr:?}");
    };
    Finished { code: status.code(), stdout, stderr }
}

/// What happens while none of a worker's threads runs: it then sees all at once.
#[track_caller]
pub(crate) fn while_stopped<T>(worker: i32, act: impl FnOnce() -> T) -> T {
    let pid = Pid::from_raw(worker);
    kill(pid, Signal::SIGSTOP).expect("it is there");
    wait_until("the worker has stopped", || proc::is_stopped(worker));
    let result = act();
    kill(pid, Signal::SIGCONT).expect("it is there");
    result
}

impl TestServer {
    /// Returns once every worker serves. The kernel picks the port and the
    /// server prints it, so nothing can race.
    #[track_caller]
    pub(crate) fn start(test: &str, toml: &str) -> Self {
        let mut program = Command::new(PROGRAM);
        program.stdin(Stdio::null());
        Self::start_program(program, test, toml)
    }

    /// Starts another program that is a server; returns once every worker serves.
    #[track_caller]
    pub(crate) fn start_program(program: Command, test: &str, toml: &str) -> Self {
        let dir = fresh_dir(test);
        fs::write(dir.join("chappe.toml"), configuration(toml)).expect("the configuration");
        let file = |name| File::create(dir.join(name)).expect("a file for the output");
        let is_unfused = std::env::var_os(IS_UNFUSED).is_some();
        let master = command_of(program, &dir)
            .args(UNFUSED.iter().filter(|_| is_unfused && !toml.contains("fuse =")))
            .arg("--foreground")
            .process_group(0)
            .stdout(file(STDOUT))
            .stderr(file(STDERR))
            .spawn()
            .expect("the server starts");
        let address = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut server = Self { master, address, dir, exit: None };
        // From here on a panic drops `server`, which shows the logs and cleans up.
        server.address = server.wait_ready();
        server
    }

    #[track_caller]
    fn wait_ready(&mut self) -> SocketAddr {
        wait_until("the line `ready ADDR`", || {
            let ended = self.master.try_wait().expect("our own child");
            assert!(ended.is_none(), "the server ended at start: {ended:?}");
            self.stdout().contains('\n')
        });
        let line = self.stdout();
        let addresses = line.strip_prefix("ready ").unwrap_or_else(|| panic!("{line:?}"));
        let first = addresses.split_whitespace().next();
        first.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{line:?}"))
    }

    /// All it has written to standard output.
    pub(crate) fn stdout(&self) -> String {
        self.read(STDOUT)
    }

    /// A file of its directory; empty while it is not there.
    pub(crate) fn read(&self, name: &str) -> String {
        let bytes = fs::read(self.dir.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A client with the tests' deadline.
    #[track_caller]
    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.address, DEADLINE).expect("connected")
    }

    /// The master's process id.
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.master.id()).expect("a process id")
    }

    /// The running workers.
    pub(crate) fn worker_pids(&self) -> Vec<i32> {
        proc::children(self.pid())
    }

    /// Waits until `count` workers run, none of which is `gone`.
    #[track_caller]
    pub(crate) fn wait_workers(&self, count: usize, gone: &[i32]) -> Vec<i32> {
        wait_until("the workers are as many as they should be", || {
            let pids = self.worker_pids();
            pids.len() == count && pids.iter().all(|pid| !gone.contains(pid))
        });
        self.worker_pids()
    }

    /// Waits until `count` workers serve, and no other is left.
    #[track_caller]
    pub(crate) fn wait_serving(&self, count: usize) {
        wait_until("all workers serve", || {
            let status = self.status();
            status.workers.len() == count && status.serving().count() == count
        });
    }

    /// Signals the master.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("the master takes signals");
    }

    /// Waits for the master's end.
    #[track_caller]
    pub(crate) fn wait_exit(&mut self) -> ExitStatus {
        wait_until("the master exits", || self.has_exited());
        self.exit.expect("it has")
    }

    fn has_exited(&mut self) -> bool {
        // Asked once it has ended, the child is reaped and its pid is no longer ours.
        if self.exit.is_none() {
            self.exit = self.master.try_wait().expect("our own child");
        }
        self.exit.is_some()
    }

    /// Waits until a log, `master` or `worker-N`, has a line with `needle`.
    #[track_caller]
    pub(crate) fn wait_log(&self, name: &str, needle: &str) {
        let file = format!("logs/{name}.log");
        wait_until(&format!("{needle:?} in {file}"), || self.read(&file).contains(needle));
    }

    /// Runs a subcommand against this server.
    pub(crate) fn command(&self, arguments: &[&str]) -> Finished {
        finish(command(&self.dir).args(arguments))
    }

    /// What `chappe status --json` says.
    #[track_caller]
    pub(crate) fn status_json(&self) -> Value {
        let status = self.command(&["status", "--json"]);
        assert_eq!(status.code, Some(0), "{status:?}");
        serde_json::from_str(&status.stdout).unwrap_or_else(|e| panic!("{e} in {}", status.stdout))
    }

    /// The same, as the type that master and commands share.
    #[track_caller]
    pub(crate) fn status(&self) -> Status {
        let status = self.status_json();
        Status::deserialize(&status).unwrap_or_else(|e| panic!("{e} in {status:#}"))
    }

    /// A number in the status, by its JSON pointer.
    #[track_caller]
    pub(crate) fn status_number(&self, pointer: &str) -> u64 {
        let status = self.status_json();
        let value = status.pointer(pointer).and_then(Value::as_u64);
        value.unwrap_or_else(|| panic!("no number at {pointer} in {status:#}"))
    }

    /// Waits until a number in the status is as it should be.
    #[track_caller]
    pub(crate) fn wait_status(&self, pointer: &str, is_right: impl Fn(u64) -> bool) {
        let mut last = 0;
        let held = wait_for(|| {
            last = self.status_number(pointer);
            is_right(last).then_some(())
        });
        assert!(held.is_some(), "{pointer} is still {last}");
    }

    /// Connections of all workers together.
    #[track_caller]
    pub(crate) fn connections(&self) -> u64 {
        self.status().workers.iter().map(|worker| u64::from(worker.connections)).sum()
    }

    /// Everything it has written, for the report of a failed test.
    fn print_logs(&self) {
        let mut files =
            vec![self.dir.join("chappe.toml"), self.dir.join(STDOUT), self.dir.join(STDERR)];
        let logs = fs::read_dir(self.dir.join("logs")).into_iter().flatten().flatten();
        // A test may have put something else there, which would be waited for.
        files.extend(logs.map(|entry| entry.path()).filter(|path| path.is_file()));
        for file in files {
            let bytes = fs::read(&file).unwrap_or_default();
            // The end is what tells; a log at level debug can be long.
            let tail = &bytes[bytes.len().saturating_sub(16 * 1024)..];
            eprintln!("--- {}\n{}", file.display(), String::from_utf8_lossy(tail));
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let group = self.pid();
        // While a member lives, the group's id can't become anybody else's: so
        // this reaches the server's own processes and no other, orphans too.
        if !self.has_exited() || !proc::group(group).is_empty() {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        if self.exit.is_none() {
            self.exit = self.master.wait().ok();
        }
        let left = wait_for(|| proc::group(group).is_empty().then_some(()));
        if std::thread::panicking() {
            self.print_logs();
            if left.is_none() {
                eprintln!("--- still running: {:?}", proc::group(group));
            }
        }
    }
}
