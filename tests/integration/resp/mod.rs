//! RESP, as a client of Redis has it.

mod table;
mod topics;

use std::net::{Shutdown, SocketAddr};

use chappe_client::{CODE_ECHO, Connection};
use chappe_testkit::resp::Resp;
use chappe_testkit::{DEADLINE, TestServer, wait_until};
use nix::sys::signal::Signal;

/// One worker with a RESP listener.
fn start(test: &str, toml: &str) -> TestServer {
    let listen = "[[listen]]\naddress = \"127.0.0.1:0\"\nprotocol = \"resp\"\n";
    let toml =
        if toml.contains("[[listen]]") { toml.to_owned() } else { format!("{toml}{listen}") };
    TestServer::start(&format!("resp_{test}"), &format!("worker_processes = 1\n{toml}"))
}

fn connect(server: &TestServer) -> Resp {
    Resp::connect(server.address)
}

/// An array of bulk strings.
fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(&bulk(word));
    }
    bytes
}

fn bulk(word: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", word.len()).as_bytes(), word, b"\r\n"].concat()
}

#[test]
fn commands_may_be_cut_anywhere() {
    let server = start("cut", "");
    let commands =
        [&command(&[b"ECHO", b"a\r\nb"])[..], b"PING x\r\n*0\r\n\r\n", &command(&[b"PING"])]
            .concat();
    let replies = b"$4\r\na\r\nb\r\n$1\r\nx\r\n+PONG\r\n";
    let (mut client, mut sent) = (connect(&server), 0);
    for at in 0..=commands.len() {
        client.send(&commands[..at]);
        sent += at;
        // The first part is read by itself.
        server.wait_status("/totals/bytes_received", |bytes| bytes >= sent as u64);
        sent += commands.len() - at;
        client.send(&commands[at..]);
        client.expect(replies);
    }
    for byte in &commands {
        client.send(&[*byte]);
    }
    client.expect(replies);
}

#[test]
fn a_pipeline_is_answered_in_order() {
    let server = start("pipeline", "");
    let mut client = connect(&server);
    let (mut commands, mut replies) = (Vec::new(), Vec::new());
    for nth in 0..5000 {
        let body = format!("{nth}");
        match nth % 5 {
            0 => commands.extend_from_slice(b"PING\r\n"),
            1 => commands.extend_from_slice(&command(&[b"ECHO", body.as_bytes()])),
            2 => commands.extend_from_slice(&command(&[b"CHAPPE.CALL", b"1", body.as_bytes()])),
            // On a handler thread.
            3 => commands.extend_from_slice(b"AUTH a b c\r\n"),
            _ => commands.extend_from_slice(b"CHAPPE.CALL 9999\r\n"),
        }
        match nth % 5 {
            0 => replies.extend_from_slice(b"+PONG\r\n"),
            1 | 2 => replies.extend_from_slice(&bulk(body.as_bytes())),
            3 => replies.extend_from_slice(b"-ERR syntax error\r\n"),
            _ => replies.extend_from_slice(b"-ERR unknown message code 9999\r\n"),
        }
    }
    std::thread::scope(|scope| {
        let mut sender = client.stream().try_clone().expect("a second handle");
        scope.spawn(move || std::io::Write::write_all(&mut sender, &commands).expect("sent"));
        client.expect(&replies);
    });
}

#[test]
fn the_largest_command_passes_and_one_byte_more_ends_the_connection() {
    let server = start("largest", "");
    let mut client = connect(&server);
    let body = vec![b'x'; 131_047];
    for _ in 0..3 {
        client.send(&command(&[b"ECHO", &body]));
        client.expect(&bulk(&body));
    }
    let most = vec![b'y'; 65_527];
    client.send(&command(&[b"CHAPPE.CALL", b"1", &most]));
    client.expect(&bulk(&most));
    client.send(&command(&[b"CHAPPE.CALL", b"1", &body[..65_528]]));
    client.expect(b"-ERR a body has at most 65527 bytes\r\n");
    let words = vec![&b"a"[..]; 2048];
    client.send(&command(&words));
    client.expect(b"-ERR unknown command 'a', with args beginning with: ");
    client.line();
    client.send(b"*2\r\n$4\r\nECHO\r\n$131048\r\n");
    client.expect(b"-ERR Protocol error: invalid bulk length\r\n");
    client.expect_end();

    let mut client = connect(&server);
    client.send(b"*2049\r\n");
    client.expect(b"-ERR Protocol error: invalid multibulk length\r\n");
    client.expect_end();

    let mut client = connect(&server);
    let line = [b"ECHO ", &vec![b'x'; 65_531][..]].concat();
    client.send(&[&line, &b"\r\n"[..]].concat());
    client.expect(&bulk(&line[5..]));
    client.send(&[&line, &b"xx"[..]].concat());
    client.expect(b"-ERR Protocol error: too big inline request\r\n");
    client.expect_end();
    server.wait_status("/workers/0/inbox_bytes", |bytes| bytes == 0);
}

#[test]
fn half_a_command_is_waited_for_and_not_forever() {
    let server = start("half", "[timeouts]\nframe = \"200ms\"\n");
    for half in [&b"*2\r\n$4\r\nECHO\r\n$100\r\nx"[..], b"*2\r", b"PING"] {
        let mut client = connect(&server);
        client.ask("PING", "+PONG\r\n");
        client.send(half);
        let text = "a begun frame was not complete within timeouts.frame";
        client.expect(format!("-ERR Protocol error: {text}\r\n").as_bytes());
        client.expect_end();
    }
    let mut client = connect(&server);
    client.send(b"PING\r\n*1\r\n");
    client.stream().shutdown(Shutdown::Write).expect("open");
    client.expect(b"+PONG\r\n-ERR Protocol error: the stream ended inside a frame\r\n");
    client.expect_end();
}

#[test]
fn what_came_before_a_broken_command_is_answered() {
    let server = start("broken", "");
    let mut client = connect(&server);
    client.send(b"PING\r\n*2\r\n$4\r\nECHO\r\n$1\r\na\r\n*1\r\nPING\r\nPING\r\n");
    client.expect(b"+PONG\r\n$1\r\na\r\n-ERR Protocol error: expected '$', got 'P'\r\n");
    client.expect_end();
    server.wait_status("/totals/protocol_errors", |errors| errors == 1);
}

#[test]
fn both_protocols_are_served_side_by_side() {
    let listen =
        |protocol| format!("[[listen]]\naddress = \"127.0.0.1:0\"\nprotocol = {protocol:?}\n");
    let server = start("both", &[listen("resp"), listen("chappe")].concat());
    let ready = server.stdout();
    let native: SocketAddr = ready.split_whitespace().nth(2).unwrap().parse().unwrap();
    let mut client = connect(&server);
    let mut other = Connection::connect(native, DEADLINE).expect("connected");
    client.ask("CHAPPE.CALL 1 hello", "$5\r\nhello\r\n");
    assert_eq!(other.call(CODE_ECHO, b"hello").unwrap().body, "hello");
    client.ask("CHAPPE.CALL 0 ignored", "$0\r\n\r\n");
    let who = client.text("CHAPPE.CALL 3");
    assert!(who.contains("worker=0\n") && who.contains("peer=127.0.0.1:"), "{who}");
    // A code of the server's own is no command of a native client.
    for code in [65_530, 65_531] {
        let error = other.call(code, b"").unwrap();
        assert!(error.as_error().unwrap().is(chappe_client::ErrorNumber::UnknownCode));
    }
}

#[test]
fn a_limit_refuses_commands_one_by_one() {
    let server = start("too_fast", "[limits]\nmessages_per_second = 1\nmessages_burst = 2\n");
    let mut client = connect(&server);
    client.send(&b"PING\r\n".repeat(4));
    client.expect(b"+PONG\r\n+PONG\r\n-ERR above the rate limit\r\n-ERR above the rate limit\r\n");
}

#[test]
fn one_client_too_many_is_told_so() {
    let server = start("busy", "max_connections = 1\n");
    let mut first = connect(&server);
    first.ask("PING", "+PONG\r\n");
    let mut second = connect(&server);
    second.expect(b"-ERR max number of clients reached\r\n");
    second.expect_end();
    first.ask("PING", "+PONG\r\n");
}

#[test]
fn an_end_has_no_words() {
    let mut server = start("end", "[timeouts]\nidle = \"300ms\"\n");
    connect(&server).expect_end();
    let mut client = connect(&server);
    client.ask("PING", "+PONG\r\n");
    client.expect_end();
    let mut client = connect(&server);
    client.ask("PING", "+PONG\r\n");
    server.signal(Signal::SIGQUIT);
    client.expect_end();
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn an_admin_lists_and_ends_others_and_reads_the_configuration() {
    let listen = "[[listen]]\naddress = \"127.0.0.1:0\"\nprotocol = \"resp\"\nresp_admin = true\n";
    let server = start("admin", &format!("[timeouts]\nidle = \"7m\"\n{listen}"));
    let (mut admin, mut other) = (connect(&server), connect(&server));
    other.ask("CLIENT SETNAME victim", "+OK\r\n");
    let list = admin.text("CLIENT LIST");
    let victim = list.lines().find(|line| line.contains(" name=victim ")).expect("it is listed");
    assert_eq!(list.lines().count(), 2, "{list}");
    let address = other.stream().local_addr().expect("connected").to_string();
    assert!(victim.contains(&format!(" addr={address} ")), "{victim}");
    admin.ask(&format!("CLIENT KILL {address}"), "+OK\r\n");
    other.expect_end();
    wait_until("it is gone", || admin.text("CLIENT LIST").lines().count() == 1);
    admin.ask("CONFIG GET timeouts.idle", "*2\r\n$13\r\ntimeouts.idle\r\n$2\r\n7m\r\n");
    admin.ask("CONFIG GET listen.0.resp_a*", "*2\r\n$19\r\nlisten.0.resp_admin\r\n$4\r\ntrue\r\n");
    let id = admin.text("CLIENT ID").split_off(1);
    admin.ask(&format!("CLIENT KILL ID {id} SKIPME no"), ":1\r\n");
    admin.expect_end();
}

#[test]
fn a_connection_that_leaves_is_forgotten() {
    let server = start("forgotten", "");
    let mut client = connect(&server);
    for _ in 0..20 {
        let mut other = connect(&server);
        other.ask("CLIENT SETNAME other", "+OK\r\n");
        assert!(client.text("INFO clients").contains("connected_clients:2"));
        drop(other);
        wait_until("it is gone", || client.text("INFO clients").contains("connected_clients:1"));
    }
}
