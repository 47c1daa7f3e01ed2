//! Connections of each address, over all workers, for `limits.connections_per_ip`.
//!
//! **Nothing is taken from a common pot, so nothing has to be given back.** Each
//! worker counts its own connections in a table of its own, which it alone writes,
//! and a worker that accepts adds up the tables of all live workers. A worker that dies, at
//! whatever instant, takes its table with it: its counts end with the one store by which
//! the master takes the table back. One table for all with a total for each address
//! would be read faster, but what a dead worker had added to it would have to be worked
//! out from a second table of each worker, address by address.
//!
//! ```text
//! place = fingerprint of the address, 40 bits │ connections, 24 bits      0 = empty
//! set   = 8 places, one cache line            table = 16 384 sets, 1 MiB
//! ```
//!
//! A place is one word, so a reader never sees the number of another address. An
//! address has two sets in which its place can be, and never moves: a look-up is two
//! cache lines in each table, and an empty place is just empty, without a mark that
//! somebody must sweep up. The hash is keyed with a secret that lies in the zone:
//! nobody outside can find addresses that share their sets.
//!
//! Two workers may have the last free place of an address in sight at once.
//! So each first counts its own connection, then adds up; both orders are
//! sequentially consistent, so of two at least one sees the other, and there are
//! never more than the limit. A worker that sees too many takes its own back and looks again:
//! the last of them to do so finds room, and tries once more.
//!
//! Both sets of an address may be full: 65 536 addresses a worker always fit, and
//! about 95 000 usually do. Then, and when a worker has no table (`peer_tables`), the
//! connection is let in and is not counted ([`Admission::Uncounted`]): a limit on single
//! addresses that refused everybody else would be the outage it is meant to prevent, and
//! `max_connections` holds in any case. Addresses that have a place are limited as
//! before.
//!
//! `Peers` belongs to the event loop, which touches it at accept and close only; the
//! master clears the table of a worker that is gone. Nothing here ever sleeps.

use std::fmt;
use std::hash::Hasher;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use chappe_sys::crash::step;

use super::layout::{PEER_PLACES, PEER_WAYS, PeerTable};
use super::peer_tables::PeerTables;
use super::zone::Zone;

const SETS: u64 = (PEER_PLACES / PEER_WAYS) as u64;
/// The bits of a place that hold the number of connections.
const COUNT: u64 = (1 << 24) - 1;
/// The steps of eight tries for the last connection of an address.
const STEPS_MAX: usize = 8 * 4;

/// Whether a connection may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may stay, and is to be given back at its end.
    Counted,
    /// Its address has as many as it may have.
    Refused,
    /// It may stay; there is no place for its address, or no table, so it was not counted.
    Uncounted,
}

/// A worker's access to the connections of each address; its event loop has the only
/// one.
#[derive(Debug)]
pub struct Peers {
    zone: Arc<Zone>,
    tables: PeerTables,
    /// The number of its own table; `None` when none was free for it.
    own: Option<usize>,
    secret: Secret,
}

/// The key of the hash of addresses. It lies in the zone, so that each process that maps the
/// zone finds the places that others have chosen.
#[derive(Clone, Copy)]
pub(super) struct Secret([u64; 2]);

impl Secret {
    #[expect(deprecated, reason = "the one hasher of std that takes its key: SipHash 2-4")]
    fn hash(self, words: [u64; 2]) -> u64 {
        let mut hasher = std::hash::SipHasher::new_with_keys(self.0[0], self.0[1]);
        words.into_iter().for_each(|word| hasher.write_u64(word));
        hasher.finish()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Where an address can be found, and how it is distinguished from others.
#[derive(Clone, Copy, Debug)]
struct Key {
    /// In the upper 40 bits.
    fingerprint: u64,
    sets: [usize; 2],
}

impl Key {
    fn new(secret: Secret, address: IpAddr) -> Self {
        let (family, prefix) = match address.to_canonical() {
            IpAddr::V4(address) => (4, u64::from(address.to_bits())),
            // One customer, one host, often one socket after the other has a /64.
            IpAddr::V6(address) => (6, (address.to_bits() >> 64) as u64),
        };
        let (first, second) = (secret.hash([family, prefix]), secret.hash([family + 1, prefix]));
        // The lower bits choose the sets, the upper ones are the fingerprint.
        let set = first & COUNT & (SETS - 1);
        // Never the same one twice, or its places would be added up twice.
        let other = (set + 1 + second % (SETS - 1)) % SETS;
        let index = |set: u64| usize::try_from(set).unwrap_or(0) * PEER_WAYS;
        Self { fingerprint: first & !COUNT, sets: [index(set), index(other)] }
    }

    fn sets_of(self, table: &PeerTable) -> [&[AtomicU64]; 2] {
        self.sets.map(|first| &table.places[first..first + PEER_WAYS])
    }

    /// How many connections of the address are in a table.
    fn count_in(self, table: &PeerTable) -> u64 {
        let places = self.sets_of(table).into_iter().flatten();
        places
            .map(|place| place.load(Ordering::Acquire))
            .filter(|word| word & !COUNT == self.fingerprint)
            .map(|word| word & COUNT)
            .sum()
    }

    /// The place of the address in its worker's own table, or an empty one in the
    /// emptier of its sets.
    fn place_in(self, table: &PeerTable) -> Option<&AtomicU64> {
        let sets = self.sets_of(table);
        let word = |place: &&AtomicU64| place.load(Ordering::Relaxed);
        let is_its = |place: &&AtomicU64| {
            word(place) & COUNT > 0 && word(place) & !COUNT == self.fingerprint
        };
        if let Some(place) = sets.into_iter().flatten().find(is_its) {
            return Some(place);
        }
        let room = |set: &[AtomicU64]| set.iter().filter(|place| word(place) == 0).count();
        let [first, second] = sets;
        let emptier = if room(second) > room(first) { second } else { first };
        emptier.iter().find(|place| word(place) == 0)
    }
}

impl Peers {
    pub(super) fn new(zone: Arc<Zone>, own: Option<usize>) -> Self {
        let (tables, secret) = (zone.peer_tables(), zone.peer_secret());
        Self { zone, tables, own, secret }
    }

    /// Counts one more connection of an address, if all workers together have less
    /// than `limit` of them.
    pub fn admit(&mut self, address: IpAddr, limit: u32) -> Admission {
        let limit = u64::from(limit);
        let key = Key::new(self.secret, address);
        let Some(place) = self.own_table().and_then(|table| key.place_in(table)) else {
            let is_full = self.elsewhere(key) >= limit;
            return if is_full { Admission::Refused } else { Admission::Uncounted };
        };
        let before = place.load(Ordering::Relaxed);
        let mut attempt = Attempt { peers: self, key, place, before, limit, step: Step::Claim };
        for _ in 0..STEPS_MAX {
            if let Some(admission) = attempt.advance() {
                return admission;
            }
        }
        // Eight whole tries, each in the way of somebody else's.
        Admission::Refused
    }

    /// A connection that was counted is closed.
    pub fn give_back(&mut self, address: IpAddr) {
        let key = Key::new(self.secret, address);
        let place = self.own_table().and_then(|table| key.place_in(table));
        let word = place.map_or(0, |place| place.load(Ordering::Relaxed));
        debug_assert!(word & COUNT > 0, "a connection is given back once");
        if let Some(place) = place.filter(|_| word & COUNT > 0) {
            let left = word - 1;
            set(place, if left & COUNT == 0 { 0 } else { left });
        }
    }

    fn own_table(&self) -> Option<&PeerTable> {
        self.tables.get(self.own?)
    }

    /// How many connections of an address the other workers have.
    fn elsewhere(&self, key: Key) -> u64 {
        let others = self.tables.in_use(&self.zone).filter(|(number, _)| Some(*number) != self.own);
        others.map(|(_, table)| key.count_in(table)).sum()
    }
}

/// The way to the last connection that an address may have, which others may want at
/// the same time. One step is one look or one change, so that the tests can put the
/// steps of two workers in any order.
struct Attempt<'a> {
    peers: &'a Peers,
    key: Key,
    place: &'a AtomicU64,
    /// What the place holds without this connection.
    before: u64,
    limit: u64,
    step: Step,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Count it, for all to see.
    Claim,
    /// Are there too many now?
    Judge,
    /// Take it back.
    Withdraw,
    /// Do the others leave room, now that this one is not in their way?
    LookAgain,
}

impl Attempt<'_> {
    fn advance(&mut self) -> Option<Admission> {
        let own = self.before & COUNT;
        match self.step {
            Step::Claim => {
                set(self.place, self.key.fingerprint | (own + 1));
                self.step = Step::Judge;
            }
            Step::Judge if own + 1 + self.peers.elsewhere(self.key) <= self.limit => {
                return Some(Admission::Counted);
            }
            Step::Judge => self.step = Step::Withdraw,
            Step::Withdraw => {
                set(self.place, self.before);
                self.step = Step::LookAgain;
            }
            Step::LookAgain if own + self.peers.elsewhere(self.key) >= self.limit => {
                return Some(Admission::Refused);
            }
            Step::LookAgain => {
                std::hint::spin_loop();
                self.step = Step::Claim;
            }
        }
        None
    }
}

/// Sets a place, for all to see before anything that is read afterwards.
fn set(place: &AtomicU64, word: u64) {
    step("peers: before a change");
    place.store(word, Ordering::SeqCst);
    step("peers: after a change");
    // The others do the same: of two that set and then read, one at least reads what
    // the other has set.
    fence(Ordering::SeqCst);
}

impl Zone {
    fn peer_secret(&self) -> Secret {
        let words = &self.layout().peers.secret;
        Secret([0, 1].map(|nth: usize| words[nth].load(Ordering::Relaxed)))
    }

    /// How many connections of an address all workers have counted.
    #[must_use]
    pub fn connections_of(&self, address: IpAddr) -> u64 {
        let key = Key::new(self.peer_secret(), address);
        self.peer_tables().in_use(self).map(|(_, table)| key.count_in(table)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Slot;
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    /// A zone for two workers.
    fn create() -> Arc<Zone> {
        let zone = Zone::create(1).unwrap();
        zone.provide_peer_tables(2).unwrap();
        zone
    }

    fn spawn(zone: &Arc<Zone>) -> (Slot, Peers) {
        let slot = zone.claim_slot(0, 1).expect("a free slot");
        let peers = slot.peers();
        (slot, peers)
    }

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(number))
    }

    #[test]
    fn the_limit_holds_over_all_workers_and_for_each_address() {
        let zone = create();
        let ((_a, mut one), (_b, mut two)) = (spawn(&zone), spawn(&zone));
        for limit in [1, 2, 7] {
            for nth in 0..limit {
                let worker = if nth % 2 == 0 { &mut one } else { &mut two };
                assert_eq!(worker.admit(address(limit), limit), Admission::Counted);
            }
            for worker in [&mut one, &mut two] {
                assert_eq!(worker.admit(address(limit), limit), Admission::Refused);
            }
            assert_eq!(two.admit(address(limit), limit + 1), Admission::Counted, "one more");
            assert_eq!(zone.connections_of(address(limit)), u64::from(limit) + 1);
        }
        one.give_back(address(1));
        assert_eq!(zone.connections_of(address(1)), 1);
        two.give_back(address(1));
        assert_eq!(zone.connections_of(address(1)), 0);
        assert_eq!(two.admit(address(1), 1), Admission::Counted);
    }

    #[test]
    fn a_network_of_64_bits_is_one_peer_and_a_mapped_address_is_the_address() {
        let zone = create();
        let (_slot, mut peers) = spawn(&zone);
        let six = |upper: u64, lower: u64| {
            IpAddr::V6(Ipv6Addr::from_bits(u128::from(upper) << 64 | u128::from(lower)))
        };
        assert_eq!(peers.admit(six(0x2001_0db8_0000_0001, 1), 1), Admission::Counted);
        assert_eq!(peers.admit(six(0x2001_0db8_0000_0001, u64::MAX), 1), Admission::Refused);
        assert_eq!(peers.admit(six(0x2001_0db8_0000_0002, 1), 1), Admission::Counted);
        let mapped = IpAddr::V6(Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped());
        assert_eq!(peers.admit(mapped, 1), Admission::Counted);
        assert_eq!(peers.admit("192.0.2.1".parse().unwrap(), 1), Admission::Refused);
    }

    #[test]
    fn the_secret_is_in_the_zone_and_each_zone_has_its_own() {
        let (zone, other) = (create(), create());
        let (_slot, mut peers) = spawn(&zone);
        assert_eq!(peers.admit(address(7), 1), Admission::Counted);
        let again = Zone::from_descriptor(zone.descriptor().unwrap()).unwrap();
        assert_eq!(again.connections_of(address(7)), 1);
        let words = [7, 7];
        assert_eq!(again.peer_secret().hash(words), zone.peer_secret().hash(words));
        assert_ne!(other.peer_secret().hash(words), zone.peer_secret().hash(words));
        assert_eq!(format!("{peers:?}").matches("Secret").count(), 1, "it is not printed");
    }

    /// From the authors' test vectors: the programs of an upgrade must have one hash.
    #[test]
    fn the_hash_is_siphash_2_4() {
        // Bytes 0 to 15, as key and as message.
        let words = [0x0706_0504_0302_0100, 0x0F0E_0D0C_0B0A_0908];
        assert_eq!(Secret(words).hash(words.map(u64::to_le)), 0x3F2A_CC7F_57C2_9BDB);
    }

    #[test]
    fn what_a_dead_worker_had_ends_with_its_slot_and_the_next_one_starts_empty() {
        let zone = create();
        let ((dead, mut dying), (_alive, mut living)) = (spawn(&zone), spawn(&zone));
        assert_eq!(dying.admit(address(7), 3), Admission::Counted);
        assert_eq!(dying.admit(address(7), 3), Admission::Counted);
        assert_eq!(living.admit(address(7), 3), Admission::Counted);
        assert_eq!(living.admit(address(7), 3), Admission::Refused);
        zone.free(&dead);
        zone.free(&dead);
        assert_eq!(zone.connections_of(address(7)), 1);
        for _ in 0..crate::SLOTS {
            let (slot, mut next) = spawn(&zone);
            assert_eq!(zone.connections_of(address(7)), 1);
            assert_eq!(next.admit(address(7), 2), Admission::Counted);
            zone.free(&slot);
        }
        assert_eq!(zone.connections_of(address(7)), 1);
    }

    #[test]
    fn so_many_addresses_fit_and_one_without_a_place_is_let_in_uncounted() {
        let zone = create();
        let ((_a, mut peers), (_b, mut other)) = (spawn(&zone), spawn(&zone));
        for number in 0..65_536 {
            assert_eq!(peers.admit(address(number), 1), Admission::Counted, "{number}");
        }
        let places = u32::try_from(PEER_PLACES).unwrap();
        let homeless = (65_536..2 * places)
            .find(|&number| peers.admit(address(number), 1) == Admission::Uncounted);
        let homeless = homeless.expect("there are fewer places than addresses");
        assert!(homeless > 80_000, "the {homeless}th address had no place");
        // An address with a place is limited, and so is one that another worker knows.
        assert_eq!(peers.admit(address(5), 1), Admission::Refused);
        assert_eq!(other.admit(address(homeless), 1), Admission::Counted);
        assert_eq!(peers.admit(address(homeless), 1), Admission::Refused);
        assert_eq!(peers.admit(address(homeless), 2), Admission::Uncounted);
        for number in 0..homeless {
            peers.give_back(address(number));
        }
        let used = peers.own_table().unwrap().places.iter();
        assert_eq!(used.filter(|place| place.load(Ordering::Relaxed) != 0).count(), 0);
    }

    #[test]
    fn of_two_that_compete_one_is_admitted_in_whatever_order_their_steps_come() {
        const FREE_STEPS: u32 = 12;
        let zone = create();
        let ((_a, one), (_b, two)) = (spawn(&zone), spawn(&zone));
        let key = Key::new(zone.peer_secret(), address(1));
        // Bit N of the order says whose step is the Nth; then the one finishes first.
        for order in 0_u32..1 << FREE_STEPS {
            let attempt = |peers| {
                let place = key.place_in(Peers::own_table(peers).unwrap()).unwrap();
                Attempt { peers, key, place, before: 0, limit: 1, step: Step::Claim }
            };
            let mut attempts = [attempt(&one), attempt(&two)];
            let mut outcomes = [None; 2];
            let free = (0..FREE_STEPS).map(|nth| (order >> nth & 1) as usize);
            for who in free.chain([0; STEPS_MAX]).chain([1; STEPS_MAX]) {
                if outcomes[who].is_none() {
                    outcomes[who] = attempts[who].advance();
                }
            }
            let expected = [Some(Admission::Counted), Some(Admission::Refused)];
            let [first, second] = expected;
            assert!(outcomes == expected || outcomes == [second, first], "{order:b}: {outcomes:?}");
            assert_eq!(zone.connections_of(address(1)), 1, "{order:b}");
            attempts.iter().for_each(|attempt| set(attempt.place, 0));
        }
    }

    #[test]
    fn threads_that_compete_never_have_more_than_the_limit() {
        const ROUNDS: usize = 5000;
        let zone = create();
        let arrived = AtomicUsize::new(0);
        let admitted: Vec<_> = (0..ROUNDS).map(|_| AtomicUsize::new(0)).collect();
        // Both are at the same place when they go on, nanoseconds apart at best.
        let meet = |nth: usize| {
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < 2 * nth {
                thread::yield_now();
            }
        };
        let race = || {
            let (_slot, mut peers) = spawn_locked(&zone);
            for (round, admitted) in admitted.iter().enumerate() {
                meet(3 * round + 1);
                let is_in = peers.admit(address(1), 1) == Admission::Counted;
                admitted.fetch_add(usize::from(is_in), Ordering::SeqCst);
                meet(3 * round + 2);
                if is_in {
                    peers.give_back(address(1));
                }
                meet(3 * round + 3);
            }
        };
        thread::scope(|scope| {
            scope.spawn(race);
            scope.spawn(race);
        });
        let admitted: Vec<_> = admitted.into_iter().map(AtomicUsize::into_inner).collect();
        assert!(admitted.iter().all(|&count| count <= 1), "both were admitted");
        let admitted: usize = admitted.iter().sum();
        // How often both are refused is the machine's affair.
        assert!(admitted > 0, "nobody was ever admitted");
        assert_eq!(zone.connections_of(address(1)), 0);
    }

    /// Only the master claims, one after the other; here the threads stand for it.
    fn spawn_locked(zone: &Arc<Zone>) -> (Slot, Peers) {
        static CLAIM: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _guard = CLAIM.lock().unwrap();
        spawn(zone)
    }
}
