//! `chappe bench` on the side of the server: whom to ask for its processes and
//! counters, if the server that is measured is the one of the configuration.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;

use super::commands::{ask, connect, first_listener};
use super::{Failure, paths};
use crate::cli::{self, BenchArgs, Common};
use crate::config::{self, Located, Need};

/// A client like `send`; what the control socket tells is an addition, and a server
/// that can't be asked is measured all the same.
pub(super) fn bench(common: &Common, arguments: &BenchArgs) -> Result<u8, Failure> {
    let default_to = if arguments.address().is_some() { None } else { first_listener(common)? };
    let known = known(common, arguments.address());
    let located = known.as_ref().ok().map(|(located, _)| located);
    let mut counters = || totals(&status(located?).ok()?);
    let pids = known.as_ref().map(|(_, status)| workers(status)).map_err(Clone::clone);
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    Ok(cli::bench(arguments, default_to, pids, &mut counters, &mut out, &mut err))
}

/// The server of the configuration, if it is the one that is measured; otherwise why its
/// figures are left out.
///
/// The kernel is no help: what it says of the other end of a Unix socket is who called
/// listen(2), and of a daemon that was a process that is gone.
fn known(common: &Common, address: Option<&str>) -> Result<(Located, Value), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string().replace('\n', "; ");
    let (prefix, file) = paths(common).map_err(|error| text(&error))?;
    let located = config::locate(&file, &prefix, &common.set, Need::ControlSocket)
        .map_err(|error| text(&error))?;
    let status = status(&located).map_err(|error| text(&error))?;
    match address {
        Some(address) if !listens(&status, address) => {
            let listen = status["master"]["listen"].as_array().into_iter().flatten();
            let listen: Vec<_> = listen.filter_map(Value::as_str).collect();
            let file = file.display();
            Err(format!("the server of {file} listens on {}, not on {address}", listen.join(" ")))
        }
        _ => Ok((located, status)),
    }
}

fn status(located: &Located) -> Result<Value, Failure> {
    ask(&mut connect(located)?, "status", &located.control_socket)
}

/// Whether the server of this status listens at an address as it was typed.
fn listens(status: &Value, address: &str) -> bool {
    let port = |text: &str| text.rsplit_once(':').map(|(_, port)| port.to_owned());
    status["master"]["listen"].as_array().into_iter().flatten().any(|listen| {
        let Some(listen) = listen.as_str() else { return false };
        if let (Some(path), Some(typed)) =
            (listen.strip_prefix("unix:"), address.strip_prefix("unix:"))
        {
            return is_same_file(Path::new(path), Path::new(typed));
        }
        let is_everywhere = listen.starts_with("0.0.0.0:") || listen.starts_with("[::]:");
        listen == address || (is_everywhere && port(listen) == port(address))
    })
}

/// By whatever names: the master tells an absolute one, and people type another.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| path.metadata().map(|there| (there.dev(), there.ino()));
    one == other || identity(one).is_ok_and(|one| identity(other).is_ok_and(|other| one == other))
}

/// The processes that messages cost something.
fn workers(status: &Value) -> Vec<i32> {
    let workers = status["workers"].as_array().into_iter().flatten();
    workers.filter_map(|worker| i32::try_from(worker["pid"].as_i64()?).ok()).collect()
}

fn totals(status: &Value) -> Option<BTreeMap<String, u64>> {
    let totals = status["totals"].as_object()?;
    Some(totals.iter().filter_map(|(name, value)| Some((name.clone(), value.as_u64()?))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_server_is_known_by_where_it_listens() {
        let status = json!({ "master": { "listen": ["127.0.0.1:7600", "[::]:7601", "unix:/x"] } });
        for yes in ["127.0.0.1:7600", "[::1]:7601", "localhost:7601", "unix:/x"] {
            assert!(listens(&status, yes), "{yes}");
        }
        for no in ["127.0.0.1:7601x", "127.0.0.2:7600", "unix:/y", "nothing"] {
            assert!(!listens(&status, no), "{no}");
        }
        assert!(!listens(&json!({}), "127.0.0.1:7600"));
    }

    #[test]
    fn pids_and_totals_come_out_of_the_status() {
        let status = json!({
            "workers": [{ "pid": 7 }, { "pid": null }, { "pid": 9 }],
            "totals": { "frames_sent": 3, "odd": "text" },
        });
        assert_eq!(workers(&status), [7, 9]);
        assert_eq!(totals(&status), Some([("frames_sent".to_owned(), 3)].into()));
        assert_eq!(totals(&json!({})), None);
    }
}
