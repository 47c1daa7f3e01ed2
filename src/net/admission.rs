//! What a connection takes of what all workers share: a permit, a place in the table of
//! addresses, a name. And what it gives back.

use super::connection::Held;
use super::reactor::Reactor;
use crate::throttle::Throttle;
use chappe_engine::Peer;
use chappe_shm::{Admission as Counted, Counter, Peers, Permits, Slot};
use chappe_sys::clock::Moment;
use chappe_sys::clock::monotonic_ms;
use chappe_sys::crash::step;

/// How many connection ids a worker takes from the zone at a time.
const IDS_AT_ONCE: u64 = 256;

/// The worker's part of what all workers share.
#[derive(Debug)]
pub(super) struct Admission {
    slot: Slot,
    permits: Permits,
    peers: Peers,
    ids: std::ops::Range<u64>,
    /// `limits.connections_per_ip`; 0 = off.
    per_address: u32,
    /// How many connections have a permit.
    connections: usize,
    exhausted: Throttle,
    refused: Throttle,
    uncounted: Throttle,
    /// What the slot shows of full sockets.
    shown_blocked: (usize, Option<Moment>),
}

impl Admission {
    pub(super) fn new(slot: Slot, per_address: u32) -> Self {
        Self {
            permits: slot.permits(),
            peers: slot.peers(),
            slot,
            ids: 0..0,
            per_address,
            connections: 0,
            exhausted: Throttle::new(1),
            refused: Throttle::new(1),
            uncounted: Throttle::new(1),
            shown_blocked: (0, None),
        }
    }

    /// How many connections are let in.
    pub(super) fn connections(&self) -> usize {
        self.connections
    }

    /// How many permits this worker has.
    pub(super) fn permits_held(&self) -> u64 {
        self.permits.held()
    }

    /// Lets a connection in.
    ///
    /// # Errors
    /// Why not, for its peer; that is counted.
    pub(super) fn admit(
        &mut self,
        peer: Peer,
        reactor: &Reactor,
    ) -> Result<(u64, Held), &'static str> {
        let Some(address) = self.admit_address(peer, reactor) else {
            reactor.count(Counter::ConnectionsRefused, 1);
            reactor.count(Counter::ConnectionsRefusedPerIp, 1);
            return Err("too many connections from this address (limits.connections_per_ip)");
        };
        if !self.permits.try_take() {
            self.give_address_back(address, peer);
            reactor.count(Counter::ConnectionsRefused, 1);
            if let Some(held) = self.exhausted.admit(reactor.now) {
                log::warn!(
                    target: "permits.exhausted", "no connection permit is left (max_connections), refused peer={peer}{held}"
                );
            }
            return Err("all connections are taken (max_connections)");
        }
        step("accept: let in");
        self.connections += 1;
        reactor.count(Counter::ConnectionsAccepted, 1);
        step("accept: counted");
        self.show();
        Ok((self.next_id(), Held { permit: true, address }))
    }

    fn next_id(&mut self) -> u64 {
        if self.ids.is_empty() {
            let first = self.slot.connection_ids(IDS_AT_ONCE);
            self.ids = first..first + IDS_AT_ONCE;
        }
        self.ids.next().expect("just filled")
    }

    /// Whether a connection of this address may stay, and if so whether the address is
    /// charged for it.
    fn admit_address(&mut self, peer: Peer, reactor: &Reactor) -> Option<bool> {
        let Some(address) = peer.address().filter(|_| self.per_address > 0) else {
            return Some(false);
        };
        match self.peers.admit(address, self.per_address) {
            Counted::Counted => Some(true),
            Counted::Refused => {
                if let Some(held) = self.refused.admit(reactor.now) {
                    log::warn!(target: "limits.per_ip", "at limits.connections_per_ip, refused peer={peer}{held}");
                }
                None
            }
            Counted::Uncounted => {
                if let Some(held) = self.uncounted.admit(reactor.now) {
                    log::warn!(target: "limits.uncounted", "table of addresses full, not counted peer={peer}{held}");
                }
                reactor.count(Counter::ConnectionsUncounted, 1);
                Some(false)
            }
        }
    }

    /// A connection is over, and its socket about to be closed.
    pub(super) fn give_back(&mut self, held: Held, peer: Peer, reactor: &Reactor) {
        if held.permit {
            let is_posted = self.permits.give_back();
            self.give_address_back(held.address, peer);
            step("close: given back");
            reactor.count(Counter::ConnectionsClosed, 1);
            step("close: counted");
            reactor.count(Counter::ConnectionPermitPosts, u64::from(is_posted));
            self.connections -= 1;
            self.show();
        }
    }

    fn give_address_back(&mut self, is_charged: bool, peer: Peer) {
        if let (true, Some(address)) = (is_charged, peer.address()) {
            self.peers.give_back(address);
        }
    }

    /// Shows how many connections there are.
    fn show(&self) {
        self.slot.set_connections(u32::try_from(self.connections).unwrap_or(u32::MAX));
    }

    /// Shows how many sockets are full, and since when the first is.
    pub(super) fn show_blocked(&mut self, reactor: &Reactor) {
        let blocked = &reactor.blocked;
        let first = blocked.first().map(|(began, _)| *began);
        if (blocked.len(), first) == self.shown_blocked {
            return;
        }
        self.shown_blocked = (blocked.len(), first);
        let since_ms = first.map_or(0, |began| {
            let age = reactor.now.since(began).as_millis();
            let age_ms = u64::try_from(age).unwrap_or(u64::MAX);
            monotonic_ms().saturating_sub(age_ms).max(1)
        });
        self.slot.set_blocked(u32::try_from(blocked.len()).unwrap_or(u32::MAX), since_ms);
    }

    /// Logs how many warnings were held back, once their time is over.
    pub(super) fn tick(&mut self, now: Moment) {
        let exhausted = "no connection permit is left (max_connections), connections refused";
        self.exhausted.tell_held("permits.exhausted", exhausted, now);
        self.refused.tell_held(
            "limits.per_ip",
            "at limits.connections_per_ip, connections refused",
            now,
        );
        let uncounted = "table of addresses full, connections let in uncounted";
        self.uncounted.tell_held("limits.uncounted", uncounted, now);
    }
}
