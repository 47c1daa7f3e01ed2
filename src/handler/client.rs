//! The peer of a connection, as a service sees it.

use super::Handle;
use chappe_engine::{Mailbox, Peer};
use chappe_sys::clock::Moment;
use std::sync::Arc;
use std::time::SystemTime;

/// The peer of a connection. Cheap to make: it refers to the connection, and keeps nothing
/// open.
///
/// ```
/// # use chappe::*;
/// /// For `connected`: who may come.
/// fn admits(client: &Client) -> Result<(), Deny> {
///     let is_local = client.peer().address().is_none_or(|address| address.is_loopback());
///     if is_local { Ok(()) } else { Err(Deny::close("from this machine only")) }
/// }
///
/// assert!(admits(&testing::client()).is_ok());
/// ```
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
    ///
    /// ```
    /// # use chappe::*;
    /// # let client = testing::client();
    /// // As the server's own log and `chappe kick` name it.
    /// log::info!("conn={} has logged in", client.id());
    /// assert_ne!(client.id(), testing::client().id());
    /// ```
    #[must_use]
    pub fn id(&self) -> u64 {
        self.mailbox.id()
    }

    /// Where it comes from.
    ///
    /// ```
    /// # use chappe::*;
    /// fn origin(client: &Client) -> String {
    ///     match client.peer() {
    ///         Peer::Tcp(address) => address.ip().to_string(),
    ///         peer => peer.to_string(), // "unix:"
    ///     }
    /// }
    ///
    /// assert_eq!(origin(&testing::client()), "127.0.0.1");
    /// ```
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The address that it has connected to, as the configuration names it:
    /// `0.0.0.0:7600`, `unix:/run/chappe.sock`.
    ///
    /// ```
    /// # use chappe::*;
    /// # let client = testing::client();
    /// let is_operator = client.listener() == "unix:/run/chappe-operators.sock";
    /// # assert!(!is_operator);
    /// ```
    #[must_use]
    pub fn listener(&self) -> &str {
        self.listeners.get(self.mailbox.listener()).map_or("", String::as_str)
    }

    /// When it was accepted.
    ///
    /// ```
    /// # use chappe::*;
    /// # let client = testing::client();
    /// // The clock may be set back.
    /// let age = client.connected_at().elapsed().unwrap_or_default();
    /// assert!(age.as_secs() < 60);
    /// ```
    #[must_use]
    pub fn connected_at(&self) -> SystemTime {
        SystemTime::now() - Moment::now().since(self.mailbox.connected_at())
    }

    /// A way to send to it later, from any thread of this worker.
    ///
    /// ```
    /// # use chappe::*;
    /// let (stays, leaves) = (testing::client(), testing::client());
    /// let handles = [stays.handle(), leaves.handle()];
    /// drop(leaves); // in a test this ends the connection
    /// let sent = handles.map(|handle| handle.send(18, b"news"));
    /// assert_eq!(sent, [Ok(()), Err(SendError::Expired)]);
    /// ```
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(&self.mailbox)
    }
}
