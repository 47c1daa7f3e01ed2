//! `chappe bench` on the side of the server: whom to ask for its processes and
//! counters, if the server that is measured is the one of the configuration.

use std::collections::BTreeMap;

use super::target::{destination, is_at};
use super::{Failure, master_client, paths};
use crate::cli::{self, BenchArgs, Common};
use crate::config::{self, Located, Need};
use crate::control::Status;

/// A client like `send`; what the control socket tells is an addition, and a server
/// that can't be asked is measured all the same.
pub(super) fn bench(common: &Common, arguments: &BenchArgs) -> Result<u8, Failure> {
    let to = destination(common, arguments.to.address())?;
    let known = known(common, arguments.to.address());
    let located = known.as_ref().ok().map(|(located, _)| located);
    let mut counters = || totals(&master_client::status(located?).ok()?);
    let one_line = |failure: &Failure| failure.to_string().replace('\n', "; ");
    let pids = known.as_ref().map(|(_, status)| workers(status)).map_err(one_line);
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    Ok(cli::bench(arguments, &to, pids, &mut counters, &mut out, &mut err))
}

/// The server of the configuration, if it is the one that is measured; otherwise why its
/// figures are left out.
///
/// The kernel is no help: for the other end of a Unix socket it names the process that called
/// listen(2), and of a daemon that process is gone.
fn known(common: &Common, address: Option<&str>) -> Result<(Located, Status), Failure> {
    let (prefix, file) = paths(common)?;
    let located = config::locate(&file, &prefix, &common.set, Need::ControlSocket)?;
    let status = master_client::status(&located)?;
    match address {
        Some(address) if !listens(&status, address) => {
            let (file, listen) = (file.display(), status.master.listen.join(" "));
            let text = format!("the server of {file} listens on {listen}, not on {address}");
            Err(Failure::Refused(text))
        }
        _ => Ok((located, status)),
    }
}

/// Whether the server of this status listens at an address as it was typed.
fn listens(status: &Status, address: &str) -> bool {
    status.master.listen.iter().any(|listen| is_at(listen, address))
}

/// The processes that messages cost something.
fn workers(status: &Status) -> Vec<i32> {
    status.workers.iter().filter_map(|worker| i32::try_from(worker.pid).ok()).collect()
}

fn totals(status: &Status) -> Option<BTreeMap<String, u64>> {
    let totals = status.totals.as_ref()?;
    Some(totals.iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_known_by_where_it_listens() {
        let mut status = Status::example();
        status.master.listen = ["127.0.0.1:7600", "[::]:7601", "unix:/x"].map(str::to_owned).into();
        for yes in ["127.0.0.1:7600", "[::1]:7601", "localhost:7601", "unix:/x"] {
            assert!(listens(&status, yes), "{yes}");
        }
        for no in ["127.0.0.1:7601x", "127.0.0.2:7600", "unix:/y", "nothing"] {
            assert!(!listens(&status, no), "{no}");
        }
        status.master.listen.clear();
        assert!(!listens(&status, "127.0.0.1:7600"));
    }

    #[test]
    fn pids_and_totals_come_out_of_the_status() {
        let mut status = Status::example();
        assert_eq!(workers(&status), [70, 71]);
        let expected = [("frames_received".to_owned(), 2000), ("workers_died".to_owned(), 0)];
        assert_eq!(totals(&status), Some(expected.into()));
        status.totals = None;
        assert_eq!(totals(&status), None);
    }
}
