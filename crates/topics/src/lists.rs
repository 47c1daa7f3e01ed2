//! Lists that a worker asks the hub for, one after the other.

use crate::listing::LIST_BYTES_MAX;
use crate::record::{Interest, Listed};
use std::collections::VecDeque;

#[derive(Debug)]
struct Question<C, T> {
    of: C,
    wanted: Listed,
    answer: T,
}

/// The first one is asked for, or is to be.
#[derive(Debug)]
pub(crate) struct Lists<C, T> {
    questions: VecDeque<Question<C, T>>,
    number: u64,
    is_asked: bool,
    list: Vec<u8>,
}

impl<C, T> Default for Lists<C, T> {
    fn default() -> Self {
        Self { questions: VecDeque::new(), number: 0, is_asked: false, list: Vec::new() }
    }
}

impl<C, T> Lists<C, T> {
    pub(crate) fn add(&mut self, of: C, wanted: Listed, answer: T) {
        self.questions.push_back(Question { of, wanted, answer });
    }

    /// What the hub is to be asked. It was, once [`asked`](Self::asked) is called.
    pub(crate) fn to_ask(&self) -> Option<Interest> {
        let first = self.questions.front().filter(|_| !self.is_asked)?;
        Some(Interest::List { number: self.number + 1, wanted: first.wanted.clone() })
    }

    pub(crate) fn asked(&mut self) {
        self.number += 1;
        self.is_asked = true;
    }

    /// A new hub knows of no question.
    pub(crate) fn ask_again(&mut self) {
        self.is_asked = false;
        self.list.clear();
    }

    /// A part of a list. With the last one it is whole.
    pub(crate) fn hear(
        &mut self,
        number: u64,
        is_last: bool,
        part: &[u8],
    ) -> Option<(C, T, Vec<u8>)> {
        // Of the question before, by a hub that has died.
        if !self.is_asked || number != self.number {
            return None;
        }
        if self.list.len() + part.len() <= LIST_BYTES_MAX {
            self.list.extend_from_slice(part);
        }
        if !is_last {
            return None;
        }
        self.is_asked = false;
        let Question { of, answer, .. } = self.questions.pop_front()?;
        Some((of, answer, std::mem::take(&mut self.list)))
    }
}
