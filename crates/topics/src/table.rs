//! Who subscribes to what, in one worker. The send thread alone has it, and changes it between
//! two messages.
//!
//! What a connection asks for is carried out and answered in its order. A request to subscribe
//! to a name that the worker does not have yet waits for the hub, and what the connection has
//! asked for behind it waits with it; the hub learns their names at once. So only the first
//! and the last subscriber of a name concern the hub: ten thousand who join a room are one
//! request, and one who leaves tells nobody.

use crate::cells::{Cells, Counts, Subscriber, name_cost, small};
use crate::name::{Filter, Kind, Topic};
use crate::record::Interest;
use crate::replay::{Missed, Replayed, Wanted};
use crate::wish::{Answered, Came, EACH, Refused, Resumed, TableLimits, Wish};
use std::collections::{HashMap, VecDeque};

/// What a subscription takes, in bytes: its place with its connection, and with its name.
pub(crate) const SUBSCRIPTION_COST: usize = 48;
/// What a connection with subscriptions takes beside them.
pub(crate) const CONNECTION_COST: usize = 192;

/// What a connection has asked for and was not answered yet.
#[derive(Debug)]
enum Asked {
    Subscribe { cell: u32, flags: Option<u8>, resume: Resume },
    Unsubscribe(Filter),
    UnsubscribeAll(Option<Kind>),
    Refused(Refused),
}

/// How far what a subscription has missed is looked up.
#[derive(Debug)]
enum Resume {
    NotAsked,
    /// Behind this offset.
    Behind(u64),
    /// The worker has not read up to this offset, where the connection is already.
    Ahead(u64),
    /// It waits for what it has missed to be looked up.
    Waits(u64),
    Done(u64, Option<Vec<Missed>>),
}

/// Of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Subscription {
    cell: u32,
    /// Its place in the list of the cell.
    at: u32,
    /// The connection gets what is behind this offset.
    from: u64,
}

#[derive(Debug)]
struct Connection<C, T> {
    id: u64,
    handle: C,
    subscriptions: Vec<Subscription>,
    patterns: usize,
    shards: usize,
    /// In its order. The first one waits for the hub.
    asked: VecDeque<(Asked, T)>,
    /// Subscriptions that are asked for, and the patterns among them.
    coming: usize,
    coming_patterns: usize,
    /// How it wants its messages.
    flags: u8,
    /// The last message that it has got, or that was there when it came.
    stamp: u64,
    /// Of all messages that the worker has lost, those that it knows of.
    lost: u64,
}

/// All subscriptions of a worker. `C` is a connection, `T` what its request is answered by.
#[derive(Debug)]
pub struct Table<C, T> {
    limits: TableLimits,
    cells: Cells,
    connections: Vec<Option<Connection<C, T>>>,
    free: Vec<u32>,
    by_id: HashMap<u64, u32>,
    /// Of connections and subscriptions.
    bytes: usize,
    subscriptions: usize,
    lost: u64,
    /// Subscriptions that wait for what they have missed to be looked up.
    wanted: Vec<Wanted>,
    /// The offset of the last message there is, as far as was heard.
    latest: u64,
    /// Connections that are ahead, and where they are.
    ahead: Vec<(u64, u64)>,
}

impl<C: Clone, T> Table<C, T> {
    /// Without a subscription.
    #[must_use]
    pub fn new(limits: TableLimits) -> Self {
        Self {
            limits,
            cells: Cells::default(),
            connections: Vec::new(),
            free: Vec::new(),
            by_id: HashMap::new(),
            bytes: 0,
            subscriptions: 0,
            lost: 0,
            wanted: Vec::new(),
            latest: 0,
            ahead: Vec::new(),
        }
    }

    /// Subscriptions of all connections.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.subscriptions
    }

    /// What they take, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes + self.cells.bytes()
    }

    /// A connection asks for something. `offset` is that of the last message that was read. What
    /// can be answered now is appended to `out`; the rest is when the hub has answered.
    pub fn ask(
        &mut self,
        (id, handle): (u64, &C),
        wish: Wish,
        answer: T,
        offset: u64,
        counts: &impl Counts,
        out: &mut Vec<Answered<C, T>>,
    ) {
        let asked = match wish {
            Wish::Subscribe { filter, flags, resume } => {
                let known = self.by_id.get(&id).map(|place| self.connection(*place));
                match self.check(known, &filter) {
                    Ok(()) => {
                        let resume = resume.map_or(Resume::NotAsked, Resume::Behind);
                        let cell = self.ask_for(id, handle, filter, offset, counts);
                        Asked::Subscribe { cell, flags, resume }
                    }
                    Err(why) => Asked::Refused(why),
                }
            }
            Wish::Unsubscribe(filter) => Asked::Unsubscribe(filter),
            Wish::UnsubscribeAll(kind) => Asked::UnsubscribeAll(kind),
        };
        let place = self.connection_of(id, handle, offset);
        self.connection_mut(place).asked.push_back((asked, answer));
        self.carry_out(place, offset, counts, out);
    }

    fn ask_for(
        &mut self,
        id: u64,
        handle: &C,
        filter: Filter,
        offset: u64,
        counts: &impl Counts,
    ) -> u32 {
        let place = self.connection_of(id, handle, offset);
        let is_pattern = filter.kind() == Kind::Pattern;
        let cell = self.cells.ask(filter, id, counts);
        self.bytes += SUBSCRIPTION_COST;
        let connection = self.connection_mut(place);
        connection.coming += 1;
        connection.coming_patterns += usize::from(is_pattern);
        cell
    }

    fn check(&self, connection: Option<&Connection<C, T>>, filter: &Filter) -> Result<(), Refused> {
        let limits = &self.limits;
        let cell = self.cells.of(filter);
        if let Some((it, cell)) = connection.zip(cell)
            && it.asked.is_empty()
            && it.has(cell)
        {
            return Ok(());
        }
        let (held, patterns) = connection.map_or((0, 0), |it| {
            (it.subscriptions.len() + it.coming, it.patterns + it.coming_patterns)
        });
        if held >= limits.per_connection_max {
            return Err(Refused::Subscriptions(limits.per_connection_max));
        }
        if filter.kind() == Kind::Pattern && patterns >= limits.patterns_per_connection_max {
            return Err(Refused::Patterns(limits.patterns_per_connection_max));
        }
        let mut cost = SUBSCRIPTION_COST;
        if connection.is_none() {
            cost += CONNECTION_COST;
        }
        if cell.is_none() {
            cost += name_cost(filter);
            if !self.cells.has_room(limits.names_max) {
                return Err(Refused::Names);
            }
        }
        if self.bytes() + cost > limits.bytes_max {
            return Err(Refused::Bytes(limits.bytes_max));
        }
        Ok(())
    }

    /// The connection is gone: nobody is answered any more for what it has asked.
    pub fn gone(&mut self, id: u64, counts: &impl Counts) {
        let Some(&place) = self.by_id.get(&id) else { return };
        for (asked, _) in std::mem::take(&mut self.connection_mut(place).asked) {
            if let Asked::Subscribe { cell, .. } = asked {
                self.bytes -= SUBSCRIPTION_COST;
                self.cells.done(cell, counts);
            }
        }
        self.end_all(place, None, counts);
        self.forget_if_unused(place);
    }

    /// Does and answers what a connection has asked for, in its order, up to what waits for
    /// the hub.
    fn carry_out(
        &mut self,
        place: u32,
        offset: u64,
        counts: &impl Counts,
        out: &mut Vec<Answered<C, T>>,
    ) {
        while let Some((asked, answer)) = self.next_asked(place, offset) {
            let came = match asked {
                Asked::Subscribe { cell, flags, resume } => {
                    self.subscribe(place, cell, (flags, resume), offset, counts)
                }
                Asked::Unsubscribe(filter) => {
                    let count = self.unsubscribe(place, &filter, counts);
                    let left = self.connection(place).subscriptions.len();
                    Came::Unsubscribed { ended: vec![(filter, count)], left }
                }
                Asked::UnsubscribeAll(kind) => {
                    let ended = self.end_all(place, kind, counts);
                    let it = self.connection(place);
                    let left = kind.map_or(it.subscriptions.len(), |kind| it.count(kind));
                    Came::Unsubscribed { ended, left }
                }
                Asked::Refused(why) => Came::Refused(why),
            };
            let connection = self.connection(place);
            let (to, flags) = (connection.handle.clone(), connection.flags);
            let subscriptions = connection.subscriptions.len();
            out.push(Answered { to, answer, subscriptions, flags, came });
        }
        self.forget_if_unused(place);
    }

    /// Takes the first, if it need not wait.
    fn next_asked(&mut self, place: u32, offset: u64) -> Option<(Asked, T)> {
        let connection = self.connections[place as usize].as_mut().expect("it is listed");
        if let (Asked::Subscribe { cell, resume, .. }, _) = connection.asked.front_mut()? {
            if self.cells.is_adding(*cell) || matches!(resume, Resume::Waits(_)) {
                return None;
            }
            if let Resume::Behind(from) | Resume::Ahead(from) = *resume {
                if from < offset {
                    let filter = self.cells.filter(*cell).clone();
                    self.wanted.push(Wanted { id: connection.id, filter, from });
                    *resume = Resume::Waits(from);
                    return None;
                }
                if offset < from && from <= self.latest {
                    if matches!(resume, Resume::Behind(_)) {
                        *resume = Resume::Ahead(from);
                        self.ahead.push((from, connection.id));
                    }
                    return None;
                }
                // It has missed nothing, or knows of what was never published.
                *resume = Resume::Done(from, (from == offset).then(Vec::new));
            }
        }
        connection.asked.pop_front()
    }

    /// The last message that there is has this offset: another worker may have handed it out.
    pub(crate) fn note_latest(&mut self, offset: u64) {
        self.latest = offset;
    }

    /// Messages up to this offset were read: for those who wait for that.
    pub(crate) fn reached(
        &mut self,
        offset: u64,
        counts: &impl Counts,
        out: &mut Vec<Answered<C, T>>,
    ) {
        while let Some(nth) = self.ahead.iter().position(|(from, _)| *from <= offset) {
            let (_, id) = self.ahead.swap_remove(nth);
            if let Some(&place) = self.by_id.get(&id) {
                self.carry_out(place, offset, counts, out);
            }
        }
    }

    /// What subscriptions want to know that they have missed. Each is answered by
    /// [`replayed`](Self::replayed).
    pub(crate) fn take_wanted(&mut self) -> Vec<Wanted> {
        std::mem::take(&mut self.wanted)
    }

    /// Whether there are such.
    pub(crate) fn has_wanted(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// What the connection has missed, up to this offset.
    pub(crate) fn replayed(
        &mut self,
        it: Replayed,
        offset: u64,
        counts: &impl Counts,
        out: &mut Vec<Answered<C, T>>,
    ) {
        let Some(&place) = self.by_id.get(&it.id) else { return };
        let front = self.connection_mut(place).asked.front_mut();
        if let Some((Asked::Subscribe { resume, .. }, _)) = front
            && let Resume::Waits(from) = *resume
        {
            *resume = Resume::Done(from, it.missed);
            self.carry_out(place, offset, counts, out);
        }
    }

    /// Those that the connection does not have by another subscription.
    fn not_had(&self, place: u32, missed: Vec<Missed>) -> Vec<Missed> {
        let held = &self.connection(place).subscriptions;
        let has = |it: &Missed| {
            let mut cells = self.cells.matching(it.message().topic);
            cells.any(|cell| held.iter().any(|its| its.cell == cell && its.from < it.offset()))
        };
        missed.into_iter().filter(|it| !has(it)).collect()
    }

    fn subscribe(
        &mut self,
        place: u32,
        cell: u32,
        (flags, resume): (Option<u8>, Resume),
        offset: u64,
        counts: &impl Counts,
    ) -> Came {
        let (lost, kind) = (self.lost, self.cells.kind(cell));
        let (from, resumed) = match resume {
            Resume::Done(from, Some(missed)) => (from, Resumed::Yes(self.not_had(place, missed))),
            Resume::Done(_, None) => (offset, Resumed::No),
            Resume::NotAsked | Resume::Behind(_) | Resume::Ahead(_) | Resume::Waits(_) => {
                (offset, Resumed::NotAsked)
            }
        };
        let connection = self.connection_mut(place);
        connection.coming -= 1;
        connection.coming_patterns -= usize::from(kind == Kind::Pattern);
        if connection.subscriptions.is_empty() {
            (connection.stamp, connection.lost) = (offset, lost);
        }
        if let Some(flags) = flags {
            connection.flags = flags;
        }
        if let Some(held) = connection.subscriptions.iter_mut().find(|it| it.cell == cell) {
            held.from = held.from.min(from);
            self.bytes -= SUBSCRIPTION_COST;
        } else {
            let at = small(connection.subscriptions.len());
            connection.patterns += usize::from(kind == Kind::Pattern);
            connection.shards += usize::from(kind == Kind::Shard);
            let at = self.cells.link(cell, Subscriber { connection: place, at }, counts);
            self.connection_mut(place).subscriptions.push(Subscription { cell, at, from });
            self.subscriptions += 1;
        }
        self.cells.done(cell, counts);
        let count = self.connection(place).count(kind);
        Came::Subscribed { filter: self.cells.filter(cell).clone(), count, resumed }
    }

    /// Returns how many the connection has then, of this kind.
    fn unsubscribe(&mut self, place: u32, filter: &Filter, counts: &impl Counts) -> usize {
        let cell = self.cells.of(filter);
        let held = &self.connection(place).subscriptions;
        let at = held.iter().position(|subscription| Some(subscription.cell) == cell);
        if let Some(at) = at {
            self.unlink(place, at, counts);
        }
        self.connection(place).count(filter.kind())
    }

    fn end_all(
        &mut self,
        place: u32,
        kind: Option<Kind>,
        counts: &impl Counts,
    ) -> Vec<(Filter, usize)> {
        let mut ended = Vec::new();
        // From the end: what is moved was looked at.
        for at in (0..self.connection(place).subscriptions.len()).rev() {
            let cell = self.connection(place).subscriptions[at].cell;
            let its = self.cells.kind(cell);
            if kind.is_none_or(|kind| kind == its) {
                let filter = self.cells.filter(cell).clone();
                self.unlink(place, at, counts);
                ended.push((filter, self.connection(place).count(its)));
            }
        }
        ended
    }

    /// The hub knows the cell. Appends the answers to those who have waited for it.
    pub fn added(
        &mut self,
        cell: (u32, u32),
        offset: u64,
        counts: &impl Counts,
        out: &mut Vec<Answered<C, T>>,
    ) {
        for id in self.cells.added(cell) {
            if let Some(&place) = self.by_id.get(&id) {
                self.carry_out(place, offset, counts, out);
            }
        }
        self.cells.settle(cell, counts);
    }

    /// The hub takes no more names. Appends the answers to those who have waited for this one.
    pub fn refused(
        &mut self,
        cell: (u32, u32),
        offset: u64,
        counts: &impl Counts,
        out: &mut Vec<Answered<C, T>>,
    ) {
        let is_pattern = cell.0 < self.cells.len() && self.cells.kind(cell.0) == Kind::Pattern;
        for id in self.cells.refused(cell, counts) {
            let Some(&place) = self.by_id.get(&id) else { continue };
            let connection = self.connections[place as usize].as_mut().expect("it is listed");
            for (asked, _) in &mut connection.asked {
                if matches!(asked, Asked::Subscribe { cell: it, .. } if *it == cell.0) {
                    *asked = Asked::Refused(Refused::Names);
                    connection.coming -= 1;
                    connection.coming_patterns -= usize::from(is_pattern);
                    self.bytes -= SUBSCRIPTION_COST;
                }
            }
            self.carry_out(place, offset, counts, out);
        }
    }

    /// The hub knows the cell no longer.
    pub fn removed(&mut self, cell: (u32, u32)) {
        self.cells.removed(cell);
    }

    /// A new hub asks for all names.
    pub fn name_all(&mut self, hub: u64) {
        self.cells.name_all(hub);
    }

    /// What the hub is to be told next. It was, once [`told`](Self::told) is called.
    #[must_use]
    pub(crate) fn to_tell(&self) -> Option<Interest> {
        self.cells.to_tell()
    }

    /// See [`to_tell`](Self::to_tell).
    pub(crate) fn told(&mut self) {
        self.cells.told();
    }

    /// The cells of all names that match a topic and have subscribers.
    pub fn matching(&self, topic: Topic<'_>, cells: &mut Vec<u32>) {
        cells.extend(self.cells.matching(topic));
    }

    /// How many subscribers a cell has.
    #[must_use]
    pub fn subscribers(&self, cell: u32) -> usize {
        self.cells.subscribers(cell).len()
    }

    /// The nth subscriber of a cell, unless it has got the messages up to this offset and wants
    /// them once; and how many messages were lost that it does not know of yet, which it does
    /// from now on.
    pub(crate) fn deliver(
        &mut self,
        cell: u32,
        nth: usize,
        offset: u64,
    ) -> Option<(&C, &Filter, u8, u64)> {
        let place = self.cells.subscribers(cell)[nth].connection;
        let lost = self.lost;
        let connection = self.connections[place as usize].as_mut().expect("it is listed");
        let has_it = std::mem::replace(&mut connection.stamp, offset) == offset;
        if has_it && connection.flags & EACH == 0 {
            return None;
        }
        let unknown = lost.wrapping_sub(std::mem::replace(&mut connection.lost, lost));
        Some((&connection.handle, self.cells.filter(cell), connection.flags, unknown))
    }

    /// What the nth subscriber of a cell was just handed did not reach it: it has missed so many
    /// more, and will be told.
    pub(crate) fn missed(&mut self, cell: u32, nth: usize, messages: u64) {
        let place = self.cells.subscribers(cell)[nth].connection;
        let connection = self.connection_mut(place);
        connection.lost = connection.lost.wrapping_sub(messages);
    }

    /// So many messages were lost, for all subscribers.
    pub fn lose(&mut self, messages: u64) {
        self.lost += messages;
    }

    fn connection(&self, place: u32) -> &Connection<C, T> {
        self.connections[place as usize].as_ref().expect("it is listed")
    }

    fn connection_mut(&mut self, place: u32) -> &mut Connection<C, T> {
        self.connections[place as usize].as_mut().expect("it is listed")
    }

    fn connection_of(&mut self, id: u64, handle: &C, offset: u64) -> u32 {
        if let Some(&place) = self.by_id.get(&id) {
            return place;
        }
        let connection = Connection {
            id,
            handle: handle.clone(),
            subscriptions: Vec::new(),
            patterns: 0,
            shards: 0,
            asked: VecDeque::new(),
            coming: 0,
            coming_patterns: 0,
            flags: 0,
            stamp: offset,
            lost: self.lost,
        };
        let place = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            small(self.connections.len() - 1)
        });
        self.connections[place as usize] = Some(connection);
        self.by_id.insert(id, place);
        self.bytes += CONNECTION_COST;
        place
    }

    fn forget_if_unused(&mut self, place: u32) {
        let connection = self.connection(place);
        if connection.subscriptions.is_empty() && connection.asked.is_empty() {
            let id = connection.id;
            self.by_id.remove(&id);
            self.connections[place as usize] = None;
            self.free.push(place);
            self.bytes -= CONNECTION_COST;
        }
    }

    fn unlink(&mut self, place: u32, at: usize, counts: &impl Counts) {
        let connection = self.connections[place as usize].as_mut().expect("it is listed");
        let gone = connection.subscriptions.swap_remove(at);
        if let Some(moved) = connection.subscriptions.get(at) {
            self.cells.moved(moved.cell, moved.at, small(at));
        }
        let kind = self.cells.kind(gone.cell);
        connection.patterns -= usize::from(kind == Kind::Pattern);
        connection.shards -= usize::from(kind == Kind::Shard);
        if let Some(moved) = self.cells.unlink(gone.cell, gone.at, counts) {
            let other = self.connection_mut(moved.connection);
            other.subscriptions[moved.at as usize].at = gone.at;
        }
        self.subscriptions -= 1;
        self.bytes -= SUBSCRIPTION_COST;
    }
}

impl<C, T> Connection<C, T> {
    fn has(&self, cell: u32) -> bool {
        self.subscriptions.iter().any(|subscription| subscription.cell == cell)
    }

    /// As a client counts them that has to do with one of this kind.
    fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Shard => self.shards,
            Kind::Topic | Kind::Pattern => self.subscriptions.len() - self.shards,
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
