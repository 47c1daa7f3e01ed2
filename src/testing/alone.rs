//! One handler of a service, without a process.

use crate::handler::alone;
use crate::handler::{Client, Code, Service, Worker};
use serde::Deserialize;
use std::any::{Any, TypeId, type_name};
use std::cell::RefCell;
use std::collections::BTreeMap;

pub use crate::handler::alone::{Answer, Refusal};

thread_local! {
    /// The last [`Worker`] that this thread has made of each service: libtest runs each test
    /// on a thread of its own.
    static WORKERS: RefCell<BTreeMap<TypeId, Box<dyn Any>>> = const { RefCell::new(BTreeMap::new()) };
}

/// Makes worker 0 of generation 1 with this configuration: for [`Service::start`], and for
/// each [`call`] of the service on this thread from now on. Its timers never run.
///
/// ```
/// # use chappe::*;
/// let worker = testing::worker::<()>(NoConfig {});
/// assert_eq!((worker.number(), worker.generation()), (0, 1));
/// assert!(!worker.is_stopping());
/// ```
#[must_use]
pub fn worker<S: Service>(config: S::Config) -> Worker<S> {
    let worker = alone::worker(config);
    let kept = Box::new(Worker::clone(&worker));
    WORKERS.with_borrow_mut(|workers| workers.insert(TypeId::of::<S>(), kept));
    worker
}

/// Makes a peer, for [`Service::connected`] and [`Service::closed`]: from 127.0.0.1, with an id
/// of its own.
///
/// ```
/// # use chappe::*;
/// let client = testing::client();
/// assert_eq!(client.peer().to_string(), "127.0.0.1:40000");
/// assert_ne!(client.id(), testing::client().id());
/// ```
#[must_use]
pub fn client() -> Client {
    alone::client()
}

/// Runs the handler that the service has for `code`, on this thread, without a process, a
/// socket or a configuration file.
///
/// There is nothing around it: `connected` is the caller's to call, and a gate
/// ([`crate::Routes::before_admit`]) does not hold a message back. Each call is one message
/// of a connection of its own, which is gone when this returns; what is sent to it afterwards
/// by a [`crate::Handle`] that the service has kept is a [`crate::SendError::Expired`], and a
/// reply that it has deferred reaches nobody ([`Answer::defers`]): what continues it is for a
/// test with [`crate::testing::TestServer`]. A panic of the handler is one of the test.
///
/// The worker of the call is the last that [`worker`] has made on this thread for the
/// service; without one, it has the configuration of an empty `[application]`.
///
/// ```
/// use chappe::testing::{self, Refusal};
/// use chappe::{Call, Client, Deny, Outcome, Routes, Service, StartError, Worker};
///
/// #[derive(serde::Deserialize)]
/// struct Config {
///     password: String,
/// }
///
/// struct Door;
///
/// impl Service for Door {
///     type Config = Config;
///     type State = u32;
///
///     fn start(_worker: &Worker<Self>) -> Result<Self, StartError> {
///         Ok(Self)
///     }
///
///     fn routes(routes: &mut Routes<Self>) {
///         routes.before_admit(16, knock);
///     }
///
///     fn connected(&self, _client: &Client) -> Result<u32, Deny> {
///         Ok(0)
///     }
/// }
///
/// fn knock(_: &Door, knocks: &mut u32, call: &mut Call<'_, Door>) -> Outcome {
///     *knocks += 1;
///     if call.body() != call.worker().config().password.as_bytes() {
///         return Err(Deny::close("wrong password").into());
///     }
///     call.admit();
///     call.reply(16, b"welcome")
/// }
///
/// // In a #[test]:
/// let worker = testing::worker(Config { password: "sesame".to_owned() });
/// let door = Door::start(&worker).expect("it starts");
/// let mut knocks = door.connected(&testing::client()).expect("let in");
///
/// let wrong = testing::call(&door, &mut knocks, 16, b"hello");
/// assert_eq!(wrong.error, Some(Refusal::Denied("wrong password".to_owned())));
///
/// let right = testing::call(&door, &mut knocks, 16, b"sesame");
/// assert_eq!(right.replies, [(16, b"welcome".to_vec())]);
/// assert!(right.admits);
/// assert_eq!(knocks, 2);
/// ```
///
/// # Panics
/// Without a handler for the code; for a body beyond 65527 bytes; without a worker for a
/// service whose configuration has no defaults; and where the handler panics.
pub fn call<S: Service>(service: &S, state: &mut S::State, code: Code, body: &[u8]) -> Answer {
    let worker = last_worker();
    let answer = alone::call(service, &worker, state, code, body);
    answer.unwrap_or_else(|| panic!("{} has no handler for code {code}", type_name::<S>()))
}

fn last_worker<S: Service>() -> Worker<S> {
    let kept = WORKERS.with_borrow(|workers| {
        let worker = workers.get(&TypeId::of::<S>())?.downcast_ref::<Worker<S>>()?;
        Some(Worker::clone(worker))
    });
    kept.unwrap_or_else(|| {
        let config = S::Config::deserialize(toml::Table::new());
        worker(config.unwrap_or_else(|error| {
            let service = type_name::<S>();
            panic!("no testing::worker::<{service}>(…) was made on this thread: {error}")
        }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::{Call, Deferred, Deny, Handle, Outcome, Routes, SendError, StartError};
    use parking_lot::Mutex;

    #[derive(Deserialize)]
    struct Config {
        greeting: String,
    }

    #[derive(Default)]
    struct Hall {
        last: Mutex<Option<Handle>>,
        ticket: Mutex<Option<Deferred<Self>>>,
    }

    impl Service for Hall {
        type Config = Config;
        type State = Vec<u8>;

        fn start(_: &Worker<Self>) -> Result<Self, StartError> {
            Ok(Self::default())
        }

        fn routes(routes: &mut Routes<Self>) {
            routes.before_admit(16, come).on(17, stumble).on(18, leave).on(19, greet);
            routes.on(21, think);
        }

        fn connected(&self, _: &Client) -> Result<Vec<u8>, Deny> {
            Ok(Vec::new())
        }
    }

    fn come(hall: &Hall, seen: &mut Vec<u8>, call: &mut Call<'_, Hall>) -> Outcome {
        seen.extend(call.body());
        let handle = call.handle();
        call.admit();
        call.reply(16, b"1")?;
        handle.send(20, b"2")?;
        *hall.last.lock() = Some(handle);
        call.reply(16, call.body())
    }

    fn stumble(_: &Hall, _: &mut Vec<u8>, call: &mut Call<'_, Hall>) -> Outcome {
        call.admit();
        call.reply(17, b"half")?;
        call.handle().send(20, b"stays")?;
        Err("too dark")?
    }

    fn leave(_: &Hall, _: &mut Vec<u8>, call: &mut Call<'_, Hall>) -> Outcome {
        call.close("bye");
        if call.body().is_empty() { Ok(()) } else { Err(Deny::close("not so"))? }
    }

    fn greet(_: &Hall, _: &mut Vec<u8>, call: &mut Call<'_, Hall>) -> Outcome {
        call.reply(19, call.worker().config().greeting.as_bytes())
    }

    fn think(hall: &Hall, _: &mut Vec<u8>, call: &mut Call<'_, Hall>) -> Outcome {
        call.reply(21, b"well")?;
        *hall.ticket.lock() = Some(call.defer());
        if call.body().is_empty() { Ok(()) } else { Err("a headache")? }
    }

    fn hall() -> (Hall, Vec<u8>) {
        let hall = Hall::start(&worker(Config { greeting: "hello".to_owned() })).unwrap();
        let seen = hall.connected(&client()).unwrap();
        (hall, seen)
    }

    #[test]
    fn an_answer_has_replies_and_pushes_in_their_order() {
        let (hall, mut seen) = hall();
        let answer = call(&hall, &mut seen, 16, b"3");
        let bodies = [(16, b"1".to_vec()), (20, b"2".to_vec()), (16, b"3".to_vec())];
        assert_eq!(answer.replies, bodies);
        assert_eq!((answer.error, answer.admits, answer.closes), (None, true, None));
        assert_eq!(seen, b"3");
        let handle = hall.last.lock().take().unwrap();
        assert_eq!(handle.send(16, b""), Err(SendError::Expired));
    }

    #[test]
    fn a_failed_handler_has_its_pushes_and_its_error() {
        let (hall, mut seen) = hall();
        let answer = call(&hall, &mut seen, 17, b"");
        assert_eq!(answer.replies, [(20, b"stays".to_vec())]);
        assert_eq!(answer.error, Some(Refusal::Failed("too dark".to_owned())));
        assert!(!answer.admits, "as for a real connection");
    }

    #[test]
    fn a_close_has_its_text_and_a_denial_takes_its_place() {
        let (hall, mut seen) = hall();
        let answer = call(&hall, &mut seen, 18, b"");
        assert_eq!((answer.closes.as_deref(), answer.error), (Some("bye"), None));
        let answer = call(&hall, &mut seen, 18, b"x");
        assert_eq!(answer.error, Some(Refusal::Denied("not so".to_owned())));
        assert_eq!(answer.closes, None);
    }

    #[test]
    fn a_deferred_reply_is_said_to_be_one() {
        let (hall, mut seen) = hall();
        for (body, defers) in [(&b""[..], true), (b"x", false)] {
            let answer = call(&hall, &mut seen, 21, body);
            assert_eq!((answer.defers, answer.error.is_none()), (defers, defers));
            let replies = [(21, b"well".to_vec())];
            assert_eq!(answer.replies, replies[..usize::from(defers)]);
            let ticket = hall.ticket.lock().take().unwrap();
            assert!(ticket.is_void());
            ticket.resume(|_, _, _| unreachable!("its connection is gone"));
        }
    }

    #[test]
    fn the_stock_handlers_and_the_configuration_are_there() {
        let (hall, mut seen) = hall();
        assert_eq!(call(&hall, &mut seen, 19, b"").replies, [(19, b"hello".to_vec())]);
        assert_eq!(call(&hall, &mut seen, 1, b"echo").replies, [(1, b"echo".to_vec())]);
    }

    #[test]
    #[should_panic(expected = "no testing::worker::<chappe::testing::alone::tests::Hall>")]
    fn a_configuration_without_defaults_is_asked_for() {
        call(&Hall::default(), &mut Vec::new(), 16, b"");
    }

    #[test]
    #[should_panic(expected = "Hall has no handler for code 99")]
    fn a_code_without_a_handler_is_a_mistake_of_the_test() {
        let (hall, mut seen) = hall();
        call(&hall, &mut seen, 99, b"");
    }
}
