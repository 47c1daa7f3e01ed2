//! Which worker listens to what, as the hub has it: names, and the cells that count their
//! subscribers.

use crate::index::Index;
use crate::name::{Filter, Topic};
use std::collections::HashMap;

/// Where subscribers of a name are counted: the life of a worker, and its cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The life.
    pub life: u64,
    /// The cell.
    pub cell: u32,
}

/// How many names there may be, on a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameLimits {
    /// `topics.max_topics`: of any kind.
    pub names: usize,
    /// `topics.max_globs`: globs among them.
    pub globs: usize,
}

impl NameLimits {
    /// For what was let in before.
    pub(crate) const NONE: Self = Self { names: usize::MAX, globs: usize::MAX };
}

/// There are as many names as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

/// All names that somebody subscribes to.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    names: Index<Vec<Place>>,
    /// The name of each cell, by life.
    lives: HashMap<u64, HashMap<u32, Filter>>,
}

impl Registry {
    /// How many names there are.
    #[must_use]
    pub fn names(&self) -> usize {
        self.names.len()
    }

    /// How many of them are patterns.
    #[must_use]
    pub fn patterns(&self) -> usize {
        self.names.patterns()
    }

    /// The cell counts the subscribers of this name. Said once more it changes nothing; said
    /// of another name, the cell is that one's.
    ///
    /// # Errors
    /// [`TooMany`]: it would be one more than the limits; nothing has changed.
    pub(crate) fn add(
        &mut self,
        place: Place,
        filter: Filter,
        limits: NameLimits,
    ) -> Result<(), TooMany> {
        let known = self.lives.get(&place.life).and_then(|cells| cells.get(&place.cell));
        if known == Some(&filter) {
            return Ok(());
        }
        if known.is_some() {
            self.remove(place);
        }
        let is_full = self.names.len() >= limits.names
            || matches!(filter, Filter::Glob(_)) && self.names.globs() >= limits.globs;
        match self.names.get_mut(&filter) {
            Some(places) => match places.iter_mut().find(|other| other.life == place.life) {
                // A correct worker has one cell for a name: this one, from now on.
                Some(other) => {
                    if let Some(cells) = self.lives.get_mut(&place.life) {
                        cells.remove(&other.cell);
                    }
                    *other = place;
                }
                None => places.push(place),
            },
            None if is_full => return Err(TooMany),
            None => self.names.insert(filter.clone(), vec![place]),
        }
        self.lives.entry(place.life).or_default().insert(place.cell, filter);
        Ok(())
    }

    /// The cell counts nothing any more.
    pub(crate) fn remove(&mut self, place: Place) {
        let cells = self.lives.get_mut(&place.life);
        if let Some(filter) = cells.and_then(|cells| cells.remove(&place.cell)) {
            self.forget(&filter, place);
        }
    }

    /// The life is over.
    pub(crate) fn remove_life(&mut self, life: u64) {
        for (cell, filter) in self.lives.remove(&life).unwrap_or_default() {
            self.forget(&filter, Place { life, cell });
        }
    }

    fn forget(&mut self, filter: &Filter, place: Place) {
        let Some(places) = self.names.get_mut(filter) else { return };
        places.retain(|other| *other != place);
        if places.is_empty() {
            self.names.remove(filter);
        }
    }

    /// The cells of this very name.
    pub(crate) fn places(&self, filter: &Filter) -> &[Place] {
        self.names.get(filter).map_or(&[], Vec::as_slice)
    }

    /// All names, with their cells.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Filter, &[Place])> {
        self.names.all().map(|(filter, places)| (filter, places.as_slice()))
    }

    /// All topics and shard channels, with their cells.
    pub(crate) fn topics(&self) -> impl Iterator<Item = (Topic<'_>, &[Place])> {
        self.names.exact().map(|(topic, places)| (topic, places.as_slice()))
    }

    /// The cells of all names that match a topic.
    pub(crate) fn matching(&self, topic: Topic<'_>) -> impl Iterator<Item = Place> {
        self.names.matching(topic).flatten().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(text: &str) -> Filter {
        Filter::parse(text.as_bytes()).unwrap()
    }

    fn limits(names: usize) -> NameLimits {
        NameLimits { names, globs: 1 }
    }

    fn cells(registry: &Registry, topic: &str) -> Vec<(u64, u32)> {
        let topic = Topic::new(topic.as_bytes()).unwrap();
        let mut cells: Vec<_> =
            registry.matching(topic).map(|Place { life, cell }| (life, cell)).collect();
        cells.sort_unstable();
        cells
    }

    #[test]
    fn what_matches_is_found_and_what_is_over_is_not() {
        let mut registry = Registry::default();
        let mut add =
            |life, cell, text| registry.add(Place { life, cell }, filter(text), limits(3));
        assert_eq!(add(1, 0, "a"), Ok(()));
        assert_eq!(add(2, 0, "a"), Ok(()));
        assert_eq!(add(2, 1, "*"), Ok(()));
        assert_eq!(add(2, 1, "*"), Ok(()), "named once more");
        assert_eq!(add(1, 7, "b"), Ok(()));
        assert_eq!(add(1, 8, "c"), Err(TooMany), "three names are the most");
        assert_eq!((registry.names(), registry.patterns()), (3, 1));
        let globs = NameLimits { names: 9, globs: 0 };
        let glob = Filter::glob(b"?").unwrap();
        assert_eq!(registry.add(Place { life: 1, cell: 9 }, glob, globs), Err(TooMany));
        assert_eq!(cells(&registry, "a"), [(1, 0), (2, 0), (2, 1)]);
        assert_eq!(cells(&registry, "c"), [(2, 1)]);
        registry.remove(Place { life: 1, cell: 0 });
        registry.remove(Place { life: 1, cell: 0 });
        assert_eq!(cells(&registry, "a"), [(2, 0), (2, 1)]);
        registry.remove_life(2);
        assert_eq!((cells(&registry, "a"), cells(&registry, "b")), (vec![], vec![(1, 7)]));
        assert_eq!(registry.names(), 1);
    }

    #[test]
    fn a_life_has_one_cell_for_a_name() {
        let mut registry = Registry::default();
        for cell in 0..3 {
            registry.add(Place { life: 1, cell }, filter("a"), limits(9)).unwrap();
        }
        assert_eq!(cells(&registry, "a"), [(1, 2)]);
        registry.remove(Place { life: 1, cell: 0 });
        assert_eq!(cells(&registry, "a"), [(1, 2)]);
        registry.remove_life(1);
        assert_eq!((registry.names(), cells(&registry, "a")), (0, vec![]));
    }

    #[test]
    fn a_cell_that_is_named_otherwise_is_the_other_names() {
        let mut registry = Registry::default();
        let place = Place { life: 1, cell: 0 };
        registry.add(place, filter("a"), limits(9)).unwrap();
        registry.add(place, filter("b"), limits(9)).unwrap();
        assert_eq!((cells(&registry, "a"), cells(&registry, "b")), (vec![], vec![(1, 0)]));
        assert_eq!(registry.names(), 1);
    }
}
