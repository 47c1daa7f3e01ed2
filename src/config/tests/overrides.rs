//! `--set key=value`.

use std::time::Duration;

use super::{faults, loaded};
use crate::config::LogLevel;
use crate::config::model::WorkerProcesses;

#[test]
fn an_override_wins_over_the_file_and_over_earlier_ones() {
    let text = "worker_processes = 2\n[worker]\nhandler_threads = 0\n";
    let config = loaded(
        text,
        &[
            "worker.handler_threads=4",
            "log.level=debug",
            "worker_processes=3",
            "worker_processes=auto",
            "timeouts={idle=0, linger='1s'}",
            "frame.max_bytes = 1KiB",
            "user=",
            "pid_file=/run/a=b.pid",
        ],
    )
    .config;
    assert_eq!(config.worker.handler_threads, 4);
    assert_eq!(config.log.level, LogLevel::Debug);
    assert_eq!(config.worker_processes, WorkerProcesses::Auto);
    assert_eq!((config.timeouts.idle, config.timeouts.linger), (None, Duration::from_secs(1)));
    assert_eq!(config.frame.max_bytes, 1024);
    assert_eq!(config.user, None);
    assert_eq!(config.pid_file.to_str(), Some("/run/a=b.pid"));
}

#[test]
fn a_listener_is_named_by_its_number_or_by_being_the_only_one() {
    let address = |text: &str, overrides: &[&str]| {
        let listen = loaded(text, overrides).config.listen;
        listen.iter().map(|listen| listen.address.to_string()).collect::<Vec<_>>().join(" ")
    };
    let two = "[[listen]]\naddress='127.0.0.1:1'\n[[listen]]\naddress='127.0.0.1:2'\n";
    assert_eq!(address("", &["listen.address=127.0.0.1:0"]), "127.0.0.1:0");
    assert_eq!(address("", &["listen.0.address=[::1]:5", "listen.backlog=5"]), "[::1]:5");
    assert_eq!(address(two, &["listen.1.address=127.0.0.1:0"]), "127.0.0.1:1 127.0.0.1:0");
    assert_eq!(address(two, &["listen.1={address='127.0.0.1:9'}"]), "127.0.0.1:1 127.0.0.1:9");
    assert_eq!(address(two, &["listen=[{address=\"127.0.0.1:0\"}]"]), "127.0.0.1:0");
    assert_eq!(
        faults(two, &["listen.address=127.0.0.1:0", "listen.2.backlog=1"]),
        [
            "--set listen.address=127.0.0.1:0: there are 2 listeners, write listen.0 and so on",
            "--set listen.2.backlog=1: listen.2 is not there, must be listen.0..=listen.1",
        ]
    );
    assert_eq!(
        faults("", &["listen=[]"]),
        ["--set listen=[]: listen has 0 tables, must have 1..=64"]
    );
}

#[test]
fn the_application_table_takes_overrides_of_any_depth() {
    let config = loaded(
        "[application]\na = 1\nb.c = 2\n",
        &[
            "application.a=x",
            "application.b.d=3",
            "application.e.f.g=[1, 2]",
            "application.b.c.d=1",
        ],
    )
    .config;
    let expected = toml::toml! {
        a = "x"
        b = { c = { d = 1 }, d = 3 }
        e = { f = { g = [1, 2] } }
    };
    assert_eq!(config.application, expected);
}

#[test]
fn wrong_overrides_are_named_as_they_were_written() {
    assert_eq!(
        faults(
            "daemon = 3",
            &[
                "daemon",
                "=1",
                "worker..x=1",
                "worker.handler_threads=0",
                "worker.handler_thread=1",
                "nothing.at.all=1",
                "listen.adress=1",
                "listen.0.a.b=1",
                "listen=5",
                "worker=5",
                "include=['a.toml']",
                "application=5",
                "log.level=a\nb",
            ]
        ),
        [
            "chappe.toml:1:10: daemon is 3, must be true or false",
            "--set daemon: has no =, must be key=value",
            "--set =1: the key must be 1 to 16 names with dots between them",
            "--set worker..x=1: the key must be 1 to 16 names with dots between them",
            "--set worker.handler_threads=0: worker.handler_threads is 0, must be 1..=128",
            "--set worker.handler_thread=1: worker.handler_thread is unknown, did you mean \
             worker.handler_threads?",
            "--set nothing.at.all=1: nothing.at.all is unknown, the top level has include, \
             worker_processes, daemon, pid_file, control_socket, user, worker_shutdown_timeout, \
             worker_drain_spread, worker_ready_timeout, worker_stuck_timeout, worker_rlimit_nofile, \
             worker_cpu_affinity, max_connections, log, worker, frame, inbox, send, timeouts, \
             limits, topics, metrics, listen, application",
            "--set listen.adress=1: listen.0.adress is unknown, did you mean listen.0.address?",
            "--set listen.0.a.b=1: listen.0.a.b is unknown, [[listen]] has address, protocol, \
             resp_admin, topics, backlog, accept, ipv6only, keepalive, receive_buffer, send_buffer",
            "--set listen=5: listen is 5, must be an array of tables; write [[listen]]",
            "--set worker=5: worker is 5, must be a table",
            "--set include=['a.toml']: include cannot be set here, only in a file",
            "--set application=5: application is 5, must be a table",
            "--set log.level=a\\nb: log.level is \"a\\nb\", must be \"error\", \"warn\", \"info\", \
             \"debug\", \"trace\" or \"off\"",
        ]
    );
}
