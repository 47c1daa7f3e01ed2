//! Generations of workers that only play: reloads that fail or are overtaken, what
//! signals do meanwhile, drains that last.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

#[path = "support/site.rs"]
mod site;
#[path = "support/wait.rs"]
mod wait;

use site::{Server, Site, text, worker_pids};
use wait::wait_until;

fn main() -> ExitCode {
    let tests: &[(&str, fn())] = &[
        ("a_worker_that_cannot_boot_keeps_the_old_generation", a_worker_that_cannot_boot),
        ("a_worker_that_is_not_ready_keeps_the_old_generation", a_worker_that_is_not_ready),
        ("a_new_unix_socket_is_closed_at_once_when_the_reload_fails", a_new_unix_socket),
        ("a_stop_abandons_a_reload", a_stop_abandons_a_reload),
        ("hups_and_ttin_during_a_reload_come_afterwards", hups_and_ttin_come_afterwards),
        ("a_reload_is_refused_while_stopping", a_reload_is_refused_while_stopping),
        ("the_oldest_of_four_drains_is_ended", the_oldest_of_four_drains_is_ended),
        ("a_drain_beyond_its_time_is_killed", a_drain_beyond_its_time_is_killed),
        ("ttin_and_ttou_hold_until_the_number_changes", ttin_and_ttou),
        ("ttin_beyond_the_tables_of_addresses", ttin_beyond_the_tables_of_addresses),
        ("a_reload_heals_workers_that_cannot_boot", a_reload_heals_a_crash_loop),
        ("a_worker_killed_during_a_reload_is_replaced", a_worker_killed_during_a_reload),
        ("logs_that_move_during_a_reload_are_left", logs_that_move_during_a_reload),
    ];
    site::run(tests)
}

/// Puts this into the configuration.
fn play(site: &Site, text: &str) {
    let listen = "[[listen]]\naddress = \"127.0.0.1:0\"\n";
    site.configure(&format!("{text}\n{listen}"));
}

const WELL: &str = "worker_processes = 2";
const NEVER_READY: &str = "worker_processes = 2\n[application]\nplay = \"never ready\"";

fn serving(site: &Site) -> usize {
    worker_pids(&site.status()).len()
}

fn rows(site: &Site, state: &str) -> usize {
    let status = site.status();
    let workers = status["workers"].as_array().expect("workers");
    workers.iter().filter(|worker| worker["state"] == state).count()
}

/// What the last reload came to: `ok`, or why not.
fn last(site: &Site) -> String {
    let status = site.status();
    let last = &status["reload"]["last"];
    last["reason"].as_str().or(last["outcome"].as_str()).unwrap_or_default().to_owned()
}

#[track_caller]
fn assert_reloads(site: &Site, generation: u64) {
    let output = site.run(&["reload"]);
    assert!(output.status.success(), "{output:?}");
    let said = text(&output.stdout);
    assert!(said.starts_with(&format!("reloaded: generation {generation}, ")), "{said}");
}

/// A `chappe reload` that waits.
fn waiting_reload(site: &Site, generation: u64) -> Child {
    let mut command = site.command(&["reload"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("reload");
    let line = format!("reloading generation={generation} ");
    wait_until("the reload has begun", || site.log("master.log").contains(&line));
    child
}

#[track_caller]
fn assert_kept(site: &Site, server: &Server<'_>, before: &[Pid], why: &str) {
    assert_eq!(server.workers(), before, "the same workers serve");
    assert!(last(site).contains(why), "{}", last(site));
    wait_until("the new generation is gone", || {
        site.status()["workers"].as_array().map(Vec::len) == Some(2)
    });
    assert_eq!(site.status()["master"]["generation"], 1);
}

fn a_worker_that_cannot_boot() {
    let site = Site::new("");
    let server = site.start();
    let before = server.workers();
    play(&site, "worker_processes = 2\n[application]\nplay = \"die at boot\"");
    let output = site.run(&["reload"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let why = "ended before all were ready: exit=2";
    let said = text(&output.stderr);
    assert!(said.contains(why) && said.contains("the old generation stays"), "{said}");
    assert_kept(&site, &server, &before, why);
    // By signal nobody waits, and it is the same.
    server.signal(Signal::SIGHUP);
    wait_until("it has failed again", || site.status()["reload"]["count"] == 2);
    assert_kept(&site, &server, &before, why);
    play(&site, WELL);
    // The numbers 2 and 3 were used up.
    assert_reloads(&site, 4);
    assert_eq!(last(&site), "ok");
    assert!(!server.workers().iter().any(|pid| before.contains(pid)));
}

fn a_worker_that_is_not_ready() {
    let site = Site::new("");
    let server = site.start();
    let before = server.workers();
    play(&site, &format!("worker_ready_timeout = \"200ms\"\n{NEVER_READY}"));
    let output = site.run(&["reload"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_kept(&site, &server, &before, "was not ready within 200ms (worker_ready_timeout)");
}

fn a_new_unix_socket() {
    let site = Site::new("");
    let server = site.start();
    let before = server.workers();
    let unix = "[[listen]]\naddress = \"unix:new.sock\"";
    play(&site, &format!("worker_ready_timeout = \"3s\"\n{NEVER_READY}\n{unix}"));
    let waiting = waiting_reload(&site, 2);
    let mut client = UnixStream::connect(site.path("new.sock")).expect("it listens");
    client.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
    assert_eq!(client.read(&mut [0]).expect("closed"), 0);
    // Its workers hear nothing, and are killed later.
    assert!(!site.log("master.log").contains("killing"));
    assert!(UnixStream::connect(site.path("new.sock")).is_err());
    assert_eq!(waiting.wait_with_output().expect("reload").status.code(), Some(1));
    assert_kept(&site, &server, &before, "was not ready within 3s");
    // Another reload may have it: one that stays is not given up with the next.
    play(&site, &format!("{WELL}\n{unix}"));
    assert_reloads(&site, 3);
    play(&site, &format!("worker_ready_timeout = \"100ms\"\n{NEVER_READY}\n{unix}"));
    assert_eq!(site.run(&["reload"]).status.code(), Some(1));
    UnixStream::connect(site.path("new.sock")).expect("it listens on");
}

fn a_stop_abandons_a_reload() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let site = Site::new("");
        let mut server = site.start();
        play(&site, NEVER_READY);
        let waiting = waiting_reload(&site, 2);
        server.signal(signal);
        let output = waiting.wait_with_output().expect("reload");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(text(&output.stderr).contains("stopping"), "{output:?}");
        assert_eq!(server.wait(), Some(0));
        assert!(site.log("master.log").contains("reload abandoned"), "{signal}");
        site.assert_nothing_left();
    }
}

fn hups_and_ttin_come_afterwards() {
    let site = Site::new("");
    let server = site.start();
    play(&site, &format!("worker_ready_timeout = \"2s\"\n{NEVER_READY}"));
    let waiting = waiting_reload(&site, 2);
    play(&site, WELL);
    for count in 1..=5 {
        server.signal(Signal::SIGHUP);
        let notes = || site.log("master.log").matches("it comes afterwards by=SIGHUP").count();
        wait_until("the signal was seen", || notes() == count);
    }
    server.signal(Signal::SIGTTIN);
    let output = waiting.wait_with_output().expect("reload");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    wait_until("three workers serve", || serving(&site) == 3);
    wait_until("one more reload", || site.status()["reload"]["count"] == 2);
    wait_until("it is over", || last(&site) == "ok");
    assert_eq!(site.status()["master"]["generation"], 3);
    wait_until("three workers serve", || serving(&site) == 3);
    // Nothing is left to do: the next reload is the next number.
    assert_reloads(&site, 4);
}

fn a_reload_is_refused_while_stopping() {
    let site = Site::new("worker_shutdown_timeout = \"1h\"\n[application]\nplay = \"linger\"");
    let mut server = site.start();
    server.signal(Signal::SIGQUIT);
    wait_until("the stop has begun", || site.status()["master"]["stopping"] == true);
    server.signal(Signal::SIGHUP);
    server.signal(Signal::SIGTTIN);
    let log = || site.log("master.log");
    wait_until("both are refused", || {
        log().matches("refused: the server is stopping").count() == 2
    });
    let output = site.run(&["reload"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("the server is stopping"), "{output:?}");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait(), Some(0));
    site.assert_nothing_left();
}

fn the_oldest_of_four_drains_is_ended() {
    let site = Site::new("worker_shutdown_timeout = \"1h\"\n[application]\nplay = \"linger\"");
    let server = site.start();
    let first = server.workers();
    for generation in 2..=4 {
        assert_reloads(&site, generation);
    }
    wait_until("three generations drain", || rows(&site, "draining") == 6);
    assert_eq!(site.status()["totals"]["drains_cut"], 0);
    assert_reloads(&site, 5);
    wait_until("the oldest is gone", || rows(&site, "draining") == 6 && serving(&site) == 2);
    let status = site.status();
    let generations = status["workers"].as_array().expect("workers");
    assert!(generations.iter().all(|worker| worker["generation"] != 1), "{status:#}");
    assert_eq!(status["totals"]["drains_cut"], 1);
    assert_eq!(status["totals"]["workers_died"], 0);
    assert!(site.log("master.log").contains("ending the oldest drain for a reload generation=1"));
    assert!(!server.workers().iter().any(|pid| first.contains(pid)));
}

fn a_drain_beyond_its_time_is_killed() {
    let site = Site::new("worker_shutdown_timeout = \"10ms\"\n[application]\nplay = \"stubborn\"");
    let server = site.start();
    let before = Instant::now();
    assert_reloads(&site, 2);
    let after = Instant::now();
    wait_until("the old workers are killed", || rows(&site, "draining") == 0);
    // A second after the time is over, as documented: neither with it nor much later.
    assert!(before.elapsed() > Duration::from_secs(1), "{:?}", before.elapsed());
    assert!(after.elapsed() < Duration::from_secs(5), "{:?}", after.elapsed());
    assert!(site.log("master.log").contains("killing a worker that does not leave"));
    assert_eq!(site.status()["totals"]["workers_died"], 0);
    assert_eq!(server.workers().len(), 2);
}

fn ttin_and_ttou() {
    let site = Site::new("");
    let server = site.start();
    let before = server.workers();
    server.signal(Signal::SIGTTIN);
    wait_until("three serve", || serving(&site) == 3);
    assert!(before.iter().all(|pid| server.workers().contains(pid)), "nobody was replaced");
    assert_reloads(&site, 2);
    wait_until("it holds over a reload", || serving(&site) == 3);
    for left in [2, 1] {
        server.signal(Signal::SIGTTOU);
        wait_until("one fewer serves", || serving(&site) == left);
    }
    server.signal(Signal::SIGTTOU);
    wait_until("refused", || site.log("master.log").contains("there is one worker only"));
    assert_eq!(serving(&site), 1);
    play(&site, "worker_processes = 4");
    assert_reloads(&site, 3);
    wait_until("the configuration holds", || serving(&site) == 4);
    assert_eq!(site.status()["totals"]["workers_died"], 0);
}

/// Workers that are there can't see a table that is made later.
fn ttin_beyond_the_tables_of_addresses() {
    let site = Site::new("");
    play(&site, "worker_processes = 1\n[limits]\nconnections_per_ip = 5");
    let server = site.start();
    let first = worker_pids(&site.status());
    for wanted in 2..=4 {
        server.signal(Signal::SIGTTIN);
        wait_until("one more serves", || serving(&site) == wanted);
    }
    let line = "tables of addresses are handed out anew";
    assert!(
        worker_pids(&site.status()).contains(&first[0]) && !site.log("master.log").contains(line)
    );
    server.signal(Signal::SIGTTIN);
    wait_until("five serve", || serving(&site) == 5);
    assert!(site.log("master.log").contains(line));
    assert!(!worker_pids(&site.status()).contains(&first[0]), "all were forked anew");
    server.signal(Signal::SIGTTIN);
    wait_until("six serve", || serving(&site) == 6);
    assert_eq!(site.log("master.log").matches(line).count(), 1, "there are twenty now");
    assert_eq!(site.status()["totals"]["workers_died"], 0);
}

fn a_reload_heals_a_crash_loop() {
    let site = Site::new("");
    play(&site, "worker_processes = 1\n[application]\nplay = \"die again and again\"");
    let server = site.start();
    kill(server.workers()[0], Signal::SIGKILL).expect("a worker");
    wait_until("its successors are paced", || site.log("master.log").contains("pause_ms=200"));
    play(&site, "worker_processes = 1");
    assert_reloads(&site, 2);
    wait_until("it serves", || serving(&site) == 1);
    let ends = site.log("master.log").matches("worker ended").count();
    assert_reloads(&site, 3);
    wait_until("it serves", || serving(&site) == 1);
    // The pause that was running fills no place twice.
    assert_eq!(site.status()["workers"].as_array().map(Vec::len), Some(1));
    assert_eq!(site.log("master.log").matches("worker ended").count(), ends + 1);
    // And the next one that dies young is paced as the first.
    let pauses = || site.log("master.log").matches("pause_ms=").count();
    let before = pauses();
    wait_until("one has died young", || {
        for pid in server.workers() {
            let _gone = kill(pid, Signal::SIGKILL);
        }
        pauses() > before
    });
    let log = site.log("master.log");
    assert!(log.split("pause_ms=").nth(before + 1).is_some_and(|rest| rest.starts_with("100\n")));
}

fn a_worker_killed_during_a_reload() {
    let site = Site::new("");
    let server = site.start();
    let before = server.workers();
    play(&site, &format!("worker_ready_timeout = \"2s\"\n{NEVER_READY}"));
    let waiting = waiting_reload(&site, 2);
    kill(before[0], Signal::SIGKILL).expect("a worker");
    wait_until("it is replaced in its own generation", || {
        let now = server.workers();
        now.len() == 2 && !now.contains(&before[0])
    });
    let output = waiting.wait_with_output().expect("reload");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let status: Value = site.status();
    assert_eq!(status["master"]["generation"], 1);
    assert_eq!(status["totals"]["workers_died"], 1);
    assert!(fs::exists(site.directory.path().join("run/chappe.pid")).unwrap_or(false));
    assert!(server.line.starts_with("ready"));
    assert!(server.master.id() > 0);
}

fn logs_that_move_during_a_reload() {
    for (key, directory) in [("level = \"debug\"", "logs"), ("directory = \"logs2\"", "logs2")] {
        let site = Site::new("");
        let server = site.start();
        let played = "[application]\nplay = \"ready when told\"";
        play(&site, &format!("worker_processes = 1\n[log]\n{key}\n{played}"));
        let waiting = waiting_reload(&site, 2);
        wait_until("it waits", || rows(&site, "starting") == 1);
        let log = site.path(directory).join("master.log");
        fs::rename(&log, site.path("moved.log")).expect("moved");
        assert!(site.run(&["reopen"]).status.success());
        let status = site.status();
        let workers = status["workers"].as_array().expect("workers");
        let new = workers.iter().find(|worker| worker["state"] == "starting").expect("it");
        let new = i32::try_from(new["pid"].as_i64().expect("a pid")).expect("a pid");
        kill(Pid::from_raw(new), Signal::SIGUSR2).expect("it waits for that");
        let output = waiting.wait_with_output().expect("reload");
        assert!(output.status.success(), "{output:?}");
        server.signal(Signal::SIGUSR2);
        wait_until("the master writes to the new file", || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains("SIGUSR2 is not available"))
        });
    }
}
