//! Where a setting was written, and the list of what is wrong with it.
//!
//! A place is kept as a byte offset; line and column are counted only for what is shown, so a
//! file full of mistakes costs no more than a good one. Must never panic on any offset.

use std::fmt;
use std::rc::Rc;

use super::ConfigErrors;

/// Most mistakes that are shown; the rest is counted.
pub(super) const FAULTS_SHOWN_MAX: usize = 100;

/// A file, or one `--set`.
#[derive(Debug)]
pub(super) struct Origin {
    /// Files in the order of reading, then overrides: the order in which mistakes are shown.
    pub(super) order: usize,
    /// The path as the operator gave it, or `--set key=value`.
    pub(super) shown: String,
    /// The text that offsets point into; `None`: there are no lines to name.
    pub(super) text: Option<String>,
}

impl Origin {
    /// The order of the first override: behind all files.
    pub(super) const OVERRIDES_FROM: usize = usize::MAX / 2;

    pub(super) fn is_override(&self) -> bool {
        self.order >= Self::OVERRIDES_FROM
    }
}

/// A place in an origin: what every message begins with.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) origin: Rc<Origin>,
    pub(super) offset: usize,
}

impl Place {
    pub(super) fn start_of(origin: &Rc<Origin>) -> Self {
        Self { origin: Rc::clone(origin), offset: 0 }
    }

    /// Line and column, both from 1; columns are characters.
    fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
        let mut offset = offset.min(text.len());
        while !text.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = &text[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        (line, before[line_start..].chars().count() + 1)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.origin.shown))?;
        let Some(text) = &self.origin.text else { return Ok(()) };
        let (line, column) = Self::line_and_column(text, self.offset);
        write!(f, ":{line}:{column}")
    }
}

/// One mistake or one warning: where, and one sentence about it.
#[derive(Debug)]
pub(super) struct Note {
    place: Place,
    text: String,
}

/// Notes in the making. Sorted and turned into lines at the end.
#[derive(Debug, Default)]
pub(super) struct Notes {
    notes: Vec<Note>,
}

impl Notes {
    pub(super) fn add(&mut self, place: &Place, text: impl Into<String>) {
        self.notes.push(Note { place: place.clone(), text: text.into() });
    }

    pub(super) fn append(&mut self, mut other: Self) {
        self.notes.append(&mut other.notes);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.notes.is_empty()
    }

    /// Whether one is about exactly this place.
    pub(super) fn has(&self, place: &Place) -> bool {
        let is_there = |note: &Note| {
            note.place.offset == place.offset && Rc::ptr_eq(&note.place.origin, &place.origin)
        };
        self.notes.iter().any(is_there)
    }

    /// What is wrong with files, and what is wrong with overrides.
    pub(super) fn split(self) -> (Self, Self) {
        let (overrides, files) =
            self.notes.into_iter().partition(|note| note.place.origin.is_override());
        (Self { notes: files }, Self { notes: overrides })
    }

    /// One line a note, in the order in which a reader meets the places.
    pub(super) fn into_lines(mut self) -> Vec<String> {
        self.notes.sort_by_key(|note| (note.place.origin.order, note.place.offset));
        let hidden = self.notes.len().saturating_sub(FAULTS_SHOWN_MAX);
        let shown = self.notes.iter().take(FAULTS_SHOWN_MAX);
        let mut lines: Vec<String> =
            shown.map(|note| format!("{}: {}", note.place, note.text)).collect();
        if hidden > 0 {
            lines.push(format!("and {hidden} more mistakes"));
        }
        lines
    }

    /// The mistakes as an error, if there are any.
    pub(super) fn into_result(self) -> Result<(), ConfigErrors> {
        if self.notes.is_empty() {
            return Ok(());
        }
        Err(ConfigErrors { lines: self.into_lines() })
    }
}

/// `text` on one line: a name from outside must not forge lines of a log or a terminal.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_characters_and_both_count_from_one() {
        for (text, offset, expected) in [
            ("", 0, (1, 1)),
            ("ab", 1, (1, 2)),
            ("ab", 99, (1, 3)),
            ("a\nb", 1, (1, 2)),
            ("a\nb", 2, (2, 1)),
            ("é = 1", 3, (1, 3)),
            ("é", 1, (1, 1)),
        ] {
            assert_eq!(Place::line_and_column(text, offset), expected, "{text:?} at {offset}");
        }
    }

    #[test]
    fn more_mistakes_than_fit_are_counted() {
        let origin = Rc::new(Origin { order: 0, shown: "f".into(), text: None });
        let mut notes = Notes::default();
        for _ in 0..FAULTS_SHOWN_MAX + 2 {
            notes.add(&Place::start_of(&origin), "is wrong");
        }
        let lines = notes.into_lines();
        assert_eq!(lines.len(), FAULTS_SHOWN_MAX + 1);
        assert_eq!(lines.last().map(String::as_str), Some("and 2 more mistakes"));
    }

    #[test]
    fn a_name_cannot_forge_a_line() {
        assert_eq!(printable("a\nb\u{1b}[1m é"), "a\\nb\\u{1b}[1m é");
    }
}
