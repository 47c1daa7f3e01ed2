//! What the master asks of a worker by messages: change the log file, list connections,
//! close a connection. What stands in the slot is followed in `follow_orders`.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::Worker;
use crate::channel::{Message, Parcel};
use crate::logging;

impl Worker {
    pub(super) fn carry_out(&mut self, parcel: Parcel) {
        let Parcel { message, value, file } = parcel;
        match (message, file) {
            (Message::SwapLog, Some(file)) => {
                logging::swap(Arc::new(File::from(file)));
                log::info!(target: "log.reopened", "log reopened");
                self.send_to_master(Message::Done, value, None);
            }
            (Message::SwapLog, None) => {
                log::error!(target: "log.kept", "keeping the old log: no descriptor left for the new one");
                self.send_to_master(Message::NotDone, value, None);
            }
            // The slot has them; they are read after all messages.
            (Message::Orders, _) => {}
            (Message::ListConnections, _) => self.event_loop.list(value, false),
            (Message::ListSlowConnections, _) => self.event_loop.list(value, true),
            (Message::Kick, _) => {
                let is_here = self.event_loop.kick(value);
                let answer = if is_here { Message::Kicked } else { Message::NotKicked };
                self.send_to_master(answer, value, None);
            }
            (other, _) => {
                log::warn!(target: "master.nonsense", "the master has sent {other:?}, which only workers send");
            }
        }
    }

    /// Sends the master the lists of connections that are complete.
    pub(super) fn hand_over_lists(&mut self) {
        while let Some((ticket, list)) = self.event_loop.take_list() {
            match list {
                Ok(file) => self.send_to_master(Message::Done, ticket, Some(file.as_fd())),
                Err(error) => {
                    log::warn!(target: "list.failed", "cannot list the connections: {error}");
                    self.send_to_master(Message::NotDone, ticket, None);
                }
            }
        }
    }

    /// Sends a message to the master. If that fails, it is logged and the message is lost.
    pub(super) fn send_to_master(
        &self,
        message: Message,
        value: u64,
        file: Option<BorrowedFd<'_>>,
    ) {
        if let Err(error) = self.channel.send_parcel(message, value, file) {
            log::warn!(target: "channel.failed", "cannot send {message:?} to the master: {error}");
        }
    }
}
