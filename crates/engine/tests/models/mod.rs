//! What the models share: a scripted socket, an engine, the loop's part.

mod abort;
mod budget;
mod calls;
mod defer;
mod fuse;
mod hooks;
mod inbox;
mod outbox;
mod push;
mod stall;
mod submit;

use chappe_engine::sync::{Mutex, Semaphore};
use chappe_engine::{
    Aborted, Asks, Batch, BodyTooLong, Cause, Chunk, Engine, Entry, Found, Framed, Goodbye, Item,
    Limits, Mailbox, Message, Names, Notice, Opened, Pace, Peer, Place, Protocol, Received,
    Rejected, Rest, Serve, Served, Session, SlowReader, Socket, Source, Stage, TURN_MESSAGES_MAX,
    Ticket, Turns, Work,
};
use chappe_shm::{SharedCounters, ThreadCounters};
use chappe_sys::clock::Moment;
use loom::thread::JoinHandle;
use std::any::Any;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

/// How often a thread may be preempted in one run. Two find each fault of `tests/faults`,
/// three is one to spare; every further one makes it more than ten times as long.
const PREEMPTIONS: usize = 3;

/// Runs a model in all its orders, and says in how many.
fn check(model: impl Fn() + Send + Sync + 'static) {
    check_outcomes([()], model);
}

/// As [`check`], where the order decides what comes of a run: all of this has to, and
/// nothing else. A model that never gets to what it is about would prove nothing.
fn check_outcomes<T: Ord + Debug + Send + 'static>(
    expected: impl IntoIterator<Item = T>,
    model: impl Fn() -> T + Send + Sync + 'static,
) {
    // Not part of the model: of std, shared by its runs.
    let seen = Arc::new(std::sync::Mutex::new((0, BTreeSet::new())));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.max_branches = 20_000;
    builder.check({
        let seen = Arc::clone(&seen);
        move || {
            let outcome = model();
            let mut seen = seen.lock().expect("no panic under this lock");
            seen.0 += 1;
            seen.1.insert(outcome);
        }
    });
    let (runs, outcomes) = &*seen.lock().expect("no panic under this lock");
    println!("{runs} runs");
    assert_eq!(*outcomes, BTreeSet::from_iter(expected), "all that can come of it does");
}

/// How a socket answers its first call; then it takes all.
#[derive(Clone, Copy, Debug)]
enum First {
    /// It has room for one byte, and is full.
    OneByte,
    /// The kernel has no memory.
    NoBuffers,
    /// The peer has reset the connection.
    Broken,
    /// It takes all from the beginning.
    All,
}

/// A socket that is full once.
#[derive(Debug)]
struct TightSocket {
    first: First,
    state: Mutex<TightState>,
}

#[derive(Debug, Default)]
struct TightState {
    taken: Vec<u8>,
    calls: usize,
    is_closed: bool,
}

impl TightSocket {
    fn new() -> Arc<Self> {
        Self::that(First::OneByte)
    }

    fn that(first: First) -> Arc<Self> {
        Arc::new(Self { first, state: Mutex::new(TightState::default()) })
    }

    fn taken(&self) -> Vec<u8> {
        self.state.lock().taken.clone()
    }

    fn close(&self) {
        self.state.lock().is_closed = true;
    }
}

impl Socket for TightSocket {
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut state = self.state.lock();
        assert!(!state.is_closed, "a write to a descriptor that may be a stranger's");
        let all: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
        state.calls += 1;
        let room = match self.first {
            First::OneByte if state.calls == 1 => 1,
            First::NoBuffers if state.calls == 1 => {
                return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
            }
            First::Broken => return Err(io::Error::from_raw_os_error(libc::ECONNRESET)),
            _ => all.len(),
        };
        let sent = room.min(all.len());
        state.taken.extend_from_slice(&all[..sent]);
        Ok(sent)
    }
}

/// A protocol whose messages are one byte each, replies two: the byte twice.
#[derive(Debug)]
struct OneByte;

impl Protocol for OneByte {
    fn frame(&self, stream: &[u8]) -> Framed {
        Framed { whole_bytes: stream.len(), messages: stream.len(), rest: Rest::Nothing }
    }

    fn code_of_part(&self, _: &[u8]) -> Option<u16> {
        None
    }

    fn open<'a>(&self, messages: &'a [u8]) -> Option<Opened<'a>> {
        let byte = messages.first()?;
        Some(Opened { code: u16::from(*byte), body: &[], checksum: 0, length: 1, joins: false })
    }

    fn is_intact(&self, _: &Opened<'_>) -> bool {
        true
    }

    fn asks(&self, opened: &Opened<'_>) -> Option<Asks> {
        let [_, byte] = opened.code.to_be_bytes();
        let is_submitted = byte == REFUSED || SUBMITTED.contains(&byte);
        is_submitted.then_some(Asks::Publish)
    }

    fn reply(
        &self,
        code: u16,
        _: &[u8],
        _: Option<u32>,
        out: &mut Batch,
    ) -> Result<(), BodyTooLong> {
        let [_, byte] = code.to_be_bytes();
        out.append(&[byte, byte]);
        Ok(())
    }

    fn notice(&self, _: &Notice, out: &mut Batch) {
        out.append(b"!");
    }
}

/// What [`Answer`] has handled when it was asked at a connection's begin and at its end.
const CONNECTED: u8 = b'^';
const CLOSED: u8 = b'.';

/// Answers each message with the byte twice, or with nothing.
struct Answer {
    handled: Arc<Mutex<Vec<u8>>>,
    replies: bool,
    pace: Pace,
    /// Replies to [`LATER`] are deferred.
    desk: Option<Arc<Desk>>,
    /// Where [`SUBMITTED`] are submitted, which wait together.
    hub: Option<Arc<Hub>>,
}

/// Messages that are answered by whom they are submitted to, each with the other case.
const SUBMITTED: &[u8] = b"st";
/// One that waits with them, and is answered at once.
const REFUSED: u8 = b'r';

/// Whom messages are submitted to.
struct Hub {
    /// Of these each is answered by a thread of its own.
    at_once: &'static [u8],
    /// These say whether anybody has waited for that.
    answers: Mutex<Vec<JoinHandle<bool>>>,
    /// The others lie here.
    kept: Mutex<Vec<(Arc<Mailbox>, usize)>>,
}

impl Hub {
    fn answering(at_once: &'static [u8]) -> Arc<Self> {
        let (answers, kept) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        Arc::new(Self { at_once, answers, kept })
    }

    fn take(&self, of: Arc<Mailbox>, byte: u8, number: usize) {
        if !self.at_once.contains(&byte) {
            self.kept.lock().push((of, number));
            return;
        }
        let answer = entry(if byte == b's' { b"S" } else { b"T" });
        let thread = loom::thread::spawn(move || of.answer(number, Some(answer)));
        self.answers.lock().push(thread);
    }

    /// Whether anybody has waited for the answers that had a thread.
    fn join(&self) -> Vec<bool> {
        let answers = std::mem::take(&mut *self.answers.lock());
        answers.into_iter().map(|thread| thread.join().expect("it returns")).collect()
    }

    /// Answers the others. Whether anybody has waited for that.
    fn answer_kept(&self) -> Vec<bool> {
        let kept = std::mem::take(&mut *self.kept.lock());
        kept.into_iter().map(|(of, number)| of.answer(number, Some(entry(b"K")))).collect()
    }
}

/// A message whose reply may be deferred; continued, it is [`CONTINUED`].
const LATER: u8 = b'd';
const CONTINUED: u8 = b'D';

/// What happens to tickets.
struct Desk {
    /// Each of the first has a thread of its own, which says whether it has resumed it.
    used: Mutex<Vec<JoinHandle<bool>>>,
    /// The others lie here.
    kept: Mutex<Vec<Ticket>>,
    used_max: usize,
    use_it: fn(Ticket) -> bool,
}

impl Desk {
    fn new(used_max: usize, use_it: fn(Ticket) -> bool) -> Arc<Self> {
        let (used, kept) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        Arc::new(Self { used, kept, used_max, use_it })
    }

    fn take(&self, ticket: Ticket) {
        let mut used = self.used.lock();
        if used.len() < self.used_max {
            let use_it = self.use_it;
            used.push(loom::thread::spawn(move || use_it(ticket)));
        } else {
            self.kept.lock().push(ticket);
        }
    }

    /// Whether the tickets were resumed that had a thread.
    fn join(&self) -> Vec<bool> {
        let used = std::mem::take(&mut *self.used.lock());
        used.into_iter().map(|thread| thread.join().expect("it returns")).collect()
    }
}

impl Answer {
    fn new(replies: bool) -> (Self, Arc<Mutex<Vec<u8>>>) {
        let handled = Arc::new(Mutex::new(Vec::new()));
        let own = Arc::clone(&handled);
        (Self { handled: own, replies, pace: Pace::Quick, desk: None, hub: None }, handled)
    }

    /// A handler that defers.
    fn deferring(desk: &Arc<Desk>) -> (Self, Arc<Mutex<Vec<u8>>>) {
        let (quick, handled) = Self::new(false);
        (Self { desk: Some(Arc::clone(desk)), ..quick }, handled)
    }

    /// A handler that submits, and replies to what it does not.
    fn submitting(hub: &Arc<Hub>) -> Self {
        Self { hub: Some(Arc::clone(hub)), ..Self::new(true).0 }
    }

    /// A handler that may block: what is answered before is handed over first.
    fn slow() -> (Self, Arc<Mutex<Vec<u8>>>) {
        let (quick, handled) = Self::new(true);
        (Self { pace: Pace::Slow, ..quick }, handled)
    }
}

impl Serve for Answer {
    fn find(&self, _: u16) -> Found {
        Found { pace: self.pace, place: None }
    }

    fn serve(
        &self,
        _: Found,
        message: &Message<'_>,
        _: &mut Option<Box<Session>>,
        replies: &mut Batch,
    ) -> Served {
        let [_, byte] = message.opened.code.to_be_bytes();
        self.handled.lock().push(byte);
        if let Some(desk) = self.desk.as_ref().filter(|_| byte == LATER) {
            desk.take(message.mailbox.defer(&message.opened).expect("there is a place"));
            return Served::Deferred;
        }
        if let Some(hub) = self.hub.as_ref().filter(|_| SUBMITTED.contains(&byte)) {
            let (hub, of) = (Arc::clone(hub), Arc::clone(message.mailbox));
            message.mailbox.submit(&message.opened, 1, move |number| hub.take(of, byte, number));
            return Served::Submitted;
        }
        if self.replies {
            message.protocol.reply(message.opened.code, &[], None, replies).expect("short");
        }
        Served::Answered
    }

    fn resume(
        &self,
        value: Box<dyn Any + Send>,
        message: &Message<'_>,
        _: &mut Option<Box<Session>>,
        _: &mut Batch,
    ) -> Served {
        assert_eq!(message.opened.code, u16::from(LATER));
        let what = *value.downcast::<u8>().expect("what it was resumed with");
        self.handled.lock().push(what);
        if what == LATER {
            // Its place of the only one is free again.
            let desk = self.desk.as_ref().expect("it has resumed it");
            desk.take(message.mailbox.defer(&message.opened).expect("there is a place"));
            return Served::Deferred;
        }
        Served::Answered
    }

    fn suspect(&self, _: &mut dyn Iterator<Item = u16>, _: Duration) {
        unreachable!("a model has no time")
    }

    fn record(&self, _: Found, _: Duration) {
        unreachable!("a model has no time")
    }

    fn connected(&self, _: &Arc<Mailbox>, _: &mut Batch) -> Result<Box<Session>, Cause> {
        self.handled.lock().push(CONNECTED);
        let value = Box::new(Arc::clone(&self.handled));
        Ok(Box::new(Session { value, is_admitted: true, dialect: 0 }))
    }

    fn closed(&self, _: &Arc<Mailbox>, session: Option<Box<Session>>, _: Cause) {
        assert!(session.is_some(), "what it was given at its begin");
        self.handled.lock().push(CLOSED);
    }
}

/// Bounds that nothing comes near.
const WIDE: Limits = Limits {
    inbox_messages_max: 100,
    inbox_bytes_max: 10_000,
    inbox_total_bytes_max: 10_000,
    outbox_bytes_max: 10_000,
    outbox_total_bytes_max: 10_000,
    slow_reader: SlowReader::DropNewest,
    deferred_max: 1,
};

/// One connection and the lists of its worker.
struct World {
    engine: Arc<Engine>,
    mailbox: Arc<Mailbox>,
    socket: Arc<TightSocket>,
    counters: ThreadCounters,
}

impl World {
    fn new(limits: Limits, socket: Arc<TightSocket>) -> Self {
        let protocols = vec![Arc::new(OneByte) as Arc<dyn Protocol>];
        let pushers = SharedCounters::detached();
        let engine = Engine::new(&limits, Semaphore::new(0), protocols, pushers);
        let engine = Arc::new(engine.expect("a model"));
        let connected_at = Moment::now();
        let names = Names { id: 1, token: 1, peer: Peer::Unix, listener: 0, connected_at };
        let sends = Arc::clone(&socket) as Arc<dyn Socket>;
        let mailbox = Arc::new(Mailbox::new(names, sends, Arc::clone(&engine)));
        Self { engine, mailbox, socket, counters: ThreadCounters::detached() }
    }

    fn send_thread(&self) -> JoinHandle<()> {
        let engine = Arc::clone(&self.engine);
        loom::thread::spawn(move || engine.run_send_thread(&ThreadCounters::detached(), ()))
    }

    /// A handler thread, until the engine is stopped. Returns how many turns it had.
    fn handler_thread(&self, serve: Answer) -> JoinHandle<usize> {
        self.spawn_handler(serve, |_, _| true)
    }

    /// A handler thread that ends after this many turns. What it does is the same, and
    /// there are far fewer orders if nobody has to stop it.
    fn turns(&self, serve: Answer, turns: usize) -> JoinHandle<usize> {
        self.spawn_handler(serve, move |had, _| had < turns)
    }

    /// A handler thread that ends when the input has, and all is answered.
    fn turns_until_answered(&self, serve: Answer) -> JoinHandle<usize> {
        self.spawn_handler(serve, |_, mailbox| mailbox.view().stage <= Stage::Answering)
    }

    fn spawn_handler(
        &self,
        serve: Answer,
        goes_on: impl Fn(usize, &Mailbox) -> bool + 'static,
    ) -> JoinHandle<usize> {
        let engine = Arc::clone(&self.engine);
        loom::thread::spawn(move || {
            let (counters, mut batch) = (ThreadCounters::detached(), Batch::default());
            let mut turns = Turns::new(&serve, &counters, Place::Thread, &mut batch);
            let mut had = 0;
            while let Some(Work::Turn(mailbox)) = engine.next_to_handle() {
                let _ = turns.run(&mailbox, Source::Inbox, Moment::now());
                had += 1;
                if !goes_on(had, &mailbox) {
                    break;
                }
            }
            had
        })
    }

    /// A turn of what is on the run list, or will be, on this thread.
    fn turn_here(&self, serve: &Answer) {
        let Some(Work::Turn(mailbox)) = self.engine.next_to_handle() else { panic!("a turn") };
        let (counters, mut batch) = (ThreadCounters::detached(), Batch::default());
        let mut turns = Turns::new(serve, &counters, Place::Thread, &mut batch);
        let _ = turns.run(&mailbox, Source::Inbox, Moment::now());
    }

    /// A thread of the application.
    fn thread<T: 'static>(&self, body: impl FnOnce(Arc<Mailbox>) -> T + 'static) -> JoinHandle<T> {
        let mailbox = Arc::clone(&self.mailbox);
        loom::thread::spawn(move || body(mailbox))
    }

    /// The connection can carry messages, which the application is told first.
    fn connect(&self) {
        assert_eq!(self.mailbox.connect(false), Received::StartTurn);
        self.mailbox.enqueue();
    }

    /// The loop receives messages and leaves its turn to the handler threads.
    fn receive(&self, bytes: &'static [u8]) {
        if self.mailbox.receive(messages(bytes), &self.counters) == Received::StartTurn {
            self.mailbox.enqueue();
        }
    }

    /// A turn on the loop. Returns how many bytes of its buffer were handled.
    fn turn_on_loop(&self, serve: &Answer, source: Source<'_>) -> usize {
        let mut batch = Batch::default();
        let mut turns = Turns::new(serve, &self.counters, Place::Loop, &mut batch);
        turns.run(&self.mailbox, source, Moment::now()).handled_bytes
    }

    fn end_input(&self) {
        let _ = self.mailbox.end_input(Cause::PeerClosed, None, &self.counters);
    }

    /// The input ends with something that the peer is told behind the replies.
    fn end_input_with_notice(&self) {
        let notice = Notice::Goodbye { reason: Goodbye::Idle, text: "".into() };
        let received = self.mailbox.end_input(Cause::Idle, Some(notice), &self.counters);
        if received == Received::StartTurn {
            self.mailbox.enqueue();
        }
    }

    /// The loop sleeps until it is called, and takes the calls: before it reads a state it
    /// clears the call of each connection that is on the list, and of no other.
    fn await_call(&self) {
        self.engine.calls().waker().wait();
        let mut called = Vec::new();
        self.engine.calls().take(&mut called);
        for token in called {
            assert_eq!(token, 1);
            self.mailbox.clear_call();
        }
    }

    /// The event loop's part: sleeps until it is called, writes the rest at EPOLLOUT,
    /// until all is sent and the connection may be closed.
    fn loop_until_flushed(&self) {
        loop {
            let view = self.mailbox.view();
            if view.blocked.is_some() {
                let _ = self.mailbox.flush_blocked(&self.counters);
            } else if view.stage == Stage::Flushing && view.is_idle {
                return;
            } else {
                self.await_call();
            }
        }
    }

    /// The loop gives the connection up, and closes the socket when it may. Returns
    /// whether it had to wait for that.
    fn abort(&self) -> bool {
        let mut waited = false;
        loop {
            match self.mailbox.abort(Cause::Kicked, &self.counters) {
                Aborted::Over => break,
                Aborted::StartTurn => self.mailbox.enqueue(),
                Aborted::CallFollows => {}
            }
            self.await_call();
            waited = true;
        }
        self.socket.close();
        waited
    }

    /// All threads have ended: nothing is charged, and no list and no waiter keeps the
    /// connection.
    fn assert_is_at_rest(&self) {
        let used = (self.engine.inbox_total().used(), self.engine.outbox_total().used());
        assert_eq!(used, (0, 0));
        assert_eq!(self.engine.deferred().used(), 0);
        assert_eq!(Arc::strong_count(&self.mailbox), 1);
    }
}

fn messages(bytes: &'static [u8]) -> Item {
    Chunk::new(bytes, bytes.len()).into()
}

fn entry(bytes: &'static [u8]) -> Entry {
    Entry::new((bytes.into(), 1))
}
