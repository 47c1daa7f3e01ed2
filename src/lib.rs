//! Chappe, a pre-forked message server for Linux.
//!
//! Clients hold long TCP connections and exchange length-prefixed binary messages.
//! A *master* process looks after *worker* processes; each worker has an event
//! loop, handler threads, and one send thread that sleeps on a process-shared
//! semaphore. [`client`] talks to it.
//!
//! A server with handlers only:
//!
//! ```no_run
//! use chappe::Server;
//!
//! fn main() -> std::process::ExitCode {
//!     Server::new().on(16, |call| call.reply(16, call.body())).main()
//! }
//! ```
//!
//! A [`Service`] has a configuration, one value in each worker, and one for each
//! connection:
//!
//! ```no_run
//! use chappe::{Call, Client, CloseReason, Deny, Outcome, Routes, Server, Service, StartError, Worker};
//! use std::collections::BTreeMap;
//! use std::process::ExitCode;
//!
//! const LOGIN: u16 = 16;
//! const SAY: u16 = 17;
//! const SAID: u16 = 18;
//!
//! #[derive(serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Config {
//!     passwords: BTreeMap<String, String>, // [application.passwords]
//! }
//!
//! struct Chat {
//!     passwords: BTreeMap<String, String>, // one in each worker
//! }
//!
//! struct Seat {
//!     user: String, // one for each connection
//!     said: u32,
//! }
//!
//! impl Service for Chat {
//!     type Config = Config;
//!     type State = Seat;
//!
//!     fn start(worker: &Worker<Self>) -> Result<Self, StartError> {
//!         Ok(Self { passwords: worker.config().passwords.clone() })
//!     }
//!
//!     fn routes(routes: &mut Routes<Self>) {
//!         routes.before_admit(LOGIN, login).on(SAY, say);
//!     }
//!
//!     fn connected(&self, _client: &Client) -> Result<Seat, Deny> {
//!         Ok(Seat { user: String::new(), said: 0 })
//!     }
//!
//!     fn closed(&self, client: &Client, seat: Seat, why: CloseReason) {
//!         log::info!("{} from {} said {} things: {why:?}", seat.user, client.peer(), seat.said);
//!     }
//! }
//!
//! fn login(chat: &Chat, seat: &mut Seat, call: &mut Call<'_, Chat>) -> Outcome {
//!     let (user, password) = std::str::from_utf8(call.body())?
//!         .split_once(' ')
//!         .ok_or_else(|| Deny::close("a user and a password, please"))?;
//!     if chat.passwords.get(user).is_none_or(|right| right != password) {
//!         return Err(Deny::close("wrong password").into());
//!     }
//!     seat.user = user.to_owned();
//!     call.admit();
//!     call.subscribe("lobby")?; // holds before the reply is sent
//!     call.reply(LOGIN, b"welcome")
//! }
//!
//! fn say(_chat: &Chat, seat: &mut Seat, call: &mut Call<'_, Chat>) -> Outcome {
//!     seat.said += 1;
//!     call.publish("lobby", SAID, call.body())?; // reaches the connections of all workers
//!     call.reply(SAY, seat.user.as_bytes())
//! }
//!
//! fn main() -> ExitCode {
//!     Server::of::<Chat>().main()
//! }
//! ```
//!
//! The module `testing` (a feature of the crate) has a server and clients for the tests of an
//! application.
//!
//! # Before the fork, and after it
//!
//! The master forks the workers, without exec, from a process with one thread. What exists
//! before, in `main` and in [`Service::routes`], is copied into each worker, also into those
//! of a reload years later:
//!
//! | may be there before | belongs in [`Service::start`] |
//! |---|---|
//! | constants, tables, what was read from files and does not change | threads, runtimes (tokio), thread pools: a fork copies none of them, and the locks that they hold stay locked. A program with threads is refused at the start |
//! | values that handlers capture, if they are plain memory | connections of databases and to other servers: two processes would talk on one socket |
//! | atomics and locks that nobody holds, for one worker each: a copy is not shared | files that are written, and their positions |
//! | environment variables, command-line arguments | random generators: copies would give the same numbers |
//!
//! **Descriptors that `main` opens are closed in workers.** A `File` or a socket that a handler
//! has captured then names another descriptor, perhaps a client's connection: open them in
//! [`Service::start`]. `main` must install no logger (a second one is refused at the start) and
//! leave signals and `SIGCHLD` alone. What workers share is in the database, or in files; what
//! they know of each other is their [`Worker::number`].
//!
//! # Logging
//!
//! The macros of the crate `log` write to the worker's log, at the level of `log.level`; a target
//! with a dot is the name of the event: `log::info!(target: "login.failed", "user={user}")`.
//! Standard output of a worker is closed to it, and standard error too in a daemon.
//!
//! # Features
//!
//! | feature | adds | by default |
//! |---|---|---|
//! | `bench` | the command `bench` | yes |
//! | `top` | the command `top` | yes |
//! | `pages` | the page with charts at `metrics.address` | yes |
//! | `testing` | the module `testing` | no |
//!
//! `crash-steps` and `uncounted` are for Chappe's own tests.
//!
//! # What else is here
//!
//! [`control`] has the requests and answers between the master and a program that operates it. [`prefork`] has the command line and the master alone, for
//! workers that are something else.
//!
//! The client and the wire format are crates of their own, `chappe-client` and
//! `chappe-wire`, for programs that want nothing else.
//!
//! How a server works inside is in `docs/ARCHITECTURE.md` of the repository.

mod boot;
mod channel;
mod cli;
mod config;
pub mod control;
mod handler;
mod hub;
mod listen;
mod logging;
mod master;
mod metrics;
mod net;
pub mod prefork;
mod program;
mod protocol;
mod server;
#[cfg(feature = "testing")]
pub mod testing;
mod throttle;
mod topics;
mod worker;

pub use bytes;
pub use chappe_client as client;
pub use chappe_engine::BodyTooLong;
pub use chappe_wire as wire;
pub use handler::{
    Call, Client, CloseReason, Code, Counter, Deferred, Deny, Handle, HandlerError, Message,
    NoConfig, Outcome, Peer, Routes, SendError, Service, StartError, Worker,
};
pub use server::Server;
