//! The load generator's event loop: one thread, one epoll set, every connection of
//! the run. Level-triggered; it reads once and writes once per wake-up.

use std::os::fd::AsFd;
use std::time::Duration;

use chappe_wire::FRAME_BYTES_MAX;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::lane::{Clock, Exchange, Lane};
use super::plan::LoadError;
use super::schedule::{Schedule, Turn};
use super::sides::{Idle, PacedReader, SlowReader};
use super::tally::Tally;

/// What one read(2) asks for.
const READ_BYTES: usize = 128 * 1024;

/// Events that one epoll_wait(2) brings at most.
const EVENTS_MAX: usize = 512;

/// The longest sleep: the run's clock is looked at so often.
const SLEEP_MS_MAX: u8 = 50;

/// The shortest sleep before a look at an open loop's schedule: what is due in less goes
/// together.
const TICK_NS_MIN: u64 = 20_000;

/// The upper half of an event's data says what it belongs to, the lower half which.
const LANE: u64 = 0;
const IDLE: u64 = 1;
const SLOW: u64 = 2;
const PACED: u64 = 3;
const TIMER: u64 = 4;

fn token(kind: u64, index: usize) -> u64 {
    kind << 32 | index as u64
}

/// All connections, and the loop over them.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) clock: Clock,
    epoll: Epoll,
    exchange: Exchange,
    pub(super) schedule: Schedule,
    /// No request starts from here on.
    pub(super) ends_at: u64,
    /// Open loop: the number of the next request of all that falls due.
    next_due: u64,
    pub(super) tally: Tally,
    pub(super) lanes: Vec<Lane>,
    /// Which lanes are watched for room.
    watched_for_room: Vec<bool>,
    open_lanes: usize,
    pub(super) idle: Vec<Idle>,
    pub(super) slow: Vec<SlowReader>,
    slow_request: Vec<u8>,
    /// When a slow reader could last send something.
    slow_progress_at: u64,
    pub(super) paced: Option<PacedReader>,
    timer: Option<TimerFd>,
    /// What the timer was set for last.
    armed_for: u64,
    scratch: Box<[u8]>,
}

fn system(step: &'static str) -> impl FnOnce(Errno) -> LoadError {
    move |errno| LoadError::System { step, source: errno.into() }
}

impl Engine {
    pub(super) fn new(exchange: Exchange, slow_request: Vec<u8>) -> Result<Self, LoadError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(system("epoll_create"))?;
        Ok(Self {
            clock: Clock::start(),
            epoll,
            exchange,
            schedule: Schedule::Closed,
            ends_at: u64::MAX,
            next_due: 0,
            tally: Tally::new(),
            lanes: Vec::new(),
            watched_for_room: Vec::new(),
            open_lanes: 0,
            idle: Vec::new(),
            slow: Vec::new(),
            slow_request,
            slow_progress_at: 0,
            paced: None,
            timer: None,
            armed_for: 0,
            scratch: vec![0; FRAME_BYTES_MAX + READ_BYTES].into_boxed_slice(),
        })
    }

    fn watch(&self, what: impl AsFd, flags: EpollFlags, token: u64) -> Result<(), LoadError> {
        self.epoll.add(what, EpollEvent::new(flags, token)).map_err(system("epoll_ctl"))
    }

    pub(super) fn add_lane(&mut self, lane: Lane) -> Result<(), LoadError> {
        self.watch(&lane, EpollFlags::EPOLLIN, token(LANE, self.lanes.len()))?;
        self.lanes.push(lane);
        self.watched_for_room.push(false);
        self.open_lanes += 1;
        Ok(())
    }

    pub(super) fn add_idle(&mut self, idle: Idle) -> Result<(), LoadError> {
        self.watch(&idle, EpollFlags::EPOLLIN, token(IDLE, self.idle.len()))?;
        self.idle.push(idle);
        Ok(())
    }

    pub(super) fn add_slow(&mut self, reader: SlowReader) -> Result<(), LoadError> {
        // Never for input: there is always some.
        let flags = EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP;
        self.watch(&reader, flags, token(SLOW, self.slow.len()))?;
        self.slow.push(reader);
        Ok(())
    }

    pub(super) fn set_paced(&mut self, paced: PacedReader) -> Result<(), LoadError> {
        // Edge-triggered: it reads by the clock, and writes whenever room was made.
        let flags = EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        self.watch(&paced.lane, flags, token(PACED, 0))?;
        self.paced = Some(paced);
        Ok(())
    }

    /// Requests fall due from now on.
    pub(super) fn start(&mut self, rate: Option<u64>) -> Result<(), LoadError> {
        let now = self.clock.now();
        if let Some(rate) = rate {
            self.schedule = Schedule::Open { rate, from: now };
            let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)
                .map_err(system("timerfd"))?;
            // Edge-triggered: each expiry is an event, and none needs a read(2).
            self.watch(&timer, EpollFlags::EPOLLIN | EpollFlags::EPOLLET, token(TIMER, 0))?;
            self.timer = Some(timer);
        }
        (0..self.lanes.len()).try_for_each(|lane| self.send(lane, now))?;
        self.send_what_is_due()
    }

    /// Lanes that live.
    pub(super) fn open_lanes(&self) -> usize {
        self.open_lanes
    }

    pub(super) fn is_anything_under_way(&self) -> bool {
        // What was due before the end and could not be sent yet is under way too.
        (0..self.lanes.len()).any(|index| {
            let lane = &self.lanes[index];
            let mut missed = self.schedule.missed(self.turn_of(index), lane.next(), self.ends_at);
            !lane.is_gone() && (lane.under_way().len() > 0 || missed.next().is_some())
        })
    }

    /// Whether nothing can be sent any more by those that never read.
    pub(super) fn are_slow_full(&self, quiet: Duration) -> bool {
        let quiet = u64::try_from(quiet.as_nanos()).unwrap_or(u64::MAX);
        self.slow.iter().all(|reader| reader.is_full() || reader.is_gone())
            && self.clock.now() - self.slow_progress_at >= quiet
    }

    /// Gives up on what is still under way.
    pub(super) fn close_accounts(&mut self) {
        let now = self.clock.now();
        for index in 0..self.lanes.len() {
            let turn = self.turn_of(index);
            let lane = &self.lanes[index];
            if lane.is_gone() {
                continue;
            }
            let missed = self.schedule.missed(turn, lane.next(), self.ends_at);
            for start in lane.under_way().chain(missed) {
                self.tally.unanswered(start, now);
            }
        }
    }

    /// Waits once, and does what there is to do.
    pub(super) fn turn(&mut self) -> Result<(), LoadError> {
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        let timeout = EpollTimeout::from(SLEEP_MS_MAX);
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(system("epoll_wait")(errno)),
        };
        for event in &events[..count] {
            let index = usize::try_from(event.data() & u64::from(u32::MAX)).expect("32 bits");
            match event.data() >> 32 {
                LANE => self.lane_event(index, event.events())?,
                IDLE => self.idle_event(index)?,
                SLOW => self.slow_event(index, event.events())?,
                PACED => self.paced_event(),
                // The schedule is looked at below, after each wait.
                _ => {}
            }
        }
        if let Some(paced) = &mut self.paced {
            paced.receive(&mut self.scratch, self.clock);
        }
        self.send_what_is_due()
    }

    fn lane_event(&mut self, index: usize, flags: EpollFlags) -> Result<(), LoadError> {
        let Self { lanes, exchange, scratch, clock, tally, .. } = self;
        let now = if flags == EpollFlags::EPOLLOUT {
            clock.now()
        } else {
            lanes[index].receive(exchange, scratch, READ_BYTES, *clock, tally)
        };
        self.send(index, now)
    }

    fn idle_event(&mut self, index: usize) -> Result<(), LoadError> {
        let idle = &mut self.idle[index];
        idle.receive(&mut self.scratch);
        if idle.is_gone() {
            self.epoll.delete(&*idle).map_err(system("epoll_ctl"))?;
        }
        Ok(())
    }

    fn slow_event(&mut self, index: usize, flags: EpollFlags) -> Result<(), LoadError> {
        let reader = &mut self.slow[index];
        if flags.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            reader.end();
        } else if reader.send(&self.slow_request) {
            self.slow_progress_at = self.clock.now();
        }
        if reader.is_gone() {
            self.epoll.delete(&*reader).map_err(system("epoll_ctl"))?;
        }
        Ok(())
    }

    fn paced_event(&mut self) {
        let now = self.clock.now();
        if let Some(paced) = &mut self.paced {
            paced.send(now);
        }
    }

    fn turn_of(&self, lane: usize) -> Turn {
        Turn { lane: lane as u64, lanes: self.lanes.len() as u64 }
    }

    /// Lets a lane send what it may, and keeps what it is watched for up to date.
    fn send(&mut self, index: usize, now: u64) -> Result<(), LoadError> {
        let turn = self.turn_of(index);
        let Self { lanes, exchange, schedule, ends_at, tally, epoll, .. } = self;
        let lane = &mut lanes[index];
        lane.send(exchange, now, |next| schedule.start(turn, next, now, *ends_at), tally);
        if lane.is_gone() {
            self.open_lanes -= 1;
            return epoll.delete(&*lane).map_err(system("epoll_ctl"));
        }
        let wants_room = lane.wants_room();
        if wants_room != self.watched_for_room[index] {
            self.watched_for_room[index] = wants_room;
            let room = if wants_room { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
            let mut event = EpollEvent::new(EpollFlags::EPOLLIN | room, token(LANE, index));
            epoll.modify(&*lane, &mut event).map_err(system("epoll_ctl"))?;
        }
        Ok(())
    }

    /// Open loop: gives each lane whose turn has come the chance to send.
    fn send_what_is_due(&mut self) -> Result<(), LoadError> {
        if self.schedule == Schedule::Closed || self.lanes.is_empty() {
            return Ok(());
        }
        let now = self.clock.now();
        let lanes = self.lanes.len() as u64;
        // When the loop itself is late, once round the lanes sends all that is due.
        let mut left = lanes;
        while left > 0 && self.schedule.due(self.next_due) <= now {
            let index = usize::try_from(self.next_due % lanes).expect("an index");
            if !self.lanes[index].is_gone() {
                self.send(index, now)?;
            }
            self.next_due += 1;
            left -= 1;
        }
        if left == 0 {
            // What fell due in the meantime has been sent in the round, or waits for replies.
            self.next_due = self.next_due.max(self.schedule.first_after(now));
        }
        self.wake_at(self.schedule.due(self.next_due))
    }

    /// epoll_wait(2) counts in milliseconds, a schedule in less.
    fn wake_at(&mut self, due: u64) -> Result<(), LoadError> {
        let Some(timer) = self.timer.as_ref().filter(|_| self.armed_for != due) else {
            return Ok(());
        };
        self.armed_for = due;
        let pause = due.saturating_sub(self.clock.now()).max(TICK_NS_MIN);
        let once = Expiration::OneShot(TimeSpec::from_duration(Duration::from_nanos(pause)));
        timer.set(once, TimerSetTimeFlags::empty()).map_err(system("timerfd"))
    }
}
