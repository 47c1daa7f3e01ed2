//! Filters by what they match: how the hub finds the cells of a topic, and a worker its
//! subscribers.

use crate::name::{Filter, Topic, is_glob_for};
use std::collections::HashMap;

/// A value for each filter.
#[derive(Clone, Debug)]
pub(crate) struct Index<V> {
    exact: HashMap<Box<str>, V>,
    prefixes: HashMap<Box<str>, V>,
    /// How many prefixes there are of each length, the shortest first: a topic is looked up
    /// once for each length, however many prefixes there are.
    lengths: Vec<(usize, usize)>,
    /// Few: each topic is held against each of them.
    globs: HashMap<Box<str>, V>,
}

impl<V> Default for Index<V> {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            prefixes: HashMap::new(),
            lengths: Vec::new(),
            globs: HashMap::new(),
        }
    }
}

impl<V> Index<V> {
    /// How many filters there are.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.exact.len() + self.patterns()
    }

    /// How many of them are patterns.
    #[must_use]
    pub(crate) fn patterns(&self) -> usize {
        self.prefixes.len() + self.globs.len()
    }

    /// How many of these are globs.
    #[must_use]
    pub(crate) fn globs(&self) -> usize {
        self.globs.len()
    }

    /// The value of this very filter.
    #[must_use]
    pub(crate) fn get(&self, filter: &Filter) -> Option<&V> {
        match filter {
            Filter::Exact(text) => self.exact.get(text),
            Filter::Prefix(text) => self.prefixes.get(text),
            Filter::Glob(text) => self.globs.get(text),
        }
    }

    /// The value of this very filter, to be changed.
    pub(crate) fn get_mut(&mut self, filter: &Filter) -> Option<&mut V> {
        match filter {
            Filter::Exact(text) => self.exact.get_mut(text),
            Filter::Prefix(text) => self.prefixes.get_mut(text),
            Filter::Glob(text) => self.globs.get_mut(text),
        }
    }

    /// Adds a filter that is not there yet.
    pub(crate) fn insert(&mut self, filter: Filter, value: V) {
        let before = match filter {
            Filter::Exact(text) => self.exact.insert(text, value),
            Filter::Prefix(text) => {
                self.count(text.len(), 1);
                self.prefixes.insert(text, value)
            }
            Filter::Glob(text) => self.globs.insert(text, value),
        };
        debug_assert!(before.is_none());
    }

    /// Removes a filter.
    pub(crate) fn remove(&mut self, filter: &Filter) -> Option<V> {
        match filter {
            Filter::Exact(text) => self.exact.remove(text),
            Filter::Prefix(text) => {
                let removed = self.prefixes.remove(text)?;
                self.count(text.len(), -1);
                Some(removed)
            }
            Filter::Glob(text) => self.globs.remove(text),
        }
    }

    fn count(&mut self, length: usize, change: isize) {
        match self.lengths.binary_search_by_key(&length, |&(length, _)| length) {
            Ok(at) => {
                let count = &mut self.lengths[at].1;
                *count = count.checked_add_signed(change).expect("none is removed twice");
                if *count == 0 {
                    self.lengths.remove(at);
                }
            }
            Err(at) => self.lengths.insert(at, (length, 1)),
        }
    }

    /// All filters.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Filter, &V)> {
        let exact = self.exact.iter().map(|(text, value)| (Filter::Exact(text.clone()), value));
        let prefixes =
            self.prefixes.iter().map(|(text, value)| (Filter::Prefix(text.clone()), value));
        let globs = self.globs.iter().map(|(text, value)| (Filter::Glob(text.clone()), value));
        exact.chain(prefixes).chain(globs)
    }

    /// All that are for one topic.
    pub(crate) fn exact(&self) -> impl Iterator<Item = (Topic<'_>, &V)> {
        self.exact
            .iter()
            .filter_map(|(text, value)| Some((Topic::read(text.as_bytes()).ok()?, value)))
    }

    /// The values of all filters that match a topic.
    pub(crate) fn matching(&self, topic: Topic<'_>) -> impl Iterator<Item = &V> {
        let text = topic.raw();
        let prefixes = self.lengths.iter().filter_map(move |&(length, _)| {
            // The empty prefix is not one of the service's; longer ones begin as the topic does.
            let is_for_all = length == 0 && topic.is_reserved();
            let prefix = text.get(..length).filter(|_| !is_for_all && !topic.is_shard())?;
            self.prefixes.get(prefix)
        });
        let globs = self.globs.iter();
        let globs =
            globs.filter_map(move |(pattern, value)| is_glob_for(pattern, topic).then_some(value));
        self.exact.get(text).into_iter().chain(prefixes).chain(globs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_finds_what_matches(
            filters in proptest::collection::hash_set("[$ab\u{e4}]{0,3}\\*?", 0..12),
            globs in proptest::collection::hash_set("[$ab?*]{1,3}", 0..4),
            removed in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
            topics in proptest::collection::vec("[$ab\u{e4}]{1,4}", 1..8),
        ) {
            let mut all: Vec<Filter> =
                filters.iter().filter_map(|text| Filter::parse(text.as_bytes()).ok()).collect();
            let globs = globs.iter().filter_map(|text| Filter::glob(text.as_bytes()).ok());
            all.extend(globs.filter(|filter| matches!(filter, Filter::Glob(_))));
            let mut index = Index::default();
            for filter in &all {
                index.insert(filter.clone(), filter.clone());
            }
            for at in removed {
                if !all.is_empty() {
                    let filter = all.swap_remove(at.index(all.len()));
                    prop_assert_eq!(index.remove(&filter), Some(filter.clone()));
                    prop_assert!(index.remove(&filter).is_none());
                }
            }
            prop_assert_eq!(index.len(), all.len());
            for topic in &topics {
                let topic = Topic::new(topic.as_bytes()).unwrap();
                let mut found: Vec<_> = index.matching(topic).cloned().collect();
                let mut expected: Vec<_> =
                    all.iter().filter(|filter| filter.matches(topic)).cloned().collect();
                found.sort_by_key(|filter| format!("{filter:?}"));
                expected.sort_by_key(|filter| format!("{filter:?}"));
                prop_assert_eq!(found, expected);
            }
        }
    }
}
