//! The server that a command talks to as a client.

use std::time::Duration;

use chappe_client::{ClientError, Connection};

use crate::config::Address;

/// Where a server listens if nobody says otherwise.
pub(super) const DEFAULT_TO: &str = "127.0.0.1:7600";

/// What each command that is a client takes.
#[derive(Debug, clap::Args)]
pub(crate) struct ServerArgs {
    /// The server, as HOST:PORT or unix:PATH [default: the first address of the
    /// running server, of its configuration, or 127.0.0.1:7600]
    #[arg(long, value_name = "ADDR")]
    to: Option<String>,
    /// How long to wait for the connection, and for each reply
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_timeout)]
    timeout: Duration,
}

impl ServerArgs {
    /// Whether the command line says where to.
    pub(crate) fn has_address(&self) -> bool {
        self.to.is_some()
    }

    /// Connects; `default_to` is where to without `--to`, if that is known.
    pub(super) fn connect(&self, default_to: Option<&Address>) -> Result<Connection, ClientError> {
        let to = self.to.clone().or_else(|| default_to.map(ToString::to_string));
        let to = to.as_deref().unwrap_or(DEFAULT_TO);
        match to.strip_prefix("unix:") {
            Some(path) => Connection::connect_unix(path, self.timeout),
            None => Connection::connect(to, self.timeout),
        }
    }
}

pub(super) fn parse_timeout(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be more than zero".to_owned()),
        Ok(timeout) => Ok(timeout),
        Err(e) => Err(e.to_string()),
    }
}
