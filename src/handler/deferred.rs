//! Replies that are given later, from any thread, while no thread waits for them.

use super::{Call, Outcome, Service};
use chappe_engine::Ticket;
use std::any::Any;
use std::fmt;
use std::marker::PhantomData;

/// What goes on with a message.
pub(super) type Continuation<S> =
    dyn FnOnce(&S, &mut <S as Service>::State, &mut Call<'_, S>) -> Outcome + Send;

/// What a ticket is resumed with.
pub(super) struct Resumed<S: Service> {
    pub(super) then: Box<Continuation<S>>,
    pub(super) kept: Kept,
}

/// The replies that were given before: those of a protocol that has them leave with the rest.
pub(super) type Kept = Option<(Box<[u8]>, u32)>;

/// The ticket of a message whose reply is deferred ([`Call::defer`]): the thread that has
/// it goes on with the message, once; any thread of the worker may.
///
/// The peer gets error 4 in place of the reply if the ticket is dropped, or not resumed within
/// `timeouts.deferred`; the connection stays open. After that, and as soon as the connection
/// is gone or ends at once, the ticket is *void*: to resume or to drop it does nothing. It
/// keeps no connection, and `closed` does not wait for it. A void ticket that is kept holds
/// some hundred bytes.
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
/// #     fn routes(routes: &mut Routes<Self>) { routes.on(16, next).on(17, publish); }
/// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
/// # }
/// fn next(news: &News, _: &mut (), call: &mut Call<'_, News>) -> Outcome {
///     news.waiting.lock().unwrap().push(call.defer()); // no thread waits
///     Ok(())
/// }
///
/// fn publish(news: &News, _: &mut (), call: &mut Call<'_, News>) -> Outcome {
///     for ticket in news.waiting.lock().unwrap().drain(..) {
///         let text = call.body_to_keep();
///         ticket.resume(move |_news, _state, call| call.reply(16, &text));
///     }
///     call.reply(17, b"")
/// }
/// # let news = News::default();
/// # assert!(testing::call(&news, &mut (), 16, b"").defers);
/// # assert_eq!(testing::call(&news, &mut (), 17, b"rain").replies, [(17, Vec::new())]);
/// # assert!(news.waiting.lock().unwrap().is_empty());
/// ```
#[must_use = "a dropped ticket answers the message with an error"]
pub struct Deferred<S: Service> {
    ticket: Ticket,
    kept: Kept,
    service: PhantomData<fn(&S)>,
}

impl<S: Service> Deferred<S> {
    pub(super) fn new(ticket: Ticket, kept: Kept) -> Self {
        Self { ticket, kept, service: PhantomData }
    }

    /// Goes on with the message: `then` runs on a handler thread, at the message's place in the
    /// order of replies, with all that a handler has: the service, the connection's state, and a
    /// [`Call`] with the message's code and body. What a handler may return, it may return too,
    /// a panic included; and it may defer the rest of the message once more.
    ///
    /// Never blocks. Nothing is done if the ticket is void, or becomes so before a handler
    /// thread has come to it: `then` is dropped then, perhaps on the event loop, so what it
    /// holds must be quick to drop.
    ///
    /// ```
    /// # use chappe::{Call, Client, Deny, NoConfig, Outcome, Routes, Service, StartError, Worker};
    /// # struct Lookups;
    /// # impl Service for Lookups {
    /// #     type Config = NoConfig;
    /// #     type State = u32;
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
    /// #     fn routes(routes: &mut Routes<Self>) { routes.on(16, look_up); }
    /// #     fn connected(&self, _: &Client) -> Result<u32, Deny> { Ok(0) }
    /// # }
    /// # fn ask_another_server(_: &[u8]) -> std::io::Result<Vec<u8>> { Ok(Vec::new()) }
    /// fn look_up(_: &Lookups, _: &mut u32, call: &mut Call<'_, Lookups>) -> Outcome {
    ///     let question = call.body().to_vec();
    ///     let deferred = call.defer();
    ///     // A thread for the example; a runtime or a pool of the service's own is better.
    ///     std::thread::spawn(move || {
    ///         let answer = ask_another_server(&question);
    ///         deferred.resume(move |_service, looked_up, call| {
    ///             *looked_up += 1;
    ///             call.reply(16, &answer?)
    ///         });
    ///     });
    ///     Ok(())
    /// }
    /// ```
    pub fn resume<F>(self, then: F)
    where
        F: FnOnce(&S, &mut S::State, &mut Call<'_, S>) -> Outcome + Send + 'static,
    {
        let Self { ticket, kept, .. } = self;
        let value: Box<dyn Any + Send> = Box::new(Resumed::<S> { then: Box::new(then), kept });
        ticket.resume(value);
    }

    /// Whether nobody waits for the reply any more: what is not begun yet can be left. A ticket
    /// can become void at any time.
    ///
    /// ```
    /// # use chappe::*;
    /// fn answer_all<S: Service>(questions: Vec<(String, Deferred<S>)>) {
    ///     for (question, ticket) in questions {
    ///         if ticket.is_void() {
    ///             // Its peer is gone, or has had error 4: not worth the work.
    ///             continue;
    ///         }
    ///         let answer = question.to_uppercase();
    ///         ticket.resume(move |_service, _state, call| call.reply(16, answer.as_bytes()));
    ///     }
    /// }
    /// ```
    #[must_use]
    pub fn is_void(&self) -> bool {
        self.ticket.is_void()
    }
}

impl<S: Service> fmt::Debug for Deferred<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deferred").field("ticket", &self.ticket).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_goes_to_any_thread() {
        fn goes<T: Send + Sync + 'static>() {}
        goes::<Deferred<()>>();
    }
}
