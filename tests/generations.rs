//! Generations of workers that only play: reloads that fail or are overtaken, what
//! signals do at the same time, drains that last.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::{Duration, Instant};

use chappe_testkit::site::pid_of;
use chappe_testkit::{DEADLINE, Finished, Site, TestServer, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A server of players with this in its configuration.
fn site(text: &str) -> Site {
    let site = Site::new("players", "generations", "");
    play(&site, &format!("worker_processes = 2\n{text}"));
    site
}

/// Puts this into the configuration.
fn play(site: &Site, text: &str) {
    let listen = "[[listen]]\naddress = \"127.0.0.1:0\"\n";
    site.configure(&format!("{text}\n{listen}"));
}

const WELL: &str = "worker_processes = 2";
const NEVER_READY: &str = "worker_processes = 2\n[application]\nplay = \"never ready\"";

fn serving(site: &Site) -> usize {
    site.serving().len()
}

fn rows(site: &Site, state: &str) -> usize {
    site.status().workers.iter().filter(|worker| worker.state == state).count()
}

/// What the last reload came to: `ok`, or why not.
fn last(site: &Site) -> String {
    let last = site.status().reload.last;
    last.map(|last| last.reason.unwrap_or(last.outcome.to_string())).unwrap_or_default()
}

#[track_caller]
fn assert_reloads(site: &Site, generation: u64) {
    let output = site.run(&["reload"]);
    assert_eq!(output.code, Some(0), "{output:?}");
    let said = output.stdout;
    assert!(said.starts_with(&format!("reloaded: generation {generation}, ")), "{said}");
}

/// What a command that was started has come to.
#[track_caller]
fn ended(command: Child) -> Finished {
    Finished::from(command.wait_with_output().expect("our own child"))
}

/// A `chappe reload` that waits.
fn waiting_reload(site: &Site, generation: u64) -> Child {
    let child = site.spawn(&["reload"]);
    site.wait_event("master", "reload.started", &format!("generation={generation} "));
    child
}

#[track_caller]
fn assert_kept(site: &Site, server: &TestServer, before: &[Pid], why: &str) {
    assert_eq!(server.serving(), before, "the same workers serve");
    assert!(last(site).contains(why), "{}", last(site));
    wait_until("the new generation is gone", || site.status().workers.len() == 2);
    assert_eq!(site.status().master.generation, 1);
}

#[test]
fn a_worker_that_cannot_boot_keeps_the_old_generation() {
    let site = site("");
    let server = site.start();
    let before = server.serving();
    play(&site, "worker_processes = 2\n[application]\nplay = \"die at boot\"");
    let output = site.run(&["reload"]);
    assert_eq!(output.code, Some(1), "{output:?}");
    let why = "ended before all were ready: exit=2";
    let said = output.stderr;
    assert!(said.contains(why) && said.contains("the old generation stays"), "{said}");
    assert_kept(&site, &server, &before, why);
    // By signal nobody waits, and it is the same.
    server.signal(Signal::SIGHUP);
    wait_until("it has failed again", || site.status().reload.count == 2);
    assert_kept(&site, &server, &before, why);
    play(&site, WELL);
    // The numbers 2 and 3 were used up.
    assert_reloads(&site, 4);
    assert_eq!(last(&site), "ok");
    assert!(!server.serving().iter().any(|pid| before.contains(pid)));
}

#[test]
fn a_worker_that_is_not_ready_keeps_the_old_generation() {
    let site = site("");
    let server = site.start();
    let before = server.serving();
    play(&site, &format!("worker_ready_timeout = \"200ms\"\n{NEVER_READY}"));
    let output = site.run(&["reload"]);
    assert_eq!(output.code, Some(1), "{output:?}");
    assert_kept(&site, &server, &before, "was not ready within 200ms (worker_ready_timeout)");
}

#[test]
fn a_new_unix_socket_is_closed_at_once_when_the_reload_fails() {
    let site = site("");
    let server = site.start();
    let before = server.serving();
    let unix = "[[listen]]\naddress = \"unix:new.sock\"";
    play(&site, &format!("worker_ready_timeout = \"3s\"\n{NEVER_READY}\n{unix}"));
    let waiting = waiting_reload(&site, 2);
    let mut client = UnixStream::connect(site.path("new.sock")).expect("it listens");
    client.set_read_timeout(Some(DEADLINE)).expect("a time-out");
    assert_eq!(client.read(&mut [0]).expect("closed"), 0);
    // Its workers hear nothing, and are killed later.
    assert!(site.events("master", "worker.killed").is_empty());
    assert!(UnixStream::connect(site.path("new.sock")).is_err());
    assert_eq!(ended(waiting).code, Some(1));
    assert_kept(&site, &server, &before, "was not ready within 3s");
    // Another reload may have it: one that stays is not given up with the next.
    play(&site, &format!("{WELL}\n{unix}"));
    assert_reloads(&site, 3);
    play(&site, &format!("worker_ready_timeout = \"100ms\"\n{NEVER_READY}\n{unix}"));
    assert_eq!(site.run(&["reload"]).code, Some(1));
    UnixStream::connect(site.path("new.sock")).expect("it listens on");
}

#[test]
fn a_stop_abandons_a_reload() {
    assert_abandoned_by(Signal::SIGTERM);
}

#[test]
fn an_interrupt_abandons_a_reload() {
    assert_abandoned_by(Signal::SIGINT);
}

#[test]
fn a_quit_abandons_a_reload() {
    assert_abandoned_by(Signal::SIGQUIT);
}

fn assert_abandoned_by(signal: Signal) {
    let site = site("");
    let mut server = site.start();
    play(&site, NEVER_READY);
    let waiting = waiting_reload(&site, 2);
    server.signal(signal);
    let output = ended(waiting);
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("stopping"), "{output:?}");
    assert_eq!(server.wait_exit().code(), Some(0));
    assert_eq!(site.events("master", "reload.abandoned").len(), 1);
    site.assert_nothing_left();
}

#[test]
fn hups_and_ttin_during_a_reload_come_afterwards() {
    let site = site("");
    let server = site.start();
    play(&site, &format!("worker_ready_timeout = \"2s\"\n{NEVER_READY}"));
    let waiting = waiting_reload(&site, 2);
    play(&site, WELL);
    for count in 1..=5 {
        server.signal(Signal::SIGHUP);
        let notes = || site.events("master", "reload.deferred").len();
        wait_until("the signal was seen", || notes() == count);
    }
    server.signal(Signal::SIGTTIN);
    let output = ended(waiting);
    assert_eq!(output.code, Some(1), "{output:?}");
    wait_until("three workers serve", || serving(&site) == 3);
    wait_until("one more reload", || site.status().reload.count == 2);
    wait_until("it is over", || last(&site) == "ok");
    assert_eq!(site.status().master.generation, 3);
    wait_until("three workers serve", || serving(&site) == 3);
    // Nothing is left to do: the next reload is the next number.
    assert_reloads(&site, 4);
}

#[test]
fn a_reload_is_refused_while_stopping() {
    let site = site("worker_shutdown_timeout = \"1h\"\n[application]\nplay = \"linger\"");
    let mut server = site.start();
    server.signal(Signal::SIGQUIT);
    wait_until("the stop has begun", || site.status().master.stopping);
    server.signal(Signal::SIGHUP);
    server.signal(Signal::SIGTTIN);
    site.wait_event("master", "reload.refused", "");
    site.wait_event("master", "signal.refused", "SIGTTIN");
    let output = site.run(&["reload"]);
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("the server is stopping"), "{output:?}");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    site.assert_nothing_left();
}

#[test]
fn the_oldest_of_four_drains_is_ended() {
    let site = site("worker_shutdown_timeout = \"1h\"\n[application]\nplay = \"linger\"");
    let server = site.start();
    let first = server.serving();
    for generation in 2..=4 {
        assert_reloads(&site, generation);
    }
    wait_until("three generations drain", || rows(&site, "draining") == 6);
    assert_eq!(site.total("drains_cut"), 0);
    assert_reloads(&site, 5);
    wait_until("the oldest is gone", || rows(&site, "draining") == 6 && serving(&site) == 2);
    let status = site.status();
    assert!(status.workers.iter().all(|worker| worker.generation != 1), "{status:#?}");
    assert_eq!((site.total("drains_cut"), site.total("workers_died")), (1, 0));
    site.wait_event("master", "reload.oldest_ended", "generation=1 ");
    assert!(!server.serving().iter().any(|pid| first.contains(pid)));
}

#[test]
fn a_drain_beyond_its_time_is_killed() {
    let site = site("worker_shutdown_timeout = \"10ms\"\n[application]\nplay = \"stubborn\"");
    let server = site.start();
    let before = Instant::now();
    assert_reloads(&site, 2);
    let after = Instant::now();
    wait_until("the old workers are killed", || rows(&site, "draining") == 0);
    // A second after the time is over, as documented: neither with it nor much later.
    assert!(before.elapsed() > Duration::from_secs(1), "{:?}", before.elapsed());
    assert!(after.elapsed() < Duration::from_secs(5), "{:?}", after.elapsed());
    assert!(!site.events("master", "worker.killed").is_empty());
    assert_eq!(site.total("workers_died"), 0);
    assert_eq!(server.serving().len(), 2);
}

#[test]
fn ttin_and_ttou_hold_until_the_number_changes() {
    let site = site("");
    let server = site.start();
    let before = server.serving();
    server.signal(Signal::SIGTTIN);
    wait_until("three serve", || serving(&site) == 3);
    assert!(before.iter().all(|pid| server.serving().contains(pid)), "nobody was replaced");
    assert_reloads(&site, 2);
    wait_until("it holds over a reload", || serving(&site) == 3);
    for left in [2, 1] {
        server.signal(Signal::SIGTTOU);
        wait_until("one fewer serves", || serving(&site) == left);
    }
    server.signal(Signal::SIGTTOU);
    site.wait_event("master", "workers.kept", "there is one worker only");
    assert_eq!(serving(&site), 1);
    play(&site, "worker_processes = 4");
    assert_reloads(&site, 3);
    wait_until("the configuration holds", || serving(&site) == 4);
    assert_eq!(site.total("workers_died"), 0);
}

/// Workers that are there can't see a table that is made later.
#[test]
fn ttin_beyond_the_tables_of_addresses() {
    let site = site("");
    play(&site, "worker_processes = 1\n[limits]\nconnections_per_ip = 5");
    let server = site.start();
    let first = site.serving();
    for wanted in 2..=4 {
        server.signal(Signal::SIGTTIN);
        wait_until("one more serves", || serving(&site) == wanted);
    }
    let renewed = || site.events("master", "workers.renewed").len();
    assert!(site.serving().contains(&first[0]) && renewed() == 0);
    server.signal(Signal::SIGTTIN);
    wait_until("five serve", || serving(&site) == 5);
    assert_eq!(renewed(), 1);
    assert!(!site.serving().contains(&first[0]), "all were replaced");
    server.signal(Signal::SIGTTIN);
    wait_until("six serve", || serving(&site) == 6);
    assert_eq!(renewed(), 1, "there are twenty now");
    assert_eq!(site.total("workers_died"), 0);
}

#[test]
fn a_reload_heals_workers_that_cannot_boot() {
    let site = site("");
    play(&site, "worker_processes = 1\n[application]\nplay = \"die again and again\"");
    let server = site.start();
    kill(server.serving()[0], Signal::SIGKILL).expect("a worker");
    site.wait_event("master", "worker.paused", "pause_ms=200");
    play(&site, "worker_processes = 1");
    assert_reloads(&site, 2);
    wait_until("it serves", || serving(&site) == 1);
    let ends = site.events("master", "worker.ended").len();
    assert_reloads(&site, 3);
    wait_until("it serves", || serving(&site) == 1);
    // The pause that was running fills no place twice.
    assert_eq!(site.status().workers.len(), 1);
    assert_eq!(site.events("master", "worker.ended").len(), ends + 1);
    // And the next one that dies young is paced as the first.
    let pauses = || site.events("master", "worker.paused").len();
    let before = pauses();
    wait_until("one has died young", || {
        for pid in server.serving() {
            let _gone = kill(pid, Signal::SIGKILL);
        }
        pauses() > before
    });
    let next = &site.events("master", "worker.paused")[before];
    assert!(next.ends_with("pause_ms=100"), "{next}");
}

#[test]
fn a_worker_killed_during_a_reload_is_replaced() {
    let site = site("");
    let server = site.start();
    let before = server.serving();
    play(&site, &format!("worker_ready_timeout = \"2s\"\n{NEVER_READY}"));
    let waiting = waiting_reload(&site, 2);
    kill(before[0], Signal::SIGKILL).expect("a worker");
    wait_until("it is replaced in its own generation", || {
        let now = server.serving();
        now.len() == 2 && !now.contains(&before[0])
    });
    let output = ended(waiting);
    assert_eq!(output.code, Some(1), "{output:?}");
    assert_eq!(site.status().master.generation, 1);
    assert_eq!(site.total("workers_died"), 1);
    assert!(fs::exists(site.path("run/chappe.pid")).unwrap_or(false));
    assert!(server.stdout().starts_with("ready"));
    assert!(server.pid() > 0);
}

#[test]
fn logs_that_move_during_a_reload_are_left() {
    for (key, directory) in [("level = \"debug\"", "logs"), ("directory = \"logs2\"", "logs2")] {
        let site = site("");
        let server = site.start();
        let played = "[application]\nplay = \"ready when told\"";
        play(&site, &format!("worker_processes = 1\n[log]\n{key}\n{played}"));
        let waiting = waiting_reload(&site, 2);
        wait_until("it waits", || rows(&site, "starting") == 1);
        let log = site.path(directory).join("master.log");
        fs::rename(&log, site.path("moved.log")).expect("moved");
        assert_eq!(site.run(&["reopen"]).code, Some(0));
        let status = site.status();
        let new = status.workers.iter().find(|worker| worker.state == "starting").expect("it");
        kill(pid_of(new), Signal::SIGUSR2).expect("it waits for that");
        let output = ended(waiting);
        assert_eq!(output.code, Some(0), "{output:?}");
        server.signal(Signal::SIGUSR2);
        wait_until("the master writes to the new file", || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains("signal.unavailable: SIGUSR2"))
        });
    }
}
