//! `chappe bench` on the side of the server: whom to ask for its processes and
//! counters, if the server that is measured is the one of the configuration.

use std::collections::BTreeMap;

use serde_json::Value;

use super::commands::{ask, connect, first_listener};
use super::{Failure, locate, paths};
use crate::cli::{self, BenchArgs, Common};
use crate::config::Need;

/// A client like `send`; what the control socket tells is an addition, and a server
/// that can't be asked is measured all the same.
pub(super) fn bench(common: &Common, arguments: &BenchArgs) -> Result<u8, Failure> {
    let default_to = if arguments.address().is_some() { None } else { first_listener(common)? };
    let first = status(common).filter(|status| {
        let asked_for = arguments.address();
        asked_for.is_none_or(|address| listens(status, address))
    });
    let pids = first.as_ref().map(workers).unwrap_or_default();
    let is_known = first.is_some();
    let mut counters = || is_known.then(|| totals(&status(common)?)).flatten();
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    Ok(cli::bench(arguments, default_to, &pids, &mut counters, &mut out, &mut err))
}

/// `None` without a configuration, or without a server that answers.
fn status(common: &Common) -> Option<Value> {
    let (_, file) = paths(common).ok()?;
    if !file.exists() {
        return None;
    }
    let located = locate(common, Need::ControlSocket).ok()?;
    ask(&mut connect(&located).ok()?, "status", &located.control_socket).ok()
}

/// Whether the server of this status listens at an address as it was typed.
fn listens(status: &Value, address: &str) -> bool {
    let port = |text: &str| text.rsplit_once(':').map(|(_, port)| port.to_owned());
    status["master"]["listen"].as_array().into_iter().flatten().any(|listen| {
        let Some(listen) = listen.as_str() else { return false };
        let is_everywhere = listen.starts_with("0.0.0.0:") || listen.starts_with("[::]:");
        listen == address || (is_everywhere && port(listen) == port(address))
    })
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
