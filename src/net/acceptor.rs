//! Accepting: when the worker listens, when it stops, and how workers share a socket.
//!
//! **Leaving has a trap.** With EPOLLEXCLUSIVE a connect wakes one worker; if that worker
//! leaves the listener before it accepts, the wake-up is gone and no other worker is woken.
//! So a worker that leaves for good accepts what is there first, one that leaves for a
//! moment comes back soon, and every listening worker also tries once a second.
//!
//! **Shares.** The kernel wakes the worker that has waited at the socket for the longest,
//! and of a burst the worker that wakes first takes most. Two rules make the shares even:
//!
//! - A worker that has accepted goes to the end of the queue, out of the epoll set and into
//!   it again. Adding looks at the socket, so no wake-up is lost in between.
//! - A worker that gets ahead of the mean stands back: it leaves the shared sockets for
//!   [`STAND_BACK`], so that the others run, and comes back. If connects still wait then
//!   it takes one, after the next pause two, then four: a worker that does not accept for
//!   its own reasons stops nobody.

use super::reactor::{EpollSet, Reactor};
use super::settings::ACCEPTS_MAX;
use super::transport::{ListenSocket, SocketOptions};
use crate::throttle::Throttle;
use chappe_engine::Peer;
use chappe_shm::{Counter, Slot};
use chappe_sys::clock::Moment;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// How long a worker that is ahead leaves the shared sockets to the others.
const STAND_BACK: Duration = Duration::from_millis(2);

/// Whether this worker accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listening {
    /// Until the master says so, and not any more once it drains.
    No,
    /// In the epoll set, but for the shared sockets while it stands back.
    Yes,
    /// At the worker's own limit, or out of descriptors or memory: until a connection
    /// closes, or the next tick.
    Later,
}

/// The worker's listeners.
#[derive(Debug)]
pub(super) struct Acceptor {
    sockets: Vec<ListeningSocket>,
    pub(super) listening: Listening,
    standing_back: Option<StandingBack>,
    slot: Slot,
    failed: Throttle,
    full: Throttle,
}

/// A socket, with the options of what it accepts.
#[derive(Debug)]
struct ListeningSocket {
    socket: ListenSocket,
    options: SocketOptions,
    /// In the epoll set.
    is_armed: bool,
}

/// A worker's time away from the shared sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StandingBack {
    until: Moment,
    /// How many connects it then takes that still wait.
    take: usize,
}

impl Acceptor {
    pub(super) fn new(sockets: Vec<(ListenSocket, SocketOptions)>, slot: Slot) -> Self {
        let socket = |(socket, options)| ListeningSocket { socket, options, is_armed: false };
        Self {
            sockets: sockets.into_iter().map(socket).collect(),
            listening: Listening::No,
            standing_back: None,
            slot,
            failed: Throttle::new(1),
            full: Throttle::new(1),
        }
    }

    /// How many listeners there are.
    pub(super) fn count(&self) -> usize {
        self.sockets.len()
    }

    /// Puts all listeners into the epoll set, or none.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(super) fn listen(&mut self, epoll: &EpollSet) -> io::Result<()> {
        for nth in 0..self.sockets.len() {
            let socket = &self.sockets[nth];
            if socket.is_armed {
                continue;
            }
            if let Err(error) = epoll.watch_listener(&socket.socket, nth) {
                // A listener in the set that nobody accepts from would wake the loop
                // forever.
                self.cease(Listening::No, epoll);
                return Err(error);
            }
            self.sockets[nth].is_armed = true;
        }
        self.listening = Listening::Yes;
        self.standing_back = None;
        self.slot.set_accepts(true);
        Ok(())
    }

    /// Watches the listeners, like [`Acceptor::listen`]; tries again at the next tick if that fails.
    pub(super) fn listen_or_wait(&mut self, reactor: &Reactor) {
        if let Err(error) = self.listen(&reactor.epoll) {
            if let Some(held) = self.failed.admit(reactor.now) {
                log::error!(target: "accept.failed", "cannot watch the listeners, trying again in a second: {error}{held}");
            }
            self.listening = Listening::Later;
        }
    }

    /// Whether this listener is there and in the epoll set.
    pub(super) fn is_armed(&self, nth: usize) -> bool {
        self.sockets.get(nth).is_some_and(|socket| socket.is_armed)
    }

    /// Takes all listeners out of the epoll set.
    pub(super) fn cease(&mut self, why: Listening, epoll: &EpollSet) {
        for nth in 0..self.sockets.len() {
            self.disarm(nth, epoll);
        }
        self.listening = why;
        self.standing_back = None;
        self.slot.set_accepts(false);
    }

    /// Closes the listeners for good. The last holder's close resets the connects that
    /// still wait.
    pub(super) fn close(&mut self) {
        self.sockets.clear();
        self.listening = Listening::No;
    }

    fn disarm(&mut self, nth: usize, epoll: &EpollSet) {
        let socket = &mut self.sockets[nth];
        if socket.is_armed {
            let result = epoll.remove(socket.socket.as_fd());
            debug_assert!(result.is_ok(), "{result:?}");
            socket.is_armed = false;
        }
    }

    /// accept(2), with the options of what it accepts. `None`: nothing waits, or it cannot
    /// accept now.
    pub(super) fn accept(
        &mut self,
        nth: usize,
        reactor: &Reactor,
    ) -> Option<(OwnedFd, Peer, SocketOptions)> {
        // An error that leaves the connection in the queue must not hold the loop up.
        for _ in 0..ACCEPTS_MAX {
            let ListeningSocket { socket, options, .. } = self.sockets.get(nth)?;
            let error = match socket.accept() {
                Ok((fd, peer)) => return Some((fd, peer, *options)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) => error,
            };
            reactor.count(Counter::AcceptErrors, 1);
            if matches!(
                error.raw_os_error(),
                Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
            ) {
                if let Some(held) = self.failed.admit(reactor.now) {
                    log::warn!(target: "accept.failed", "accept failed, trying again in a second: {error}{held}");
                }
                self.cease(Listening::Later, &reactor.epoll);
                return None;
            }
            // The peer was gone before it was accepted: accept(2) says to go on.
            log::debug!("accept failed: {error}");
        }
        None
    }

    /// The worker has all connections that it may have: connects wait in the backlog.
    pub(super) fn is_full(&mut self, reactor: &Reactor) {
        if let Some(held) = self.full.admit(reactor.now) {
            log::warn!(target: "accept.full", "at worker.max_connections, connects wait in the backlog{held}");
        }
        self.cease(Listening::Later, &reactor.epoll);
    }

    /// After an accept: if this worker is ahead of the others it stands back from now on.
    pub(super) fn stand_back_if_ahead(
        &mut self,
        nth: usize,
        connections: usize,
        reactor: &Reactor,
    ) {
        let is_shared = self.sockets.get(nth).is_some_and(|socket| socket.options.shared);
        if !is_shared || self.listening != Listening::Yes || !self.is_ahead(connections) {
            return;
        }
        for nth in 0..self.sockets.len() {
            if self.sockets[nth].options.shared {
                self.disarm(nth, &reactor.epoll);
            }
        }
        self.standing_back = Some(StandingBack { until: reactor.now + STAND_BACK, take: 1 });
    }

    /// After accepts: goes to the end of the kernel's queue for the socket.
    pub(super) fn go_to_the_end(&mut self, nth: usize, reactor: &Reactor) {
        let is_alone = self.slot.load().workers <= 1;
        if self.is_armed(nth) && self.sockets[nth].options.shared && !is_alone {
            self.disarm(nth, &reactor.epoll);
            self.listen_or_wait(reactor);
        }
    }

    /// Whether other workers should have the next connection.
    fn is_ahead(&self, connections: usize) -> bool {
        self.slot.load().is_ahead(connections as u64)
    }

    /// When it comes back, if it stands back.
    pub(super) fn comes_back_at(&self) -> Option<Moment> {
        self.standing_back.map(|standing| standing.until)
    }

    /// The pause is over: how many connects it takes from the sockets it has left. If its
    /// share is right by now, none: it listens again.
    pub(super) fn come_back(&mut self, connections: usize, reactor: &Reactor) -> usize {
        let Some(standing) = self.standing_back.filter(|it| it.until <= reactor.now) else {
            return 0;
        };
        if self.is_ahead(connections) {
            return standing.take;
        }
        self.listen_or_wait(reactor);
        0
    }

    /// The worker has accepted `taken` connections. If these are as many as it wanted, other
    /// workers leave connects waiting: it stands back once more, and takes more then.
    pub(super) fn has_taken(&mut self, taken: usize, reactor: &Reactor) {
        let Some(standing) = &mut self.standing_back else { return };
        if taken < standing.take {
            return self.listen_or_wait(reactor);
        }
        let take = (standing.take * 2).min(ACCEPTS_MAX);
        *standing = StandingBack { until: reactor.now + STAND_BACK, take };
    }

    /// Logs how many warnings were held back, once their time is over.
    pub(super) fn tick(&mut self, now: Moment) {
        self.failed.tell_held("accept.failed", "accept failed", now);
        self.full.tell_held("accept.full", "at worker.max_connections", now);
    }
}
