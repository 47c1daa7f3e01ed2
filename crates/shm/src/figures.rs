//! What an application counts: its own counters, and the calls of each message code.
//!
//! Any of its threads may count, so each count is an atomic addition. That is for what is
//! added up before (the calls of a turn) or is rare (an error, a call that was timed).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use chappe_sys::Shared;

use super::buckets::{bucket_of, percentile_us};
use super::catalog::{APP_COUNTERS_MAX, CODE_ROWS, Catalog, CodeRow};
use super::layout::{CODE_BUCKETS, CodeLine, FiguresLayout, RunsLine};
use super::slot::Slot;
use super::zone::Zone;

/// The upper bounds, in microseconds, of the buckets in which calls are counted by the time
/// that they took; what took longer is in one more.
pub const CODE_BOUNDS_US: [u64; CODE_BUCKETS - 1] = [
    1,
    2,
    5,
    10,
    20,
    50,
    100,
    200,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    10_000_000,
    100_000_000,
];

/// Where a handler runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Runs {
    /// On the handler threads, until it has proven to be quick.
    Threads = 1,
    /// On the event loop.
    Loop = 2,
    /// On the handler threads, since its author says that it may wait.
    Blocking = 3,
}

impl Runs {
    fn from_cell(value: u32) -> Option<Self> {
        [Self::Threads, Self::Loop, Self::Blocking].into_iter().find(|&it| it as u32 == value)
    }

    /// The word in `status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::Loop => "loop",
            Self::Blocking => "blocking",
        }
    }
}

/// The pens of one worker, for any of its threads.
#[derive(Clone, Debug)]
pub struct AppFigures {
    catalog: Arc<Catalog>,
    figures: Shared<FiguresLayout>,
    runs: Shared<RunsLine>,
    /// The event loop runs handlers.
    on_loop: bool,
}

impl AppFigures {
    /// Of a worker whose event loop runs no handler (`worker.fuse = false`), however quick.
    #[must_use]
    pub fn without_loop(self) -> Self {
        Self { on_loop: false, ..self }
    }

    /// Figures that no status shows, for tests.
    #[must_use]
    pub fn detached(catalog: Catalog) -> Self {
        let line = || CodeLine {
            calls: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            times: [const { AtomicU64::new(0) }; CODE_BUCKETS],
        };
        let figures = FiguresLayout {
            counters: [const { AtomicU64::new(0) }; APP_COUNTERS_MAX],
            codes: std::array::from_fn(|_| line()),
        };
        let runs = RunsLine { runs: [const { AtomicU32::new(0) }; CODE_ROWS] };
        let (figures, runs) = (Shared::private(figures), Shared::private(runs));
        Self { catalog: Arc::new(catalog), figures, runs, on_loop: true }
    }

    /// What is counted here.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The counter of this name, if there is one.
    #[must_use]
    pub fn counter(&self, name: &str) -> Option<AppCounter> {
        let place = self.catalog.counters().iter().position(|known| known == name)?;
        Some(AppCounter { figures: self.figures.clone(), place })
    }

    /// The handler of a code was called `calls` times.
    pub fn called(&self, row: CodeRow, calls: u64) {
        add(&self.figures.codes[row.index()].calls, calls);
    }

    /// How often handlers of this code were called, in this worker.
    #[must_use]
    pub fn calls(&self, row: CodeRow) -> u64 {
        self.figures.codes[row.index()].calls.load(Ordering::Relaxed)
    }

    /// A call came to an error.
    pub fn failed(&self, row: CodeRow) {
        add(&self.figures.codes[row.index()].errors, 1);
    }

    /// A call was timed.
    pub fn took(&self, row: CodeRow, time: Duration) {
        let seconds_us = time.as_secs().saturating_mul(1_000_000);
        let took_us = seconds_us.saturating_add(time.subsec_nanos().div_ceil(1000).into());
        add(&self.figures.codes[row.index()].times[bucket_of(&CODE_BOUNDS_US, took_us)], 1);
    }

    /// Where the handler of a code runs from now on.
    pub fn set_runs(&self, row: CodeRow, runs: Runs) {
        let runs = if runs == Runs::Loop && !self.on_loop { Runs::Threads } else { runs };
        self.runs.runs[row.index()].store(runs as u32, Ordering::Relaxed);
    }
}

fn add(cell: &AtomicU64, n: u64) {
    if !cfg!(feature = "uncounted") {
        // Relaxed: a count orders nothing.
        cell.fetch_add(n, Ordering::Relaxed);
    }
}

/// One counter of an application, in one worker.
#[derive(Clone, Debug)]
pub struct AppCounter {
    figures: Shared<FiguresLayout>,
    place: usize,
}

impl AppCounter {
    /// Adds `n`; wraps around after 2^64.
    pub fn add(&self, n: u64) {
        add(&self.figures.counters[self.place], n);
    }

    /// What this worker has counted.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.figures.counters[self.place].load(Ordering::Relaxed)
    }
}

/// What was counted of one message code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CodeValues {
    /// Calls of its handler.
    pub calls: u64,
    /// Those that returned an error or panicked.
    pub errors: u64,
    /// Calls that were timed, by the time that they took: see [`CODE_BOUNDS_US`].
    pub times: [u64; CODE_BUCKETS],
}

impl CodeValues {
    /// Calls that were timed.
    #[must_use]
    pub fn timed(&self) -> u64 {
        self.times.iter().fold(0, |sum, &count| sum.saturating_add(count))
    }

    /// The bound that `hundredths` of the timed calls did not exceed. `None`: none was timed,
    /// or it is beyond the last bound.
    #[must_use]
    pub fn percentile_us(&self, hundredths: u64) -> Option<u64> {
        percentile_us(&CODE_BOUNDS_US, &self.times, hundredths)
    }

    fn add_line(&mut self, line: &CodeLine) {
        let add = |sum: &mut u64, cell: &AtomicU64| {
            *sum = sum.wrapping_add(cell.load(Ordering::Relaxed));
        };
        add(&mut self.calls, &line.calls);
        add(&mut self.errors, &line.errors);
        self.times.iter_mut().zip(&line.times).for_each(|(sum, cell)| add(sum, cell));
    }
}

/// What an application has counted: one value for each of its counters, and one row for each
/// of its codes, in the order of the [`Catalog`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    counters: Vec<u64>,
    codes: Vec<CodeValues>,
}

impl Figures {
    /// Nothing counted yet.
    pub(super) fn new(catalog: &Catalog) -> Self {
        Self {
            counters: vec![0; catalog.counters().len()],
            codes: vec![CodeValues::default(); catalog.rows().count()],
        }
    }

    /// The values of the counters.
    #[must_use]
    pub fn counters(&self) -> &[u64] {
        &self.counters
    }

    pub(super) fn add_cells(&mut self, cells: &FiguresLayout) {
        for (sum, cell) in self.counters.iter_mut().zip(&cells.counters) {
            *sum = sum.wrapping_add(cell.load(Ordering::Relaxed));
        }
        self.codes.iter_mut().zip(&cells.codes).for_each(|(sum, line)| sum.add_line(line));
    }

    pub(super) fn write(&self, cells: &FiguresLayout) {
        let write = |cell: &AtomicU64, value: u64| cell.store(value, Ordering::Relaxed);
        cells.counters.iter().zip(&self.counters).for_each(|(cell, &value)| write(cell, value));
        for (line, values) in cells.codes.iter().zip(&self.codes) {
            write(&line.calls, values.calls);
            write(&line.errors, values.errors);
            line.times.iter().zip(values.times).for_each(|(cell, value)| write(cell, value));
        }
    }
}

/// For the next worker of the slot.
pub(super) fn clear(figures: &FiguresLayout, runs: &RunsLine, catalog: &Catalog) {
    Figures::new(catalog).write(figures);
    runs.runs.iter().for_each(|cell| cell.store(0, Ordering::Relaxed));
}

/// What is shown of one message code, or of those that have no row of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeReport {
    /// `None`: all codes beyond the first [`CODES_MAX`](super::CODES_MAX).
    pub code: Option<u16>,
    /// What was counted, by all workers that ever were.
    pub values: CodeValues,
    /// Where its handler runs: on the loop if it does so in any worker. `None`: no worker has
    /// said, or several codes are meant.
    pub runs: Option<Runs>,
    /// Workers in which it runs on the loop.
    pub on_loop: u32,
    /// Workers that there are.
    pub workers: u32,
}

impl Zone {
    /// What the application's workers have counted, the dead ones included; as
    /// [`totals`](Self::totals).
    #[must_use]
    pub fn figures(&self) -> Option<Figures> {
        self.consistent(|| {
            let mut figures = Figures::new(self.catalog());
            figures.add_cells(&self.layout().figures);
            self.live_slots()
                .for_each(|index| figures.add_cells(&self.layout().slots[index].figures));
            figures
        })
    }

    /// The figures of all codes like [`figures`](Self::figures), but by the master's own records. Master only.
    #[must_use]
    pub fn own_figures(&self) -> Figures {
        let own = &self.parts().own;
        let mut figures = own.figures.clone();
        let slots = own.claims.keys().map(|&index| &self.layout().slots[index]);
        slots.for_each(|slot| figures.add_cells(&slot.figures));
        figures
    }

    /// What is shown of each code.
    #[must_use]
    pub fn code_reports(&self, figures: &Figures) -> Vec<CodeReport> {
        let slots: Vec<_> = self.live_slots().map(|index| &self.layout().slots[index]).collect();
        let row = |(row, (code, values)): (usize, (Option<u16>, &CodeValues))| {
            let cells = slots.iter().map(|slot| slot.runs.runs[row].load(Ordering::Relaxed));
            let places: Vec<_> = cells.filter_map(Runs::from_cell).collect();
            let on_loop = places.iter().filter(|&&runs| runs == Runs::Loop).count();
            let runs = if on_loop > 0 { Some(Runs::Loop) } else { places.first().copied() };
            let runs = runs.filter(|_| code.is_some());
            let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            let (on_loop, workers) = (number(on_loop), number(places.len()));
            CodeReport { code, values: *values, runs, on_loop, workers }
        };
        self.catalog().rows().zip(&figures.codes).enumerate().map(row).collect()
    }
}

impl Slot {
    /// What the application in this slot counts with.
    #[must_use]
    pub fn app_figures(&self) -> AppFigures {
        let (zone, index) = (self.zone(), self.index());
        AppFigures {
            catalog: Arc::clone(zone.catalog()),
            figures: zone.mapping().part(|layout| &layout.slots[index].figures),
            runs: zone.mapping().part(|layout| &layout.slots[index].runs),
            on_loop: true,
        }
    }

    /// The values of the application's counters.
    pub(super) fn app_counters(&self) -> Vec<u64> {
        let cells = &self.layout().figures.counters[..self.zone().catalog().counters().len()];
        cells.iter().map(|cell| cell.load(Ordering::Relaxed)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CODES_MAX;

    const US: Duration = Duration::from_micros(1);

    /// With the counters `logins` and `sales`, and the codes 0 and 16.
    fn zone() -> Arc<Zone> {
        let counters = ["logins", "sales"].map(str::to_owned);
        Zone::for_application(1, Catalog::new(counters.into(), vec![16, 0])).unwrap()
    }

    #[test]
    fn the_bounds_are_in_their_order_and_a_part_of_a_microsecond_counts_whole() {
        assert!(CODE_BOUNDS_US.is_sorted());
        let zone = zone();
        let figures = zone.claim_slot(0, 1).unwrap().app_figures();
        let row = figures.catalog().row_of(16);
        for nanos in [0, 1000, 1001, 100_000_000_001] {
            figures.took(row, Duration::from_nanos(nanos));
        }
        let report = zone.code_reports(&zone.figures().unwrap())[1];
        assert_eq!((report.values.times[..2].to_vec(), report.values.timed()), (vec![2, 1], 4));
        assert_eq!(report.values.times[CODE_BUCKETS - 1], 1);
        assert_eq!(
            (report.values.percentile_us(50), report.values.percentile_us(99)),
            (Some(1), None)
        );
    }

    #[test]
    fn what_a_worker_has_counted_stays_when_it_goes_and_its_successor_begins_with_none() {
        for free in [Zone::free, Zone::free_at_stop] {
            let zone = zone();
            for round in 1..=3_u64 {
                let slot = zone.claim_slot(0, 1).unwrap();
                assert_eq!(slot.report().app_counters, [0, 0]);
                let figures = slot.app_figures();
                figures.counter("sales").unwrap().add(5);
                let row = figures.catalog().row_of(16);
                figures.called(row, 7);
                figures.failed(row);
                figures.took(row, 40 * US);
                figures.set_runs(row, Runs::Loop);
                assert_eq!(slot.report().app_counters, [0, 5]);
                let check = || {
                    let all = zone.figures().unwrap();
                    assert_eq!(all, zone.own_figures());
                    assert_eq!(all.counters(), [0, 5 * round]);
                    assert_eq!(all.codes[0], CodeValues::default());
                    let CodeValues { calls, errors, times } = all.codes[1];
                    assert_eq!((calls, errors, times[5]), (7 * round, round, round));
                };
                check();
                free(&zone, &slot);
                free(&zone, &slot);
                check();
            }
        }
    }

    #[test]
    fn a_counter_is_shared_by_all_threads_of_its_worker() {
        let zone = zone();
        let slot = zone.claim_slot(0, 1).unwrap();
        let counter = slot.app_figures().counter("logins").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let counter = counter.clone();
                scope.spawn(move || (0..1000).for_each(|_| counter.add(2)));
            }
        });
        assert_eq!((counter.value(), zone.figures().unwrap().counters()[0]), (8000, 8000));
        assert!(slot.app_figures().counter("unknown").is_none());
    }

    #[test]
    fn a_code_runs_on_the_loop_if_it_does_so_anywhere() {
        let zone = zone();
        let report = |row: usize| {
            let report = zone.code_reports(&zone.figures().unwrap())[row];
            (report.code, report.runs, report.on_loop, report.workers)
        };
        assert_eq!(report(1), (Some(16), None, 0, 0));
        let slots: Vec<_> = (0..3).map(|number| zone.claim_slot(number, 1).unwrap()).collect();
        let row = zone.catalog().row_of(16);
        slots[..2].iter().for_each(|slot| slot.app_figures().set_runs(row, Runs::Threads));
        assert_eq!(report(1), (Some(16), Some(Runs::Threads), 0, 2));
        slots[1].app_figures().set_runs(row, Runs::Loop);
        assert_eq!(report(1), (Some(16), Some(Runs::Loop), 1, 2));
        zone.free(&slots[1]);
        assert_eq!(report(1), (Some(16), Some(Runs::Threads), 0, 1));
        let blocking = zone.catalog().row_of(0);
        slots[0].app_figures().set_runs(blocking, Runs::Blocking);
        assert_eq!(report(0), (Some(0), Some(Runs::Blocking), 0, 1));
    }

    #[test]
    fn codes_beyond_the_table_are_counted_together() {
        let of = |codes: usize| {
            let codes = 0..u16::try_from(codes).unwrap();
            let zone = Zone::for_application(1, Catalog::new(vec![], codes.clone().collect()));
            let zone = zone.unwrap();
            let slot = zone.claim_slot(0, 1).unwrap();
            let figures = slot.app_figures();
            codes.for_each(|code| figures.called(figures.catalog().row_of(code), 1));
            zone.free(&slot);
            let reports = zone.code_reports(&zone.figures().unwrap());
            assert!(
                reports[..CODES_MAX].iter().all(|it| it.values.calls == 1 && it.code.is_some())
            );
            reports[CODES_MAX..].iter().map(|it| (it.code, it.values.calls)).collect::<Vec<_>>()
        };
        assert_eq!(of(CODES_MAX), []);
        assert_eq!(of(CODES_MAX + 1), [(None, 1)]);
        assert_eq!(of(CODES_MAX + 2), [(None, 2)]);
    }
}
