//! What a worker may use: descriptors and CPUs.

use std::collections::BTreeSet;
use std::fs;

use chappe_client::CODE_PING;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use chappe_testkit::site::{command, configuration, finish};
use chappe_testkit::{TestServer, fresh_dir};

/// Soft and hard limit of open descriptors.
fn nofile(pid: i32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).expect("a process");
    let line = text.lines().find(|line| line.starts_with("Max open files")).expect("the line");
    let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
    (numbers.next().expect("soft"), numbers.next().expect("hard"))
}

#[test]
fn a_worker_has_as_many_descriptors_as_it_is_given() {
    const ROOM: usize = 300 - 128;
    let toml = "worker_processes = 1\nworker_rlimit_nofile = 300\n";
    let server = TestServer::start("nofile_given", toml);
    assert_eq!(nofile(server.worker_pids()[0]).0, 300);
    let status = server.status_json();
    assert_eq!(status["limits"]["worker_descriptors"], 300);
    assert_eq!(status["limits"]["worker_connections"], ROOM);
    let warning = status["master"]["warnings"][0].as_str().expect("a warning");
    assert!(warning.contains("300 descriptors"), "{warning}");
    assert!(server.read("logs/master.log").contains(warning), "the master says it");
    assert!(!server.read("logs/worker-0.log").contains("descriptors"), "workers don't");

    // All of them can be had at the same time, and the next one waits.
    let mut clients: Vec<_> = (0..ROOM).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.call(CODE_PING, b"").expect("an answer");
    }
    let mut waits = server.connect();
    waits.send(CODE_PING, b"").expect("sent");
    assert_eq!(server.connections(), ROOM as u64);
    clients.pop();
    waits.receive().expect("its turn has come");
}

#[test]
fn without_a_number_it_is_the_hard_limit_and_the_default_is_no_reason_to_warn() {
    let server = TestServer::start("nofile_hard", "");
    let (soft, hard) = nofile(server.worker_pids()[0]);
    assert_eq!(soft, hard);
    let warnings = server.status().master.warnings;
    assert!(warnings.is_empty(), "{warnings:?}");

    // Written down it is a wish, and the operator hears of it.
    let dir = fresh_dir("nofile_wish");
    let toml = "worker_rlimit_nofile = 2000\n[worker]\nmax_connections = 1873\n";
    fs::write(dir.join("chappe.toml"), configuration(toml)).expect("the configuration");
    let checked = finish(command(&dir).arg("-t"));
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let warning = "warning: worker.max_connections is 1873, but 2000 descriptors";
    assert!(checked.stderr.contains(warning), "{checked:?}");
    let fits = finish(command(&dir).args(["-t", "--set", "worker.max_connections=1872"]));
    assert!(!fits.stderr.contains("warning"), "{fits:?}");
}

#[test]
fn a_lowered_hard_limit_is_known_and_warned_about() {
    let dir = fresh_dir("nofile_low");
    fs::write(dir.join("chappe.toml"), configuration("")).expect("the configuration");
    let chappe = command(&dir);
    let mut limited = std::process::Command::new("prlimit");
    limited.arg("--nofile=400").arg(chappe.get_program()).args(chappe.get_args()).arg("-t");
    let checked = finish(&mut limited);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(checked.stderr.contains("400 descriptors"), "{checked:?}");
}

fn allowed_cpus(pid: i32) -> BTreeSet<usize> {
    let set = sched_getaffinity(Pid::from_raw(pid)).expect("a process");
    (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu) == Ok(true)).collect()
}

#[test]
fn worker_n_is_on_cpu_n_modulo_cpus() {
    let cpus: Vec<usize> = allowed_cpus(0).into_iter().collect();
    let toml = "worker_processes = 3\nworker_cpu_affinity = \"auto\"\n";
    let server = TestServer::start("affinity_auto", toml);
    let status = server.status_json();
    for row in status["workers"].as_array().expect("workers") {
        let number = usize::try_from(row["worker"].as_u64().expect("a number")).expect("small");
        let pid = i32::try_from(row["pid"].as_u64().expect("a pid")).expect("a pid");
        let expected = BTreeSet::from([cpus[number % cpus.len()]]);
        for thread in chappe_testkit::proc::threads(pid).into_keys() {
            assert_eq!(allowed_cpus(thread), expected, "worker {number}");
        }
    }
    assert_eq!(allowed_cpus(server.pid()).len(), cpus.len(), "the master goes where it likes");
}

#[test]
fn affinity_stays_inside_of_what_the_server_was_given() {
    // The mask is this thread's, and what it starts inherits it.
    let one = *allowed_cpus(0).last().expect("one at least");
    let mut set = CpuSet::new();
    set.set(one).expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &set).expect("one that we may use");
    let server = TestServer::start("affinity_inside", "worker_cpu_affinity = \"auto\"\n");
    for pid in server.worker_pids() {
        assert_eq!(allowed_cpus(pid), BTreeSet::from([one]));
    }
}

/// Of a thread: 0 as usual, 3 is SCHED_BATCH; field 41 of proc_pid_stat(5).
fn policy(pid: i32, thread: i32) -> u32 {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat")).expect("a thread");
    let (_, fields) = text.rsplit_once(')').expect("the name in brackets");
    fields.split_whitespace().nth(38).expect("the policy").parse().expect("a number")
}

#[test]
fn all_threads_of_a_worker_are_of_sched_batch_and_the_master_is_not() {
    let server = TestServer::start("sched_batch", "worker_processes = 1\n");
    let pid = server.worker_pids()[0];
    for thread in chappe_testkit::proc::threads(pid).into_keys() {
        assert_eq!(allowed_cpus(thread), allowed_cpus(0));
        assert_eq!(policy(pid, thread), 3);
    }
    assert_eq!(policy(server.pid(), server.pid()), 0, "the master is as usual");
}
