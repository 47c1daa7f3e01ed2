//! What a connection is subscribed to, and how far it has come: where to resume, and which
//! message has been here before. Pure.
//!
//! Each subscription has a place of its own. Of one connection's subscriptions one may resume
//! while another is up to date, and a message that both match then comes twice.

use std::collections::BTreeMap;

use super::topic_frames::{Recovered, Subscribed};

#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    /// Of the log that this connection reads, once something is confirmed.
    epoch: Option<u64>,
    topics: BTreeMap<String, Place>,
    /// By what stands before the `*`.
    patterns: BTreeMap<String, Place>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    epoch: u64,
    /// It has everything behind here,
    from: u64,
    /// and up to here.
    offset: u64,
    /// The connection that there is now has confirmed it.
    is_confirmed: bool,
}

impl Subscriptions {
    fn entries(&mut self, written: &str) -> (&mut BTreeMap<String, Place>, String) {
        match written.strip_suffix('*') {
            Some(prefix) => (&mut self.patterns, prefix.to_owned()),
            None => (&mut self.topics, written.to_owned()),
        }
    }

    /// The server has confirmed it; `asked` is the offset that it was to resume from.
    pub(super) fn confirm(&mut self, written: &str, asked: Option<u64>, answer: &Subscribed) {
        let (entries, name) = self.entries(written);
        let before = entries.get(&name).copied();
        if before.is_some_and(|place| place.is_confirmed) {
            // Once more: it is as far as it was.
            return;
        }
        let Subscribed { recovered, epoch, offset, .. } = *answer;
        // What it has missed comes behind the answer.
        let asked = asked.filter(|_| recovered == Recovered::Yes);
        let offset = asked.unwrap_or(offset);
        let from = before.filter(|_| asked.is_some()).map_or(offset, |place| place.from);
        entries.insert(name, Place { epoch, from, offset, is_confirmed: true });
        self.epoch = Some(epoch);
    }

    pub(super) fn end(&mut self, written: &str) {
        let (entries, name) = self.entries(written);
        entries.remove(&name);
    }

    /// The connection is another one, which has confirmed nothing.
    pub(super) fn suspend(&mut self) {
        self.epoch = None;
        for place in self.topics.values_mut().chain(self.patterns.values_mut()) {
            place.is_confirmed = false;
        }
    }

    /// Each as it is written, with the epoch and the offset to resume from.
    pub(super) fn to_resume(&self) -> Vec<(String, u64, u64)> {
        let topics = self.topics.iter().map(|(name, place)| (name.clone(), place));
        let patterns = self.patterns.iter().map(|(prefix, place)| (format!("{prefix}*"), place));
        topics.chain(patterns).map(|(name, place)| (name, place.epoch, place.offset)).collect()
    }

    /// A message has come: whether for the first time.
    pub(super) fn is_new(&mut self, topic: &str, offset: u64) -> bool {
        let patterns = self.patterns.iter_mut();
        let patterns = patterns.filter(|(prefix, _)| topic.starts_with(&**prefix));
        let matching = self.topics.get_mut(topic).into_iter().chain(patterns.map(|(_, it)| it));
        let mut is_new = true;
        for place in matching.filter(|place| Some(place.epoch) == self.epoch) {
            is_new &= offset <= place.from || place.offset < offset;
            // One that is not confirmed may still miss what was before.
            if place.is_confirmed {
                place.offset = place.offset.max(offset);
            }
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(recovered: Recovered, epoch: u64, offset: u64) -> Subscribed {
        Subscribed { subscriptions: 1, recovered, epoch, offset }
    }

    fn subscribed(names: &[(&str, u64)]) -> Subscriptions {
        let mut subscriptions = Subscriptions::default();
        for (name, offset) in names {
            subscriptions.confirm(name, None, &answer(Recovered::NotAsked, 7, *offset));
        }
        subscriptions
    }

    fn places(subscriptions: &Subscriptions) -> Vec<(String, u64, u64)> {
        subscriptions.to_resume()
    }

    #[test]
    fn each_is_as_far_as_its_own_messages() {
        let mut all = subscribed(&[("room", 10), ("ro*", 12)]);
        assert!(all.is_new("room", 13) && all.is_new("road", 14));
        assert!(all.is_new("elsewhere", 15), "what nobody here has asked for is not held up");
        assert_eq!(places(&all), [("room".to_owned(), 7, 13), ("ro*".to_owned(), 7, 14)]);
        all.end("room");
        assert_eq!(places(&all), [("ro*".to_owned(), 7, 14)]);
        all.end("ro*");
        assert_eq!(places(&all), []);
    }

    #[test]
    fn a_message_that_two_of_them_bring_is_new_once() {
        let mut all = subscribed(&[("room", 10), ("ro*", 10)]);
        assert!(all.is_new("room", 11));
        all.suspend();
        all.confirm("room", Some(11), &answer(Recovered::Yes, 7, 14));
        // Of the topic, before the pattern is confirmed.
        assert!(all.is_new("room", 12));
        assert_eq!(places(&all)[1], ("ro*".to_owned(), 7, 11), "it may still miss some");
        all.confirm("ro*", Some(11), &answer(Recovered::Yes, 7, 14));
        assert!(!all.is_new("room", 12), "the pattern brings it again");
        assert!(all.is_new("road", 13));
        assert!(all.is_new("room", 15) && !all.is_new("room", 15));
        assert_eq!(places(&all), [("room".to_owned(), 7, 15), ("ro*".to_owned(), 7, 15)]);
    }

    #[test]
    fn what_one_has_missed_another_may_bring() {
        let mut all = subscribed(&[("room", 10), ("ro*", 10)]);
        assert!(all.is_new("room", 11));
        all.suspend();
        all.confirm("room", Some(11), &answer(Recovered::No, 7, 20));
        assert!(all.is_new("room", 21));
        all.confirm("ro*", Some(11), &answer(Recovered::Yes, 7, 21));
        assert!(all.is_new("room", 12) && !all.is_new("room", 21));
    }

    #[test]
    fn what_a_subscription_has_brought_counts_after_its_end() {
        let mut all = subscribed(&[("room", 10), ("ro*", 10)]);
        all.suspend();
        all.confirm("room", Some(10), &answer(Recovered::Yes, 7, 20));
        assert!(all.is_new("room", 11));
        all.suspend();
        all.confirm("ro*", Some(10), &answer(Recovered::Yes, 7, 20));
        assert!(!all.is_new("room", 11), "the room is not confirmed this time");
        all.suspend();
        all.confirm("ro*", Some(11), &answer(Recovered::No, 8, 10));
        assert!(all.is_new("room", 11), "of another log");
    }

    #[test]
    fn what_was_not_recovered_begins_with_the_answer() {
        let mut all = subscribed(&[("a", 10)]);
        assert!(all.is_new("a", 20));
        all.suspend();
        // The server was started again: another log, whose offsets are lower.
        all.confirm("a", Some(20), &answer(Recovered::No, 8, 3));
        assert_eq!(places(&all), [("a".to_owned(), 8, 3)]);
        assert!(all.is_new("a", 4));
    }

    #[test]
    fn what_was_recovered_is_as_far_as_what_has_come() {
        let mut all = subscribed(&[("a", 10)]);
        all.suspend();
        all.confirm("a", Some(10), &answer(Recovered::Yes, 7, 30));
        assert_eq!(places(&all), [("a".to_owned(), 7, 10)], "11 to 30 are still to come");
        assert!(all.is_new("a", 11));
    }

    #[test]
    fn to_subscribe_again_changes_nothing() {
        let mut all = subscribed(&[("a", 10)]);
        all.confirm("a", None, &answer(Recovered::NotAsked, 7, 30));
        assert_eq!(places(&all), [("a".to_owned(), 7, 10)]);
    }
}
