//! A worker that was taken over: it writes what it likes to its channel and to the memory
//! that it shares, and the master and the other worker live on. What it does is in
//! `tests/support/src/bin/attacker.rs`.

use std::fs;
use std::time::{Duration, Instant};

use chappe::control::WorkerStatus;
use chappe_testkit::site::{pid_of, serving};
use chappe_testkit::{Site, TestServer, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What the master may take for an answer, whatever goes on; on a machine that is overbooked.
const SOON: Duration = Duration::from_secs(5);

/// A server whose first worker attacks so. Workers stay who they are, so that this one can
/// write its marker and its own memory.
fn site(attack: &str) -> Site {
    let site = Site::new("attacker", &format!("hostile_{attack}"), "");
    let marker = site.path("marker");
    site.configure(&format!(
        "user = \"\"\nworker_processes = 2\nmax_connections = 1000\n[application]\nattack = \"{attack}\"\n\
         marker = \"{}\"\n[[listen]]\naddress = \"127.0.0.1:0\"\n",
        marker.display()
    ));
    site
}

/// Starts it. The attack begins when [`attack`] says so.
fn start(site: &Site) -> TestServer {
    let server = site.start();
    wait_until("the attacker waits", || site.path("marker").exists());
    server
}

fn attack(site: &Site) {
    fs::write(site.path("marker"), "begin").expect("marker");
}

fn marker(site: &Site) -> String {
    fs::read_to_string(site.path("marker")).unwrap_or_default()
}

fn worker(site: &Site, number: u16) -> Pid {
    let status = site.status();
    let is_it = |row: &&WorkerStatus| row.worker == number && row.state != "draining";
    pid_of(status.workers.iter().find(is_it).expect("a worker"))
}

fn open_descriptors(server: &TestServer) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("the master lives").count()
}

/// The master answers soon, and the other worker is who it was.
fn assert_well(site: &Site, other: Pid) {
    for _ in 0..3 {
        let begun = Instant::now();
        let status = site.status();
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        assert!(serving(&status).contains(&other), "{status:#?}");
    }
}

/// A new generation takes over, and all permits are where they should be.
fn assert_reloads(site: &Site) {
    let reload = site.run(&["reload"]);
    assert_eq!(reload.code, Some(0), "{reload:?}\n{}", site.log("master"));
    site.wait_serving(2);
    // Each of them opens its new log file and says so.
    let reopened = site.run(&["reopen", "--wait"]);
    assert_eq!((reopened.code, reopened.stderr.as_str()), (Some(0), ""), "{reopened:?}");
    let permits = site.status().permits.expect("permits");
    assert_eq!(permits.limit, 1000, "{permits:?}");
    assert_eq!(permits.limit + permits.debt, permits.free + permits.held, "{permits:?}");
}

fn end_attacker(site: &Site, attacker: Pid) {
    let _gone = kill(attacker, Signal::SIGKILL);
    wait_until("the attacker is replaced", || {
        let pids = site.serving();
        pids.len() == 2 && !pids.contains(&attacker)
    });
}

#[test]
fn junk_on_the_channel_ends_the_worker_that_sent_it() {
    let site = site("junk");
    let server = start(&site);
    let other = worker(&site, 1);
    attack(&site);
    site.wait_event("master", "worker.nonsense_max", "");
    wait_until("it is replaced", || site.serving().len() == 2);
    assert_well(&site, other);
    let log = site.log("master");
    assert!(log.lines().count() < 60, "{log}");
    assert_eq!(site.total("workers_died"), 1);
    assert_reloads(&site);
    drop(server);
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let site = site("descriptors");
    let server = start(&site);
    let other = worker(&site, 1);
    attack(&site);
    wait_until("all were sent", || marker(&site) == "done");
    assert_well(&site, other);
    assert!(open_descriptors(&server) < 30, "{}", open_descriptors(&server));
}

#[test]
fn a_list_that_would_block_is_refused() {
    assert_list_refused("pipe", "it is not a memfd");
}

#[test]
fn a_list_that_never_ends_is_refused() {
    assert_list_refused("endless", "bytes, more than");
}

#[test]
fn a_list_that_may_still_change_is_refused() {
    assert_list_refused("unsealed", "it is not sealed");
}

fn assert_list_refused(kind: &str, named: &str) {
    let site = site(kind);
    let server = start(&site);
    let (attacker, other) = (worker(&site, 0), worker(&site, 1));
    attack(&site);
    // The other one is a player and answers nothing either.
    let listed = site.run(&["connections"]);
    let said = listed.stderr;
    assert!(said.contains(&format!("worker 0 (pid {attacker})")), "{said}");
    site.wait_event("master", "list.refused", named);
    assert_well(&site, other);
    assert!(open_descriptors(&server) < 30, "{}", open_descriptors(&server));
}

#[test]
fn a_storm_of_requests_leaves_the_master_its_time() {
    let site = site("storm");
    let _server = start(&site);
    let other = worker(&site, 1);
    attack(&site);
    while marker(&site) != "done" {
        assert_well(&site, other);
    }
    let reopened = site.events("master", "logs.reopened").len();
    assert!((1..30).contains(&reopened), "{reopened} times in some seconds");
    assert!(site.log("master").lines().count() < 100, "{}", site.log("master"));
}

#[test]
fn a_worker_that_closes_its_channel_is_ended() {
    let site = site("close");
    let _server = start(&site);
    let (attacker, other) = (worker(&site, 0), worker(&site, 1));
    attack(&site);
    wait_until("it is replaced", || {
        let pids = site.serving();
        pids.len() == 2 && !pids.contains(&attacker)
    });
    assert_well(&site, other);
}

#[test]
fn permits_that_are_overwritten_are_set_right() {
    let site = site("permits");
    let _server = start(&site);
    let (attacker, other) = (worker(&site, 0), worker(&site, 1));
    attack(&site);
    wait_until("they are overwritten", || marker(&site) == "done");
    assert_well(&site, other);
    end_attacker(&site, attacker);
    assert_well(&site, other);
    site.wait_event("master", "zone.repaired", "");
    assert_eq!(site.status().permits.map(|permits| permits.free), Some(1000));
    assert_reloads(&site);
}

#[test]
fn totals_and_slots_are_the_masters_own() {
    let site = site("totals");
    let _server = start(&site);
    let (attacker, other) = (worker(&site, 0), worker(&site, 1));
    attack(&site);
    wait_until("they are overwritten", || marker(&site) == "done");
    let begun = Instant::now();
    let status = site.status();
    assert!(begun.elapsed() < SOON);
    assert_eq!(status.total("workers_died"), 0, "{status:#?}");
    let is_told = status.workers.iter().any(|row| pid_of(row) == other);
    assert!(is_told, "by the master's figures");
    let _gone = kill(attacker, Signal::SIGKILL);
    wait_until("it is replaced", || site.total("workers_died") == 1);
    assert_reloads(&site);
}

#[test]
fn anything_at_all_in_the_shared_memory() {
    let site = site("anything");
    let mut server = start(&site);
    let attacker = worker(&site, 0);
    attack(&site);
    while marker(&site) != "done" {
        let begun = Instant::now();
        site.status();
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    }
    let _gone = kill(attacker, Signal::SIGKILL);
    site.wait_event("master", "worker.ended", "signal=SIGKILL");
    // The other one may be told anything by its slot, but a reload makes all good.
    assert_reloads(&site);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    site.assert_nothing_left();
}

#[test]
fn a_worker_that_writes_over_what_it_shares_with_the_hub_is_ended() {
    let site = site("life");
    let _server = start(&site);
    let (attacker, other, hub) = (worker(&site, 0), worker(&site, 1), hub(&site));
    attack(&site);
    site.wait_event("master", "worker.corrupt", &format!("pid={attacker}"));
    wait_until("it is replaced", || {
        let pids = serving(&site.status());
        pids.len() == 2 && !pids.contains(&attacker)
    });
    assert_eq!(site.events("hub", "hub.corrupt").len(), 1);
    assert_well(&site, other);
    assert_reloads(&site);
    assert_eq!(hub, self::hub(&site), "the hub is who it was");
}

#[test]
fn a_hub_whose_semaphore_is_written_over_harms_no_master() {
    let site = site("call");
    let _server = start(&site);
    let (attacker, other, before) = (worker(&site, 0), worker(&site, 1), hub(&site));
    attack(&site);
    wait_until("it is written over", || marker(&site) == "done");
    assert_well(&site, other);
    end_attacker(&site, attacker);
    // The hub has to learn of workers that come and go.
    assert_reloads(&site);
    // Who sleeps on such a semaphore may be ended by it; the next hub has a sound one.
    let _gone = kill(Pid::from_raw(i32::try_from(before).expect("a pid")), Signal::SIGKILL);
    wait_until("there is another hub", || {
        site.status_json()["hub"]["pid"].as_i64().is_some_and(|pid| pid != before)
    });
    assert_reloads(&site);
}

#[test]
fn what_the_hub_says_to_all_cannot_be_written_over() {
    let site = site("log");
    let _server = start(&site);
    let (attacker, other) = (worker(&site, 0), worker(&site, 1));
    attack(&site);
    wait_until("it has tried, and lives", || marker(&site) == "done");
    assert_well(&site, other);
    end_attacker(&site, attacker);
}

fn hub(site: &Site) -> i64 {
    site.status_json()["hub"]["pid"].as_i64().expect("a hub")
}
