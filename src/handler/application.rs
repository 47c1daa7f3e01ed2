//! One worker's handlers by code, and what becomes of a message: checked,
//! looked up, handled, answered, or refused with the reason.

use super::own_turn::OwnTurn;
use super::quick::{Pace, Quickness};
use super::stock::{Echo, Ping, Time, Who};
use super::{ConnectionInfo, Handler, Replies, Request};
use crate::send::SendHalf;
use crate::throttle::Throttle;
use bytes::Bytes;
use chappe_wire::{
    CODE_APPLICATION_MAX, CODE_APPLICATION_MIN, CODE_ECHO, CODE_PING, CODE_TIME, CODE_WHO, Code,
    ErrorNumber, Header, first_frame,
};
use parking_lot::Mutex;
use std::any::Any;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The worker a handler runs in.
#[derive(Clone, Copy, Debug)]
pub struct WorkerInfo {
    /// 0 and up; a replacement has the number of the one it replaces.
    pub number: u16,
    /// Process id.
    pub pid: i32,
    /// Counts reloads, from 1.
    pub generation: u64,
}

/// Where a message comes from.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// Who the peer is.
    pub info: &'a ConnectionInfo,
    /// The way back to it.
    pub send: &'a Arc<SendHalf>,
}

/// Messages, whole and end to end, that are to be handled one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Messages<'a> {
    /// What is left of them.
    pub bytes: &'a [u8],
    /// What they are a part of; `None`: they lie in a buffer that is about to be used
    /// for something else.
    pub chunk: Option<SharedChunk<'a>>,
}

/// An allocation that received messages share.
#[derive(Clone, Copy, Debug)]
pub struct SharedChunk<'a> {
    /// The bytes.
    pub bytes: &'a Bytes,
    /// Its size, as allocated.
    pub allocated: usize,
}

/// What a turn does with the next message of a connection. A turn knows chunks
/// of messages and no protocol; this is where a protocol is.
pub trait Serve: Send + Sync {
    /// Who handles the first of these messages.
    fn find(&self, messages: &[u8]) -> Found;

    /// These messages, whole and end to end, took long for their number: the quick
    /// handlers among theirs are doubted.
    fn doubt(&self, messages: &[u8]);

    /// What a call of this handler took; told while it is doubted.
    ///
    /// True if it is not taken for quick any more from now on.
    fn took(&self, found: Found, time: Duration) -> bool;

    /// Takes off the first message and handles it. `found` is who was found for it.
    fn serve(
        &self,
        found: Found,
        origin: Origin<'_>,
        messages: &mut Messages<'_>,
        replies: &mut Replies,
    ) -> Served;
}

/// Who handles a message.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Where it may run.
    pub pace: Pace,
    /// Its place among the handlers of [`Serve`]; `None` if there is none.
    pub place: Option<usize>,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// It was handled.
    Answered,
    /// The connection stays open: no handler has this code.
    UnknownCode,
    /// The connection stays open: the handler returned an error.
    Failed,
    /// To be closed after the replies: the checksum was wrong.
    BadChecksum,
    /// To be closed after the replies: the handler panicked.
    Panicked,
}

/// The handlers of an application, by message code.
#[derive(Clone, Default)]
pub struct Handlers {
    by_code: Vec<(Code, Arc<dyn Handler>)>,
}

impl Handlers {
    /// Registers a handler of an application.
    ///
    /// # Panics
    /// On a code outside of 16..=65279 and on a code that has one already: both
    /// are mistakes in the program, found when it starts.
    pub fn add(&mut self, code: Code, handler: Arc<dyn Handler>) {
        assert!(
            (CODE_APPLICATION_MIN..=CODE_APPLICATION_MAX).contains(&code),
            "message code {code} belongs to the server, applications have \
             {CODE_APPLICATION_MIN}..={CODE_APPLICATION_MAX}"
        );
        self.insert(code, handler);
    }

    fn insert(&mut self, code: Code, handler: Arc<dyn Handler>) {
        match self.by_code.binary_search_by_key(&code, |(code, _)| *code) {
            Ok(_) => panic!("message code {code} has a handler already"),
            Err(at) => self.by_code.insert(at, (code, handler)),
        }
    }
}

impl std::fmt::Debug for Handlers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.by_code.iter().map(|(code, _)| code)).finish()
    }
}

/// How many panics are written out in ten seconds.
const PANICS_TOLD: u32 = 5;

/// The application of one worker: its handlers and the stock ones.
#[derive(Debug)]
pub struct Application {
    /// By code.
    handlers: Vec<Registered>,
    /// Over all handler threads: what one message does it does again.
    panics: Mutex<Throttle>,
}

struct Registered {
    code: Code,
    handler: Arc<dyn Handler>,
    quickness: Quickness,
}

impl std::fmt::Debug for Registered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Registered").field(&self.code).field(&self.quickness).finish()
    }
}

impl Application {
    /// Adds the stock handlers to those of the application.
    #[must_use]
    pub fn new(mut handlers: Handlers, worker: WorkerInfo) -> Self {
        handlers.insert(CODE_PING, Arc::new(Ping));
        handlers.insert(CODE_ECHO, Arc::new(Echo));
        handlers.insert(CODE_TIME, Arc::new(Time));
        handlers.insert(CODE_WHO, Arc::new(Who(worker)));
        let register = |(code, handler): (Code, Arc<dyn Handler>)| {
            let quickness = Quickness::new(handler.is_quick());
            Registered { code, handler, quickness }
        };
        let handlers = handlers.by_code.into_iter().map(register).collect();
        Self { handlers, panics: Mutex::new(Throttle::new(PANICS_TOLD)) }
    }

    fn place_of(&self, code: Code) -> Option<usize> {
        self.handlers.binary_search_by_key(&code, |registered| registered.code).ok()
    }
}

impl Serve for Application {
    fn find(&self, messages: &[u8]) -> Found {
        let place = Header::read(messages).and_then(|header| self.place_of(header.code));
        // To say that a code has no handler is quick.
        let pace = place.map_or(Pace::Quick, |place| self.handlers[place].quickness.pace());
        Found { pace, place }
    }

    fn doubt(&self, mut messages: &[u8]) {
        let mut places = BTreeSet::new();
        while let Some((header, _)) = first_frame(messages) {
            places.extend(self.place_of(header.code));
            messages = &messages[usize::from(header.length)..];
        }
        let now = Instant::now();
        for place in places {
            self.handlers[place].quickness.doubt(now);
        }
    }

    fn took(&self, found: Found, time: Duration) -> bool {
        let Some(place) = found.place else { return false };
        let Registered { code, quickness, .. } = &self.handlers[place];
        let is_demoted = quickness.took(time, Instant::now());
        if is_demoted {
            log::warn!(
                "the handler of a code says that it is quick and is not, its messages go to \
                 the handler threads from now on code={code} took_us={}",
                time.as_micros()
            );
        }
        is_demoted
    }

    fn serve(
        &self,
        found: Found,
        origin: Origin<'_>,
        messages: &mut Messages<'_>,
        replies: &mut Replies,
    ) -> Served {
        let (header, body) = first_frame(messages.bytes).expect("the loop cut whole frames");
        messages.bytes = &messages.bytes[usize::from(header.length)..];
        let code = header.code;
        if !header.verify(body) {
            let text = format!("the body's CRC-32 is not {:08x}", header.crc32);
            replies.send_error(ErrorNumber::BadChecksum, code, &text);
            return Served::BadChecksum;
        }
        let Some(place) = found.place else {
            let text = format!("no handler for code {code}");
            replies.send_error(ErrorNumber::UnknownCode, code, &text);
            return Served::UnknownCode;
        };
        let Registered { handler, .. } = &self.handlers[place];
        let request = Request::new(code, body, messages.chunk, origin);
        let id = origin.info.id;
        let mark = replies.mark();
        // A handler's broken state behind a panic is the handler's to fear;
        // ours are the replies, and these are rewound.
        let outcome = {
            let _turn = OwnTurn::begin(id);
            replies.set_request(Some((body, header.crc32)));
            let outcome = catch_unwind(AssertUnwindSafe(|| handler.handle(&request, replies)));
            replies.set_request(None);
            replies.take_pushes();
            outcome
        };
        match outcome {
            Ok(Ok(())) => Served::Answered,
            Ok(Err(error)) => {
                replies.rewind(mark);
                replies.send_error(ErrorNumber::HandlerFailed, code, &error.to_string());
                log::debug!("conn={id} handler failed: {error} code={code}");
                Served::Failed
            }
            Err(panic) => {
                replies.rewind(mark);
                replies.send_error(ErrorNumber::HandlerFailed, code, "the handler panicked");
                let text = panic_text(&*panic);
                if let Some(held) = self.panics.lock().admit(Instant::now()) {
                    log::error!("conn={id} handler panicked: {text} code={code}{held}");
                }
                Served::Panicked
            }
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

#[cfg(all(test, not(loom)))]
pub(super) mod tests {
    use super::*;
    use crate::handler::{HandlerError, Outcome, Peer};
    use crate::send::sink;
    use chappe_wire::{CODE_ERROR, encode, parse_notice, split_first};

    fn application() -> Application {
        let mut handlers = Handlers::default();
        let twice = |request: &Request<'_>, replies: &mut Replies| -> Outcome {
            replies.send(16, request.body())?;
            replies.send(16, request.body())
        };
        let fails = |_: &Request<'_>, replies: &mut Replies| -> Outcome {
            replies.send(17, b"half an answer")?;
            Err(HandlerError::new("out of ink"))
        };
        let panics = |_: &Request<'_>, replies: &mut Replies| -> Outcome {
            replies.send(18, b"half an answer")?;
            panic!("planned by the test");
        };
        handlers.add(16, Arc::new(twice));
        handlers.add(17, Arc::new(fails));
        handlers.add(18, Arc::new(panics));
        Application::new(handlers, WorkerInfo { number: 2, pid: 77, generation: 1 })
    }

    /// A connection whose peer takes everything.
    pub(in crate::handler) struct TestPeer {
        info: ConnectionInfo,
        send: Arc<SendHalf>,
    }

    impl TestPeer {
        pub(in crate::handler) fn origin(&self) -> Origin<'_> {
            Origin { info: &self.info, send: &self.send }
        }
    }

    pub(in crate::handler) fn peer(id: u64) -> TestPeer {
        let peer = Peer::Tcp(([127, 0, 0, 1], 40000).into());
        TestPeer { info: ConnectionInfo { id, peer }, send: sink::send_half(id) }
    }

    fn serve(chunk: &Bytes) -> (Served, Vec<(Code, Vec<u8>)>) {
        let peer = peer(9);
        let mut replies = Replies::of_turn();
        let mut messages = Messages { bytes: chunk, chunk: None };
        let application = application();
        let found = application.find(chunk);
        let served = application.serve(found, peer.origin(), &mut messages, &mut replies);
        assert!(messages.bytes.is_empty(), "it was one message");
        let (mut encoded, frames) = replies.take();
        let mut sent = vec![];
        while let Some((header, body)) = split_first(&mut encoded) {
            assert!(header.verify(&body));
            sent.push((header.code, body.to_vec()));
        }
        assert_eq!(sent.len(), frames as usize);
        (served, sent)
    }

    fn error_of(replies: &[(Code, Vec<u8>)]) -> ([u16; 2], String) {
        assert_eq!((replies.len(), replies[0].0), (1, CODE_ERROR));
        parse_notice(&replies[0].1).expect("a notice")
    }

    #[test]
    fn stock_codes_answer_as_the_protocol_says() {
        let ping = serve(&encode(0, b"ignored").unwrap());
        assert_eq!(ping, (Served::Answered, vec![(0, vec![])]));
        let echo = serve(&encode(1, b"body").unwrap());
        assert_eq!(echo, (Served::Answered, vec![(1, b"body".to_vec())]));
        let (_, time) = serve(&encode(2, b"").unwrap());
        assert_eq!((time[0].0, time[0].1.len()), (2, 8));
        let (_, who) = serve(&encode(3, b"").unwrap());
        let lines = "worker=2\npid=77\ngeneration=1\nconnection=9\npeer=127.0.0.1:40000\n";
        assert_eq!(who, vec![(3, lines.as_bytes().to_vec())]);
    }

    #[test]
    fn a_handler_may_answer_more_than_once() {
        let (served, replies) = serve(&encode(16, b"x").unwrap());
        assert_eq!((served, replies.len()), (Served::Answered, 2));
    }

    #[test]
    fn errors_take_the_place_of_the_replies_of_their_message() {
        let (served, replies) = serve(&encode(17, b"").unwrap());
        assert_eq!((served, error_of(&replies)), (Served::Failed, ([4, 17], "out of ink".into())));
        let (served, replies) = serve(&encode(18, b"").unwrap());
        let expected = ([4, 18], "the handler panicked".into());
        assert_eq!((served, error_of(&replies)), (Served::Panicked, expected));
        let (served, replies) = serve(&encode(4, b"").unwrap());
        let expected = ([3, 4], "no handler for code 4".into());
        assert_eq!((served, error_of(&replies)), (Served::UnknownCode, expected));
    }

    #[test]
    fn a_wrong_checksum_is_refused_also_on_an_empty_body() {
        let mut frame = encode(0, b"").unwrap().to_vec();
        frame[7] = 1;
        let (served, replies) = serve(&frame.into());
        assert_eq!((served, error_of(&replies).0), (Served::BadChecksum, [2, 0]));
    }

    #[test]
    #[should_panic(expected = "belongs to the server")]
    fn server_codes_are_not_for_applications() {
        Handlers::default().add(15, Arc::new(Ping));
    }

    #[test]
    #[should_panic(expected = "has a handler already")]
    fn a_code_has_one_handler() {
        let mut handlers = Handlers::default();
        handlers.add(16, Arc::new(Ping));
        handlers.add(16, Arc::new(Echo));
    }
}
