//! What the send thread of a worker does for topics: it answers who has waited for the hub, and
//! hands what is published to the subscribers.
//!
//! Between two messages of the ring, and there alone, subscriptions begin and end. So what a
//! connection learns of its subscription and what it gets fit to the message: *confirmed at
//! offset n* means that it gets all behind n and nothing before.

use crate::cells::Counts;
use crate::delivery::{Delivered, Delivery};
use crate::hub::bit_of;
use crate::life::Life;
use crate::lists::Lists;
use crate::outlet::{Mark, Outlet, Published};
use crate::record::{Answer, Interest, Listed, Origin, Record};
use crate::replay::{ReplayLimits, Replays};
use crate::table::Table;
use crate::wish::{Answered, TableLimits, Wish};
use chappe_rings::{Broadcast, Consumer, Corrupt, Found, Producer, Reader};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Messages that are handed to subscribers before something else has its turn.
const DELIVERIES_A_LOOK: usize = 64;

/// Bytes of messages that go together, at most.
const TOGETHER_BYTES_MAX: usize = 64 * 1024;

/// What happens to connections.
pub trait Sink<C, T, W> {
    /// A publish was answered; `None`: it was left out, since two hubs have died on it.
    fn published(&mut self, waiter: W, answer: Option<Published>);
    /// A publish needs no longer wait for room.
    fn taken(&mut self, waiter: W);
    /// A wish was carried out, or was refused: behind this offset.
    fn answered(&mut self, answered: Answered<C, T>, offset: u64);
    /// Messages for a subscriber. False: they are lost.
    fn deliver(&mut self, connection: &C, delivered: Delivered<'_>) -> bool;
    /// The names that were asked for, for `listing::names`.
    fn listed(&mut self, connection: &C, answer: T, list: &[u8]);
    /// The worker was too slow: so many messages are lost for all its subscribers.
    fn lapped(&mut self, lost: u64);
    /// Wakes the hub.
    fn post(&mut self);
}

/// The send thread's part.
#[derive(Debug)]
pub struct Inlet<C, T, W> {
    id: u64,
    /// Of the records that concern it.
    bit: u64,
    life: Life,
    outlet: Arc<Outlet<W>>,
    answers: Consumer,
    interest: Producer,
    reader: Reader,
    table: Table<C, T>,
    /// Cells that the hub knows, and from which offset on, until the reader is there; `None`:
    /// that it has refused.
    heard: VecDeque<((u32, u32), Option<u64>)>,
    /// What is being delivered; empty: nothing.
    delivery: Delivery,
    /// A record that is read and not delivered yet: its publisher is to be answered first, or it
    /// does not go with those before it. Empty: none.
    held: Vec<u8>,
    /// Messages that the reader has just found to be lost.
    lost: u64,
    answered: Vec<Answered<C, T>>,
    ring: Broadcast,
    replays: Replays,
    lists: Lists<C, T>,
    /// Messages that go together have at most so many.
    together_bytes: usize,
    bytes: Vec<u8>,
}

impl Counts for Life {
    fn set(&self, cell: u32, count: usize) {
        if let Some(place) = self.cell(cell) {
            place.store(u32::try_from(count).unwrap_or(u32::MAX), Ordering::Relaxed);
        }
    }
}

impl<C: Clone, T: Clone, W> Inlet<C, T, W> {
    /// Of a worker that has just begun; `id` is that of its life, `place` its own in the zone.
    ///
    /// # Errors
    /// [`Corrupt`]: no hub has written this ring.
    pub fn new(
        (id, place): (u64, u32),
        life: &Life,
        outlet: &Arc<Outlet<W>>,
        ring: &Broadcast,
        limits: TableLimits,
        replays: ReplayLimits,
    ) -> Result<Self, Corrupt> {
        let reader = ring.reader()?;
        life.note_read(reader.position());
        Ok(Self {
            id,
            bit: bit_of(place),
            outlet: Arc::clone(outlet),
            answers: life.answers().consumer(),
            interest: life.interest().producer(),
            reader,
            table: Table::new(limits),
            heard: VecDeque::new(),
            delivery: Delivery::default(),
            held: Vec::new(),
            lost: 0,
            answered: Vec::new(),
            ring: ring.clone(),
            replays: Replays::new(replays),
            // What a connection may miss is far more, and so what it is refused is a small part.
            together_bytes: (replays.each_bytes / 8).min(TOGETHER_BYTES_MAX),
            lists: Lists::default(),
            bytes: Vec::new(),
            life: life.clone(),
        })
    }

    /// The subscriptions.
    #[must_use]
    pub fn table(&self) -> &Table<C, T> {
        &self.table
    }

    /// Whether a message is on its way to its subscribers: wishes have to wait.
    #[must_use]
    pub fn is_delivering(&self) -> bool {
        !self.delivery.is_empty()
    }

    /// Whether there is something to look at, whatever the bell says: the hub that was to ring it may
    /// have died before.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.life.to_worker().is_rung() || self.answers.has_next() || self.reader.has_next()
    }

    /// Whether all that was published before a mark is delivered to those who are here. If not, the
    /// bell is rung, or a look has more to do, before it is.
    pub fn has_passed(&self, mark: &mut Mark) -> bool {
        if mark.end.is_none() && self.outlet.is_taken(mark) {
            // A request is taken when its message is there.
            mark.end = Some(self.ring.position());
        }
        // What is read is delivered, but for the one that is held.
        let is_between = !self.is_delivering() && self.held.is_empty();
        is_between && mark.end.is_some_and(|end| self.reader.position() >= end)
    }

    /// To be called first at each look.
    pub fn hear(&mut self) {
        self.life.to_worker().hear();
    }

    /// Carries out a wish. Not while it [delivers](Self::is_delivering).
    pub fn wish(&mut self, id: u64, of: &C, wish: Wish, answer: T, sink: &mut impl Sink<C, T, W>) {
        debug_assert!(!self.is_delivering());
        let offset = self.offset();
        if matches!(wish, Wish::Subscribe { resume: Some(from), .. } if from > offset) {
            // One that cannot be read is found out by the next look.
            let latest = self.ring.reader().map_or(offset, |reader| reader.offset());
            self.table.note_latest(latest);
        }
        self.table.ask((id, of), wish, answer, offset, &self.life, &mut self.answered);
        self.pass_answers(offset, sink);
    }

    /// Looks up what those have missed who resume. Between two messages. True: there is more.
    fn replay(&mut self, sink: &mut impl Sink<C, T, W>) -> Result<bool, Corrupt> {
        self.replays.want(self.table.take_wanted());
        if self.replays.is_idle() {
            return Ok(false);
        }
        let offset = self.offset();
        for replayed in self.replays.step(&self.ring, offset)? {
            self.table.replayed(replayed, offset, &self.life, &mut self.answered);
        }
        self.pass_answers(offset, sink);
        self.replays.want(self.table.take_wanted());
        self.life.note_progress();
        Ok(!self.replays.is_idle())
    }

    fn pass_answers(&mut self, offset: u64, sink: &mut impl Sink<C, T, W>) {
        for answered in self.answered.drain(..) {
            sink.answered(answered, offset);
        }
    }

    /// Asks the hub for a list of names, for a connection.
    pub fn list(&mut self, of: &C, wanted: Listed, answer: T) {
        self.lists.add(of.clone(), wanted, answer);
    }

    /// The connection is gone. Not while it [delivers](Self::is_delivering).
    pub fn gone(&mut self, id: u64) {
        debug_assert!(!self.is_delivering());
        self.table.gone(id, &self.life);
    }

    /// Does what there is to do, and returns whether there is more: the caller then sees to
    /// what else it has, and comes again.
    ///
    /// # Errors
    /// [`Corrupt`]: the hub has written what no correct one writes.
    pub fn look(&mut self, sink: &mut impl Sink<C, T, W>) -> Result<bool, Corrupt> {
        self.hear_answers(sink)?;
        for waiter in self.outlet.move_spill(|| sink.post()) {
            sink.taken(waiter);
        }
        let replays = self.is_delivering() || self.replay(sink)?;
        let is_more = self.deliver(sink)?;
        self.tell(sink);
        // A name that the hub knows since then may have somebody who resumes.
        Ok(is_more || replays || self.table.has_wanted())
    }

    /// The hub's answers.
    fn hear_answers(&mut self, sink: &mut impl Sink<C, T, W>) -> Result<(), Corrupt> {
        while self.answers.next(&mut self.bytes)? {
            let bytes = std::mem::take(&mut self.bytes);
            match Answer::read(&bytes)? {
                Answer::Published { number, offset, subscribers } => {
                    if let Some(waiter) = self.outlet.answered(number) {
                        sink.published(waiter, Some(Published { offset, subscribers }));
                    }
                }
                Answer::Skipped { number } => {
                    if let Some(waiter) = self.outlet.answered(number) {
                        sink.published(waiter, None);
                    }
                }
                Answer::Added { cell, turn, offset } => {
                    self.heard.push_back(((cell, turn), Some(offset)));
                }
                Answer::Refused { cell, turn } => {
                    self.heard.push_back(((cell, turn), None));
                }
                Answer::Removed { cell, turn } => self.table.removed((cell, turn)),
                Answer::NameAll { hub } => {
                    self.table.name_all(hub);
                    self.lists.ask_again();
                }
                Answer::Part { number, is_last, bytes } => {
                    if let Some((of, answer, list)) = self.lists.hear(number, is_last, bytes) {
                        sink.listed(&of, answer, &list);
                    }
                }
            }
            self.bytes = bytes;
            self.life.note_progress();
            if self.answers.advance() {
                self.life.to_hub().ring(|| sink.post());
            }
        }
        Ok(())
    }

    /// Tells the hub of names, as far as there is room.
    fn tell(&mut self, sink: &mut impl Sink<C, T, W>) {
        let mut has_told = false;
        while let Some(interest) = self.table.to_tell() {
            if !self.push(&interest) {
                break;
            }
            self.table.told();
            has_told = true;
        }
        if let Some(interest) = self.lists.to_ask()
            && self.push(&interest)
        {
            self.lists.asked();
            has_told = true;
        }
        if has_told {
            self.life.to_hub().ring(|| sink.post());
        }
    }

    /// False: there is no room, and the hub says when there is.
    fn push(&mut self, interest: &Interest) -> bool {
        self.bytes.clear();
        interest.write(&mut self.bytes);
        self.interest.push(&self.bytes).is_ok()
    }

    /// Hands messages to their subscribers. True: there are more.
    fn deliver(&mut self, sink: &mut impl Sink<C, T, W>) -> Result<bool, Corrupt> {
        let mut left = DELIVERIES_A_LOOK;
        let was_begun = self.is_delivering();
        loop {
            if !self.is_delivering() {
                if left == 0 {
                    return Ok(true);
                }
                if !self.next_messages(&mut left, sink)? {
                    self.life.note_read(self.reader.position());
                    return Ok(left == 0);
                }
            }
            let mut delivery = std::mem::take(&mut self.delivery);
            self.deliver_some(&mut delivery, &mut left, sink);
            self.delivery = delivery;
            self.life.note_progress();
            if self.is_delivering() {
                return Ok(true);
            }
            self.note_lost(sink);
            self.life.note_read(self.reader.position());
            if was_begun {
                // Wishes that have waited for the end of a message have their turn.
                return Ok(true);
            }
        }
    }

    /// Of the last message that is delivered to its end. One that is held is read, and not
    /// delivered.
    fn offset(&self) -> u64 {
        self.reader.offset() - u64::from(!self.held.is_empty())
    }

    /// Between two messages: subscriptions begin, and then the next ones are read that go together.
    /// False: nothing is to be delivered, or its publisher has to be answered first.
    fn next_messages(
        &mut self,
        left: &mut usize,
        sink: &mut impl Sink<C, T, W>,
    ) -> Result<bool, Corrupt> {
        loop {
            let offset = self.offset();
            self.begin_subscriptions(sink);
            while *left > 0 && self.next_record(left, sink)? {
                let message = Record::read(&self.held)?.request.message;
                let delivery = &mut self.delivery;
                if delivery.is_empty() {
                    delivery.begin(self.reader.offset(), message.topic, &self.held);
                    self.table.matching(message.topic, &mut delivery.cells);
                    // They are taken from the end: first the topic by its name, as from Redis.
                    delivery.cells.reverse();
                } else if delivery.takes(message.topic, self.held.len(), self.together_bytes) {
                    delivery.add(self.reader.offset(), &self.held);
                } else {
                    break;
                }
                self.held.clear();
            }
            if self.is_delivering() {
                return Ok(true);
            }
            self.note_lost(sink);
            if self.offset() == offset {
                return Ok(false);
            }
            // Subscriptions may begin here.
        }
    }

    fn begin_subscriptions(&mut self, sink: &mut impl Sink<C, T, W>) {
        let offset = self.offset();
        self.table.reached(offset, &self.life, &mut self.answered);
        self.pass_answers(offset, sink);
        while let Some(&(cell, from)) = self.heard.front()
            && from.is_none_or(|from| from <= offset)
        {
            self.heard.pop_front();
            let (table, life, out) = (&mut self.table, &self.life, &mut self.answered);
            match from {
                Some(_) => table.added(cell, offset, life, out),
                None => table.refused(cell, offset, life, out),
            }
            self.pass_answers(offset, sink);
        }
    }

    /// Between two messages: those that the reader was too slow for.
    fn note_lost(&mut self, sink: &mut impl Sink<C, T, W>) {
        let lost = std::mem::take(&mut self.lost);
        if lost > 0 {
            self.table.lose(lost);
            self.life.note_read(self.reader.position());
            sink.lapped(lost);
        }
    }

    /// Has the next record be held that concerns this worker. False: the log ends, some were lost,
    /// its publisher has to be answered first, or nothing is left of the look.
    fn next_record(
        &mut self,
        left: &mut usize,
        sink: &mut impl Sink<C, T, W>,
    ) -> Result<bool, Corrupt> {
        while self.held.is_empty() {
            if *left == 0 {
                return Ok(false);
            }
            match self.reader.next(&mut self.held)? {
                Found::Record => {
                    // One without subscribers here takes time as well.
                    *left -= 1;
                    // The hub has known of each name that has a subscriber since before that one was
                    // confirmed.
                    if Origin::read(&self.held)?.concerned & self.bit == 0 {
                        self.held.clear();
                    }
                }
                found => {
                    self.held.clear();
                    if let Found::Lapped(lost) = found {
                        self.lost = lost;
                    }
                    return Ok(false);
                }
            }
        }
        let Origin { life, number, is_awaited, .. } = Origin::read(&self.held)?;
        if life == self.id && is_awaited && self.outlet.is_awaited(number) {
            // The answer is written behind the message, and before the bell is rung.
            self.hear_answers(sink)?;
            return Ok(!self.outlet.is_awaited(number));
        }
        Ok(true)
    }

    /// As long as something is left of the look.
    fn deliver_some(
        &mut self,
        delivery: &mut Delivery,
        left: &mut usize,
        sink: &mut impl Sink<C, T, W>,
    ) {
        let messages = delivery.messages();
        let (count, last) = (messages.count() as u64, messages.last());
        let (mut cells, mut done) = (delivery.cells.len(), delivery.done);
        while let Some(&cell) = delivery.cells[..cells].last() {
            while done < self.table.subscribers(cell) {
                if *left == 0 {
                    delivery.cells.truncate(cells);
                    delivery.done = done;
                    return;
                }
                *left -= 1;
                if let Some((of, filter, flags, lost)) = self.table.deliver(cell, done, last)
                    && !sink.deliver(of, Delivered { filter, flags, lost, messages })
                {
                    self.table.missed(cell, done, lost + count);
                }
                done += 1;
            }
            done = 0;
            cells -= 1;
        }
        delivery.clear();
    }
}

#[cfg(test)]
#[path = "inlet_tests.rs"]
mod tests;
