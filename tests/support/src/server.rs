//! Starting, watching and ending a real server.

use std::fs::File;
use std::net::SocketAddr;
use std::ops::Deref;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use chappe_client::Connection;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::proc;
use super::site::{Site, command_of, configuration, program};
use super::wait::{DEADLINE, wait_for, wait_until};

/// What a server's output is written to, in its directory.
const STDOUT: &str = "stdout.txt";
const STDERR: &str = "stderr.txt";

/// If this variable is set, every message goes through all three threads: the same
/// tests then show the same of the long way.
const IS_UNFUSED: &str = "CHAPPE_TEST_UNFUSED";
const UNFUSED: [&str; 2] = ["--set", "worker.fuse=false"];

/// A server in the foreground, in a directory and a process group of its own: what can be
/// done at its [`Site`] can be done with it. Dropping it ends its processes, whatever state
/// they are in.
#[derive(Debug)]
pub struct TestServer {
    site: Site,
    master: Child,
    /// The first address of the `ready` line.
    pub address: SocketAddr,
    exit: Option<ExitStatus>,
}

impl Deref for TestServer {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

impl Site {
    /// Starts the program in the foreground; returns once every worker serves.
    #[track_caller]
    pub fn start(&self) -> TestServer {
        TestServer::at(self.clone(), self.command(&[]))
    }
}

impl TestServer {
    /// Starts the stock server in a directory of its own; returns once every worker serves.
    /// What `toml` does not say is as [`configuration`] has it.
    #[track_caller]
    pub fn start(test: &str, toml: &str) -> Self {
        let mut command = Command::new(program("chappe"));
        command.stdin(Stdio::null());
        Self::start_program(command, test, toml)
    }

    /// Starts a program that becomes the stock server.
    #[track_caller]
    pub fn start_program(command: Command, test: &str, toml: &str) -> Self {
        let site = Site::new("chappe", test, &configuration(toml));
        let command = command_of(command, &site.dir);
        Self::start_at(site, command, toml)
    }

    /// Starts the server of [`application`](crate::application).
    #[track_caller]
    pub fn start_application(test: &str, toml: &str, prepare: impl FnOnce(&mut Command)) -> Self {
        let site = Site::new("application", test, &configuration(toml));
        let mut command = site.command(&[]);
        prepare(&mut command);
        Self::start_at(site, command, toml)
    }

    /// Starts the program of a site whose configuration is made from `toml`.
    #[track_caller]
    pub fn start_in(site: &Site, toml: &str) -> Self {
        Self::start_at(site.clone(), site.command(&[]), toml)
    }

    #[track_caller]
    fn start_at(site: Site, mut command: Command, toml: &str) -> Self {
        if std::env::var_os(IS_UNFUSED).is_some() && !toml.contains("fuse =") {
            command.args(UNFUSED);
        }
        Self::at(site, command)
    }

    /// The kernel picks the port and the server prints it, so nothing can race.
    #[track_caller]
    fn at(site: Site, mut command: Command) -> Self {
        let file = |name| File::create(site.path(name)).expect("a file for the output");
        let master = command
            .arg("--foreground")
            .process_group(0)
            .stdout(file(STDOUT))
            .stderr(file(STDERR))
            .spawn()
            .expect("the server starts");
        let address = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut server = Self { site, master, address, exit: None };
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
    pub fn stdout(&self) -> String {
        self.read(STDOUT)
    }

    /// A client with the tests' deadline.
    #[track_caller]
    pub fn connect(&self) -> Connection {
        Connection::connect(self.address, DEADLINE).expect("connected")
    }

    /// The master's process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.master.id()).expect("a process id")
    }

    /// The running workers.
    pub fn worker_pids(&self) -> Vec<i32> {
        proc::workers(self.pid())
    }

    /// Waits until `count` workers run, none of which is `gone`.
    #[track_caller]
    pub fn wait_workers(&self, count: usize, gone: &[i32]) -> Vec<i32> {
        wait_until("the workers are as many as they should be", || {
            let pids = self.worker_pids();
            pids.len() == count && pids.iter().all(|pid| !gone.contains(pid))
        });
        self.worker_pids()
    }

    /// Signals the master.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("the master takes signals");
    }

    /// Waits for the master's end.
    #[track_caller]
    pub fn wait_exit(&mut self) -> ExitStatus {
        wait_until("the master exits", || self.has_exited());
        self.exit.expect("it has")
    }

    fn has_exited(&mut self) -> bool {
        if self.exit.is_none() {
            self.exit = self.master.try_wait().expect("our own child");
        }
        self.exit.is_some()
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
            self.print_files(&["chappe.toml", STDOUT, STDERR]);
            if left.is_none() {
                eprintln!("--- still running: {:?}", proc::group(group));
            }
        }
    }
}

/// What happens while none of a worker's threads runs: it then sees all at once.
#[track_caller]
pub fn while_stopped<T>(worker: i32, act: impl FnOnce() -> T) -> T {
    let pid = Pid::from_raw(worker);
    kill(pid, Signal::SIGSTOP).expect("it is there");
    wait_until("the worker has stopped", || proc::is_stopped(worker));
    let result = act();
    kill(pid, Signal::SIGCONT).expect("it is there");
    result
}
