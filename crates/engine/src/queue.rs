//! A queue whose first place needs no allocation: most connections have one message under
//! way, or none.

use std::collections::VecDeque;

/// First in, first out. At rest it owns no memory.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    /// The oldest. `None`: the queue is empty.
    first: Option<T>,
    #[expect(clippy::box_collection, reason = "a quarter of the size of an empty queue")]
    behind: Option<Box<VecDeque<T>>>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { first: None, behind: None }
    }
}

impl<T> Queue<T> {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// The oldest.
    #[inline]
    pub(crate) fn first(&self) -> Option<&T> {
        self.first.as_ref()
    }

    #[inline]
    pub(crate) fn first_mut(&mut self) -> Option<&mut T> {
        self.first.as_mut()
    }

    /// Whether there is one and no other.
    #[inline]
    pub(crate) fn has_one(&self) -> bool {
        self.first.is_some() && self.behind.is_none()
    }

    #[inline]
    pub(crate) fn push(&mut self, item: T) {
        if self.first.is_none() {
            self.first = Some(item);
        } else {
            self.behind.get_or_insert_default().push_back(item);
        }
    }

    /// Puts one in front of all others.
    pub(crate) fn push_first(&mut self, item: T) {
        if let Some(second) = self.first.replace(item) {
            self.behind.get_or_insert_default().push_front(second);
        }
    }

    /// Takes the oldest.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<T> {
        let next = match &mut self.behind {
            None => None,
            Some(behind) => {
                let next = behind.pop_front();
                if behind.is_empty() {
                    self.behind = None;
                }
                next
            }
        };
        std::mem::replace(&mut self.first, next)
    }

    /// Takes what is behind the oldest.
    pub(crate) fn split_first(&mut self) -> Self {
        let behind = Self { first: self.first.take(), behind: self.behind.take() };
        let mut behind = behind;
        self.first = behind.pop();
        behind
    }

    /// Appends all of another queue.
    pub(crate) fn append(&mut self, mut other: Self) {
        if self.is_empty() {
            *self = other;
            return;
        }
        while let Some(item) = other.pop() {
            self.push(item);
        }
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.first.iter_mut().chain(self.behind.iter_mut().flat_map(|behind| &mut **behind))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.first.iter().chain(self.behind.iter().flat_map(|behind| &**behind))
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn len(&self) -> usize {
        self.iter().count()
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn owns_memory(&self) -> bool {
        self.behind.is_some()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_queue_of_the_standard_library_for_every_short_run() {
        // Each step is one of six, seven steps a run.
        for run in 0..6_u32.pow(7) {
            let (mut queue, mut model) = (Queue::default(), VecDeque::new());
            for step in 0..7 {
                match run / 6_u32.pow(step) % 6 {
                    0 | 1 => {
                        queue.push(step);
                        model.push_back(step);
                    }
                    2 => {
                        queue.push_first(step);
                        model.push_front(step);
                    }
                    3 => assert_eq!(queue.pop(), model.pop_front()),
                    4 => {
                        let behind = queue.split_first();
                        let expected = model.split_off(model.len().min(1));
                        assert!(behind.iter().eq(&expected), "{run}");
                        model.extend(&expected);
                        queue.append(behind);
                    }
                    _ => {
                        let other = std::mem::take(&mut queue);
                        queue.append(other);
                    }
                }
                assert!(queue.iter().eq(&model), "{run}");
                assert_eq!(queue.first(), model.front());
                assert_eq!(
                    (queue.is_empty(), queue.has_one()),
                    (model.is_empty(), model.len() == 1)
                );
                assert_eq!(queue.owns_memory(), model.len() > 1);
            }
        }
    }
}
