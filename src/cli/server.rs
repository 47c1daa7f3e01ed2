//! The server that a command talks to as a client.

use std::time::Duration;

use chappe_client::{ClientError, Connection};

/// What each command that is a client takes.
#[derive(Debug, clap::Args)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) to: ToArgs,
    /// How long to wait for the connection, and for each reply
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_timeout)]
    timeout: Duration,
}

/// Which server.
#[derive(Debug, clap::Args)]
pub(crate) struct ToArgs {
    /// The server, as HOST:PORT or unix:PATH [default: the first address with protocol "chappe" of
    /// the running server; without a configuration 127.0.0.1:7600]
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    to: Option<String>,
}

impl ToArgs {
    /// Where to, if the command line says so.
    pub(crate) fn address(&self) -> Option<&str> {
        self.to.as_deref()
    }
}

/// Where a command connects to.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    /// HOST:PORT or unix:PATH.
    pub(crate) address: String,
    /// Where the address comes from, for a person who has not typed it.
    pub(crate) origin: String,
}

impl Destination {
    pub(crate) fn new(address: impl ToString, origin: impl Into<String>) -> Self {
        Self { address: address.to_string(), origin: origin.into() }
    }

    /// An error of a connect says where the address comes from.
    pub(super) fn explain(&self, error: ClientError) -> ClientError {
        match error {
            ClientError::Connect { address, source } => {
                ClientError::Connect { address: format!("{address} ({})", self.origin), source }
            }
            other => other,
        }
    }
}

impl ServerArgs {
    pub(super) fn connect(&self, to: &Destination) -> Result<Connection, ClientError> {
        let connected = match to.address.strip_prefix("unix:") {
            Some(path) => Connection::connect_unix(path, self.timeout),
            None => Connection::connect(&to.address, self.timeout),
        };
        connected.map_err(|error| to.explain(error))
    }
}

/// What can be no address is told before anything is looked up.
fn parse_address(text: &str) -> Result<String, String> {
    let is_address = match text.strip_prefix("unix:") {
        Some(path) => !path.is_empty(),
        None => text
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()),
    };
    if is_address {
        return Ok(text.to_owned());
    }
    Err("write HOST:PORT or unix:PATH, such as 127.0.0.1:7600, [::1]:7600 or \
         unix:run/clients.sock"
        .to_owned())
}

pub(super) fn parse_timeout(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be more than zero".to_owned()),
        Ok(timeout) => Ok(timeout),
        Err(e) => Err(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_port_or_is_a_path() {
        for right in ["localhost:7600", "127.0.0.1:1", "[::1]:7600", "unix:x", "unix:/a/b"] {
            assert_eq!(parse_address(right).as_deref(), Ok(right));
        }
        for wrong in ["nowhere", "", ":7600", "host:", "host:port", "host:65536", "unix:", "/x"] {
            let told = parse_address(wrong).expect_err("no address");
            assert!(told.contains("such as 127.0.0.1:7600"), "{wrong}: {told}");
        }
    }
}
