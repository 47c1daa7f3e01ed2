//! The screen: from top to bottom who it is, the workers, the counters, the slowest
//! connections. What does not fit is cut at the bottom of its part.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Row, Table};

use super::{Top, TotalRow};
use crate::cli::counters::SEND_POSTS;
use crate::cli::status::{SemaphoreRow, duration, permit_books, semaphore_rows};
use crate::control::{LastReload, MasterStatus, ReloadStatus, Status};

/// How many slow connections are shown.
const SLOW_ROWS: u16 = 8;

/// A counter, by the longest name that one has, with its total and its rate.
const TOTAL_COLUMNS: [Constraint; 3] =
    [Constraint::Length(26), Constraint::Length(6), Constraint::Length(6)];
const TOTAL_WIDTH: u16 = 40;

impl Top {
    /// Draws all of it.
    pub(crate) fn draw(&self, frame: &mut Frame<'_>) {
        let workers = self.workers();
        let rows = |count: usize| u16::try_from(count).unwrap_or(u16::MAX).saturating_add(2);
        let slow = self.last.as_ref().map_or(0, |s| s.slow.as_ref().map_or(1, Vec::len));
        let [head, middle, totals, bottom] = Layout::vertical([
            Constraint::Length(5),
            Constraint::Max(rows(workers.len())),
            Constraint::Fill(1),
            Constraint::Max(rows(slow).min(SLOW_ROWS + 2)),
        ])
        .areas(frame.area());
        frame.render_widget(Paragraph::new(self.head()), head);
        self.draw_workers(frame, middle);
        self.draw_totals(frame, totals);
        self.draw_slow(frame, bottom);
    }

    fn head(&self) -> Vec<Line<'static>> {
        let first = match self.status() {
            None => [String::from("chappe top: asking the master"), String::new(), String::new()],
            Some(status) => [who(status), semaphores(status), permits(status)],
        };
        let last = match &self.problem {
            Some(problem) => Line::styled(
                format!("{problem}; trying again"),
                Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
            ),
            None => Line::from("q quits"),
        };
        first.into_iter().map(Line::from).chain([last]).collect()
    }

    fn draw_workers(&self, frame: &mut Frame<'_>, area: Rect) {
        let head = [
            "no", "gen", "pid", "state", "up", "conns", "blkd", "busy", "in/s", "out/s", "inbox",
            "outbox",
        ];
        let rows = self.workers().into_iter().map(|worker| {
            let row = Row::new([
                worker.number.to_string(),
                worker.generation.to_string(),
                worker.pid.to_string(),
                worker.state.clone(),
                duration(worker.uptime_ms),
                worker.connections.to_string(),
                worker.blocked.to_string(),
                worker.handlers_busy.to_string(),
                per_second(worker.received),
                per_second(worker.sent),
                short(worker.inbox_bytes),
                short(worker.outbox_bytes),
            ]);
            if worker.state == "serving" { row } else { row.style(Style::new().fg(Color::Yellow)) }
        });
        let widths = [3, 3, 7, 8, 6, 6, 4, 4, 6, 6, 6, 6].map(Constraint::Length);
        frame.render_widget(Table::new(rows, widths).header(heading(head)), area);
    }

    /// In as many columns as there is room for.
    fn draw_totals(&self, frame: &mut Frame<'_>, area: Rect) {
        let totals = self.totals();
        let columns = usize::from((area.width / TOTAL_WIDTH).max(1));
        let per_column = totals.len().div_ceil(columns).max(1);
        let parts = Layout::horizontal(vec![Constraint::Length(TOTAL_WIDTH); columns]).split(area);
        for (rows, part) in totals.chunks(per_column).zip(parts.iter()) {
            let rows = rows.iter().map(|TotalRow { name, total, rate }| {
                Row::new([name.clone(), short(*total), per_second(*rate)])
            });
            let table = Table::new(rows, TOTAL_COLUMNS);
            frame.render_widget(table.header(heading(["counter", "total", "/s"])), *part);
        }
    }

    fn draw_slow(&self, frame: &mut Frame<'_>, area: Rect) {
        let Some(sample) = &self.last else { return };
        let rows = match &sample.slow {
            Err(problem) => {
                let text = format!("slow connections: {problem}");
                return frame.render_widget(Paragraph::new(text), area);
            }
            Ok(rows) if rows.is_empty() => {
                return frame.render_widget(Paragraph::new("no slow connections"), area);
            }
            Ok(rows) => rows,
        };
        let rows = rows.iter().map(|row| {
            Row::new([
                row.id.to_string(),
                row.worker.to_string(),
                row.peer.clone(),
                row.state.clone(),
                short(row.queued_bytes),
                row.blocked_ms.map_or_else(|| "-".to_owned(), duration),
            ])
        });
        let widths = [10, 6, 28, 10, 8, 8].map(Constraint::Length);
        let head = heading(["slow id", "worker", "peer", "state", "queued", "blocked"]);
        frame.render_widget(Table::new(rows, widths).header(head), area);
    }
}

/// The first line.
fn who(status: &Status) -> String {
    let MasterStatus { version, pid, uptime_ms, generation, stopping, .. } = &status.master;
    let ReloadStatus { count, last } = &status.reload;
    let reload = last.as_ref().map_or_else(String::new, |LastReload { outcome, .. }| {
        format!("; reloads {count}, the last {outcome}")
    });
    format!(
        "chappe {version}, master pid {pid}, up {}, generation {generation}{reload}{}",
        duration(*uptime_ms),
        if *stopping { ", stopping" } else { "" },
    )
}

/// The second line: value and posts of each semaphore, those of the workers together.
fn semaphores(status: &Status) -> String {
    let rows = semaphore_rows(status);
    let (shared, send) = rows.split_at(2);
    let show = |(name, value, posts): &SemaphoreRow| {
        let value = value.map_or_else(|| "-".to_owned(), short);
        format!("{name} {value} ({} posts)", short(*posts))
    };
    let sum = |sum: u64, (_, value, _): &SemaphoreRow| sum + value.unwrap_or(0);
    let posts = status.total(SEND_POSTS);
    let send = ("send".to_owned(), Some(send.iter().fold(0, sum)), posts);
    let shown: Vec<_> = shared.iter().chain([&send]).map(show).collect();
    format!("semaphores: {}", shown.join(", "))
}

/// The third line.
fn permits(status: &Status) -> String {
    status.permits.as_ref().map(permit_books).unwrap_or_default()
}

fn heading<const COLUMNS: usize>(names: [&'static str; COLUMNS]) -> Row<'static> {
    Row::new(names).style(Style::new().add_modifier(Modifier::BOLD))
}

fn per_second(rate: Option<f64>) -> String {
    match rate {
        None => "-".to_owned(),
        Some(rate) if rate > 0.0 && rate < 10.0 => format!("{rate:.1}"),
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate is not negative, and one beyond u64 is shown as the most"
        )]
        Some(rate) => short(rate.round() as u64),
    }
}

/// At most six characters: `999`, `12.3k`, `4096k`, `1.2G`.
fn short(number: u64) -> String {
    let units = [("T", 1_000_000_000_000), ("G", 1_000_000_000), ("M", 1_000_000), ("k", 1000)];
    // Four digits are as short as three with a unit.
    let unit = units.into_iter().find(|(_, size)| number >= 10 * size);
    match unit {
        None => number.to_string(),
        Some((unit, size)) if number >= 100 * size => format!("{}{unit}", number / size),
        Some((unit, size)) => {
            format!("{}.{}{unit}", number / size, number % size * 10 / size)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::top::Sample;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use std::time::{Duration, Instant};

    #[test]
    fn numbers_are_short() {
        let rows = [
            (0, "0"),
            (9_999, "9999"),
            (10_000, "10.0k"),
            (99_999, "99.9k"),
            (100_000, "100k"),
            (9_999_999, "9999k"),
            (12_345_678, "12.3M"),
            (u64::MAX, "18446744T"),
        ];
        for (number, text) in rows {
            assert_eq!(short(number), text);
        }
        assert_eq!(per_second(None), "-");
        assert_eq!(per_second(Some(0.0)), "0");
        assert_eq!(per_second(Some(0.25)), "0.2");
        assert_eq!(per_second(Some(12.6)), "13");
    }

    fn drawn(top: &Top, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| top.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| {
            let cells = (0..width).map(|x| buffer[(x, y)].symbol());
            cells.collect::<String>().trim_end().to_owned()
        };
        (0..height).map(line).collect()
    }

    fn status(frames: u64) -> Status {
        let mut status = Status::example();
        for worker in &mut status.workers {
            let counters = [("frames_received", frames), ("frames_sent", frames)];
            worker.counters = counters.into_iter().collect();
        }
        let totals = [("frames_received", 2 * frames), ("workers_died", 0)];
        status.totals = Some(totals.into_iter().collect());
        status
    }

    const SLOW: &str = "{\"id\":17,\"worker\":1,\"peer\":\"[::1]:9\",\"state\":\"open\",\
        \"connected_ms\":69000,\"received_bytes\":1,\"sent_bytes\":2,\"queued_bytes\":917632,\
        \"blocked_ms\":21000}\n";

    fn top() -> Top {
        let (start, mut top) = (Instant::now(), Top::default());
        top.hear(Ok(Sample::new(start, status(1000), Ok(SLOW))));
        top.hear(Ok(Sample::new(start + Duration::from_secs(1), status(1500), Ok(SLOW))));
        top
    }

    #[test]
    fn the_screen_has_workers_counters_and_slow_connections() {
        let lines = drawn(&top(), 80, 24);
        let words = |needle: &str| {
            let line = lines.iter().find(|line| line.contains(needle));
            let line = line.unwrap_or_else(|| panic!("no {needle} in {lines:#?}"));
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            lines[0],
            "chappe 9.9, master pid 1, up 5s, generation 2; reloads 1, the last ok"
        );
        assert!(
            lines[1].starts_with("semaphores: worker_ready 0 (0 posts), connection_permits 99")
        );
        let books = "permits 123 = 99 free + 24 held (worker 0: 12, worker 1: 12)";
        assert_eq!(lines[2], books);
        assert_eq!(lines[3], "q quits");
        assert_eq!(words("serving"), "0 2 70 serving 1m09s 12 1 2 500 500 20.0k 5000k");
        assert_eq!(words("draining"), "1 2 71 draining 1m09s 12 1 2 500 500 20.0k 5000k");
        assert_eq!(words("frames_received"), "frames_received 3000 1000");
        assert_eq!(words("[::1]:9"), "17 1 [::1]:9 open 917k 21s");
        assert!(!lines.iter().any(|line| line.contains("workers_died")), "it is 0");
    }

    #[test]
    fn a_counter_is_shown_by_its_whole_name() {
        const LONGEST: &str = "connections_refused_per_ip";
        let mut status = status(1);
        status.totals = Some([(LONGEST, 12_345_678), ("workers_died", 1)].into_iter().collect());
        let mut top = Top::default();
        top.hear(Ok(Sample::new(Instant::now(), status, Ok(SLOW))));
        let lines = drawn(&top, 80, 24);
        let line = format!("{LONGEST} 12.3M");
        assert!(lines.iter().any(|shown| shown.starts_with(&line)), "{lines:#?}");
    }

    #[test]
    fn a_problem_is_said_and_the_last_numbers_stay() {
        let mut top = top();
        top.hear(Err("no master is running".to_owned()));
        let lines = drawn(&top, 80, 24);
        assert_eq!(lines[3], "no master is running; trying again");
        assert!(lines.iter().any(|line| line.contains("serving")), "{lines:#?}");
        let mut first = Top::default();
        assert_eq!(drawn(&first, 80, 5)[0], "chappe top: asking the master");
        first.hear(Err("no master is running".to_owned()));
        assert_eq!(drawn(&first, 80, 5)[3], "no master is running; trying again");
    }

    #[test]
    fn no_size_is_a_panic() {
        for (width, height) in [(0, 0), (1, 1), (10, 3), (39, 2), (79, 5), (400, 120)] {
            drawn(&top(), width, height);
        }
    }
}
