//! What the send thread of a worker does for topics: it answers who has waited for the hub, and
//! hands what is published to the subscribers.
//!
//! Between two messages of the ring, and there alone, subscriptions begin and end. So what a
//! connection learns of its subscription and what it gets fit to the message: *confirmed at
//! offset n* means that it gets all behind n and nothing before.

use crate::cells::Counts;
use crate::life::Life;
use crate::lists::Lists;
use crate::name::Filter;
use crate::outlet::{Mark, Outlet, Published};
use crate::record::{Answer, Interest, Listed, Message, Record};
use crate::replay::{ReplayLimits, Replays};
use crate::table::Table;
use crate::wish::{Answered, TableLimits, Wish};
use chappe_rings::{Broadcast, Consumer, Corrupt, Found, Producer, Reader};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Messages that are handed to subscribers before something else has its turn.
const DELIVERIES_A_LOOK: usize = 64;

/// What happens to connections.
pub trait Sink<C, T, W> {
    /// A publish was answered; `None`: it was left out, since two hubs have died on it.
    fn published(&mut self, waiter: W, answer: Option<Published>);
    /// A publish needs no longer wait for room.
    fn taken(&mut self, waiter: W);
    /// A wish was carried out, or was refused: behind this offset.
    fn answered(&mut self, answered: Answered<C, T>, offset: u64);
    /// A message for a subscriber. False: it is lost.
    fn deliver(&mut self, connection: &C, delivered: Delivered<'_>) -> bool;
    /// The names that were asked for, for `listing::names`.
    fn listed(&mut self, connection: &C, answer: T, list: &[u8]);
    /// The worker was too slow: so many messages are lost for all its subscribers.
    fn lapped(&mut self, lost: u64);
    /// Wakes the hub.
    fn post(&mut self);
}

/// A message, and for whom it is.
#[derive(Clone, Copy, Debug)]
pub struct Delivered<'a> {
    /// The subscription that matches.
    pub filter: &'a Filter,
    /// How the subscriber wants its messages.
    pub flags: u8,
    /// How many it has missed before this one.
    pub lost: u64,
    /// Of the message.
    pub offset: u64,
    /// What was published.
    pub message: Message<'a>,
}

/// A message that is being delivered.
#[derive(Debug, Default)]
struct Delivery {
    record: Vec<u8>,
    /// The cells it is for, the last one first.
    cells: Vec<u32>,
    /// Of the last cell: subscribers that have had it.
    done: usize,
    is_on: bool,
}

/// The send thread's part.
#[derive(Debug)]
pub struct Inlet<C, T, W> {
    id: u64,
    life: Life,
    outlet: Arc<Outlet<W>>,
    answers: Consumer,
    interest: Producer,
    reader: Reader,
    table: Table<C, T>,
    /// Cells that the hub knows, and from which offset on, until the reader is there; `None`:
    /// that it has refused.
    heard: VecDeque<((u32, u32), Option<u64>)>,
    delivery: Delivery,
    answered: Vec<Answered<C, T>>,
    ring: Broadcast,
    replays: Replays,
    lists: Lists<C, T>,
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
    /// Of a worker that has just begun; `id` is that of its life.
    ///
    /// # Errors
    /// [`Corrupt`]: the ring is none that a hub has written.
    pub fn new(
        id: u64,
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
            outlet: Arc::clone(outlet),
            answers: life.answers().consumer(),
            interest: life.interest().producer(),
            reader,
            table: Table::new(limits),
            heard: VecDeque::new(),
            delivery: Delivery::default(),
            answered: Vec::new(),
            ring: ring.clone(),
            replays: Replays::new(replays),
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
        self.delivery.is_on
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
        self.delivery.record.is_empty() && mark.end.is_some_and(|end| self.reader.position() >= end)
    }

    /// To be called first at each look.
    pub fn hear(&mut self) {
        self.life.to_worker().hear();
    }

    /// Carries out a wish. Not while it [delivers](Self::is_delivering).
    pub fn wish(&mut self, id: u64, of: &C, wish: Wish, answer: T, sink: &mut impl Sink<C, T, W>) {
        debug_assert!(!self.delivery.is_on);
        let offset = self.offset();
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
        debug_assert!(!self.delivery.is_on);
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
        let replays = self.delivery.is_on || self.replay(sink)?;
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
        let was_begun = self.delivery.is_on;
        loop {
            if !self.delivery.is_on {
                if left == 0 {
                    return Ok(true);
                }
                // A message without subscribers here takes time as well.
                left -= 1;
                if !self.next_message(sink)? {
                    return Ok(false);
                }
            }
            let mut delivery = std::mem::take(&mut self.delivery);
            delivery.is_on = self.deliver_some(&mut delivery, &mut left, sink)?;
            self.delivery = delivery;
            if self.delivery.is_on {
                return Ok(true);
            }
            self.life.note_read(self.reader.position());
            self.life.note_progress();
            if was_begun {
                // Wishes that have waited for the end of a message have their turn.
                return Ok(true);
            }
        }
    }

    /// Of the last message that is delivered to its end. One that is held for its publisher's
    /// answer is read, and not delivered.
    fn offset(&self) -> u64 {
        let is_held = !self.delivery.is_on && !self.delivery.record.is_empty();
        self.reader.offset() - u64::from(is_held)
    }

    /// Between two messages: subscriptions begin, and then the next message is read. False:
    /// there is none, or its publisher has to be answered first.
    fn next_message(&mut self, sink: &mut impl Sink<C, T, W>) -> Result<bool, Corrupt> {
        let offset = self.offset();
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
        if self.delivery.record.is_empty() {
            match self.reader.next(&mut self.delivery.record)? {
                Found::Record => {}
                Found::Nothing => {
                    self.delivery.record.clear();
                    self.life.note_read(self.reader.position());
                    return Ok(false);
                }
                Found::Lapped(lost) => {
                    self.delivery.record.clear();
                    self.table.lose(lost);
                    self.life.note_read(self.reader.position());
                    sink.lapped(lost);
                    return self.next_message(sink);
                }
            }
        }
        let Record { life, request, .. } = Record::read(&self.delivery.record)?;
        let (is_own, number) = (life == self.id && request.is_awaited, request.number);
        if is_own && self.outlet.is_awaited(number) {
            // The answer is written behind the message, and before the bell is rung.
            self.hear_answers(sink)?;
            if self.outlet.is_awaited(number) {
                return Ok(false);
            }
        }
        let Record { request, .. } = Record::read(&self.delivery.record)?;
        self.table.matching(request.message.topic, &mut self.delivery.cells);
        // They are taken from the end: first the topic by its name, as from Redis.
        self.delivery.cells.reverse();
        self.delivery.done = 0;
        Ok(true)
    }

    /// True: not all have had it yet.
    fn deliver_some(
        &mut self,
        delivery: &mut Delivery,
        left: &mut usize,
        sink: &mut impl Sink<C, T, W>,
    ) -> Result<bool, Corrupt> {
        let message = Record::read(&delivery.record)?.request.message;
        let offset = self.reader.offset();
        while let Some(&cell) = delivery.cells.last() {
            while delivery.done < self.table.subscribers(cell) {
                if *left == 0 {
                    self.life.note_progress();
                    return Ok(true);
                }
                *left -= 1;
                if let Some((of, filter, flags, lost)) =
                    self.table.deliver(cell, delivery.done, offset)
                    && !sink.deliver(of, Delivered { filter, flags, lost, offset, message })
                {
                    self.table.missed(cell, delivery.done, lost + 1);
                }
                delivery.done += 1;
            }
            delivery.done = 0;
            delivery.cells.pop();
        }
        delivery.record.clear();
        Ok(false)
    }
}

#[cfg(test)]
#[path = "inlet_tests.rs"]
mod tests;
