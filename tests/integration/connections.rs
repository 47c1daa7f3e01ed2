//! Who is connected, and closing one of them.

use std::time::Duration;

use chappe::control::ConnectionRow;
use chappe_client::{CODE_ECHO, CODE_PING, ClientError, Connection};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use chappe_testkit::{DEADLINE, TestServer, drain, small_buffers, wait_until};

fn list(server: &TestServer, arguments: &[&str]) -> Vec<ConnectionRow> {
    let list = server.run(&[&["connections", "--json"], arguments].concat());
    assert_eq!((list.code, list.stderr.as_str()), (Some(0), ""));
    list.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn id(client: &mut Connection) -> u64 {
    let who = client.call(3, b"").expect("a reply");
    let text = String::from_utf8_lossy(&who.body).into_owned();
    let id = text.lines().find_map(|line| line.strip_prefix("connection="));
    id.and_then(|id| id.parse().ok()).unwrap_or_else(|| panic!("no id in {text}"))
}

/// A client whose replies fill everything there is between it and the server.
fn slow_client(server: &TestServer) -> Connection {
    let mut client = small_buffers(server.address, 4096);
    client.set_timeout(Some(Duration::from_millis(200))).expect("a time-out");
    while client.send(CODE_ECHO, &[1; 60_000]).is_ok() {}
    client.set_timeout(Some(DEADLINE)).expect("a time-out");
    client
}

#[test]
fn connections_tells_who_is_there_over_all_workers() {
    let server = TestServer::start("connections", "");
    assert_eq!(list(&server, &[]), []);
    let mut clients: Vec<_> = (0..20).map(|_| server.connect()).collect();
    let mut ids: Vec<u64> = clients.iter_mut().map(id).collect();
    ids.sort_unstable();
    let rows = list(&server, &[]);
    let mut listed: Vec<u64> = rows.iter().map(|row| row.id).collect();
    listed.sort_unstable();
    assert_eq!(listed, ids);
    for row in &rows {
        assert!(row.worker < 2, "{row:?}");
        assert!(row.peer.starts_with("127.0.0.1:"), "{row:?}");
        assert_eq!(row.state, "open");
        assert_eq!(row.queued_bytes, 0);
        assert_eq!(row.blocked_ms, None);
    }
    let table = server.run(&["connections"]);
    assert_eq!(table.stdout.lines().count(), 21, "{}", table.stdout);
    assert!(table.stdout.contains("connected"), "{}", table.stdout);
}

#[test]
fn a_slow_reader_is_shown_and_can_be_kicked() {
    let server = TestServer::start("connections_slow", "");
    let mut quick = server.connect();
    let quick_id = id(&mut quick);
    let _slow = slow_client(&server);
    let mut rows = Vec::new();
    wait_until("the slow one is blocked", || {
        rows = list(&server, &["--slow"]);
        rows.len() == 1
    });
    let row = &rows[0];
    assert!(row.queued_bytes > 60_000, "{row:?}");
    assert!(row.blocked_ms.is_some(), "{row:?}");
    let slow_id = row.id;
    assert_ne!(slow_id, quick_id);

    let kick = server.run(&["kick", &slow_id.to_string()]);
    assert_eq!((kick.code, kick.stderr.as_str()), (Some(0), ""));
    server.wait_status("/totals/connections_closed", |closed| closed == 1);
    assert_eq!(server.total("connections_kicked"), 1);
    quick.call(CODE_PING, b"").unwrap();
}

#[test]
fn kick_says_goodbye_behind_what_was_answered() {
    let server = TestServer::start("kick", "");
    let (mut other, mut client) = (server.connect(), server.connect());
    let (id, _) = (id(&mut client), other.call(CODE_PING, b"").unwrap());
    assert_eq!(server.run(&["kick", &id.to_string()]).code, Some(0));
    let (frames, end) = drain(&mut client);
    assert!(matches!(end, ClientError::Closed), "{end:?}");
    let [goodbye] = frames.as_slice() else { panic!("{frames:?}") };
    assert_eq!((goodbye.code, &goodbye.body[..2]), (65534, &[0, 5][..]));
    other.call(CODE_PING, b"").unwrap();
    // It lingers, since the client has not closed: the second kick ends that, and is no other.
    assert_eq!(server.run(&["kick", &id.to_string()]).code, Some(0));
    server.wait_status("/totals/connections_closed", |closed| closed == 1);
    assert_eq!(server.total("connections_kicked"), 1);

    drop(client);
    server.wait_status("/totals/connections_closed", |closed| closed == 1);
    for nobody in [id, u64::MAX] {
        let kick = server.run(&["kick", &nobody.to_string()]);
        assert_eq!(kick.code, Some(1), "{kick:?}");
        assert!(kick.stderr.contains("no connection"), "{kick:?}");
    }
}

#[test]
fn many_connections_are_listed_while_others_are_served() {
    const MANY: usize = 3000;
    let server = TestServer::start("connections_many", "worker_processes = 1\n");
    let clients: Vec<_> = (0..MANY).map(|_| server.connect()).collect();
    let mut client = server.connect();
    // The kernel connects them before the server accepts them.
    server.wait_status("/totals/connections_accepted", |accepted| accepted == MANY as u64 + 1);
    std::thread::scope(|scope| {
        let lists: Vec<_> = (0..3).map(|_| scope.spawn(|| list(&server, &[]).len())).collect();
        while lists.iter().any(|list| !list.is_finished()) {
            client.call(CODE_PING, b"").unwrap();
        }
        for list in lists {
            assert_eq!(list.join().unwrap(), MANY + 1);
        }
    });
    drop(clients);
}

#[test]
fn a_worker_that_gives_no_list_is_told_of() {
    let server = TestServer::start("connections_stopped", "");
    let stopped = Pid::from_raw(server.worker_pids()[0]);
    kill(stopped, Signal::SIGSTOP).unwrap();
    let list = server.run(&["connections"]);
    let kick = server.run(&["kick", "999"]);
    let reopen = server.run(&["reopen", "--wait"]);
    kill(stopped, Signal::SIGCONT).unwrap();
    assert_eq!(list.code, Some(0), "{list:?}");
    let warning = format!("warning: no list from worker 0 (pid {stopped})\n");
    assert!(list.stderr.ends_with(&warning), "{list:?}");
    for (call, says) in
        [(kick, "whether connection 999 exists, no answer from "), (reopen, "in time from ")]
    {
        assert_eq!(call.code, Some(1), "{call:?}");
        let named = format!("{says}worker 0 (pid {stopped})\n");
        assert!(call.stderr.ends_with(&named), "{call:?}");
    }
    // A late answer disturbs nobody.
    let mut client = server.connect();
    client.call(CODE_PING, b"").unwrap();
    wait_until("all give their lists again", || server.run(&["connections"]).stderr.is_empty());
}
