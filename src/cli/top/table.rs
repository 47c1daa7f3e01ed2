//! The table of processes: which columns a screen has room for, and how they are drawn.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Span;
use ratatui::widgets::{Cell, Row, Table};

use super::Top;
use super::keys::Sort;
use super::processes::{ProcessRow, WorkerRow};
use super::units::{dash, percent, rate, short};
use crate::cli::status::duration;

/// A column: its head, its width, the order in which columns get their room, what it sorts
/// by, and what is in it.
struct Column {
    head: &'static str,
    width: u16,
    rank: u8,
    sort: Option<Sort>,
    text: fn(&ProcessRow) -> String,
}

/// Text for what only workers have.
fn of_worker(row: &ProcessRow, text: impl FnOnce(&WorkerRow) -> String) -> String {
    row.worker.as_ref().map(text).unwrap_or_default()
}

const fn column(
    head: &'static str,
    width: u16,
    rank: u8,
    sort: Option<Sort>,
    text: fn(&ProcessRow) -> String,
) -> Column {
    Column { head, width, rank, sort, text }
}

const COLUMNS: &[Column] = &[
    column("process", 10, 0, Some(Sort::Worker), |row| row.name.clone()),
    column("pid", 7, 0, None, |row| row.pid.to_string()),
    column("gen", 3, 13, None, |row| of_worker(row, |it| it.generation.to_string())),
    column("state", 8, 1, None, |row| row.state.clone()),
    column("up", 6, 6, None, |row| row.uptime_ms.map(duration).unwrap_or_default()),
    column("cpu%", 5, 0, Some(Sort::Cpu), |row| percent(row.cpu)),
    column("mem", 5, 0, Some(Sort::Memory), |row| row.memory.map_or_else(dash, short)),
    column("conns", 5, 0, Some(Sort::Connections), |row| {
        of_worker(row, |it| short(it.connections.into()))
    }),
    column("full", 5, 3, None, |row| of_worker(row, |it| short(it.blocked.into()))),
    column("in/s", 5, 0, Some(Sort::Received), |row| of_worker(row, |it| rate(it.received))),
    column("out/s", 5, 0, Some(Sort::Sent), |row| of_worker(row, |it| rate(it.sent))),
    column("B in/s", 6, 7, None, |row| of_worker(row, |it| rate(it.bytes_received))),
    column("B out/s", 7, 8, None, |row| of_worker(row, |it| rate(it.bytes_sent))),
    column("sem", 3, 12, None, |row| of_worker(row, |it| it.semaphore.map_or_else(dash, short))),
    column("posts", 5, 12, None, |row| of_worker(row, |it| short(it.posts))),
    column("posts/s", 7, 12, None, |row| of_worker(row, |it| rate(it.posts_rate))),
    column("busy", 4, 9, None, |row| of_worker(row, |it| it.handlers_busy.to_string())),
    column("p50", 6, 5, None, |row| of_worker(row, |it| it.p50.clone())),
    column("p99", 6, 2, None, |row| of_worker(row, |it| it.p99.clone())),
    column("inbox", 5, 10, None, |row| of_worker(row, |it| short(it.inbox_bytes))),
    column("outbox", 6, 4, None, |row| of_worker(row, |it| short(it.outbox_bytes))),
];

/// The columns that a screen of this width has room for, in their order.
fn columns(width: u16) -> Vec<&'static Column> {
    let mut by_rank: Vec<_> = COLUMNS.iter().enumerate().collect();
    by_rank.sort_by_key(|(place, column)| (column.rank, *place));
    let mut left = width + 1;
    let mut shown: Vec<_> = by_rank
        .into_iter()
        .map_while(|(place, column)| {
            left = left.checked_sub(column.width + 1)?;
            Some((place, column))
        })
        .collect();
    shown.sort_by_key(|(place, _)| *place);
    shown.into_iter().map(|(_, column)| column).collect()
}

impl Top {
    /// The head, and as many processes as there is room for.
    pub(super) fn draw_processes(&self, frame: &mut Frame<'_>, area: Rect) {
        let columns = columns(area.width);
        let room = usize::from(area.height.saturating_sub(1));
        let processes = self.processes();
        let scrolled = self.choice.scrolled.min(processes.len().saturating_sub(room));
        let rows = processes.iter().skip(scrolled).map(|process| {
            Row::new(columns.iter().map(|column| self.cell(column, process)).collect::<Vec<_>>())
        });
        let head = Row::new(columns.iter().map(|column| self.head_of(column)).collect::<Vec<_>>());
        let widths: Vec<_> = columns.iter().map(|it| Constraint::Length(it.width)).collect();
        let style = Style::new().fg(Color::Black).bg(Color::Green);
        frame.render_widget(Table::new(rows, widths).header(head.style(style)), area);
    }

    /// What is sorted by stands out, with the direction.
    fn head_of(&self, column: &Column) -> Cell<'static> {
        let is_sorted = column.sort == Some(self.choice.sort);
        let text = aligned(column, column.head.to_owned());
        if !is_sorted {
            return Cell::from(text);
        }
        let style = Style::new().fg(Color::Black).bg(Color::Cyan).add_modifier(Modifier::BOLD);
        Cell::from(Span::styled(text, style))
    }

    fn cell(&self, column: &Column, process: &ProcessRow) -> Cell<'static> {
        let text = aligned(column, (column.text)(process));
        Cell::from(Span::styled(text, style_of(column, process)))
    }
}

/// Names on the left, numbers on the right.
fn aligned(column: &Column, text: String) -> String {
    let width = usize::from(column.width);
    match column.head {
        "process" | "state" => format!("{text:<width$}"),
        _ => format!("{text:>width$}"),
    }
}

/// What deserves a look has a colour.
fn style_of(column: &Column, process: &ProcessRow) -> Style {
    let plain = Style::new();
    let worker = process.worker.as_ref();
    match column.head {
        "process" => plain.add_modifier(Modifier::BOLD),
        "state" => match process.state.as_str() {
            "serving" => plain.fg(Color::Green),
            "starting" => plain.fg(Color::Cyan),
            _ => plain.fg(Color::Yellow),
        },
        "cpu%" => match process.cpu {
            Some(cpu) if cpu >= 90.0 => plain.fg(Color::Red).add_modifier(Modifier::BOLD),
            Some(cpu) if cpu >= 50.0 => plain.fg(Color::Yellow),
            _ => plain,
        },
        "full" if worker.is_some_and(|it| it.blocked > 0) => plain.fg(Color::Yellow),
        "pid" | "gen" | "up" => plain.fg(Color::DarkGray),
        _ => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wider_screen_has_all_columns_of_a_narrower_one_and_they_fit() {
        let mut before = 0;
        for width in 0..=200 {
            let columns = columns(width);
            let used: u16 = columns.iter().map(|column| column.width + 1).sum();
            assert!(used <= width + 1, "{width}");
            assert!(columns.len() >= before, "{width}");
            before = columns.len();
        }
        assert_eq!(before, COLUMNS.len());
        let heads = |width| columns(width).iter().map(|it| it.head).collect::<Vec<_>>().join(" ");
        assert_eq!(heads(60), "process pid state cpu% mem conns in/s out/s");
        let of_80 = "process pid state cpu% mem conns full in/s out/s p99 outbox";
        assert_eq!(heads(80), of_80);
    }
}
