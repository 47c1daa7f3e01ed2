//! Which tables of addresses are mapped, and which worker has which.
//!
//! The tables lie behind everything else in the zone: one for each worker that can be
//! alive, 1 MiB each. A process maps only those that it may need: none until
//! `limits.connections_per_ip` is set, then enough for four generations of workers. For a
//! reload with more workers the master maps more, before it forks them. A running worker
//! keeps what it has mapped, and does not see tables that were added since.
//!
//! The master gives each worker the first free table, so that older workers see as many
//! of the younger ones' tables as possible. A table has its bit in `used` while a worker
//! has it; readers look at these tables only. All functions here are the master's, except
//! for `PeerTables` itself.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use chappe_sys::{SharedArray, SharedFile};

use super::layout::{GENERATIONS, Layout, PEERS_OFFSET, PeerTable, SLOTS};
use super::own::Own;
use super::zone::{Zone, bits};

/// The tables that a process has mapped, from the first one on.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerTables(Option<Arc<SharedArray<PeerTable>>>);

impl PeerTables {
    /// Maps the tables that the master of a zone has made so far.
    pub(super) fn of_zone(file: &SharedFile, layout: &Layout) -> io::Result<Self> {
        let made = layout.peers.tables.load(Ordering::Relaxed);
        match usize::try_from(made).unwrap_or(SLOTS).min(SLOTS) {
            0 => Ok(Self::default()),
            count => Ok(Self(Some(file.map_array(PEERS_OFFSET, count)?))),
        }
    }

    pub(super) fn mapped(&self) -> Option<&SharedArray<PeerTable>> {
        self.0.as_deref()
    }

    pub(super) fn get(&self, number: usize) -> Option<&PeerTable> {
        self.mapped()?.get(number)
    }

    pub(super) fn count(&self) -> usize {
        self.mapped().map_or(0, |tables| tables.len())
    }

    /// Those that workers have, with their numbers.
    pub(super) fn in_use<'a>(
        &'a self,
        zone: &'a Zone,
    ) -> impl Iterator<Item = (usize, &'a PeerTable)> {
        let words = &zone.layout().peers.used[..self.count().div_ceil(64)];
        bits(words).filter_map(|number| Some((number, self.get(number)?)))
    }
}

impl Zone {
    /// Maps tables of addresses for [`GENERATIONS`] generations of `workers` workers, so
    /// that workers forked from here on have one each and see each other's. Tables that
    /// are mapped stay mapped. Master only.
    ///
    /// # Errors
    /// Of mmap: no memory or no address space (RLIMIT_AS). `NotFound` after
    /// [`close_descriptor`](Self::close_descriptor).
    pub fn provide_peer_tables(&self, workers: u16) -> io::Result<()> {
        let wanted = (GENERATIONS * usize::from(workers)).min(SLOTS);
        let mut parts = self.parts();
        if parts.peer_tables.count() < wanted {
            let file = parts.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
            // The same memory once more, and more of it.
            let tables = file.map_array(PEERS_OFFSET, wanted)?;
            parts.peer_tables = PeerTables(Some(tables));
            self.layout().peers.tables.store(wanted as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// How many tables of addresses are mapped and free: that many more workers can have one.
    /// Master only.
    #[must_use]
    pub fn free_peer_tables(&self) -> usize {
        let parts = self.parts();
        let count = parts.peer_tables.count();
        count - (0..count).filter(|&number| parts.own.has_table(number)).count()
    }

    pub(super) fn peer_tables(&self) -> PeerTables {
        self.parts().peer_tables.clone()
    }

    /// A table for a worker that is about to be forked, by its number from 0; `None` if
    /// none is free.
    pub(super) fn take_peer_table(&self) -> Option<usize> {
        let mut parts = self.parts();
        let number = (0..parts.peer_tables.count()).find(|&n| !parts.own.has_table(n))?;
        parts.own.tables[number / 64] |= 1 << (number % 64);
        self.publish_table_word(number, &parts.own);
        Some(number)
    }

    /// Takes back the table of a worker that is gone. The store that clears its bit ends
    /// all counts in it; then it is emptied for the next worker.
    pub(super) fn return_peer_table(&self, number: usize) {
        let mut parts = self.parts();
        parts.own.tables[number / 64] &= !(1 << (number % 64));
        self.publish_table_word(number, &parts.own);
        let tables = parts.peer_tables.clone();
        drop(parts);
        let (Some(mapped), Some(table)) = (tables.mapped(), tables.get(number)) else { return };
        // Its memory goes back to the system.
        if mapped.clear(|tables| &tables[number]).is_err() {
            // Not with pages larger than the table's alignment, for example.
            for place in &table.places {
                place.store(0, Ordering::Relaxed);
            }
        }
    }

    fn publish_table_word(&self, number: usize, own: &Own) {
        let word = &self.layout().peers.used[number / 64];
        word.store(own.tables[number / 64], Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Admission;
    use std::net::{IpAddr, Ipv4Addr};

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn without_tables_nothing_is_mapped_and_nothing_counted() {
        let zone = Zone::create(1).unwrap();
        assert_eq!((zone.peer_tables().count(), zone.free_peer_tables()), (0, 0));
        let slot = zone.claim_slot(0, 1).unwrap();
        let mut peers = slot.peers();
        assert_eq!(peers.admit(ADDRESS, 1), Admission::Uncounted);
        assert_eq!(zone.connections_of(ADDRESS), 0);
        zone.free(&slot);
    }

    #[test]
    fn there_are_tables_for_four_generations_and_never_fewer() {
        let zone = Zone::create(1).unwrap();
        for (workers, tables) in [(1, 4), (3, 12), (2, 12), (1024, 4096), (u16::MAX, 4096)] {
            zone.provide_peer_tables(workers).unwrap();
            assert_eq!(zone.free_peer_tables(), tables, "{workers}");
        }
    }

    #[test]
    fn a_process_that_maps_the_zone_has_the_tables_too() {
        let zone = Zone::create(1).unwrap();
        zone.provide_peer_tables(2).unwrap();
        let slot = zone.claim_slot(0, 1).unwrap();
        assert_eq!(slot.peers().admit(ADDRESS, 1), Admission::Counted);
        let again = Zone::from_descriptor(zone.descriptor().unwrap()).unwrap();
        assert_eq!((again.free_peer_tables(), again.connections_of(ADDRESS)), (7, 1));
        let next = again.claim_slot(1, 2).unwrap();
        assert_eq!(next.peers().admit(ADDRESS, 1), Admission::Refused);
        assert_eq!(next.peers().admit(ADDRESS, 2), Admission::Counted);
        assert_eq!(zone.connections_of(ADDRESS), 2);
    }

    /// What a worker has that is older than the tables of another one.
    #[test]
    fn an_older_worker_sees_the_tables_that_were_there_before_it() {
        let zone = Zone::create(1).unwrap();
        zone.provide_peer_tables(1).unwrap();
        let slots: Vec<_> = (0..3).map(|n| zone.claim_slot(n, 1).unwrap()).collect();
        let mut older = slots[0].peers();
        zone.provide_peer_tables(2).unwrap();
        // The fourth of four, and the fifth, which the older one has not mapped.
        let (seen, unseen) = (zone.claim_slot(3, 2).unwrap(), zone.claim_slot(4, 2).unwrap());
        assert_eq!(unseen.peers().admit(ADDRESS, 1), Admission::Counted);
        assert_eq!(older.admit(ADDRESS, 1), Admission::Counted, "it can't know");
        assert_eq!(seen.peers().admit(ADDRESS, 2), Admission::Refused, "two already");
        assert_eq!(seen.peers().admit(ADDRESS, 3), Admission::Counted);
        assert_eq!(older.admit(ADDRESS, 2), Admission::Refused, "two that it sees");
        assert_eq!(zone.connections_of(ADDRESS), 3);
    }

    #[test]
    fn a_worker_for_which_there_is_no_table_left_counts_nothing_and_sees_the_others() {
        let zone = Zone::create(1).unwrap();
        zone.provide_peer_tables(1).unwrap();
        let slots: Vec<_> = (0..4).map(|n| zone.claim_slot(n, 1).unwrap()).collect();
        assert_eq!(zone.free_peer_tables(), 0);
        let fifth = zone.claim_slot(4, 1).unwrap();
        assert_eq!(fifth.peers().admit(ADDRESS, 1), Admission::Uncounted);
        assert_eq!(slots[3].peers().admit(ADDRESS, 1), Admission::Counted);
        assert_eq!(fifth.peers().admit(ADDRESS, 1), Admission::Refused);
        // The next one has the table that comes free.
        zone.free(&slots[2]);
        zone.free(&fifth);
        assert_eq!(zone.free_peer_tables(), 1);
        let sixth = zone.claim_slot(5, 1).unwrap();
        assert_eq!(sixth.peers().admit(ADDRESS, 2), Admission::Counted);
        assert_eq!(zone.connections_of(ADDRESS), 2);
    }

    /// A worker that was taken over has written into the zone what it liked.
    #[test]
    fn the_master_lives_on_whatever_number_a_slot_has() {
        let zone = Zone::create(1).unwrap();
        zone.provide_peer_tables(1).unwrap();
        for number in [5, 4097, u32::MAX] {
            let slot = zone.claim_slot(0, 1).unwrap();
            slot.layout().identity.peer_table.store(number, Ordering::Relaxed);
            assert_eq!(slot.peers().admit(ADDRESS, 1), Admission::Uncounted);
            zone.free(&slot);
            assert_eq!(zone.free_peer_tables(), 4, "it gets back what it has given");
        }
        zone.layout().peers.used.iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
        assert_eq!(zone.free_peer_tables(), 4);
        let next = zone.claim_slot(0, 1).unwrap();
        assert_eq!(zone.layout().peers.used[0].load(Ordering::Relaxed), 1, "written out again");
        zone.free(&next);
        zone.layout().peers.tables.store(u64::MAX, Ordering::Relaxed);
        let again = Zone::from_descriptor(zone.descriptor().unwrap()).unwrap();
        assert_eq!(again.peer_tables().count(), SLOTS);
    }

    #[test]
    fn more_tables_are_made_only_by_who_has_the_descriptor() {
        let zone = Zone::create(1).unwrap();
        zone.provide_peer_tables(2).unwrap();
        zone.close_descriptor();
        zone.provide_peer_tables(2).unwrap();
        let error = zone.provide_peer_tables(3).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
