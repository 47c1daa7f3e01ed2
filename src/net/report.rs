//! The list of connections, for an operator.
//!
//! A list of 65 536 connections takes longer than the loop may be held up, so it is written
//! some hundred at a turn, into a file in memory. Connections come and go in the meantime:
//! it has all that were there from its beginning to its end.

use super::clocks::state_name;
use super::connection::Connection;
use super::reactor::{Key, Table};
use super::settings::{LISTED_AT_ONCE, LISTINGS_MAX};
use crate::control::ConnectionRow;
use chappe_sys::clock::Moment;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};

/// The lists that are being written, and those that are complete.
#[derive(Debug)]
pub(super) struct Reports {
    worker: u16,
    begun: VecDeque<Report>,
    complete: VecDeque<(u64, io::Result<File>)>,
}

const SEALS: SealFlag =
    SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_WRITE);

/// A list that is being written: JSON objects, one on each line.
#[derive(Debug)]
struct Report {
    ticket: u64,
    only_slow: bool,
    keys: std::vec::IntoIter<Key>,
    file: File,
}

impl Reports {
    /// Of the worker of this number.
    pub(super) fn new(worker: u16) -> Self {
        Self { worker, begun: VecDeque::new(), complete: VecDeque::new() }
    }

    pub(super) fn is_writing(&self) -> bool {
        !self.begun.is_empty()
    }

    pub(super) fn begin(&mut self, ticket: u64, only_slow: bool, keys: Vec<Key>) {
        if self.begun.len() >= LISTINGS_MAX {
            self.complete.push_back((ticket, Err(io::Error::other("too many lists at a time"))));
            return;
        }
        match memfd_create(
            "chappe-connections",
            MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
        ) {
            Ok(file) => {
                let (keys, file) = (keys.into_iter(), file.into());
                self.begun.push_back(Report { ticket, only_slow, keys, file });
            }
            Err(errno) => self.complete.push_back((ticket, Err(errno.into()))),
        }
    }

    pub(super) fn take(&mut self) -> Option<(u64, io::Result<File>)> {
        self.complete.pop_front()
    }

    /// Writes a part of the oldest list.
    pub(super) fn go_on(&mut self, table: &Table, now: Moment) {
        let Some(mut report) = self.begun.pop_front() else { return };
        let mut text = Vec::new();
        for key in report.keys.by_ref().take(LISTED_AT_ONCE) {
            let is_meant = |connection: &&Connection| {
                connection.held.permit && (!report.only_slow || connection.clocks.blocked.is_some())
            };
            if let Some(connection) = table.get(key).filter(is_meant) {
                let row = row(connection, self.worker, now);
                serde_json::to_writer(&mut text, &row).expect("numbers and words can be written");
                text.push(b'\n');
            }
        }
        let written = report.file.write_all(&text);
        if written.is_ok() && report.keys.len() > 0 {
            self.begun.push_front(report);
            return;
        }
        let file = report.file;
        // The master takes only what can't change any more.
        let seal = || fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS)).map_err(io::Error::from);
        let list = written.and_then(|()| seal()).map(|_| file);
        self.complete.push_back((report.ticket, list));
    }
}

/// One is made at a time, with the two strings that it has: what it costs is bounded.
fn row(connection: &Connection, worker: u16, now: Moment) -> ConnectionRow {
    let view = connection.mailbox.view();
    ConnectionRow {
        id: connection.id(),
        worker,
        peer: connection.mailbox.peer().to_string(),
        state: state_name(&view, connection.clocks.is_draining()).to_owned(),
        connected_ms: millis(now, connection.mailbox.connected_at()),
        received_bytes: connection.input_bytes,
        sent_bytes: view.sent_bytes,
        queued_bytes: view.outbox_bytes as u64,
        blocked_ms: connection.clocks.blocked.as_ref().map(|clock| millis(now, clock.since)),
    }
}

fn millis(now: Moment, since: Moment) -> u64 {
    let elapsed = now.since(since);
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}
