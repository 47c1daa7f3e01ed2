//! Where a connection goes to, the first time and each time after that.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use chappe_sys::unix_socket;

use super::error::ClientError;

#[derive(Debug)]
pub(super) enum Server {
    /// A name and a port, or an address.
    Tcp {
        address: String,
        timeout: Duration,
    },
    Unix {
        path: PathBuf,
        timeout: Duration,
    },
    /// Unknown: the socket was connected by somebody else.
    Unknown,
}

impl Server {
    /// Connects; reading and writing, time-outs and shutdown are the same for each family.
    ///
    /// # Errors
    /// [`ClientError::Connect`] with the last failure.
    pub(super) fn connect(&self) -> Result<TcpStream, ClientError> {
        match self {
            Self::Tcp { address, timeout } => tcp(address, *timeout),
            Self::Unix { path, timeout } => {
                let address = || format!("unix:{}", path.display());
                let connected = unix_socket::connect_timeout(path, *timeout).map(TcpStream::from);
                connected.map_err(|source| ClientError::Connect { address: address(), source })
            }
            Self::Unknown => {
                let text = "its socket was handed over, with an address that is not known";
                let source = io::Error::new(io::ErrorKind::Unsupported, text);
                let address = "the server again".to_owned();
                Err(ClientError::Connect { address, source })
            }
        }
    }
}

/// Tries each address that the name stands for.
fn tcp(address: &str, timeout: Duration) -> Result<TcpStream, ClientError> {
    let failed = |address: String, source| ClientError::Connect { address, source };
    let addresses =
        address.to_socket_addrs().map_err(|source| failed(address.to_owned(), source))?;
    let nothing = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut outcome = failed(address.to_owned(), nothing);
    for address in addresses {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => {
                // A request is one write; waiting for more of it only adds delay.
                stream.set_nodelay(true).map_err(ClientError::Io)?;
                return Ok(stream);
            }
            Err(source) => outcome = failed(address.to_string(), source),
        }
    }
    Err(outcome)
}
