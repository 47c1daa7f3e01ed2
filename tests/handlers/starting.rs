//! What a service has against a configuration, and one that cannot start: at `-t`, at the
//! start, and at a reload, which is rolled back.

use std::path::Path;

use chappe_client::CODE_PING;
use chappe_testkit::site::{configuration, finish};
use chappe_testkit::{Site, TestServer, wait_until};
use chappe_wire::CODE_WHO;
use nix::sys::signal::Signal;

use super::service::{SERVICE, place};

/// The table begins in line 3.
fn toml(application: &str) -> String {
    configuration(&format!("worker_processes = 1\nuser = \"\"\n[application]\n{application}"))
}

/// Tables, and what is said of them.
fn wrong_tables(journal: &Path) -> Vec<(String, &'static str)> {
    let good = format!("journal = {journal:?}\n");
    vec![
        (
            "journal = 7\n".to_owned(),
            "chappe.toml:4:11: application.journal: invalid type: integer `7`",
        ),
        (
            format!("{good}connected = \"badly\"\n"),
            "chappe.toml:5:13: application.connected: unknown variant `badly`",
        ),
        (format!("{good}tpyo = 1\n"), "chappe.toml:5:8: application.tpyo: unknown field `tpyo`"),
        (String::new(), "chappe.toml:3:1: application: missing field `journal`"),
        // Its own check, which has no more than the table to tell of.
        ("journal = \"a/b\"\n".to_owned(), "chappe.toml:3:1: application: the journal has no root"),
    ]
}

#[test]
fn a_wrong_application_table_is_told_with_its_place() {
    let (site, journal) = place(SERVICE, "config");
    for (table, expected) in wrong_tables(&journal) {
        site.configure(&toml(&table));
        for arguments in [&["-t"][..], &["--foreground"], &[]] {
            let outcome = site.run(arguments);
            assert_eq!(outcome.code, Some(2), "{arguments:?} {table:?}: {outcome:?}");
            assert!(outcome.stderr.contains(expected), "{expected}: {outcome:?}");
            assert_eq!(outcome.stdout, "");
        }
    }
    assert!(!journal.exists(), "no worker was started");
    site.configure(&toml(&format!("journal = {journal:?}\n")));
    let outcome = site.run(&["-t"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(!journal.exists(), "nothing is started for that");
}

#[track_caller]
fn start(test: &str) -> (TestServer, String) {
    let (site, journal) = place(SERVICE, test);
    let table = format!("journal = {journal:?}\n");
    let toml = toml(&table);
    site.configure(&toml);
    (TestServer::start_in(&site, &toml), table)
}

#[track_caller]
fn generation(server: &TestServer) -> u64 {
    let who = server.connect().call(CODE_WHO, b"").expect("a reply").body;
    let who = String::from_utf8_lossy(&who).into_owned();
    let line = who.lines().find_map(|line| line.strip_prefix("generation=")).expect("a line");
    line.parse().expect("a number")
}

#[test]
fn a_wrong_application_table_rolls_a_reload_back() {
    let (server, good) = start("config_reload");
    let workers = server.worker_pids();
    let mut client = server.connect();
    for (nth, (table, expected)) in wrong_tables(&server.dir.join("journal.txt")).iter().enumerate()
    {
        server.configure(&toml(table));
        let outcome = server.run(&["reload"]);
        assert_eq!(outcome.code, Some(2), "{table:?}: {outcome:?}");
        assert!(outcome.stderr.contains(expected), "{expected}: {outcome:?}");
        // Nobody waits for the answer to a signal; the log has it.
        server.signal(Signal::SIGHUP);
        wait_until("the log has it", || {
            let failures = server.events("master", "reload.failed");
            let reasons = failures.iter().filter(|line| line.contains("reload failed: "));
            // The command's and the signal's.
            reasons.count() == 2 * (nth + 1) && failures.iter().any(|line| line.contains(expected))
        });
        assert_eq!(client.call(CODE_PING, b"").expect("served").code, CODE_PING);
    }
    assert_eq!(server.worker_pids(), workers);
    server.configure(&toml(&good));
    let outcome = server.run(&["reload"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    // An old worker may accept until it has heard of it.
    wait_until("the new generation serves", || generation(&server) == 2);
}

const UNOPENED: &str = "the journal cannot be opened: No such file or directory";

#[test]
fn a_service_that_cannot_start_fails_the_start() {
    let (site, journal) = place(SERVICE, "unstarted");
    let missing = journal.with_file_name("missing").join("journal.txt");
    site.configure(&toml(&format!("journal = {missing:?}\n")));
    let outcome = site.run(&["-t"]);
    assert_eq!(outcome.code, Some(0), "no worker is started for that: {outcome:?}");
    for arguments in [&["--foreground"][..], &[]] {
        let outcome = site.run(arguments);
        assert_eq!(outcome.code, Some(1), "{arguments:?}: {outcome:?}");
        assert!(outcome.stderr.contains(UNOPENED), "{arguments:?}: {outcome:?}");
        assert_eq!(outcome.stdout, "");
    }
    let log = site.log("worker-0");
    assert!(log.contains(UNOPENED), "{log}");
}

#[test]
fn a_service_that_cannot_start_rolls_a_reload_back() {
    let (server, good) = start("unstarted_reload");
    let workers = server.worker_pids();
    let mut client = server.connect();
    let missing = server.dir.join("missing").join("journal.txt");
    server.configure(&toml(&format!("journal = {missing:?}\n")));
    let outcome = server.run(&["reload"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains(UNOPENED), "{outcome:?}");
    assert_eq!(client.call(CODE_PING, b"").expect("served").code, CODE_PING);
    server.wait_workers(1, &[]);
    assert_eq!(server.worker_pids(), workers);
    server.configure(&toml(&good));
    let outcome = server.run(&["reload"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
}

const PANICKED: &str = "start panicked: planned for start";

/// As one that returns an error: its text is told, and what served goes on.
#[test]
fn a_panic_in_start_fails_the_start_and_rolls_a_reload_back() {
    let (site, journal) = place(SERVICE, "start_panics");
    site.configure(&toml(&format!("journal = {journal:?}\nstart = \"panics\"\n")));
    for arguments in [&["--foreground"][..], &[]] {
        let outcome = site.run(arguments);
        assert_eq!(outcome.code, Some(1), "{arguments:?}: {outcome:?}");
        assert!(outcome.stderr.contains(PANICKED), "{arguments:?}: {outcome:?}");
    }
    let (server, good) = start("start_panics_reload");
    let mut client = server.connect();
    server.configure(&toml(&format!("{good}start = \"panics\"\n")));
    let outcome = server.run(&["reload"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains(PANICKED), "{outcome:?}");
    assert_eq!(client.call(CODE_PING, b"").expect("served").code, CODE_PING);
}

#[test]
fn a_start_that_does_not_return_is_given_up_in_time() {
    const LATE: &str = "worker 0 was not ready within 300ms (worker_ready_timeout)";
    let hanging = |table: &str| {
        format!(
            "worker_ready_timeout = \"300ms\"\n{}",
            toml(&format!("{table}start = \"hangs\"\n"))
        )
    };
    let (site, journal) = place(SERVICE, "start_hangs");
    site.configure(&hanging(&format!("journal = {journal:?}\n")));
    for arguments in [&["--foreground"][..], &[]] {
        let outcome = site.run(arguments);
        assert_eq!(outcome.code, Some(1), "{arguments:?}: {outcome:?}");
        assert!(outcome.stderr.contains(LATE), "{arguments:?}: {outcome:?}");
    }
    let (server, good) = start("start_hangs_reload");
    let workers = server.worker_pids();
    let mut client = server.connect();
    server.configure(&hanging(&good));
    let outcome = server.run(&["reload"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains(LATE), "{outcome:?}");
    assert_eq!(client.call(CODE_PING, b"").expect("served").code, CODE_PING);
    server.wait_workers(1, &[]);
    assert_eq!(server.worker_pids(), workers);
}

/// It runs in the master, too, which must not end for it.
#[test]
fn a_panic_in_check_is_a_wrong_configuration() {
    const PANICKED: &str = "chappe.toml:3:1: application: its check panicked: planned for check";
    let (server, good) = start("check_panics");
    let bad = toml(&format!("{good}check = \"panics\"\n"));
    server.configure(&bad);
    for arguments in [&["-t"][..], &["reload"], &["reload"]] {
        let outcome = server.run(arguments);
        assert_eq!(outcome.code, Some(2), "{arguments:?}: {outcome:?}");
        assert!(outcome.stderr.contains(PANICKED), "{arguments:?}: {outcome:?}");
    }
    assert_eq!(server.connect().call(CODE_PING, b"").expect("served").code, CODE_PING);
    server.configure(&toml(&good));
    assert_eq!(server.run(&["reload"]).code, Some(0));
}

#[test]
fn a_panic_in_stopping_is_counted_and_the_worker_ends() {
    let (server, good) = start("stopping_panics");
    server.configure(&toml(&format!("{good}stopping = \"panics\"\n")));
    assert_eq!(server.run(&["reload"]).code, Some(0));
    let mut client = server.connect();
    server.configure(&toml(&good));
    assert_eq!(server.run(&["reload"]).code, Some(0));
    assert!(client.receive().expect("a goodbye").as_goodbye().is_some());
    drop(client);
    server.wait_workers(1, &[]);
    server.wait_status("/totals/handler_panics", |panics| panics == 1);
    server.wait_event("worker-0", "handler.panicked", "stopping panicked: planned for stopping");
    assert_eq!(server.total("workers_died"), 0);
}

/// Mistakes of the program are told before there is a server, by `-t` too, with their place in
/// the program.
#[test]
fn a_code_that_cannot_be_is_told_with_its_place() {
    let site = Site::new("misfit", "misfit_codes", &toml(""));
    for (wrong, expected) in [
        ("twice", "message code 16 has a handler already"),
        ("below", "message code 15 belongs to the server, applications have 16..=65279"),
        ("beyond", "message code 65280 belongs to the server, applications have 16..=65279"),
    ] {
        for arguments in [&["-t"][..], &["--foreground"], &[]] {
            let mut command = site.command(arguments);
            let outcome = finish(command.env("MISFIT", wrong).env("RUST_BACKTRACE", "0"));
            assert_eq!(outcome.code, Some(101), "{wrong} {arguments:?}: {outcome:?}");
            assert!(outcome.stderr.contains(expected), "{wrong} {arguments:?}: {outcome:?}");
            assert!(outcome.stderr.contains("misfit.rs:"), "{wrong}: {outcome:?}");
            assert_eq!(outcome.stdout, "");
        }
    }
    assert_eq!(site.run(&["-t"]).code, Some(0));
}

/// A fork copies locks that other threads hold, and not these threads.
#[test]
fn a_program_with_threads_is_no_server() {
    let site = Site::new("misfit", "misfit_threads", &toml(""));
    for arguments in [&["--foreground"][..], &[]] {
        let outcome = finish(site.command(arguments).env("MISFIT", "threads"));
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), ""), "{outcome:?}");
        let expected = "misfit: the program has 2 threads besides the first one, but a server \
                        forks: start threads in Service::start, after the fork\n";
        assert_eq!(outcome.stderr, expected, "{arguments:?}");
    }
    // Commands fork nothing.
    let outcome = finish(site.command(&["-t"]).env("MISFIT", "threads"));
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
}

#[test]
fn a_reload_gives_a_service_its_new_configuration() {
    let (server, _) = start("reload_config");
    let other = server.dir.join("other.txt");
    server.configure(&toml(&format!("journal = {other:?}\n")));
    let outcome = server.run(&["reload"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(server.read("other.txt"), "worker 0 of 2 starts\n");
}

#[test]
fn a_server_of_handlers_refuses_an_application_table() {
    let expected = "chappe.toml:4:8: application.name: unknown field `name`";
    for program in ["application", "chappe"] {
        let site = Site::new(program, "service_none", &toml("name = 1\n"));
        for arguments in [&["-t"][..], &["--foreground"], &[]] {
            let outcome = site.run(arguments);
            assert_eq!(outcome.code, Some(2), "{program} {arguments:?}: {outcome:?}");
            assert!(outcome.stderr.contains(expected), "{program} {arguments:?}: {outcome:?}");
            // An application without a table is the right program all the same.
            let is_stock = program == "chappe";
            let hint = "[application] belongs to an application, which is a program of its own";
            assert_eq!(outcome.stderr.contains(hint), is_stock, "{outcome:?}");
            assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
        }
        // Empty it says nothing.
        site.configure(&toml(""));
        let outcome = site.run(&["-t"]);
        assert_eq!(outcome.code, Some(0), "{program}: {outcome:?}");
    }
}
