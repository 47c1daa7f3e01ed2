//! The table of `chappe connections`, from the lines that the workers write.

use std::cmp::Reverse;
use std::fmt::Write;

use clap::Args;

use super::status::{duration, row_widths};
use crate::control::ConnectionRow;

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

/// Connections, and a warning about lines that are not connections.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) rows: Vec<ConnectionRow>,
    pub(crate) unread: Option<String>,
}

/// The lines in the order that people look for: by id; of slow ones, by backlog.
pub(crate) fn connection_rows(lines: &str, slow: bool) -> Rows {
    let (mut rows, mut failed, mut why) = (Vec::new(), 0, None);
    for line in lines.lines() {
        match serde_json::from_str::<ConnectionRow>(line) {
            Ok(row) => rows.push(row),
            Err(error) => {
                failed += 1;
                why.get_or_insert(error);
            }
        }
    }
    let backlog = |row: &ConnectionRow| if slow { row.queued_bytes } else { 0 };
    rows.sort_by_key(|row| (Reverse(backlog(row)), row.id));
    let unread = why.map(|error| {
        let lines = if failed == 1 { "line" } else { "lines" };
        format!(
            "{failed} {lines} of the list can't be read, the server may be of another version: \
             {error}"
        )
    });
    Rows { rows, unread }
}

/// A row for each.
pub(crate) fn connections_table(rows: &[ConnectionRow]) -> String {
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
                 \"connected_ms\":69000,\"received_bytes\":1,\"sent_bytes\":2,\
                 \"queued_bytes\":{queued},\"blocked_ms\":1500,\"new\":0}}\n"
            )
        };
        let lines = [line(9, 5), line(4, 5), line(7, 77)].concat();
        let ids = |slow| {
            let Rows { rows, unread } = connection_rows(&lines, slow);
            assert_eq!(unread, None);
            rows.into_iter().map(|row| row.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(false), [4, 7, 9]);
        assert_eq!(ids(true), [7, 4, 9]);
        let table = connections_table(&connection_rows(&lines, true).rows);
        let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["7", "1", "[::1]:9", "open", "1m09s", "77", "1s"]);
    }

    #[test]
    fn lines_of_another_version_are_not_just_left_out() {
        let Rows { rows, unread } = connection_rows("{\"id\":7}\n{\"id\":8}\n", false);
        assert_eq!(rows, []);
        let unread = unread.unwrap();
        assert!(unread.starts_with("2 lines of the list can't be read"), "{unread}");
        assert!(unread.contains("another version: missing field"), "{unread}");
    }
}
