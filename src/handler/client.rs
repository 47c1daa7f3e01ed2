//! The peer of a connection, as a service sees it.

use super::Handle;
use chappe_engine::{Mailbox, Peer};
use chappe_sys::clock::Moment;
use std::sync::Arc;
use std::time::SystemTime;

/// The peer of a connection. Cheap to make: it refers to the connection, and keeps nothing
/// open.
#[derive(Clone, Debug)]
pub struct Client {
    mailbox: Arc<Mailbox>,
    peer: Peer,
    listeners: Arc<[String]>,
}

impl Client {
    pub(super) fn new(mailbox: &Arc<Mailbox>, listeners: &Arc<[String]>) -> Self {
        let (mailbox, listeners) = (Arc::clone(mailbox), Arc::clone(listeners));
        Self { peer: mailbox.peer(), mailbox, listeners }
    }

    /// The connection's id, as in logs and `chappe connections`: unique over workers and
    /// reloads.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.mailbox.id()
    }

    /// Where it comes from.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The address that it has connected to, as the configuration names it:
    /// `0.0.0.0:7600`, `unix:/run/chappe.sock`.
    #[must_use]
    pub fn listener(&self) -> &str {
        self.listeners.get(self.mailbox.listener()).map_or("", String::as_str)
    }

    /// When it was accepted.
    #[must_use]
    pub fn connected_at(&self) -> SystemTime {
        SystemTime::now() - Moment::now().since(self.mailbox.connected_at())
    }

    /// A way to send to it later, from any thread of this worker.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(&self.mailbox)
    }
}
