//! Where the commands that are clients connect to.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;

use nix::sys::signal::Signal;

use chappe_testkit::site::{command, configuration, finish};
use chappe_testkit::{Site, TestServer, fresh_dir};

const RESP: &str = "[[listen]]\naddress = \"127.0.0.1:0\"\nprotocol = \"resp\"\n\
                    [[listen]]\naddress = \"unix:r.sock\"\nprotocol = \"resp\"\n";
const FRAMES: &str = "[[listen]]\naddress = \"127.0.0.1:0\"\n";

/// Each command that is a client, such that it ends soon: the last one by its time-out.
const CLIENTS: [&[&str]; 4] = [
    &["send", "--body", "x"],
    &["publish", "room", "x"],
    &["bench", "--warmup", "0s", "--duration", "100ms", "--connections", "1"],
    &["subscribe", "room", "--timeout", "2s"],
];

/// Each of them fails, and says this.
#[track_caller]
fn assert_refused(site: &Site, more: &[&str], expected: &str) {
    for client in CLIENTS {
        let refused = site.run(&[client, more].concat());
        assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""), "{refused:?}");
        assert!(refused.stderr.contains(expected), "no {expected:?} in {refused:?}");
        assert_eq!(refused.stderr.lines().count(), 1, "{refused:?}");
    }
}

#[test]
fn the_first_listener_that_speaks_frames_is_found() {
    let server = TestServer::start("destination_first", &format!("{RESP}{FRAMES}"));
    let status = server.status().master;
    let protocols: Vec<_> = status.listeners.iter().map(|it| it.protocol.as_str()).collect();
    assert_eq!(protocols, ["resp", "resp", "chappe"]);
    let addresses: Vec<_> = status.listeners.iter().map(|it| &it.address).collect();
    assert_eq!(addresses, status.listen.iter().collect::<Vec<_>>());
    for client in &CLIENTS[..3] {
        let done = server.run(client);
        assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{done:?}");
    }
    // One that is named and speaks something else would let the command wait.
    let resp = format!("unix:{}", server.dir.join("r.sock").display());
    let file = server.dir.join("chappe.toml");
    let place = format!("{}:6:11: listen.1.address is {resp}, with protocol", file.display());
    assert_refused(&server, &["--to", &resp], &place);
    let named = server.run(&["send", "--to", &status.listen[2], "--body", "named"]);
    assert_eq!((named.code, named.stdout.contains("named")), (Some(0), true), "{named:?}");
    // A file with mistakes keeps nobody from a server that is named.
    fs::write(file, "worker_processes = 0\n").expect("the configuration");
    let named = server.run(&["send", "--to", &status.listen[2], "--body", "named"]);
    assert_eq!((named.code, named.stderr.as_str()), (Some(0), ""), "{named:?}");
}

#[test]
fn a_server_without_such_a_listener_is_told_of() {
    let server = TestServer::start("destination_none", RESP);
    let listen = server.status().master.listen;
    let expected = format!(
        "this command speaks protocol = \"chappe\", and no listener does: {} (resp), {} (resp)",
        listen[0], listen[1]
    );
    assert_refused(&server, &[], &expected);
}

/// Somebody else may have the address of a server that does not run.
#[test]
fn a_stopped_server_is_no_reason_to_talk_to_a_stranger() {
    let stranger = TcpListener::bind("127.0.0.1:0").expect("a port");
    stranger.set_nonblocking(true).expect("set");
    let address = stranger.local_addr().expect("its address");
    let toml = format!("[[listen]]\naddress = \"{address}\"\n");
    let site = Site::new("chappe", "destination_stopped", &configuration(&toml));
    let expected = format!("no server runs here (prefix {}, pid file ", site.dir.display());
    assert_refused(&site, &[], &expected);
    assert_eq!(stranger.accept().map(drop).unwrap_err().kind(), ErrorKind::WouldBlock);
    // Named it is whom the command is meant for, whatever the file says of the protocol.
    site.configure(&configuration(&format!("{toml}protocol = \"resp\"\n")));
    let to = address.to_string();
    let sent = site.run(&["send", "--to", &to, "--timeout", "50ms"]);
    assert!(sent.stderr.contains("nothing within 50ms"), "{sent:?}");
    stranger.accept().expect("it has come");
}

#[test]
fn a_server_that_has_ended_is_none() {
    let mut server = TestServer::start("destination_ended", "");
    assert_eq!(server.run(CLIENTS[0]).code, Some(0));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    assert_refused(&server, &[], "no server runs here (prefix ");
}

#[test]
fn an_address_that_is_none_is_a_wrong_command_line() {
    let dir = fresh_dir("destination_no_address");
    for client in CLIENTS {
        let refused = finish(command(&dir).args(client).args(["--to", "nowhere"]));
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.stderr.contains("write HOST:PORT or unix:PATH"), "{refused:?}");
    }
}
