//! The names that a worker has subscribers of. For each the hub learns of a *cell*, whose
//! count lies in shared memory:
//!
//! | cell | means | leaves when |
//! |---|---|---|
//! | free | nothing | somebody subscribes to a new name: adding |
//! | adding | the hub is to learn of it; who subscribes waits | it says that it has: added; that it will not: free |
//! | added | its subscribers get what is published | nobody has it or asks for it any more: removing |
//! | removing | the hub is to forget it | it says that it has: free |
//!
//! A name that is subscribed to again while its cell is removing has another cell.

use crate::index::Index;
use crate::name::{Filter, Kind, Topic};
use crate::record::Interest;
use std::collections::VecDeque;

/// What a name takes beside its text, which is there twice, in bytes.
pub(crate) const NAME_COST: usize = 256;

/// Where the counts of cells lie.
pub trait Counts {
    /// Sets one.
    fn set(&self, cell: u32, count: usize);
}

/// A subscriber of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subscriber {
    /// The place of the connection.
    pub(crate) connection: u32,
    /// The place of the cell in the list of the connection.
    pub(crate) at: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Adding,
    Added,
    Removing,
}

#[derive(Debug)]
struct Cell {
    state: State,
    /// The hub does not know its state yet.
    is_untold: bool,
    /// The how many-th name this is: an answer to an earlier one changes nothing.
    turn: u32,
    filter: Filter,
    subscribers: Vec<Subscriber>,
    /// Requests to subscribe that are not carried out yet.
    asked: u32,
    /// While it is adding: the ids of the connections that have asked.
    waiting: Vec<u64>,
}

/// What the hub is told next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Untold {
    Cell(u32),
    AllNamed { hub: u64 },
}

/// All cells of a worker.
#[derive(Debug, Default)]
pub(crate) struct Cells {
    names: Index<u32>,
    cells: Vec<Cell>,
    free: Vec<u32>,
    untold: VecDeque<Untold>,
    bytes: usize,
}

impl Cells {
    /// What the names take.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many cells there are, the free ones among them.
    pub(crate) fn len(&self) -> u32 {
        small(self.cells.len())
    }

    /// The cell of a name.
    pub(crate) fn of(&self, filter: &Filter) -> Option<u32> {
        self.names.get(filter).copied()
    }

    pub(crate) fn matching(&self, topic: Topic<'_>) -> impl Iterator<Item = u32> {
        self.names.matching(topic).copied()
    }

    pub(crate) fn filter(&self, cell: u32) -> &Filter {
        &self.cells[cell as usize].filter
    }

    pub(crate) fn kind(&self, cell: u32) -> Kind {
        self.filter(cell).kind()
    }

    pub(crate) fn is_adding(&self, cell: u32) -> bool {
        self.cells[cell as usize].state == State::Adding
    }

    /// Whether there may be one more name.
    pub(crate) fn has_room(&self, names_max: usize) -> bool {
        !self.free.is_empty() || self.cells.len() < names_max
    }

    pub(crate) fn subscribers(&self, cell: u32) -> &[Subscriber] {
        &self.cells[cell as usize].subscribers
    }

    /// A connection asks for a name, which keeps the cell until [`done`](Self::done).
    pub(crate) fn ask(&mut self, filter: Filter, id: u64, counts: &impl Counts) -> u32 {
        let cell = self.of(&filter).unwrap_or_else(|| self.take(filter, counts));
        let it = &mut self.cells[cell as usize];
        it.asked += 1;
        if it.state == State::Adding {
            it.waiting.push(id);
        }
        cell
    }

    /// One that has asked for it has it now, or wants it no longer.
    pub(crate) fn done(&mut self, cell: u32, counts: &impl Counts) {
        self.cells[cell as usize].asked -= 1;
        self.remove_if_unused(cell, counts);
    }

    /// Adds a subscriber. Returns its place.
    pub(crate) fn link(&mut self, cell: u32, it: Subscriber, counts: &impl Counts) -> u32 {
        let subscribers = &mut self.cells[cell as usize].subscribers;
        subscribers.push(it);
        counts.set(cell, subscribers.len());
        small(subscribers.len() - 1)
    }

    /// Removes the subscriber in this place. Returns the one that is there now.
    pub(crate) fn unlink(
        &mut self,
        cell: u32,
        at: u32,
        counts: &impl Counts,
    ) -> Option<Subscriber> {
        let it = &mut self.cells[cell as usize];
        it.subscribers.swap_remove(at as usize);
        let moved = it.subscribers.get(at as usize).copied();
        // Never 0 in between: what is published then would not concern this worker.
        counts.set(cell, it.subscribers.len().max(usize::from(it.asked > 0)));
        self.remove_if_unused(cell, counts);
        moved
    }

    /// The subscriber's connection has the cell in another place of its list.
    pub(crate) fn moved(&mut self, cell: u32, nth: u32, at: u32) {
        self.cells[cell as usize].subscribers[nth as usize].at = at;
    }

    fn take(&mut self, filter: Filter, counts: &impl Counts) -> u32 {
        let turn = self.free.last().map_or(0, |&cell| self.cells[cell as usize].turn + 1);
        let it = Cell {
            state: State::Adding,
            is_untold: false,
            turn,
            filter: filter.clone(),
            subscribers: Vec::new(),
            asked: 0,
            waiting: Vec::new(),
        };
        let cell = match self.free.pop() {
            Some(cell) => {
                self.cells[cell as usize] = it;
                cell
            }
            None => {
                self.cells.push(it);
                small(self.cells.len() - 1)
            }
        };
        self.bytes += name_cost(&filter);
        self.names.insert(filter, cell);
        // From when the hub knows it, its worker is rung for it.
        counts.set(cell, 1);
        self.tell(cell);
        cell
    }

    fn remove_if_unused(&mut self, cell: u32, counts: &impl Counts) {
        let it = &mut self.cells[cell as usize];
        if it.state == State::Added && it.subscribers.is_empty() {
            if it.asked > 0 {
                // Somebody will have it: what is published concerns this worker.
                counts.set(cell, 1);
                return;
            }
            it.state = State::Removing;
            counts.set(cell, 0);
            self.forget_name(cell);
            self.tell(cell);
        }
    }

    fn forget_name(&mut self, cell: u32) {
        let it = &mut self.cells[cell as usize];
        it.subscribers = Vec::new();
        self.bytes -= name_cost(&it.filter);
        self.names.remove(&it.filter);
    }

    fn free(&mut self, cell: u32) {
        let it = &mut self.cells[cell as usize];
        it.state = State::Free;
        it.filter = Filter::Exact("".into());
        self.free.push(cell);
    }

    // --- the hub ---

    /// The cell, if it is adding this name.
    fn adding(&mut self, (cell, turn): (u32, u32)) -> Option<&mut Cell> {
        let it = self.cells.get_mut(cell as usize)?;
        (it.state == State::Adding && it.turn == turn).then_some(it)
    }

    /// The hub knows the cell. Returns the connections that have waited for it; then
    /// [`settle`](Self::settle) is due.
    pub(crate) fn added(&mut self, cell: (u32, u32)) -> Vec<u64> {
        let Some(it) = self.adding(cell) else { return Vec::new() };
        it.state = State::Added;
        std::mem::take(&mut it.waiting)
    }

    /// Those who have waited for the cell were looked at: whether anybody has it.
    pub(crate) fn settle(&mut self, (cell, turn): (u32, u32), counts: &impl Counts) {
        if self.cells.get(cell as usize).is_some_and(|it| it.turn == turn) {
            self.remove_if_unused(cell, counts);
        }
    }

    /// The hub takes no more names: the cell is free. Returns the connections that have
    /// waited for it, whose requests must not name it any more.
    pub(crate) fn refused(&mut self, at: (u32, u32), counts: &impl Counts) -> Vec<u64> {
        let Some(it) = self.adding(at) else { return Vec::new() };
        it.asked = 0;
        let waiting = std::mem::take(&mut it.waiting);
        self.forget_name(at.0);
        counts.set(at.0, 0);
        self.free(at.0);
        waiting
    }

    /// The hub knows the cell no longer.
    pub(crate) fn removed(&mut self, (cell, turn): (u32, u32)) {
        let is_removing = |it: &Cell| it.state == State::Removing && it.turn == turn;
        if self.cells.get(cell as usize).is_some_and(is_removing) {
            self.free(cell);
        }
    }

    /// A new hub asks for all names.
    pub(crate) fn name_all(&mut self, hub: u64) {
        for cell in 0..self.cells.len() {
            if matches!(self.cells[cell].state, State::Adding | State::Added) {
                self.tell(small(cell));
            }
        }
        self.untold.push_back(Untold::AllNamed { hub });
    }

    /// What the hub is to be told next. It was, once [`told`](Self::told) is called.
    pub(crate) fn to_tell(&self) -> Option<Interest> {
        let cell = match self.untold.front()? {
            Untold::AllNamed { hub } => return Some(Interest::AllNamed { hub: *hub }),
            Untold::Cell(cell) => *cell,
        };
        let it = &self.cells[cell as usize];
        let turn = it.turn;
        Some(match it.state {
            State::Adding | State::Added => Interest::Add { cell, turn, filter: it.filter.clone() },
            State::Removing | State::Free => Interest::Remove { cell, turn },
        })
    }

    /// See [`to_tell`](Self::to_tell).
    pub(crate) fn told(&mut self) {
        if let Some(Untold::Cell(cell)) = self.untold.pop_front() {
            self.cells[cell as usize].is_untold = false;
        }
    }

    fn tell(&mut self, cell: u32) {
        let it = &mut self.cells[cell as usize];
        if !std::mem::replace(&mut it.is_untold, true) {
            self.untold.push_back(Untold::Cell(cell));
        }
    }
}

/// What a name takes, in bytes.
pub(crate) fn name_cost(filter: &Filter) -> usize {
    NAME_COST + 2 * filter.text().len()
}

pub(crate) fn small(number: usize) -> u32 {
    u32::try_from(number).expect("bounded by topics.total_max_bytes")
}
