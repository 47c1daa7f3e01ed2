//! The connections that subscribe, and what has come on them.

use crate::protocol::{Expected, Found, NATS_PONG, Protocol};
use crate::{Options, histogram, now};
use hdrhistogram::Histogram;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const READ_BYTES: usize = 256 * 1024;
/// Without a rate one time in so many is noted: noting costs as much as the rest.
const NOTED_OF_A_FLOOD: u64 = 16;

/// What a thread that reads shows of itself.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct View {
    received: AtomicU64,
    /// What the slowest of its subscribers has received.
    slowest: AtomicU64,
    /// When something was received last.
    last: AtomicU64,
    /// Times of messages that were published before do not count.
    from: AtomicU64,
    is_over: AtomicBool,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Views(Vec<View>);

impl Views {
    pub(crate) fn new(threads: usize) -> Self {
        let view = || View { from: AtomicU64::new(u64::MAX), ..View::default() };
        Self((0..threads).map(|_| view()).collect())
    }

    pub(crate) fn all(&self) -> &[View] {
        &self.0
    }

    pub(crate) fn received(&self) -> u64 {
        self.0.iter().map(|view| view.received.load(Ordering::Acquire)).sum()
    }

    pub(crate) fn slowest(&self) -> u64 {
        self.0.iter().map(|view| view.slowest.load(Ordering::Relaxed)).min().unwrap_or(u64::MAX)
    }

    pub(crate) fn last(&self) -> u64 {
        self.0.iter().map(|view| view.last.load(Ordering::Relaxed)).max().unwrap_or(0)
    }

    /// From now on times are noted.
    pub(crate) fn measure(&self) {
        self.0.iter().for_each(|view| view.from.store(now(), Ordering::Relaxed));
    }

    pub(crate) fn end(&self) {
        self.0.iter().for_each(|view| view.is_over.store(true, Ordering::Relaxed));
    }
}

#[derive(Debug)]
struct Subscriber {
    stream: TcpStream,
    expected: Expected,
    /// The begun message.
    partial: Vec<u8>,
    received: u64,
    /// The number of the next message of each publisher.
    next: Vec<u64>,
}

/// Subscribers that one thread reads for.
#[derive(Debug)]
pub(crate) struct Subscribers {
    protocol: Protocol,
    all: Vec<Subscriber>,
    noted_of: u64,
}

impl Subscribers {
    /// Connects and subscribes, in turn to each topic.
    pub(crate) fn connect(options: &Options, names: &[String]) -> Result<Self, String> {
        let mut all = Vec::with_capacity(options.subscribers);
        let protocol = options.protocol;
        for nth in 0..options.subscribers {
            let failed = |error| format!("subscriber {nth}: {error}");
            let topic = &names[nth % names.len()];
            let mut stream = protocol.connect(options.to).map_err(failed)?;
            protocol.subscribe(&mut stream, topic).map_err(failed)?;
            stream.set_nonblocking(true).map_err(failed)?;
            let expected = protocol.expected(topic, options.size.into());
            let next = vec![0; options.publishers];
            all.push(Subscriber { stream, expected, partial: Vec::new(), received: 0, next });
        }
        let noted_of = if options.rate == 0 { NOTED_OF_A_FLOOD } else { 1 };
        Ok(Self { protocol, all, noted_of })
    }

    /// A part for each thread.
    pub(crate) fn split(self, threads: usize) -> Vec<Self> {
        let Self { protocol, all, noted_of } = self;
        let mut parts: Vec<Vec<Subscriber>> = (0..threads).map(|_| Vec::new()).collect();
        for (nth, subscriber) in all.into_iter().enumerate() {
            parts[nth % threads].push(subscriber);
        }
        parts.into_iter().map(|all| Self { protocol, all, noted_of }).collect()
    }

    /// Reads until the end: the times from the publish to the delivery, and what was wrong first.
    pub(crate) fn run(mut self, view: &View) -> (Histogram<u64>, Option<String>) {
        let mut times = histogram();
        let mut wrong = None;
        if let Err(what) = self.read_all(view, &mut times) {
            wrong = Some(what);
            // Nobody need wait for this thread.
            view.slowest.store(u64::MAX, Ordering::Relaxed);
        }
        (times, wrong)
    }

    fn read_all(&mut self, view: &View, times: &mut Histogram<u64>) -> Result<(), String> {
        let failed = |errno: nix::errno::Errno| errno.to_string();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        for (nth, subscriber) in self.all.iter().enumerate() {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, nth as u64);
            epoll.add(&subscriber.stream, event).map_err(failed)?;
        }
        let mut events = vec![EpollEvent::empty(); 1024];
        let mut buffer = vec![0; READ_BYTES];
        let mut received = 0;
        while !view.is_over.load(Ordering::Relaxed) {
            let count = match epoll.wait(&mut events, EpollTimeout::from(50_u8)) {
                Err(nix::errno::Errno::EINTR) => continue,
                count => count.map_err(failed)?,
            };
            let from = view.from.load(Ordering::Relaxed);
            for event in &events[..count] {
                let nth = usize::try_from(event.data()).expect("it was one");
                let noted_of = self.noted_of;
                let note = |stamp: u64, number: u64, at: u64| {
                    if stamp >= from && number.is_multiple_of(noted_of) {
                        times.saturating_record((at.saturating_sub(stamp) / 1000).max(1));
                    }
                };
                received += self.all[nth].read(self.protocol, &mut buffer, note)?;
            }
            if count > 0 {
                let slowest = self.all.iter().map(|subscriber| subscriber.received).min();
                view.slowest.store(slowest.unwrap_or(u64::MAX), Ordering::Relaxed);
                view.last.store(now(), Ordering::Relaxed);
                // Release: who sees the number sees the time.
                view.received.store(received, Ordering::Release);
            }
        }
        Ok(())
    }
}

impl Subscriber {
    /// Reads once; how many messages have come. `note` gets the stamp and the number of each, and
    /// the time.
    fn read(
        &mut self,
        protocol: Protocol,
        buffer: &mut [u8],
        note: impl FnMut(u64, u64, u64),
    ) -> Result<u64, String> {
        let received = match self.stream.read(buffer) {
            Ok(0) => {
                return Err(format!("the server has closed one after {} messages", self.received));
            }
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(error.to_string()),
        };
        let at = now();
        let begun = std::mem::take(&mut self.partial);
        if begun.is_empty() {
            let (used, messages) = self.take(protocol, &buffer[..received], at, note)?;
            self.partial.extend_from_slice(&buffer[used..received]);
            return Ok(messages);
        }
        let mut input = begun;
        input.extend_from_slice(&buffer[..received]);
        let (used, messages) = self.take(protocol, &input, at, note)?;
        input.drain(..used);
        self.partial = input;
        Ok(messages)
    }

    /// Takes the whole messages of the input: their bytes, and how many they are.
    fn take(
        &mut self,
        protocol: Protocol,
        input: &[u8],
        at: u64,
        mut note: impl FnMut(u64, u64, u64),
    ) -> Result<(usize, u64), String> {
        let (mut used, mut messages) = (0, 0);
        loop {
            match protocol.message(&input[used..], &self.expected)? {
                Found::Message(bytes, payload) => {
                    let (stamp, publisher, number) = read_payload(payload);
                    let next = usize::try_from(publisher).ok();
                    let next = next.and_then(|nth| self.next.get_mut(nth));
                    let next = next.ok_or_else(|| format!("there is no publisher {publisher}"))?;
                    if number != *next {
                        return Err(format!("message {number} of {publisher} instead of {next}"));
                    }
                    note(stamp, number, at);
                    *next += 1;
                    self.received += 1;
                    messages += 1;
                    used += bytes;
                }
                Found::Ping(bytes) => {
                    self.stream.write_all(NATS_PONG).map_err(|error| error.to_string())?;
                    used += bytes;
                }
                Found::Nothing => return Ok((used, messages)),
            }
        }
    }
}

/// When it was published, by which publisher, and its how many-th message of the topic it is.
fn read_payload(payload: &[u8]) -> (u64, u64, u64) {
    let number = |at: usize| {
        u64::from_le_bytes(payload[at..at + 8].try_into().expect("a payload has 24 bytes"))
    };
    (number(0), number(8), number(16))
}

/// The first bytes of a payload.
pub(crate) fn write_payload(payload: &mut [u8], stamp: u64, publisher: u64, number: u64) {
    payload[..8].copy_from_slice(&stamp.to_le_bytes());
    payload[8..16].copy_from_slice(&publisher.to_le_bytes());
    payload[16..24].copy_from_slice(&number.to_le_bytes());
}
