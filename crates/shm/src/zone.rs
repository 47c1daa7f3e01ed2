//! The zone as the master has it: made before the first fork, slots claimed for
//! spawns and freed after deaths, totals over the living and the dead.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chappe_sys::crash::step;
use chappe_sys::{Semaphore, SharedFile, SharedMapping, clock, random};

use super::catalog::Catalog;
use super::counter::{Counter, CounterValues};
use super::figures;
use super::header::{self, ZoneError};
use super::layout::{LINES, Layout, SLOTS, SlotLayout, ZONE_BYTES};
use super::own::{Claim, Own};
use super::peer_tables::PeerTables;
use super::slot::{Slot, SlotState};

/// How often a reader of the totals tries: the master holds the sequence odd for
/// microseconds, or forever if it was killed right then or a worker has written over it.
const TOTALS_TRIES: usize = 50;

/// The shared memory of one master and its workers.
pub struct Zone {
    mapping: Arc<SharedMapping<Layout>>,
    worker_ready: Semaphore,
    connection_permits: Semaphore,
    /// Not in the memory: every process has it from before its fork.
    catalog: Arc<Catalog>,
    parts: Mutex<Parts>,
}

/// What the master replaces in its life. The lock is never contended: only the one thread
/// of the master, or of a worker that was just forked, takes it.
#[derive(Debug)]
pub(super) struct Parts {
    /// `None` in a process that has closed the descriptor.
    pub(super) file: Option<SharedFile>,
    pub(super) peer_tables: PeerTables,
    pub(super) own: Own,
}

impl Zone {
    /// Makes a new zone with permits for `max_connections` connections, for an application
    /// that counts nothing.
    ///
    /// # Errors
    /// When there is no memory or descriptor left, or `max_connections` is beyond
    /// [`Semaphore::VALUE_MAX`].
    pub fn create(max_connections: u32) -> io::Result<Arc<Self>> {
        Self::for_application(max_connections, Catalog::default())
    }

    /// Creates a zone for an application that has counters of its own; otherwise like
    /// [`create`](Self::create).
    ///
    /// # Errors
    /// Those of [`create`](Self::create).
    pub fn for_application(max_connections: u32, catalog: Catalog) -> io::Result<Arc<Self>> {
        let file = SharedFile::create("chappe-zone", ZONE_BYTES)?;
        fill(&file, max_connections)?;
        Ok(Self::map(file, catalog)?)
    }

    /// Maps the zone of another program, by a descriptor that it had from
    /// [`descriptor`](Self::descriptor), and keeps the descriptor. With the tables of
    /// addresses that the other one has mapped, and without what its application has counted.
    ///
    /// # Errors
    /// When it is not a zone, or not one of this program's layout and version.
    pub fn from_descriptor(descriptor: OwnedFd) -> Result<Arc<Self>, ZoneError> {
        Self::map(SharedFile::from_descriptor(descriptor)?, Catalog::default())
    }

    fn map(file: SharedFile, catalog: Catalog) -> Result<Arc<Self>, ZoneError> {
        header::check(&file)?;
        let mapping = file.map::<Layout>(0)?;
        let worker_ready = mapping.find_semaphore(|layout| &layout.worker_ready.semaphore);
        let permits = mapping.find_semaphore(|layout| &layout.permit_pool.permits);
        let peer_tables = PeerTables::of_zone(&file, &mapping)?;
        let damaged = |name| ZoneError::Damaged { name };
        Ok(Arc::new(Self {
            worker_ready: worker_ready.ok_or(damaged("worker_ready"))?,
            connection_permits: permits.ok_or(damaged("connection_permits"))?,
            parts: Mutex::new(Parts {
                file: Some(file),
                peer_tables,
                own: Own::of_zone(&mapping, &catalog),
            }),
            catalog: Arc::new(catalog),
            mapping,
        }))
    }

    /// A descriptor of the zone, to hand on to a program that is to map it. It is closed
    /// by exec unless the caller sees to it.
    ///
    /// # Errors
    /// `NotFound` after [`close_descriptor`](Self::close_descriptor); `EMFILE`.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.parts().file.as_ref().ok_or(io::ErrorKind::NotFound)?.descriptor()
    }

    /// Closes the descriptor in a forked process, which has no use for it. The zone stays
    /// mapped.
    pub fn close_descriptor(&self) {
        self.parts().file = None;
    }

    pub(super) fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn mapping(&self) -> &Arc<SharedMapping<Layout>> {
        &self.mapping
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.mapping
    }

    /// What the application counts.
    #[must_use]
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// The bell that workers ring when they are ready, see `silence_ready`.
    #[must_use]
    pub fn worker_ready(&self) -> &Semaphore {
        &self.worker_ready
    }

    /// Takes the permits of `worker_ready`, before the master looks at the slots, which
    /// say whose they were. At most one for each slot, so that a worker that posts without
    /// end does not keep the master; the rest is taken at the next call. Master only.
    pub fn silence_ready(&self) {
        let rang = |_: &usize| self.sound(self.worker_ready.checked_try_wait()) == Some(true);
        (0..SLOTS).take_while(rang).for_each(drop);
    }

    /// Before a fork: the new worker posts to it, which must not be its end because another
    /// one has written over it. Nobody ever sleeps there, so nobody is forgotten.
    fn repair_ready(&self) {
        if !self.worker_ready.is_intact() {
            self.parts().own.is_damaged = true;
            let made = self.mapping.init_semaphore(|layout| &layout.worker_ready.semaphore, 0);
            made.expect("every semaphore may have no permit");
        }
    }

    /// Notes it when a semaphore has refused what it accepts in a correct program.
    pub(super) fn sound<T>(&self, result: Option<T>) -> Option<T> {
        if result.is_none() {
            self.parts().own.is_damaged = true;
        }
        result
    }

    /// True once, after something was found that no correct program leaves in the zone: a
    /// worker has written over it. Master only.
    pub fn take_damage(&self) -> bool {
        let own = &mut self.parts().own;
        own.is_damaged && !std::mem::replace(&mut own.was_told, true)
    }

    /// The permits for connections that nobody has.
    #[must_use]
    pub fn connection_permits(&self) -> &Semaphore {
        &self.connection_permits
    }

    /// What the send thread of the worker in this place sleeps on. `None`: none ever lived there,
    /// or somebody has written over it.
    #[must_use]
    pub fn send_semaphore(&self, index: usize) -> Option<Semaphore> {
        let index = index % SLOTS;
        self.mapping.find_semaphore(|layout| &layout.slots[index].send.semaphore)
    }

    /// A free slot for a worker that is about to be forked; `None` when all are
    /// taken. Master only.
    ///
    /// The search goes on where the last one ended, so that a slot is reused as
    /// late as possible: a late reader of a dead worker's slot finds the dead one.
    pub fn claim_slot(self: &Arc<Self>, worker: u16, generation: u64) -> Option<Slot> {
        let index = {
            let own = &self.parts().own;
            let slots = (0..SLOTS).map(|step| (own.next_slot + step) % SLOTS);
            slots.into_iter().find(|index| !own.claims.contains_key(index))?
        };
        step("claim: found");
        let table = self.take_peer_table();
        {
            let own = &mut self.parts().own;
            own.next_slot = (index + 1) % SLOTS;
            let held_max = u64::from(Semaphore::VALUE_MAX);
            own.claims.insert(index, Claim { table, held_max });
        }
        let cells = &self.layout().slots[index];
        cells.identity.pid.store(0, Ordering::Relaxed);
        cells.identity.worker.store(u32::from(worker), Ordering::Relaxed);
        cells.identity.generation.store(generation, Ordering::Relaxed);
        cells.identity.started_at_ms.store(clock::monotonic_ms(), Ordering::Relaxed);
        let table = table.and_then(|number| u32::try_from(number + 1).ok());
        cells.identity.peer_table.store(table.unwrap_or(0), Ordering::Relaxed);
        cells.orders.stage.store(0, Ordering::Relaxed);
        cells.orders.log_level.store(0, Ordering::Relaxed);
        cells.orders.behind_bytes.store(0, Ordering::Relaxed);
        cells.event_loop.heartbeat_ms.store(0, Ordering::Relaxed);
        cells.event_loop.wakes_by_ms.store(0, Ordering::Relaxed);
        cells.event_loop.accepting.store(0, Ordering::Relaxed);
        cells.event_loop.connections.store(0, Ordering::Relaxed);
        cells.event_loop.blocked.store(0, Ordering::Relaxed);
        cells.event_loop.blocked_since_ms.store(0, Ordering::Relaxed);
        cells.event_loop.inbox_bytes.store(0, Ordering::Relaxed);
        cells.event_loop.outbox_bytes.store(0, Ordering::Relaxed);
        cells.event_loop.waiting.store(0, Ordering::Relaxed);
        cells.event_loop.held.store(0, Ordering::Relaxed);
        // Even again: the one who lived here may have died inside its bracket.
        cells.event_loop.sequence.store(0, Ordering::Relaxed);
        // Nobody can wait on it: only the slot's own worker ever does, and a slot
        // is free only after the master has seen that worker's end.
        let made = self.mapping.init_semaphore(|layout| &layout.slots[index].send.semaphore, 0);
        made.expect("every semaphore may have no permit");
        self.repair_ready();
        let slot = Slot::new(Arc::clone(self), index);
        slot.set_state(SlotState::Starting);
        self.publish_live(index / 64);
        Some(slot)
    }

    /// The slot of this index, if it is in use. Master only.
    #[must_use]
    pub fn claimed_slot(self: &Arc<Self>, index: usize) -> Option<Slot> {
        let is_claimed = self.parts().own.claims.contains_key(&index);
        is_claimed.then(|| Slot::new(Arc::clone(self), index))
    }

    /// Bounds what the worker of a slot is believed to hold of the permits. Until then
    /// everything is. Master only.
    pub fn bound_held(&self, slot: &Slot, permits: u32) {
        if let Some(claim) = self.parts().own.claims.get_mut(&slot.index()) {
            claim.held_max = u64::from(permits);
        }
    }

    /// Frees the slot of a worker that is gone, moves its counts to the totals, exactly
    /// once, and gives its memory back to the system. What it held of the permits is found
    /// by `settle`. Master only, after `waitpid` has reported the end.
    pub fn free(&self, slot: &Slot) {
        if let Some(cells) = self.fold(slot)
            && self.mapping.clear(|layout| &layout.slots[slot.index()]).is_err()
        {
            // Pages of this machine are larger than a slot's alignment.
            self.clear(cells, LINES);
        }
    }

    /// Frees a slot like [`free`](Self::free), but for a server that stops: the memory goes with it. To give
    /// it back costs a walk over the mappings of all workers, for each of them, and to clear
    /// what was never written costs the pages.
    pub fn free_at_stop(&self, slot: &Slot) {
        let used = slot.used_lines();
        if let Some(cells) = self.fold(slot) {
            self.clear(cells, used);
        }
    }

    fn clear(&self, cells: &SlotLayout, lines: usize) {
        clear_lines(cells, lines);
        figures::clear(&cells.figures, &cells.runs, &self.catalog);
    }

    /// The memory that is to be cleared; `None` if the slot is not in use.
    fn fold(&self, slot: &Slot) -> Option<&SlotLayout> {
        let index = slot.index();
        let claim = self.parts().own.claims.remove(&index)?;
        let (values, figures) = (slot.counter_values(), &self.layout().slots[index].figures);
        self.change_totals(|own| {
            own.totals.add(&values);
            own.figures.add_cells(figures);
            step("fold: added");
            slot.set_state(SlotState::Free);
        });
        step("fold: over");
        self.publish_live(index / 64);
        let cells = &self.layout().slots[index];
        if let Some(number) = claim.table {
            cells.identity.peer_table.store(0, Ordering::Relaxed);
            self.return_peer_table(number);
        }
        Some(cells)
    }

    /// Writes out which slots of a word of `live` are in use.
    fn publish_live(&self, word: usize) {
        let claims = &self.parts().own.claims;
        let bits = claims.range(word * 64..(word + 1) * 64).map(|(index, _)| 1 << (index % 64));
        self.layout().live[word].store(bits.sum(), Ordering::Release);
    }

    /// Counts what the master itself counts. Master only.
    pub fn count(&self, counter: Counter, n: u64) {
        let own = &mut self.parts().own;
        let total = own.totals.add_one(counter, n);
        self.layout().totals.counters[counter.index()].store(total, Ordering::Relaxed);
    }

    /// Odd before, even after: between the two the totals are not to be believed.
    fn change_totals(&self, change: impl FnOnce(&mut Own)) {
        let cells = &self.layout().totals;
        let own = &mut self.parts().own;
        cells.sequence.store(own.sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        change(own);
        for (cell, total) in cells.counters.iter().zip(own.totals.as_array()) {
            cell.store(*total, Ordering::Relaxed);
        }
        own.figures.write(&self.layout().figures);
        own.sequence = own.sequence.wrapping_add(2);
        cells.sequence.store(own.sequence, Ordering::Release);
    }

    pub(super) fn publish_sequence(&self) {
        let sequence = self.parts().own.sequence;
        self.layout().totals.sequence.store(sequence, Ordering::Release);
    }

    /// Everything that was ever counted: by workers that are gone and by those that
    /// run. Never goes backwards. `None` when the master was killed in the middle of an
    /// update, or a worker has written over the sequence: only a reader in another process
    /// can meet that.
    #[must_use]
    pub fn totals(&self) -> Option<CounterValues> {
        self.consistent(|| self.totals_now())
    }

    /// What is read while the master moves no counts.
    pub(super) fn consistent<T>(&self, read: impl Fn() -> T) -> Option<T> {
        let totals = &self.layout().totals;
        for _ in 0..TOTALS_TRIES {
            let before = totals.sequence.load(Ordering::Acquire);
            let values = read();
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && totals.sequence.load(Ordering::Relaxed) == before {
                return Some(values);
            }
            std::hint::spin_loop();
        }
        None
    }

    /// What [`totals`](Self::totals) reads, whether or not the master is in the middle of an
    /// update: then the counts of one worker may be missing, or be there twice.
    #[must_use]
    pub fn totals_now(&self) -> CounterValues {
        let mut values = CounterValues::default();
        values.add_line(&self.layout().totals.counters);
        self.live_slots().for_each(|index| self.add_lines(index, &mut values));
        values
    }

    /// Sums the counters like [`totals`](Self::totals), but by the master's own figures. Master only.
    #[must_use]
    pub fn own_totals(&self) -> CounterValues {
        let own = &self.parts().own;
        let mut values = own.totals;
        own.claims.keys().for_each(|&index| self.add_lines(index, &mut values));
        values
    }

    fn add_lines(&self, index: usize, values: &mut CounterValues) {
        let cells = &self.layout().slots[index];
        let used = cells.identity.lines_used.load(Ordering::Acquire);
        let used = usize::try_from(used).unwrap_or(0).min(cells.lines.len());
        for line in &cells.lines[..used] {
            values.add_line(&line.counters);
        }
    }

    fn state(&self, index: usize) -> SlotState {
        SlotState::from_cell(self.layout().states[index].load(Ordering::Acquire))
    }

    pub(super) fn live_slots(&self) -> impl Iterator<Item = usize> {
        // Free slots may still be marked: the state tells.
        bits(&self.layout().live).filter(|&index| self.state(index) != SlotState::Free)
    }
}

/// The numbers of the bits that are set.
pub(super) fn bits(words: &[AtomicU64]) -> impl Iterator<Item = usize> {
    words.iter().enumerate().flat_map(|(nth, word)| {
        let mut left = word.load(Ordering::Acquire);
        std::iter::from_fn(move || {
            let bit = (left != 0).then(|| left.trailing_zeros() as usize)?;
            left &= left - 1;
            Some(64 * nth + bit)
        })
    })
}

/// Writes what is not 0 in a new zone, its header last.
fn fill(file: &SharedFile, max_connections: u32) -> io::Result<()> {
    let layout = file.map::<Layout>(0)?;
    for (word, random) in layout.peers.secret.iter().zip(random::key()?) {
        word.store(random, Ordering::Relaxed);
    }
    layout.permit_pool.limit.store(max_connections, Ordering::Relaxed);
    layout.connection_ids.next.store(1, Ordering::Relaxed);
    layout.init_semaphore(|layout| &layout.worker_ready.semaphore, 0)?;
    layout.init_semaphore(|layout| &layout.permit_pool.permits, max_connections)?;
    header::write(&layout.header);
    Ok(())
}

/// For the next worker of the slot.
fn clear_lines(cells: &SlotLayout, used: usize) {
    for line in &cells.lines[..used] {
        line.counters.iter().for_each(|cell| cell.store(0, Ordering::Relaxed));
        line.busy_since_ms.store(0, Ordering::Relaxed);
    }
    let times = cells.handler_times.iter().take(used).flat_map(|times| &times.counts);
    times.for_each(|count| count.store(0, Ordering::Relaxed));
    cells.identity.lines_used.store(0, Ordering::Relaxed);
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zone")
            .field("worker_ready", &self.worker_ready)
            .field("connection_permits", &self.connection_permits)
            .field("live_slots", &self.live_slots().count())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "zone_tests.rs"]
mod tests;
