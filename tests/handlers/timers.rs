//! What a service does at its times, and when its worker begins to drain.

use chappe_testkit::clock::{ANSWER, HOLD, SOON};
use chappe_testkit::site::configuration;
use chappe_testkit::{Gate, Site, TestServer, pause, wait_until};
use nix::sys::signal::Signal;
use std::time::Duration;

/// With more of the server's keys, and more of the service's.
fn toml(site: &Site, server: &str, application: &str) -> String {
    let journal = site.path("journal.txt");
    // The service opens files of the test, which may be where only its user may.
    let application = format!("[application]\njournal = {journal:?}\n{application}");
    configuration(&format!("user = \"\"\n{server}{application}"))
}

fn start(test: &str, server: &str, application: impl Fn(&Site) -> String) -> TestServer {
    let site = Site::new("clock", &format!("timers_{test}"), "");
    let toml = toml(&site, server, &application(&site));
    site.configure(&toml);
    TestServer::start_in(&site, &toml)
}

const ONE: &str = "worker_processes = 1\n";

/// How often the journal has a line.
fn count(server: &TestServer, line: &str) -> usize {
    server.read("journal.txt").lines().filter(|it| *it == line).count()
}

#[test]
fn timers_run_again_and_again_or_once_until_the_drain() {
    let mut server = start("life", ONE, |_| "period_ms = 10\n".to_owned());
    wait_until("it ticks", || count(&server, "0 of 1 ticks") > 3);
    assert_eq!(count(&server, "0 of 1 once"), 1);
    let mut client = server.connect();
    client.call(SOON, b"").expect("a reply");
    wait_until("a later one runs", || count(&server, "0 of 1 soon") == 1);
    // The drain does not end while this is held.
    let gate = Gate::new(server.path("gate"));
    client.send(HOLD, gate.name()).expect("sent");
    server.wait_status("/workers/0/handlers_busy", |busy| busy > 0);
    server.signal(Signal::SIGQUIT);
    wait_until("it stops", || count(&server, "0 of 1 has stopped") == 1);
    let ticks = count(&server, "0 of 1 ticks");
    // A tick would have come by now, were there any.
    pause(Duration::from_millis(100), "ten periods pass");
    assert_eq!(count(&server, "0 of 1 ticks"), ticks, "after the drain began");
    gate.open();
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn a_service_counts_from_its_timers_and_a_counter_without_a_name_fails_its_start() {
    let server = start("counter", ONE, |_| "period_ms = 10\n".to_owned());
    server.wait_status("/totals/app_ticks", |ticks| ticks > 3);
    server.wait_status("/workers/0/counters/app_ticks", |ticks| ticks > 3);
    let workers = server.worker_pids();
    server.configure(&toml(&server, ONE, "period_ms = 10\ncounter = \"tocks\"\n"));
    let outcome = server.run(&["reload"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let text = "start panicked: no counter \"tocks\" is named in `routes`, which has [\"ticks\"]";
    assert!(outcome.stderr.contains(text), "{outcome:?}");
    assert_eq!(server.worker_pids(), workers);
}

#[test]
fn ticks_during_a_run_are_skipped_and_counted() {
    let gate = |site: &Site| format!("period_ms = 10\ntick_gate = {:?}\n", site.path("gate"));
    let site = Site::new("clock", "timers_skipped", "");
    let toml = toml(&site, ONE, &gate(&site));
    site.configure(&toml);
    let shut = Gate::new(site.path("gate"));
    let server = TestServer::start_in(&site, &toml);
    server.wait_status("/totals/timer_ticks_missed", |missed| missed > 5);
    assert_eq!(count(&server, "0 of 1 ticks"), 1, "never two runs at once");
    shut.open();
    wait_until("it goes on", || count(&server, "0 of 1 ticks") > 3);
}

#[test]
fn a_tick_that_fails_or_panics_is_counted_and_the_next_one_comes() {
    let fails = [
        ("fails", "handler_errors", "timer.failed", "planned failure"),
        ("panics", "handler_panics", "handler.panicked", "a timer panicked: planned for a tick"),
    ];
    for (how, counter, event, text) in fails {
        let toml = format!("period_ms = 10\ntick = {how:?}\n");
        let server = start(how, ONE, |_| toml.clone());
        let workers = server.worker_pids();
        server.wait_status(&format!("/totals/{counter}"), |failed| failed > 10);
        server.wait_event("worker-0", event, text);
        // Five at once, and five more if ten seconds have passed since.
        assert!(server.events("worker-0", event).len() <= 10);
        assert_eq!(server.connect().call(ANSWER, b"").expect("served").code, ANSWER);
        assert_eq!(server.worker_pids(), workers);
    }
}

#[test]
fn no_timer_runs_in_a_generation_that_never_serves() {
    let server = start("unready", "worker_processes = 2\n", |_| "period_ms = 1\n".to_owned());
    wait_until("both tick", || (0..2).all(|n| count(&server, &format!("{n} of 1 ticks")) > 0));
    server.configure(&toml(&server, "worker_processes = 2\n", "period_ms = 1\nunready = 1\n"));
    let outcome = server.run(&["reload"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("planned to fail"), "{outcome:?}");
    let journal = server.read("journal.txt");
    // Also of the other worker, if it had come so far before the one that fails.
    assert!(journal.contains("1 of 2 starts") && !journal.contains("of 2 ticks"), "{journal}");
    assert!(!journal.contains("stops"), "it never served: {journal}");
}

#[test]
fn a_drain_waits_for_the_stopping_hook_which_holds_up_nobody() {
    let site = Site::new("clock", "timers_stopping", "");
    let gate = format!("period_ms = 1000\nstop_gate = {:?}\n", site.path("gate"));
    let toml = toml(&site, ONE, &gate);
    site.configure(&toml);
    let shut = Gate::new(site.path("gate"));
    let mut server = TestServer::start_in(&site, &toml);
    let mut client = server.connect();
    client.call(ANSWER, b"").expect("served");
    server.signal(Signal::SIGQUIT);
    wait_until("it stops", || count(&server, "0 of 1 stops") == 1);
    assert!(client.receive().expect("a goodbye").as_goodbye().is_some());
    assert_eq!(client.call(ANSWER, b"").expect("served still").code, ANSWER);
    drop(client);
    server.wait_event("worker-0", "conn.closed", "");
    assert_eq!(server.worker_pids().len(), 1, "it waits for the hook");
    assert_eq!(count(&server, "0 of 1 has stopped"), 0);
    shut.open();
    assert_eq!(server.wait_exit().code(), Some(0));
    assert_eq!(count(&server, "0 of 1 has stopped"), 1);
}

#[test]
fn a_stopping_hook_has_until_the_end_of_the_shutdown_timeout() {
    let site = Site::new("clock", "timers_never", "");
    let gate = format!("period_ms = 1000\nstop_gate = {:?}\n", site.path("gate"));
    let server = format!("{ONE}worker_shutdown_timeout = \"300ms\"\n");
    let toml = toml(&site, &server, &gate);
    site.configure(&toml);
    let _shut = Gate::new(site.path("gate"));
    let mut server = TestServer::start_in(&site, &toml);
    server.signal(Signal::SIGQUIT);
    assert_eq!(server.wait_exit().code(), Some(0));
    server.wait_event("worker-0", "worker.cut", "");
    assert_eq!(count(&server, "0 of 1 has stopped"), 0);
}
