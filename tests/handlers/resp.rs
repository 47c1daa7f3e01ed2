//! An application behind RESP: its handlers, its pushes, its gate.

use std::io::Read;

use chappe_testkit::application::pushes::{
    ALL, CLOSE as CLOSE_KEPT, KEEP, MIXED, MIXED_FAIL, Order, PUSH, PUSHED, Tally,
};
use chappe_testkit::application::{FAIL, HOLD, NOTHING, PANIC, TWICE};
use chappe_testkit::desk::{LATER, ODD, SOON};
use chappe_testkit::diary::{CLOSE, COUNT, DENY, LOGIN};
use chappe_testkit::resp::Resp;
use chappe_testkit::site::configuration;
use chappe_testkit::{Gate, Site, TestServer, wait_until};

const LISTEN: &str = "[[listen]]\naddress = \"127.0.0.1:0\"\nprotocol = \"resp\"\n";

fn start(test: &str, toml: &str) -> TestServer {
    super::start(&format!("resp_{test}"), &format!("worker_processes = 1\n{toml}{LISTEN}"))
}

/// A program that keeps a journal.
fn start_site(program: &str, test: &str, toml: &str) -> TestServer {
    let site = Site::new(program, &format!("handlers_resp_{test}"), "");
    let journal = site.path("journal.txt");
    let toml = format!(
        "user = \"\"\nworker_processes = 1\n{toml}{LISTEN}\n[application]\njournal = {journal:?}\n"
    );
    site.configure(&configuration(&toml));
    TestServer::start_in(&site, &toml)
}

fn connect(server: &TestServer) -> Resp {
    Resp::connect(server.address)
}

fn pushed(body: &str) -> String {
    format!(">3\r\n+chappe\r\n:{PUSHED}\r\n${}\r\n{body}\r\n", body.len())
}

#[test]
fn a_call_has_one_reply_however_many_its_handler_gives() {
    for fuse in [true, false] {
        let server = start(&format!("calls_{fuse}"), &format!("[worker]\nfuse = {fuse}\n"));
        let mut client = connect(&server);
        // Often enough for handlers to move to the event loop.
        for _ in 0..100 {
            client.ask(&format!("CHAPPE.CALL {TWICE} ab"), "*2\r\n$2\r\nab\r\n$2\r\nab\r\n");
            client.ask(&format!("CHAPPE.CALL {NOTHING}"), "$-1\r\n");
            client.ask(&format!("CHAPPE.CALL {FAIL}"), "-ERR out of ink\r\n");
        }
        hello(&mut client);
        client.ask(&format!("CHAPPE.CALL {NOTHING}"), "_\r\n");
        let mut client = connect(&server);
        client.ask(&format!("CHAPPE.CALL {PANIC}"), "-ERR the handler panicked\r\n");
        client.expect_end();
    }
}

#[test]
fn a_handler_that_waits_holds_up_its_own_connection_only() {
    let server = start("holds", "");
    let (mut client, mut other) = (connect(&server), connect(&server));
    let gate = Gate::new(server.dir.join("gate"));
    let name = String::from_utf8_lossy(gate.name()).into_owned();
    client.send(format!("PING\r\nCHAPPE.CALL {HOLD} {name}\r\nPING\r\n").as_bytes());
    client.expect(b"+PONG\r\n");
    other.ask("PING", "+PONG\r\n");
    gate.open();
    client.expect(b"$0\r\n\r\n+PONG\r\n");
}

/// Switches to version 3.
fn hello(client: &mut Resp) {
    let (reply, _) = client.exchange(b"HELLO 3\r\n");
    assert!(reply.starts_with(b"%7\r\n"), "{}", reply.escape_ascii());
}

#[test]
fn what_answers_nothing_is_a_push_of_version_3() {
    let server = start("pushes", "");
    let (mut third, mut driver) = (connect(&server), connect(&server));
    hello(&mut third);
    third.ask(&format!("CHAPPE.CALL {KEEP} a"), "$0\r\n\r\n");
    let tally = |queued| Tally { queued, ..Tally::default() }.encode();
    driver.send(format!("CHAPPE.CALL {ALL} news\r\n").as_bytes());
    driver.expect(&[b"$16\r\n", &tally(1)[..], b"\r\n"].concat());
    third.expect(pushed("news").as_bytes());
    // Its own stand behind the reply, which they must not tear.
    let own = [pushed("2"), pushed("3"), pushed("5")].concat();
    let reply = "*2\r\n$1\r\n1\r\n$1\r\n4\r\n";
    third.ask(&format!("CHAPPE.CALL {MIXED}"), &format!("{reply}{own}"));
    third.ask(&format!("CHAPPE.CALL {MIXED_FAIL}"), &format!("{own}-ERR after all\r\n"));
    // In version 2 there are none.
    third.ask("RESET", "+RESET\r\n");
    third.ask(&format!("CHAPPE.CALL {MIXED}"), "-ERR the handler panicked\r\n");
    third.expect_end();
    // Both at once: what is known of the version holds from the next command on.
    let mut fourth = connect(&server);
    fourth.send(format!("HELLO 3\r\nCHAPPE.CALL {MIXED}\r\n").as_bytes());
    let (both, _) = fourth.exchange(b"PING\r\n");
    assert!(both.ends_with(format!("{reply}{own}+PONG\r\n").as_bytes()), "{}", both.escape_ascii());
}

/// One push, whole.
fn read_push(bytes: &[u8]) -> Option<&[u8]> {
    let rest = bytes.strip_prefix(b">3\r\n+chappe\r\n:40\r\n$10000\r\n")?;
    rest.get(10_000..)?.strip_prefix(b"\r\n")
}

#[test]
fn a_slow_reader_gets_whole_pushes_and_the_end() {
    let server = start("slow_reader", "");
    let (mut slow, mut driver) = (connect(&server), connect(&server));
    hello(&mut slow);
    slow.ask(&format!("CHAPPE.CALL {KEEP} s"), "$0\r\n\r\n");
    let order = Order { name: b's', threads: 2, persists: false, count: 5000, bytes: 10_000 };
    let order = order.encode();
    let head = format!("*3\r\n$11\r\nCHAPPE.CALL\r\n$2\r\n{PUSH}\r\n${}\r\n", order.len());
    driver.send(&[head.as_bytes(), &order, b"\r\n"].concat());
    driver.expect(b"$16\r\n");
    server.wait_status("/totals/closed_slow", |closed| closed == 1);
    let mut bytes = Vec::new();
    slow.stream().read_to_end(&mut bytes).expect("the end is clean");
    let (mut rest, mut pushes) = (&bytes[..], 0);
    while let Some(behind) = read_push(rest) {
        rest = behind;
        pushes += 1;
    }
    // None, if the backlog was full and dropped before the sender had a CPU.
    assert!(rest.is_empty() && pushes < 5000, "{pushes}, then {}", rest.escape_ascii());
}

#[test]
fn a_handle_closes_without_a_word() {
    let server = start("closes", "");
    let (mut kept, mut driver) = (connect(&server), connect(&server));
    kept.ask(&format!("CHAPPE.CALL {KEEP} k"), "$0\r\n\r\n");
    driver.ask(&format!("CHAPPE.CALL {CLOSE_KEPT} kEnough"), "$0\r\n\r\n");
    kept.expect_end();
}

#[test]
fn deferred_replies_are_joined_with_what_was_replied_before() {
    for fuse in [true, false] {
        let toml = format!("[worker]\nfuse = {fuse}\n");
        let server = start_site("desk", &format!("deferred_{fuse}"), &toml);
        let mut client = connect(&server);
        client.send(format!("PING\r\nCHAPPE.CALL {SOON} a\r\nPING\r\n").as_bytes());
        client.expect(b"+PONG\r\n$1\r\na\r\n+PONG\r\n");
        let odd = |body: &str| {
            format!("*3\r\n$11\r\nCHAPPE.CALL\r\n$2\r\n{ODD}\r\n${}\r\n{body}\r\n", body.len())
        };
        client.send(odd("in parts").as_bytes());
        client.expect(b"*3\r\n$3\r\none\r\n$3\r\ntwo\r\n$5\r\nthree\r\n");
        client.send(odd("again").as_bytes());
        client.expect(b"$5\r\nagain\r\n");
        client.send(odd("drop").as_bytes());
        client.expect(b"-ERR the deferred reply was dropped\r\n");
        client.send(odd("fail later").as_bytes());
        client.expect(b"-ERR out of ink\r\n");
        client.send(odd("deny later").as_bytes());
        client.expect(b"-NOPERM not you\r\n");
        client.expect_end();
    }
}

#[test]
fn as_many_replies_are_deferred_as_may_be() {
    let server = start_site("desk", "busy_inside", "[worker]\ndeferred_max = 1\n");
    let (mut waits, mut refused) = (connect(&server), connect(&server));
    waits.send(format!("CHAPPE.CALL {LATER} a\r\n").as_bytes());
    server.wait_status("/workers/0/messages_waiting", |waiting| waiting == 1);
    let text = "-ERR too many replies are deferred (worker.deferred_max)\r\n";
    refused.ask(&format!("CHAPPE.CALL {LATER} b"), text);
    refused.ask("PING", "+PONG\r\n");
}

#[test]
fn a_gate_opens_by_a_call_or_by_a_password() {
    let server = start_site("gated-diary", "gate", "");
    let mut client = connect(&server);
    let noauth = "-NOAUTH Authentication required.\r\n";
    for line in ["ECHO a", "INFO", "CHAPPE.CALL 1 a", "CHAPPE.CALL 9999", "NOSUCH", "CLIENT ID"] {
        client.ask(line, noauth);
    }
    client.ask(&format!("CHAPPE.CALL {COUNT}"), noauth);
    client.ask("PING", "+PONG\r\n");
    client.ask("AUTH wrong", "-WRONGPASS default is not known  here\r\n");
    client.ask("AUTH me wrong", "-WRONGPASS me is not known  here\r\n");
    client.ask("AUTH me sesame", "+OK\r\n");
    client.ask("ECHO a", "$1\r\na\r\n");
    let id = client.text("CLIENT ID").split_off(1);
    // The three logins are counted in the state too.
    client.ask(&format!("CHAPPE.CALL {COUNT}"), &format!("${}\r\n{id} 4\r\n", id.len() + 2));
    client.ask("RESET", "+RESET\r\n");
    client.ask("ECHO a", noauth);
    client.ask(&format!("CHAPPE.CALL {LOGIN} sesame"), "$0\r\n\r\n");
    client.ask("ECHO a", "$1\r\na\r\n");
    let (reply, _) =
        client.exchange(b"RESET\r\nHELLO 3 AUTH you sesame SETNAME n\r\nCLIENT GETNAME\r\n");
    assert!(reply.ends_with(b"$1\r\nn\r\n"), "{}", reply.escape_ascii());
    client.ask("AUTH you panic", "-ERR the service panicked\r\n");
    client.expect_end();
    server.wait_status("/totals/handler_panics", |panics| panics == 1);
    wait_until("it is closed", || {
        let journal = server.read("journal.txt");
        journal.lines().any(|line| line == format!("{id} closed HandlerPanicked after 6"))
    });
}

#[test]
fn a_service_ends_a_connection_without_a_goodbye() {
    let server = start_site("diary", "ends", "");
    let mut client = connect(&server);
    client.ask(&format!("CHAPPE.CALL {CLOSE} enough"), "*2\r\n$3\r\none\r\n$3\r\ntwo\r\n");
    client.expect_end();
    let mut client = connect(&server);
    client.ask(&format!("CHAPPE.CALL {DENY} not-you"), "-NOPERM not-you\r\n");
    client.expect_end();
}
