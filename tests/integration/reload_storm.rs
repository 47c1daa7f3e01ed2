//! Over a hundred reloads while clients come and go: nobody is refused, nobody is
//! reset, nothing is left unanswered.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chappe_client::{CODE_ECHO, ClientError, Connection};
use nix::sys::signal::Signal;

use chappe_testkit::site::configuration;
use chappe_testkit::{DEADLINE, TestServer, wait_until};

const RELOADS: u64 = 101;
const CLIENTS: u64 = 6;

/// How long a connection must be quiet after its goodbye before the server ends it.
const QUIET: Duration = Duration::from_millis(250);

#[derive(Default)]
struct Storm {
    is_over: AtomicBool,
    connects: AtomicU64,
    answers: AtomicU64,
    /// Connections that a goodbye has ended.
    goodbyes: AtomicU64,
}

impl Storm {
    /// One client: connects, asks, leaves, again and again. Of every second client
    /// one connection in four stays until it is told to go.
    fn client(&self, server: &TestServer, seed: u64) {
        let mut number = seed;
        while !self.is_over.load(Ordering::Relaxed) {
            number += CLIENTS;
            let stays = seed.is_multiple_of(2) && (number / CLIENTS).is_multiple_of(4);
            let asks = if stays { u64::MAX } else { number % 5 };
            self.connection(server, number, asks);
        }
    }

    fn connection(&self, server: &TestServer, number: u64, asks: u64) {
        let mut active = Instant::now();
        let mut client = Connection::connect(server.address, DEADLINE)
            .unwrap_or_else(|error| panic!("a connect failed: {error:?}"));
        self.connects.fetch_add(1, Ordering::Relaxed);
        for ask in 0..asks {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            let before = active;
            active = Instant::now();
            let body = (number << 32 | ask).to_be_bytes();
            client.send(CODE_ECHO, &body).unwrap_or_else(|error| panic!("a send: {error:?}"));
            let was_in_time = before.elapsed() < QUIET;
            if !self.reply(&mut client, &body, was_in_time) {
                return;
            }
        }
    }

    /// Whether it goes on. A request that left within the quiet time after the last
    /// sign of life came before the server's SHUT_WR: it must be answered.
    fn reply(&self, client: &mut Connection, body: &[u8], was_in_time: bool) -> bool {
        let mut goodbye = false;
        loop {
            match client.receive() {
                Ok(frame) if frame.as_goodbye().is_some() => {
                    self.goodbyes.fetch_add(1, Ordering::Relaxed);
                    goodbye = true;
                }
                Ok(frame) => {
                    assert_eq!(frame.body, *body, "{frame:?}");
                    self.answers.fetch_add(1, Ordering::Relaxed);
                    return !goodbye;
                }
                Err(ClientError::Closed) if goodbye && !was_in_time => return false,
                Err(error) => panic!("not answered, goodbye={goodbye}: {error:?}"),
            }
        }
    }
}

fn configure(server: &TestServer, accept: &str, workers: u64) {
    let toml = toml(accept, workers);
    // In one step: half of it would be a valid configuration too.
    let next = server.dir.join("next.toml");
    fs::write(&next, configuration(&toml)).expect("the configuration");
    fs::rename(&next, server.dir.join("chappe.toml")).expect("the configuration");
}

fn toml(accept: &str, workers: u64) -> String {
    format!(
        "worker_processes = {workers}\nworker_drain_spread = \"20ms\"\n[log]\nlevel = \"info\"\n\
         [[listen]]\naddress = \"127.0.0.1:0\"\naccept = \"{accept}\"\n"
    )
}

/// A fourth drain would end the oldest, and with it connections.
fn wait_for_room(server: &TestServer, generation: u64) {
    wait_until("two old generations at most", || {
        let status = server.status_json();
        let workers = status["workers"].as_array().expect("workers");
        let is_now = status["master"]["generation"] == generation;
        let mut old: Vec<u64> = workers
            .iter()
            .filter_map(|worker| worker["generation"].as_u64())
            .filter(|&old| old != generation)
            .collect();
        old.dedup();
        is_now && old.len() <= 2
    });
}

fn survive(test: &str, accept: &str) {
    let server = TestServer::start(test, &toml(accept, 2));
    let storm = Storm::default();
    /// However the reloads end, the clients stop.
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        let _end = End(&storm.is_over);
        let (storm, server) = (&storm, &server);
        for seed in 0..CLIENTS {
            scope.spawn(move || storm.client(server, seed));
        }
        for reload in 0..RELOADS {
            // The number of workers goes up and down at the same time.
            configure(server, accept, 1 + reload % 3);
            server.signal(Signal::SIGHUP);
            wait_for_room(server, reload + 2);
        }
    });
    let status = server.status_json();
    let (connects, answers) = (storm.connects.into_inner(), storm.answers.into_inner());
    let goodbyes = storm.goodbyes.into_inner();
    println!("{accept}: {connects} connects, {answers} answers, {goodbyes} goodbyes");
    assert_eq!(status["reload"]["count"], RELOADS);
    assert!(goodbyes >= RELOADS / 4 && connects >= 4 * RELOADS, "{goodbyes} {connects}");
    for name in ["workers_died", "drains_cut", "connections_refused", "protocol_errors"] {
        assert_eq!(status["totals"][name], 0, "{name}");
    }
    server.wait_status("/semaphores/connection_permits", |free| free == 100_000);
    // None was accepted and forgotten; more than asked cannot have come.
    assert_eq!(server.total("connections_accepted"), connects);
    assert_eq!(server.total("connections_closed"), connects);
}

#[test]
fn nobody_notices_a_hundred_reloads_with_shared_listeners() {
    survive("storm_shared", "shared");
}

#[test]
fn nobody_notices_a_hundred_reloads_with_reuseport() {
    survive("storm_reuseport", "reuseport");
}
