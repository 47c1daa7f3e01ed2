//! What an application counts by names and codes of its own. It is known before the first
//! fork and never changes, so every process has it, and the zone has numbers only.

/// The most counters of an application.
pub const APP_COUNTERS_MAX: usize = 64;

/// The most message codes that are counted each by itself.
pub const CODES_MAX: usize = 255;

/// Rows of the table of codes: the last one is for all codes that have no row of their own.
pub(super) const CODE_ROWS: usize = CODES_MAX + 1;

/// The names of an application's counters, and the message codes that have handlers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    counters: Vec<String>,
    /// Ascending.
    codes: Vec<u16>,
}

impl Catalog {
    /// Of [`CODES_MAX`] codes each is counted by itself; of more, the lowest ones are, and the
    /// rest together.
    ///
    /// # Panics
    /// On more than [`APP_COUNTERS_MAX`] counters.
    #[must_use]
    pub fn new(counters: Vec<String>, mut codes: Vec<u16>) -> Self {
        assert!(counters.len() <= APP_COUNTERS_MAX, "{} counters", counters.len());
        codes.sort_unstable();
        codes.dedup();
        Self { counters, codes }
    }

    /// The names of the application's counters, in their order.
    #[must_use]
    pub fn counters(&self) -> &[String] {
        &self.counters
    }

    /// Where the code is counted.
    #[must_use]
    pub fn row_of(&self, code: u16) -> CodeRow {
        let place = self.codes.binary_search(&code).unwrap_or(CODES_MAX);
        CodeRow(place.min(CODES_MAX))
    }

    /// The code of each row that is in use; `None`: the codes that have none of their own.
    pub(super) fn rows(&self) -> impl Iterator<Item = Option<u16>> {
        let own = self.codes.iter().take(CODES_MAX).copied().map(Some);
        own.chain((self.codes.len() > CODES_MAX).then_some(None))
    }
}

/// A row of the table of codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeRow(usize);

impl CodeRow {
    pub(super) fn index(self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many codes, not in their order.
    fn catalog(codes: usize) -> Catalog {
        Catalog::new(Vec::new(), (0..u16::try_from(codes).unwrap()).rev().collect())
    }

    #[test]
    fn one_code_more_than_there_are_rows_has_none_of_its_own() {
        let full = catalog(CODES_MAX);
        assert_eq!(full.rows().count(), CODES_MAX);
        assert!(full.rows().zip(0..).all(|(row, code)| row == Some(code)));
        let more = catalog(CODES_MAX + 1);
        assert_eq!(more.rows().count(), CODE_ROWS);
        assert_eq!(more.rows().last(), Some(None));
        let rows = [0, 254, 255].map(|code| more.row_of(code).index());
        assert_eq!(rows, [0, CODES_MAX - 1, CODES_MAX]);
        let many = catalog(60_000);
        assert_eq!((many.rows().count(), many.row_of(59_999)), (CODE_ROWS, CodeRow(CODES_MAX)));
    }

    #[test]
    #[should_panic(expected = "65 counters")]
    fn the_table_of_counters_is_bounded() {
        let _ = Catalog::new((0..=APP_COUNTERS_MAX).map(|nth| nth.to_string()).collect(), vec![]);
    }
}
