//! Topics, as a worker has them: what its connections ask for goes to the hub, and what is
//! published comes to its subscribers. The rules are those of `chappe-topics`; here they meet
//! connections, threads and a protocol.
//!
//! ```text
//! turn ── Topics::publish, ask ──▶ outlet, wishes ── post ──▶ the hub, the send thread
//! send thread ── Speaker::look ──▶ inlet ──▶ Mailbox::answer, Mailbox::push
//! ```

mod kept;
mod speaker;

use chappe_engine::{Engine, Entry, ITEM_COST, Mailbox, Notice, Opened, Problem, TopicKind};
use chappe_shm::{Count, Counter, SharedCounters};
use chappe_sys::Semaphore;
use chappe_topics::{
    Board, Full, Kind, Life, Listed, Mark, Message, Outlet, ReplayLimits, Ring, Submitted,
    TableLimits, Topic, TopicName, Wish,
};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::Config;
use kept::Kept;
pub(crate) use kept::{Afterwards, Publish};
pub(crate) use speaker::Speaker;

/// What a worker's life is called: by the master, in the log and in every record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LifeId(pub(crate) u64);

impl LifeId {
    /// Of the nth life that there was, in this place of the zone.
    pub(crate) fn new(nth: u64, place: usize) -> Self {
        Self(nth * chappe_shm::SLOTS as u64 + place as u64)
    }

    /// Its place in the zone.
    pub(crate) fn place(self) -> usize {
        usize::try_from(self.0 % chappe_shm::SLOTS as u64).unwrap_or(0)
    }
}

/// A worker's part of the topics.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) id: LifeId,
    pub(crate) life: Life,
    /// Which it cannot write.
    pub(crate) ring: Ring,
    pub(crate) board: Board,
}

/// Who waits for an answer: a connection, and the number of its wait.
#[derive(Debug)]
pub(crate) struct Waiter {
    mailbox: Arc<Mailbox>,
    number: usize,
    /// What it takes while it waits for room, whether the connection is still there or not.
    charge: Option<Charge>,
}

/// Bytes of the inbox total. They go back once, when this is dropped.
#[derive(Debug)]
struct Charge {
    engine: Arc<Engine>,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.engine.inbox_total().release(self.bytes);
    }
}

/// What of a list a connection is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tells {
    Names,
    /// With their subscribers.
    Counts,
    /// The one number of it.
    Patterns,
}

/// What a request of a connection is answered by.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    /// The number of its wait.
    number: usize,
    /// Of the message that has asked.
    code: u16,
    /// All subscriptions of this kind are to end.
    all: Option<TopicKind>,
    /// All are to end, of any kind.
    is_end: bool,
    /// What of a list is told.
    tells: Tells,
    /// Of a handler: all its wishes are answered together.
    kept: Option<Arc<Kept>>,
}

/// What the send thread is to do for a connection.
#[derive(Debug)]
enum Request {
    Wish(Arc<Mailbox>, Wish, Question),
    /// Of a handler that has published before: once that is delivered.
    WishBehind(Mark, Arc<Mailbox>, Wish, Question),
    /// Of the hub.
    List(Arc<Mailbox>, Listed, Question),
    /// It is gone.
    Gone(u64),
}

fn kind_of(kind: Kind) -> TopicKind {
    match kind {
        Kind::Topic => TopicKind::Topic,
        Kind::Pattern => TopicKind::Pattern,
        Kind::Shard => TopicKind::Shard,
    }
}

/// The topics of a worker, for all of its threads.
#[derive(Debug)]
pub(crate) struct Topics {
    outlet: Arc<Outlet<Waiter>>,
    /// Each connection has those of the messages that wait together, and one for its end.
    requests: Mutex<VecDeque<Request>>,
    has_requests: AtomicBool,
    hub: Semaphore,
    engine: Arc<Engine>,
    counters: SharedCounters,
    epoch: u64,
    /// Of each listener: its clients may subscribe, they may publish.
    rights: Vec<(bool, bool)>,
}

impl Topics {
    /// With what its send thread needs.
    ///
    /// # Errors
    /// No hub has written this ring.
    pub(crate) fn new(
        joined: Joined,
        config: &Config,
        engine: &Arc<Engine>,
        counters: SharedCounters,
    ) -> std::io::Result<(Arc<Self>, Speaker)> {
        let Joined { id, life, ring, board } = joined;
        life.note_process(std::process::id());
        let outlet = Outlet::new(&life);
        let limits = TableLimits {
            per_connection_max: config.topics.max_per_connection as usize,
            patterns_per_connection_max: config.topics.max_patterns_per_connection as usize,
            bytes_max: config.topics.total_max_bytes,
            names_max: config.topics.max_topics as usize,
        };
        let replays = ReplayLimits {
            each_bytes: config.send.outbox_max_bytes / 2,
            total_bytes: config.send.outbox_total_max_bytes / 2,
        };
        let place = u32::try_from(id.place()).unwrap_or(0);
        let inlet = chappe_topics::Inlet::new(
            (id.0, place),
            &life,
            &outlet,
            ring.broadcast(),
            limits,
            replays,
        )
        .map_err(std::io::Error::other)?;
        let topics = Arc::new(Self {
            outlet,
            requests: Mutex::new(VecDeque::new()),
            has_requests: AtomicBool::new(false),
            hub: board.semaphore(),
            engine: Arc::clone(engine),
            counters,
            epoch: ring.epoch(),
            rights: config.listen.iter().map(crate::config::Listen::topic_rights).collect(),
        });
        let speaker = Speaker::new(Arc::clone(&topics), inlet);
        Ok((topics, speaker))
    }

    /// The worker is about to end.
    pub(crate) fn leave(&self) {
        self.outlet.leave(|| self.hub.post());
    }

    /// Whether clients of the listener in this place may subscribe, and publish.
    pub(crate) fn rights(&self, listener: usize) -> (bool, bool) {
        self.rights.get(listener).copied().unwrap_or((false, false))
    }

    /// A client may not what it has asked for: it gets error 10.
    pub(crate) fn count_denied(&self) {
        self.counters.add(Counter::TopicsDenied, 1);
    }

    /// The offset that a client resumes from, which it has with this epoch.
    pub(crate) fn place(&self, epoch: u64, offset: u64) -> u64 {
        // Of another log nothing is here.
        if epoch == self.epoch { offset } else { u64::MAX }
    }

    /// Publishes for the service, without an answer.
    ///
    /// # Errors
    /// [`Full`]: it was not published.
    pub(crate) fn publish(&self, message: Message<'_>) -> Result<(), Full> {
        self.outlet.publish(message, || self.post())
    }

    /// Publishes for a client. The message that has asked for it waits, until it is answered or,
    /// without an answer, until there is room.
    pub(crate) fn submit(
        self: &Arc<Self>,
        mailbox: &Arc<Mailbox>,
        opened: &Opened<'_>,
        topic: Topic<'_>,
        payload: &[u8],
        is_awaited: bool,
    ) {
        let (topics, of, code) = (Arc::clone(self), Arc::clone(mailbox), opened.code);
        let (topic, payload): (TopicName, Box<[u8]>) = (topic.to_name(), payload.into());
        mailbox.submit(opened, 1, move |number| {
            let message = Message { code: 0, topic: topic.topic(), body: &payload };
            let waiter = Waiter { mailbox: of, number, charge: None };
            let bytes = payload.len() + ITEM_COST;
            let may_wait = |waiter: &mut Waiter| {
                waiter.charge = topics.charge(bytes);
                waiter.charge.is_some()
            };
            let post = || topics.post();
            match topics.outlet.submit(message, is_awaited, waiter, may_wait, post) {
                Submitted::Awaited | Submitted::Spilled => {}
                Submitted::Taken(Waiter { mailbox, number, .. }) => {
                    _ = mailbox.answer(number, None)
                }
                Submitted::Refused(Waiter { mailbox, number, .. }) => {
                    let text = "too much waits to be published".into();
                    let (problem, code) = (Problem::BusyInside, Some(code));
                    let notice = Notice::Error { problem, code, text };
                    let notice = mailbox.protocol().notice_alone(&notice);
                    mailbox.answer(number, notice.map(Entry::new));
                }
            }
        });
    }

    /// Of the inbox total, if there is room.
    fn charge(&self, bytes: usize) -> Option<Charge> {
        let engine = Arc::clone(&self.engine);
        engine.inbox_total().try_charge(bytes).then_some(Charge { engine, bytes })
    }

    /// Has the send thread carry out wishes, each of which is answered. The message that has asked
    /// for them waits.
    pub(crate) fn ask(
        self: &Arc<Self>,
        mailbox: &Arc<Mailbox>,
        opened: &Opened<'_>,
        wishes: Vec<Wish>,
    ) {
        let (topics, of, code) = (Arc::clone(self), Arc::clone(mailbox), opened.code);
        mailbox.note_listens();
        let answers = u32::try_from(wishes.len()).unwrap_or(u32::MAX);
        mailbox.submit(opened, answers, move |number| {
            let requests = wishes.into_iter().map(|wish| {
                let all = match wish {
                    Wish::UnsubscribeAll(kind) => kind.map(kind_of),
                    Wish::Subscribe { .. } | Wish::Unsubscribe(_) => None,
                };
                let is_end = wish == Wish::UnsubscribeAll(None);
                let question =
                    Question { number, code, all, is_end, tells: Tells::Names, kept: None };
                Request::Wish(Arc::clone(&of), wish, question)
            });
            topics.request(requests);
        });
    }

    /// Publishes what a handler was promised that it would be.
    pub(crate) fn publish_kept(&self, publish: &Publish) {
        if self.publish(publish.message()).is_err() {
            log::warn!(target: "topics.publish_lost", "a message of the service finds no room code={}", publish.code);
            self.counters.add(Counter::MessagesDropped, 1);
        }
    }

    /// Has the send thread carry out what a handler has asked for its connection, behind what it
    /// has published already. The message that it handles waits, and is answered once all is done.
    pub(crate) fn ask_for_service(
        self: &Arc<Self>,
        mailbox: &Arc<Mailbox>,
        opened: &Opened<'_>,
        wishes: Vec<Wish>,
        has_published: bool,
        afterwards: Afterwards,
    ) {
        let (topics, of, code) = (Arc::clone(self), Arc::clone(mailbox), opened.code);
        let mark = has_published.then(|| self.outlet.mark());
        mailbox.note_listens();
        let answers = 1 + u32::try_from(afterwards.publishes.len()).unwrap_or(u32::MAX - 1);
        let kept = Kept::new(self, wishes.len(), afterwards);
        mailbox.submit(opened, answers, move |number| {
            let requests = wishes.into_iter().map(|wish| {
                let kept = Some(Arc::clone(&kept));
                let question =
                    Question { number, code, all: None, is_end: false, tells: Tells::Names, kept };
                match mark {
                    Some(mark) => Request::WishBehind(mark, Arc::clone(&of), wish, question),
                    None => Request::Wish(Arc::clone(&of), wish, question),
                }
            });
            topics.request(requests);
        });
    }

    /// Has the hub asked for a list of names.
    pub(crate) fn list(
        self: &Arc<Self>,
        mailbox: &Arc<Mailbox>,
        opened: &Opened<'_>,
        wanted: Listed,
        tells: Tells,
    ) {
        let (topics, of, code) = (Arc::clone(self), Arc::clone(mailbox), opened.code);
        mailbox.submit(opened, 1, move |number| {
            let question = Question { number, code, all: None, is_end: false, tells, kept: None };
            topics.request([Request::List(of, wanted, question)]);
        });
    }

    /// A connection that has asked for something is gone.
    pub(crate) fn gone(&self, id: u64) {
        self.request([Request::Gone(id)]);
    }

    fn request(&self, requests: impl IntoIterator<Item = Request>) {
        self.requests.lock().extend(requests);
        // Release: who sees it sees the request.
        if !self.has_requests.swap(true, Ordering::AcqRel) {
            self.engine.post_sender();
        }
    }

    fn next_request(&self) -> Option<Request> {
        self.requests.lock().pop_front()
    }

    /// Wakes the hub.
    fn post(&self) {
        // Refused if somebody has written over it: the hub then looks by itself.
        _ = self.hub.checked_post();
    }
}
