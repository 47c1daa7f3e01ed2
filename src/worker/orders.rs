//! What the master asks of a worker besides serving and stopping: another log file
//! or level, a list of its connections, the end of one.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::Worker;
use crate::channel::{Message, Parcel};
use crate::config::LogLevel;
use crate::logging;

impl Worker {
    pub(super) fn carry_out(&mut self, parcel: Parcel) {
        let Parcel { message, value, file } = parcel;
        match (message, file) {
            (Message::SwapLog, Some(file)) => {
                logging::swap(Arc::new(File::from(file)));
                log::info!("log reopened");
                self.say(Message::Done, value, None);
            }
            (Message::SwapLog, None) => {
                log::error!("the log stays the old one: no descriptor left for the new one");
                self.say(Message::NotDone, value, None);
            }
            (Message::LogLevel, _) => set_level(value),
            (Message::ListConnections, _) => self.event_loop.list(value, false),
            (Message::ListSlowConnections, _) => self.event_loop.list(value, true),
            (Message::Kick, _) => {
                let is_here = self.event_loop.kick(value);
                let answer = if is_here { Message::Kicked } else { Message::NotKicked };
                self.say(answer, value, None);
            }
            (other, _) => log::warn!("the master said {other:?}, which is ours"),
        }
    }

    /// Gives the master the lists that are complete.
    pub(super) fn hand_over_lists(&mut self) {
        while let Some((ticket, list)) = self.event_loop.take_list() {
            match list {
                Ok(file) => self.say(Message::Done, ticket, Some(file.as_fd())),
                Err(error) => {
                    log::warn!("cannot list the connections: {error}");
                    self.say(Message::NotDone, ticket, None);
                }
            }
        }
    }

    /// Says something to the master. One that does not listen gets no answer.
    pub(super) fn say(&self, message: Message, value: u64, file: Option<BorrowedFd<'_>>) {
        if let Err(error) = self.channel.send_parcel(message, value, file) {
            log::warn!("cannot tell the master {message:?}: {error}");
        }
    }
}

fn set_level(place: u64) {
    let level = usize::try_from(place).ok().and_then(|place| LogLevel::ALL.get(place));
    let Some(&level) = level else {
        log::warn!("the master named log level {place}, which there is not");
        return;
    };
    match logging::set_level(level) {
        Ok(()) => log::info!("log level changed level={}", level.name()),
        Err(error) => log::error!("cannot change the log level: {error}"),
    }
}
