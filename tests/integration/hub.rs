//! The hub as an operator has it: what `status` and the counters say, its log, its memory, and
//! what a reload does with it.

use std::collections::BTreeSet;
use std::fs;

use chappe_client::{
    CODE_MESSAGE, CODE_PUBLISH, CODE_SUBSCRIBE, CODE_WHO, Connection, ErrorNumber,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use chappe_testkit::{TestServer, proc, receive_error, site, wait_until, while_stopped};

/// A topic with its length in front, and a payload.
fn topic(name: &str, payload: &[u8]) -> Vec<u8> {
    [&[u8::try_from(name.len()).expect("as the test has it")][..], name.as_bytes(), payload]
        .concat()
}

#[track_caller]
fn call(client: &mut Connection, code: u16, name: &str, payload: &[u8]) {
    let reply = client.call(code, &topic(name, payload)).expect("a reply");
    assert_eq!(reply.code, code, "{reply:?}");
}

/// The process of the worker that has this connection.
fn worker_of(client: &mut Connection) -> i32 {
    let who =
        String::from_utf8(client.call(CODE_WHO, b"").expect("as the test has it").body.to_vec())
            .expect("as the test has it");
    let pid = who.lines().find_map(|line| line.strip_prefix("pid=")).expect("a pid");
    pid.parse().expect("a number")
}

fn hub(server: &TestServer) -> i32 {
    i32::try_from(server.status_number("/hub/pid")).expect("a process")
}

#[track_caller]
fn reload(server: &TestServer, toml: &str) -> String {
    fs::write(server.dir.join("chappe.toml"), site::configuration(toml)).expect("written");
    let reload = server.run(&["reload"]);
    assert_eq!(reload.code, Some(0), "{reload:?}");
    reload.stdout
}

#[test]
fn the_hub_is_in_status_and_what_it_does_is_counted() {
    let server = TestServer::start("hub_status", "");
    let mut client = server.connect();
    call(&mut client, CODE_SUBSCRIBE, "a", b"");
    for _ in 0..3 {
        call(&mut client, CODE_PUBLISH, "a", b"");
        assert_eq!(client.receive().unwrap().code, CODE_MESSAGE);
    }
    // Taken over by the master once a second at the latest.
    server.wait_status("/totals/messages_published", |published| published == 3);
    server.wait_status("/totals/hub_bells", |bells| bells > 0);
    assert_eq!(server.status_number("/totals/messages_delivered"), 3);
    assert_eq!(server.status_number("/totals/messages_skipped"), 0);
    let status = server.status();
    let hub = status.hub.as_ref().expect("a hub");
    assert_eq!((hub.offset, hub.topics, hub.patterns), (3, 1, 0));
    let readers: Vec<_> = hub.workers.iter().map(|it| (it.worker, it.pid)).collect();
    let workers: Vec<_> = status.workers.iter().map(|it| (it.worker, it.pid)).collect();
    assert_eq!(readers, workers);
    let text = server.run(&["status"]).stdout;
    assert!(
        text.contains(&format!("hub pid {}, 3 messages, 1 topics", hub.pid.unwrap())),
        "{text}"
    );
    assert!(text.contains("messages_published"), "{text}");
}

#[test]
fn status_says_how_far_behind_a_worker_is() {
    let server = TestServer::start("hub_behind", "worker_processes = 2\n");
    let mut client = server.connect();
    let own = worker_of(&mut client);
    let other = server.worker_pids().into_iter().find(|pid| *pid != own).expect("another");
    let behind = || {
        let hub = server.status().hub.expect("a hub");
        let reader = hub.workers.iter().find(|it| i64::from(it.pid) == i64::from(other)).copied();
        reader.expect("it reads").behind_bytes
    };
    while_stopped(other, || {
        call(&mut client, CODE_PUBLISH, "a", &[0; 5000]);
        assert!((5000..6000).contains(&behind()), "{}", behind());
        let text = server.run(&["status"]).stdout;
        assert!(text.contains(&format!(" has {} bytes to read", behind())), "{text}");
    });
    // It is rung for nothing but what concerns it, and looks now and then all the same.
    let mut there = server.connect();
    call(&mut there, CODE_SUBSCRIBE, "a", b"");
    call(&mut client, CODE_PUBLISH, "a", b"");
}

#[test]
fn no_worker_can_write_what_the_hub_says_to_all() {
    let server = TestServer::start("hub_memory", "[metrics]\naddress = \"127.0.0.1:0\"\n");
    call(&mut server.connect(), CODE_PUBLISH, "a", b"");
    let hub = hub(&server);
    for pid in proc::children(server.pid()).into_iter().chain([server.pid()]) {
        for name in ["chappe-topics", "chappe-figures"] {
            let rights = proc::mapping_flags(pid, name);
            assert!(!rights.is_empty(), "{name} of {pid}");
            let can_write = rights.iter().any(|flags| flags.split(' ').any(|flag| flag == "mw"));
            assert_eq!(can_write, pid == hub, "{name} of {pid}: {rights:?}");
        }
        if pid != server.pid() {
            let files = proc::open_descriptors(pid);
            assert!(!files.values().any(|file| file.contains("memfd:")), "{pid}: {files:?}");
        }
    }
}

#[test]
fn a_log_level_reaches_the_hub() {
    let server = TestServer::start("hub_level", "");
    assert_eq!(server.run(&["log-level", "trace"]).code, Some(0));
    server.wait_event("hub", "log.level", "level=trace");
    reload(&server, "[log]\nlevel = \"warn\"\n");
    wait_until("nothing but warnings is logged", || {
        let reopened = server.run(&["reopen", "--wait"]);
        reopened.code == Some(0) && !server.read("logs/hub.log").ends_with("log reopened\n")
    });
}

#[test]
fn the_hub_goes_on_in_the_directory_that_a_reload_names() {
    let server = TestServer::start("hub_directory", "");
    let pid = hub(&server);
    reload(&server, "[log]\ndirectory = \"others\"\n");
    wait_until("the hub has changed over", || {
        let files = proc::open_descriptors(pid);
        files.values().any(|file| file.ends_with("/others/hub.log"))
            && !files.values().any(|file| file.ends_with("/logs/hub.log"))
    });
    // Also one that comes later.
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the hub");
    wait_until("there is another hub, which logs there", || {
        server.read("others/hub.log").contains("hub.started")
    });
    assert_ne!(hub(&server), pid);
}

#[test]
fn a_reload_reaches_the_hub() {
    let server = TestServer::start("hub_reload", "");
    let pid = hub(&server);
    let mut client = server.connect();
    call(&mut client, CODE_SUBSCRIBE, "a", b"");
    let told = reload(&server, "[topics]\nmax_topics = 1\nring_bytes = \"1MiB\"\n");
    assert!(told.contains("needs a restart: topics.ring_bytes\n"), "{told}");
    assert!(told.contains("changed: topics.max_topics\n"), "{told}");
    let again = reload(&server, "[topics]\nmax_topics = 1\nring_bytes = \"1MiB\"\n");
    assert!(again.contains("needs a restart: topics.ring_bytes\n"), "{again}");
    assert_eq!(hub(&server), pid, "a reload leaves it alone");
    let mut first = server.connect();
    wait_until("the old workers are gone, and what was subscribed to there", || {
        server.status_number("/hub/topics") == 0
    });
    call(&mut first, CODE_SUBSCRIBE, "one", b"");
    // Also in the other worker, whose own table has room.
    let mut seen = BTreeSet::new();
    wait_until("each worker has been asked", || {
        let mut client = server.connect();
        client.send(CODE_SUBSCRIBE, &topic("two", b"")).unwrap();
        let error = receive_error(&mut client, ErrorNumber::BusyInside);
        assert!(error.text.contains("max_topics"), "{error:?}");
        seen.insert(worker_of(&mut client));
        seen.len() == 2
    });
}

#[test]
fn a_reload_begins_topics_and_ends_them_with_the_last_worker_that_has_some() {
    let (off, on) = ("[topics]\nenabled = false\n", "");
    let server = TestServer::start("hub_on_and_off", off);
    assert!(server.status().hub.is_none());
    assert!(!server.dir.join("logs/hub.log").exists());
    for _ in 0..2 {
        reload(&server, on);
        let mut client = server.connect();
        call(&mut client, CODE_SUBSCRIBE, "a", b"");
        let pid = hub(&server);
        reload(&server, off);
        let mut without = server.connect();
        without.send(CODE_SUBSCRIBE, &topic("a", b"")).unwrap();
        receive_error(&mut without, ErrorNumber::NotAllowed);
        wait_until("the hub is gone with the workers that needed it", || {
            server.status().hub.is_none() && !proc::is_running(pid)
        });
        server.wait_serving(2);
    }
}
