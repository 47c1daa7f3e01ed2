//! Every event in every state that any sequence of events leads to.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::thread;

use super::*;

/// Every combination that any sequence of events leads to, with a shortest one.
fn explore() -> BTreeMap<Key, Vec<Event>> {
    let mut found = BTreeMap::from([(World::new().key(), Vec::new())]);
    let mut level = vec![Vec::new()];
    while !level.is_empty() {
        let longer = in_halves(&level, |paths| not_found(&found, paths));
        level.clear();
        for (key, path) in longer.into_iter().flatten() {
            if let btree_map::Entry::Vacant(place) = found.entry(key) {
                level.push(place.insert(path).clone());
            }
        }
    }
    found
}

/// What one more event leads to, if it is not found yet.
fn not_found(found: &BTreeMap<Key, Vec<Event>>, paths: &[Vec<Event>]) -> BTreeMap<Key, Vec<Event>> {
    let mut new = BTreeMap::new();
    for path in paths {
        for event in events() {
            let mut world = World::new();
            for step in path {
                assert!(world.apply(*step));
            }
            if !world.apply(event) {
                continue;
            }
            let longer = [path.as_slice(), &[event]].concat();
            world.check(&longer);
            world.answer_too_late();
            let key = world.key();
            if !found.contains_key(&key) {
                new.insert(key, longer);
            }
        }
    }
    new
}

/// Has each half worked on by a thread.
fn in_halves<T: Sync, R: Send>(all: &[T], work: impl Fn(&[T]) -> R + Sync) -> [R; 2] {
    let (first, second) = all.split_at(all.len() / 2);
    thread::scope(|scope| {
        let second = scope.spawn(|| work(second));
        [work(first), second.join().expect("its half is worked on")]
    })
}

#[test]
fn every_event_in_every_state_leads_to_a_legal_one_and_all_legal_ones_are_reached() {
    let found = explore();
    let reached: BTreeSet<_> = found.keys().map(|key| (key.stage, key.phase, key.seat)).collect();
    let mut legal = BTreeSet::new();
    for stage in [Stage::Open, Stage::Answering, Stage::Flushing, Stage::Lingering, Stage::Aborted]
    {
        for phase in ["empty", "queued", "running", "stalled", "waiting"] {
            for seat in ["idle", "ready", "sending", "blocked", "closed"] {
                if is_legal(stage, phase, seat) {
                    legal.insert((stage, phase, seat));
                }
            }
        }
    }
    let never: Vec<_> = legal.difference(&reached).collect();
    assert_eq!(never, [] as [&(Stage, &str, &str); 0], "the table is wider than the code");
    println!("{} combinations, {} states", reached.len(), found.len());
    let paths: Vec<_> = found.into_values().collect();
    in_halves(&paths, from_each_the_end_is_reached);
}

fn from_each_the_end_is_reached(paths: &[Vec<Event>]) {
    for path in paths {
        let mut world = World::new();
        for step in path {
            assert!(world.apply(*step));
        }
        // The peer goes away: whatever other threads still do, the socket can be closed.
        world.apply(Event::Abort);
        if !world.apply(Event::Settle(Came::NotSent)) {
            world.apply(Event::Settle(Came::AllSent));
        }
        for handled in [false, true] {
            world.apply(Event::Leave { replies: false, handled, end: false, exhausted: false });
        }
        let closed = [
            Event::Begin { exhausted: true },
            Event::Leave { replies: false, handled: true, end: false, exhausted: false },
        ];
        for event in closed.repeat(2) {
            world.apply(event);
        }
        assert!(world.state.is_over(), "{path:?}");
        world.answer_too_late();
        assert_eq!((phase_name(&world.state), world.outbox_charged), ("empty", 0), "{path:?}");
        world.apply(Event::Wait(Waits::UseTicket));
        assert_eq!((phase_name(&world.state), world.on_run_list), ("empty", 0), "{path:?}");
    }
}
