//! The hub's work, without its process: it takes what workers ask for, gives every message its
//! place in the one order, and answers.
//!
//! For each request, in this order: the message is visible in the broadcast ring, its answer
//! in the answer queue, and then the request is taken off its queue. So a successor of a dead
//! hub finds at the head of a queue the one request of which all, some or nothing was done,
//! and the ring's last record says whether its message was: then it only answers once more,
//! which the worker recognises by the number.
//!
//! The registry dies with the hub. Its successor asks all workers to name their cells once
//! more; until one has, everything concerns it, and no limit holds for it.
//!
//! A worker that is far behind is waited for, as long as it makes progress: beyond half a ring
//! if something there concerns it, beyond three quarters in any case.

use crate::life::Life;
use crate::listing::Listing;
use crate::name::Filter;
use crate::record::{ANSWER_BYTES_MAX, Answer, Interest, PART_ANSWER_BYTES_MAX, Record, Request};
use crate::registry::{NameLimits, Place, Registry, TooMany};
use chappe_rings::{Broadcast, Consumer, Corrupt, Producer, Writer};
use chappe_sys::crash::step;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;

/// Requests, and words of interest, that one worker has in a round.
const REQUESTS_A_ROUND: usize = 64;
/// Bytes of requests that one worker has in a round.
const BYTES_A_ROUND: usize = 64 * 1024;
/// How long the hub waits for a worker that is behind and makes no progress.
const STANDSTILL_MS: u64 = 200;
/// How long a new hub publishes nothing while a worker has yet to name its cells.
const NAMING_MS: u64 = 200;
/// A request that as many hubs have died on is left out.
const DEATHS_MAX: u32 = 2;

/// A worker that the hub knows.
#[derive(Debug)]
struct Member {
    id: u64,
    /// Its bit in what a record concerns.
    bit: u64,
    life: Life,
    publish: Consumer,
    interest: Consumer,
    answers: Producer,
    /// To name all its cells. Not before there is room in its answer queue.
    was_asked: bool,
    /// It has named all its cells. Until then everything concerns it.
    has_named: bool,
    /// A list that it is sent, part by part.
    listing: Option<Listing>,
    /// The request at the head of its queue may be one that a hub has died on.
    has_doubt: bool,
    /// It is dead: what it has left is read, and nobody reads an answer.
    is_over: bool,
    /// The tail when the hub got to know it: it has read all before, or never will.
    begun: u64,
    /// Behind the last record that concerns it.
    concerned: u64,
    /// Its progress as seen last, and since when it has made none, while it is waited for.
    progress: u64,
    stands_since: Option<u64>,
}

/// The last record, as a dead hub has left it.
#[derive(Clone, Copy, Debug)]
struct Last {
    life: u64,
    number: u64,
    answer: Answer<'static>,
}

/// What has happened in a round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// The lives of the workers whose send threads have something to look at.
    pub to_ring: BTreeSet<u64>,
    /// Something is left that can be done at once.
    pub is_more: bool,
    /// Something is left that waits for a worker's progress.
    pub waits: bool,
    /// Workers that have written what no correct one writes.
    pub corrupt: Vec<(u64, Corrupt)>,
    /// Dead workers of whom everything is read.
    pub over: Vec<u64>,
    /// Messages published.
    pub published: u64,
    /// Requests left out, that too many hubs have died on.
    pub skipped: u64,
}

/// All that the hub knows.
#[derive(Debug)]
pub struct Hub {
    writer: Writer,
    ring_words: u64,
    registry: Registry,
    members: Vec<Member>,
    /// By the id of their life.
    places: HashMap<u64, usize>,
    limits: NameLimits,
    /// Until then nothing is published: workers have to name their cells first.
    names_until: Option<u64>,
    last: Option<Last>,
    /// What tells its questions from those of another hub.
    id: u64,
    /// Where the next round begins: what one worker frees is not always the same one's.
    first: usize,
    bytes: Vec<u8>,
    record: Vec<u8>,
    answer: Vec<u8>,
}

impl Hub {
    /// That goes on where the one before has stopped, if there was one. No two hubs have the
    /// same `id`. `now` is in milliseconds, on a clock of the caller's that never goes back.
    ///
    /// # Errors
    /// [`Corrupt`]: no hub has written this ring.
    pub fn new(ring: &Broadcast, id: u64, limits: NameLimits, now: u64) -> Result<Self, Corrupt> {
        let writer = ring.writer()?;
        let last = match writer.last()? {
            Some(bytes) => {
                let Record { life, subscribers, request, .. } = Record::read(&bytes)?;
                let (number, offset) = (request.number, writer.offset());
                Some(Last {
                    life,
                    number,
                    answer: Answer::Published { number, offset, subscribers },
                })
            }
            None => None,
        };
        Ok(Self {
            writer,
            ring_words: ring.words() as u64,
            registry: Registry::default(),
            members: Vec::new(),
            places: HashMap::new(),
            limits,
            names_until: Some(now + NAMING_MS),
            last,
            id,
            first: 0,
            bytes: Vec::new(),
            record: Vec::new(),
            answer: Vec::new(),
        })
    }

    /// The offset of the last message.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.writer.offset()
    }

    /// What is subscribed to.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// How many names there may be, after a reload.
    pub fn set_limits(&mut self, limits: NameLimits) {
        self.limits = limits;
    }

    /// Gets to know a worker, in this place of the zone, and asks it to name its cells: it may
    /// have named them to a hub that has died.
    pub fn attach(&mut self, id: u64, place: u32, life: Life) {
        let position = self.writer.position();
        self.places.insert(id, self.members.len());
        self.members.push(Member {
            id,
            bit: bit_of(place),
            publish: life.publish().consumer(),
            interest: life.interest().consumer(),
            answers: life.answers().producer(),
            was_asked: false,
            has_named: false,
            listing: None,
            has_doubt: true,
            is_over: false,
            begun: position,
            concerned: position,
            progress: life.progress(),
            stands_since: None,
            life,
        });
    }

    /// The worker is dead. What it has left is published; then it is forgotten.
    pub fn end(&mut self, id: u64) {
        if let Some(&place) = self.places.get(&id) {
            self.members[place].is_over = true;
        }
    }

    fn forget(&mut self, id: u64) {
        self.members.retain(|member| member.id != id);
        self.registry.remove_life(id);
        let places = self.members.iter().enumerate();
        self.places = places.map(|(place, member)| (member.id, place)).collect();
    }

    /// Lets every worker have its share.
    pub fn round(&mut self, now: u64) -> Round {
        let mut round = Round::default();
        let count = self.members.len();
        self.first = (self.first + 1).checked_rem(count).unwrap_or(0);
        let first = self.first;
        for place in (0..count).map(|place| (first + place) % count) {
            // Before the look: what is stored after it rings again.
            self.members[place].life.to_hub().hear();
            let served = self.serve(place, now, &mut round);
            let member = &self.members[place];
            match served {
                Ok(Served::All) if member.is_over => round.over.push(member.id),
                Ok(Served::All) => {}
                Ok(Served::Some) => round.is_more = true,
                Ok(Served::Waits) => round.waits = true,
                Err(corrupt) => round.corrupt.push((member.id, corrupt)),
            }
        }
        let gone: Vec<u64> =
            round.corrupt.iter().map(|(id, _)| *id).chain(round.over.iter().copied()).collect();
        gone.iter().for_each(|id| self.forget(*id));
        round
    }

    fn serve(&mut self, place: usize, now: u64, round: &mut Round) -> Result<Served, Corrupt> {
        let member = &mut self.members[place];
        if !member.was_asked && member.can_answer() {
            member.was_asked = true;
            self.answer(place, Answer::NameAll { hub: self.id }, round);
        }
        for _ in 0..REQUESTS_A_ROUND {
            if !self.send_list(place, round) || !self.hear_interest(place, round)? {
                return self.serve_requests(place, now, round);
            }
        }
        Ok(Served::Some)
    }

    /// Sends a part of the list that a worker has asked for. False: there is no room.
    fn send_list(&mut self, place: usize, round: &mut Round) -> bool {
        let member = &mut self.members[place];
        let Some(listing) = &mut member.listing else { return true };
        if !member.is_over && !member.answers.has_room_for(PART_ANSWER_BYTES_MAX) {
            return false;
        }
        let (number, bytes, is_last) = (listing.number, listing.next(), listing.is_over());
        if is_last {
            member.listing = None;
        }
        self.answer(place, Answer::Part { number, is_last, bytes: &bytes }, round);
        true
    }

    /// Takes one word of interest. False: the queue is empty, or there is no room for the answer.
    fn hear_interest(&mut self, place: usize, round: &mut Round) -> Result<bool, Corrupt> {
        let member = &mut self.members[place];
        if !member.can_answer() || !member.interest.next(&mut self.bytes)? {
            return Ok(false);
        }
        let id = member.id;
        let answer = match Interest::read(&self.bytes)? {
            Interest::Add { cell, turn, filter } => {
                if member.life.cell(cell).is_none() {
                    return Err(Corrupt { what: "a cell that there is not" });
                }
                // What it names once more was let in before. Its cells are the bound.
                let limits = if member.has_named { self.limits } else { NameLimits::NONE };
                let offset = self.writer.offset();
                let added = self.registry.add(Place { life: id, cell }, filter, limits);
                Some(match added {
                    Ok(()) => Answer::Added { cell, turn, offset },
                    Err(TooMany) => Answer::Refused { cell, turn },
                })
            }
            Interest::Remove { cell, turn } => {
                self.registry.remove(Place { life: id, cell });
                Some(Answer::Removed { cell, turn })
            }
            Interest::AllNamed { hub } => {
                // What another hub has asked for says nothing of what this one has heard.
                member.has_named |= hub == self.id;
                None
            }
            Interest::List { number, wanted } => {
                let count = |place: Place| self.count(place);
                let listing = Listing::new(number, &wanted, &self.registry, count);
                self.members[place].listing = Some(listing);
                None
            }
        };
        if let Some(answer) = answer {
            self.answer(place, answer, round);
        }
        step("hub: interest answered");
        if self.members[place].interest.advance() {
            round.to_ring.insert(id);
        }
        Ok(true)
    }

    fn serve_requests(
        &mut self,
        place: usize,
        now: u64,
        round: &mut Round,
    ) -> Result<Served, Corrupt> {
        let mut bytes_left = BYTES_A_ROUND;
        for _ in 0..REQUESTS_A_ROUND {
            let mut bytes = std::mem::take(&mut self.bytes);
            let served = self.serve_request(place, now, &mut bytes, round);
            let length = bytes.len();
            self.bytes = bytes;
            match served? {
                Served::Some => {}
                end => return Ok(end),
            }
            bytes_left = bytes_left.saturating_sub(length);
            if bytes_left == 0 {
                break;
            }
        }
        Ok(Served::Some)
    }

    /// Serves one request, which is copied once, to `bytes`. `All`: the queue is empty, or there is
    /// no room to answer, which the worker says when it has made some.
    fn serve_request(
        &mut self,
        place: usize,
        now: u64,
        bytes: &mut Vec<u8>,
        round: &mut Round,
    ) -> Result<Served, Corrupt> {
        let member = &mut self.members[place];
        if !member.can_answer() || !member.publish.next(bytes)? {
            return Ok(Served::All);
        }
        let (id, request, is_first) = (member.id, Request::read(bytes)?, member.has_doubt);
        let number = request.number;
        let published =
            self.last.filter(|last| is_first && (last.life, last.number) == (id, number));
        // Its worker may hold all messages until it has this answer: that waits for nobody.
        if published.is_none() && self.is_to_wait(now) {
            return Ok(Served::Waits);
        }
        let member = &mut self.members[place];
        member.has_doubt = false;
        let deaths = member.life.begin_work(number, is_first);
        step("hub: working");
        let answer = match published {
            Some(Last { answer, .. }) => answer,
            None if deaths >= DEATHS_MAX => {
                round.skipped += 1;
                Answer::Skipped { number }
            }
            None => self.publish(id, request, round),
        };
        step("hub: published");
        if request.is_awaited {
            self.answer(place, answer, round);
        }
        step("hub: answered");
        if self.members[place].publish.advance() {
            round.to_ring.insert(id);
        }
        Ok(Served::Some)
    }

    fn publish(&mut self, life: u64, request: Request<'_>, round: &mut Round) -> Answer<'static> {
        let (mut subscribers, mut concerned) = (0_u32, 0);
        // Those who have not named their cells may have subscribers.
        for member in self.members.iter().filter(|member| !member.has_named) {
            concerned |= member.bit;
            round.to_ring.insert(member.id);
        }
        for Place { life, cell } in self.registry.matching(request.message.topic) {
            let Some(member) = self.places.get(&life).map(|&place| &self.members[place]) else {
                continue;
            };
            let count = member.life.cell(cell).map_or(0, |cell| cell.load(Ordering::Relaxed));
            if count > 0 {
                subscribers = subscribers.saturating_add(count);
                concerned |= member.bit;
                round.to_ring.insert(life);
            }
        }
        self.record.clear();
        Record { life, concerned, subscribers, request }.write(&mut self.record);
        let quarter = |position: u64| position / (self.ring_words / 4);
        let before = quarter(self.writer.position());
        let offset = self.writer.write(&self.record);
        let position = self.writer.position();
        if quarter(position) != before {
            // So that nobody is lapped by what does not concern him.
            round.to_ring.extend(self.members.iter().map(|member| member.id));
        }
        for member in self.members.iter_mut().filter(|member| concerned & member.bit != 0) {
            member.concerned = position;
        }
        round.published += 1;
        Answer::Published { number: request.number, offset, subscribers }
    }

    /// All names that have subscribers, with how many there are in which life.
    pub fn names(&self) -> impl Iterator<Item = (Filter, Vec<(u64, u32)>)> {
        let counted = |place: &Place| Some((place.life, self.count(*place))).filter(|it| it.1 > 0);
        let names = self.registry.all();
        let names = names.map(move |(name, places)| {
            (name, places.iter().filter_map(counted).collect::<Vec<_>>())
        });
        names.filter(|(_, lives)| !lives.is_empty())
    }

    /// Subscribers that are counted there.
    fn count(&self, Place { life, cell }: Place) -> u32 {
        let member = self.places.get(&life).map(|&place| &self.members[place]);
        let cell = member.and_then(|member| member.life.cell(cell));
        cell.map_or(0, |cell| cell.load(Ordering::Relaxed))
    }

    fn answer(&mut self, place: usize, answer: Answer<'_>, round: &mut Round) {
        self.answer.clear();
        answer.write(&mut self.answer);
        let member = &mut self.members[place];
        if member.is_over {
            return;
        }
        member.answers.push(&self.answer).expect("there was room");
        round.to_ring.insert(member.id);
    }

    /// Whether a worker is far behind and makes progress, or has yet to name its cells.
    fn is_to_wait(&mut self, now: u64) -> bool {
        if let Some(until) = self.names_until {
            if now < until && self.members.iter().any(|it| !it.has_named && !it.is_over) {
                return true;
            }
            self.names_until = None;
        }
        let (position, words) = (self.writer.position(), self.ring_words);
        // All of them: their times run side by side.
        let waits = |member: &mut Member| member.is_to_wait_for(position, words, now);
        self.members.iter_mut().fold(false, |any, member| waits(member) | any)
    }
}

/// Which bit of [`Record::concerned`] is that of the worker in this place. A bit that two have only
/// lets one of them look for nothing.
pub(crate) fn bit_of(place: u32) -> u64 {
    1 << (place % u64::BITS)
}

/// How far a worker was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    /// There is nothing to do for it now.
    All,
    /// It has had its share.
    Some,
    /// It has more, and somebody is to be waited for first.
    Waits,
}

impl Member {
    /// Whether there is room for an answer. Nobody reads those of a dead one.
    fn can_answer(&mut self) -> bool {
        self.is_over || self.answers.has_room_for(ANSWER_BYTES_MAX)
    }

    fn is_to_wait_for(&mut self, position: u64, ring_words: u64, now: u64) -> bool {
        let read = self.life.read().max(self.begun);
        let behind = position.saturating_sub(read);
        let is_behind = behind > ring_words / 2 && self.concerned > read;
        if self.is_over || !(is_behind || behind > ring_words / 4 * 3) {
            self.stands_since = None;
            return false;
        }
        let progress = self.life.progress();
        if std::mem::replace(&mut self.progress, progress) != progress {
            self.stands_since = Some(now);
        }
        now < *self.stands_since.get_or_insert(now) + STANDSTILL_MS
    }
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
