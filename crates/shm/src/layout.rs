//! The bytes of the zone, as types. Nothing here acts.
//!
//! What different threads write lies in different cache lines: a counter that
//! shares its line with another thread's counter costs both of them the line at
//! every count. A page exists only once it is touched, so nobody may scan the zone: `live`
//! and `states` are the compact lists of the slots that are in use, and `used` is that of
//! the tables of addresses.
//!
//! ```text
//! 0 ─ Layout, 465 MiB: mapped by all │ PEERS_OFFSET ─ PeerTable × SLOTS, 4 GiB: see `peer_tables`
//! ```

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64};

use chappe_sys::{LayoutDigest, SemaphorePlace, SharedLayout, shared_layout};

use super::catalog::{APP_COUNTERS_MAX, CODE_ROWS};

/// Worker slots in a zone.
pub const SLOTS: usize = 4096;

/// Generations of workers that can be alive: one that serves and three that drain, or two
/// that drain while a reload makes another one ready. Workers that have the order to leave at
/// once are not among them.
pub const GENERATIONS: usize = 4;

/// The most handler threads of a worker that have a counter line.
pub const HANDLER_THREADS_MAX: usize = 128;

/// Event loop, send thread, threads of the application together, handler threads.
pub(super) const LINES: usize = 3 + HANDLER_THREADS_MAX;

/// Room for counters in a line; more than there are, so that one more does not
/// change the layout.
pub(super) const COUNTERS_MAX: usize = 55;

/// Places of a set in a [`PeerTable`]: a cache line.
pub(super) const PEER_WAYS: usize = 8;

/// Places of a [`PeerTable`]: for as many addresses as a worker has connections by
/// default, half of them stay empty.
pub(super) const PEER_PLACES: usize = 1 << 17;

/// Buckets of the times that handlers take; a cache line.
pub(super) const HANDLER_BUCKETS: usize = 8;

/// Buckets of the times that the calls of a message code take.
pub(super) const CODE_BUCKETS: usize = 22;

/// "chappezn", read as a number.
pub(super) const MAGIC: u64 = 0x6368_6170_7065_7A6E;

/// Raised with every change of what is in the zone: of this file's types, of the order of
/// [`Counter`](super::Counter), of the numbers that stand for states, of the hash of
/// addresses. Two programs with the same number can have one zone.
pub(super) const VERSION: u64 = 8;

/// Where the tables of addresses begin: at a page, whatever the size of one is.
const PEERS_AT: usize = size_of::<Layout>().next_multiple_of(size_of::<PeerTable>());

/// Where they begin, in bytes from the beginning of the zone, for those who map them.
pub(super) const PEERS_OFFSET: u64 = PEERS_AT as u64;

/// The size of a zone in bytes, all [`SLOTS`] tables of addresses included.
pub(super) const ZONE_BYTES: u64 = (PEERS_AT + SLOTS * size_of::<PeerTable>()) as u64;

/// Changes by itself with every change of this file's types.
pub(super) const DIGEST: u64 = LayoutDigest::of::<Layout>("zone")
    .field("layout", 0, Layout::DIGEST)
    .field("peer tables", PEERS_AT, <[PeerTable; SLOTS]>::DIGEST)
    .finish();

shared_layout! {
    /// What a reader checks before it believes the rest.
    #[derive(Debug)]
    #[repr(align(64))]
    pub(super) struct Header {
        pub(super) magic: AtomicU64,
        pub(super) version: AtomicU64,
        pub(super) digest: AtomicU64,
        pub(super) bytes: AtomicU64,
    }
}

shared_layout! {
    /// What all processes know of the tables of addresses, see `peer_tables`. Written by the
    /// master only.
    #[derive(Debug)]
    #[repr(align(64))]
    pub(super) struct PeerDirectory {
        /// The key of the hash of addresses. Written once, before the first fork.
        pub(super) secret: [AtomicU64; 2],
        /// How many tables the master has mapped, from the first one on.
        pub(super) tables: AtomicU64,
        /// One bit for each table, set while a worker has it.
        pub(super) used: [AtomicU64; SLOTS / 64],
    }
}

shared_layout! {
    /// A semaphore with a cache line of its own.
    #[derive(Debug)]
    #[repr(align(64))]
    pub(super) struct Bell {
        pub(super) semaphore: SemaphorePlace,
    }
}

shared_layout! {
    /// `value + balance + Σ held = limit`, whenever no worker is inside a bracket.
    #[derive(Debug)]
    #[repr(align(64))]
    pub(super) struct PermitPool {
        pub(super) permits: SemaphorePlace,
        /// Above 0: permits beside the semaphore, for workers to take. Below 0: permits
        /// that were lent under a higher limit and are to vanish when they come back. The
        /// master adds and subtracts; event loops bring it nearer to 0.
        pub(super) balance: AtomicI64,
        /// Written by the master only.
        pub(super) limit: AtomicU32,
    }
}

shared_layout! {
    /// The next free connection ID; event loops take blocks of them.
    #[derive(Debug)]
    #[repr(align(64))]
    pub(super) struct ConnectionIds {
        pub(super) next: AtomicU64,
    }
}

shared_layout! {
    /// What the master tells of itself, for readers in other processes. Each cell is
    /// true by itself; together they may be a moment apart.
    #[derive(Debug)]
    #[repr(align(64))]
    pub(super) struct HistoryLine {
        pub(super) generation: AtomicU64,
        pub(super) reloads: AtomicU64,
        pub(super) reloads_failed: AtomicU64,
        /// 0: there was none; 1: it went well; 2: it failed.
        pub(super) last_outcome: AtomicU64,
        pub(super) last_at_ms: AtomicU64,
    }
}

shared_layout! {
    /// What the master tells of the hub, once a second; as for [`HistoryLine`].
    #[derive(Debug)]
    #[repr(align(64))]
    pub(super) struct HubLine {
        /// 0: there is no hub.
        pub(super) epoch: AtomicU64,
        pub(super) offset: AtomicU64,
        pub(super) topics: AtomicU64,
        pub(super) patterns: AtomicU64,
    }
}

shared_layout! {
    /// What workers that are gone have counted. Written by the master only.
    #[derive(Debug)]
    #[repr(align(64))]
    pub(super) struct Totals {
        /// Odd while the master moves a slot's counts over: a reader that sees it
        /// odd or changed would count them twice or not at all.
        pub(super) sequence: AtomicU64,
        pub(super) counters: [AtomicU64; COUNTERS_MAX],
    }
}

shared_layout! {
    /// One thread's counters. That thread alone writes, so a plain load and store
    /// does, without the price of an atomic addition; only the line that all threads
    /// of an application share is added to.
    #[derive(Debug)]
    #[repr(align(64))]
    pub(super) struct Line {
        pub(super) counters: [AtomicU64; COUNTERS_MAX],
        /// Handler threads: when the running turn began; 0 while none runs.
        pub(super) busy_since_ms: AtomicU64,
    }
}

shared_layout! {
    /// Who lives in a slot. Written by the master, before the fork.
    #[derive(Debug)]
    #[repr(align(64))]
    pub(super) struct Identity {
        pub(super) pid: AtomicU32,
        pub(super) worker: AtomicU32,
        pub(super) generation: AtomicU64,
        pub(super) started_at_ms: AtomicU64,
        /// How many of `lines` were ever used since the claim, for readers.
        pub(super) lines_used: AtomicU32,
        /// The number of its [`PeerTable`], from 1; 0: it has none.
        pub(super) peer_table: AtomicU32,
    }
}

shared_layout! {
    /// What the worker is to do, see `orders`, and what the master knows of it. The master alone
    /// writes it.
    #[derive(Debug)]
    #[repr(align(64))]
    pub(super) struct OrderLine {
        /// A [`Stage`](super::Stage).
        pub(super) stage: AtomicU32,
        /// The level plus 1; 0: the one that it was born with.
        pub(super) log_level: AtomicU32,
        /// Published to topics, and not read by it yet; as of the last second.
        pub(super) behind_bytes: AtomicU64,
    }
}

shared_layout! {
    /// What the worker's event loop alone writes.
    #[derive(Debug)]
    #[repr(align(64))]
    pub(super) struct EventLoopLine {
        /// Odd while the event loop is inside an operation on permits.
        pub(super) sequence: AtomicU64,
        /// Permits that this worker has.
        pub(super) held: AtomicU64,
        pub(super) heartbeat_ms: AtomicU64,
        /// When it comes back from the sleep that began at its heartbeat, at the latest.
        pub(super) wakes_by_ms: AtomicU64,
        pub(super) connections: AtomicU32,
        /// Whether it accepts connections.
        pub(super) accepting: AtomicU32,
        /// Connections whose socket is full.
        pub(super) blocked: AtomicU32,
        /// Since when the longest blocked one has been blocked; 0: no socket is full.
        pub(super) blocked_since_ms: AtomicU64,
        /// Received and not handled, queued and not sent; as of the last second.
        pub(super) inbox_bytes: AtomicU64,
        pub(super) outbox_bytes: AtomicU64,
        /// Messages that wait for a deferred reply; as of the last second.
        pub(super) waiting: AtomicU32,
    }
}

shared_layout! {
    /// Whole pages, so that its memory can be given back.
    #[derive(Debug)]
    #[repr(align(4096))]
    pub(super) struct SlotLayout {
        pub(super) identity: Identity,
        pub(super) orders: OrderLine,
        pub(super) event_loop: EventLoopLine,
        pub(super) send: Bell,
        pub(super) lines: [Line; LINES],
        /// One a handler thread, which alone writes it.
        pub(super) handler_times: [TurnTimes; HANDLER_THREADS_MAX],
        pub(super) runs: RunsLine,
        pub(super) figures: FiguresLayout,
    }
}

shared_layout! {
    /// Where the handler of each row's code runs, as a [`Runs`](super::Runs); 0: it is not
    /// known yet. Written by whichever thread has changed it.
    #[derive(Debug)]
    #[repr(align(64))]
    pub(super) struct RunsLine {
        pub(super) runs: [AtomicU32; CODE_ROWS],
    }
}

shared_layout! {
    /// What an application counts, see `catalog`. All threads of a worker add to it.
    #[derive(Debug)]
    #[repr(align(64))]
    pub(super) struct FiguresLayout {
        pub(super) counters: [AtomicU64; APP_COUNTERS_MAX],
        pub(super) codes: [CodeLine; CODE_ROWS],
    }
}

shared_layout! {
    /// Of one message code.
    #[derive(Debug)]
    #[repr(align(64))]
    pub(super) struct CodeLine {
        pub(super) calls: AtomicU64,
        pub(super) errors: AtomicU64,
        /// Of the calls that were timed.
        pub(super) times: [AtomicU64; CODE_BUCKETS],
    }
}

shared_layout! {
    /// How many turns of a handler thread took how long, see `handler_times`.
    #[derive(Debug)]
    #[repr(align(64))]
    pub(super) struct TurnTimes {
        pub(super) counts: [AtomicU64; HANDLER_BUCKETS],
    }
}

shared_layout! {
    /// How many connections of each address a worker has. Its event loop alone writes;
    /// see `peers` and `peer_tables`. Whole pages, so that its memory can be given back.
    #[derive(Debug)]
    #[repr(align(4096))]
    pub(super) struct PeerTable {
        pub(super) places: [AtomicU64; PEER_PLACES],
    }
}

shared_layout! {
    #[derive(Debug)]
    #[repr(align(4096))]
    pub(super) struct Layout {
        pub(super) header: Header,
        pub(super) peers: PeerDirectory,
        pub(super) worker_ready: Bell,
        pub(super) permit_pool: PermitPool,
        pub(super) connection_ids: ConnectionIds,
        pub(super) totals: Totals,
        pub(super) history: HistoryLine,
        pub(super) hub: HubLine,
        /// One bit a slot that is in use, written by the master: half a KiB to look
        /// through at each accept.
        pub(super) live: [AtomicU64; SLOTS / 64],
        /// One `SlotState` a slot, apart from the slots.
        pub(super) states: [AtomicU32; SLOTS],
        /// Of workers that are gone; under the sequence of `totals`.
        pub(super) figures: FiguresLayout,
        pub(super) slots: [SlotLayout; SLOTS],
    }
}

impl Line {
    pub(super) fn zeroed() -> Self {
        Self {
            counters: [const { AtomicU64::new(0) }; COUNTERS_MAX],
            busy_since_ms: AtomicU64::new(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Counter;
    use std::collections::BTreeMap;
    use std::mem::offset_of;
    use std::ops::Range;

    const CACHE_LINE: usize = 64;

    /// Who writes which bytes of the zone, of the slots `slots`; of a slot that is
    /// everybody who ever writes there while its worker runs.
    fn written(slots: &[usize]) -> Vec<(String, Range<usize>)> {
        let mut all = Vec::new();
        let mut add = |who: String, at: usize, bytes: usize| all.push((who, at..at + bytes));
        for (who, at, bytes) in [
            ("ready workers", offset_of!(Layout, worker_ready), size_of::<Bell>()),
            ("event loops: permits", offset_of!(Layout, permit_pool), size_of::<PermitPool>()),
            ("event loops: ids", offset_of!(Layout, connection_ids), size_of::<ConnectionIds>()),
            ("master", offset_of!(Layout, peers), size_of::<PeerDirectory>()),
            ("master", offset_of!(Layout, totals), size_of::<Totals>()),
            ("master", offset_of!(Layout, history), size_of::<HistoryLine>()),
            ("master", offset_of!(Layout, hub), size_of::<HubLine>()),
            ("master", offset_of!(Layout, live), size_of::<[AtomicU64; SLOTS / 64]>()),
            ("states", offset_of!(Layout, states), size_of::<[AtomicU32; SLOTS]>()),
            ("master", offset_of!(Layout, figures), size_of::<FiguresLayout>()),
        ] {
            add(who.to_owned(), at, bytes);
        }
        for &slot in slots {
            let base = offset_of!(Layout, slots) + slot * size_of::<SlotLayout>();
            let at = |offset| base + offset;
            add("master".to_owned(), at(offset_of!(SlotLayout, identity)), size_of::<Identity>());
            add("master".to_owned(), at(offset_of!(SlotLayout, orders)), size_of::<OrderLine>());
            let event_loop = at(offset_of!(SlotLayout, event_loop));
            add(format!("event loop {slot}"), event_loop, size_of::<EventLoopLine>());
            add(format!("who posts {slot}"), at(offset_of!(SlotLayout, send)), size_of::<Bell>());
            for nth in 0..LINES {
                let line = at(offset_of!(SlotLayout, lines)) + nth * size_of::<Line>();
                add(format!("counters {nth} of {slot}"), line, size_of::<Line>());
            }
            for nth in 0..HANDLER_THREADS_MAX {
                let times =
                    at(offset_of!(SlotLayout, handler_times)) + nth * size_of::<TurnTimes>();
                add(format!("times {nth} of {slot}"), times, size_of::<TurnTimes>());
            }
            let runs = at(offset_of!(SlotLayout, runs));
            add(format!("who changes a pace in {slot}"), runs, size_of::<RunsLine>());
            let counters = at(offset_of!(SlotLayout, figures));
            let bytes = offset_of!(FiguresLayout, codes);
            add(format!("counters of the application in {slot}"), counters, bytes);
            for nth in 0..CODE_ROWS {
                let code = counters + bytes + nth * size_of::<CodeLine>();
                add(format!("calls of code {nth} in {slot}"), code, size_of::<CodeLine>());
            }
            let peers = PEERS_AT + slot * size_of::<PeerTable>();
            add(format!("addresses of {slot}"), peers, size_of::<PeerTable>());
        }
        all
    }

    /// The first cache line that two of them write.
    fn shared_line(written: &[(String, Range<usize>)]) -> Option<(&str, &str)> {
        let mut owners: BTreeMap<usize, &str> = BTreeMap::new();
        for (who, bytes) in written {
            for line in bytes.start / CACHE_LINE..bytes.end.div_ceil(CACHE_LINE) {
                match owners.insert(line, who) {
                    Some(other) if other != who => return Some((other, who)),
                    _ => {}
                }
            }
        }
        None
    }

    /// When this fails, the zone means something else than it did: raise `VERSION`, and
    /// write the three numbers down here. A counter that is appended changes nothing.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn what_the_zone_means_has_a_version() {
        let counters = Counter::ALL[..33].iter();
        let names = counters.fold(LayoutDigest::of::<u64>("counters"), |digest, counter| {
            digest.field(counter.name(), counter.index(), 0)
        });
        let is = (VERSION, DIGEST, names.finish());
        assert_eq!(is, (8, 0x90EE_7015_E084_CAC4, 0x9D63_69A0_AF4C_CE06), "{is:#X?}");
    }

    #[test]
    fn no_two_writers_share_a_cache_line() {
        // The mapping begins at a page, so these offsets tell all.
        assert_eq!(align_of::<Layout>() % CACHE_LINE, 0);
        assert_eq!(shared_line(&written(&[0, 1, 2, SLOTS - 1])), None);
        let planted = [("one".to_owned(), 0..72), ("two".to_owned(), 72..80)];
        assert_eq!(shared_line(&planted), Some(("one", "two")));
    }
}
