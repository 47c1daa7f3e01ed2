//! A server whose workers only play: what they are told by `[application] play`.
//! The program that includes this starts itself with the first argument `server`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::thread;

use chappe::prefork::{self, Assignment, Message, Parcel, ReceivedParcel};
use chappe_shm::Stage;
use chappe_sys::process::ExitReason;
use chappe_sys::signals::{self, Signals};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::wait::{wait_for, wait_until};

/// Runs the tests, or the server if that is what this process is to be.
pub(crate) fn run(tests: &[(&str, fn())]) -> ExitCode {
    run_as(tests, play)
}

/// The same with workers that do something else.
pub(crate) fn run_as(tests: &[(&str, fn())], play: fn(Assignment) -> ExitReason) -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.peek().is_some_and(|first| first == "server") {
        return prefork::run(arguments, play);
    }
    let only = arguments.next().filter(|name| !name.to_string_lossy().starts_with('-'));
    let chosen: Vec<_> = tests
        .iter()
        .filter(|(name, _)| {
            only.as_ref().is_none_or(|part| name.contains(&*part.to_string_lossy()))
        })
        .collect();
    let failed = chosen.iter().filter(|(name, test)| !passes(name, *test)).count();
    println!("{} passed, {failed} failed", chosen.len() - failed);
    ExitCode::from(u8::from(failed > 0))
}

fn passes(name: &str, test: fn()) -> bool {
    let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
    println!("{name}: {}", if passed { "ok" } else { "FAILED" });
    passed
}

// What a worker plays.

pub(crate) fn play(assignment: Assignment) -> ExitReason {
    let part = assignment.application().get("play").and_then(|part| part.as_str());
    let part = part.unwrap_or("well").to_owned();
    let first = assignment.slot.connection_ids(1) == 1;
    match part.as_str() {
        "die at boot" => return ExitReason::CannotBoot,
        // The first of all workers comes up, and none after it.
        "die again and again" if !first => return ExitReason::CannotBoot,
        "ready when told" => wait_for_usr2(),
        "first is well" if first => {}
        "last is late" if assignment.number == 0 => {}
        "never ready" | "first is well" | "last is late" => loop {
            thread::park();
        },
        _ => {}
    }
    let mut signals = Signals::new(&[Signal::SIGTERM, Signal::SIGINT]).expect("signals");
    signals::unblock().expect("signals");
    assignment.slot.mark_ready();
    assignment.channel.send(Message::Ready).expect("the master lives");
    let mut followed = Stage::Wait;
    loop {
        let mut fds = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(assignment.channel.as_fd(), PollFlags::POLLIN),
        ];
        let _interrupted = poll(&mut fds, PollTimeout::NONE);
        if !signals.pending().is_empty() && part != "stubborn" {
            return ExitReason::Stopped;
        }
        let received = assignment.channel.try_receive_parcel().expect("channel");
        let (message, value) = match received {
            Some(ReceivedParcel::Parcel(Parcel { message, value, .. })) => (message, value),
            Some(ReceivedParcel::Closed) => return ExitReason::Stopped,
            Some(ReceivedParcel::Nonsense) | None => continue,
        };
        if message == Message::SwapLog {
            assignment.channel.send_parcel(Message::Done, value, None).expect("told");
        }
        let stage = assignment.slot.orders().stage;
        if stage == followed {
            continue;
        }
        followed = stage;
        if stage == Stage::Serve {
            log::info!("worker serves");
            assignment.slot.mark_serving();
        } else if stage.is_drain() {
            log::info!("worker drains");
            assignment.slot.mark_draining();
            if part != "stubborn" && part != "linger" {
                return ExitReason::Stopped;
            }
        }
    }
}

fn wait_for_usr2() {
    let mut told = Signals::new(&[Signal::SIGUSR2]).expect("signals");
    signals::unblock().expect("signals");
    while told.pending().is_empty() {
        let mut fds = [PollFd::new(told.as_fd(), PollFlags::POLLIN)];
        let _interrupted = poll(&mut fds, PollTimeout::NONE);
    }
}

// The harness.

pub(crate) struct Site {
    pub(crate) directory: TempDir,
}

impl Site {
    /// A prefix of its own with this in its configuration.
    pub(crate) fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(directory.path().join("conf")).expect("conf");
        let site = Self { directory };
        let listen = "[[listen]]\naddress = \"127.0.0.1:0\"\n";
        site.configure(&format!("worker_processes = 2\n{text}\n{listen}"));
        site
    }

    pub(crate) fn configure(&self, text: &str) {
        fs::write(self.path("conf/chappe.toml"), text).expect("configuration");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg("server").arg("-p").arg(self.directory.path()).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("command")
    }

    pub(crate) fn start(&self) -> Server<'_> {
        let mut master = self
            .command(&["--foreground"])
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("server");
        let mut line = String::new();
        let stdout = master.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("stdout");
        let server = Server { master, site: self, line };
        assert!(server.line.starts_with("ready 127.0.0.1:"), "{:?}", server.line);
        server
    }

    pub(crate) fn status(&self) -> Value {
        let output = self.run(&["status", "--json"]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path("logs").join(name)).unwrap_or_default()
    }

    pub(crate) fn assert_nothing_left(&self) {
        let marker = self.directory.path().to_string_lossy().into_owned();
        wait_until("nothing is left running", || processes_of(&marker).is_empty());
        assert!(!self.path("run/chappe.pid").exists());
        assert!(!self.path("run/chappe.sock").exists());
    }
}

/// Processes that have a log of this site open.
pub(crate) fn processes_of(directory: &str) -> Vec<Pid> {
    let numbers = fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_string_lossy().parse::<i32>().ok());
    numbers
        .filter(|number| {
            let Ok(fds) = fs::read_dir(format!("/proc/{number}/fd")) else { return false };
            fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
                .any(|target| target.to_string_lossy().starts_with(directory))
        })
        .map(Pid::from_raw)
        .collect()
}

pub(crate) struct Server<'a> {
    pub(crate) master: Child,
    site: &'a Site,
    pub(crate) line: String,
}

impl Server<'_> {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.master.id()).expect("a pid"))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the master lives");
    }

    pub(crate) fn wait(&mut self) -> Option<i32> {
        let ended = wait_for(|| self.master.try_wait().expect("our child"));
        ended.expect("the master ends").code()
    }

    pub(crate) fn workers(&self) -> Vec<Pid> {
        worker_pids(&self.site.status())
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        let _gone = killpg(self.pid(), Signal::SIGKILL);
        let _gone = self.master.wait();
        if thread::panicking() {
            println!("--- master.log\n{}", self.site.log("master.log"));
        }
    }
}

pub(crate) fn worker_pids(status: &Value) -> Vec<Pid> {
    status["workers"]
        .as_array()
        .expect("workers")
        .iter()
        .filter(|worker| worker["state"] == "serving")
        .map(|worker| worker["pid"].as_i64().expect("pid"))
        .map(|pid| Pid::from_raw(i32::try_from(pid).expect("a pid")))
        .collect()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
