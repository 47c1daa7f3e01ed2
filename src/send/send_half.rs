//! The sending half of a connection, as all threads share it: its outbox, its
//! names, and the way to the send list and to the event loop.
//!
//! Each method makes one change under the outbox's lock and then, without it,
//! does what the change asks for, always in the same order: list and post, call
//! the loop, resume the inbox.

use super::budget::{Resume, Room};
use super::call_list::Called;
use super::flush::{Flushed, Socket, after_error, flush};
use super::outbox::{Closed, Outbox, Parking, Refused, Settled, View};
use super::send_path::{SendPath, SlowReader};
use super::writer::{Entry, Writer};
use crate::sync::fault::{Fault, is_planted};
use bytes::Bytes;
use chappe_shm::{Count, Counter, ThreadCounters};
use std::io::{ErrorKind, IoSlice};
use std::sync::Arc;

/// See the module. Lists hold it by `Arc`; the descriptor is not freed by the
/// last holder but by the event loop, which owns it.
#[derive(Debug)]
pub struct SendHalf {
    id: u64,
    token: u64,
    outbox: Outbox,
    called: Called,
    path: Arc<SendPath>,
}

/// How full the outbox is after an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Go on.
    Below,
    /// Above this connection's high mark: stop producing.
    Above,
    /// Above the worker's total: stop producing.
    TotalAbove,
}

impl Level {
    fn of(is_above_high: bool, total: Room) -> Self {
        match (is_above_high, total) {
            (true, _) => Self::Above,
            (false, Room::Exhausted) => Self::TotalAbove,
            (false, Room::Free) => Self::Below,
        }
    }
}

impl SendHalf {
    /// `id` is the connection's name for people, `token` the event loop's.
    #[must_use]
    pub fn new(id: u64, token: u64, socket: Arc<dyn Socket>, path: Arc<SendPath>) -> Self {
        Self { id, token, outbox: Outbox::new(socket, path.marks()), called: Called::new(), path }
    }

    /// Unique over workers and generations.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Queues a message; any thread.
    ///
    /// # Errors
    /// [`Closed`]: it was not queued, and was counted as dropped.
    pub fn append(
        self: &Arc<Self>,
        entry: Entry,
        counters: &ThreadCounters,
    ) -> Result<Level, Closed> {
        let (level, is_ready) = self.append_unlisted(entry, counters)?;
        if is_ready && !is_planted(Fault::PostBeforeState) {
            self.list(counters);
        }
        Ok(level)
    }

    /// Queues a message and writes it, as the send thread would, if nobody else does
    /// and nothing is in front of it. The connection is ready and on no list for that
    /// moment, so nobody else can take it.
    ///
    /// # Errors
    /// As [`SendHalf::append`].
    pub fn append_and_flush(
        self: &Arc<Self>,
        entry: Entry,
        counters: &ThreadCounters,
    ) -> Result<Level, Closed> {
        let (level, is_ready) = self.append_unlisted(entry, counters)?;
        if is_ready {
            self.flush_ready(counters);
        }
        Ok(level)
    }

    /// Writes replies that are in no outbox, if nothing is in front of them and nobody
    /// writes; only what the socket does not take is copied into the outbox. `None` if
    /// they have to be appended.
    pub fn write_through(
        self: &Arc<Self>,
        bytes: &[u8],
        frames: u32,
        counters: &ThreadCounters,
    ) -> Option<Level> {
        let mut writer = self.outbox.take_idle()?;
        counters.add(Counter::SendCalls, 1);
        let result = writer.socket().send(&[IoSlice::new(bytes)]);
        if let Ok(sent) = result
            && sent == bytes.len()
        {
            counters.add(Counter::BytesSent, sent as u64);
            counters.add(Counter::FramesSent, u64::from(frames));
            if let Some(settled) = self.outbox.settle_sent(writer, sent) {
                self.carry_out(settled, counters);
            }
            return Some(Level::Below);
        }
        let entry = Entry { bytes: Bytes::copy_from_slice(bytes), frames };
        let cost = entry.cost();
        let total = self.path.total().charge(cost);
        if total == Room::Exhausted {
            self.path.calls().report_overload();
        }
        let sent = *result.as_ref().unwrap_or(&0);
        writer.begin(entry, sent);
        counters.add(Counter::BytesSent, sent as u64);
        counters.add(Counter::PartialSends, u64::from(sent > 0));
        let flushed = match result {
            Ok(0) => Flushed::Broken(ErrorKind::WriteZero.into()),
            Ok(_) => Flushed::SocketFull,
            Err(error) => match after_error(error) {
                Some(flushed) => flushed,
                // Interrupted, and nothing was sent: once more.
                None => flush(&mut writer, counters),
            },
        };
        let (settled, is_above_high) = self.outbox.settle_begun(writer, cost, total, &flushed);
        self.carry_out(settled, counters);
        Some(Level::of(is_above_high, total))
    }

    /// Whether it became ready: the caller has to list or to flush it.
    fn append_unlisted(
        self: &Arc<Self>,
        entry: Entry,
        counters: &ThreadCounters,
    ) -> Result<(Level, bool), Closed> {
        let (cost, frames) = (entry.cost(), entry.frames);
        let total = self.path.total().charge(cost);
        if is_planted(Fault::PostBeforeState) {
            self.path.list().push(Arc::clone(self));
        }
        let appended = self.outbox.append(entry, total).inspect_err(|_| {
            self.path.total().release(cost);
            counters.add(Counter::MessagesDropped, u64::from(frames));
        })?;
        if total == Room::Exhausted {
            self.path.calls().report_overload();
        }
        if appended.call {
            self.call_loop();
        }
        Ok((Level::of(appended.is_above_high, total), appended.list))
    }

    /// Queues a message that answers nothing; any thread, also one of the
    /// application's own. Beyond this connection's limit `send.slow_reader` decides
    /// what else happens; beyond the worker's, the largest backlog goes.
    ///
    /// # Errors
    /// Why it was not queued.
    pub fn push(self: &Arc<Self>, entry: Entry) -> Result<(), Refused> {
        // Who is gone is gone, whatever the others hold.
        self.outbox.is_open()?;
        let cost = entry.cost();
        let counters = self.path.pushers();
        let pushed = if self.path.total().try_charge(cost) {
            self.outbox.push(entry).inspect_err(|_| self.path.total().release(cost))
        } else {
            self.path.calls().report_overload();
            counters.add(Counter::MessagesDropped, 1);
            return Err(Refused::Full);
        };
        match pushed {
            Ok(appended) => {
                counters.add(Counter::MessagesPushed, 1);
                if appended.list {
                    self.list(counters);
                }
                Ok(())
            }
            Err(refused) => {
                self.count_refused(refused);
                if refused == Refused::Full && self.path.slow_reader() == SlowReader::Close {
                    // Whether it is cut here or was by another thread: it ends.
                    self.cut(counters);
                    return Err(self.outbox.is_open().err().unwrap_or(Refused::Finishing));
                }
                Err(refused)
            }
        }
    }

    /// Says that a pushed message goes out with the replies of its handler's turn, in
    /// which `before` was pushed already: within the same limit.
    ///
    /// # Errors
    /// Why it would not.
    pub fn join_replies(&self, before: usize, cost: usize) -> Result<(), Refused> {
        self.outbox.has_room(before, cost).inspect_err(|refused| self.count_refused(*refused))?;
        self.path.pushers().add(Counter::MessagesPushed, 1);
        Ok(())
    }

    fn count_refused(&self, refused: Refused) {
        let is_full = refused == Refused::Full;
        self.path.pushers().add(Counter::MessagesDropped, u64::from(is_full));
    }

    /// Whether messages are still taken; any thread.
    ///
    /// # Errors
    /// Why not.
    pub fn is_open(&self) -> Result<(), Refused> {
        self.outbox.is_open()
    }

    /// Gives up the backlog of a peer that is too slow, says goodbye behind what is
    /// half sent, and lets the event loop end the connection. Returns how many bytes
    /// that has freed; `None` if the connection ends already.
    pub fn cut(self: &Arc<Self>, counters: &impl Count) -> Option<usize> {
        let last = self.path.too_slow();
        let cost = last.cost();
        // Beyond the bound if it must be: it makes room for more than it takes.
        _ = self.path.total().charge(cost);
        let Some(settled) = self.outbox.cut(last) else {
            self.path.total().release(cost);
            return None;
        };
        log::debug!("conn={} reads too slowly, its backlog is dropped", self.id);
        counters.add(Counter::ClosedSlow, 1);
        let freed = settled.released;
        self.carry_out(settled, counters);
        Some(freed)
    }

    /// The send thread's part: writes what is queued, if nobody closed it meanwhile.
    pub fn flush_ready(self: &Arc<Self>, counters: &ThreadCounters) {
        if let Some(writer) = self.outbox.take_ready() {
            self.flush(writer, counters);
        }
    }

    /// The event loop's part, at EPOLLOUT: writes the rest.
    pub fn flush_blocked(self: &Arc<Self>, counters: &ThreadCounters) {
        if let Some(writer) = self.outbox.take_blocked() {
            if is_planted(Fault::PostBeforeUnblock) {
                self.path.list().push(Arc::clone(self));
            }
            self.flush(writer, counters);
        }
    }

    fn flush(self: &Arc<Self>, mut writer: Writer, counters: &ThreadCounters) {
        let flushed = flush(&mut writer, counters);
        if let Flushed::Broken(error) = &flushed {
            log::debug!("conn={} send failed: {error}", self.id);
        }
        let settled = self.outbox.settle(writer, &flushed);
        self.carry_out(settled, counters);
    }

    fn carry_out(self: &Arc<Self>, settled: Settled, counters: &impl Count) {
        if settled.blocked {
            counters.add(Counter::SendsBlocked, 1);
        }
        if settled.lost_frames > 0 {
            counters.add(Counter::MessagesExpired, settled.lost_frames);
        }
        if settled.list && !is_planted(Fault::PostBeforeUnblock) {
            self.list(counters);
            if is_planted(Fault::PostTooMany) {
                self.path.list().post_without_connection();
            }
        }
        if settled.call {
            self.call_loop();
        }
        self.path.total().release(settled.released);
        if let Some(inbox) = settled.resume {
            inbox.resume();
        }
    }

    fn list(self: &Arc<Self>, counters: &impl Count) {
        self.path.list().push(Arc::clone(self));
        counters.add(Counter::SemaphorePosts, 1);
    }

    /// Parks a stalled inbox until this connection's outbox has drained.
    #[must_use]
    pub fn park(&self, inbox: Arc<dyn Resume>) -> Parking {
        self.outbox.park(inbox)
    }

    /// Parks a stalled inbox until the worker's total has room.
    #[must_use]
    pub fn park_for_total(&self, inbox: Arc<dyn Resume>) -> Room {
        self.path.total().wait_for_room(inbox)
    }

    /// Whether all connections of the worker together are owed more than the bound.
    #[must_use]
    pub fn is_total_exhausted(&self) -> bool {
        self.path.total().excess() > 0
    }

    /// No new message: flush, then the event loop ends the connection.
    pub fn finish(&self) {
        if self.outbox.finish() {
            self.call_loop();
        }
    }

    /// The event loop gives the connection up. True when nobody writes any
    /// more, so that the descriptor may be closed; else the writer calls.
    pub fn abort(self: &Arc<Self>, counters: &ThreadCounters) -> bool {
        match self.outbox.abort() {
            Some(settled) => {
                self.carry_out(settled, counters);
                true
            }
            None => false,
        }
    }

    /// What the event loop computes its interest from.
    #[must_use]
    pub fn view(&self) -> View {
        self.outbox.view()
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Asks the event loop to look at this connection.
    pub fn call_loop(&self) {
        self.path.calls().call(&self.called, self.token);
    }

    /// The event loop has heard: later changes call again.
    pub fn clear_call(&self) {
        self.called.clear();
    }
}
