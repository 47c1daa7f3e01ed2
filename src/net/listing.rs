//! Who is connected, for an operator, and the end of one of them.
//!
//! A list of 65 536 connections takes longer than the loop may be held up, so it is
//! written some hundred at a turn, into a file in memory. Connections come and go
//! meanwhile: it has all that were there from its beginning to its end.

use super::event_loop::{Entry, EventLoop, Key};
use super::interest::Phase;
use super::settings::{LISTED_AT_ONCE, LISTINGS_MAX};
use crate::dispatch::Then;
use chappe_shm::Counter;
use chappe_wire::Goodbye;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::time::{Duration, Instant};

/// A list that is being written: JSON objects, a line each.
#[derive(Debug)]
pub(super) struct Listing {
    ticket: u64,
    only_slow: bool,
    worker: u16,
    keys: std::vec::IntoIter<Key>,
    file: File,
}

impl EventLoop {
    /// Begins a list of the connections, or of those that are blocked.
    /// [`EventLoop::take_list`] has it when it is complete.
    pub fn list(&mut self, ticket: u64, only_slow: bool) {
        if self.listings.len() >= LISTINGS_MAX {
            self.lists.push_back((ticket, Err(io::Error::other("too many lists at a time"))));
            return;
        }
        match memfd_create("chappe-connections", MFdFlags::MFD_CLOEXEC) {
            Ok(file) => {
                let keys: Vec<Key> = self.table.keys().collect();
                let (worker, file) = (self.slot.report().worker, file.into());
                let keys = keys.into_iter();
                self.listings.push_back(Listing { ticket, only_slow, worker, keys, file });
            }
            Err(errno) => self.lists.push_back((ticket, Err(errno.into()))),
        }
    }

    /// A complete list and its ticket.
    pub fn take_list(&mut self) -> Option<(u64, io::Result<File>)> {
        self.lists.pop_front()
    }

    /// Writes a part of the oldest list.
    pub(super) fn go_on_listing(&mut self, now: Instant) {
        let Some(mut listing) = self.listings.pop_front() else { return };
        let mut text = String::new();
        for key in listing.keys.by_ref().take(LISTED_AT_ONCE) {
            self.describe(key, listing.only_slow, listing.worker, now, &mut text);
        }
        let written = listing.file.write_all(text.as_bytes());
        if written.is_ok() && listing.keys.len() > 0 {
            self.listings.push_front(listing);
            return;
        }
        // The file goes to another process with its position.
        let mut file = listing.file;
        let list = written.and_then(|()| file.rewind()).map(|()| file);
        self.lists.push_back((listing.ticket, list));
    }

    fn describe(&self, key: Key, only_slow: bool, worker: u16, now: Instant, text: &mut String) {
        let Some(Entry::Connection(connection)) = self.table.get(key) else { return };
        let blocked = connection.clocks.blocked.as_ref().map(|clock| millis(now, clock.since));
        if only_slow && blocked.is_none() {
            return;
        }
        let info = connection.receive.info();
        let view = connection.receive.send().view();
        let state = match connection.phase {
            Phase::Open => "open",
            Phase::Draining => "draining",
            Phase::Finishing => "finishing",
            Phase::Lingering => "lingering",
            Phase::Aborting => "aborting",
        };
        let blocked = blocked.map_or_else(|| "null".to_owned(), |millis| millis.to_string());
        // An address has no character that JSON would want escaped.
        let result = writeln!(
            text,
            "{{\"id\":{},\"worker\":{worker},\"peer\":\"{}\",\"state\":\"{state}\",\
             \"connected_ms\":{},\"received_bytes\":{},\"sent_bytes\":{},\
             \"queued_bytes\":{},\"blocked_ms\":{blocked}}}",
            info.id,
            info.peer,
            millis(now, connection.connected_at.into()),
            connection.input_bytes,
            view.sent_bytes,
            view.queued_bytes,
        );
        debug_assert!(result.is_ok(), "a string takes everything");
    }

    /// Closes a connection with a goodbye, or at once if nothing gets through to its
    /// peer. False if it is not here. It looks at all of them: an operator is rare.
    pub fn kick(&mut self, id: u64) -> bool {
        let is_wanted = |entry: &Entry| match entry {
            Entry::Connection(connection) => connection.id() == id,
            Entry::Refused(_) => false,
        };
        let found = self.table.iter().find(|(_, entry)| is_wanted(entry));
        let Some(key) = found.map(|(key, _)| key) else { return false };
        let Some(Entry::Connection(connection)) = self.table.get_mut(key) else { return false };
        let now = Instant::now();
        let is_live = matches!(connection.phase, Phase::Open | Phase::Draining);
        log::info!("conn={id} kicked peer={}", connection.receive.info().peer);
        self.shared.counters.add(Counter::ConnectionsKicked, 1);
        if !is_live || connection.receive.send().view().blocked.is_some() {
            self.abort(key, now);
        } else {
            let text = "closed by an operator";
            connection.say_goodbye(Goodbye::Kicked, text, Then::Finish, &self.shared);
            self.look(key, now);
        }
        true
    }
}

fn millis(now: Instant, since: Instant) -> u64 {
    let elapsed: Duration = now.saturating_duration_since(since);
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}
