//! The master's own figures: what it has given out, and what it has counted.
//!
//! Every worker can write the whole zone, and one that was taken over may. So the master
//! writes these figures out, for all to read, and never reads them back from there. What a
//! worker says of itself in its slot (how far it is, what it holds and counts) is read, and
//! bounded by what the worker was given.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use chappe_sys::Semaphore;

use super::catalog::Catalog;
use super::counter::CounterValues;
use super::figures::Figures;
use super::layout::{Layout, SLOTS};
use super::slot::SlotState;
use super::zone::bits;

/// What the master gave a worker with its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// The number of its table of addresses, from 0.
    pub(super) table: Option<usize>,
    /// The most permits that it can hold.
    pub(super) held_max: u64,
}

/// The master's own figures. In a process that is not the master they mean nothing.
#[derive(Debug)]
pub(super) struct Own {
    /// The slots that are in use.
    pub(super) claims: BTreeMap<usize, Claim>,
    /// Where the search for a free slot begins.
    pub(super) next_slot: usize,
    /// One bit for each table of addresses, set while a worker has it.
    pub(super) tables: [u64; SLOTS / 64],
    /// How many connections all workers may have together, and the most there ever were.
    pub(super) limit: u32,
    pub(super) limit_max: u32,
    /// What workers that are gone have counted, and the master itself.
    pub(super) totals: CounterValues,
    /// What applications in workers that are gone have counted.
    pub(super) figures: Figures,
    /// As in `Totals`.
    pub(super) sequence: u64,
    /// A worker has written what no correct program writes, and whether `take_damage` has
    /// said so.
    pub(super) is_damaged: bool,
    pub(super) was_told: bool,
}

impl Own {
    /// As it stands in the zone. Of a new zone, or of one that is taken over from another
    /// program.
    pub(super) fn of_zone(layout: &Layout, catalog: &Catalog) -> Self {
        let mut totals = CounterValues::default();
        totals.add_line(&layout.totals.counters);
        let mut figures = Figures::new(catalog);
        figures.add_cells(&layout.figures);
        let limit = layout.permit_pool.limit.load(Ordering::Relaxed).min(Semaphore::VALUE_MAX);
        let claim = |index: usize| {
            let table = layout.slots[index].identity.peer_table.load(Ordering::Relaxed);
            let table = usize::try_from(table).ok().and_then(|table| table.checked_sub(1));
            let table = table.filter(|&table| table < SLOTS);
            Claim { table, held_max: u64::from(Semaphore::VALUE_MAX) }
        };
        let is_used = |index: &usize| {
            let state = layout.states[*index].load(Ordering::Acquire);
            SlotState::from_cell(state) != SlotState::Free
        };
        let claims: BTreeMap<_, _> =
            bits(&layout.live).filter(is_used).map(|index| (index, claim(index))).collect();
        let mut tables = [0; SLOTS / 64];
        for number in claims.values().filter_map(|claim| claim.table) {
            tables[number / 64] |= 1 << (number % 64);
        }
        Self {
            claims,
            next_slot: 0,
            tables,
            limit,
            limit_max: limit,
            totals,
            figures,
            sequence: layout.totals.sequence.load(Ordering::Relaxed) & !1,
            is_damaged: false,
            was_told: false,
        }
    }

    pub(super) fn has_table(&self, number: usize) -> bool {
        self.tables[number / 64] & (1 << (number % 64)) != 0
    }
}
