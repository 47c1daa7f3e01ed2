//! Where `send` and `bench` connect to if nobody says.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Failure, load, master_client, paths, warn_of};
use crate::cli::Common;
use crate::config::{self, Address, Need};

/// Where to connect if nobody says: where the running server listens, or else its
/// configuration; `None` without a configuration.
pub(super) fn default_address(common: &Common) -> Result<Option<Address>, Failure> {
    let asked = asked_address(common)?;
    if let Ok(Some(address)) = asked {
        return Ok(Some(address));
    }
    let (_, file) = paths(common)?;
    if !file.exists() {
        return Ok(None);
    }
    let address = load(common)?.config.listen.first().map(|listen| listen.address.clone());
    match (&address, asked) {
        // Only the server knows which port that became.
        (Some(Address::Tcp(address)), asked) if address.port() == 0 => {
            let why = asked.err().unwrap_or_else(|| Failure::Refused("it listens nowhere".into()));
            Err(Failure::Refused(format!("the server can't be asked where it listens: {why}")))
        }
        _ => Ok(address.map(reachable)),
    }
}

/// The first address of the running server; the inner failure is why it can't be asked.
fn asked_address(common: &Common) -> Result<Result<Option<Address>, Failure>, Failure> {
    let (prefix, file) = paths(common)?;
    // Without a file there is nothing that names a server, and nothing wrong with that.
    if !file.exists() {
        return Ok(Ok(None));
    }
    let located = config::locate(&file, &prefix, &common.set, Need::ControlSocket)?;
    let status = match master_client::status(&located) {
        Ok(status) => status,
        Err(failure) => {
            // One that is there and says nothing is worth a word; its workers may serve.
            if located.control_socket.exists() {
                super::print_error(&format!(
                    "warning: the address is taken from the configuration, since the server can't \
                     be asked: {failure}"
                ));
            }
            return Ok(Err(failure));
        }
    };
    warn_of(&located);
    let first = status.master.listen.first();
    Ok(Ok(first.and_then(|text| parsed(text)).map(reachable)))
}

/// An address as the status has it.
fn parsed(text: &str) -> Option<Address> {
    match text.strip_prefix("unix:") {
        Some(path) => Some(Address::Unix(path.into())),
        None => text.parse().ok().map(Address::Tcp),
    }
}

/// "All addresses" is no address to connect to.
fn reachable(mut address: Address) -> Address {
    if let Address::Tcp(address) = &mut address
        && address.ip().is_unspecified()
    {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}
