//! The connections that publish, and how they are answered. One thread, one epoll set.

use crate::protocol::{NATS_PONG, Protocol};
use crate::subscribers::{Views, write_payload};
use crate::{Options, histogram, now};
use hdrhistogram::Histogram;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const CLOCK: u64 = u64::MAX;
/// Nothing may take longer to be answered.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// What was done in a phase.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    pub published: u64,
    pub answers: u64,
    /// Until the last answer.
    pub seconds: f64,
}

#[derive(Debug)]
struct Publisher {
    stream: TcpStream,
    /// Its topics, and how many messages each has got.
    topics: Vec<(String, u64)>,
    /// The next of them.
    turn: usize,
    out: Vec<u8>,
    written: usize,
    input: Vec<u8>,
    /// When it was asked for the answers that are to come, and how many messages each stands for.
    open: VecDeque<(u64, usize)>,
    /// Messages that they stand for.
    awaited: usize,
    waits_for_room: bool,
}

#[derive(Debug)]
pub(crate) struct Publishers<'a> {
    options: &'a Options,
    views: &'a Views,
    epoll: Epoll,
    all: Vec<Publisher>,
    payload: Vec<u8>,
    /// The next to publish, by the clock.
    turn: usize,
    published: u64,
    answers: u64,
    times: Histogram<u64>,
}

impl<'a> Publishers<'a> {
    pub(crate) fn connect(
        options: &'a Options,
        names: &[String],
        views: &'a Views,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut all = Vec::with_capacity(options.publishers);
        for nth in 0..options.publishers {
            let stream = options.protocol.connect(options.to)?;
            stream.set_nonblocking(true)?;
            epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, nth as u64))?;
            let first = nth % names.len();
            let topics = names.iter().skip(first).step_by(options.publishers);
            all.push(Publisher {
                stream,
                topics: topics.map(|name| (name.clone(), 0)).collect(),
                turn: 0,
                out: Vec::new(),
                written: 0,
                input: Vec::new(),
                open: VecDeque::new(),
                awaited: 0,
                waits_for_room: false,
            });
        }
        let payload = vec![b'.'; options.size.into()];
        let (published, answers, times) = (0, 0, histogram());
        Ok(Self { options, views, epoll, all, payload, turn: 0, published, answers, times })
    }

    /// From a message to its answer, in the last phase.
    pub(crate) fn times(&self) -> &Histogram<u64> {
        &self.times
    }

    /// Publishes for this time, and waits for the answers.
    pub(crate) fn work(&mut self, time: Duration) -> io::Result<Work> {
        (self.published, self.answers) = (self.views_published(), 0);
        self.times.reset();
        let (before, began) = (self.published, Instant::now());
        if self.options.publishers > 0 {
            if self.options.rate > 0 {
                self.by_clock(began + time)?;
            } else {
                self.by_answers(began + time)?;
            }
            self.wait_for_answers()?;
        }
        let seconds = began.elapsed().as_secs_f64();
        Ok(Work { published: self.published - before, answers: self.answers, seconds })
    }

    /// Messages that were published before this phase.
    fn views_published(&self) -> u64 {
        self.all.iter().flat_map(|it| it.topics.iter().map(|(_, sent)| sent)).sum()
    }

    /// At each tick one publisher sends a burst.
    fn by_clock(&mut self, until: Instant) -> io::Result<()> {
        let Options { rate, burst, .. } = *self.options;
        let tick = Duration::from_nanos(1_000_000_000 * burst / rate);
        let clock = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
        let each = Expiration::Interval(TimeSpec::from_duration(tick));
        clock.set(each, TimerSetTimeFlags::empty())?;
        self.epoll.add(&clock, EpollEvent::new(EpollFlags::EPOLLIN, CLOCK))?;
        while Instant::now() < until {
            if !self.wait(EpollTimeout::from(100_u8))? {
                continue;
            }
            let mut expired = [0; 8];
            match nix::unistd::read(&clock, &mut expired) {
                Ok(_) => {}
                Err(Errno::EAGAIN) => continue,
                Err(errno) => return Err(errno.into()),
            }
            for _ in 0..u64::from_ne_bytes(expired) {
                let nth = self.turn;
                self.turn = (self.turn + 1) % self.all.len();
                self.send(nth, usize::try_from(burst).unwrap_or(1))?;
            }
        }
        self.epoll.delete(&clock)?;
        Ok(())
    }

    /// As many under way as may be.
    fn by_answers(&mut self, until: Instant) -> io::Result<()> {
        let mut held = self.refill_all()?;
        while Instant::now() < until {
            // What holds a publisher up is read by another thread, which does not say so.
            let patience = if held { 1_u8 } else { 100 };
            self.wait(EpollTimeout::from(patience))?;
            held = self.refill_all()?;
        }
        Ok(())
    }

    /// Whether somebody could not send, since a subscriber is too far behind.
    fn refill_all(&mut self) -> io::Result<bool> {
        let Options { window, ahead, .. } = *self.options;
        let most =
            if ahead == u64::MAX { ahead } else { self.views.slowest().saturating_add(ahead) };
        let mut is_held = false;
        for nth in 0..self.all.len() {
            let room = most.saturating_sub(self.published);
            let wanted = window - self.all[nth].awaited.min(window);
            let count = wanted.min(usize::try_from(room).unwrap_or(usize::MAX));
            is_held |= count < wanted;
            if count > 0 {
                self.send(nth, count)?;
            }
        }
        Ok(is_held)
    }

    fn wait_for_answers(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + ANSWER_MAX;
        while self.all.iter().any(|it| !it.open.is_empty() || it.written < it.out.len()) {
            if Instant::now() > deadline {
                return Err(io::Error::other("a publisher is not answered"));
            }
            self.wait(EpollTimeout::from(100_u8))?;
        }
        Ok(())
    }

    /// Reads what has come, and writes what there is room for. True: the clock has ticked.
    fn wait(&mut self, patience: EpollTimeout) -> io::Result<bool> {
        let mut events = [EpollEvent::empty(); 128];
        let count = match self.epoll.wait(&mut events, patience) {
            Err(Errno::EINTR) => 0,
            count => count?,
        };
        let mut has_ticked = false;
        for event in &events[..count] {
            if event.data() == CLOCK {
                has_ticked = true;
                continue;
            }
            let nth = usize::try_from(event.data()).expect("it was one");
            if event.events().contains(EpollFlags::EPOLLOUT) {
                self.flush(nth)?;
            }
            if event.events().intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP) {
                self.answers += self.all[nth].read(self.options.protocol, &mut self.times)?;
                // What the server has asked is answered.
                self.flush(nth)?;
            }
        }
        Ok(has_ticked)
    }

    /// Messages of a publisher, in one piece, in turn to its topics.
    fn send(&mut self, nth: usize, count: usize) -> io::Result<()> {
        let Options { protocol, ping, .. } = *self.options;
        let (it, stamp) = (&mut self.all[nth], now());
        it.awaited += count;
        for _ in 0..count {
            if ping {
                protocol.ping(&mut it.out);
                it.open.push_back((stamp, 1));
                continue;
            }
            let (topic, number) = &mut it.topics[it.turn];
            write_payload(&mut self.payload, stamp, nth as u64, *number);
            protocol.publish(&mut it.out, topic, &self.payload);
            *number += 1;
            self.published += 1;
            it.turn = (it.turn + 1) % it.topics.len();
            if protocol.answers() {
                it.open.push_back((stamp, 1));
            }
        }
        if !ping && !protocol.answers() {
            // Behind them, so that somebody says when they were taken.
            protocol.ping(&mut it.out);
            it.open.push_back((stamp, count));
        }
        self.flush(nth)
    }

    fn flush(&mut self, nth: usize) -> io::Result<()> {
        let it = &mut self.all[nth];
        while it.written < it.out.len() {
            match it.stream.write(&it.out[it.written..]) {
                Ok(written) => it.written += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let waits = it.written < it.out.len();
        if !waits {
            it.out.clear();
            it.written = 0;
        }
        if std::mem::replace(&mut it.waits_for_room, waits) != waits {
            let mut flags = EpollFlags::EPOLLIN;
            flags.set(EpollFlags::EPOLLOUT, waits);
            self.epoll.modify(&it.stream, &mut EpollEvent::new(flags, nth as u64))?;
        }
        Ok(())
    }
}

impl Publisher {
    /// Reads once; how many messages were answered.
    fn read(&mut self, protocol: Protocol, times: &mut Histogram<u64>) -> io::Result<u64> {
        let mut piece = [0; 64 * 1024];
        match self.stream.read(&mut piece) {
            Ok(0) => return Err(io::Error::other("the server has closed a publisher")),
            Ok(received) => self.input.extend_from_slice(&piece[..received]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(error),
        }
        let (at, mut used, mut answered) = (now(), 0, 0);
        while let Some(length) = protocol.answer(&self.input[used..]).map_err(io::Error::other)? {
            let answer = &self.input[used..used + length];
            used += length;
            if protocol.is_question(answer) {
                self.out.extend_from_slice(NATS_PONG);
                continue;
            }
            let Some((stamp, messages)) = self.open.pop_front() else {
                return Err(io::Error::other("an answer that nobody has asked for"));
            };
            times.saturating_record((at.saturating_sub(stamp) / 1000).max(1));
            self.awaited -= messages;
            answered += messages as u64;
        }
        self.input.drain(..used);
        Ok(answered)
    }
}
