//! Handlers that push: messages that answer nothing, from threads of the application, at
//! any moment of a connection's life.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use chappe::{Call, Handle, HandlerError, Message, Outcome, SendError, Server};

use crate::pause;

/// Keeps the connection's handle under the name that is the body's one byte.
pub const KEEP: u16 = 30;
/// Pushes to a kept handle from threads of its own, and answers the outcome.
pub const PUSH: u16 = 31;
/// One message to all kept handles.
pub const ALL: u16 = 32;
/// Replies and pushes to its own connection in turn.
pub const MIXED: u16 = 33;
/// Replies and pushes to its own connection in turn, and fails.
pub const MIXED_FAIL: u16 = 34;
/// Closes a kept connection, whose name is the first byte, with the rest as the text.
pub const CLOSE: u16 = 35;
/// What is pushed: thread, number, filling.
pub const PUSHED: u16 = 40;

static KEPT: Mutex<BTreeMap<u8, Handle>> = Mutex::new(BTreeMap::new());

/// The outcome of some pushes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Accepted.
    pub queued: u32,
    /// Refused: the outbox was full.
    pub full: u32,
    /// Refused: the connection was ending.
    pub closed: u32,
    /// Refused: the connection was gone.
    pub expired: u32,
}

impl Tally {
    /// Counts one.
    pub fn add(&mut self, pushed: Result<(), SendError>) {
        let count = match pushed {
            Ok(()) => &mut self.queued,
            Err(SendError::Full) => &mut self.full,
            Err(SendError::Closed) => &mut self.closed,
            Err(SendError::Expired) => &mut self.expired,
            Err(other) => panic!("{other}"),
        };
        *count += 1;
    }

    /// As the body of a message.
    pub fn encode(self) -> Vec<u8> {
        [self.queued, self.full, self.closed, self.expired].map(u32::to_be_bytes).concat()
    }

    /// Out of the body of a message.
    pub fn decode(body: &[u8]) -> Self {
        let mut numbers = body.chunks_exact(4).map(number);
        let mut next = || numbers.next().expect("four numbers");
        Self { queued: next(), full: next(), closed: next(), expired: next() }
    }
}

/// A number in the body of a message.
pub fn number(four: &[u8]) -> u32 {
    u32::from_be_bytes(four[..4].try_into().expect("four bytes"))
}

/// What [`PUSH`] is to do.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Of the kept handle.
    pub name: u8,
    /// How many threads push.
    pub threads: u8,
    /// A push that found no room is tried again.
    pub persists: bool,
    /// How often each of them pushes.
    pub count: u32,
    /// How long each message is.
    pub bytes: u32,
}

impl Order {
    /// As the body of a message.
    pub fn encode(self) -> Vec<u8> {
        let Self { name, threads, persists, count, bytes } = self;
        let head = [name, threads, u8::from(persists)];
        [&head[..], &count.to_be_bytes(), &bytes.to_be_bytes()].concat()
    }

    /// Out of the body of a message.
    pub fn decode(body: &[u8]) -> Self {
        let (count, bytes) = (number(&body[3..]), number(&body[7..]));
        Self { name: body[0], threads: body[1], persists: body[2] == 1, count, bytes }
    }

    /// One thread's part. Ends when the connection takes no more.
    fn carry_out(self, thread: u8, handle: &Handle) -> Tally {
        let mut tally = Tally::default();
        for number in 0..self.count {
            let mut body = [&[thread][..], &number.to_be_bytes()].concat();
            body.resize(self.bytes as usize, thread);
            let mut pushed = handle.send(PUSHED, &body);
            while self.persists && pushed == Err(SendError::Full) {
                pause(Duration::from_millis(1), "a handle does not say when there is room again");
                pushed = handle.send(PUSHED, &body);
            }
            tally.add(pushed);
            if matches!(pushed, Err(SendError::Closed | SendError::Expired)) {
                break;
            }
        }
        tally
    }
}

fn kept(name: u8) -> Handle {
    let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    kept.get(&name).expect("a kept handle").clone()
}

pub(super) fn handlers(server: Server<()>) -> Server<()> {
    server
        .on(KEEP, |call| {
            let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
            kept.insert(call.body()[0], call.handle());
            call.reply(KEEP, b"")
        })
        .blocking(PUSH, |call| {
            let order = Order::decode(call.body());
            let handle = &kept(order.name);
            let tallies: Vec<Tally> = thread::scope(|scope| {
                let start = |nth| scope.spawn(move || order.carry_out(nth, handle));
                let threads: Vec<_> = (0..order.threads).map(start).collect();
                threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
            });
            let sum = tallies.iter().fold(Tally::default(), |sum, tally| Tally {
                queued: sum.queued + tally.queued,
                full: sum.full + tally.full,
                closed: sum.closed + tally.closed,
                expired: sum.expired + tally.expired,
            });
            call.reply(PUSH, &sum.encode())
        })
        .on(ALL, |call| {
            let message = Message::new(PUSHED, call.body()).expect("it was a body");
            let mut tally = Tally::default();
            for handle in KEPT.lock().unwrap_or_else(PoisonError::into_inner).values() {
                tally.add(handle.send_message(&message));
            }
            call.reply(ALL, &tally.encode())
        })
        .on(CLOSE, |call| {
            let (name, text) = call.body().split_first().expect("a name");
            kept(*name).close(String::from_utf8_lossy(text));
            call.reply(CLOSE, b"")
        })
        .on(MIXED, mixed)
        .on(MIXED_FAIL, |call| {
            mixed(call)?;
            Err(HandlerError::new("after all"))
        })
}

fn mixed(call: &mut Call<'_, ()>) -> Outcome {
    let handle = call.handle();
    call.reply(MIXED, b"1")?;
    handle.send(PUSHED, b"2").expect("open");
    handle.send(PUSHED, b"3").expect("open");
    call.reply(MIXED, b"4")?;
    handle.send(PUSHED, b"5").expect("open");
    Ok(())
}
