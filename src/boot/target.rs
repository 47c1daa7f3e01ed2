//! Where the commands that are clients connect to.

use std::fmt::Display;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Failure, load, master_client, paths, warn_of};
use crate::cli::{Common, Destination};
use crate::config::{self, Address, Located, Need, Protocol};
use crate::control::Status;
use crate::master::{PidFile, PidFileError};
use crate::program;

/// Where a server listens that has no configuration.
const DEFAULT_TO: &str = "127.0.0.1:7600";
/// What these commands speak.
const SPOKEN: Protocol = Protocol::Chappe;

/// Where to: `to` of the command line, or else where the server of this prefix listens.
pub(super) fn destination(common: &Common, to: Option<&str>) -> Result<Destination, Failure> {
    if let Some(to) = to {
        refuse_other_protocol(common, to)?;
        return Ok(Destination::new(to, "the address of --to"));
    }
    let (prefix, file) = paths(common)?;
    // Without a file there is nothing that names a server, and nothing wrong with that.
    if !file.exists() {
        let origin = format!("the default, as there is no {}; --to names another", file.display());
        return Ok(Destination::new(DEFAULT_TO, origin));
    }
    let located = config::locate(&file, &prefix, &common.set, Need::ControlSocket)?;
    match master_client::status(&located) {
        Ok(status) => {
            warn_of(&located);
            of_status(&status)
        }
        Err(unasked) => of_configuration(common, &located, &unasked),
    }
}

/// The first address of the running server at which these commands are understood.
fn of_status(status: &Status) -> Result<Destination, Failure> {
    let master = &status.master;
    let protocol = |nth: usize| master.listeners.get(nth).map(|it| it.protocol.as_str());
    // One of another version does not tell.
    let listen = master.listen.iter().enumerate();
    let listen = listen.map(|(nth, text)| (text, protocol(nth).unwrap_or(SPOKEN.name())));
    let (_, address) = first_spoken(listen)?;
    let reached = parsed(&address).map_or(address, |address| reachable(address).to_string());
    Ok(Destination::new(reached, "where the running server listens"))
}

/// As [`of_status`], of a server that runs and can't be asked. One that does not run is no
/// destination: somebody else may have its address.
fn of_configuration(
    common: &Common,
    located: &Located,
    unasked: &Failure,
) -> Result<Destination, Failure> {
    let loaded = load(common)?;
    let pid_file = &loaded.config.pid_file;
    if let Err(PidFileError::NotRunning(_)) = PidFile::holder(pid_file) {
        let (prefix, name) = (paths(common)?.0, &program::get().name);
        return Err(Failure::Refused(format!(
            "no server runs here (prefix {}, pid file {}): `{name}` starts it, --to names another",
            prefix.display(),
            pid_file.display(),
        )));
    }
    // One that is there and says nothing is worth a word; its workers may serve.
    if located.control_socket.exists() {
        super::print_error(&format!(
            "warning: the address is taken from the configuration, since the server can't be \
             asked: {unasked}"
        ));
    }
    let listen = &loaded.config.listen;
    let (index, _) = first_spoken(listen.iter().map(|it| (&it.address, it.protocol.name())))?;
    let address = &listen[index].address;
    // Only the server knows which port that became.
    if matches!(address, Address::Tcp(address) if address.port() == 0) {
        let text = format!("the server can't be asked where it listens: {unasked}");
        return Err(Failure::Refused(text));
    }
    Ok(Destination::new(reachable(address.clone()), loaded.listener_key(index)))
}

/// The first of these addresses, each with its protocol, at which these commands are understood.
fn first_spoken<'a>(
    listen: impl IntoIterator<Item = (impl Display, &'a str)>,
) -> Result<(usize, String), Failure> {
    let mut others = Vec::new();
    for (nth, (address, protocol)) in listen.into_iter().enumerate() {
        if protocol == SPOKEN.name() {
            return Ok((nth, address.to_string()));
        }
        others.push(format!("{address} ({protocol})"));
    }
    Err(Failure::Refused(format!(
        "this command speaks protocol = \"{}\", and no listener does: {}; --to names another server",
        SPOKEN.name(),
        others.join(", ")
    )))
}

/// A listener of another protocol waits for more than this command sends, and the command for an
/// answer. A server that does not run has no listener, whatever its file says.
fn refuse_other_protocol(common: &Common, to: &str) -> Result<(), Failure> {
    // A file with mistakes is no reason not to talk to another server.
    let Ok(loaded) = load(common) else { return Ok(()) };
    let is_it = |listen: &config::Listen| is_at(&listen.address.to_string(), to);
    let Some(index) = loaded.config.listen.iter().position(is_it) else { return Ok(()) };
    let protocol = loaded.config.listen[index].protocol;
    let is_running =
        || !matches!(PidFile::holder(&loaded.config.pid_file), Err(PidFileError::NotRunning(_)));
    if protocol == SPOKEN || !is_running() {
        return Ok(());
    }
    Err(Failure::Refused(format!(
        "{} is {to}, with protocol = \"{}\": --to must be a listener with protocol = \"{}\", which \
         this command speaks",
        loaded.listener_key(index),
        protocol.name(),
        SPOKEN.name()
    )))
}

/// Whether an address, as it was typed, leads to this one of a listener.
pub(super) fn is_at(listen: &str, typed: &str) -> bool {
    if let (Some(path), Some(typed)) = (listen.strip_prefix("unix:"), typed.strip_prefix("unix:")) {
        return is_same_file(Path::new(path), Path::new(typed));
    }
    let port = |text: &str| text.rsplit_once(':').map(|(_, port)| port.to_owned());
    let is_everywhere = listen.starts_with("0.0.0.0:") || listen.starts_with("[::]:");
    listen == typed || (is_everywhere && port(listen) == port(typed))
}

/// By whatever names: the master tells an absolute one, and people type another.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| path.metadata().map(|there| (there.dev(), there.ino()));
    one == other || identity(one).is_ok_and(|one| identity(other).is_ok_and(|other| one == other))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_configuration_there_is_a_default_that_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let prefix = Some(folder.path().to_owned());
        let common = Common { config: "conf/none.toml".into(), prefix, set: Vec::new() };
        let Destination { address, origin } = destination(&common, None).unwrap();
        let file = folder.path().join("conf/none.toml");
        let expected =
            format!("the default, as there is no {}; --to names another", file.display());
        assert_eq!((address.as_str(), origin), ("127.0.0.1:7600", expected));
    }
}
