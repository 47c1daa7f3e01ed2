//! The screen: from top to bottom who it is, meters and semaphores, the processes, the
//! counters, the slowest connections, the keys. What does not fit is cut at the bottom of
//! its part.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Table};

use super::keys::SORTS;
use super::units::{dash, percent, rate, short};
use super::{Top, TotalRow};
use crate::cli::counters::{SEND_POSTS, name_width};
use crate::cli::status::{SemaphoreRow, duration, permit_books, semaphore_rows};
use crate::control::{LastReload, MasterStatus, ReloadStatus, Status};
use crate::program;

/// How many slow connections are shown.
const SLOW_ROWS: u16 = 8;
/// Lines that the counters have left, however many processes there are.
const TOTAL_ROWS_MIN: u16 = 5;
/// Lines above the processes.
const HEAD_ROWS: u16 = 6;

/// Up to this many workers, the head shows the send semaphore of each.
const SEND_VALUES_MAX: usize = 8;

/// What a counter has beside its name: its total, its rate, and the gaps.
const BESIDE_NAME: u16 = 5 + 5 + 4;

/// Blocks of a meter that is not full.
const FILLED: &str = "|";

impl Top {
    /// Draws all of it.
    pub(crate) fn draw(&self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let rows = |count: usize| u16::try_from(count).unwrap_or(u16::MAX).saturating_add(1);
        let slow = self.last.as_ref().map_or(0, |s| s.slow.as_ref().map_or(0, Vec::len));
        let slow = rows(slow).min(SLOW_ROWS + 1);
        let beside = HEAD_ROWS + TOTAL_ROWS_MIN + slow + 3;
        let processes = rows(self.processes().len()).min(area.height.saturating_sub(beside).max(4));
        let totals = self.totals();
        let (columns, total_width) = total_columns(&totals, area.width);
        let needed = HEAD_ROWS + processes + 1 + rows(totals.len().div_ceil(columns)) + slow + 2;
        let codes = self.code_lines(area.height.saturating_sub(needed.max(beside)));
        let [head, middle, _, codes, counters, bottom, keys] = Layout::vertical([
            Constraint::Length(HEAD_ROWS),
            Constraint::Length(processes),
            Constraint::Length(1),
            Constraint::Length(codes),
            Constraint::Fill(1),
            Constraint::Max(slow),
            Constraint::Length(1),
        ])
        .areas(area);
        frame.render_widget(Paragraph::new(self.head(head.width)), head);
        self.draw_processes(frame, middle);
        self.draw_codes(frame, codes);
        draw_totals(frame, counters, &totals, columns, total_width);
        self.draw_slow(frame, bottom);
        frame.render_widget(Paragraph::new(self.keys(keys.width)), keys);
    }

    fn head(&self, width: u16) -> Vec<Line<'static>> {
        let mut lines = match self.status() {
            None => vec![Line::from("chappe top: asking the master")],
            Some(status) => vec![
                who(status),
                self.traffic(),
                self.meters(status, width),
                Line::from(permits(status, width)),
                semaphores(status, self.rate_of(SEND_POSTS), width),
            ],
        };
        lines.extend(self.problem.as_ref().map(|problem| {
            let style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
            Line::styled(format!("{problem}; trying again"), style)
        }));
        lines
    }

    /// What the whole server does in a second.
    fn traffic(&self) -> Line<'static> {
        let of = |name: &str| value(rate(self.rate_of(name)));
        Line::from(vec![
            "messages ".into(),
            of("frames_received"),
            "/s in ".into(),
            of("frames_sent"),
            "/s out  bytes ".into(),
            of("bytes_received"),
            "/s in ".into(),
            of("bytes_sent"),
            "/s out".into(),
        ])
    }

    /// CPU and permits as bars, memory as a number.
    fn meters(&self, status: &Status, width: u16) -> Line<'static> {
        let cpu = self.cpu_of_all();
        let memory = short(self.memory_of_all());
        #[expect(clippy::cast_precision_loss, reason = "for a bar")]
        let (cpus, held, limit) = match &status.permits {
            Some(books) => (self.cpus as f64, books.held as f64, books.limit as f64),
            None => (self.cpus as f64, 0.0, 0.0),
        };
        let bar = (usize::from(width).saturating_sub(52) / 2).clamp(4, 30);
        let mut spans = vec![Span::from("cpu ")];
        let most = if self.cpus > 0 { format!("/{}00", self.cpus) } else { String::new() };
        spans.extend(meter(bar, cpu.unwrap_or(0.0), 100.0 * cpus));
        spans.push(Span::from(format!(" {}{most}%  permits ", percent(cpu))));
        spans.extend(meter(bar, held, limit));
        let text = status.permits.as_ref().map_or_else(
            || "-".to_owned(),
            |books| format!("{}/{}", short(books.held), short(books.limit)),
        );
        spans.push(Span::from(format!(" {text}  mem ")));
        spans.push(value(memory));
        Line::from(spans)
    }

    fn draw_slow(&self, frame: &mut Frame<'_>, area: Rect) {
        let Some(sample) = &self.last else { return };
        let rows = match &sample.slow {
            Err(problem) => {
                let text = format!("slow connections: {problem}");
                return frame.render_widget(Paragraph::new(text), area);
            }
            Ok(rows) if rows.is_empty() => {
                let dim = Style::new().fg(Color::DarkGray);
                return frame.render_widget(Paragraph::new("no slow connections").style(dim), area);
            }
            Ok(rows) => rows,
        };
        let rows = rows.iter().map(|row| {
            let blocked = row.blocked_ms.map_or_else(|| "-".to_owned(), duration);
            Row::new([
                right(&row.id.to_string(), 8),
                right(&row.worker.to_string(), 6),
                row.peer.clone(),
                row.state.clone(),
                right(&short(row.queued_bytes), 6),
                right(&blocked, 7),
            ])
        });
        let widths = [8, 6, 21, 9, 6, 7].map(Constraint::Length);
        let head = heading([
            right("slow id", 8),
            right("worker", 6),
            "peer".to_owned(),
            "state".to_owned(),
            right("queued", 6),
            right("blocked", 7),
        ]);
        frame.render_widget(Table::new(rows, widths).header(head), area);
    }

    /// The footer: as many of the keys as there is room for, the way out first.
    fn keys(&self, width: u16) -> Line<'static> {
        let label = Style::new().fg(Color::Black).bg(Color::Cyan);
        let chosen = label.add_modifier(Modifier::BOLD).bg(Color::Yellow);
        let mut all = vec![("q", "quit", label)];
        let names = ["w", "c", "m", "n", "i", "o"];
        for (name, (_, what, sort)) in names.into_iter().zip(SORTS) {
            all.push((name, what, if sort == self.choice.sort { chosen } else { label }));
        }
        all.push(("r", "reverse", if self.choice.is_reversed { chosen } else { label }));
        all.push(("z", "zeros", if self.choice.zeros { chosen } else { label }));
        all.push(("jk", "scroll", label));
        let mut left = usize::from(width);
        let mut spans = Vec::new();
        for (key, what, style) in all {
            let what = format!(" {what} ");
            let Some(rest) = left.checked_sub(key.len() + what.len()) else { break };
            left = rest;
            spans.push(Span::from(key));
            spans.push(Span::styled(what, style));
        }
        Line::from(spans)
    }
}

/// In how many columns there is room for the counters, and how wide each is.
fn total_columns(totals: &[TotalRow], width: u16) -> (usize, u16) {
    let names = name_width(totals.iter().map(|row| row.name.as_str()));
    let column = u16::try_from(names).unwrap_or(u16::MAX).saturating_add(BESIDE_NAME);
    (usize::from((width / column).max(1)), column)
}

/// In columns; what does not move is dim.
fn draw_totals(frame: &mut Frame<'_>, area: Rect, totals: &[TotalRow], columns: usize, width: u16) {
    let per_column = totals.len().div_ceil(columns).max(1);
    let parts = Layout::horizontal(vec![Constraint::Length(width); columns]).split(area);
    let cells = [width - BESIDE_NAME, 5, 5].map(Constraint::Length);
    for (rows, part) in totals.chunks(per_column).zip(parts.iter()) {
        let rows = rows.iter().map(|TotalRow { name, total, rate: per_second }| {
            let (total, per_second_text) = (short(*total), rate(*per_second));
            let row = Row::new([name.clone(), right(&total, 5), right(&per_second_text, 5)]);
            let moves = per_second.is_some_and(|per_second| per_second > 0.0);
            row.style(if moves { Style::new() } else { Style::new().fg(Color::DarkGray) })
        });
        let head = heading(["counter".to_owned(), right("total", 5), right("/s", 5)]);
        frame.render_widget(Table::new(rows, cells).header(head), *part);
    }
}

/// The first line.
fn who(status: &Status) -> Line<'static> {
    let MasterStatus { version, pid, uptime_ms, generation, stopping, .. } = &status.master;
    let ReloadStatus { count, last } = &status.reload;
    let reload = last.as_ref().map_or_else(String::new, |LastReload { outcome, .. }| {
        format!("; reloads {count}, the last {outcome}")
    });
    let bold = Style::new().add_modifier(Modifier::BOLD);
    Line::from(vec![
        Span::styled(format!("{} {version}", program::get().name), bold),
        Span::from(format!(
            ", master pid {pid}, up {}, generation {generation}{reload}{}",
            duration(*uptime_ms),
            if *stopping { ", stopping" } else { "" },
        )),
    ])
}

/// Where the connection permits are. With many workers only the sums have room.
fn permits(status: &Status, width: u16) -> String {
    let books = status.permits.as_ref().map(permit_books).unwrap_or_default();
    match books.split_once(" (worker") {
        Some((sums, _)) if books.chars().count() > usize::from(width) => sums.to_owned(),
        _ => books,
    }
}

/// Value and posts of each semaphore. The workers' posts are added up; their values are not,
/// since each is a semaphore of its own.
fn semaphores(status: &Status, posts_per_second: Option<f64>, width: u16) -> Line<'static> {
    let rows = semaphore_rows(status);
    let (shared, send) = rows.split_at(2);
    let number = |value: &Option<u64>| value.map_or_else(dash, short);
    let shared = shared.iter().map(|(name, value, posts)| (&**name, number(value), *posts));
    let send = ("send", send_values(send), status.total(SEND_POSTS));
    let mut spans = Vec::new();
    for (name, values, posts) in shared.chain([send]) {
        // On a narrow screen the last word has to do.
        let name = if width < 80 { name.rsplit('_').next().unwrap_or(name) } else { name };
        spans.push(Span::from(format!("{name} ")));
        spans.push(value(values));
        let word = if width < 90 { "" } else { " posts" };
        spans.push(Span::from(format!(" ({}{word})  ", short(posts))));
    }
    spans.push(Span::from(format!("{} posts/s", rate(posts_per_second))));
    Line::from(spans)
}

/// The value of each worker's send semaphore; the highest if they are many.
fn send_values(rows: &[SemaphoreRow]) -> String {
    let values = rows.iter().map(|(_, value, _)| *value);
    if rows.len() > SEND_VALUES_MAX {
        return values.max().flatten().map_or_else(dash, |value| format!("up to {}", short(value)));
    }
    let shown = values.map(|value| value.map_or_else(dash, short));
    shown.collect::<Vec<_>>().join(" ")
}

/// `[|||||     ]`, red when it is nearly full.
fn meter(width: usize, value: f64, most: f64) -> [Span<'static>; 3] {
    let share = if most > 0.0 { (value / most).clamp(0.0, 1.0) } else { 0.0 };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "from 0 to the width"
    )]
    let filled = ((share * width as f64).ceil() as usize).min(width);
    let colour = match share {
        share if share >= 0.9 => Color::Red,
        share if share >= 0.6 => Color::Yellow,
        _ => Color::Green,
    };
    [
        Span::from("["),
        Span::styled(FILLED.repeat(filled), Style::new().fg(colour)),
        Span::from(format!("{}]", " ".repeat(width - filled))),
    ]
}

/// A number that stands out among words.
fn value(text: String) -> Span<'static> {
    Span::styled(text, Style::new().fg(Color::Cyan).add_modifier(Modifier::BOLD))
}

pub(super) fn right(text: &str, width: usize) -> String {
    format!("{text:>width$}")
}

pub(super) fn heading<const COLUMNS: usize>(names: [String; COLUMNS]) -> Row<'static> {
    Row::new(names).style(Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED))
}
