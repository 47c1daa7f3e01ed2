//! A hub and some workers in one process, in any order of steps.

#![expect(clippy::cast_possible_truncation, reason = "ids and offsets of tests are small")]

#[path = "inlet_tests_cases.rs"]
mod cases;
#[path = "inlet_tests_lists.rs"]
mod lists;
#[path = "inlet_tests_resume.rs"]
mod resume;

use super::*;
use crate::hub::Hub;
use crate::name::{Filter, Topic};
use crate::outlet::Submitted;
use crate::record::Message;
use crate::registry::NameLimits;
use crate::replay::Missed;
use crate::ring::Ring;
use crate::wish::{Came, EACH, Resumed};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, btree_map};

/// What a connection has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    On {
        filter: Filter,
        offset: u64,
    },
    /// With the offsets of what was missed.
    Resumed {
        filter: Filter,
        from: u64,
        missed: Vec<u64>,
        offset: u64,
    },
    Off {
        filter: Filter,
        offset: u64,
    },
    Refused(Filter),
    Listed {
        filter: Filter,
        names: Vec<(String, u32)>,
    },
    Message {
        lost: u64,
        offset: u64,
        topic: String,
    },
    Published {
        offset: u64,
        subscribers: u32,
    },
}

type Connection = u64;

#[derive(Default)]
struct Log {
    seen: BTreeMap<Connection, Vec<Seen>>,
    /// From where connections resume.
    resumes: BTreeMap<Connection, u64>,
    /// How often the hub was woken.
    posts: usize,
    /// Messages that the worker was too slow for.
    lapped: u64,
    /// So many times what is handed over is not taken.
    refuses: usize,
    /// How many messages were handed over together, each time.
    together: Vec<usize>,
}

impl Log {
    fn add(&mut self, of: Connection, seen: Seen) {
        self.seen.entry(of).or_default().push(seen);
    }
}

impl Sink<Connection, Filter, Connection> for Log {
    fn published(&mut self, waiter: Connection, answer: Option<Published>) {
        let Published { offset, subscribers } = answer.expect("no hub dies on it twice");
        self.add(waiter, Seen::Published { offset, subscribers });
    }
    fn taken(&mut self, waiter: Connection) {
        panic!("{waiter} asks for answers only");
    }
    fn answered(&mut self, answered: Answered<Connection, Filter>, offset: u64) {
        let Answered { to, answer: filter, came, .. } = answered;
        let seen = match came {
            Came::Subscribed { resumed: Resumed::Yes(missed), .. } => {
                let from = self.resumes.remove(&to).expect("it was asked for");
                let missed = missed.iter().map(Missed::offset).collect();
                Seen::Resumed { filter, from, missed, offset }
            }
            Came::Subscribed { .. } => Seen::On { filter, offset },
            Came::Unsubscribed { .. } => Seen::Off { filter, offset },
            Came::Refused(_) => Seen::Refused(filter),
        };
        self.add(to, seen);
    }
    fn deliver(&mut self, of: &Connection, delivered: Delivered<'_>) -> bool {
        let Delivered { mut lost, messages, .. } = delivered;
        self.together.push(messages.count());
        if std::mem::take(&mut self.refuses) > 0 {
            return false;
        }
        for (offset, message) in messages.each() {
            let (topic, lost) = (message.topic.as_str().to_owned(), std::mem::take(&mut lost));
            self.add(*of, Seen::Message { lost, offset, topic });
        }
        true
    }
    fn listed(&mut self, of: &Connection, filter: Filter, list: &[u8]) {
        let names = crate::listing::names(list).map(|(name, count)| (name.to_owned(), count));
        self.add(*of, Seen::Listed { filter, names: names.collect() });
    }
    fn lapped(&mut self, lost: u64) {
        self.lapped += lost;
    }
    fn post(&mut self) {
        self.posts += 1;
    }
}

struct Worker {
    id: u64,
    life: Life,
    outlet: Arc<Outlet<Connection>>,
    inlet: Inlet<Connection, Filter, Connection>,
    log: Log,
}

struct World {
    ring: Ring,
    hub: Hub,
    hubs: u64,
    workers: Vec<Worker>,
    now: u64,
    /// What was published, by offset.
    topics: Vec<String>,
}

const WORKERS: usize = 2;
const CONNECTIONS: u64 = 3;

fn limits_of(names: usize) -> NameLimits {
    NameLimits { names, globs: 9 }
}

fn world(ring_bytes: usize, names_max: usize) -> World {
    let ring = Ring::map(&Ring::of_any_size(ring_bytes, 1).unwrap()).unwrap();
    let mut hub = Hub::new(ring.broadcast(), 1, limits_of(names_max), 0).unwrap();
    let limits = TableLimits {
        per_connection_max: 9,
        patterns_per_connection_max: 9,
        bytes_max: 1 << 20,
        names_max: 9,
    };
    let workers = (0..WORKERS as u64).map(|id| {
        let life = Life::map(&Life::create().unwrap()).unwrap();
        hub.attach(id, id as u32, life.clone());
        let outlet = Outlet::new(&life);
        let place = (id, id as u32);
        let inlet = Inlet::new(place, &life, &outlet, ring.broadcast(), limits, REPLAYS).unwrap();
        Worker { id, life, outlet, inlet, log: Log::default() }
    });
    World { workers: workers.collect(), ring, hub, hubs: 1, now: 0, topics: Vec::new() }
}

impl World {
    /// Reads what was published from the ring.
    fn read_topics(&mut self) {
        let mut reader = self.ring.broadcast().reader_behind(0).unwrap().unwrap();
        let mut bytes = Vec::new();
        while reader.next(&mut bytes).unwrap() == Found::Record {
            let topic = Record::read(&bytes).unwrap().request.message.topic.as_str().to_owned();
            self.topics.push(topic);
        }
    }
}

impl Worker {
    fn look(&mut self) -> bool {
        self.inlet.hear();
        self.inlet.look(&mut self.log).unwrap()
    }

    fn wish(&mut self, of: Connection, wish: Wish, filter: &Filter) {
        while self.inlet.is_delivering() {
            self.look();
        }
        self.inlet.wish(of, &of, wish, filter.clone(), &mut self.log);
    }

    /// Subscribes as one that has everything up to an offset.
    fn resume(&mut self, of: Connection, from: u64, filter: &Filter) {
        // One at a time, so that the answer is known to be that one's.
        if let btree_map::Entry::Vacant(place) = self.log.resumes.entry(of) {
            place.insert(from);
            self.wish(of, resume(filter.clone(), from), filter);
        }
    }

    fn publish(&mut self, of: Connection, topic: &str, body: &[u8]) -> Submitted<Connection> {
        let message = Message { code: 0, topic: Topic::new(topic.as_bytes()).unwrap(), body };
        self.outlet.submit(message, true, of, |_| true, || {})
    }
}

impl World {
    fn round(&mut self) -> bool {
        self.now += 50;
        let round = self.hub.round(self.now);
        assert_eq!(round.corrupt, []);
        round.is_more || round.waits || !round.to_ring.is_empty()
    }

    fn succeed(&mut self) {
        self.hubs += 1;
        self.hub = Hub::new(self.ring.broadcast(), self.hubs, limits_of(100), self.now).unwrap();
        for worker in &self.workers {
            self.hub.attach(worker.id, worker.id as u32, worker.life.clone());
        }
    }

    /// Until nobody has anything to do.
    fn settle(&mut self) {
        let mut rounds_without = 0;
        for _ in 0..10_000 {
            let mut is_more = self.round();
            for worker in &mut self.workers {
                is_more |= worker.look();
                is_more |= std::mem::take(&mut worker.log.posts) > 0;
            }
            rounds_without = if is_more { 0 } else { rounds_without + 1 };
            if rounds_without == 2 {
                return;
            }
        }
        panic!("it never ends");
    }
}

fn filter(text: &str) -> Filter {
    Filter::parse(text.as_bytes()).unwrap()
}

fn subscribe(filter: Filter) -> Wish {
    Wish::Subscribe { filter, flags: None, resume: None }
}

fn resume(filter: Filter, from: u64) -> Wish {
    Wish::Subscribe { filter, flags: None, resume: Some(from) }
}

const REPLAYS: ReplayLimits = ReplayLimits { each_bytes: 10_000, total_bytes: 20_000 };

const TOPICS: [&str; 3] = ["a", "ab", "b"];
const FILTERS: [&str; 4] = ["a", "a*", "b", "*"];

/// What a connection has to have seen, and nothing else: all that matched what it had, from
/// where each subscription was confirmed to where its end was.
fn check(seen: &[Seen], topics: &[String]) {
    let mut has: BTreeMap<String, u64> = BTreeMap::new();
    let mut expected = BTreeSet::new();
    let (mut found, mut replayed) = (Vec::new(), BTreeSet::new());
    let last = topics.len() as u64;
    let mut add = |filter: &Filter, from: u64, to: u64| {
        for offset in from + 1..=to {
            let topic = &topics[offset as usize - 1];
            if filter.matches(Topic::new(topic.as_bytes()).unwrap()) {
                expected.insert(offset);
            }
        }
    };
    let name = |filter: &Filter| format!("{filter:?}");
    for seen in seen {
        match seen {
            Seen::On { filter, offset } => {
                has.entry(name(filter)).or_insert(*offset);
            }
            Seen::Resumed { filter, from, missed, offset } => {
                let begin = has.entry(name(filter)).or_insert(*from);
                *begin = (*begin).min(*from);
                assert!(missed.is_sorted_by(|a, b| a < b), "{missed:?}");
                assert!(missed.iter().all(|it| (from + 1..=*offset).contains(it)), "{missed:?}");
                for it in missed {
                    let topic = Topic::new(topics[*it as usize - 1].as_bytes()).unwrap();
                    assert!(filter.matches(topic), "{it} is for another one");
                }
                replayed.extend(missed);
            }
            Seen::Off { filter, offset } => {
                if let Some(from) = has.remove(&name(filter)) {
                    add(filter, from, *offset);
                }
            }
            Seen::Message { offset, topic, .. } => {
                let topic = Topic::new(topic.as_bytes()).unwrap();
                let is_held = FILTERS.iter().map(|text| filter(text));
                let mut is_held = is_held.filter(|it| has.contains_key(&name(it)));
                assert!(is_held.any(|it| it.matches(topic)), "{offset} is for no subscription");
                found.push(*offset);
            }
            Seen::Refused(_) | Seen::Listed { .. } | Seen::Published { .. } => {}
        }
    }
    for text in FILTERS {
        if let Some(from) = has.get(&name(&filter(text))) {
            add(&filter(text), *from, last);
        }
    }
    assert!(found.is_sorted_by(|a, b| a < b), "{found:?}");
    // What it missed may be what it had by a subscription that has ended.
    replayed.extend(found);
    assert_eq!(replayed, expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn what_is_confirmed_is_what_comes_whatever_the_order(
        steps in proptest::collection::vec(
            (0..10_u8, 0..WORKERS, 0..CONNECTIONS, 0..FILTERS.len()), 0..120),
    ) {
        let mut world = world(1 << 16, 100);
        let mut gone = BTreeSet::new();
        let mut asked: BTreeMap<(usize, u64), usize> = BTreeMap::new();
        for (what, place, of, which) in steps {
            let (filter, is_gone) = (filter(FILTERS[which]), gone.contains(&(place, of)));
            let worker = &mut world.workers[place];
            match what {
                0 | 1 if !is_gone => worker.wish(of, subscribe(filter.clone()), &filter),
                2 if !is_gone => {
                    let from = worker.inlet.reader.offset() * of / 2;
                    worker.resume(of, from, &filter);
                }
                3 if !is_gone => worker.wish(of, Wish::Unsubscribe(filter.clone()), &filter),
                4 | 5 if !is_gone => {
                    let topic = TOPICS[which % TOPICS.len()];
                    let submitted = worker.publish(of, topic, &[7; 100]);
                    prop_assert_eq!(submitted, Submitted::Awaited);
                    *asked.entry((place, of)).or_default() += 1;
                }
                6 if which == 0 && gone.insert((place, of)) => {
                    while worker.inlet.is_delivering() {
                        worker.look();
                    }
                    worker.inlet.gone(of);
                    worker.log.seen.remove(&of);
                }
                7 => _ = world.round(),
                8 => _ = worker.look(),
                9 if which == 0 => world.succeed(),
                _ => {}
            }
        }
        world.settle();
        world.read_topics();
        let mut subscriptions = 0;
        for (place, worker) in world.workers.iter().enumerate() {
            for (of, seen) in &worker.log.seen {
                if !gone.contains(&(place, *of)) {
                    check(seen, &world.topics);
                    let answers = seen.iter().filter(|it| matches!(it, Seen::Published { .. }));
                    let asked = asked.get(&(place, *of)).copied().unwrap_or(0);
                    prop_assert_eq!(answers.count(), asked, "each is answered once");
                }
            }
            subscriptions += worker.inlet.table().subscriptions();
        }
        prop_assert_eq!(world.topics.len(), asked.values().sum::<usize>(), "each is there once");
        // The hub, the cells and the truth agree.
        let counted: u32 = world.workers.iter().flat_map(|worker| {
            (0..9).map(|cell| worker.life.cell(cell).unwrap().load(Ordering::Relaxed))
        }).sum();
        prop_assert_eq!(counted as usize, subscriptions);
        for topic in TOPICS {
            let topic = Topic::new(topic.as_bytes()).unwrap();
            let mut known: Vec<_> =
                world.hub.registry().matching(topic).map(|place| (place.life, place.cell)).collect();
            let mut held: Vec<_> = world.workers.iter().flat_map(|worker| {
                let mut cells = Vec::new();
                worker.inlet.table().matching(topic, &mut cells);
                cells.into_iter().map(|cell| (worker.id, cell))
            }).collect();
            known.sort_unstable();
            held.sort_unstable();
            prop_assert_eq!(known, held);
        }
    }
}
