//! What each process holds open, and that it gives back what it took.

use std::collections::BTreeMap;

use chappe_client::{CODE_ECHO, CODE_PING};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

use chappe_testkit::{TestServer, proc, small_buffers, wait_until};

/// How many of each kind a worker may hold: its own channel end and the pair
/// behind its signals are Unix sockets, the rest is as it says.
fn kinds(pid: i32) -> BTreeMap<&'static str, usize> {
    let listening = proc::listening_inodes();
    let unix = proc::unix_inodes();
    let mut kinds = BTreeMap::new();
    for (number, target) in proc::open_descriptors(pid) {
        let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        let is_in = |list: &[String]| inode.is_some_and(|inode| list.iter().any(|i| i == inode));
        let kind = match target.as_str() {
            _ if number <= 2 => "standard stream",
            _ if is_in(&listening) => "listener",
            _ if is_in(&unix) => "unix socket",
            "anon_inode:[eventpoll]" => "epoll",
            "anon_inode:[eventfd]" => "eventfd",
            "anon_inode:[signalfd]" => "signalfd",
            "anon_inode:[timerfd]" => "timerfd",
            path if path.starts_with("/memfd:chappe") => "zone",
            path if path.contains("/logs/worker-") => "own log",
            path if path.starts_with("pipe:") => "pipe",
            other => panic!("descriptor {number} of worker {pid} is {other}"),
        };
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

#[track_caller]
fn assert_keep_list(pid: i32) {
    let kinds = kinds(pid);
    let count = |kind| kinds.get(kind).copied().unwrap_or(0);
    assert_eq!(count("listener"), 1, "{kinds:?}");
    assert_eq!(count("epoll"), 1, "{kinds:?}");
    assert_eq!(count("own log"), 1, "{kinds:?}");
    assert_eq!(count("zone"), 0, "it is mapped: {kinds:?}");
    assert!((1..=3).contains(&count("unix socket")), "channel end, signal pair: {kinds:?}");
    assert!(count("pipe") <= 2, "at most a pipe of its own for signals: {kinds:?}");
}

/// Sockets and pipes that more than one of these processes holds. An end of a
/// channel that stays open in a process it does not belong to hides a death.
fn shared_ends(pids: &[i32]) -> BTreeMap<String, Vec<i32>> {
    let listening = proc::listening_inodes();
    let mut holders: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for &pid in pids {
        for (number, target) in proc::open_descriptors(pid) {
            let is_listener = listening.iter().any(|inode| target == format!("socket:[{inode}]"));
            let is_end = target.starts_with("socket:") || target.starts_with("pipe:");
            if number > 2 && is_end && !is_listener {
                holders.entry(target).or_default().push(pid);
            }
        }
    }
    // A process may well hold two descriptors for one end of its own.
    holders.retain(|_, pids| pids.iter().any(|pid| *pid != pids[0]));
    holders
}

#[test]
fn workers_keep_the_documented_descriptors_and_share_no_end() {
    let server = TestServer::start("keep_list", "worker_processes = 4\n");
    let mut workers = server.worker_pids();
    let check = |workers: &[i32]| {
        for &pid in workers {
            assert_keep_list(pid);
        }
        let family = [&[server.pid()], workers].concat();
        let shared = shared_ends(&family);
        assert!(shared.is_empty(), "{shared:?}");
    };
    check(&workers);
    // For an upgrade in place, which hands it on.
    let of_master = proc::open_descriptors(server.pid());
    let zones = of_master.values().filter(|target| target.starts_with("/memfd:chappe-zone"));
    assert_eq!(zones.count(), 1, "{of_master:?}");

    // A replacement is forked from a master that holds more by now.
    let killed = workers[1];
    kill(Pid::from_raw(killed), Signal::SIGKILL).unwrap();
    workers = server.wait_workers(4, &[killed]);
    wait_until("the new worker serves", || {
        let status = server.status_json();
        let rows = status["workers"].as_array().expect("workers").clone();
        rows.len() == 4 && rows.iter().all(|row| row["state"] == "serving")
    });
    check(&workers);
}

#[test]
fn connects_closes_and_resets_leave_nothing_behind() {
    const LIMIT: u64 = 5000;
    let server = TestServer::start("nothing_left_behind", "max_connections = 5000\n");
    let workers = server.worker_pids();
    let descriptors = |pid: &i32| proc::open_descriptors(*pid).len();
    // Once, so that whatever is made at first use is there.
    server.connect().call(CODE_PING, b"").unwrap();
    server.wait_status("/totals/connections_closed", |closed| closed == 1);
    let before: Vec<usize> = workers.iter().map(descriptors).collect();

    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| connect_and_close(&server, 2500));
        }
    });
    connect_and_reset(&server, 1000);

    server.wait_status("/totals/connections_accepted", |accepted| accepted == 11_001);
    server.wait_status("/totals/connections_closed", |closed| closed == 11_001);
    server.wait_status("/semaphores/connection_permits", |permits| permits == LIMIT);
    assert_eq!(server.connections(), 0);
    assert_eq!(server.worker_pids(), workers);
    let after: Vec<usize> = workers.iter().map(descriptors).collect();
    assert_eq!(after, before);
    assert_eq!(server.total("workers_died"), 0);
}

fn connect_and_close(server: &TestServer, count: usize) {
    for number in 0..count {
        let mut client = server.connect();
        match number % 3 {
            0 => {}
            1 => drop(client.call(CODE_PING, b"").expect("a reply")),
            // Closed while a frame is incomplete.
            _ => client.send_bytes(&[0, 20, 0]).expect("sent"),
        }
    }
}

/// Resets with replies queued: the write that finds out must cost nobody else.
fn connect_and_reset(server: &TestServer, count: usize) {
    for _ in 0..count {
        let mut client = small_buffers(server.address, 4096);
        for _ in 0..4 {
            client.send(CODE_ECHO, &[7; 1500]).expect("sent");
        }
        // With a linger of zero, close sends a reset.
        let abort = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&client, sockopt::Linger, &abort).expect("SO_LINGER");
    }
}
