//! One message, with all that its handler can do about it.

use super::client::Client;
use super::outcome::HandlerError;
use super::replies::Replies;
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
#[derive(Debug)]
pub struct Call<'a, S: Service> {
    worker: &'a Worker<S>,
    listeners: &'a Arc<[String]>,
    pub(super) replies: Replies<'a>,
    aside: OnceCell<Box<Aside>>,
    pub(super) admits: bool,
}

/// What few calls have: one word to make and to drop while there is nothing.
#[derive(Debug, Default)]
struct Aside {
    client: OnceCell<Client>,
    /// What the peer is told at the end that the handler wants.
    closes: Option<String>,
    deferral: Deferral,
}

/// Whether the reply to a message is deferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Deferral {
    #[default]
    None,
    /// Its ticket is out.
    Deferred,
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
        }
    }

    /// Whether its handler wants nothing but to answer it.
    #[inline]
    pub(super) fn is_plain(&self) -> bool {
        !self.admits && self.takes_replies()
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

    /// The text of [`Call::close`].
    pub(super) fn take_close(&mut self) -> Option<String> {
        self.aside.get_mut()?.closes.take()
    }

    /// The message code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.replies.message.opened.code
    }

    /// The body, 0 to 65527 bytes. It may be used while replies are given. A message that was
    /// deferred has it still, in a copy.
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        self.replies.message.opened.body
    }

    /// The body, to keep beyond the handler's return. Shares the memory it was
    /// received in, unless that is more than four times as large: then it is
    /// copied, so that a few bytes that are kept do not keep many allocated.
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
    #[must_use]
    pub fn client(&self) -> &Client {
        let client = &self.aside.get_or_init(Box::default).client;
        client.get_or_init(|| Client::new(self.replies.message.mailbox, self.listeners))
    }

    /// The worker that this runs in.
    #[must_use]
    pub fn worker(&self) -> &'a Worker<S> {
        self.worker
    }

    /// A way to send to this connection later, from any thread of this worker.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(self.replies.message.mailbox)
    }

    /// Appends a message for the peer. May be called any number of times.
    ///
    /// # Errors
    /// A body beyond 65527 bytes, or more than 64 MiB of replies that wait for their handler
    /// to return; or it comes after [`Call::close`] or [`Call::defer`]. Nothing was appended.
    pub fn reply(&mut self, code: Code, body: &[u8]) -> Outcome {
        if !self.takes_replies() {
            let text = match self.deferral() {
                Deferral::None => "a reply behind the end of the connection",
                Deferral::Deferred | Deferral::Refused => "a reply after it was deferred",
            };
            return Err(HandlerError::new(text));
        }
        self.replies.send(code, body)
    }

    /// Leaves the reply to the ticket that it returns: [`Deferred::resume`] goes on with the
    /// message, from any thread and at any time within `timeouts.deferred`. Until then the
    /// connection's next messages wait, and no thread does. It is the last that a handler does;
    /// what it has replied before is sent.
    ///
    /// At most `worker.deferred_max` messages of a worker wait. Beyond that the peer gets error 9
    /// in place of all replies, and the ticket is void. Also void are that of a handler which
    /// then fails, panics or closes the connection, and a second one for the same call.
    ///
    /// The body is copied, and counts against the limits of the inbox for as long as it waits.
    pub fn defer(&mut self) -> Deferred<S> {
        let message = self.replies.message;
        let aside = self.aside_mut();
        if aside.deferral != Deferral::None {
            return Deferred::new(Ticket::void());
        }
        let ticket = message.mailbox.defer(&message.opened);
        aside.deferral = if ticket.is_some() { Deferral::Deferred } else { Deferral::Refused };
        Deferred::new(ticket.unwrap_or_else(Ticket::void))
    }

    /// Opens the gate of [`super::Routes::before_admit`] for this connection, from the next
    /// message on; not if the handler fails. `timeouts.handshake` ends with it.
    pub fn admit(&mut self) {
        self.admits = true;
    }

    /// Ends the connection behind the replies: its peer gets the text in a goodbye
    /// (reason 7), of which 512 bytes are sent at most, and what it sends afterwards is not
    /// handled. A reply behind it is an error. Only the first text counts.
    pub fn close(&mut self, text: impl Into<String>) {
        self.aside_mut().closes.get_or_insert_with(|| text.into());
    }
}
