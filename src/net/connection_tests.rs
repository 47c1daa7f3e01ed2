//! The data path of the loop, played: socket and epoll set are scripts, the clock is moved by
//! hand, and the test is the handler thread. The send thread is one, and is waited for.

mod play;
mod scenes;

use super::connection::{Connection, Held};
use super::interest::{Input, Interest};
use super::reactor::{EpollSet, Fate, Key, Reactor, Table};
use super::settings::Settings;
use super::{ending::Ending, rates::Rates, transport::Transport};
use crate::protocol::{self, encode};
use chappe_engine::Hooks;
use chappe_engine::*;
use chappe_shm::{SharedCounters, ThreadCounters};
use chappe_sys::clock::Moment;
use nix::{errno::Errno, sys::epoll::EpollFlags};
use parking_lot::Mutex;
use play::{Play, TICKETS};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const S: Duration = Duration::from_secs(1);
/// Codes; all others are a quick echo.
const SLOW: u16 = 16;
const FAILS: u16 = 17;
const PANICS: u16 = 18;
/// Its reply is deferred.
const LATER: u16 = 19;
const HELD: Held = Held { permit: true, address: true };
const IN: EpollFlags = EpollFlags::EPOLLIN;
const OUT: EpollFlags = EpollFlags::EPOLLOUT;
const HUP: EpollFlags = EpollFlags::EPOLLHUP;
const ERR: EpollFlags = EpollFlags::EPOLLERR;

/// Holds the next thread that comes to it, a slow handler or the send thread.
type Gate = Arc<Mutex<Option<Arc<Barrier>>>>;

fn pass(gate: &Gate) {
    let barrier = gate.lock().take();
    if let Some(barrier) = barrier {
        barrier.wait();
        barrier.wait();
    }
}

/// A connected socket.
#[derive(Debug, Default)]
struct Script {
    is_unix: bool,
    gate: Gate,
    /// The next change of what epoll watches fails, unless it is a removal.
    fails: Arc<AtomicBool>,
    at: Mutex<Played>,
}

#[derive(Debug, Default)]
struct Played {
    /// What recv(2) finds, then EAGAIN. An empty piece is the peer's FIN, and stays.
    input: VecDeque<Result<Vec<u8>, Errno>>,
    /// How much each send(2) takes, then all.
    sends: VecDeque<Result<usize, Errno>>,
    sent: Vec<u8>,
    acknowledged: u64,
    reads: usize,
    writes: usize,
    finished: usize,
    watched: Option<Interest>,
    /// How often that has changed.
    changes: usize,
}

impl Played {
    fn watched(&self) -> Interest {
        self.watched.unwrap_or(Interest::Out)
    }
}

impl Socket for Script {
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        pass(&self.gate);
        let mut at = self.at.lock();
        at.writes += 1;
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
        let taken = at.sends.pop_front().unwrap_or(Ok(bytes.len()))?.min(bytes.len());
        at.sent.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }
}

impl Transport for Script {
    fn watch(&self, _: &EpollSet, _: Key, from: Interest, to: Interest) -> io::Result<()> {
        let mut at = self.at.lock();
        assert!(at.watched() == from && from != to, "{from:?} to {to:?}");
        at.changes += 1;
        if to != Interest::Out && self.fails.swap(false, Relaxed) {
            return Err(Errno::ENOMEM.into());
        }
        at.watched = Some(to);
        Ok(())
    }
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut at = self.at.lock();
        at.reads += 1;
        let mut bytes = at.input.pop_front().unwrap_or(Err(Errno::EAGAIN))?;
        let rest = bytes.split_off(bytes.len().min(buffer.len()));
        buffer[..bytes.len()].copy_from_slice(&bytes);
        if bytes.is_empty() || !rest.is_empty() {
            at.input.push_front(Ok(rest));
        }
        Ok(bytes.len())
    }
    fn unread_bytes(&self) -> usize {
        self.at.lock().input.iter().flatten().map(Vec::len).sum()
    }
    fn finish(&self) -> io::Result<()> {
        self.at.lock().finished += 1;
        Ok(())
    }
    fn has_input_behind_hangup(&self) -> bool {
        self.is_unix
    }
    fn acknowledged(&self, _: u64) -> u64 {
        self.at.lock().acknowledged
    }
}

/// Stands behind all others on the send list: once it is written to, they are done.
#[derive(Debug)]
struct Bell(Sender<()>);

impl Socket for Bell {
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.send(()).expect("it is waited for");
        Ok(slices[0].len())
    }
}

/// A worker with a connection.
struct World {
    reactor: Reactor,
    table: Table,
    now: Moment,
    key: Key,
    script: Arc<Script>,
    mailbox: Arc<Mailbox>,
    is_hung_up: bool,
    gate: Gate,
    fails: Arc<AtomicBool>,
    last: Arc<Mailbox>,
    rung: Receiver<()>,
    sender: Option<JoinHandle<()>>,
    /// What holds a thread, of the handler if it is not the send thread.
    inside: Option<(Arc<Barrier>, Option<JoinHandle<()>>)>,
    trace: String,
}

fn settings(fuse: bool) -> Settings {
    Settings {
        connections_max: 9,
        frame_bytes_max: 60_000,
        idle: Some(60 * S),
        frame: 10 * S,
        handshake: None,
        deferred: 4 * S,
        linger: 2 * S,
        outbox_age_max: 30 * S,
        fuse,
        hooks: Hooks::None,
        messages_per_second: 0,
        messages_burst: 2,
        bytes_per_second: 0,
        connections_per_ip: 0,
    }
}

fn frame(code: u16, body: &str) -> Vec<u8> {
    encode(code, body.as_bytes()).unwrap().to_vec()
}

/// What a handler thread does.
fn turn(mailbox: &Arc<Mailbox>, gate: &Gate, counters: &ThreadCounters) {
    let (play, mut batch) = (Play(Arc::clone(gate)), Batch::default());
    let mut turns = Turns::new(&play, counters, Place::Thread, &mut batch);
    _ = turns.run(mailbox, Source::Inbox, Moment::now());
}

impl World {
    fn new(settings: Settings, is_unix: bool) -> Self {
        let limits = Limits {
            inbox_messages_max: 8,
            inbox_bytes_max: 10_000,
            inbox_total_bytes_max: 4000,
            outbox_bytes_max: 2000,
            outbox_total_bytes_max: 100_000,
            slow_reader: SlowReader::Close,
            deferred_max: 9,
        };
        let permits = chappe_sys::Semaphore::new(0).unwrap().into();
        let protocols = protocol::all(settings.frame_bytes_max);
        let engine = Engine::new(&limits, permits, protocols, SharedCounters::detached()).unwrap();
        let (engine, gate, (bell, rung)) = (Arc::new(engine), Gate::default(), mpsc::channel());
        let names =
            Names { id: 0, token: 0, peer: Peer::Unix, listener: 0, connected_at: Moment::now() };
        let last = Arc::new(Mailbox::new(names, Arc::new(Bell(bell)), Arc::clone(&engine)));
        // A turn on the loop reads the real clock: one that begins later is never too long.
        let now = Moment::now() + if settings.fuse { 3600 * S } else { Duration::ZERO };
        let (play, counters) = (Play(Arc::clone(&gate)), ThreadCounters::detached());
        let (sending, epoll) = (Arc::clone(&engine), EpollSet::new(&engine).unwrap());
        let sender = move || sending.run_send_thread(&ThreadCounters::detached(), ());
        let mut world = Self {
            reactor: Reactor::new(epoll, settings, engine, Arc::new(play), counters),
            table: Table::with_key(),
            now,
            key: Key::default(),
            script: Arc::default(),
            mailbox: Arc::clone(&last),
            is_hung_up: false,
            gate,
            fails: Arc::default(),
            last,
            rung,
            sender: Some(thread::spawn(sender)),
            inside: None,
            trace: String::new(),
        };
        world.connect(is_unix, HELD);
        world
    }

    fn connect(&mut self, is_unix: bool, held: Held) {
        let (gate, fails) = (Arc::clone(&self.gate), Arc::clone(&self.fails));
        let script = Script { is_unix, gate, fails, at: Mutex::default() };
        let (script, engine, now) = (Arc::new(script), &self.reactor.engine, self.now);
        self.script = Arc::clone(&script);
        self.key = self.table.insert_with_key(|key| {
            let names = Names {
                id: 7,
                token: key.token(),
                peer: Peer::Unix,
                listener: 0,
                connected_at: Moment::now(),
            };
            let socket = Arc::clone(&script) as Arc<dyn Socket>;
            self.mailbox = Arc::new(Mailbox::new(names, socket, Arc::clone(engine)));
            let rates = Rates::new(&self.reactor.settings, now);
            Connection::new(script, Arc::clone(&self.mailbox), rates, held, now)
        });
        self.with(|connection, key, reactor| {
            if !held.permit {
                connection.see_off(reactor);
            }
            connection.advance(key, reactor)
        });
    }

    fn act(&mut self, key: Key, act: impl FnOnce(&mut Connection, Key, &mut Reactor) -> Fate) {
        let Some(connection) = self.table.get_mut(key) else { return };
        let held = connection.held;
        self.reactor.now = self.now;
        let fate = act(connection, key, &mut self.reactor);
        assert_eq!(connection.held, held, "for the owner of the table");
        if fate == Fate::Gone {
            assert!(!matches!(self.inside, Some((_, None))), "closed under its writer");
            let connection = self.table.remove(key).unwrap();
            self.reactor.forget(key, &connection);
        }
    }

    fn with(&mut self, act: impl FnOnce(&mut Connection, Key, &mut Reactor) -> Fate) {
        self.act(self.key, act);
        self.settle();
    }

    /// Answers what other threads call for; then all is as the state says.
    fn settle(&mut self) {
        let (engine, mut called) = (Arc::clone(&self.reactor.engine), Vec::new());
        for _ in 0..100 {
            engine.calls().take(&mut called);
            let has_room = engine.calls().take_room();
            if called.is_empty() && !has_room {
                break;
            }
            for token in called.drain(..) {
                self.act(Key::of_token(token), |it, key, reactor| it.on_call(key, reactor));
            }
            if has_room && self.reactor.starved.remove(&self.key) {
                self.act(self.key, |it, key, reactor| it.on_room(key, reactor));
            }
        }
        let (view, key, watched) = (self.mailbox.view(), self.key, self.watched());
        let is_blocked = self.reactor.blocked.iter().any(|(_, blocked)| *blocked == key);
        let Some(connection) = self.table.get(key) else {
            assert_eq!((view.stage, watched, is_blocked), (Stage::Aborted, Interest::Out, false));
            return;
        };
        let input = Input::of(&view, connection.is_starved, self.is_hung_up);
        // A last message that is handled on a thread is no event for a full socket.
        let is_seen = connection.stage == view.stage
            || (connection.stage, view.stage) == (Stage::Answering, Stage::Flushing)
                && !view.is_idle;
        assert!(is_seen && watched == input.interest(), "{:?} {watched:?}", connection.stage);
        if view.stage == Stage::Aborted {
            return assert!(matches!(self.inside, Some((_, None))), "waits for the writer only");
        }
        assert_eq!(is_blocked, view.blocked.is_some());
        // A connection that is drained reads the real clock, which may be behind.
        let due = connection.deadline(&view, &self.reactor);
        let due = due.filter(|_| !connection.clocks.is_draining());
        assert!(due.is_none_or(|(at, _)| self.reactor.timers.next().is_some_and(|it| it <= at)));
    }

    fn event(&mut self, flags: EpollFlags) {
        let hangs_up = flags.intersects(HUP | ERR) && self.script.is_unix;
        self.is_hung_up |= hangs_up && self.stage() != Stage::Lingering;
        self.with(|connection, key, reactor| connection.on_event(key, flags, reactor));
    }

    fn finds(&self, what: Result<Vec<u8>, Errno>) {
        self.script.at.lock().input.push_back(what);
    }

    fn meets(&mut self, what: Result<Vec<u8>, Errno>, flags: EpollFlags) {
        self.finds(what);
        self.event(flags);
    }

    fn bring(&mut self, bytes: impl Into<Vec<u8>>) {
        self.meets(Ok(bytes.into()), IN);
    }

    fn fin(&mut self) {
        self.bring([]);
    }

    /// The loop wakes at this time.
    fn fire(&mut self, at: Moment) {
        self.now = at;
        for _ in 0..100 {
            let Some((at, key)) = self.reactor.timers.pop_due(at) else { return };
            self.act(key, |it, key, reactor| match it.timer.fires(at) {
                true => it.on_timer(key, reactor),
                false => Fate::Stay,
            });
            self.settle();
        }
        panic!("timers without an end");
    }

    /// Waits until the send thread has sent all that is listed. Twice: what is added while it
    /// sends is listed once more, which may be behind the first ring.
    fn ring(&self) {
        for _ in 0..2 {
            self.last.push(Entry::new((vec![0].into(), 1))).unwrap();
            self.rung.recv().unwrap();
        }
    }

    /// What a handler thread is to have next.
    fn listed(&self) -> Option<Arc<Mailbox>> {
        match self.reactor.engine.next_to_handle() {
            Some(Work::Turn(mailbox)) if !Arc::ptr_eq(&mailbox, &self.last) => Some(mailbox),
            _ => None,
        }
    }

    /// All that is listed is handled and sent.
    fn threads(&mut self) {
        for _ in 0..4 {
            self.last.enqueue();
            while let Some(mailbox) = self.listed() {
                turn(&mailbox, &self.gate, &self.reactor.counters);
            }
            self.ring();
            self.settle();
        }
    }

    fn hold_handler(&mut self) {
        self.bring(frame(SLOW, "s"));
        let (barrier, gate) = (Arc::new(Barrier::new(2)), Arc::clone(&self.gate));
        *gate.lock() = Some(Arc::clone(&barrier));
        let mailbox = self.listed().unwrap();
        let run = move || turn(&mailbox, &gate, &ThreadCounters::detached());
        self.inside = Some((Arc::clone(&barrier), Some(thread::spawn(run))));
        barrier.wait();
    }

    fn push(&mut self, bytes: usize) {
        let message = encode(9, &vec![b'x'; bytes]).unwrap();
        _ = self.mailbox.push(Entry::new((message, 1)));
        if !matches!(self.inside, Some((_, None))) {
            self.ring();
        }
        self.settle();
    }

    /// While the send thread is inside of a send.
    fn abort_inside(&mut self) {
        let barrier = Arc::new(Barrier::new(2));
        *self.gate.lock() = Some(Arc::clone(&barrier));
        self.inside = Some((Arc::clone(&barrier), None));
        self.push(9);
        barrier.wait();
        self.abort();
    }

    fn let_go(&mut self) {
        if let Some((barrier, thread)) = self.inside.take() {
            barrier.wait();
            thread.map_or(Ok(()), JoinHandle::join).unwrap();
            self.ring();
            self.settle();
        }
    }

    /// The socket takes a part of a message, and the rest waits.
    fn block(&mut self, takes: Result<usize, Errno>, bytes: usize) {
        self.sends([takes]);
        self.push(bytes);
    }

    /// Now: a goodbye reads the real clock.
    fn drain(&mut self) {
        let now = Moment::now();
        self.with(|connection, key, reactor| connection.drain_at(key, now, reactor));
        self.fire(now);
    }

    fn abort(&mut self) {
        self.with(|connection, key, reactor| connection.abort(key, Cause::Stopping, reactor));
    }

    fn next_timer(&mut self) {
        if let Some(at) = self.reactor.timers.next() {
            self.fire(at.max(self.now + S / 10));
        }
    }

    /// It comes to its end when its peer is gone, or by time alone.
    fn end(&mut self, is_reset: bool) {
        for _ in 0..if is_reset { 2 } else { 40 } {
            self.threads();
            if self.is_gone() {
                return;
            }
            if is_reset {
                self.script.at.lock().input = [Err(Errno::ECONNRESET)].into();
                self.event(HUP | ERR | IN | OUT);
            } else {
                self.next_timer();
            }
        }
        assert!(self.is_gone(), "it has no end");
    }

    fn sends(&self, sends: impl IntoIterator<Item = Result<usize, Errno>>) {
        self.script.at.lock().sends.extend(sends);
    }

    fn writes(&mut self, takes: Result<usize, Errno>) {
        self.sends([takes]);
        self.event(OUT);
    }

    fn stage(&self) -> Stage {
        self.mailbox.view().stage
    }

    fn watched(&self) -> Interest {
        self.script.at.lock().watched()
    }

    fn is_gone(&self) -> bool {
        !self.table.contains_key(self.key)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if thread::panicking() {
            return eprintln!("{} {:?} {:?}", self.trace, self.mailbox.view(), self.table);
        }
        for key in self.table.keys().collect::<Vec<_>>() {
            self.act(key, |it, key, reactor| it.abort(key, Cause::Stopping, reactor));
        }
        let engine = &self.reactor.engine;
        engine.stop();
        self.sender.take().map_or(Ok(()), JoinHandle::join).unwrap();
        assert_eq!((engine.inbox_total().used(), engine.outbox_total().used()), (0, 0));
        assert_eq!(engine.deferred().used(), 0);
        TICKETS.take();
        assert!(self.reactor.starved.is_empty() && self.reactor.blocked.is_empty());
    }
}

type Act = fn(&mut World);

const STAGES: &[(Stage, &str, Act)] = &[
    (Stage::Open, "idle", |_| {}),
    (Stage::Open, "begun", |it| it.bring(&frame(1, "half")[..9])),
    (Stage::Open, "blocked", |it| it.block(Ok(3), 9)),
    (Stage::Open, "no memory", |it| it.block(Err(Errno::ENOBUFS), 9)),
    (Stage::Open, "paused", |it| it.block(Ok(3), 2500)),
    (Stage::Open, "handling", World::hold_handler),
    (Stage::Open, "draining", World::drain),
    (Stage::Open, "waiting", |it| {
        it.bring(frame(LATER, ""));
        it.threads();
    }),
    (Stage::Answering, "answering", |it| {
        it.hold_handler();
        it.fin();
    }),
    (Stage::Flushing, "flushing", |it| {
        it.block(Ok(3), 9);
        it.fin();
    }),
    (Stage::Lingering, "lingering", |it| {
        it.bring([0, 7]);
        it.threads();
    }),
    (Stage::Lingering, "seen off", |it| it.connect(it.script.is_unix, Held::default())),
    (Stage::Aborted, "writer out", World::abort_inside),
];

const EVENTS: &[(&str, Act)] = &[
    ("bytes", |it| it.bring(frame(1, "more"))),
    ("slow bytes", |it| it.bring(frame(SLOW, "more"))),
    ("begun", |it| it.bring([0, 99, 0])),
    ("malformed", |it| it.bring([0, 7])),
    ("panic", |it| it.bring(frame(PANICS, ""))),
    ("FIN", World::fin),
    ("reset", |it| it.meets(Err(Errno::ECONNRESET), IN)),
    ("nothing", |it| it.event(IN | OUT)),
    ("room to send", |it| it.event(OUT)),
    ("full again", |it| it.writes(Err(Errno::EAGAIN))),
    ("broken send", |it| it.writes(Err(Errno::EPIPE))),
    ("hang-up", |it| it.meets(Ok(vec![]), HUP | IN)),
    ("error", |it| it.event(ERR)),
    ("call", |it| it.with(|connection, key, reactor| connection.on_call(key, reactor))),
    ("room", |it| it.with(|connection, key, reactor| connection.on_room(key, reactor))),
    ("look", |it| it.with(|connection, key, reactor| connection.on_timer(key, reactor))),
    ("timer", World::next_timer),
    ("deferred", |it| it.bring(frame(LATER, "more"))),
    ("ticket", |it| {
        drop(TICKETS.with_borrow_mut(VecDeque::pop_front));
        it.settle();
    }),
    ("push", |it| it.push(9)),
    ("large push", |it| it.push(2500)),
    ("drain", World::drain),
    ("abort", World::abort),
    ("kick", |it| {
        let view = it.mailbox.view();
        it.with(|connection, key, reactor| {
            if view.stage <= Stage::Answering && view.blocked.is_none() {
                return connection.end(key, Ending::Kicked, reactor);
            }
            connection.abort(key, Cause::Kicked, reactor)
        });
    }),
];

/// What must hold stands in `settle`, after each step, and in `drop`, at the end.
#[test]
fn whatever_happens_in_any_stage_a_connection_comes_to_its_end() {
    let mut nth = 0;
    for (stage, name, build) in STAGES {
        for (first, one) in EVENTS {
            for (second, two) in EVENTS {
                nth += 1;
                for (fuse, is_unix) in [(true, nth % 2 == 0), (false, nth % 2 == 1)] {
                    let mut it = World::new(settings(fuse), is_unix);
                    it.trace = format!("{name}, {first}, {second}, {fuse}, {is_unix}");
                    build(&mut it);
                    assert_eq!(it.stage(), *stage);
                    one(&mut it);
                    two(&mut it);
                    it.let_go();
                    it.end(nth % 3 > 0);
                }
            }
        }
    }
}
