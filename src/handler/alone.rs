//! One message for one handler, with neither a process nor a socket: what
//! `testing::call` does.

use super::call::{Call, Deferral};
use super::client::Client;
use super::outcome::Failure;
use super::own_turn::OwnTurn;
use super::routes::Routes;
use super::stock;
use super::topics::{Asks, OfWorker};
use super::worker::Worker;
use super::{Code, HandlerError, Service};
use crate::protocol;
use crate::topics::Publish;
use chappe_engine::sync::Semaphore;
use chappe_engine::{
    self as engine, Batch, Engine, Limits, Mailbox, Names, Peer, SlowReader, Socket,
};
use chappe_shm::{AppFigures, SharedCounters};
use chappe_sys::clock::Moment;
use chappe_topics::Wish;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// As much of everything as a default configuration gives one connection, and more.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// The default of `frame.max_bytes`.
const FRAME_BYTES_MAX: usize = 65_535;

/// What a handler has made of one message. Made by [`crate::testing::call`].
///
/// ```
/// # use chappe::*;
/// # struct App;
/// # impl Service for App {
/// #     type Config = NoConfig;
/// #     type State = ();
/// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
/// #     fn routes(routes: &mut Routes<Self>) {
/// #         routes.on(16, |_, _, call| call.reply(16, call.body()));
/// #     }
/// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
/// # }
/// let answer = testing::call(&App, &mut (), 16, b"hello"); // code 16 echoes
/// assert_eq!(answer.replies, [(16, b"hello".to_vec())]);
/// assert_eq!((answer.error, answer.closes), (None, None));
/// assert!(!answer.admits && !answer.defers);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// Code and body of each reply, the first one first. What the handler has pushed to the
    /// connection by its [`super::Handle`] stands between them, as it does on the wire. A
    /// handler that fails loses its replies and keeps its pushes.
    pub replies: Vec<(Code, Vec<u8>)>,
    /// What takes the place of the replies of a handler that failed.
    pub error: Option<Refusal>,
    /// It called [`Call::admit`], and did not fail.
    pub admits: bool,
    /// The text of [`Call::close`].
    pub closes: Option<String>,
    /// It has left its reply to a ticket ([`Call::defer`]), and did not fail. The ticket is
    /// void: with the call its connection is gone.
    pub defers: bool,
    /// What it has subscribed the connection to ([`Call::subscribe`]), if it did not fail.
    pub subscribed: Vec<String>,
    /// What it has ended a subscription of ([`Call::unsubscribe`]), if it did not fail.
    pub unsubscribed: Vec<String>,
    /// Topic, code and body of each message that it has published ([`Call::publish`]).
    pub published: Vec<(String, Code, Vec<u8>)>,
}

/// How a handler has failed, with the text that its peer gets.
///
/// ```
/// # use chappe::*;
/// # struct App;
/// # impl Service for App {
/// #     type Config = NoConfig;
/// #     type State = ();
/// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
/// #     fn routes(routes: &mut Routes<Self>) { routes.on(16, parse); }
/// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
/// # }
/// use chappe::testing::Refusal;
///
/// fn parse(_: &App, _: &mut (), call: &mut Call<'_, App>) -> Outcome {
///     let number: u32 = std::str::from_utf8(call.body())?.parse()?;
///     if number > 9 { Err(Deny::close("too much"))? }
///     Ok(())
/// }
///
/// let error = |body: &[u8]| testing::call(&App, &mut (), 16, body).error;
/// assert_eq!(error(b"7"), None);
/// assert_eq!(error(b"x"), Some(Refusal::Failed("invalid digit found in string".to_owned())));
/// assert_eq!(error(b"10"), Some(Refusal::Denied("too much".to_owned())));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Error 10: topics are off, or it is not the peer's topic.
    NotAllowed(String),
    /// Error 4: the connection stays open.
    Failed(String),
    /// Error 8, for a [`super::Deny`]: the connection ends.
    Denied(String),
}

/// A socket that takes everything.
#[derive(Debug)]
struct Sink;

impl Socket for Sink {
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(slices.iter().map(|slice| slice.len()).sum())
    }
}

/// An engine that nothing runs on: what is pushed to others stays queued.
fn engine() -> Arc<Engine> {
    let limits = Limits {
        inbox_messages_max: 1,
        inbox_bytes_max: BYTES_MAX,
        inbox_total_bytes_max: BYTES_MAX,
        outbox_bytes_max: BYTES_MAX,
        outbox_total_bytes_max: BYTES_MAX,
        slow_reader: SlowReader::DropNewest,
        deferred_max: 1,
    };
    let permits: Semaphore = chappe_sys::Semaphore::new(0).expect("a semaphore").into();
    let protocols = protocol::all(FRAME_BYTES_MAX);
    let engine = Engine::new(&limits, permits, protocols, SharedCounters::detached());
    Arc::new(engine.expect("an eventfd"))
}

/// A connection from 127.0.0.1 with an id of its own.
fn mailbox(engine: Arc<Engine>) -> Arc<Mailbox> {
    static NEXT_ID: AtomicU64 = AtomicU64::new(1);
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let peer = Peer::Tcp(([127, 0, 0, 1], 40000).into());
    let names = Names { id, token: id, peer, listener: 0, connected_at: Moment::now() };
    Arc::new(Mailbox::new(names, Arc::new(Sink), engine))
}

fn listeners() -> Arc<[String]> {
    Arc::new(["127.0.0.1:0".to_owned()])
}

/// Worker 0 of generation 1, whose timers never run. It has the counters of the service.
pub(crate) fn worker<S: Service>(config: S::Config) -> Worker<S> {
    let figures = AppFigures::detached(Routes::<S>::of_service().catalog());
    Worker::new(0, 1, config, engine(), figures, OfWorker::Alone)
}

/// A peer for `connected` and `closed`.
pub(crate) fn client() -> Client {
    Client::new(&mailbox(engine()), &listeners())
}

/// Runs the handler of `code`; `None` if there is no such handler.
pub(crate) fn call<S: Service>(
    service: &S,
    worker: &Worker<S>,
    state: &mut S::State,
    code: Code,
    body: &[u8],
) -> Option<Answer> {
    let mut routes = Routes::<S>::of_service();
    stock::add(&mut routes);
    let route = routes.routes.into_iter().find(|route| route.code == code)?;
    let (mailbox, listeners, mut batch) = (mailbox(engine()), listeners(), Batch::default());
    let protocol = mailbox.protocol();
    let bytes = protocol::encode(code, body).expect("a body that a peer can send");
    let opened = protocol.open(&bytes).expect("just encoded");
    let message = engine::Message { opened, mailbox: &mailbox, protocol, chunk: None };
    let mut call = Call::new(&message, worker, &listeners, &mut batch);
    let _turn = OwnTurn::begin(mailbox.id());
    let outcome = (route.handler)(service, state, &mut call);
    let (admits, closes) = (call.admits, call.take_close());
    let defers = call.deferral() == Deferral::Deferred && closes.is_none();
    let error = match outcome {
        Ok(()) => {
            call.replies.take_pushes();
            None
        }
        Err(error) => {
            call.replies.take_back();
            Some(error.into())
        }
    };
    // Denied, it ends for that reason, and without a goodbye.
    let closes = closes.filter(|_| !matches!(error, Some(Refusal::Denied(_))));
    let (admits, defers) = (admits && error.is_none(), defers && error.is_none());
    let Asks { wishes, publishes } = call.take_asks().unwrap_or_default();
    let is_done = error.is_none() && closes.is_none();
    let (subscribed, unsubscribed) = if is_done { names(wishes) } else { Default::default() };
    let published = publishes.into_iter().map(|publish| {
        let Publish { topic, code, body } = publish;
        (topic.topic().as_str().to_owned(), code, body.into_vec())
    });
    Some(Answer {
        published: published.collect(),
        replies: replies(&mailbox, &batch.take().0),
        error,
        admits,
        closes,
        defers,
        subscribed,
        unsubscribed,
    })
}

/// What wishes subscribe to, and what they end.
fn names(wishes: Vec<Wish>) -> (Vec<String>, Vec<String>) {
    let (mut begun, mut ended) = (Vec::new(), Vec::new());
    for wish in wishes {
        match wish {
            Wish::Subscribe { filter, .. } => begun.push(filter.written().into_owned()),
            Wish::Unsubscribe(filter) => ended.push(filter.written().into_owned()),
            Wish::UnsubscribeAll(_) => {}
        }
    }
    (begun, ended)
}

impl From<HandlerError> for Refusal {
    fn from(HandlerError(failure): HandlerError) -> Self {
        match failure {
            Failure::Denied(text) => Self::Denied(text),
            Failure::NotAllowed(text) => Self::NotAllowed(text),
            Failure::Failed(text) | Failure::Full(text) => Self::Failed(text),
        }
    }
}

fn replies(mailbox: &Mailbox, bytes: &[u8]) -> Vec<(Code, Vec<u8>)> {
    let (protocol, mut rest) = (mailbox.protocol(), bytes);
    let next = std::iter::from_fn(|| {
        let opened = protocol.open(rest)?;
        rest = &rest[opened.length..];
        Some((opened.code, opened.body.to_vec()))
    });
    next.collect()
}
