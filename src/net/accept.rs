//! Accepting: when the worker listens, when it stops, and who is told "busy".
//!
//! Ceasing to listen has a trap. With EPOLLEXCLUSIVE a connect wakes one worker;
//! if that worker leaves the listener before it accepts, the wake-up is gone
//! and nobody else is woken. So whoever leaves accepts what is there first, and
//! every listening worker also tries once a second. Who leaves for a moment only, for
//! the sake of even shares, is the business of `balance`.

use super::balance::{ACCEPTS_PER_LOOK, StandingBack};
use super::connection::{Connection, Rates};
use super::event_loop::{Entry, EventLoop, Key};
use super::settings::{ACCEPTS_MAX, LAST_ACCEPTS_MAX, LINGER_BYTES_MAX, REFUSED_LINGERING_MAX};
use super::timers::Armed;
use super::transport::{Acceptor, SocketOptions, Stream, Transport};
use crate::dispatch::ReceiveHalf;
use crate::handler::{ConnectionInfo, Peer};
use crate::send::{SendHalf, Socket};
use chappe_shm::{Accepting, Admission, Counter};
use chappe_sys::crash::step;
use chappe_sys::socket::AcceptQueue;
use chappe_wire::{ErrorNumber, error_frame};
use nix::sys::epoll::EpollFlags;
use slotmap::Key as _;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

/// What epoll watches while a refused connection lingers.
const READ: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP);

/// How many connection ids a worker takes from the zone at a time.
const IDS_AT_ONCE: u64 = 256;

/// Whether this worker accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listening {
    /// Until the master says so, and not any more once it drains.
    No,
    /// In the epoll set.
    Armed,
    /// At the worker's own limit: until a connection closes.
    Full,
    /// Out of descriptors or memory: until a connection closes, or the next tick.
    NoDescriptors,
}

/// The worker's listeners.
#[derive(Debug)]
pub(super) struct Listeners {
    pub(super) sockets: Vec<ListeningSocket>,
    listening: Listening,
    /// While it is armed: it leaves the shared sockets to others.
    pub(super) back: Option<StandingBack>,
}

/// A socket, with the options of what it accepts.
#[derive(Debug)]
pub(super) struct ListeningSocket {
    acceptor: Acceptor,
    pub(super) options: SocketOptions,
    /// In the epoll set.
    is_armed: bool,
}

impl Listeners {
    pub(super) fn new(sockets: Vec<(Acceptor, SocketOptions)>) -> Self {
        let socket = |(acceptor, options)| ListeningSocket { acceptor, options, is_armed: false };
        let sockets = sockets.into_iter().map(socket).collect();
        Self { sockets, listening: Listening::No, back: None }
    }
}

impl ListeningSocket {
    /// How many connections wait to be accepted, where the kernel tells.
    pub(super) fn queue(&self) -> Option<AcceptQueue> {
        self.acceptor.queue()
    }
}

/// A connection that cannot stay: only seen off.
#[derive(Debug)]
pub(super) struct Refused {
    transport: Transport,
    discarded_bytes: u64,
    timer: Armed,
}

impl Refused {
    pub(super) fn timer(&self) -> Armed {
        self.timer
    }
}

/// What one accept(2) brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accepted {
    One,
    Nothing,
    NoDescriptors,
}

impl EventLoop {
    /// Starts to accept.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn serve(&mut self) -> io::Result<()> {
        for nth in 0..self.listeners.sockets.len() {
            let socket = &self.listeners.sockets[nth];
            if socket.is_armed {
                continue;
            }
            if let Err(error) = self.epoll.add_listener(&socket.acceptor, nth) {
                // All or none: a listener in the set that nobody accepts from
                // would wake the loop for ever.
                self.cease(Listening::No);
                return Err(error);
            }
            self.listeners.sockets[nth].is_armed = true;
        }
        self.listeners.listening = Listening::Armed;
        self.listeners.back = None;
        self.slot.set_accepting(Accepting::Listens);
        Ok(())
    }

    pub(super) fn accept_from(&mut self, nth: usize, now: Instant) {
        let Some(socket) = self.listeners.sockets.get(nth) else { return };
        let is_shared = socket.options.shared;
        let mut accepted = 0;
        while accepted < ACCEPTS_MAX {
            // An event of this turn may have been before it left the set.
            if !self.listeners.sockets[nth].is_armed || self.accept_next(nth, now) != Accepted::One
            {
                break;
            }
            accepted += 1;
            if is_shared
                && accepted.is_multiple_of(ACCEPTS_PER_LOOK)
                && self.is_above_its_share(nth)
            {
                break;
            }
        }
        if is_shared && accepted > 0 && self.listeners.sockets[nth].is_armed {
            self.give_way(nth, now);
        }
    }

    /// Accepts one, and stops listening if there can't be another.
    pub(super) fn accept_next(&mut self, nth: usize, now: Instant) -> Accepted {
        let accepted = self.accept_one(nth, now);
        match accepted {
            Accepted::One if self.connections >= self.shared.settings.connections_max => {
                if let Some(held) = self.warnings.full.admit(now) {
                    log::warn!("at worker.max_connections, connects wait in the backlog{held}");
                }
                self.cease(Listening::Full);
            }
            Accepted::One | Accepted::Nothing => {}
            Accepted::NoDescriptors => self.cease(Listening::NoDescriptors),
        }
        accepted
    }

    /// Takes a listener out of the epoll set.
    pub(super) fn disarm_listener(&mut self, nth: usize) {
        let socket = &mut self.listeners.sockets[nth];
        if socket.is_armed {
            let result = self.epoll.delete(socket.acceptor.as_fd());
            debug_assert!(result.is_ok(), "{result:?}");
            socket.is_armed = false;
        }
    }

    /// Takes the listeners out of the epoll set.
    fn cease(&mut self, why: Listening) {
        for nth in 0..self.listeners.sockets.len() {
            self.disarm_listener(nth);
        }
        self.listeners.listening = why;
        self.listeners.back = None;
        self.slot.set_accepting(Accepting::No);
    }

    /// Puts all listeners into the epoll set, at the next tick if that is not possible.
    pub(super) fn arm_or_wait(&mut self, now: Instant) {
        if let Err(error) = self.serve() {
            if let Some(held) = self.warnings.accept_failed.admit(now) {
                log::error!("cannot watch the listeners, trying again in a second: {error}{held}");
            }
            self.listeners.listening = Listening::NoDescriptors;
        }
    }

    fn listen_again(&mut self, now: Instant) {
        self.arm_or_wait(now);
        for nth in 0..self.listeners.sockets.len() {
            self.accept_from(nth, now);
        }
    }

    /// Stops listening for good, after what already waits was accepted.
    pub(super) fn leave_listeners(&mut self, now: Instant) {
        let was_armed = self.listeners.listening == Listening::Armed;
        self.cease(Listening::No);
        let mut accepts = if was_armed { LAST_ACCEPTS_MAX } else { 0 };
        for nth in 0..self.listeners.sockets.len() {
            while accepts > 0
                && self.connections < self.shared.settings.connections_max
                && matches!(self.accept_one(nth, now), Accepted::One)
            {
                accepts -= 1;
            }
        }
        // The last holder's close ends the queue of who still connects.
        self.listeners.sockets.clear();
    }

    pub(super) fn tick_listeners(&mut self, now: Instant) {
        match self.listeners.listening {
            Listening::NoDescriptors => self.listen_again(now),
            Listening::Armed => {
                for nth in 0..self.listeners.sockets.len() {
                    self.accept_from(nth, now);
                }
            }
            Listening::No | Listening::Full => {}
        }
    }

    /// A connection is gone, and its descriptor with it.
    pub(super) fn room_for_connections(&mut self, now: Instant) {
        match self.listeners.listening {
            Listening::Full | Listening::NoDescriptors => self.listen_again(now),
            Listening::No | Listening::Armed => {}
        }
    }

    fn accept_one(&mut self, nth: usize, now: Instant) -> Accepted {
        let socket = &self.listeners.sockets[nth];
        let options = socket.options;
        match socket.acceptor.accept() {
            Ok((stream, peer)) => {
                self.admit(stream, peer, &options, now);
                Accepted::One
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => Accepted::Nothing,
                Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                    if let Some(held) = self.warnings.accept_failed.admit(now) {
                        log::warn!("accept failed, trying again in a second: {error}{held}");
                    }
                    self.shared.counters.add(Counter::AcceptErrors, 1);
                    Accepted::NoDescriptors
                }
                // The peer was gone before we came: accept(2) says to go on.
                _ => {
                    log::debug!("accept failed: {error}");
                    self.shared.counters.add(Counter::AcceptErrors, 1);
                    Accepted::One
                }
            },
        }
    }

    fn admit(&mut self, stream: Stream, peer: Peer, options: &SocketOptions, now: Instant) {
        let transport = match Transport::new(stream, options) {
            Ok(transport) => transport,
            Err(error) => {
                log::debug!("cannot set up the socket of {peer}: {error}");
                self.shared.counters.add(Counter::AcceptErrors, 1);
                return;
            }
        };
        let Some(is_counted) = self.admit_peer(peer, now) else {
            self.shared.counters.add(Counter::ConnectionsRefused, 1);
            self.shared.counters.add(Counter::ConnectionsRefusedPerIp, 1);
            let text = "too many connections from this address (limits.connections_per_ip)";
            return self.refuse(transport, text, now);
        };
        if !self.permits.try_take() {
            if let (true, Some(address)) = (is_counted, peer.address()) {
                self.peers.give_back(address);
            }
            self.shared.counters.add(Counter::ConnectionsRefused, 1);
            return self.refuse(transport, "all connections are taken (max_connections)", now);
        }
        step("accept: let in");
        if self.ids.is_empty() {
            let first = self.slot.connection_ids(IDS_AT_ONCE);
            self.ids = first..first + IDS_AT_ONCE;
        }
        let id = self.ids.next().expect("just filled");
        log::debug!("conn={id} accepted peer={peer}");
        let transport = Arc::new(transport);
        let (dispatch, send) = (&self.shared.dispatch, &self.shared.send);
        let rates = Rates::new(&self.shared.settings, now);
        let key = self.table.insert_with_key(|key| {
            let socket = Arc::clone(&transport) as Arc<dyn Socket>;
            let send = Arc::new(SendHalf::new(id, key.data().as_ffi(), socket, Arc::clone(send)));
            let info = ConnectionInfo { id, peer };
            let receive = Arc::new(ReceiveHalf::new(info, send, Arc::clone(dispatch)));
            let mut connection = Connection::new(transport, receive, now);
            connection.rates = rates;
            connection.is_counted = is_counted;
            Entry::Connection(connection)
        });
        self.connections += 1;
        self.shared.counters.add(Counter::ConnectionsAccepted, 1);
        step("accept: counted");
        self.publish_connections();
        self.look(key, now);
    }

    /// Whether a connection of this address may stay, and if so whether the address is
    /// charged for it.
    fn admit_peer(&mut self, peer: Peer, now: Instant) -> Option<bool> {
        let limit = self.shared.settings.connections_per_ip;
        let Some(address) = peer.address().filter(|_| limit > 0) else { return Some(false) };
        match self.peers.admit(address, limit) {
            Admission::Counted => Some(true),
            Admission::Refused => {
                if let Some(held) = self.warnings.per_ip.admit(now) {
                    log::warn!("at limits.connections_per_ip, refused peer={peer}{held}");
                }
                None
            }
            Admission::Uncounted => {
                if let Some(held) = self.warnings.uncounted.admit(now) {
                    log::warn!("table of addresses full, not counted peer={peer}{held}");
                }
                self.shared.counters.add(Counter::ConnectionsUncounted, 1);
                Some(false)
            }
        }
    }

    /// Tells a connection why it cannot stay, and sees it off.
    fn refuse(&mut self, transport: Transport, text: &str, now: Instant) {
        let frame = error_frame(ErrorNumber::Busy, None, text);
        // A fresh socket has room for so little; if not, the close must do.
        let sent = transport.send(&[IoSlice::new(&frame)]);
        let linger = now.checked_add(self.shared.settings.linger);
        let (Ok(_), Ok(()), Some(until)) = (sent, transport.finish(), linger) else { return };
        if self.refused >= REFUSED_LINGERING_MAX {
            return;
        }
        let timer = Armed::default();
        let refused = Refused { transport, discarded_bytes: 0, timer };
        let key = self.table.insert(Entry::Refused(refused));
        let Some(Entry::Refused(refused)) = self.table.get_mut(key) else { return };
        if self.epoll.watch(&refused.transport, key, None, Some(READ)).is_err() {
            self.table.remove(key);
            return;
        }
        self.timers.arm(key, &mut refused.timer, until);
        self.refused += 1;
    }

    /// Discards what a refused peer sends until its FIN.
    pub(super) fn linger_refused(&mut self, key: Key) {
        let Some(Entry::Refused(refused)) = self.table.get_mut(key) else { return };
        let is_over = match refused.transport.receive(&mut self.buffer) {
            Ok(received) => {
                refused.discarded_bytes += received as u64;
                received == 0 || refused.discarded_bytes >= LINGER_BYTES_MAX
            }
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        };
        if is_over {
            self.end_refused(key);
        }
    }

    /// Closes a refused connection: its peer is gone, or its time is over.
    pub(super) fn end_refused(&mut self, key: Key) {
        if !matches!(self.table.get(key), Some(Entry::Refused(_))) {
            return;
        }
        if let Some(Entry::Refused(refused)) = self.table.remove(key) {
            let result = self.epoll.watch(&refused.transport, key, Some(READ), None);
            debug_assert!(result.is_ok(), "{result:?}");
            self.refused -= 1;
        }
    }
}
