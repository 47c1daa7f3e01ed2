//! The crate's front door: an application's handlers behind the whole server.

use crate::boot;
use crate::handler::{Code, Handler, Handlers};

use std::process::ExitCode;
use std::sync::Arc;

/// A server with handlers of your own. It has the command line, the signals and
/// the configuration of the `chappe` binary, which is a server with the stock handlers only.
///
/// ```no_run
/// use chappe::{Outcome, Replies, Request, Server};
///
/// fn main() -> std::process::ExitCode {
///     Server::new()
///         .on(16, |request: &Request, replies: &mut Replies| replies.send(16, request.body()))
///         .main()
/// }
/// ```
#[derive(Debug, Default)]
pub struct Server {
    handlers: Handlers,
}

impl Server {
    /// A server with the stock handlers: ping, echo, time, who.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Handles the messages of a code. The handler is copied into each worker by
    /// the fork, so it must not hold threads, locks that are held, or open
    /// connections of its own.
    ///
    /// # Panics
    /// On a code outside of 16..=65279 and on a second handler for a code.
    #[must_use]
    pub fn on(mut self, code: Code, handler: impl Handler + 'static) -> Self {
        self.handlers.add(code, Arc::new(handler));
        self
    }

    /// Does what the command line asks for.
    #[must_use]
    pub fn main(self) -> ExitCode {
        boot::main(&self.handlers)
    }
}
