//! One worker's handlers by code, and what is done with a message: its checksum is
//! compared, its handler is called, and it is answered or refused with the reason.

use super::frames::{Way, trace};
use super::own_turn::OwnTurn;
use super::quick::Quickness;
use super::stock::Stock;
use super::{Code, Handler, Replies, Request};
use crate::protocol::{
    CODE_APPLICATION_MAX, CODE_APPLICATION_MIN, CODE_ECHO, CODE_PING, CODE_TIME, CODE_WHO,
};
use crate::throttle::Throttle;
use chappe_engine::{Batch, Found, Message, Notice, Pace, Problem, Serve, Served};
use chappe_sys::clock::Moment;
use parking_lot::Mutex;
use std::any::Any;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The worker a handler runs in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkerInfo {
    /// 0 and up; a replacement has the number of the one it replaces.
    pub(crate) number: u16,
    /// Process id.
    pub(crate) pid: i32,
    /// Counts reloads, from 1.
    pub(crate) generation: u64,
}

/// The handlers of an application, by message code.
#[derive(Clone, Default)]
pub(crate) struct Handlers {
    by_code: Vec<(Code, Arc<dyn Handler>)>,
}

impl Handlers {
    /// Registers a handler of an application.
    ///
    /// # Panics
    /// On a code outside of 16..=65279 and on a code that has one already: both
    /// are mistakes in the program, found when it starts.
    pub(crate) fn add(&mut self, code: Code, handler: Arc<dyn Handler>) {
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

/// Panics of handlers that are logged within ten seconds; of further ones only the number is.
const PANICS_LOGGED_MAX: u32 = 5;

/// The application of one worker: its handlers and the stock ones.
pub(crate) struct Application {
    /// By code.
    handlers: Vec<Registered>,
    /// Shared by all handler threads: a message that causes a panic may come again and
    /// again.
    panics: Mutex<Throttle>,
}

struct Registered {
    code: Code,
    handler: Arc<dyn Handler>,
    quickness: Quickness,
}

impl Application {
    /// Adds the stock handlers to those of the application.
    pub(crate) fn new(mut handlers: Handlers, worker: WorkerInfo) -> Self {
        handlers.insert(CODE_PING, Arc::new(Stock::Ping));
        handlers.insert(CODE_ECHO, Arc::new(Stock::Echo));
        handlers.insert(CODE_TIME, Arc::new(Stock::Time));
        handlers.insert(CODE_WHO, Arc::new(Stock::Who(worker)));
        let register = |(code, handler): (Code, Arc<dyn Handler>)| {
            let quickness = Quickness::new(handler.is_quick());
            Registered { code, handler, quickness }
        };
        let handlers = handlers.by_code.into_iter().map(register).collect();
        Self { handlers, panics: Mutex::new(Throttle::new(PANICS_LOGGED_MAX)) }
    }

    fn place_of(&self, code: Code) -> Option<usize> {
        self.handlers.binary_search_by_key(&code, |registered| registered.code).ok()
    }

    fn report_panic(&self, message: &Message<'_>, panic: &(dyn Any + Send)) {
        let held = self.panics.lock().admit(Moment::now());
        let Some(held) = held else { return };
        let (id, code) = (message.mailbox.id(), message.opened.code);
        log::error!(target: "handler.panicked", "conn={id} handler panicked: {} code={code}{held}", panic_text(panic));
    }
}

impl Serve for Application {
    fn find(&self, code: Code) -> Found {
        let place = self.place_of(code);
        // An error reply, for a code without a handler, is quick.
        let pace = place.map_or(Pace::Quick, |place| self.handlers[place].quickness.pace());
        Found { pace, place }
    }

    fn suspect(&self, codes: &mut dyn Iterator<Item = Code>) {
        let places: BTreeSet<usize> = codes.filter_map(|code| self.place_of(code)).collect();
        let now = Instant::now();
        for place in places {
            self.handlers[place].quickness.suspect(now);
        }
    }

    fn record(&self, found: Found, time: Duration) -> bool {
        let Some(place) = found.place else { return false };
        let Registered { code, quickness, .. } = &self.handlers[place];
        let is_demoted = quickness.record(time, Instant::now());
        if is_demoted {
            log::warn!(
                target: "handler.demoted", "the handler of a code says that it is quick and is not, its messages go to \
                 the handler threads from now on code={code} took_us={}",
                time.as_micros()
            );
        }
        is_demoted
    }

    fn serve(&self, found: Found, message: &Message<'_>, batch: &mut Batch) -> Served {
        let opened = message.opened;
        trace(Way::Handled, message.mailbox.id(), opened.code, opened.body);
        if !message.protocol.is_intact(&opened) {
            let text = format!("the body's CRC-32 is not {:08x}", opened.checksum);
            refuse(message, Problem::BadChecksum, text, batch);
            return Served::BadChecksum;
        }
        let Some(place) = found.place else {
            let text = format!("no handler for code {}", opened.code);
            refuse(message, Problem::UnknownCode, text, batch);
            return Served::UnknownCode;
        };
        let handler = &*self.handlers[place].handler;
        let mut replies = Replies::new(batch, message.protocol, Some(opened));
        let outcome = {
            let _turn = OwnTurn::begin(message.mailbox.id());
            let request = Request { message };
            // A panic may leave the handler's own data inconsistent, which is the handler's
            // concern. The replies are ours, and they are taken back.
            catch_unwind(AssertUnwindSafe(|| handler.handle(&request, &mut replies)))
        };
        match outcome {
            Ok(Ok(())) => {
                replies.take_pushes();
                Served::Answered
            }
            Ok(Err(error)) => {
                let text = error.to_string();
                let (id, code) = (message.mailbox.id(), opened.code);
                log::debug!(target: "handler.failed", "conn={id} handler failed: {text} code={code}");
                refuse(message, Problem::HandlerFailed, text, replies.take_back());
                Served::Failed
            }
            Err(panic) => {
                self.report_panic(message, &*panic);
                let text = "the handler panicked".to_owned();
                refuse(message, Problem::HandlerFailed, text, replies.take_back());
                Served::Panicked
            }
        }
    }
}

/// Appends an error for the peer, in the place of the replies to a message.
fn refuse(message: &Message<'_>, problem: Problem, text: String, batch: &mut Batch) {
    let (id, code) = (message.mailbox.id(), message.opened.code);
    log::trace!(target: "conn.error", "conn={id} error answered problem={problem:?} code={code}: {text}");
    let notice = Notice::Error { problem, code: Some(code), text: text.into() };
    message.protocol.notice(&notice, batch);
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

#[cfg(test)]
mod tests {
    use super::super::tests::TestPeer;
    use super::*;
    use crate::handler::{HandlerError, Outcome};
    use crate::protocol::encode;

    fn application() -> Application {
        let mut handlers = Handlers::default();
        let twice = |request: &Request<'_>, replies: &mut Replies<'_>| -> Outcome {
            replies.send(16, request.body())?;
            replies.send(16, request.body())
        };
        let fails = |_: &Request<'_>, replies: &mut Replies<'_>| -> Outcome {
            replies.send(17, b"half an answer")?;
            Err(HandlerError::new("out of ink"))
        };
        let panics = |_: &Request<'_>, replies: &mut Replies<'_>| -> Outcome {
            replies.send(18, b"half an answer")?;
            panic!("planned by the test");
        };
        handlers.add(16, Arc::new(twice));
        handlers.add(17, Arc::new(fails));
        handlers.add(18, Arc::new(panics));
        Application::new(handlers, WorkerInfo { number: 2, pid: 77, generation: 1 })
    }

    fn serve(bytes: &[u8]) -> (Served, Vec<(Code, Vec<u8>)>) {
        let (peer, mut batch, application) = (TestPeer::new(9), Batch::default(), application());
        let opened = peer.mailbox.protocol().open(bytes).expect("a whole message");
        let found = application.find(opened.code);
        let served = application.serve(found, &peer.message(opened, None), &mut batch);
        (served, peer.answers(&mut batch))
    }

    /// The two numbers and the text of an error.
    fn error_of(replies: &[(Code, Vec<u8>)]) -> ([u8; 4], &str) {
        let [(65_535, body)] = replies else { panic!("an error: {replies:?}") };
        let (numbers, text) = body.split_first_chunk().expect("two numbers");
        (*numbers, std::str::from_utf8(text).expect("text"))
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
        assert_eq!((served, error_of(&replies)), (Served::Failed, ([0, 4, 0, 17], "out of ink")));
        let (served, replies) = serve(&encode(18, b"").unwrap());
        let expected = ([0, 4, 0, 18], "the handler panicked");
        assert_eq!((served, error_of(&replies)), (Served::Panicked, expected));
        let (served, replies) = serve(&encode(4, b"").unwrap());
        let expected = ([0, 3, 0, 4], "no handler for code 4");
        assert_eq!((served, error_of(&replies)), (Served::UnknownCode, expected));
    }

    #[test]
    fn a_wrong_checksum_is_refused_also_on_an_empty_body() {
        let mut frame = encode(0, b"").unwrap().to_vec();
        frame[7] = 1;
        let (served, replies) = serve(&frame);
        assert_eq!((served, error_of(&replies).0), (Served::BadChecksum, [0, 2, 0, 0]));
    }

    #[test]
    #[should_panic(expected = "belongs to the server")]
    fn server_codes_are_not_for_applications() {
        Handlers::default().add(15, Arc::new(Stock::Ping));
    }

    #[test]
    #[should_panic(expected = "has a handler already")]
    fn a_code_has_one_handler() {
        let mut handlers = Handlers::default();
        handlers.add(16, Arc::new(Stock::Ping));
        handlers.add(16, Arc::new(Stock::Echo));
    }
}
