//! What an application is: one value in each worker, hooks, and one value of its own for
//! each connection.

use super::client::Client;
use super::outcome::{Deny, StartError};
use super::routes::Routes;
use super::worker::Worker;
use chappe_engine::Cause;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// An application behind the server: made once in each worker, after the fork.
///
/// `connected`, each message, and `closed` of one connection run one after the other;
/// those of different connections run in parallel, so a service is `Sync`. A handler or
/// a hook that panics ends its connection and is counted (`handler_panics`); a panic of `check`
/// is a wrong configuration, one of `start` a failed start, each with its text.
///
/// Do not rely on `Drop`: save in `closed`, or in a timer.
///
/// The front page of the crate has a larger example, and says what may exist before the fork.
///
/// ```
/// # use chappe::*;
/// struct Votes {
///     question: String, // one value in each worker
/// }
///
/// impl Service for Votes {
///     type Config = NoConfig;
///     type State = Option<bool>; // one value for each connection
///
///     fn start(_worker: &Worker<Self>) -> Result<Self, StartError> {
///         Ok(Self { question: std::fs::read_to_string("question.txt")? })
///     }
///
///     fn routes(routes: &mut Routes<Self>) {
///         routes.on(16, |votes, _vote, call| call.reply(16, votes.question.as_bytes()));
///         routes.on(17, |_votes, vote, call| {
///             *vote = Some(call.body() == b"yes");
///             call.reply(17, b"")
///         });
///     }
///
///     fn connected(&self, _client: &Client) -> Result<Option<bool>, Deny> {
///         Ok(None)
///     }
/// }
///
/// let (votes, mut vote) = (Votes { question: "Tea?".to_owned() }, None);
/// assert_eq!(testing::call(&votes, &mut vote, 16, b"").replies, [(16, b"Tea?".to_vec())]);
/// testing::call(&votes, &mut vote, 17, b"yes");
/// assert_eq!(vote, Some(true));
/// ```
pub trait Service: Sized + Send + Sync + 'static {
    /// The `[application]` table of the configuration; [`NoConfig`] for none. Give
    /// it `#[serde(deny_unknown_fields)]`, or a misspelt key is ignored. Durations and sizes are
    /// numbers with the unit in the name: `tick_seconds`, `cache_bytes`.
    type Config: DeserializeOwned + Send + Sync + 'static;
    /// What the service keeps for one connection.
    type State: Send + 'static;

    /// Makes the service of one worker. It runs after the fork, with signals blocked and
    /// before any connection: this is the place for databases and threads. It has
    /// `worker_ready_timeout` (10 seconds) to return.
    ///
    /// ```
    /// # use chappe::*;
    /// # struct Words(Vec<String>);
    /// # impl Service for Words {
    /// #     type Config = NoConfig;
    /// #     type State = ();
    /// #     fn routes(_: &mut Routes<Self>) {}
    /// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
    /// fn start(_worker: &Worker<Self>) -> Result<Self, StartError> {
    ///     // The log and the terminal have why.
    ///     let text = std::fs::read_to_string("words.txt")?;
    ///     Ok(Self(text.lines().map(str::to_owned).collect()))
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// The worker cannot boot: the start fails, or the reload is rolled back; a worker that
    /// replaces a dead one is tried again after a growing pause.
    fn start(worker: &Worker<Self>) -> Result<Self, StartError>;

    /// Says which handler has which message code. Called once, before the fork, also by `-t`.
    ///
    /// ```
    /// # use chappe::*;
    /// # struct Words(Vec<String>);
    /// # impl Service for Words {
    /// #     type Config = NoConfig;
    /// #     type State = ();
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self(Vec::new())) }
    /// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
    /// fn routes(routes: &mut Routes<Self>) {
    ///     routes.counter("looked_up").on(16, |words, _state, call| {
    ///         call.worker().counter("looked_up").add(1);
    ///         let is_known = words.0.iter().any(|word| word.as_bytes() == call.body());
    ///         call.reply(16, &[u8::from(is_known)])
    ///     });
    /// }
    /// # }
    /// # let words = Words(vec!["tea".to_owned()]);
    /// # assert_eq!(testing::call(&words, &mut (), 16, b"tea").replies, [(16, vec![1])]);
    /// ```
    fn routes(routes: &mut Routes<Self>);

    /// A connection can carry messages: makes its state.
    ///
    /// Where it runs is measured, as with [`Routes::on`]: it may run on the event loop. What may
    /// wait belongs in a thread of the service's own.
    ///
    /// ```
    /// # use chappe::*;
    /// # #[derive(Default)]
    /// # struct Mail { is_private: bool }
    /// # impl Service for Mail {
    /// #     type Config = NoConfig;
    /// #     type State = Vec<String>;
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self::default()) }
    /// #     fn routes(_: &mut Routes<Self>) {}
    /// fn connected(&self, client: &Client) -> Result<Self::State, Deny> {
    ///     if *client.peer() != Peer::Unix && self.is_private {
    ///         return Err(Deny::close("from this machine only")); // error 8
    ///     }
    ///     Ok(Vec::new())
    /// }
    /// # }
    /// # assert!(Mail { is_private: true }.connected(&testing::client()).is_err());
    /// # assert!(Mail { is_private: false }.connected(&testing::client()).is_ok());
    /// ```
    ///
    /// # Errors
    /// The peer gets the text as error 8, and the connection ends; `closed` is not called.
    fn connected(&self, client: &Client) -> Result<Self::State, Deny>;

    /// Checks what the types of the configuration cannot say. Called before the fork, and by
    /// the master at a reload: it should be short, and touch nothing.
    ///
    /// ```
    /// # use chappe::*;
    /// # #[derive(serde::Deserialize)]
    /// # struct Config { fewest: u32, most: u32 }
    /// # struct Game;
    /// # impl Service for Game {
    /// #     type Config = Config;
    /// #     type State = ();
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
    /// #     fn routes(_: &mut Routes<Self>) {}
    /// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
    /// fn check(config: &Config) -> Result<(), StartError> {
    ///     if config.fewest > config.most {
    ///         return Err(StartError::new("`fewest` is more than `most`"));
    ///     }
    ///     Ok(())
    /// }
    /// # }
    /// let wrong = Config { fewest: 3, most: 2 };
    /// assert!(Game::check(&wrong).is_err()); // `-t`, the start or the reload says so
    /// ```
    ///
    /// # Errors
    /// The configuration is wrong: refused by `-t`, start and reload.
    fn check(config: &Self::Config) -> Result<(), StartError> {
        let _ = config;
        Ok(())
    }

    /// A connection is over, however it ended: the last call for it, once for each that
    /// `connected` has let in. Not called at a fast stop, at the end of
    /// `worker_shutdown_timeout`, or when the worker is killed.
    ///
    /// Where it runs is measured, as with [`Routes::on`]: it may run on the event loop. What may
    /// wait belongs in a thread of the service's own.
    ///
    /// ```
    /// # use chappe::*;
    /// # struct Chat;
    /// # impl Service for Chat {
    /// #     type Config = NoConfig;
    /// #     type State = u32;
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
    /// #     fn routes(_: &mut Routes<Self>) {}
    /// #     fn connected(&self, _: &Client) -> Result<u32, Deny> { Ok(0) }
    /// fn closed(&self, client: &Client, said: u32, why: CloseReason) {
    ///     log::info!("{} has said {said} things: {why:?}", client.peer());
    /// }
    /// # }
    /// # Chat.closed(&testing::client(), 7, CloseReason::PeerClosed);
    /// ```
    fn closed(&self, client: &Client, state: Self::State, why: CloseReason) {
        let _ = (client, state, why);
    }

    /// A RESP client logs in (`AUTH`, `HELLO … AUTH`): may this user in, with this password?
    /// The user is `default` if the client names none. Ok admits the peer, as
    /// [`super::Call::admit`] does. Runs on a handler thread, in the order of the connection's
    /// messages; a client may log in again, as somebody else.
    ///
    /// ```
    /// # use chappe::*;
    /// # struct Chat { password: &'static str }
    /// # impl Service for Chat {
    /// #     type Config = NoConfig;
    /// #     type State = String;
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self { password: "" }) }
    /// #     fn routes(_: &mut Routes<Self>) {}
    /// #     fn connected(&self, _: &Client) -> Result<String, Deny> { Ok(String::new()) }
    /// fn authenticate(
    ///     &self,
    ///     _client: &Client,
    ///     name: &mut String,
    ///     user: &[u8],
    ///     password: &[u8],
    /// ) -> Result<(), Deny> {
    ///     if password != self.password.as_bytes() {
    ///         return Err(Deny::close("who are you?")); // -WRONGPASS who are you?
    ///     }
    ///     *name = String::from_utf8(user.to_vec())?;
    ///     Ok(())
    /// }
    /// # }
    /// # let (chat, mut name) = (Chat { password: "sesame" }, String::new());
    /// # let mut log_in = |password: &[u8]| {
    /// #     chat.authenticate(&testing::client(), &mut name, b"ann", password)
    /// # };
    /// # assert!(log_in(b"open").is_err());
    /// # assert!(log_in(b"sesame").is_ok());
    /// # assert_eq!(name, "ann");
    /// ```
    ///
    /// # Errors
    /// The peer gets the text (`-WRONGPASS`), and the connection stays open. Without this method
    /// it gets what Redis says that has no password.
    fn authenticate(
        &self,
        client: &Client,
        state: &mut Self::State,
        user: &[u8],
        password: &[u8],
    ) -> Result<(), Deny> {
        let _ = (client, state, user, password);
        Err(Deny::without_passwords())
    }

    /// Whether a client may subscribe to a topic, or to a pattern (as it has written it). It is
    /// asked where the listener's `topics` allows it, and on the event loop: it must be short, and
    /// never wait. A refused client gets error 10 with the text, and its connection stays open.
    ///
    /// ```
    /// # use chappe::*;
    /// # struct App;
    /// struct Seat { user: String }
    ///
    /// impl Service for App {
    ///     type State = Seat;
    /// #     type Config = NoConfig;
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
    /// #     fn routes(_: &mut Routes<Self>) {}
    /// #     fn connected(&self, _: &Client) -> Result<Seat, Deny> { Err(Deny::close("full")) }
    ///     // …
    ///     fn may_subscribe(&self, _: &Client, seat: &Seat, topic: &str) -> Result<(), Deny> {
    ///         match topic.strip_prefix("private.") {
    ///             Some(owner) if owner != seat.user => Err(Deny::close("not yours")),
    ///             _ => Ok(()),
    ///         }
    ///     }
    /// }
    ///
    /// let (client, seat) = (testing::client(), Seat { user: "ada".to_owned() });
    /// assert!(App.may_subscribe(&client, &seat, "private.ada").is_ok());
    /// assert!(App.may_subscribe(&client, &seat, "private.bob").is_err());
    /// ```
    ///
    /// # Errors
    /// Why not.
    fn may_subscribe(&self, client: &Client, state: &Self::State, topic: &str) -> Result<(), Deny> {
        let _ = (client, state, topic);
        Ok(())
    }

    /// Whether a client may publish to a topic; otherwise as
    /// [`may_subscribe`](Self::may_subscribe).
    ///
    /// ```
    /// # use chappe::*;
    /// # struct App;
    /// impl Service for App {
    /// #     type Config = NoConfig;
    /// #     type State = ();
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
    /// #     fn routes(_: &mut Routes<Self>) {}
    /// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
    ///     // …
    ///     fn may_publish(&self, _: &Client, _: &(), topic: &str) -> Result<(), Deny> {
    ///         if topic.starts_with("news.") { Err("only read them".into()) } else { Ok(()) }
    ///     }
    /// }
    ///
    /// assert!(App.may_publish(&testing::client(), &(), "news.today").is_err());
    /// ```
    ///
    /// # Errors
    /// Why not.
    fn may_publish(&self, client: &Client, state: &Self::State, topic: &str) -> Result<(), Deny> {
        let _ = (client, state, topic);
        Ok(())
    }

    /// The worker begins to drain: it stops, or a reload has replaced it. Runs once, on a
    /// handler thread; connections are still served, and `closed` is still to be called for
    /// each of them. The worker does not end before this has returned, but
    /// `worker_shutdown_timeout` bounds it. Not called at a fast stop.
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
    /// #     fn routes(_: &mut Routes<Self>) {}
    /// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
    /// fn stopping(&self, worker: &Worker<Self>) {
    ///     assert!(worker.is_stopping());
    ///     // Dropped tickets: error 4 for their peers.
    ///     self.waiting.lock().unwrap().clear();
    /// }
    /// # }
    /// ```
    fn stopping(&self, worker: &Worker<Self>) {
        let _ = worker;
    }
}

/// The configuration of a service without one: `[application]` has to be empty.
///
/// ```
/// # use chappe::NoConfig;
/// assert!(toml::from_str::<NoConfig>("").is_ok());
/// let error = toml::from_str::<NoConfig>("port = 7").unwrap_err();
/// assert!(error.message().starts_with("unknown field `port`"));
/// ```
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoConfig {}

/// The service of a server that has handlers only.
impl Service for () {
    type Config = NoConfig;
    type State = ();

    fn start(_: &Worker<Self>) -> Result<Self, StartError> {
        Ok(())
    }

    fn routes(_: &mut Routes<Self>) {}

    fn connected(&self, _: &Client) -> Result<(), Deny> {
        Ok(())
    }
}

/// Why a connection ended.
///
/// ```
/// # use chappe::CloseReason;
/// /// For `closed`: whether to tell the others that the peer has left. After a reload it is
/// /// back in a moment.
/// fn has_left(why: CloseReason) -> bool {
///     !matches!(why, CloseReason::Reloading | CloseReason::Stopping)
/// }
///
/// assert!(has_left(CloseReason::PeerClosed) && !has_left(CloseReason::Reloading));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// The peer has sent its end, perhaps inside of a message.
    PeerClosed,
    /// The peer has reset the connection, or it broke.
    PeerReset,
    /// Nothing was received for `timeouts.idle`.
    Idle,
    /// No complete message came within `timeouts.handshake`, or no admission.
    HandshakeTimeout,
    /// A begun message was not completed within `timeouts.frame`.
    FrameTimeout,
    /// The peer reads too slowly.
    TooSlow,
    /// The peer kept exceeding a rate limit.
    TooFast,
    /// The peer has sent what its protocol does not have.
    ProtocolError,
    /// The application has denied the peer something ([`Deny`]).
    Denied,
    /// The application has closed it.
    ClosedByApplication,
    /// A handler or a hook panicked.
    HandlerPanicked,
    /// An operator has closed it.
    Kicked,
    /// It held too much of what all connections of the worker may hold together.
    Overloaded,
    /// Does not occur in this version: the outcome of a request to another process is not
    /// known.
    OutcomeUnknown,
    /// The server stops.
    Stopping,
    /// A reload has replaced the worker.
    Reloading,
}

impl From<Cause> for CloseReason {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::PeerClosed => Self::PeerClosed,
            // The last two end a connection before it can carry messages.
            Cause::PeerReset | Cause::Refused | Cause::OutOfMemory => Self::PeerReset,
            Cause::Idle => Self::Idle,
            Cause::HandshakeTimeout => Self::HandshakeTimeout,
            Cause::FrameTimeout => Self::FrameTimeout,
            Cause::TooSlow => Self::TooSlow,
            Cause::TooFast => Self::TooFast,
            Cause::ProtocolError => Self::ProtocolError,
            Cause::HandlerPanicked => Self::HandlerPanicked,
            Cause::Denied => Self::Denied,
            Cause::ByApplication => Self::ClosedByApplication,
            Cause::Kicked => Self::Kicked,
            Cause::Overloaded => Self::Overloaded,
            Cause::OutcomeUnknown => Self::OutcomeUnknown,
            Cause::Stopping => Self::Stopping,
            Cause::Reloading => Self::Reloading,
        }
    }
}
