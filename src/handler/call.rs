//! One message, with all that its handler can do about it.

use super::client::Client;
use super::outcome::HandlerError;
use super::replies::Replies;
use super::topics::Asks;
use super::worker::Worker;
use super::{Code, Deferred, Handle, Outcome, Service};
use bytes::Bytes;
use chappe_engine::{self as engine, Batch, Ticket};
use std::cell::OnceCell;
use std::sync::Arc;

/// One received message, checked against its checksum, and the way to answer it.
///
/// Nothing is sent before the handler returns; the replies to neighbouring messages leave
/// together.
///
/// ```
/// # use chappe::*;
/// # struct App;
/// # impl Service for App {
/// #     type Config = NoConfig;
/// #     type State = u32;
/// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
/// #     fn routes(routes: &mut Routes<Self>) { routes.on(16, greet); }
/// #     fn connected(&self, _: &Client) -> Result<u32, Deny> { Ok(0) }
/// # }
/// fn greet(_: &App, greeted: &mut u32, call: &mut Call<'_, App>) -> Outcome {
///     *greeted += 1;
///     let name = std::str::from_utf8(call.body())?; // not UTF-8: error 4
///     call.reply(16, format!("hello {name}").as_bytes())
/// }
///
/// let answer = testing::call(&App, &mut 0, 16, b"Ada");
/// assert_eq!(answer.replies, [(16, b"hello Ada".to_vec())]);
/// let answer = testing::call(&App, &mut 0, 16, b"\xff");
/// assert!(answer.replies.is_empty() && answer.error.is_some());
/// ```
#[derive(Debug)]
pub struct Call<'a, S: Service> {
    worker: &'a Worker<S>,
    listeners: &'a Arc<[String]>,
    pub(super) replies: Replies<'a>,
    aside: OnceCell<Box<Aside>>,
    pub(super) admits: bool,
    /// It has published something at once.
    pub(super) has_published: bool,
}

/// What few calls have: one word to make and to drop while there is nothing.
#[derive(Debug, Default)]
struct Aside {
    client: OnceCell<Client>,
    /// The text of the goodbye, if the handler closes the connection.
    closes: Option<String>,
    deferral: Deferral,
    /// What it asks of topics.
    asks: Option<Asks>,
}

/// Whether the reply to a message is deferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Deferral {
    #[default]
    None,
    /// Its ticket is out.
    Deferred,
    /// Somebody else answers it.
    Submitted,
    /// It should be, but as many are as may.
    Refused,
}

impl<'a, S: Service> Call<'a, S> {
    /// Its replies are appended to `batch`.
    #[inline]
    pub(super) fn new(
        message: &'a engine::Message<'a>,
        worker: &'a Worker<S>,
        listeners: &'a Arc<[String]>,
        batch: &'a mut Batch,
    ) -> Self {
        Self {
            worker,
            listeners,
            replies: Replies::new(batch, message),
            aside: OnceCell::new(),
            admits: false,
            has_published: false,
        }
    }

    /// Whether its handler wants nothing but to answer it.
    #[inline]
    pub(super) fn is_plain(&self) -> bool {
        !self.admits && self.takes_replies() && self.asks().is_none()
    }

    pub(super) fn asks(&self) -> Option<&Asks> {
        self.aside.get().and_then(|aside| aside.asks.as_ref())
    }

    pub(super) fn asks_mut(&mut self) -> &mut Asks {
        self.aside_mut().asks.get_or_insert_default()
    }

    pub(super) fn take_asks(&mut self) -> Option<Asks> {
        self.aside.get_mut()?.asks.take()
    }

    fn takes_replies(&self) -> bool {
        self.aside
            .get()
            .is_none_or(|aside| aside.closes.is_none() && aside.deferral == Deferral::None)
    }

    pub(super) fn closes(&self) -> bool {
        self.aside.get().is_some_and(|aside| aside.closes.is_some())
    }

    pub(super) fn deferral(&self) -> Deferral {
        self.aside.get().map_or(Deferral::None, |aside| aside.deferral)
    }

    fn aside_mut(&mut self) -> &mut Aside {
        _ = self.aside.get_or_init(Box::default);
        self.aside.get_mut().expect("just made")
    }

    /// Somebody else answers: nothing more is to be replied.
    pub(super) fn is_submitted(&mut self) -> Outcome {
        if !self.takes_replies() {
            return Err(HandlerError::new("it is answered already"));
        }
        self.aside_mut().deferral = Deferral::Submitted;
        Ok(())
    }

    /// The text of [`Call::close`].
    pub(super) fn take_close(&mut self) -> Option<String> {
        self.aside.get_mut()?.closes.take()
    }

    /// The message code.
    ///
    /// ```
    /// # use chappe::*;
    /// # struct App;
    /// # impl Service for App {
    /// #     type Config = NoConfig;
    /// #     type State = ();
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
    /// #     fn routes(routes: &mut Routes<Self>) { routes.on(16, echo).on(17, echo); }
    /// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
    /// # }
    /// fn echo(_: &App, _: &mut (), call: &mut Call<'_, App>) -> Outcome {
    ///     call.reply(call.code(), call.body()) // registered for 16 and for 17
    /// }
    /// # assert_eq!(testing::call(&App, &mut (), 17, b"x").replies, [(17, b"x".to_vec())]);
    /// ```
    #[must_use]
    pub fn code(&self) -> Code {
        self.replies.message.opened.code
    }

    /// The body, 0 to 65527 bytes. It may be used while replies are given. A message that was
    /// deferred has it still, in a copy.
    ///
    /// ```
    /// # use chappe::*;
    /// # struct App;
    /// # impl Service for App {
    /// #     type Config = NoConfig;
    /// #     type State = ();
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
    /// #     fn routes(routes: &mut Routes<Self>) { routes.on(16, square); }
    /// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
    /// # }
    /// fn square(_: &App, _: &mut (), call: &mut Call<'_, App>) -> Outcome {
    ///     // Not four bytes: error 4.
    ///     let number = u32::from_be_bytes(call.body().try_into()?);
    ///     call.reply(16, &u64::from(number).pow(2).to_be_bytes())
    /// }
    /// # let answer = testing::call(&App, &mut (), 16, &[0, 0, 0, 3]);
    /// # assert_eq!(answer.replies, [(16, 9_u64.to_be_bytes().to_vec())]);
    /// # assert!(testing::call(&App, &mut (), 16, &[0, 3]).error.is_some());
    /// ```
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        self.replies.message.opened.body
    }

    /// The body, to keep beyond the handler's return. Shares the memory it was
    /// received in, unless that is more than four times as large: then it is
    /// copied, so that a few bytes that are kept do not keep many allocated.
    ///
    /// ```
    /// # use chappe::*;
    /// # struct App;
    /// # impl Service for App {
    /// #     type Config = NoConfig;
    /// #     type State = Vec<bytes::Bytes>;
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
    /// #     fn routes(routes: &mut Routes<Self>) { routes.on(16, note); }
    /// #     fn connected(&self, _: &Client) -> Result<Vec<bytes::Bytes>, Deny> { Ok(Vec::new()) }
    /// # }
    /// fn note(_: &App, notes: &mut Vec<bytes::Bytes>, call: &mut Call<'_, App>) -> Outcome {
    ///     notes.push(call.body_to_keep()); // what `body` returns ends with the call
    ///     call.reply(16, b"")
    /// }
    ///
    /// let mut notes = Vec::new();
    /// testing::call(&App, &mut notes, 16, b"milk");
    /// assert_eq!(notes, ["milk"]);
    /// ```
    #[must_use]
    pub fn body_to_keep(&self) -> Bytes {
        match self.replies.message.chunk {
            Some(chunk) if self.body().len() >= chunk.charged() / 4 => {
                Bytes::from_owner(Arc::clone(chunk.shared())).slice_ref(self.body())
            }
            _ => Bytes::copy_from_slice(self.body()),
        }
    }

    /// The peer that the message came from.
    ///
    /// ```
    /// # use chappe::*;
    /// # struct App;
    /// # impl Service for App {
    /// #     type Config = NoConfig;
    /// #     type State = ();
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
    /// #     fn routes(routes: &mut Routes<Self>) { routes.on(16, whoami); }
    /// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
    /// # }
    /// fn whoami(_: &App, _: &mut (), call: &mut Call<'_, App>) -> Outcome {
    ///     let text = format!("{} from {}", call.client().id(), call.client().peer());
    ///     call.reply(16, text.as_bytes()) // "17 from 127.0.0.1:40000"
    /// }
    /// # let answer = testing::call(&App, &mut (), 16, b"");
    /// # assert!(answer.replies[0].1.ends_with(b" from 127.0.0.1:40000"));
    /// ```
    #[must_use]
    pub fn client(&self) -> &Client {
        let client = &self.aside.get_or_init(Box::default).client;
        client.get_or_init(|| Client::new(self.replies.message.mailbox, self.listeners))
    }

    /// The worker that this runs in.
    ///
    /// ```
    /// # use chappe::*;
    /// # struct App;
    /// # impl Service for App {
    /// #     type Config = NoConfig;
    /// #     type State = ();
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
    /// #     fn routes(routes: &mut Routes<Self>) { routes.on(16, which).counter("asked"); }
    /// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
    /// # }
    /// fn which(_: &App, _: &mut (), call: &mut Call<'_, App>) -> Outcome {
    ///     call.worker().counter("asked").add(1);
    ///     call.reply(16, &call.worker().generation().to_be_bytes())
    /// }
    /// # let answer = testing::call(&App, &mut (), 16, b"");
    /// # assert_eq!(answer.replies, [(16, 1_u64.to_be_bytes().to_vec())]);
    /// ```
    #[must_use]
    pub fn worker(&self) -> &'a Worker<S> {
        self.worker
    }

    /// A way to send to this connection later, from any thread of this worker.
    ///
    /// ```
    /// # use chappe::*;
    /// # use std::sync::Mutex;
    /// # #[derive(Default)]
    /// # struct Room { members: Mutex<Vec<Handle>> }
    /// # impl Service for Room {
    /// #     type Config = NoConfig;
    /// #     type State = ();
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self::default()) }
    /// #     fn routes(routes: &mut Routes<Self>) { routes.on(16, join); }
    /// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
    /// # }
    /// fn join(room: &Room, _: &mut (), call: &mut Call<'_, Room>) -> Outcome {
    ///     // For other handlers to send to.
    ///     room.members.lock().unwrap().push(call.handle());
    ///     call.reply(16, b"joined")
    /// }
    /// # let room = Room::default();
    /// # testing::call(&room, &mut (), 16, b"");
    /// # assert_eq!(room.members.lock().unwrap()[0].send(17, b"news"), Err(SendError::Expired));
    /// ```
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(self.replies.message.mailbox)
    }

    /// Appends a message for the peer. May be called any number of times.
    ///
    /// ```
    /// # use chappe::*;
    /// # struct App;
    /// # impl Service for App {
    /// #     type Config = NoConfig;
    /// #     type State = ();
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
    /// #     fn routes(routes: &mut Routes<Self>) { routes.on(16, greet); }
    /// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
    /// # }
    /// fn greet(_: &App, _: &mut (), call: &mut Call<'_, App>) -> Outcome {
    ///     call.reply(16, b"hello")?;
    ///     call.reply(17, call.body())?;
    ///     assert!(call.reply(17, &[0; 65_528]).is_err()); // one byte too many
    ///     Ok(())
    /// }
    ///
    /// let answer = testing::call(&App, &mut (), 16, b"Ada");
    /// assert_eq!(answer.replies, [(16, b"hello".to_vec()), (17, b"Ada".to_vec())]);
    /// ```
    ///
    /// # Errors
    /// A body beyond 65527 bytes, or more than 64 MiB of replies that wait for their handler
    /// to return; or it comes after [`Call::close`] or [`Call::defer`]. Nothing was appended.
    pub fn reply(&mut self, code: Code, body: &[u8]) -> Outcome {
        if !self.takes_replies() {
            let text = match self.deferral() {
                Deferral::None => "a reply after the end of the connection",
                Deferral::Deferred | Deferral::Submitted | Deferral::Refused => {
                    "a reply after it was deferred"
                }
            };
            return Err(HandlerError::new(text));
        }
        self.replies.send(code, body)
    }

    /// Leaves the reply to the ticket that it returns: [`Deferred::resume`] goes on with the
    /// message, from any thread and at any time within `timeouts.deferred` (20 seconds). Until then
    /// the connection's next messages wait, and no thread does. It must be the last thing a handler
    /// does; what it has replied before is sent.
    ///
    /// At most `worker.deferred_max` (65536) messages of a worker wait. Beyond that the peer gets
    /// error 9 in place of all replies, and the ticket is void. Also void are that of a handler
    /// which then fails, panics or closes the connection, and a second one for the same call.
    ///
    /// The body is copied, and counts against the limits of the inbox for as long as it waits.
    ///
    /// ```
    /// # use chappe::*;
    /// # use std::sync::Mutex;
    /// # #[derive(Default)]
    /// # struct News { waiting: Mutex<Vec<Deferred<News>>> }
    /// # impl Service for News {
    /// #     type Config = NoConfig;
    /// #     type State = ();
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self::default()) }
    /// #     fn routes(routes: &mut Routes<Self>) { routes.on(16, next); }
    /// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
    /// # }
    /// fn next(news: &News, _: &mut (), call: &mut Call<'_, News>) -> Outcome {
    ///     news.waiting.lock().unwrap().push(call.defer());
    ///     assert!(call.defer().is_void()); // there is one ticket for a call
    ///     Ok(())
    /// }
    /// # let news = News::default();
    /// let answer = testing::call(&news, &mut (), 16, b"");
    /// assert!(answer.defers && answer.replies.is_empty());
    /// ```
    pub fn defer(&mut self) -> Deferred<S> {
        let message = self.replies.message;
        let aside = self.aside_mut();
        if aside.deferral != Deferral::None {
            return Deferred::new(Ticket::void(), None);
        }
        let ticket = message.mailbox.defer(&message.opened);
        aside.deferral = if ticket.is_some() { Deferral::Deferred } else { Deferral::Refused };
        let kept = message.opened.joins.then(|| self.replies.keep());
        Deferred::new(ticket.unwrap_or_else(Ticket::void), kept)
    }

    /// Opens the gate of [`super::Routes::before_admit`] for this connection, from the next
    /// message on; not if the handler fails. `timeouts.handshake` runs until then.
    ///
    /// ```
    /// # use chappe::*;
    /// # struct App;
    /// # impl Service for App {
    /// #     type Config = NoConfig;
    /// #     type State = ();
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
    /// #     fn routes(routes: &mut Routes<Self>) { routes.before_admit(16, login); }
    /// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
    /// # }
    /// fn login(_: &App, _: &mut (), call: &mut Call<'_, App>) -> Outcome {
    ///     if call.body() != b"sesame" {
    ///         // Error 8, and the end.
    ///         return Err(Deny::close("wrong password").into());
    ///     }
    ///     call.admit();
    ///     call.reply(16, b"welcome")
    /// }
    ///
    /// assert!(testing::call(&App, &mut (), 16, b"sesame").admits);
    /// assert!(!testing::call(&App, &mut (), 16, b"barley").admits);
    /// ```
    pub fn admit(&mut self) {
        self.admits = true;
    }

    /// Ends the connection behind the replies: its peer gets the text in a goodbye
    /// (reason 7), of which 512 bytes are sent at most, and what it sends afterwards is not
    /// handled. A reply behind it is an error. Only the first text counts.
    ///
    /// ```
    /// # use chappe::*;
    /// # struct App;
    /// # impl Service for App {
    /// #     type Config = NoConfig;
    /// #     type State = ();
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
    /// #     fn routes(routes: &mut Routes<Self>) { routes.on(16, bye); }
    /// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
    /// # }
    /// fn bye(_: &App, _: &mut (), call: &mut Call<'_, App>) -> Outcome {
    ///     call.reply(16, b"good night")?;
    ///     call.close("it is late");
    ///     assert!(call.reply(16, b"one more").is_err());
    ///     Ok(())
    /// }
    ///
    /// let answer = testing::call(&App, &mut (), 16, b"");
    /// assert_eq!(answer.replies, [(16, b"good night".to_vec())]);
    /// assert_eq!(answer.closes.as_deref(), Some("it is late"));
    /// ```
    pub fn close(&mut self, text: impl Into<String>) {
        self.aside_mut().closes.get_or_insert_with(|| text.into());
    }
}
