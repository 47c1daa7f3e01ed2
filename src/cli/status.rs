//! The plain table of `chappe status`, from the object that the master sends.

use std::fmt::Write;

use crate::control::{
    Counters, MetricsStatus, Reloaded, Semaphores, Status, Vacancy, WorkerStatus,
};

/// One row a worker, then the semaphores and what was counted.
pub(crate) fn table(status: &Status) -> String {
    let mut text = String::new();
    let master = &status.master;
    let state = if master.stopping { ", stopping" } else { "" };
    // Writing to a String can't fail.
    let _ = writeln!(
        text,
        "chappe {}, master pid {}, up {}, generation {}{state}\nlistening on {}\n",
        master.version,
        master.pid,
        duration(master.uptime_ms),
        master.generation,
        master.listen.join(" "),
    );
    if let Some(MetricsStatus { address, pid }) = &status.metrics {
        let _ = writeln!(text, "metrics at http://{address}/, pid {}\n", number(*pid));
    }
    if let Some(last) = &status.reload.last {
        let why = last.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
        let (count, outcome) = (status.reload.count, last.outcome);
        let _ = writeln!(text, "reloads {count}, the last {outcome}{why}\n");
    }
    for warning in &master.warnings {
        let _ = writeln!(text, "warning: {warning}\n");
    }
    text.push_str(&workers(&status.workers));
    for Vacancy { worker, due_in_ms } in &status.vacancies {
        let _ = writeln!(text, "worker {worker} died, replaced in {due_in_ms} ms");
    }
    text.push('\n');
    let semaphores = semaphores(&status.semaphores);
    let totals = status.totals.iter().flat_map(Counters::iter);
    let totals = totals.map(|(name, total)| (name, total.to_string()));
    let rows: Vec<_> = semaphores.into_iter().chain(totals).collect();
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in rows {
        let _ = writeln!(text, "{name:<width$}{value:>16}");
    }
    text
}

/// By the names that they have in the status.
pub(super) fn semaphores(semaphores: &Semaphores) -> [(&'static str, String); 2] {
    [
        ("connection_permits", number(semaphores.connection_permits)),
        ("worker_ready", number(semaphores.worker_ready)),
    ]
}

/// What a reload that went well has done.
pub(crate) fn outcome(outcome: &Reloaded) -> String {
    let Reloaded { generation, workers, ready_ms, changed, restart, warnings, .. } = outcome;
    let nothing = ["nothing".to_owned()];
    let changed = if changed.is_empty() { &nothing } else { changed.as_slice() };
    let mut text = format!(
        "reloaded: generation {generation}, workers {workers}, ready in {ready_ms} ms\n\
         changed: {}\n",
        changed.join(", "),
    );
    if !restart.is_empty() {
        let _ = writeln!(text, "needs a restart: {}", restart.join(", "));
    }
    for warning in warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    text
}

fn workers(workers: &[WorkerStatus]) -> String {
    let head = ["worker", "pid", "state", "up", "connections", "busy", "received", "sent"];
    let mut rows = vec![head.map(str::to_owned)];
    for worker in workers {
        rows.push([
            worker.worker.to_string(),
            worker.pid.to_string(),
            worker.state.clone(),
            duration(worker.uptime_ms),
            worker.connections.to_string(),
            worker.handlers_busy.to_string(),
            worker.counters.get("frames_received").to_string(),
            worker.counters.get("frames_sent").to_string(),
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

fn number(number: Option<impl ToString>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
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
    use crate::control::{LastReload, ReloadOutcome};

    fn status() -> Status {
        let mut status = Status::example();
        status.master.listen.push("[::1]:2".to_owned());
        status
    }

    #[test]
    fn times_have_two_units() {
        let rows = [(999, "0s"), (69_000, "1m09s"), (7_500_000, "2h05m"), (273_600_000, "3d04h")];
        for (millis, text) in rows {
            assert_eq!(duration(millis), text);
        }
    }

    #[test]
    fn the_table_has_a_row_a_worker_and_the_totals() {
        let text = table(&status());
        assert!(text.starts_with("chappe 9.9, master pid 1, up 5s, generation 2\n"), "{text}");
        assert!(text.contains("listening on 127.0.0.1:1 [::1]:2\n"), "{text}");
        let row = text.lines().find(|line| line.contains("serving")).unwrap();
        let cells: Vec<_> = row.split_whitespace().collect();
        assert_eq!(cells, ["0", "70", "serving", "1m09s", "12", "2", "1000", "1000"]);
        assert!(
            text.lines()
                .any(|line| line.starts_with("connection_permits") && line.ends_with(" 99"))
        );
    }

    #[test]
    fn numbers_stand_in_one_column_however_long_a_name_is() {
        let mut status = status();
        let totals = [("connections_refused_per_ip", 12), ("frames_sent", 345_678_901_234)];
        status.totals = Some(totals.into_iter().collect());
        let text = table(&status);
        let rows: Vec<_> = text.lines().rev().take(3).collect();
        assert!(rows.iter().all(|row| row.len() == rows[0].len()), "{text}");
    }

    #[test]
    fn a_reload_says_what_has_changed_and_what_has_not() {
        let mut reloaded = Reloaded {
            ok: true,
            generation: 4,
            workers: 2,
            ready_ms: 17,
            changed: vec!["log.level".to_owned(), "listen [::1]:2 added".to_owned()],
            restart: vec!["user".to_owned()],
            warnings: vec!["few descriptors".to_owned()],
        };
        assert_eq!(
            outcome(&reloaded),
            "reloaded: generation 4, workers 2, ready in 17 ms\n\
             changed: log.level, listen [::1]:2 added\n\
             needs a restart: user\nwarning: few descriptors\n"
        );
        reloaded.changed.clear();
        assert!(outcome(&reloaded).contains("changed: nothing\n"));
        let mut status = status();
        let reason = Some("why".to_owned());
        status.reload.count = 3;
        status.reload.last = Some(LastReload { outcome: ReloadOutcome::Failed, reason, at: 0 });
        assert!(table(&status).contains("reloads 3, the last failed: why\n"));
    }
}
