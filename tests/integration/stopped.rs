//! A worker that does not get to run for a while, as on a machine with too much to do:
//! a time-out judges when a peer has sent something, and not when the worker reads it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chappe_client::{CODE_ECHO, CODE_PING, ClientError, Connection};
use chappe_wire::encode;

use chappe_testkit::{TestServer, pause, while_stopped};

/// Several times what one epoll_wait(2) brings.
const CONNECTIONS: usize = 600;

/// The time-out, and the same for the server.
const TIME: Duration = Duration::from_secs(2);
const TIME_TOML: &str = "2s";

/// How often a machine may be too slow for all of them to send in time.
const ATTEMPTS: u32 = 3;

const BODY: &[u8] = b"sent in time";

/// What the clients send, and when.
struct Case {
    key: &'static str,
    /// Each had a ping answered before.
    greets: bool,
    /// Before the worker is stopped, and read by it.
    begun: Bytes,
    /// While it is stopped: what ends the time, by most of them.
    rest: Bytes,
    /// By one in six; one in six sends nothing.
    too_little: Bytes,
    /// What is said to these two.
    told: &'static str,
}

impl Case {
    fn late(&self, nth: usize) -> &[u8] {
        match nth % 6 {
            4 => &self.too_little,
            5 => b"",
            _ => &self.rest,
        }
    }
}

fn echo() -> Bytes {
    encode(CODE_ECHO, BODY).expect("it fits")
}

/// The next frame begins with the rest of the first, and goes on when that is answered.
fn ping() -> (Bytes, Bytes) {
    let mut begin = encode(CODE_PING, b"").expect("it fits");
    let rest = begin.split_off(3);
    (begin, rest)
}

fn with_next(rest: &[u8]) -> Bytes {
    [rest, &ping().0].concat().into()
}

/// What happened to a client.
fn outcome(client: &mut Connection) -> String {
    let said = match client.receive() {
        Err(error) => return error.to_string(),
        Ok(frame) if frame.code == CODE_ECHO && frame.body == BODY => {
            let next = client.send_bytes(&ping().1).and_then(|()| client.receive());
            return match next {
                Ok(frame) if frame.code == CODE_PING => "answered".to_owned(),
                other => format!("answered, and then {other:?}"),
            };
        }
        Ok(frame) => match (frame.as_error(), frame.as_goodbye()) {
            (Some(error), _) => format!("error {}", error.number),
            (_, Some(goodbye)) => format!("goodbye {}", goodbye.reason),
            _ => format!("{frame:?}"),
        },
    };
    match client.receive() {
        Err(ClientError::Closed) => format!("{said}, closed"),
        other => format!("{said}, and then {other:?}"),
    }
}

/// How many came to what. Who waits in vain is the last that is asked.
fn outcomes(clients: &mut [Connection]) -> BTreeMap<String, usize> {
    let mut outcomes = BTreeMap::new();
    for client in clients {
        let outcome = outcome(client);
        let is_in_vain = outcome.contains("nothing within");
        *outcomes.entry(outcome).or_default() += 1;
        if is_in_vain {
            break;
        }
    }
    outcomes
}

/// What the clients came to, and whether the machine was fast enough to expect more.
fn round(server: &TestServer, case: &Case) -> (BTreeMap<String, usize>, bool) {
    let wait_grown = |pointer: &str, before: u64, by: usize| {
        server.wait_status(pointer, |now| now >= before + by as u64);
    };
    let accepted = server.total("connections_accepted");
    let began = Instant::now();
    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| server.connect()).collect();
    wait_grown("/totals/connections_accepted", accepted, CONNECTIONS);
    if case.greets {
        clients.iter_mut().for_each(|client| drop(client.call(CODE_PING, b"").expect("served")));
    }
    let received = server.total("bytes_received");
    for client in &mut clients {
        client.send_bytes(&case.begun).expect("sent");
    }
    wait_grown("/totals/bytes_received", received, CONNECTIONS * case.begun.len());
    let is_in_time = while_stopped(server.worker_pids()[0], || {
        for (nth, client) in clients.iter_mut().enumerate() {
            // Who is closed already, since all this took too long, is found below.
            let _ = client.send_bytes(case.late(nth));
        }
        let is_in_time = began.elapsed() < TIME;
        pause(TIME, "the time-outs of all end while the worker does not run");
        is_in_time
    });
    let goes_on = Instant::now();
    let outcomes = outcomes(&mut clients);
    println!("timeouts.{}: {outcomes:?}", case.key);
    // Their next frames have a time, too.
    (outcomes, is_in_time && goes_on.elapsed() < TIME)
}

fn check(case: &Case) {
    let toml = format!("worker_processes = 1\n[timeouts]\n{} = \"{TIME_TOML}\"\n", case.key);
    let server = TestServer::start(&format!("stopped_{}", case.key), &toml);
    let silent = CONNECTIONS / 6 * 2;
    let expected = [("answered", CONNECTIONS - silent), (case.told, silent)];
    let expected = BTreeMap::from(expected.map(|(outcome, count)| (outcome.to_owned(), count)));
    for attempt in 1.. {
        let (outcomes, is_fast) = round(&server, case);
        if outcomes == expected || is_fast || attempt == ATTEMPTS {
            assert_eq!(outcomes, expected);
            return;
        }
    }
}

#[test]
fn a_frame_whose_rest_came_in_time_is_answered() {
    let (mut begun, rest) = (echo(), echo().slice(9..));
    begun.truncate(9);
    let too_little = rest.slice(..rest.len() - 1);
    let rest = with_next(&rest);
    check(&Case { key: "frame", greets: true, begun, rest, too_little, told: "error 7, closed" });
}

#[test]
fn a_first_frame_that_came_in_time_is_answered() {
    check(&Case {
        key: "handshake",
        greets: false,
        begun: Bytes::new(),
        rest: with_next(&echo()),
        too_little: echo().slice(..9),
        told: "goodbye 6, closed",
    });
}

#[test]
fn a_sign_of_life_that_came_in_time_is_one() {
    check(&Case {
        key: "idle",
        greets: true,
        begun: Bytes::new(),
        rest: with_next(&echo()),
        too_little: Bytes::new(),
        told: "goodbye 3, closed",
    });
}
