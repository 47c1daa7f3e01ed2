//! The crate's front door: an application behind the whole server.

use crate::boot;
use crate::handler::{Call, Code, Defined, Outcome, Routes, Service};
use crate::program::{self, Program};

use std::process::ExitCode;

/// A server with a service of your own. It has the command line, the signals and
/// the configuration of the `chappe` binary, which is a server with the stock handlers only.
///
/// ```no_run
/// use chappe::Server;
///
/// fn main() -> std::process::ExitCode {
///     Server::new().on(16, |call| call.reply(16, call.body())).main()
/// }
/// ```
pub struct Server<S: Service> {
    defined: Defined<S>,
    program: Program,
}

impl<S: Service> std::fmt::Debug for Server<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Server").field(&self.defined.routes).finish()
    }
}

impl Default for Server<()> {
    fn default() -> Self {
        Self::new()
    }
}

impl Server<()> {
    /// A server with the stock handlers: ping, echo, time, who.
    ///
    /// ```
    /// # use chappe::Server;
    /// let stock = Server::new(); // as the program `chappe`
    /// let own = Server::new().on(16, |call| call.reply(16, b"hello")); // and code 16
    /// ```
    #[must_use]
    pub fn new() -> Self {
        let defined = Defined { routes: Routes::new(), has_hooks: false };
        Self { defined, program: Program::default() }
    }

    /// A server with a service, whose routes are read now.
    ///
    /// ```should_panic
    /// # use chappe::*;
    /// # struct Chat;
    /// # impl Service for Chat {
    /// #     type Config = NoConfig;
    /// #     type State = ();
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
    /// #     fn routes(routes: &mut Routes<Self>) { routes.on(15, |_, _, _| Ok(())); }
    /// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
    /// # }
    /// // Its `routes` names code 15, which belongs to the server: it panics.
    /// let _ = Server::of::<Chat>();
    /// ```
    ///
    /// # Panics
    /// Where its routes are wrong, see [`Routes`].
    #[must_use]
    pub fn of<S: Service>() -> Server<S> {
        let defined = Defined { routes: Routes::of_service(), has_hooks: true };
        Server { defined, program: Program::default() }
    }

    /// Handles the messages of a code, as [`Routes::on`] does. The handler is copied into each worker by
    /// the fork, so it must not hold threads, locks that are held, or open
    /// connections of its own.
    ///
    /// ```
    /// # use chappe::{HandlerError, Server};
    /// let server = Server::new().on(16, |call| {
    ///     let text = std::str::from_utf8(call.body())?; // not UTF-8: error 4
    ///     match text {
    ///         "" => Err(HandlerError::new("a name, please")), // error 4 too
    ///         name => call.reply(16, format!("hello {name}").as_bytes()),
    ///     }
    /// });
    /// ```
    ///
    /// # Panics
    /// On a code outside of 16..=65279 and on a second handler for a code.
    #[must_use]
    #[track_caller]
    pub fn on<F>(mut self, code: Code, handler: F) -> Self
    where
        F: Fn(&mut Call<'_, ()>) -> Outcome + Send + Sync + 'static,
    {
        self.defined.routes.on(code, move |(), (), call| handler(call));
        self
    }

    /// Names a counter, see [`Routes::counter`]; handlers have it by `call.worker()`.
    ///
    /// ```no_run
    /// # use chappe::Server;
    /// let server = Server::new().counter("greetings").on(16, |call| {
    ///     call.worker().counter("greetings").add(1);
    ///     call.reply(16, b"hello")
    /// });
    /// ```
    ///
    /// # Panics
    /// On an invalid name, on a name that is taken, and on the 65th.
    #[must_use]
    #[track_caller]
    pub fn counter(mut self, name: &str) -> Self {
        self.defined.routes.counter(name);
        self
    }

    /// Registers a handler that may wait: it never runs on the event loop. Otherwise like
    /// [`Server::on`].
    ///
    /// ```
    /// # use chappe::Server;
    /// let server = Server::new().blocking(16, |call| {
    ///     let text = std::fs::read_to_string("motd.txt")?; // may wait for a disk
    ///     call.reply(16, text.as_bytes())
    /// });
    /// ```
    ///
    /// # Panics
    /// Like [`Server::on`].
    #[must_use]
    #[track_caller]
    pub fn blocking<F>(mut self, code: Code, handler: F) -> Self
    where
        F: Fn(&mut Call<'_, ()>) -> Outcome + Send + Sync + 'static,
    {
        self.defined.routes.blocking(code, move |(), (), call| handler(call));
        self
    }
}

impl<S: Service> Server<S> {
    /// What the program is called: in its help, its messages, and the titles of its
    /// processes. `chappe` otherwise. The files keep their names: `conf/chappe.toml`,
    /// `run/chappe.sock`, `run/chappe.pid`.
    ///
    /// ```no_run
    /// # use chappe::Server;
    /// # use std::process::ExitCode;
    /// fn main() -> ExitCode {
    ///     // `ps` shows "chatd: master process", "chatd: worker process 0", …
    ///     Server::new().name("chatd").main()
    /// }
    /// ```
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.program.name = name.into();
        self
    }

    /// Its version, for `-v` and `--version`: `env!("CARGO_PKG_VERSION")`.
    ///
    /// ```no_run
    /// # use chappe::Server;
    /// # use std::process::ExitCode;
    /// fn main() -> ExitCode {
    ///     // `chatd -v` prints "chatd 1.4.0": the version of the package, not of Chappe.
    ///     Server::new().name("chatd").version(env!("CARGO_PKG_VERSION")).main()
    /// }
    /// ```
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.program.version = version.into();
        self
    }

    /// What it is, in a sentence: the first line of its help.
    ///
    /// ```no_run
    /// # use chappe::Server;
    /// # use std::process::ExitCode;
    /// fn main() -> ExitCode {
    ///     Server::new().name("chatd").about("Rooms to talk in.").main()
    /// }
    /// ```
    #[must_use]
    pub fn about(mut self, about: impl Into<String>) -> Self {
        self.program.about = about.into();
        self
    }

    /// Does what the command line asks for.
    ///
    /// Returns in the process that was started: after `--foreground` when the server has ended,
    /// after the start of a daemon **as soon as it serves**, else when the command is done; never
    /// in the master of a daemon or in a worker. 0: done, 2: wrong command line or configuration,
    /// 1: anything else. A start is refused in a program that has a second thread by then.
    ///
    /// It takes the whole command line: own arguments are refused; what a service wants to know is
    /// in `[application]`, or in the environment.
    ///
    /// ```no_run
    /// # use chappe::Server;
    /// # use std::process::ExitCode;
    /// fn main() -> ExitCode {
    ///     // `chatd --foreground` serves; `chatd reload`, `chatd status`, `chatd quit` ask the
    ///     // server that runs.
    ///     Server::new().name("chatd").on(16, |call| call.reply(16, call.body())).main()
    /// }
    /// ```
    #[must_use]
    pub fn main(self) -> ExitCode {
        let Self { mut program, defined } = self;
        // Without a name and a handler there is no application.
        let is_named = program.name != Program::default().name;
        program.is_stock = !is_named && !defined.has_hooks && defined.routes.is_empty();
        program::set(program);
        boot::main(&defined)
    }
}
