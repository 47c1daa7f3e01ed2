//! Listeners at a path: the same server without a network.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use chappe_client::{CODE_ECHO, CODE_PING, CODE_WHO, ClientError, Connection, Goodbye};
use nix::sys::signal::Signal;

use chappe_testkit::site::{command, configuration, finish};
use chappe_testkit::{DEADLINE, Numbered, TestServer, drain, fresh_dir, wait_until};

/// A port as well, since that is what the harness waits for.
const LISTEN: &str = "[[listen]]\naddress = \"127.0.0.1:0\"\n\
                      [[listen]]\naddress = \"unix:sockets/a.sock\"\n";

fn path(server: &TestServer) -> PathBuf {
    server.dir.join("sockets/a.sock")
}

#[track_caller]
fn connect(path: &Path) -> Connection {
    Connection::connect_unix(path, DEADLINE).expect("connected")
}

#[test]
fn a_path_serves_like_a_port() {
    let mut server = TestServer::start("unix_serves", LISTEN);
    let path = path(&server);
    let address = format!("unix:{}", path.display());
    assert_eq!(server.stdout(), format!("ready {} {address}\n", server.address));
    assert_eq!(server.status().master.listen[1], address.as_str());
    let there = fs::symlink_metadata(&path).unwrap();
    assert!(there.file_type().is_socket());
    assert_eq!(there.permissions().mode() & 0o777, 0o666);

    let mut client = connect(&path);
    assert_eq!(client.call(CODE_ECHO, b"hello").unwrap().body, "hello");
    let who = client.call(CODE_WHO, b"").unwrap().body;
    let who = String::from_utf8(who.to_vec()).unwrap();
    assert!(who.lines().any(|line| line == "peer=unix:"), "{who}");
    let accepted = |log| server.events(log, "conn.accepted");
    let accepted = ["worker-0", "worker-1"].map(accepted).concat();
    assert!(accepted.iter().any(|line| line.contains("peer=unix:")), "{accepted:?}");

    let send = server.run(&["send", "--to", &address, "--body", "by command"]);
    assert_eq!((send.code, send.stdout.contains("by command")), (Some(0), true), "{send:?}");

    server.signal(Signal::SIGTERM);
    server.wait_exit();
    assert!(!path.exists(), "it goes with the server");
}

#[test]
fn the_first_address_of_the_configuration_may_be_a_path() {
    let dir = fresh_dir("unix_first");
    let toml = "daemon = true\n[[listen]]\naddress = \"unix:a.sock\"\n";
    fs::write(dir.join("chappe.toml"), configuration(toml)).unwrap();
    let start = finish(&mut command(&dir));
    assert_eq!(start.code, Some(0), "{start:?}");
    let send = finish(command(&dir).args(["send", "--body", "x"]));
    let is_there = dir.join("a.sock").exists();
    let stop = finish(command(&dir).args(["quit", "--wait"]));
    assert_eq!(stop.code, Some(0), "{stop:?}");
    assert_eq!(send.code, Some(0), "{send:?}");
    assert!(start.stdout.contains(&format!("unix:{}/a.sock,", dir.display())), "{start:?}");
    assert!(is_there, "the launcher leaves it to the master");
    assert!(!dir.join("a.sock").exists());
}

#[test]
fn long_paths_can_be_listened_on() {
    let long = "d".repeat(200);
    let toml = format!("{LISTEN}[[listen]]\naddress = \"unix:{long}/b.sock\"\n");
    let server = TestServer::start("unix_long", &toml);
    let path = server.dir.join(&long).join("b.sock");
    assert_eq!(connect(&path).call(CODE_ECHO, b"far").unwrap().body, "far");
    let to = format!("unix:{}", path.display());
    assert_eq!(server.run(&["send", "--to", &to]).code, Some(0));
}

#[test]
fn what_was_sent_in_front_of_a_close_is_received() {
    const PEERS: u64 = 50;
    const PINGS: u32 = 200;
    let server = TestServer::start("unix_close", LISTEN);
    let pings = chappe_wire::encode(CODE_PING, b"").unwrap().repeat(PINGS.try_into().unwrap());
    for _ in 0..PEERS {
        // Unlike TCP a Unix socket tells of the close before it tells of the bytes.
        connect(&path(&server)).send_bytes(&pings).unwrap();
    }
    server.wait_status("/totals/frames_received", |frames| frames == PEERS * u64::from(PINGS));
    server.wait_status("/totals/connections_closed", |closed| closed == PEERS);
    assert_eq!(server.connections(), 0);
    assert_eq!(server.total("workers_died"), 0);
}

#[test]
fn a_peer_that_closes_with_replies_unread_is_closed() {
    let server = TestServer::start("unix_unread", LISTEN);
    let mut client = connect(&path(&server));
    client.set_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    let body = [1; 60_000];
    while client.send(CODE_ECHO, &body).is_ok() {}
    assert!(server.total("sends_blocked") > 0);
    drop(client);
    server.wait_status("/totals/connections_closed", |closed| closed == 1);
    assert_eq!(connect(&path(&server)).call(CODE_ECHO, b"unhurt").unwrap().body, "unhurt");
}

#[test]
fn a_peer_that_never_reads_is_closed_and_a_slow_one_is_not() {
    // The slow one must come back within it, on a busy machine too.
    let toml = format!("[send]\noutbox_max_age = \"4s\"\n{LISTEN}");
    let server = TestServer::start("unix_slow", &toml);
    let message = |number| Numbered { stream: 7, number, bytes: 60_000 };
    let (mut never, mut slow) = (connect(&path(&server)), connect(&path(&server)));
    never.send(CODE_PING, b"").unwrap();
    never.set_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    while never.send(CODE_ECHO, &[1; 60_000]).is_ok() {}
    slow.send(CODE_PING, b"").unwrap();
    let (mut sender, mut receiver) = slow.split();
    std::thread::scope(|scope| {
        // Ends with an error when the other half goes.
        scope.spawn(move || {
            (0..).all(|number| sender.send(CODE_ECHO, &message(number).body()).is_ok())
        });
        receiver.receive().unwrap();
        for number in 0.. {
            assert!(receiver.receive().unwrap().body == message(number).body(), "{number}");
            // Asking takes a while: so slowly does this peer read.
            let closed = server.total("closed_slow");
            assert!(closed <= 1, "the slow one as well");
            if closed == 1 && number >= 200 {
                break;
            }
        }
        receiver.shutdown();
    });
    assert!(server.total("sends_blocked") > 1);
}

#[test]
fn a_drain_answers_and_says_goodbye() {
    let mut server = TestServer::start("unix_drain", LISTEN);
    let path = path(&server);
    let mut client = connect(&path);
    client.call(CODE_PING, b"").unwrap();
    for number in 0..500_u32 {
        client.send(CODE_ECHO, &number.to_be_bytes()).unwrap();
    }
    server.signal(Signal::SIGQUIT);
    let (frames, end) = drain(&mut client);
    for (number, frame) in (0..500_u32).zip(&frames) {
        assert_eq!(frame.body, number.to_be_bytes()[..]);
    }
    assert_eq!(frames.len(), 501, "{end:?}");
    assert!(frames[500].as_goodbye().expect("a goodbye").is(Goodbye::Stopping));
    assert!(matches!(end, ClientError::Closed), "{end:?}");
    drop(client);
    assert_eq!(server.wait_exit().code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn a_half_close_is_answered_to_its_end() {
    let server = TestServer::start("unix_half_close", LISTEN);
    for _ in 0..20 {
        let mut client = connect(&path(&server));
        let pings = chappe_wire::encode(CODE_PING, b"").unwrap().repeat(50);
        client.send_bytes(&pings).unwrap();
        client.shutdown_write().unwrap();
        let (replies, end) = drain(&mut client);
        assert_eq!(replies.len(), 50);
        assert!(matches!(end, ClientError::Closed), "{end:?}");
    }
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_refused() {
    let mut first = TestServer::start("unix_stale_first", LISTEN);
    let path = path(&first);
    let toml = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\n[[listen]]\naddress = \"unix:{}\"\n",
        path.display()
    );
    let dir = fresh_dir("unix_live");
    fs::write(dir.join("chappe.toml"), configuration(&toml)).unwrap();
    let refused = finish(command(&dir).arg("--foreground"));
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let expected = format!(
        "chappe.toml:5:11: listen.1.address: cannot listen on unix:{}: Address already in use",
        path.display()
    );
    assert!(refused.stderr.contains(&expected), "{refused:?}");
    assert_eq!(connect(&path).call(CODE_ECHO, b"unhurt").unwrap().body, "unhurt");

    first.signal(Signal::SIGKILL);
    first.wait_exit();
    wait_until("its workers are gone", || chappe_testkit::proc::group(first.pid()).is_empty());
    assert!(path.exists(), "nobody was there to remove it");
    let second = TestServer::start("unix_stale_second", &toml);
    assert_eq!(connect(&path).call(CODE_ECHO, b"new").unwrap().body, "new");
    drop(second);
}

#[test]
fn something_else_at_the_path_stays() {
    let dir = fresh_dir("unix_occupied");
    fs::write(dir.join("a.sock"), "precious").unwrap();
    let toml = "[[listen]]\naddress = \"unix:a.sock\"\n";
    fs::write(dir.join("chappe.toml"), configuration(toml)).unwrap();
    let refused = finish(command(&dir).arg("--foreground"));
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("a file that is not a socket is already there"), "{refused:?}");
    assert_eq!(fs::read_to_string(dir.join("a.sock")).unwrap(), "precious");
}

#[test]
fn a_file_that_was_deleted_is_made_again_by_a_reload() {
    let mut server = TestServer::start("unix_deleted", LISTEN);
    let path = path(&server);
    let mut before = connect(&path);
    before.call(CODE_PING, b"").unwrap();
    assert!(server.status().master.unreachable.is_empty());
    std::fs::remove_file(&path).unwrap();
    let status = server.status().master;
    assert!(status.unreachable.len() == 1 && status.listen.contains(&status.unreachable[0]));
    let table = server.run(&["status"]).stdout;
    assert!(table.contains(&format!("{} (chappe, file gone, ", status.unreachable[0])), "{table}");
    let reload = server.run(&["reload"]);
    assert_eq!(reload.code, Some(0), "{reload:?}");
    assert!(server.status().master.unreachable.is_empty());
    connect(&path).call(CODE_PING, b"").unwrap();
    // A client that was connected gets a goodbye.
    let (frames, _) = drain(&mut before);
    assert!(frames[0].as_goodbye().expect("a goodbye").is(Goodbye::Reloading));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    assert!(!path.exists(), "it goes with the server");
}
