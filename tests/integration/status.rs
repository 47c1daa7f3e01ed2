//! What `chappe status` tells, and what it tells it about.

use chappe::control::Permits;
use chappe_shm::Counter;
use chappe_testkit::{TestServer, proc, wait_until};
use serde_json::Value;

/// The keys that are there for good, as JSON pointers.
const KEYS: &[&str] = &[
    "/master/pid",
    "/master/version",
    "/master/uptime_ms",
    "/master/generation",
    "/master/listen/0",
    "/master/listeners/0/protocol",
    "/reload/count",
    "/reload/last",
    "/workers/0/worker",
    "/workers/0/pid",
    "/workers/0/generation",
    "/workers/0/state",
    "/workers/0/uptime_ms",
    "/workers/0/connections",
    "/workers/0/handlers_busy",
    "/workers/0/oldest_handler_ms",
    "/workers/0/handler_times/0/up_to_us",
    "/workers/0/handler_times/7/turns",
    "/workers/0/heartbeat_age_ms",
    "/totals/workers_stuck",
    "/workers/0/counters/frames_received",
    "/semaphores/worker_ready",
    "/semaphores/connection_permits",
    "/permits/limit",
    "/permits/debt",
    "/permits/free",
    "/permits/held",
    "/totals/connections_accepted",
    "/totals/connections_refused",
    "/totals/frames_received",
    "/totals/frames_sent",
    "/totals/bytes_received",
    "/totals/bytes_sent",
    "/totals/messages_expired",
    "/totals/messages_dropped",
    "/totals/sends_blocked",
    "/totals/protocol_errors",
    "/totals/workers_died",
];

#[test]
fn status_has_its_keys_and_they_are_right() {
    let server = TestServer::start("status_keys", "worker_processes = 3\nmax_connections = 500\n");
    let status = server.status_json();
    for key in KEYS {
        assert!(status.pointer(key).is_some(), "{key} is not in {status:#}");
    }
    assert_eq!(status["master"]["pid"], server.pid());
    assert_eq!(status["master"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["master"]["generation"], 1);
    let listen = status["master"]["listen"][0].as_str().expect("an address");
    assert_eq!(listen, server.address.to_string());
    assert_eq!(status["reload"]["last"], Value::Null);
    assert_eq!(status["semaphores"]["worker_ready"], 0, "each bell was answered");
    assert_eq!(status["semaphores"]["connection_permits"], 500);

    let workers = status["workers"].as_array().expect("workers");
    let mut pids: Vec<i64> = workers.iter().filter_map(|worker| worker["pid"].as_i64()).collect();
    pids.sort_unstable();
    let running: Vec<i64> = server.worker_pids().into_iter().map(i64::from).collect();
    assert_eq!(pids, running);
    for (number, worker) in workers.iter().enumerate() {
        assert_eq!(worker["worker"], number);
        assert_eq!(worker["state"], "serving");
        assert_eq!(worker["generation"], 1);
    }
}

#[test]
fn status_counts_what_happens() {
    let server = TestServer::start("status_counts", "max_connections = 500\n");
    let mut clients: Vec<_> = (0..5).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.call(1, b"four").unwrap();
        client.call(99, b"").unwrap();
    }
    let status = server.status_json();
    assert_eq!(server.connections(), 5);
    assert_eq!(status["semaphores"]["connection_permits"], 495);
    // Nobody takes or gives one back now.
    let permits = server.status().permits.expect("nothing moves");
    let Permits { limit, debt, free, credit, held, workers, .. } = permits;
    assert_eq!((limit, debt, free, credit, held), (500, 0, 495, 0, 5));
    assert_eq!(workers.iter().map(|worker| worker.held).sum::<u64>(), 5, "{workers:?}");
    let totals = &status["totals"];
    assert_eq!(totals["connections_accepted"], 5);
    assert_eq!(totals["frames_received"], 10);
    assert_eq!(totals["bytes_received"], 5 * (12 + 8));
    // What is sent is counted after the system call, which the peer may outrun.
    server.wait_status("/totals/frames_sent", |sent| sent == 10);
    drop(clients);
    server.wait_status("/semaphores/connection_permits", |permits| permits == 500);
    server.wait_status("/totals/connections_closed", |closed| closed == 5);
}

#[test]
fn status_is_a_table_for_people() {
    let server = TestServer::start("status_table", "");
    let status = server.run(&["status"]);
    assert_eq!((status.code, status.stderr.as_str()), (Some(0), ""));
    assert!(status.stdout.contains(&server.pid().to_string()), "{}", status.stdout);
    assert!(status.stdout.contains(&server.address.to_string()), "{}", status.stdout);
    for pid in server.worker_pids() {
        assert!(status.stdout.contains(&pid.to_string()), "{}", status.stdout);
    }
}

#[test]
fn every_counter_is_in_a_section_of_the_table_and_zeros_are_left_out() {
    let server = TestServer::start("status_sections", "");
    server.connect().call(1, b"four").unwrap();
    server.wait_status("/totals/connections_closed", |closed| closed == 1);
    let all = server.run(&["status", "--all"]).stdout;
    for counter in Counter::ALL {
        let name = counter.name();
        let is_post = name.ends_with("_posts");
        let is_there = all.lines().any(|line| line.split_whitespace().next() == Some(name));
        assert_eq!(is_there, !is_post, "posts stand beside their semaphores: {name} in {all}");
    }
    assert!(!all.contains("\nothers\n"), "{all}");
    let short = server.run(&["status"]).stdout;
    assert!(short.contains("  connections_accepted "), "{short}");
    assert!(!short.contains("closed_idle"), "{short}");
}

/// Three threads at work: each reply is a post of the send semaphore, which its thread takes.
#[test]
fn status_shows_the_semaphores_at_work() {
    let toml = "max_connections = 3\n[worker]\nfuse = false\n";
    let server = TestServer::start("status_semaphores", toml);
    let mut clients: Vec<_> = (0..2).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.call(1, b"four").unwrap();
    }
    let status = server.status();
    assert_eq!(status.total("semaphore_posts"), 2, "a reply each");
    assert_eq!(status.total("worker_ready_posts"), 2, "a worker each");
    assert_eq!(status.total("connection_permit_posts"), 0);
    assert!(status.workers.iter().all(|worker| worker.send_semaphore == Some(0)), "{status:?}");
    let table = server.run(&["status"]).stdout;
    assert!(table.contains("  permits 3 = 1 free + 2 held (worker 0: "), "{table}");
    drop(clients);
    server.wait_status("/totals/connection_permit_posts", |posts| posts == 2);
    server.wait_status("/permits/held", |held| held == 0);
}

#[test]
fn status_without_a_server_says_so() {
    let dir = chappe_testkit::fresh_dir("status_without_server");
    std::fs::write(dir.join("chappe.toml"), "").unwrap();
    let status = chappe_testkit::site::finish(
        chappe_testkit::site::command(&dir).args(["status", "--json"]),
    );
    assert_eq!(status.code, Some(1), "{status:?}");
    assert!(!status.stderr.is_empty(), "it says why");
}

#[test]
fn the_master_has_one_thread_and_a_worker_the_documented_ones() {
    let server = TestServer::start("threads", "[worker]\nhandler_threads = 3\n");
    assert_eq!(proc::threads(server.pid()).len(), 1, "{:?}", proc::threads(server.pid()));
    for pid in server.worker_pids() {
        // The event loop is the main thread; then three handlers and the sender. A
        // thread names itself, which may be a moment after the worker is ready.
        wait_until("each thread has its name", || {
            let threads = proc::threads(pid);
            assert_eq!(threads.len(), 5, "{threads:?}");
            let count = |word: &str| threads.values().filter(|name| name.contains(word)).count();
            (count("handler"), count("send")) == (3, 1)
        });
    }
}

#[test]
fn process_titles_say_who_is_who() {
    let server = TestServer::start("process_titles", "");
    let title = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    let master = title(server.pid());
    assert!(master.starts_with("chappe: master process"), "{master:?}");
    for pid in server.worker_pids() {
        let worker = title(pid);
        assert!(worker.starts_with("chappe: worker process"), "{worker:?}");
    }
}
