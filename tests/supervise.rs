//! The master with workers that only play: start, replacement, stop, commands.
//!
//! The real command line runs in processes of their own: this program starts
//! itself with the first argument `server`, and is then a `chappe` whose workers
//! do nothing but what `[application] play` tells them. A runner of its own, since
//! such a process must have one thread.

use std::fs;
use std::io::Read;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

#[path = "support/site.rs"]
mod site;
#[path = "support/wait.rs"]
mod wait;

use site::{Site, processes_of, text, worker_pids};
use wait::{wait_for, wait_until};

fn main() -> ExitCode {
    let tests: &[(&str, fn())] = &[
        ("a_server_starts_tells_its_port_and_stops", a_server_starts_tells_its_port_and_stops),
        ("quit_lets_workers_drain", quit_lets_workers_drain),
        ("a_killed_worker_is_replaced", a_killed_worker_is_replaced),
        ("a_stopped_worker_is_replaced_and_not_a_death", a_stopped_worker_is_replaced),
        ("workers_that_die_young_are_paced", workers_that_die_young_are_paced),
        ("what_cannot_be_written_fails_the_start", what_cannot_be_written_fails_the_start),
        ("a_worker_that_cannot_boot_fails_the_start", a_worker_that_cannot_boot_fails_the_start),
        ("a_worker_that_is_not_ready_fails_the_start", a_worker_that_is_not_ready),
        ("the_worker_that_is_late_is_the_one_that_is_named", the_late_worker_is_named),
        ("workers_that_never_get_ready_are_paced", workers_that_never_get_ready_are_paced),
        ("a_daemon_reports_a_failed_start", a_daemon_reports_a_failed_start),
        ("a_start_that_is_interrupted_leaves_nothing", an_interrupted_start_leaves_nothing),
        ("a_second_instance_is_refused", a_second_instance_is_refused),
        ("a_taken_port_is_named", a_taken_port_is_named),
        ("a_daemon_starts_and_is_stopped_by_signal", a_daemon_starts_and_is_stopped_by_signal),
        ("stop_and_quit_wait_until_the_master_is_gone", stop_and_quit_wait),
        ("workers_keep_no_descriptor_of_the_master", workers_keep_no_descriptor),
        ("a_drain_that_takes_too_long_is_cut", a_drain_that_takes_too_long_is_cut),
        ("a_second_stop_kills", a_second_stop_kills),
        ("a_signal_to_the_group_and_the_process_is_one", a_signal_to_the_group_and_the_process),
        ("a_parent_that_ignores_children_starts_a_daemon", a_parent_that_ignores_children),
        ("a_daemon_keeps_no_descriptor_that_it_inherited", a_daemon_keeps_no_descriptor),
        ("workers_of_a_killed_master_go", workers_of_a_killed_master_go),
        ("commands_without_a_master_fail", commands_without_a_master_fail),
        ("the_configuration_can_be_checked_and_printed", the_configuration_can_be_checked),
        ("a_wrong_configuration_is_exit_code_2", a_wrong_configuration),
        ("a_reader_that_has_gone_is_no_failure", a_reader_that_has_gone_is_no_failure),
        ("reserved_signals_change_nothing", reserved_signals_change_nothing),
    ];
    site::run(tests)
}

// The tests.

fn a_server_starts_tells_its_port_and_stops() {
    let site = Site::new("");
    let mut server = site.start();
    let status = site.status();
    assert_eq!(status["master"]["pid"], server.master.id());
    assert_eq!(status["master"]["generation"], 1);
    let address = server.line.trim_end().trim_start_matches("ready ");
    assert_eq!(status["master"]["listen"][0], address);
    assert_eq!(worker_pids(&status).len(), 2);
    assert_eq!(status["reload"]["last"], Value::Null);
    assert_eq!(status["semaphores"]["connection_permits"], 100_000);
    assert_eq!(status["semaphores"]["worker_ready"], 0);
    assert_eq!(status["totals"]["workers_died"], 0);
    let table = text(&site.run(&["status"]).stdout);
    assert_eq!(table.matches("serving").count(), 2, "{table}");
    let title = |pid: Pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("cmdline");
    assert_eq!(title(server.pid()).trim_end_matches('\0'), "chappe: master process");
    let worker = title(worker_pids(&status)[1]);
    assert_eq!(worker.trim_end_matches('\0'), "chappe: worker process 1");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait(), Some(0));
    assert!(site.log("worker-1.log").contains("worker serves"));
    site.assert_nothing_left();
}

fn quit_lets_workers_drain() {
    let site = Site::new("");
    let mut server = site.start();
    server.signal(Signal::SIGQUIT);
    assert_eq!(server.wait(), Some(0));
    for log in ["worker-0.log", "worker-1.log"] {
        assert!(site.log(log).contains("worker drains"), "{log}");
    }
    site.assert_nothing_left();
}

fn a_killed_worker_is_replaced() {
    let site = Site::new("");
    let server = site.start();
    let before = server.workers();
    kill(before[0], Signal::SIGKILL).expect("a worker");
    wait_until("there are two again", || {
        let now = server.workers();
        now.len() == 2 && !now.contains(&before[0])
    });
    assert!(server.workers().contains(&before[1]));
    assert_eq!(site.status()["totals"]["workers_died"], 1);
    let log = site.log("master.log");
    let line = format!("worker ended worker=0 pid={} signal=SIGKILL uptime_ms=", before[0]);
    assert!(log.contains(&line), "{log}");
}

fn a_stopped_worker_is_replaced() {
    let site = Site::new("");
    let server = site.start();
    let before = server.workers();
    kill(before[1], Signal::SIGTERM).expect("a worker");
    wait_until("there are two again", || {
        let now = server.workers();
        now.len() == 2 && !now.contains(&before[1])
    });
    assert_eq!(site.status()["totals"]["workers_died"], 0);
}

fn workers_that_die_young_are_paced() {
    let site = Site::new("[application]\nplay = \"die again and again\"");
    site.configure(
        &fs::read_to_string(site.path("conf/chappe.toml")).expect("ours").replacen("= 2", "= 1", 1),
    );
    let mut server = site.start();
    kill(server.workers()[0], Signal::SIGKILL).expect("a worker");
    for pause in [100, 200, 400] {
        wait_until("the pause has doubled", || {
            site.log("master.log").contains(&format!("pause_ms={pause}"))
        });
    }
    wait_until("status tells who is awaited", || {
        let status = site.run(&["status", "--json"]);
        let status: Value = serde_json::from_slice(&status.stdout).expect("status is JSON");
        status["vacancies"][0]["worker"] == 0 && status["vacancies"][0]["due_in_ms"].is_u64()
    });
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait(), Some(0));
    site.assert_nothing_left();
}

fn what_cannot_be_written_fails_the_start() {
    for (toml, named) in [
        ("[log]\ndirectory = \"conf/chappe.toml\"", "conf/chappe.toml"),
        ("pid_file = \"conf\"", "/conf"),
        ("control_socket = \"conf/chappe.toml\"", "control socket"),
    ] {
        let site = Site::new(toml);
        for how in [&["--foreground"][..], &["--set", "daemon=true"]] {
            let output = site.run(how);
            let reason = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{toml}: {reason}");
            assert!(reason.contains(named), "{toml}: {reason}");
            site.assert_nothing_left();
        }
    }
}

fn a_worker_that_cannot_boot_fails_the_start() {
    let site = Site::new("[application]\nplay = \"die at boot\"");
    let output = site.run(&["--foreground"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "");
    let reason = text(&output.stderr);
    assert!(reason.contains("ended before it was ready: exit=2; see "), "{reason}");
    site.assert_nothing_left();
}

fn a_worker_that_is_not_ready() {
    let site = Site::new("worker_ready_timeout = \"200ms\"\n[application]\nplay = \"never ready\"");
    let output = site.run(&["--foreground"]);
    assert_eq!(output.status.code(), Some(1));
    let reason = text(&output.stderr);
    assert!(reason.contains("was not ready within 200ms"), "{reason}");
    site.assert_nothing_left();
}

fn the_late_worker_is_named() {
    let site =
        Site::new("worker_ready_timeout = \"200ms\"\n[application]\nplay = \"last is late\"");
    let output = site.run(&["--foreground"]);
    assert_eq!(output.status.code(), Some(1));
    let reason = text(&output.stderr);
    assert!(reason.contains("worker 1 was not ready within 200ms"), "{reason}");
    assert_eq!(reason.matches("worker was not ready in time").count(), 1, "{reason}");
    site.assert_nothing_left();
}

fn workers_that_never_get_ready_are_paced() {
    let site = Site::new("worker_ready_timeout = \"1s\"\n[application]\nplay = \"first is well\"");
    site.configure(
        &fs::read_to_string(site.path("conf/chappe.toml")).expect("ours").replacen("= 2", "= 1", 1),
    );
    let server = site.start();
    kill(server.workers()[0], Signal::SIGKILL).expect("a worker");
    // The first death is young, the others have lived for the time they had.
    for pause in [100, 200, 400] {
        wait_until("the pause has doubled", || {
            site.log("master.log").contains(&format!("pause_ms={pause}"))
        });
    }
    assert!(site.log("master.log").contains("worker was not ready in time"));
}

fn a_daemon_reports_a_failed_start() {
    let site = Site::new("[application]\nplay = \"die at boot\"");
    let output = site.run(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "");
    assert!(text(&output.stderr).contains("ended before it was ready"), "{output:?}");
    site.assert_nothing_left();
}

fn an_interrupted_start_leaves_nothing() {
    let site = Site::new("[application]\nplay = \"ready when told\"");
    let mut launcher = site.command(&[]).stderr(Stdio::null()).spawn().expect("launcher");
    let workers = || {
        let status = site.run(&["status", "--json"]);
        let status: Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
        let rows = status["workers"].as_array().cloned().unwrap_or_default();
        let pids = rows.iter().filter_map(|row| row["pid"].as_i64());
        pids.filter_map(|pid| i32::try_from(pid).ok()).map(Pid::from_raw).collect::<Vec<_>>()
    };
    wait_until("the workers wait", || workers().len() == 2);
    // As Ctrl-C does: the master is in a session of its own and hears nothing of it.
    let pid = i32::try_from(launcher.id()).expect("a pid");
    kill(Pid::from_raw(pid), Signal::SIGINT).expect("our child");
    launcher.wait().expect("our child");
    wait_until("the workers are told", || {
        let pids = workers();
        for pid in &pids {
            let _gone = kill(*pid, Signal::SIGUSR2);
        }
        site.log("master.log").contains("nobody waits for this start any more") || pids.is_empty()
    });
    wait_until("the master is gone", || site.log("master.log").contains("master stopped"));
    site.assert_nothing_left();
}

fn a_second_instance_is_refused() {
    let site = Site::new("");
    let server = site.start();
    for arguments in [&["--foreground"][..], &[]] {
        let output = site.run(arguments);
        assert_eq!(output.status.code(), Some(1));
        let reason = text(&output.stderr);
        assert!(reason.contains(&format!("already running, pid {}", server.pid())), "{reason}");
    }
    assert_eq!(server.workers().len(), 2);
}

fn a_taken_port_is_named() {
    let one = Site::new("");
    let server = one.start();
    let address = server.line.trim_end().trim_start_matches("ready ");
    let other = Site::new("");
    other.configure(&format!("[[listen]]\naddress = \"{address}\"\n"));
    let output = other.run(&[]);
    assert_eq!(output.status.code(), Some(1));
    let reason = text(&output.stderr);
    assert!(reason.contains(address) && reason.contains("in use"), "{reason}");
    other.assert_nothing_left();
}

/// Starts a daemon; kills what is left of it in the end, so that a failed test
/// leaves nothing behind.
struct Daemon<'a>(&'a Site, Pid);

impl<'a> Daemon<'a> {
    fn start(site: &'a Site) -> Self {
        let output = site.run(&[]);
        assert!(output.status.success(), "{output:?}");
        let line = text(&output.stdout);
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.starts_with("chappe started: listening on 127.0.0.1:"), "{line}");
        let pid = fs::read_to_string(site.path("run/chappe.pid")).expect("pid file");
        let pid = Pid::from_raw(pid.trim_end().parse().expect("a pid"));
        assert!(line.contains(&format!("master pid {pid}, logs in ")), "{line}");
        Self(site, pid)
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let marker = self.0.directory.path().to_string_lossy().into_owned();
        for pid in processes_of(&marker) {
            let _gone = kill(pid, Signal::SIGKILL);
        }
    }
}

fn a_daemon_starts_and_is_stopped_by_signal() {
    let site = Site::new("");
    for signal in ["stop", "quit"] {
        let daemon = Daemon::start(&site);
        let status = site.status();
        assert_eq!(status["master"]["pid"], daemon.1.as_raw());
        assert_eq!(worker_pids(&status).len(), 2);
        assert!(site.run(&["-s", signal]).status.success());
        wait_until("the daemon is gone", || !site.path("run/chappe.pid").exists());
        site.assert_nothing_left();
    }
}

fn stop_and_quit_wait() {
    let site = Site::new("");
    for command in ["stop", "quit"] {
        let daemon = Daemon::start(&site);
        let output = site.run(&[command, "--wait"]);
        assert!(output.status.success(), "{output:?}");
        assert!(kill(daemon.1, None).is_err() || is_zombie(daemon.1), "{command}: still there");
        site.assert_nothing_left();
    }
}

/// Nobody may be there to reap a daemon in a container.
fn is_zombie(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

fn workers_keep_no_descriptor() {
    let site = Site::new("");
    let server = site.start();
    for (number, pid) in server.workers().iter().enumerate() {
        let mut kinds: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("our worker")
            .map(|fd| fd.expect("entry").path())
            .map(|fd| fs::read_link(fd).expect("link").to_string_lossy().into_owned())
            .map(|target| target.split([':', '[']).next().expect("one part").to_owned())
            .collect();
        kinds.sort();
        let log = site.path(&format!("logs/worker-{number}.log"));
        // stdin, stdout, log; stderr is the pipe; channel end, listener, and the
        // two ends of the player's own signal pipe.
        let log = log.to_string_lossy();
        let expected =
            ["/dev/null", "/dev/null", &log, "pipe", "socket", "socket", "socket", "socket"];
        assert_eq!(kinds, expected);
    }
}

fn a_drain_that_takes_too_long_is_cut() {
    let site = Site::new("worker_shutdown_timeout = \"100ms\"\n[application]\nplay = \"stubborn\"");
    let mut server = site.start();
    server.signal(Signal::SIGQUIT);
    assert_eq!(server.wait(), Some(0));
    assert!(site.log("master.log").contains("killing 2 workers that took too long"));
    site.assert_nothing_left();
}

fn a_second_stop_kills() {
    let site = Site::new("[application]\nplay = \"stubborn\"");
    let mut server = site.start();
    server.signal(Signal::SIGTERM);
    wait_until("the master is stopping", || site.log("master.log").contains("stopping now"));
    server.signal(Signal::SIGINT);
    let begun = Instant::now();
    assert_eq!(server.wait(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(4));
    site.assert_nothing_left();
}

/// As timeout(1) does it.
fn a_signal_to_the_group_and_the_process() {
    let site = Site::new("");
    let mut server = site.start();
    server.signal(Signal::SIGTERM);
    wait_until("the master is stopping", || site.log("master.log").contains("stopping now"));
    // It may have ended by now.
    let _gone = kill(server.pid(), Signal::SIGTERM);
    assert_eq!(server.wait(), Some(0));
    let log = site.log("master.log");
    assert!(!log.contains("a second time"), "{log}");
    assert!(!log.contains("signal=SIGKILL"), "{log}");
}

/// A start from a shell script.
fn scripted(site: &Site, script: &str) -> Command {
    let mut shell = Command::new("sh");
    let program = std::env::current_exe().expect("this program");
    shell.arg("-c").arg(script).arg(program).arg("server").arg("-p").arg(site.directory.path());
    shell.stdin(Stdio::null());
    shell
}

fn a_parent_that_ignores_children() {
    let site = Site::new("");
    let mut shell = scripted(&site, "exec env --ignore-signal=CHLD \"$0\" \"$@\"");
    let output = shell.output().expect("a shell");
    assert!(output.status.success(), "{output:?}");
    let status = site.status();
    assert_eq!(worker_pids(&status).len(), 2);
    assert!(site.run(&["stop", "--wait"]).status.success());
    site.assert_nothing_left();
}

fn a_daemon_keeps_no_descriptor() {
    let site = Site::new("");
    // What the shell has at 9 is our pipe; the start itself writes nothing there.
    let mut shell = scripted(&site, "exec 9>&1; exec \"$0\" \"$@\" > /dev/null");
    let mut started = shell.stdout(Stdio::piped()).spawn().expect("a shell");
    let pipe = started.stdout.take().expect("piped");
    assert!(started.wait().expect("our child").success());
    let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
    nix::fcntl::fcntl(&pipe, flags).expect("flags");
    let mut pipe = pipe;
    let mut has_ended = || matches!(pipe.read(&mut [0; 9]), Ok(0));
    let ended = wait_for(|| has_ended().then_some(()));
    assert!(site.run(&["stop", "--wait"]).status.success());
    assert!(ended.is_some(), "the daemon still has it");
    site.assert_nothing_left();
}

fn workers_of_a_killed_master_go() {
    let site = Site::new("");
    let mut server = site.start();
    server.signal(Signal::SIGKILL);
    assert_eq!(server.wait(), None);
    let marker = site.directory.path().to_string_lossy().into_owned();
    wait_until("the workers are gone", || processes_of(&marker).is_empty());
    // What the dead master left behind is no obstacle.
    drop(server);
    let mut next = site.start();
    next.signal(Signal::SIGTERM);
    assert_eq!(next.wait(), Some(0));
    site.assert_nothing_left();
}

fn commands_without_a_master_fail() {
    let site = Site::new("");
    for arguments in [&["status"][..], &["stop"], &["quit", "--wait"], &["-s", "stop"]] {
        let output = site.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(text(&output.stderr).contains("no master is running"), "{output:?}");
    }
}

fn the_configuration_can_be_checked() {
    let site = Site::new("");
    let checked = site.run(&["-t"]);
    assert!(checked.status.success(), "{checked:?}");
    assert_eq!(text(&checked.stdout), "");
    assert!(text(&checked.stderr).contains("conf/chappe.toml is valid"), "{checked:?}");
    assert!(!text(&site.run(&["-t", "-q"]).stderr).contains("is valid"));
    let printed = site.run(&["-T"]);
    assert!(printed.status.success(), "{printed:?}");
    site.configure(&text(&printed.stdout));
    let again = site.run(&["-T"]);
    assert!(again.status.success(), "{again:?}");
    assert_eq!(again.stdout, printed.stdout);
}

fn a_wrong_configuration() {
    let site = Site::new("worker_process = 1");
    for arguments in [&["-t"][..], &["-T"], &["--foreground"], &[], &["-s", "stop"]] {
        let output = site.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(text(&output.stdout), "");
        assert!(text(&output.stderr).contains("worker_process"), "{output:?}");
    }
    assert_eq!(site.run(&["--what"]).status.code(), Some(2));
    assert!(site.run(&["-h"]).status.success());
    site.assert_nothing_left();
}

fn a_reader_that_has_gone_is_no_failure() {
    let site = Site::new("");
    let _server = site.start();
    let mut status = site.command(&["status"]).stdout(Stdio::piped()).spawn().expect("status");
    drop(status.stdout.take());
    assert!(status.wait().expect("our child").success());
}

fn reserved_signals_change_nothing() {
    let site = Site::new("");
    let server = site.start();
    let before = server.workers();
    server.signal(Signal::SIGUSR2);
    wait_until("the signal was seen", || {
        site.log("master.log").contains("SIGUSR2 is not available")
    });
    assert_eq!(server.workers(), before);
}
