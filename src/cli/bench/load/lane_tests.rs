//! A lane against every reply that it must not take for right.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use chappe_client::CODE_ECHO;
use chappe_wire::{ErrorNumber, Goodbye, encode, error_frame, goodbye_frame};

use super::*;

const BYTES: usize = 32;
const NUMBER: u32 = 3;

struct Pair {
    lane: Lane,
    server: UnixStream,
    exchange: Exchange,
    tally: Tally,
    clock: Clock,
    scratch: Vec<u8>,
}

fn pair(pipeline: usize) -> Pair {
    let (ours, server) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut tally = Tally::new();
    tally.window_from = 0;
    Pair {
        lane: Lane::new(TcpStream::from(OwnedFd::from(ours)), NUMBER),
        server,
        exchange: Exchange {
            bodies: Bodies::new(BYTES).unwrap(),
            code: CODE_ECHO,
            reply_code: CODE_ECHO,
            expect: Expect::Echo,
            pipeline,
        },
        tally,
        clock: Clock::start(),
        scratch: vec![0; 256 * 1024],
    }
}

impl Pair {
    fn send(&mut self, most: u64) {
        let Self { lane, exchange, tally, .. } = self;
        lane.send(exchange, 5, |sequence| (sequence < most).then_some(5), tally);
    }

    fn receive(&mut self) {
        let Self { lane, exchange, tally, scratch, clock, .. } = self;
        lane.receive(exchange, scratch, 128 * 1024, *clock, tally);
    }

    /// What the server has got so far.
    fn requests(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; 64 * 1024];
        let read = self.server.read(&mut bytes).unwrap();
        bytes.truncate(read);
        bytes
    }

    fn reply(&mut self, bytes: &[u8]) {
        self.server.write_all(bytes).unwrap();
        self.receive();
    }

    fn faults(&self) -> Vec<(Fault, u64)> {
        self.tally.faults.iter().map(|(fault, count, _)| (fault, count)).collect()
    }
}

/// The request of this number, as its echo.
fn frame(connection: u32, sequence: u64) -> Vec<u8> {
    let mut out = Vec::new();
    Bodies::new(BYTES).unwrap().append(&mut out, CODE_ECHO, Id { connection, sequence });
    out
}

#[test]
fn echoes_are_right_however_they_are_cut() {
    for cut in 0..2 * (BYTES + HEADER_BYTES) {
        let mut pair = pair(2);
        pair.send(2);
        let echo = pair.requests();
        assert_eq!(echo, [frame(NUMBER, 0), frame(NUMBER, 1)].concat());
        pair.reply(&echo[..cut]);
        pair.reply(&echo[cut..]);
        assert_eq!((pair.tally.replies, pair.faults()), (2, vec![]), "cut at {cut}");
        assert_eq!(pair.lane.under_way().len(), 0);
    }
}

#[test]
fn the_pipeline_is_never_deeper_than_it_may_be() {
    let mut pair = pair(3);
    pair.send(u64::MAX);
    assert_eq!((pair.lane.under_way().len(), pair.lane.next()), (3, 3));
    let echo = pair.requests();
    pair.reply(&echo[..BYTES + HEADER_BYTES]);
    assert_eq!(pair.lane.under_way().len(), 2);
    pair.send(u64::MAX);
    assert_eq!((pair.lane.under_way().len(), pair.lane.next()), (3, 4));
}

#[test]
fn each_wrong_reply_is_told_by_its_kind() {
    let mut flipped = frame(NUMBER, 0);
    *flipped.last_mut().unwrap() ^= 1;
    let body = frame(NUMBER, 0)[HEADER_BYTES..].to_vec();
    let mut changed = body.clone();
    changed[20] ^= 1;
    let cases = [
        (flipped, Fault::BadChecksum),
        (frame(NUMBER, 1), Fault::WrongOrder),
        (frame(NUMBER + 1, 0), Fault::WrongConnection),
        (encode(CODE_ECHO, &changed).unwrap().to_vec(), Fault::WrongContent),
        (encode(CODE_ECHO, &body[1..]).unwrap().to_vec(), Fault::WrongLength),
        (error_frame(ErrorNumber::TooFast, Some(1), "slow down").to_vec(), Fault::ServerError),
    ];
    for (reply, fault) in cases {
        let mut pair = pair(2);
        pair.send(2);
        pair.reply(&reply);
        assert_eq!(pair.faults(), [(fault, 1)]);
        // It was the answer to the first request all the same, so the second is right.
        pair.reply(&frame(NUMBER, 1));
        assert_eq!((pair.tally.replies, pair.faults()), (1, vec![(fault, 1)]));
        assert!(!pair.lane.is_gone());
    }
}

#[test]
fn an_end_counts_what_it_leaves_unanswered() {
    let part = frame(NUMBER, 0)[..9].to_vec();
    let bad_length = vec![0, 7, 0, 1, 0, 0, 0, 0];
    for (bytes, fault) in
        [(Vec::new(), Fault::Closed), (part, Fault::Truncated), (bad_length, Fault::BadLength)]
    {
        let mut pair = pair(4);
        pair.send(4);
        pair.requests();
        if !bytes.is_empty() {
            pair.reply(&bytes);
        }
        if !pair.lane.is_gone() {
            pair.server.shutdown(Shutdown::Both).unwrap();
            pair.receive();
        }
        assert!(pair.lane.is_gone());
        assert_eq!(pair.faults(), [(fault, 1), (Fault::Unanswered, 4)]);
        pair.send(9);
        assert_eq!(pair.lane.under_way().len(), 0, "nothing goes out any more");
    }
}

#[test]
fn after_a_goodbye_what_is_under_way_is_answered_and_nothing_is_asked() {
    let mut pair = pair(2);
    pair.send(2);
    pair.reply(&goodbye_frame(Goodbye::Stopping, "see you"));
    pair.reply(&[frame(NUMBER, 0), frame(NUMBER, 1)].concat());
    pair.send(4);
    assert_eq!((pair.tally.replies, pair.lane.next()), (2, 2));
    pair.server.shutdown(Shutdown::Both).unwrap();
    pair.receive();
    assert!(pair.lane.is_gone());
    assert_eq!(pair.faults(), [(Fault::Goodbye, 1)]);
}

#[test]
fn a_reply_to_nothing_is_a_fault_and_a_ping_of_the_server_is_none() {
    let mut pair = pair(1);
    pair.reply(&encode(65_533, b"").unwrap());
    assert_eq!(pair.faults(), []);
    pair.reply(&frame(NUMBER, 0));
    assert_eq!(pair.faults(), [(Fault::Surplus, 1)]);
}

#[test]
fn what_is_pushed_is_counted_apart_and_stands_for_no_reply() {
    for expect in [Expect::Echo, Expect::Any] {
        let mut pair = pair(2);
        pair.exchange.expect = expect;
        let push = encode(77, b"news").unwrap();
        pair.reply(&push);
        pair.send(2);
        pair.reply(&[&push[..], &frame(NUMBER, 0), &push, &frame(NUMBER, 1)].concat());
        assert_eq!((pair.tally.replies, pair.tally.unasked, pair.faults()), (2, 3, vec![]));
        let mut flipped = push.to_vec();
        *flipped.last_mut().unwrap() ^= 1;
        pair.reply(&flipped);
        assert_eq!((pair.tally.unasked, pair.faults()), (4, vec![(Fault::BadChecksum, 1)]));
    }
}

#[test]
fn replies_may_have_a_code_of_their_own() {
    let mut pair = pair(1);
    pair.exchange.reply_code = 77;
    pair.send(1);
    pair.reply(&encode(CODE_ECHO, b"").unwrap());
    pair.reply(&encode(77, &frame(NUMBER, 0)[HEADER_BYTES..]).unwrap());
    assert_eq!((pair.tally.replies, pair.tally.unasked, pair.faults()), (1, 1, vec![]));
}

#[test]
fn a_full_socket_is_waited_for_and_loses_nothing() {
    const MANY: u64 = 40_000;
    let mut pair = pair(usize::MAX);
    pair.send(MANY);
    assert!(pair.lane.wants_room());
    let mut got = 0;
    while got < usize::try_from(MANY).unwrap() * (BYTES + HEADER_BYTES) {
        got += pair.requests().len();
        pair.send(MANY);
    }
    assert!(!pair.lane.wants_room());
    assert_eq!(pair.lane.next(), MANY);
}
