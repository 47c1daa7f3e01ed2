//! The table of message codes: the busiest first, as many as there is room for.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::{Color, Style};
use ratatui::widgets::{Row, Table};

use super::units::{rate as rate_text, short};
use super::view::{heading, right};
use super::{Top, descending, rate};
use crate::cli::codes;
use crate::control::{CodeStatus, Status};

/// How many codes are shown, on the largest screen.
const CODES_MAX: usize = 10;

/// A code that was called, ready to be shown.
#[derive(Debug)]
pub(super) struct CodeRow {
    pub(super) code: CodeStatus,
    /// Calls in a second.
    pub(super) rate: Option<f64>,
}

impl Top {
    /// The busiest first; those that nobody has called only if zeros were chosen.
    pub(super) fn codes(&self) -> Vec<CodeRow> {
        let calls_before = |code: Option<u16>| {
            let before = self.before().map(|status: &Status| &status.codes)?;
            before.iter().find(|it| it.code == code).map(|it| it.calls)
        };
        let codes = self.status().into_iter().flat_map(|status| &status.codes);
        let row = |code: &CodeStatus| CodeRow {
            code: code.clone(),
            rate: rate(code.calls, calls_before(code.code), self.seconds()),
        };
        let is_shown = |code: &&CodeStatus| code.calls > 0 || self.choice.zeros;
        let mut rows: Vec<_> = codes.filter(is_shown).map(row).collect();
        rows.sort_by(|one, other| {
            let by_calls = other.code.calls.cmp(&one.code.calls);
            descending(one.rate, other.rate).then(by_calls)
        });
        rows
    }

    /// Lines of the table, the one below it included, if `left` lines are left: 0 if there is no
    /// room for a code.
    pub(super) fn code_lines(&self, left: u16) -> u16 {
        let codes = u16::try_from(self.codes().len().min(CODES_MAX)).unwrap_or(0);
        let wanted = if codes == 0 { 0 } else { codes + 2 };
        if left < 3 { 0 } else { wanted.min(left) }
    }

    pub(super) fn draw_codes(&self, frame: &mut Frame<'_>, area: Rect) {
        let room = usize::from(area.height.saturating_sub(2));
        if room == 0 {
            return;
        }
        let rows = self.codes().into_iter().take(room).map(|CodeRow { code, rate }| {
            let moves = rate.is_some_and(|rate| rate > 0.0);
            let row = Row::new([
                right(&codes::name(&code), 6),
                right(&rate_text(rate), 7),
                right(&short(code.calls), 6),
                right(&short(code.errors), 6),
                right(&codes::time(&code, code.p50_us), 7),
                right(&codes::time(&code, code.p99_us), 7),
                codes::runs(&code),
            ]);
            row.style(if moves { Style::new() } else { Style::new().fg(Color::DarkGray) })
        });
        let widths = [6, 7, 6, 6, 7, 7, 26].map(Constraint::Length);
        let head = heading([
            right("code", 6),
            right("calls/s", 7),
            right("calls", 6),
            right("errors", 6),
            right("p50", 7),
            right("p99", 7),
            "runs".to_owned(),
        ]);
        frame.render_widget(Table::new(rows, widths).header(head), area);
    }
}
