//! The table of `chappe connections`, from the lines that the workers write.

use std::fmt::Write;

use clap::Args;
use serde::Deserialize;

use super::status::{duration, row_widths};

/// Show who is connected: since when, and what is queued for them
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct ConnectionsArgs {
    /// Only those whose socket is full, the largest backlog first
    #[arg(long)]
    pub(crate) slow: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// One line of a worker. Keys are added, never renamed.
#[derive(Debug, Deserialize)]
pub(super) struct Row {
    pub(super) id: u64,
    pub(super) worker: u16,
    pub(super) peer: String,
    pub(super) state: String,
    connected_ms: u64,
    pub(super) queued_bytes: u64,
    pub(super) blocked_ms: Option<u64>,
}

fn parsed(lines: &str) -> Vec<Row> {
    lines.lines().map(serde_json::from_str).filter_map(Result::ok).collect()
}

/// The lines of a list of slow connections, the largest backlog first.
pub(super) fn slow_rows(lines: &str) -> Vec<Row> {
    let mut rows = parsed(lines);
    rows.sort_by_key(|row| (std::cmp::Reverse(row.queued_bytes), row.id));
    rows
}

/// The lines in the order that people look for: by id, or by backlog.
pub(crate) fn connections_table(lines: &str, slow: bool) -> String {
    let rows = if slow {
        slow_rows(lines)
    } else {
        let mut rows = parsed(lines);
        rows.sort_by_key(|row| row.id);
        rows
    };
    let head = ["id", "worker", "peer", "state", "connected", "queued", "blocked"];
    let mut cells = vec![head.map(str::to_owned)];
    cells.extend(rows.iter().map(|row| {
        [
            row.id.to_string(),
            row.worker.to_string(),
            row.peer.clone(),
            row.state.clone(),
            duration(row.connected_ms),
            row.queued_bytes.to_string(),
            row.blocked_ms.map_or_else(|| "-".to_owned(), duration),
        ]
    }));
    let widths = row_widths(&cells);
    let mut text = String::new();
    for row in &cells {
        let padded: Vec<_> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:>width$}")).collect();
        // Writing to a String can't fail.
        let _ = writeln!(text, "{}", padded.join("  "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_backlog_of_the_slow_comes_first() {
        let line = |id: u64, queued: u64| {
            format!(
                "{{\"id\":{id},\"worker\":1,\"peer\":\"[::1]:9\",\"state\":\"open\",\
                 \"connected_ms\":69000,\"queued_bytes\":{queued},\"blocked_ms\":1500,\"new\":0}}\n"
            )
        };
        let lines = [line(9, 5), line(2, 77), line(4, 5)].concat();
        let ids = |slow| {
            let table = connections_table(&lines, slow);
            let id = |row: &str| row.split_whitespace().next().map(str::to_owned);
            table.lines().skip(1).filter_map(id).collect::<Vec<_>>()
        };
        assert_eq!(ids(false), ["2", "4", "9"]);
        assert_eq!(ids(true), ["2", "4", "9"]);
        let table = connections_table(&lines, true);
        let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["2", "1", "[::1]:9", "open", "1m09s", "77", "1s"]);
    }
}
