//! The plain table of `chappe status`, from the object that the master sends.

use std::fmt::Write;

use serde_json::Value;

/// One row a worker, then the semaphores and what was counted.
pub(crate) fn table(status: &Value) -> String {
    let mut text = String::new();
    let master = &status["master"];
    let addresses: Vec<_> = master["listen"].as_array().into_iter().flatten().map(plain).collect();
    let state = if master["stopping"] == true { ", stopping" } else { "" };
    // Writing to a String can't fail.
    let _ = writeln!(
        text,
        "chappe {}, master pid {}, up {}, generation {}{state}\nlistening on {}\n",
        plain(&master["version"]),
        plain(&master["pid"]),
        uptime(&master["uptime_ms"]),
        plain(&master["generation"]),
        addresses.join(" "),
    );
    if let Some(address) = status["metrics"]["address"].as_str() {
        let pid = plain(&status["metrics"]["pid"]);
        let _ = writeln!(text, "metrics at http://{address}/, pid {pid}\n");
    }
    let last = &status["reload"]["last"];
    if !last.is_null() {
        let why = last["reason"].as_str().map_or(String::new(), |reason| format!(": {reason}"));
        let (count, outcome) = (plain(&status["reload"]["count"]), plain(&last["outcome"]));
        let _ = writeln!(text, "reloads {count}, the last {outcome}{why}\n");
    }
    for warning in master["warnings"].as_array().into_iter().flatten() {
        let _ = writeln!(text, "warning: {}\n", plain(warning));
    }
    text.push_str(&workers(&status["workers"]));
    for vacancy in status["vacancies"].as_array().into_iter().flatten() {
        let due = plain(&vacancy["due_in_ms"]);
        let _ = writeln!(text, "worker {} died, replaced in {due} ms", plain(&vacancy["worker"]));
    }
    text.push('\n');
    let groups = ["semaphores", "totals"];
    let rows: Vec<_> =
        groups.iter().flat_map(|group| status[group].as_object().into_iter().flatten()).collect();
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in rows {
        let _ = writeln!(text, "{name:<width$}{:>16}", plain(value));
    }
    text
}

/// What a reload that went well has done.
pub(crate) fn outcome(outcome: &Value) -> String {
    let list = |name: &str| -> Vec<String> {
        outcome[name].as_array().into_iter().flatten().map(plain).collect()
    };
    let changed = list("changed");
    let mut text = format!(
        "reloaded: generation {}, workers {}, ready in {} ms\nchanged: {}\n",
        plain(&outcome["generation"]),
        plain(&outcome["workers"]),
        plain(&outcome["ready_ms"]),
        if changed.is_empty() { "nothing".to_owned() } else { changed.join(", ") },
    );
    let restart = list("restart");
    if !restart.is_empty() {
        let _ = writeln!(text, "needs a restart: {}", restart.join(", "));
    }
    for warning in list("warnings") {
        let _ = writeln!(text, "warning: {warning}");
    }
    text
}

fn workers(workers: &Value) -> String {
    let head = ["worker", "pid", "state", "up", "connections", "busy", "received", "sent"];
    let mut rows = vec![head.map(str::to_owned)];
    for worker in workers.as_array().into_iter().flatten() {
        rows.push([
            plain(&worker["worker"]),
            plain(&worker["pid"]),
            plain(&worker["state"]),
            uptime(&worker["uptime_ms"]),
            plain(&worker["connections"]),
            plain(&worker["handlers_busy"]),
            plain(&worker["counters"]["frames_received"]),
            plain(&worker["counters"]["frames_sent"]),
        ]);
    }
    let widths = row_widths(&rows);
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<_> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:>width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  "));
    }
    text
}

/// How wide each column has to be.
pub(super) fn row_widths<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> [usize; COLUMNS] {
    std::array::from_fn(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn uptime(millis: &Value) -> String {
    duration(millis.as_u64().unwrap_or(0))
}

/// `3d04h`, `2h05m`, `1m09s`, `12s`: two units are enough.
pub(super) fn duration(millis: u64) -> String {
    let seconds = millis / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_have_two_units() {
        let rows = [(999, "0s"), (69_000, "1m09s"), (7_500_000, "2h05m"), (273_600_000, "3d04h")];
        for (millis, text) in rows {
            assert_eq!(uptime(&json!(millis)), text);
        }
    }

    #[test]
    fn the_table_has_a_row_a_worker_and_the_totals() {
        let text = table(&json!({
            "master": { "pid": 1, "version": "9.9", "uptime_ms": 5000, "generation": 1,
                        "listen": ["127.0.0.1:1", "[::1]:2"] },
            "workers": [{ "worker": 0, "pid": 77, "state": "serving", "uptime_ms": 4000,
                          "connections": 3, "handlers_busy": 1,
                          "counters": { "frames_received": 12345, "frames_sent": 6 } }],
            "semaphores": { "worker_ready": 0, "connection_permits": 99 },
            "totals": { "frames_received": 12345 },
        }));
        assert!(text.starts_with("chappe 9.9, master pid 1, up 5s, generation 1\n"), "{text}");
        assert!(text.contains("listening on 127.0.0.1:1 [::1]:2\n"), "{text}");
        let row = text.lines().find(|line| line.contains("77")).unwrap();
        let cells: Vec<_> = row.split_whitespace().collect();
        assert_eq!(cells, ["0", "77", "serving", "4s", "3", "1", "12345", "6"]);
        assert!(
            text.lines()
                .any(|line| line.starts_with("connection_permits") && line.ends_with(" 99"))
        );
    }

    #[test]
    fn numbers_stand_in_one_column_however_long_a_name_is() {
        let text = table(&json!({
            "semaphores": { "worker_ready": 0 },
            "totals": { "connections_refused_per_ip": 12, "frames_sent": 345_678_901_234_u64 },
        }));
        let rows: Vec<_> = text.lines().rev().take(3).collect();
        assert!(rows.iter().all(|row| row.len() == rows[0].len()), "{text}");
    }

    #[test]
    fn a_reload_says_what_has_changed_and_what_has_not() {
        let text = outcome(&json!({
            "ok": true, "generation": 4, "workers": 2, "ready_ms": 17,
            "changed": ["log.level", "listen [::1]:2 added"], "restart": ["user"],
            "warnings": ["few descriptors"],
        }));
        assert_eq!(
            text,
            "reloaded: generation 4, workers 2, ready in 17 ms\n\
             changed: log.level, listen [::1]:2 added\n\
             needs a restart: user\nwarning: few descriptors\n"
        );
        assert!(outcome(&json!({})).contains("changed: nothing\n"));
        let failed =
            json!({ "reload": { "count": 3, "last": { "outcome": "failed", "reason": "why" } } });
        assert!(table(&failed).contains("reloads 3, the last failed: why\n"));
    }

    #[test]
    fn an_object_of_another_version_is_no_panic() {
        assert!(!table(&json!({})).is_empty());
    }
}
