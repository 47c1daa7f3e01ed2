//! The plain text of `chappe status`, from the object that the master sends: sections, of
//! which each has what belongs together. Counters that are 0 are left out unless asked for.

use std::fmt::Write;

use super::codes;
use super::counters::{
    APPLICATION, OTHERS, PERMIT_POSTS, READY_POSTS, SECTIONS, SEMAPHORES, SEND_POSTS, add_times,
    name_width, percentile, section_of, turns,
};
use crate::control::{
    CodeStatus, Counters, HubReader, HubStatus, MasterStatus, MetricsStatus, PermitShare, Permits,
    Reloaded, Status, Vacancy, WorkerStatus,
};
use crate::program;

/// Whether counters that are 0 are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Zeros {
    Shown,
    LeftOut,
}

/// All sections.
pub(crate) fn table(status: &Status, zeros: Zeros) -> String {
    let mut text = head(status);
    text.push_str("\nworkers\n");
    text.push_str(&workers(&status.workers));
    for Vacancy { worker, due_in_ms } in &status.vacancies {
        let _ = writeln!(text, "  worker {worker} died, replaced in {due_in_ms} ms");
    }
    text.push_str("\nsemaphores\n");
    text.push_str(&semaphores(status));
    text.push_str(&counters(status, zeros));
    text.push_str(&code_rows(&status.codes, zeros));
    text.push_str(&thread_turns(&status.workers));
    text.push_str(&left_out(status, zeros));
    text
}

/// Who it is, and what a person should know first.
fn head(status: &Status) -> String {
    let mut text = String::new();
    let master = &status.master;
    let state = if master.stopping { ", stopping" } else { "" };
    // Writing to a String can't fail.
    let _ = writeln!(
        text,
        "{} {}, master pid {}, up {}, generation {}{state}\nlistening on {}",
        program::get().name,
        master.version,
        master.pid,
        duration(master.uptime_ms),
        master.generation,
        addresses(master),
    );
    if let Some(hub) = &status.hub {
        let _ = writeln!(text, "{}", hub_line(hub));
    }
    if let Some(MetricsStatus { address, pid }) = &status.metrics {
        let _ = writeln!(text, "metrics at http://{address}/, pid {}", number(*pid));
    }
    if let Some(last) = &status.reload.last {
        let why = last.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
        let (count, outcome) = (status.reload.count, last.outcome);
        let _ = writeln!(text, "reloads {count}, the last {outcome}{why}");
    }
    for warning in &master.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    text
}

/// The hub, and the workers that have something to read.
fn hub_line(hub: &HubStatus) -> String {
    let HubStatus { pid, offset, topics, patterns, workers, .. } = hub;
    let pid = number(*pid);
    let mut text =
        format!("hub pid {pid}, {offset} messages, {topics} topics, {patterns} of them patterns");
    for HubReader { worker, behind_bytes, .. } in workers.iter().filter(|it| it.behind_bytes > 0) {
        let _ = write!(text, ", worker {worker} has {behind_bytes} bytes to read");
    }
    text
}

/// Where the server listens, what is spoken there, and where nobody can come.
fn addresses(master: &MasterStatus) -> String {
    let listen = master.listen.iter().enumerate().map(|(nth, address)| {
        let protocol = master.listeners.get(nth).map(|listener| listener.protocol.as_str());
        let is_gone = master.unreachable.contains(address);
        let gone = is_gone.then_some("file gone, reload to make it again");
        let notes: Vec<_> = [protocol, gone].into_iter().flatten().collect();
        if notes.is_empty() { address.clone() } else { format!("{address} ({})", notes.join(", ")) }
    });
    listen.collect::<Vec<_>>().join(" ")
}

fn workers(workers: &[WorkerStatus]) -> String {
    let head = [
        "no", "gen", "pid", "state", "up", "conns", "blocked", "busy", "received", "sent", "inbox",
        "outbox",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    for worker in workers {
        rows.push([
            worker.worker.to_string(),
            worker.generation.to_string(),
            worker.pid.to_string(),
            worker.state.clone(),
            duration(worker.uptime_ms),
            worker.connections.to_string(),
            worker.connections_blocked.to_string(),
            worker.handlers_busy.to_string(),
            worker.counters.get("frames_received").to_string(),
            worker.counters.get("frames_sent").to_string(),
            worker.inbox_bytes.to_string(),
            worker.outbox_bytes.to_string(),
        ]);
    }
    let widths = row_widths(&rows);
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("  {cell:>width$}"));
        let _ = writeln!(text, "{}", cells.collect::<String>());
    }
    text
}

/// A semaphore, its value and how often it was posted.
pub(super) type SemaphoreRow = (String, Option<u64>, u64);

/// `worker_ready`, `connection_permits`, and the send semaphore of each worker.
pub(super) fn semaphore_rows(status: &Status) -> Vec<SemaphoreRow> {
    let shown = status.semaphores.connection_permits.map(u64::from);
    // What the master has given back is beside the semaphore.
    let permits = status.permits.as_ref().map(|books| books.free.saturating_sub(books.credit));
    let mut rows = vec![
        (
            "worker_ready".to_owned(),
            status.semaphores.worker_ready.map(u64::from),
            status.total(READY_POSTS),
        ),
        ("connection_permits".to_owned(), permits.or(shown), status.total(PERMIT_POSTS)),
    ];
    rows.extend(status.workers.iter().map(|worker| {
        let value = worker.send_semaphore.map(u64::from);
        (send_name(worker), value, worker.counters.get(SEND_POSTS))
    }));
    rows
}

/// Two generations have the same numbers for a while.
fn send_name(worker: &WorkerStatus) -> String {
    let WorkerStatus { worker: number, state, .. } = worker;
    let note = if state == "draining" { ", draining" } else { "" };
    format!("send, worker {number}{note}")
}

fn semaphores(status: &Status) -> String {
    let rows = semaphore_rows(status);
    let width = name_width(rows.iter().map(|(name, ..)| name.as_str()));
    let mut text = format!("  {:<width$}{:>8}{:>16}\n", "", "value", "posts");
    for (name, value, posts) in rows {
        let _ = writeln!(text, "  {name:<width$}{:>8}{posts:>16}", number(value));
    }
    if let Some(books) = &status.permits {
        let _ = writeln!(text, "  {}", permit_books(books));
    }
    text
}

/// `permits 6 = 1 free + 5 held (worker 0: 3, worker 1: 2)`: where all of them are.
pub(super) fn permit_books(books: &Permits) -> String {
    let Permits { limit, debt, free, credit, held, workers } = books;
    let mut text = format!("permits {limit}");
    if *debt > 0 {
        let _ = write!(text, " + {debt} lent under a higher limit");
    }
    let _ = write!(text, " = {free} free");
    if *credit > 0 {
        let _ = write!(text, " ({credit} of them beside the semaphore)");
    }
    let _ = write!(text, " + {held} held");
    let share = |PermitShare { worker, held, .. }: &PermitShare| format!("worker {worker}: {held}");
    let shares: Vec<_> = workers.iter().map(share).collect();
    if !shares.is_empty() {
        let _ = write!(text, " ({})", shares.join(", "));
    }
    // Between a death and the master's settlement.
    let missing = (limit + debt).saturating_sub(free + held);
    if missing > 0 {
        let _ = write!(text, " + {missing} of dead workers, coming back");
    }
    text
}

fn is_shown(value: u64, zeros: Zeros) -> bool {
    value > 0 || zeros == Zeros::Shown
}

/// The counters of all sections but that of the semaphores.
fn totals(status: &Status) -> impl Iterator<Item = (&str, u64)> {
    let totals = status.totals.iter().flat_map(Counters::iter);
    totals.filter(|(name, _)| section_of(name) != SEMAPHORES)
}

/// The sections of counters.
fn counters(status: &Status, zeros: Zeros) -> String {
    let shown: Vec<_> = totals(status).filter(|(_, value)| is_shown(*value, zeros)).collect();
    let width = name_width(shown.iter().map(|(name, _)| *name));
    let mut text = String::new();
    let names = SECTIONS.iter().map(|(section, _)| *section).chain([APPLICATION, OTHERS]);
    for section in names {
        let of_it = shown.iter().filter(|(name, _)| section_of(name) == section);
        let mut rows: Vec<_> = of_it.copied().collect();
        rows.sort_by_key(|(name, _)| place_of(name));
        if rows.is_empty() {
            continue;
        }
        let _ = writeln!(text, "\n{section}");
        for (name, value) in rows {
            let _ = writeln!(text, "  {name:<width$}{value:>24}");
        }
    }
    text
}

/// What was counted of each message code.
fn code_rows(codes: &[CodeStatus], zeros: Zeros) -> String {
    let mut shown = codes.iter().filter(|code| is_shown(code.calls, zeros)).peekable();
    if shown.peek().is_none() {
        return String::new();
    }
    let mut text = format!(
        "\ncodes\n  {:>6}{:>16}{:>12}{:>8}{:>8}  runs\n",
        "code", "calls", "errors", "p50", "p99"
    );
    for code in shown {
        let (p50, p99) = (codes::time(code, code.p50_us), codes::time(code, code.p99_us));
        let (name, runs) = (codes::name(code), codes::runs(code));
        let CodeStatus { calls, errors, .. } = code;
        let _ = writeln!(text, "  {name:>6}{calls:>16}{errors:>12}{p50:>8}{p99:>8}  {runs}");
    }
    text
}

fn thread_turns(workers: &[WorkerStatus]) -> String {
    let mut times = Vec::new();
    workers.iter().for_each(|worker| add_times(&mut times, &worker.handler_times));
    let count = turns(&times);
    if count == 0 {
        return String::new();
    }
    let (p50, p99) = (percentile(&times, 50), percentile(&times, 99));
    format!("\nturns of handler threads {count}, p50 {p50}, p99 {p99}\n")
}

/// How much was left out.
fn left_out(status: &Status, zeros: Zeros) -> String {
    let counters = totals(status).filter(|(_, value)| !is_shown(*value, zeros)).count();
    let codes = status.codes.iter().filter(|code| !is_shown(code.calls, zeros)).count();
    let mut text = String::new();
    if counters > 0 {
        let _ = writeln!(text, "\ncounters left out since they are 0: {counters} (--all)");
    }
    if codes > 0 {
        let blank = if counters > 0 { "" } else { "\n" };
        let _ =
            writeln!(text, "{blank}codes left out since nobody has called them: {codes} (--all)");
    }
    text
}

/// The order within all sections.
fn place_of(counter: &str) -> usize {
    let mut names = SECTIONS.iter().flat_map(|(_, names)| *names);
    names.position(|name| *name == counter).unwrap_or(usize::MAX)
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
    use crate::control::{LastReload, ListenerStatus, ReloadOutcome};

    fn status() -> Status {
        let mut status = Status::example();
        status.master.listen.push("[::1]:2".to_owned());
        status.master.listeners.push(ListenerStatus::example("[::1]:2", "resp"));
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
    fn the_sections_follow_each_other_and_zeros_are_left_out() {
        let text = table(&status(), Zeros::LeftOut);
        let expected = "\
chappe 9.9, master pid 1, up 5s, generation 2
listening on 127.0.0.1:1 (chappe) [::1]:2 (resp)
hub pid 73, 12 messages, 3 topics, 1 of them patterns, worker 1 has 4096 bytes to read
metrics at http://127.0.0.1:9/, pid 72
reloads 1, the last ok

workers
  no  gen  pid     state     up  conns  blocked  busy  received  sent  inbox   outbox
   0    2   70   serving  1m09s     12        1     2      1000  1000  20000  5000000
   1    2   71  draining  1m09s     12        1     2      1000  1000  20000  5000000
  worker 2 died, replaced in 100 ms

semaphores
                               value           posts
  worker_ready                     0               0
  connection_permits              99               0
  send, worker 0                   1               0
  send, worker 1, draining         1               0
  permits 123 = 99 free + 24 held (worker 0: 12, worker 1: 12)

messages
  frames_received                               2000

codes
    code           calls      errors     p50     p99  runs
       0            1990           9    ≤1us   ≤20ms  loop in 1 of 2 workers
      16              10           1    ≤1us   ≤20ms  threads

turns of handler threads 8, p50 ≤10us, p99 ≤10us

counters left out since they are 0: 1 (--all)
codes left out since nobody has called them: 1 (--all)
";
        assert_eq!(text, expected);
        let mut gone = status();
        gone.master.unreachable.push("[::1]:2".to_owned());
        let text = table(&gone, Zeros::LeftOut);
        assert!(text.contains("[::1]:2 (resp, file gone, reload to make it again)"), "{text}");
        // A server of another version does not tell the protocols.
        gone.master.listeners.clear();
        let text = table(&gone, Zeros::LeftOut);
        assert!(text.contains("listening on 127.0.0.1:1 [::1]:2 (file gone, "), "{text}");
        let all = table(&status(), Zeros::Shown);
        assert!(
            all.contains("\nserver\n  workers_died                                     0\n"),
            "{all}"
        );
        assert!(!all.contains("--all"), "{all}");
        assert!(
            all.contains("\n      17               0           0       -       -  blocking\n"),
            "{all}"
        );
        let mut none = status();
        none.codes.clear();
        assert!(!table(&none, Zeros::Shown).contains("codes"));
    }

    #[test]
    fn counters_of_the_application_have_a_section_and_room_for_their_names() {
        let mut status = status();
        let name = format!("app_{}", "x".repeat(40));
        let totals = [("frames_received", 5), (&name, 7), ("app_logins", 0), ("app_sold", 8)];
        status.totals = Some(totals.into_iter().collect());
        let text = table(&status, Zeros::LeftOut);
        let width = name.len();
        let expected = format!(
            "\nmessages\n  {:<width$}{:>24}\n\napplication\n  {:<width$}{:>24}\n  {name}{:>24}\n",
            "frames_received", 5, "app_sold", 8, 7
        );
        assert!(text.contains(&expected), "{text}");
        assert!(text.contains("since they are 0: 1 (--all)"), "{text}");
    }

    #[test]
    fn what_belongs_to_no_section_is_shown_all_the_same() {
        let mut status = status();
        status.totals = Some([("of_tomorrow", 7)].into_iter().collect());
        let text = table(&status, Zeros::LeftOut);
        assert!(text.contains("\nothers\n  of_tomorrow "), "{text}");
    }

    #[test]
    fn the_books_of_the_permits_add_up_whatever_has_happened() {
        let share = |worker: u16, held| PermitShare { worker, pid: 1, held };
        let books = |limit, debt, free, credit, held: [u64; 2]| {
            let workers = vec![share(0, held[0]), share(1, held[1])];
            permit_books(&Permits { limit, debt, free, credit, held: held.iter().sum(), workers })
        };
        let rows = [
            (books(6, 0, 1, 0, [3, 2]), "permits 6 = 1 free + 5 held (worker 0: 3, worker 1: 2)"),
            (
                books(6, 0, 4, 3, [0, 2]),
                "permits 6 = 4 free (3 of them beside the semaphore) + 2 held (worker 0: 0, worker 1: 2)",
            ),
            (
                books(2, 3, 0, 0, [3, 2]),
                "permits 2 + 3 lent under a higher limit = 0 free + 5 held (worker 0: 3, worker 1: 2)",
            ),
            (
                books(6, 0, 1, 0, [0, 2]),
                "permits 6 = 1 free + 2 held (worker 0: 0, worker 1: 2) + 3 of dead workers, coming back",
            ),
        ];
        for (text, expected) in rows {
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn a_semaphore_is_shown_without_the_credit_beside_it() {
        let mut status = status();
        let books = status.permits.as_mut().unwrap();
        books.credit = 9;
        let rows = semaphore_rows(&status);
        assert_eq!(rows[1], ("connection_permits".to_owned(), Some(90), 0));
        status.permits = None;
        assert_eq!(semaphore_rows(&status)[1].1, Some(99), "better than nothing");
        status.workers[0].send_semaphore = None;
        assert!(table(&status, Zeros::LeftOut).contains("  send, worker 0                   -  "));
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
        let text = table(&status, Zeros::LeftOut);
        assert!(text.contains("reloads 3, the last failed: why\n"));
    }
}
