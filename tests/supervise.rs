//! The master with workers that only play: start, replacement, stop, commands. Their server
//! is a `chappe` whose workers do nothing but what `[application] play` says.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use chappe::control::{self, Status};
use chappe_testkit::site::{pid_of, program, serving};
use chappe_testkit::{Daemon, Finished, Site, proc, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A server of players with this in its configuration.
fn site(text: &str) -> Site {
    let listen = "[[listen]]\naddress = \"127.0.0.1:0\"\n";
    let text = format!("worker_processes = 2\n{text}\n{listen}");
    Site::new("players", "supervise", &text)
}

#[test]
fn a_server_starts_tells_its_port_and_stops() {
    let site = site("");
    let mut server = site.start();
    let status = site.status();
    assert_eq!(i32::try_from(status.master.pid), Ok(server.pid()));
    assert_eq!(status.master.generation, 1);
    assert_eq!(status.master.listen, [server.address.to_string()]);
    assert_eq!(serving(&status).len(), 2);
    assert_eq!(status.reload.last, None);
    assert_eq!(status.semaphores.connection_permits, Some(100_000));
    assert_eq!(status.semaphores.worker_ready, Some(0));
    assert_eq!(site.total("workers_died"), 0);
    let table = site.run(&["status"]).stdout;
    assert_eq!(table.matches("serving").count(), 2, "{table}");
    let title = |pid: Pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("cmdline");
    assert_eq!(title(Pid::from_raw(server.pid())).trim_end_matches('\0'), "chappe: master process");
    let worker = title(serving(&status)[1]);
    assert_eq!(worker.trim_end_matches('\0'), "chappe: worker process 1");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    assert_eq!(site.events("worker-1", "worker.serves").len(), 1);
    site.assert_nothing_left();
}

#[test]
fn quit_lets_workers_drain() {
    let site = site("");
    let mut server = site.start();
    server.signal(Signal::SIGQUIT);
    assert_eq!(server.wait_exit().code(), Some(0));
    for log in ["worker-0", "worker-1"] {
        assert_eq!(site.events(log, "worker.drains").len(), 1, "{log}");
    }
    site.assert_nothing_left();
}

#[test]
fn a_killed_worker_is_replaced() {
    let site = site("");
    let server = site.start();
    let before = server.serving();
    kill(before[0], Signal::SIGKILL).expect("a worker");
    wait_until("there are two again", || {
        let now = server.serving();
        now.len() == 2 && !now.contains(&before[0])
    });
    assert!(server.serving().contains(&before[1]));
    assert_eq!(site.total("workers_died"), 1);
    let log = site.log("master");
    let line = format!("worker ended worker=0 pid={} signal=SIGKILL uptime_ms=", before[0]);
    assert!(log.contains(&line), "{log}");
}

#[test]
fn a_stopped_worker_is_replaced_and_not_a_death() {
    let site = site("");
    let server = site.start();
    let before = server.serving();
    kill(before[1], Signal::SIGTERM).expect("a worker");
    wait_until("there are two again", || {
        let now = server.serving();
        now.len() == 2 && !now.contains(&before[1])
    });
    assert_eq!(site.total("workers_died"), 0);
}

#[test]
fn workers_that_die_young_are_paced() {
    let site = site("[application]\nplay = \"die again and again\"");
    site.configure(
        &fs::read_to_string(site.path("chappe.toml")).expect("ours").replacen("= 2", "= 1", 1),
    );
    let mut server = site.start();
    kill(server.serving()[0], Signal::SIGKILL).expect("a worker");
    for pause in [100, 200, 400] {
        site.wait_event("master", "worker.paused", &format!("pause_ms={pause}"));
    }
    wait_until("status tells who is awaited", || {
        site.status().vacancies.first().is_some_and(|vacancy| vacancy.worker == 0)
    });
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    site.assert_nothing_left();
}

#[test]
fn what_cannot_be_written_fails_the_start() {
    for (toml, named) in [
        ("[log]\ndirectory = \"chappe.toml\"", "chappe.toml"),
        ("pid_file = \"a_directory\"", "/a_directory"),
        ("control_socket = \"chappe.toml\"", "control socket"),
    ] {
        let site = site(toml);
        fs::create_dir(site.path("a_directory")).expect("a directory");
        for how in [&["--foreground"][..], &["--set", "daemon=true"]] {
            let output = site.run(how);
            let reason = output.stderr;
            assert_eq!(output.code, Some(1), "{toml}: {reason}");
            assert!(reason.contains(named), "{toml}: {reason}");
            site.assert_nothing_left();
        }
    }
}

#[test]
fn a_worker_that_cannot_boot_fails_the_start() {
    let site = site("[application]\nplay = \"die at boot\"");
    let output = site.run(&["--foreground"]);
    assert_eq!(output.code, Some(1));
    assert_eq!(output.stdout, "");
    let reason = output.stderr;
    assert!(reason.contains("ended before it was ready: exit=2; see "), "{reason}");
    site.assert_nothing_left();
}

#[test]
fn a_worker_that_is_not_ready_fails_the_start() {
    let site = site("worker_ready_timeout = \"200ms\"\n[application]\nplay = \"never ready\"");
    let output = site.run(&["--foreground"]);
    assert_eq!(output.code, Some(1));
    let reason = output.stderr;
    assert!(reason.contains("was not ready within 200ms"), "{reason}");
    site.assert_nothing_left();
}

#[test]
fn the_worker_that_is_late_is_the_one_that_is_named() {
    let site = site("worker_ready_timeout = \"200ms\"\n[application]\nplay = \"last is late\"");
    let output = site.run(&["--foreground"]);
    assert_eq!(output.code, Some(1));
    let reason = output.stderr;
    assert!(reason.contains("worker 1 was not ready within 200ms"), "{reason}");
    assert_eq!(reason.matches("worker was not ready in time").count(), 1, "{reason}");
    site.assert_nothing_left();
}

#[test]
fn workers_that_never_get_ready_are_paced() {
    let site = site("worker_ready_timeout = \"1s\"\n[application]\nplay = \"first is well\"");
    site.configure(
        &fs::read_to_string(site.path("chappe.toml")).expect("ours").replacen("= 2", "= 1", 1),
    );
    let server = site.start();
    kill(server.serving()[0], Signal::SIGKILL).expect("a worker");
    // The first death is young, the others have lived for the time they had.
    for pause in [100, 200, 400] {
        site.wait_event("master", "worker.paused", &format!("pause_ms={pause}"));
    }
    assert!(!site.events("master", "worker.late").is_empty());
}

#[test]
fn a_daemon_reports_a_failed_start() {
    let site = site("[application]\nplay = \"die at boot\"");
    let output = site.run(&[]);
    assert_eq!(output.code, Some(1));
    assert_eq!(output.stdout, "");
    assert!(output.stderr.contains("ended before it was ready"), "{output:?}");
    site.assert_nothing_left();
}

#[test]
fn a_start_that_is_interrupted_leaves_nothing() {
    let site = site("[application]\nplay = \"ready when told\"");
    let mut launcher = site.command(&[]).stderr(Stdio::null()).spawn().expect("launcher");
    let workers = || {
        let status = site.run(&["status", "--json"]);
        // There is no master yet to be asked, or no more.
        let status = control::read::<Status>(&status.stdout).ok();
        let rows = status.map(|status| status.workers).unwrap_or_default();
        rows.iter().map(pid_of).collect::<Vec<_>>()
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
        !site.events("master", "start.abandoned").is_empty() || pids.is_empty()
    });
    site.wait_event("master", "master.stopped", "");
    site.assert_nothing_left();
}

#[test]
fn a_second_instance_is_refused() {
    let site = site("");
    let server = site.start();
    for arguments in [&["--foreground"][..], &[]] {
        let output = site.run(arguments);
        assert_eq!(output.code, Some(1));
        let reason = output.stderr;
        assert!(reason.contains(&format!("already running, pid {}", server.pid())), "{reason}");
    }
    assert_eq!(server.serving().len(), 2);
}

#[test]
fn a_taken_port_is_named() {
    let one = site("");
    let server = one.start();
    let address = server.address.to_string();
    let other = site("");
    other.configure(&format!("[[listen]]\naddress = \"{address}\"\n"));
    let output = other.run(&[]);
    assert_eq!(output.code, Some(1));
    let reason = output.stderr;
    assert!(reason.contains(&address) && reason.contains("in use"), "{reason}");
    other.assert_nothing_left();
}

/// Starts a daemon, and checks what the launcher prints.
fn start_daemon(site: &Site) -> Daemon {
    let daemon = site.start_daemon();
    assert_eq!(daemon.start.code, Some(0), "{:?}", daemon.start);
    let line = &daemon.start.stdout;
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.starts_with("chappe started: listening on 127.0.0.1:"), "{line}");
    assert!(line.contains(&format!("master pid {}, logs in ", daemon.master)), "{line}");
    daemon
}

#[test]
fn a_daemon_starts_and_is_stopped_by_signal() {
    let site = site("");
    for signal in ["stop", "quit"] {
        let daemon = start_daemon(&site);
        let status = site.status();
        assert_eq!(i32::try_from(status.master.pid), Ok(daemon.master));
        assert_eq!(serving(&status).len(), 2);
        assert_eq!(site.run(&["-s", signal]).code, Some(0));
        wait_until("the daemon is gone", || !site.path("run/chappe.pid").exists());
        site.assert_nothing_left();
    }
}

#[test]
fn stop_and_quit_wait_until_the_master_is_gone() {
    let site = site("");
    for command in ["stop", "quit"] {
        let daemon = start_daemon(&site);
        let output = site.run(&[command, "--wait"]);
        assert_eq!(output.code, Some(0), "{output:?}");
        assert!(!proc::is_running(daemon.master), "{command}: still there");
        site.assert_nothing_left();
    }
}

#[test]
fn workers_keep_no_descriptor_of_the_master() {
    let site = site("");
    let server = site.start();
    for (number, pid) in server.serving().iter().enumerate() {
        let mut kinds: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("our worker")
            .map(|fd| fd.expect("entry").path())
            .map(|fd| fs::read_link(fd).expect("link").to_string_lossy().into_owned())
            .map(|target| target.split([':', '[']).next().expect("one part").to_owned())
            .collect();
        kinds.sort();
        let log = site.path(&format!("logs/worker-{number}.log"));
        let (log, stderr) = (log.to_string_lossy(), site.path("stderr.txt"));
        let stderr = stderr.to_string_lossy();
        // stdin, stdout, log, stderr; channel end, listener, and the two ends of the player's
        // own signal pipe.
        let mut expected =
            ["/dev/null", "/dev/null", &log, &stderr, "socket", "socket", "socket", "socket"];
        expected.sort_unstable();
        assert_eq!(kinds, expected);
    }
}

#[test]
fn a_drain_that_takes_too_long_is_cut() {
    let site = site("worker_shutdown_timeout = \"100ms\"\n[application]\nplay = \"stubborn\"");
    let mut server = site.start();
    server.signal(Signal::SIGQUIT);
    assert_eq!(server.wait_exit().code(), Some(0));
    site.wait_event("master", "stop.overdue", "2 workers");
    site.assert_nothing_left();
}

#[test]
fn a_second_stop_kills() {
    let site = site("[application]\nplay = \"stubborn\"");
    let mut server = site.start();
    server.signal(Signal::SIGTERM);
    site.wait_event("master", "stop.fast", "");
    server.signal(Signal::SIGINT);
    let begun = Instant::now();
    assert_eq!(server.wait_exit().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(4));
    site.assert_nothing_left();
}

/// As timeout(1) does it.
#[test]
fn a_signal_to_the_group_and_the_process_is_one() {
    let site = site("");
    let mut server = site.start();
    server.signal(Signal::SIGTERM);
    site.wait_event("master", "stop.fast", "");
    // It may have ended by now.
    let _gone = kill(Pid::from_raw(server.pid()), Signal::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    assert!(site.events("master", "stop.again").is_empty());
    let ends = site.events("master", "worker.ended");
    assert!(!ends.iter().any(|line| line.contains("signal=SIGKILL")), "{ends:?}");
}

/// A start from a shell script.
fn scripted(site: &Site, script: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(script).arg(program("players"));
    shell.arg("-p").arg(&site.dir).arg("-c").arg(site.path("chappe.toml"));
    shell.stdin(Stdio::null());
    shell
}

#[test]
fn a_parent_that_ignores_children_starts_a_daemon() {
    let site = site("");
    let mut shell = scripted(&site, "exec env --ignore-signal=CHLD \"$0\" \"$@\"");
    let output = Finished::from(shell.output().expect("a shell"));
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(site.serving().len(), 2);
    assert_eq!(site.run(&["stop", "--wait"]).code, Some(0));
    site.assert_nothing_left();
}

#[test]
fn a_daemon_keeps_no_descriptor_that_it_inherited() {
    let site = site("");
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
    assert_eq!(site.run(&["stop", "--wait"]).code, Some(0));
    assert!(ended.is_some(), "the daemon still has it");
    site.assert_nothing_left();
}

#[test]
fn workers_of_a_killed_master_go() {
    let site = site("");
    let mut server = site.start();
    server.signal(Signal::SIGKILL);
    assert_eq!(server.wait_exit().code(), None);
    wait_until("the workers are gone", || site.processes().is_empty());
    // What the dead master left behind is no obstacle.
    drop(server);
    let mut next = site.start();
    next.signal(Signal::SIGTERM);
    assert_eq!(next.wait_exit().code(), Some(0));
    site.assert_nothing_left();
}

#[test]
fn commands_without_a_master_fail() {
    let site = site("");
    for arguments in [&["status"][..], &["stop"], &["quit", "--wait"], &["-s", "stop"]] {
        let output = site.run(arguments);
        assert_eq!(output.code, Some(1), "{arguments:?}");
        assert!(output.stderr.contains("no master is running"), "{output:?}");
    }
}

#[test]
fn the_configuration_can_be_checked_and_printed() {
    let site = site("");
    let checked = site.run(&["-t"]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert_eq!(checked.stdout, "");
    assert!(checked.stderr.contains("chappe.toml is valid"), "{checked:?}");
    assert!(!site.run(&["-t", "-q"]).stderr.contains("is valid"));
    let printed = site.run(&["-T"]);
    assert_eq!(printed.code, Some(0), "{printed:?}");
    site.configure(&printed.stdout);
    let again = site.run(&["-T"]);
    assert_eq!(again.code, Some(0), "{again:?}");
    assert_eq!(again.stdout, printed.stdout);
}

#[test]
fn a_wrong_configuration_is_exit_code_2() {
    let site = site("worker_process = 1");
    for arguments in [&["-t"][..], &["-T"], &["--foreground"], &[], &["-s", "stop"]] {
        let output = site.run(arguments);
        assert_eq!(output.code, Some(2), "{arguments:?}");
        assert_eq!(output.stdout, "");
        assert!(output.stderr.contains("worker_process"), "{output:?}");
    }
    assert_eq!(site.run(&["--what"]).code, Some(2));
    assert_eq!(site.run(&["-h"]).code, Some(0));
    site.assert_nothing_left();
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let site = site("");
    let _server = site.start();
    let mut status = site.command(&["status"]).stdout(Stdio::piped()).spawn().expect("status");
    drop(status.stdout.take());
    assert!(status.wait().expect("our child").success());
}

#[test]
fn reserved_signals_change_nothing() {
    let site = site("");
    let server = site.start();
    let before = server.serving();
    server.signal(Signal::SIGUSR2);
    site.wait_event("master", "signal.unavailable", "SIGUSR2");
    assert_eq!(server.serving(), before);
}
