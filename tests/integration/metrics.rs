//! Metrics over HTTP: what they say, who serves them, and what happens to that
//! process.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use chappe::control::{Permits, WorkerStatus};
use chappe_client::{CODE_ECHO, CODE_PUBLISH, CODE_SUBSCRIBE, CODE_WHO};
use chappe_shm::Counter;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde::Deserialize;

use chappe_testkit::site::{command, configuration, finish};
use chappe_testkit::{DEADLINE, TestServer, fresh_dir, proc, wait_for, wait_until, while_stopped};

const ON: &str = "[metrics]\naddress = \"127.0.0.1:0\"\n";

/// Must be `CONNECTIONS_MAX` of the server.
const CONNECTIONS_MAX: usize = 32;

/// Where metrics are served, and by whom.
#[track_caller]
fn metrics(server: &TestServer) -> (SocketAddr, i32) {
    let found = wait_for(|| {
        let metrics = server.status().metrics?;
        Some((metrics.address.parse().ok()?, metrics.pid?))
    });
    found.expect("a metrics process")
}

fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).expect("connected");
    socket.set_read_timeout(Some(DEADLINE)).expect("a time-out");
    socket
}

/// All that is answered to these bytes, until the server closes.
#[track_caller]
fn exchange(address: SocketAddr, request: &str) -> String {
    let mut socket = connect(address);
    socket.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer and an end");
    answer
}

/// Head and body of the answer to a GET.
#[track_caller]
fn get(address: SocketAddr, path: &str) -> (String, String) {
    let answer = exchange(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n"));
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let length = format!("Content-Length: {}", body.len());
    assert!(head.lines().any(|line| line == length), "{head}");
    (head.to_owned(), body.to_owned())
}

/// The samples of `/metrics`, by series.
#[track_caller]
fn samples(address: SocketAddr) -> BTreeMap<String, u64> {
    let (head, body) = get(address, "/metrics");
    assert!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
    let lines = body.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (series, value) = line.rsplit_once(' ').expect("a series and a value");
        (series.to_owned(), value.parse().expect("a number"))
    };
    lines.map(sample).collect()
}

fn configure(server: &TestServer, toml: &str) {
    let next = server.dir.join("next.toml");
    fs::write(&next, configuration(toml)).expect("the configuration");
    fs::rename(&next, server.dir.join("chappe.toml")).expect("the configuration");
}

#[test]
fn metrics_say_what_status_says() {
    let server = TestServer::start("metrics_totals", &format!("max_connections = 500\n{ON}"));
    let (address, _) = metrics(&server);
    let mut clients: Vec<_> = (0..5).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.call(CODE_ECHO, b"four").unwrap();
    }
    // What is sent is counted after the system call, which the peer may outrun.
    server.wait_status("/totals/frames_sent", |sent| sent == 5);
    let (status, samples) = (server.status_json(), samples(address));
    for counter in Counter::ALL {
        let name = format!("chappe_{}_total", counter.name());
        let told = samples.get(&name).unwrap_or_else(|| panic!("{name} in {samples:?}"));
        assert_eq!(status["totals"][counter.name()], *told, "{name}");
    }
    assert_eq!(samples["chappe_frames_received_total"], 5);
    let permits = "chappe_semaphore_value{semaphore=\"connection_permits\"}";
    assert_eq!(samples[permits], 495);
    assert_eq!(samples["chappe_connections_limit"], 500);
    assert_eq!(samples["chappe_generation"], 1);
    assert_eq!(samples["chappe_workers{state=\"serving\"}"], 2);
    let connections = |worker| {
        samples[&format!("chappe_worker_connections{{worker=\"{worker}\",generation=\"1\"}}")]
    };
    assert_eq!(connections(0) + connections(1), 5);
    let table = server.run(&["status"]).stdout;
    assert!(table.contains(&format!("metrics at http://{address}/")), "{table}");
}

/// The master tells it once a second.
#[test]
fn metrics_say_what_the_hub_has() {
    let server = TestServer::start("metrics_hub", ON);
    let (address, _) = metrics(&server);
    let mut client = server.connect();
    for topic in [&b"\x01a"[..], b"\x01b", b"\x02c*"] {
        client.call(CODE_SUBSCRIBE, topic).unwrap();
    }
    client.call(CODE_PUBLISH, b"\x01d").unwrap();
    let epoch = server.status().hub.expect("a hub").epoch;
    let expected = [("epoch", epoch), ("offset", 1), ("topics", 3), ("patterns", 1)];
    wait_until("the hub's figures are there", || {
        let samples = samples(address);
        let of = |name: &str| samples.get(&format!("chappe_hub_{name}")).copied();
        expected.iter().all(|(name, value)| of(name) == Some(*value))
    });
    let behind = |samples: &BTreeMap<String, u64>, worker: u16| {
        let labels = format!("worker=\"{worker}\",generation=\"1\"");
        samples[&format!("chappe_worker_topics_behind_bytes{{{labels}}}")]
    };
    let who = client.call(CODE_WHO, b"").unwrap().body;
    let who = String::from_utf8_lossy(&who).into_owned();
    let status = server.status();
    let is_other = |it: &&WorkerStatus| !who.contains(&format!("pid={}\n", it.pid));
    let other = status.workers.iter().find(is_other).expect("two workers");
    while_stopped(i32::try_from(other.pid).expect("a process"), || {
        client.call(CODE_PUBLISH, &[&b"\x01d"[..], &[0; 5000]].concat()).unwrap();
        wait_until("the other worker is behind", || {
            (5000..6000).contains(&behind(&samples(address), other.worker))
        });
        assert_eq!(behind(&samples(address), 1 - other.worker), 0);
    });
    configure(&server, &format!("{ON}[topics]\nenabled = false\n"));
    assert_eq!(server.run(&["reload"]).code, Some(0));
    drop(client);
    wait_until("there is no hub any more", || !samples(address).contains_key("chappe_hub_epoch"));
}

fn state(address: SocketAddr, after: u64) -> serde_json::Value {
    let (head, body) = get(address, &format!("/state?after={after}"));
    assert!(head.contains("Content-Type: application/json"), "{head}");
    serde_json::from_str(&body).expect("JSON")
}

#[test]
fn the_history_is_kept_by_the_process_and_says_what_happened() {
    let server = TestServer::start("metrics_history", ON);
    let (address, _) = metrics(&server);
    let mut client = server.connect();
    client.call(CODE_ECHO, b"four").unwrap();
    let received = |state: &serde_json::Value| state["samples"][0][1].as_u64();
    let next = |state: &serde_json::Value| state["next"].as_u64().expect("a number");
    wait_until("a sample that has the message", || {
        let next = next(&state(address, u64::MAX));
        next > 0 && received(&state(address, next - 1)) == Some(1)
    });
    let all = state(address, 0);
    let samples = all["samples"].as_array().expect("samples");
    let at = |sample: &serde_json::Value| sample[0].as_u64().expect("a time");
    assert!(samples.windows(2).all(|pair| at(&pair[0]) <= at(&pair[1])), "{samples:?}");
    assert_eq!(samples.len() as u64, next(&all));
    // What a status says as well is said in the same words.
    let permits = Permits::deserialize(&all["permits"]).expect("as in a status");
    assert_eq!((permits.held, permits.free, permits.workers.len()), (1, 99_999, 2));
    assert_eq!(permits.workers.iter().map(|share| share.held).sum::<u64>(), 1);
    let status = server.status();
    let rows = all["workers"].as_array().expect("workers");
    assert_eq!(rows.len(), 2);
    for (row, told) in rows.iter().zip(&status.workers) {
        let worker = WorkerStatus::deserialize(row).expect("as in a status");
        assert_eq!((worker.pid, worker.worker, &*worker.state), (told.pid, told.worker, "serving"));
        assert_eq!(worker.counters.iter().count(), told.counters.iter().count());
        assert!(row["memory_bytes"].as_u64() > Some(0), "{row}");
    }
    let names: Vec<_> = all["processes"].as_array().expect("processes").iter().collect();
    assert_eq!(names.len(), 2, "the master and the one that tells: {names:?}");
}

#[test]
fn the_page_is_one_file_and_head_has_no_body() {
    let server = TestServer::start("metrics_page", ON);
    let (address, _) = metrics(&server);
    let (head, page) = get(address, "/");
    assert!(head.contains("Content-Type: text/html"), "{head}");
    assert!(page.starts_with("<!DOCTYPE html>"), "{page}");
    for outside in ["src=", "@import", "url(", "https:"] {
        assert!(!page.contains(outside), "the page needs {outside}");
    }
    for path in ["/", "/metrics", "/state"] {
        let head = exchange(address, &format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    }
}

#[test]
fn bad_requests_are_told_so() {
    let server = TestServer::start("metrics_bad_requests", ON);
    let (address, pid) = metrics(&server);
    let long = format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "a".repeat(100_000));
    let rows = [
        ("GET /secret HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", "405"),
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("hello\r\n\r\n", "400"),
        ("\0\u{7f}\r\n\r\n", "400"),
        (&long, "431"),
    ];
    for (request, status) in rows {
        let answer = exchange(address, request);
        let told = answer.split(' ').nth(1);
        assert_eq!(told, Some(status), "{:.80} → {answer:.80}", request.escape_debug());
    }
    // Half a request and an end is answered with an end.
    let mut socket = connect(address);
    socket.write_all(b"GET / HT").unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(metrics(&server).1, pid, "the same process all along");
}

/// The channel, the socket that listens, and the pair behind the signals.
const OWN_SOCKETS: usize = 4;

fn sockets(pid: i32) -> usize {
    let open = proc::open_descriptors(pid);
    open.iter().filter(|(number, target)| **number > 2 && target.starts_with("socket:")).count()
}

/// What a connection may take for its request.
const REQUEST_TIME: Duration = Duration::from_secs(5);

#[test]
fn silent_connections_keep_nobody_out_and_are_ended() {
    let server = TestServer::start("metrics_connections", ON);
    let (address, pid) = metrics(&server);
    wait_until("it has its descriptors", || sockets(pid) == OWN_SOCKETS);
    let open = || sockets(pid) - OWN_SOCKETS;
    let began = Instant::now();
    let mut silent: Vec<_> = (0..CONNECTIONS_MAX).map(|_| connect(address)).collect();
    wait_until("all are taken", || open() == CONNECTIONS_MAX);
    // Half a request is no more than none. A request that has come is answered without room; one
    // more that is silent takes the place of the oldest.
    silent[0].write_all(b"GET / HT").unwrap();
    samples(address);
    let _one_more = connect(address);
    let mut is_open = |nth: usize| {
        silent[nth].set_nonblocking(true).unwrap();
        let result = silent[nth].read(&mut [0]);
        result.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    };
    // The others have their time.
    wait_until("the oldest one went", || !is_open(0));
    let others_are_open = (1..CONNECTIONS_MAX).all(&mut is_open);
    assert!(others_are_open || began.elapsed() > REQUEST_TIME, "closed before their time");
    // More than fit, and than wait: a request is answered.
    silent.extend((0..10 * CONNECTIONS_MAX).map(|_| connect(address)));
    samples(address);
    wait_until("silent connections are closed", || open() == 0);
    samples(address);
}

#[test]
fn a_killed_metrics_process_comes_back_and_is_no_dead_worker() {
    let server = TestServer::start("metrics_killed", ON);
    let (address, first) = metrics(&server);
    let workers: Vec<_> = worker_pids(&server);
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    // A request that comes in between is answered by the next one.
    assert_eq!(samples(address)["chappe_workers_died_total"], 0);
    let (again, second) = metrics(&server);
    assert_eq!(again, address);
    assert_ne!(second, first);
    assert_eq!(worker_pids(&server), workers);
    server.wait_event("master", "metrics.ended", "");
    // One that dies young, and again, is paced; on a busy machine it may grow old.
    wait_until("a longer pause", || {
        // It may be gone already, by the kill before.
        let _ = kill(Pid::from_raw(metrics(&server).1), Signal::SIGKILL);
        server.events("master", "metrics.paused").iter().any(|line| line.ends_with("=200"))
    });
    assert_eq!(server.total("workers_died"), 0);
}

#[test]
fn signals_for_the_master_leave_the_metrics_process_alone_and_term_replaces_it() {
    let server = TestServer::start("metrics_signals", ON);
    let (address, pid) = metrics(&server);
    samples(address);
    for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGUSR1] {
        kill(Pid::from_raw(pid), signal).unwrap();
        samples(address);
    }
    assert_eq!(metrics(&server), (address, pid));
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    wait_until("another one", || metrics(&server).1 != pid);
    server.wait_event("master", "metrics.ended", "exit=0");
}

fn worker_pids(server: &TestServer) -> Vec<i64> {
    server.status().workers.iter().map(|worker| worker.pid.into()).collect()
}

#[test]
fn the_metrics_process_has_nothing_but_its_own() {
    // With tables of addresses, which are mapped apart.
    let limits = "[limits]\nconnections_per_ip = 1000\n";
    let server = TestServer::start("metrics_process", &format!("{ON}{limits}"));
    let (_, pid) = metrics(&server);
    wait_until("it has its name", || {
        let title = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        title.starts_with("chappe: metrics process")
    });
    wait_until("it has its descriptors", || {
        let open = proc::open_descriptors(pid);
        let sockets = open.iter().filter(|(number, _)| **number > 2);
        let kinds: Vec<_> = sockets.map(|(_, target)| target.split(':').next()).collect();
        kinds == [Some("socket"); OWN_SOCKETS]
    });
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    if geteuid().is_root() {
        assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
        assert!(!status.contains("Uid:\t0"), "{status}");
    }
    assert_eq!(proc::threads(pid).len(), 1);
    // The kernel holds it to what it is: a reader.
    wait_until("it can't write what it shares", || {
        proc::mapping_rights(pid, "memfd:chappe-zone") == ["r--s", "r--s"]
    });
}

#[test]
fn the_metrics_process_ends_with_the_master_however_that_ends() {
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGQUIT] {
        let mut server = TestServer::start("metrics_end", ON);
        let (_, pid) = metrics(&server);
        server.signal(signal);
        server.wait_exit();
        wait_until("it is gone", || !proc::is_running(pid));
    }
}

#[test]
fn a_reload_moves_metrics_turns_them_off_and_on() {
    let server = TestServer::start("metrics_reload", "");
    assert_eq!(server.status().metrics, None);
    let reload = || assert_eq!(server.run(&["reload"]).code, Some(0));
    configure(&server, ON);
    reload();
    let (address, pid) = metrics(&server);
    assert_eq!(samples(address)["chappe_generation"], 2);
    // The same address: the same process, which sees the new generation.
    reload();
    assert_eq!(metrics(&server), (address, pid));
    wait_until("the new generation", || samples(address)["chappe_generation"] == 3);
    assert_eq!(samples(address)["chappe_last_reload_successful"], 1);
    // Another address.
    configure(&server, "[metrics]\naddress = \"[::1]:0\"\n");
    reload();
    let (moved, next) = metrics(&server);
    assert!(moved.is_ipv6() && next != pid, "{moved} {next}");
    wait_until("the first one is gone", || !proc::is_running(pid));
    assert!(TcpStream::connect(address).is_err(), "nobody listens there any more");
    samples(moved);
    configure(&server, "");
    reload();
    wait_until("it is gone", || !proc::is_running(next));
    assert_eq!(server.status().metrics, None);
}

#[test]
fn a_taken_port_fails_the_start_and_a_reload_keeps_the_old_one() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let there = format!("[metrics]\naddress = \"{address}\"\n");
    let why = format!(
        "chappe.toml:3:11: metrics.address: cannot listen on {address}: Address already in use"
    );

    let dir = fresh_dir("metrics_taken_at_start");
    fs::write(dir.join("chappe.toml"), configuration(&there)).unwrap();
    let start = finish(command(&dir).arg("--foreground"));
    assert_eq!(start.code, Some(1), "{start:?}");
    assert!(start.stderr.contains(&why), "{start:?}");

    let server = TestServer::start("metrics_taken_at_reload", ON);
    let before = metrics(&server);
    configure(&server, &there);
    let reload = server.run(&["reload"]);
    assert_eq!(reload.code, Some(1), "{reload:?}");
    assert!(reload.stderr.contains(&why), "{reload:?}");
    assert_eq!(metrics(&server), before);
    let samples = samples(before.0);
    assert_eq!(samples["chappe_generation"], 1);
    assert_eq!(samples["chappe_reloads_failed_total"], 1);
    assert_eq!(samples["chappe_last_reload_successful"], 0);
}

/// A browser, if there is one; says so if not.
fn browser() -> Option<&'static str> {
    let known = ["chromium", "chromium-browser", "google-chrome"];
    let is_there = |name: &&str| Command::new(name).arg("--version").output().is_ok();
    let found = known.into_iter().find(is_there);
    if found.is_none() {
        println!("skipped: no Chromium is installed");
    }
    found
}

#[test]
fn a_browser_draws_the_page() {
    let Some(browser) = browser() else { return };
    let server = TestServer::start("metrics_browser", ON);
    let (address, _) = metrics(&server);
    let mut clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.call(CODE_ECHO, b"four").unwrap();
    }
    // The page is opened late: the process has kept what was before.
    wait_until("a history", || state(address, 0)["next"].as_u64() >= Some(4));
    let profile = server.dir.join("profile");
    let dom = finish(
        Command::new(browser)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update"])
            .args(["--disable-sync", "--disable-quic", "--disable-dev-shm-usage"])
            .arg(format!("--user-data-dir={}", profile.display()))
            // This much of the page's own time passes, as fast as it can.
            .args(["--virtual-time-budget=1500", "--dump-dom"])
            .arg(format!("http://{address}/")),
    );
    assert_eq!(dom.code, Some(0), "{dom:?}");
    let text = &dom.stdout;
    let samples = text.split_once("data-samples=\"").and_then(|(_, rest)| rest.split('"').next());
    let samples: usize = samples.and_then(|count| count.parse().ok()).expect(text);
    assert!(samples >= 4, "{samples} in {text}");
    assert_eq!(text.matches("<path class=\"line\"").count(), 18, "{text}");
    let drawn = text.matches("d=\"M").count();
    assert!(drawn >= 18, "each line has points, {drawn}: {text}");
    assert!(text.contains("100000 = 99997 free + 3 held"), "{text}");
    for row in ["<td>worker 0</td>", "<td>worker 1</td>", "<td>all workers</td>", "<td>master</td>"]
    {
        assert!(text.contains(row), "{row} in {text}");
    }
    assert!(text.contains(">history of ") && !text.contains(">no answer: "), "{text}");
}
