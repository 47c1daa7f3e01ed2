#![expect(clippy::cast_possible_truncation, reason = "ids and offsets of tests are small")]

use super::*;
use crate::name::{Filter, Topic};
use crate::record::Message;
use crate::ring::Ring;

/// A worker as the hub sees it.
struct Worker {
    id: u64,
    life: Life,
    number: u64,
}

struct World {
    ring: Ring,
    hub: Hub,
    hubs: u64,
    workers: Vec<Worker>,
    now: u64,
}

fn limits(names: usize) -> NameLimits {
    NameLimits { names, globs: 9 }
}

fn world(ring_bytes: usize, workers: u64) -> World {
    let ring = Ring::map(&Ring::of_any_size(ring_bytes, 1).unwrap()).unwrap();
    let hub = Hub::new(ring.broadcast(), 1, limits(100), 0).unwrap();
    let mut world = World { ring, hub, hubs: 1, workers: Vec::new(), now: 0 };
    for id in 0..workers {
        let life = Life::map(&Life::create().unwrap()).unwrap();
        world.hub.attach(id, id as u32, life.clone());
        world.workers.push(Worker { id, life, number: 0 });
    }
    world.round();
    for worker in 0..workers as usize {
        assert_eq!(world.workers[worker].answers(), [Answer::NameAll { hub: 1 }]);
        world.workers[worker].tell(&Interest::AllNamed { hub: world.hubs });
    }
    world.round();
    world
}

impl World {
    fn round(&mut self) -> Round {
        self.now += 1;
        self.hub.round(self.now)
    }

    /// The hub has died, and another one takes over.
    fn succeed(&mut self) {
        self.hubs += 1;
        self.hub = Hub::new(self.ring.broadcast(), self.hubs, limits(100), self.now).unwrap();
        for worker in &self.workers {
            self.hub.attach(worker.id, worker.id as u32, worker.life.clone());
        }
    }

    /// A worker has read all there is.
    fn read_all(&self, worker: usize) {
        let position = self.ring.broadcast().writer().unwrap().position();
        self.workers[worker].life.note_read(position);
    }

    fn records(&self) -> Vec<Vec<u8>> {
        let mut reader = self.ring.broadcast().reader_behind(0).unwrap().unwrap();
        let (mut all, mut bytes) = (Vec::new(), Vec::new());
        while reader.next(&mut bytes).unwrap() == chappe_rings::Found::Record {
            all.push(Record::read(&bytes).unwrap().request.message.body.to_vec());
        }
        all
    }
}

impl Worker {
    fn tell(&self, interest: &Interest) {
        let mut bytes = Vec::new();
        interest.write(&mut bytes);
        self.life.interest().producer().push(&bytes).unwrap();
    }

    /// Names a cell that has so many subscribers.
    fn add(&self, cell: u32, filter: &str, count: u32) {
        self.life.cell(cell).unwrap().store(count, Ordering::Relaxed);
        self.tell(&Interest::Add {
            cell,
            turn: 7,
            filter: Filter::parse(filter.as_bytes()).unwrap(),
        });
    }

    fn publish(&mut self, topic: &str, body: &[u8]) -> bool {
        let message = Message { code: 0, topic: Topic::new(topic.as_bytes()).unwrap(), body };
        let request = Request { number: self.number + 1, is_awaited: true, message };
        let mut bytes = Vec::new();
        request.write(&mut bytes);
        let pushed = self.life.publish().producer().push(&bytes).is_ok();
        self.number += u64::from(pushed);
        pushed
    }

    fn answers(&self) -> Vec<Answer<'static>> {
        let (mut answers, mut bytes) = (self.life.answers().consumer(), Vec::new());
        let mut all = Vec::new();
        while answers.next(&mut bytes).unwrap() {
            // Until the tests are over.
            all.push(Answer::read(bytes.clone().leak()).unwrap());
            _ = answers.advance();
        }
        all
    }
}

#[test]
fn a_message_concerns_the_workers_with_subscribers_and_its_answer_counts_them() {
    let mut world = world(1 << 20, 3);
    world.workers[0].add(0, "a", 3);
    world.workers[1].add(0, "*", 4);
    world.workers[2].add(0, "b", 5);
    world.round();
    for worker in &world.workers {
        assert_eq!(worker.answers(), [Answer::Added { cell: 0, turn: 7, offset: 0 }]);
    }
    world.workers[2].publish("a", b"one");
    let round = world.round();
    // The one with the answer, and those with subscribers.
    assert_eq!(round.to_ring.into_iter().collect::<Vec<_>>(), [0, 1, 2]);
    let published = Answer::Published { number: 1, offset: 1, subscribers: 7 };
    assert_eq!(world.workers[2].answers(), [published]);
    // Nobody subscribes there any more, though the hub knows the name.
    world.workers[0].life.cell(0).unwrap().store(0, Ordering::Relaxed);
    world.workers[1].publish("a", b"two");
    assert_eq!(world.round().to_ring.into_iter().collect::<Vec<_>>(), [1]);
    assert_eq!(world.records(), [b"one", b"two"]);
}

#[test]
fn names_are_as_many_as_may_be_and_room_comes_back() {
    let mut world = world(1 << 20, 2);
    world.hub.set_limits(limits(2));
    world.workers[0].add(0, "a", 1);
    world.workers[0].add(1, "b", 1);
    world.workers[0].add(2, "c", 1);
    world.workers[1].add(0, "a", 1);
    world.round();
    let refused = Answer::Refused { cell: 2, turn: 7 };
    assert_eq!(world.workers[0].answers()[2], refused);
    assert_eq!(world.workers[1].answers(), [Answer::Added { cell: 0, turn: 7, offset: 0 }]);
    world.workers[0].tell(&Interest::Remove { cell: 1, turn: 7 });
    world.workers[0].add(2, "c", 1);
    world.round();
    let added = Answer::Added { cell: 2, turn: 7, offset: 0 };
    assert_eq!(world.workers[0].answers(), [Answer::Removed { cell: 1, turn: 7 }, added]);
}

#[test]
fn a_dead_worker_is_forgotten_when_what_it_left_is_published() {
    let mut world = world(1 << 20, 2);
    world.workers[0].add(0, "a", 1);
    for _ in 0..REQUESTS_A_ROUND + 1 {
        world.workers[0].publish("a", b"left");
    }
    world.hub.end(0);
    let first = world.round();
    assert!(first.is_more && first.over.is_empty());
    let last = world.round();
    assert_eq!((last.is_more, last.over), (false, vec![0]));
    assert_eq!(world.records().len(), REQUESTS_A_ROUND + 1);
    assert_eq!(world.hub.registry().names(), 0);
}

#[test]
fn a_worker_that_writes_nonsense_is_told_of_and_hurts_nobody() {
    let mut world = world(1 << 20, 2);
    world.workers[0].life.publish().producer().push(b"nonsense").unwrap();
    world.workers[1].publish("a", b"whole");
    let round = world.round();
    assert_eq!(round.corrupt.len(), 1);
    assert_eq!(round.corrupt[0].0, 0);
    assert_eq!(world.records(), [b"whole"]);
    world.workers[1].tell(&Interest::Add {
        cell: u32::MAX,
        turn: 0,
        filter: Filter::Exact("a".into()),
    });
    assert_eq!(world.round().corrupt.len(), 1, "a cell that there is not");
}

#[test]
fn nothing_is_taken_that_cannot_be_answered() {
    let mut world = world(1 << 20, 1);
    let mut published = 0;
    while published < 100_000 && world.workers[0].publish("a", b"x") {
        published += 1;
        world.round();
    }
    // The queue of answers is full, and then the queue of requests.
    let answered = world.hub.offset();
    assert!(answered < published, "{answered} of {published}");
    assert_eq!(world.round().to_ring.len(), 0);
    assert_eq!(world.workers[0].answers().len() as u64, answered);
    while world.round().is_more {}
    assert_eq!(world.hub.offset(), published.min(2 * answered));
}

#[test]
fn the_hub_waits_for_a_worker_that_makes_progress_and_laps_one_that_does_not() {
    let mut world = world(1 << 16, 2);
    world.workers[0].add(0, "a", 1);
    world.round();
    for _ in 0..200 {
        world.workers[1].publish("a", &[0; 1000]);
    }
    let mut rounds = 0;
    while !world.round().waits {
        rounds += 1;
        assert!(rounds < 100, "it waits once half a ring is not read");
    }
    let stands_at = world.hub.offset();
    for _ in 0..300 {
        world.workers[0].life.note_progress();
        assert!(world.round().waits);
    }
    assert_eq!(world.hub.offset(), stands_at, "as long as it makes progress");
    let position = world.ring.broadcast().writer().unwrap().position();
    world.workers[0].life.note_read(position);
    world.round();
    assert!(world.hub.offset() > stands_at, "it has read");
    world.now += STANDSTILL_MS;
    while world.hub.offset() < 200 {
        world.now += STANDSTILL_MS;
        world.round();
    }
}

#[test]
fn a_successor_publishes_nothing_twice_and_answers_what_its_predecessor_has_not() {
    let mut world = world(1 << 20, 1);
    world.workers[0].publish("a", b"one");
    // As if the hub had died behind the message: nothing answered, nothing taken.
    let mut bytes = Vec::new();
    let mut publish = world.workers[0].life.publish().consumer();
    assert!(publish.next(&mut bytes).unwrap());
    let request = Request::read(&bytes).unwrap();
    let mut record = Vec::new();
    Record { life: 0, concerned: 0, subscribers: 9, request }.write(&mut record);
    world.ring.broadcast().writer().unwrap().write(&record);
    world.succeed();
    world.workers[0].tell(&Interest::AllNamed { hub: world.hubs });
    world.workers[0].publish("a", b"two");
    world.round();
    let expected = [
        Answer::NameAll { hub: 2 },
        Answer::Published { number: 1, offset: 1, subscribers: 9 },
        Answer::Published { number: 2, offset: 2, subscribers: 0 },
    ];
    assert_eq!(world.workers[0].answers(), expected);
    assert_eq!(world.records(), [b"one", b"two"]);
}

#[test]
fn a_successor_waits_for_the_names_and_not_for_ever() {
    let mut world = world(1 << 20, 2);
    world.workers[0].add(0, "a", 1);
    world.round();
    world.succeed();
    world.workers[1].publish("a", b"one");
    assert!(world.round().waits);
    assert_eq!(world.hub.offset(), 0);
    world.workers[0].add(0, "a", 1);
    world.workers[0].tell(&Interest::AllNamed { hub: world.hubs });
    world.workers[1].tell(&Interest::AllNamed { hub: world.hubs });
    world.round();
    assert_eq!(world.hub.offset(), 1, "all have named their cells");
    // The other one names nothing: it is rung for everything.
    world.succeed();
    world.workers[0].publish("b", b"two");
    assert!(world.round().waits);
    world.now += NAMING_MS;
    let round = world.round();
    assert_eq!(round.to_ring.into_iter().collect::<Vec<_>>(), [0, 1]);
    assert_eq!(world.hub.offset(), 2);
}

#[test]
fn a_request_that_two_hubs_died_on_is_left_out() {
    let mut world = world(1 << 20, 1);
    world.workers[0].publish("a", b"poison");
    world.workers[0].publish("a", b"next");
    for _ in 0..DEATHS_MAX {
        // As if it died at once.
        world.succeed();
        world.workers[0].life.begin_work(1, true);
    }
    world.workers[0].tell(&Interest::AllNamed { hub: world.hubs });
    assert_eq!(world.round().skipped, 1);
    let published = Answer::Published { number: 2, offset: 1, subscribers: 0 };
    let answers = world.workers[0].answers();
    assert_eq!(answers[1..], [Answer::Skipped { number: 1 }, published]);
    assert_eq!(world.records(), [b"next"]);
}

#[test]
fn a_successor_answers_with_the_offset_of_the_message_whatever_came_behind_it() {
    let mut world = world(1 << 20, 2);
    world.workers[0].publish("a", b"mine");
    let mut bytes = Vec::new();
    assert!(world.workers[0].life.publish().consumer().next(&mut bytes).unwrap());
    let request = Request::read(&bytes).unwrap();
    let mut record = Vec::new();
    Record { life: 0, concerned: 0, subscribers: 9, request }.write(&mut record);
    world.ring.broadcast().writer().unwrap().write(&record);
    world.succeed();
    for worker in &world.workers {
        worker.tell(&Interest::AllNamed { hub: world.hubs });
    }
    for _ in 0..3 {
        world.workers[1].publish("b", b"other");
    }
    for _ in 0..4 {
        world.round();
    }
    let published = Answer::Published { number: 1, offset: 1, subscribers: 9 };
    assert_eq!(world.workers[0].answers()[1..], [published]);
    assert_eq!(world.hub.offset(), 4);
}

#[test]
fn nobody_waits_for_a_worker_that_is_new() {
    let mut world = world(1 << 16, 1);
    for _ in 0..60 {
        world.workers[0].publish("x", &[0; 1000]);
        while world.round().is_more {}
        world.workers[0].answers();
        world.read_all(0);
    }
    let life = Life::map(&Life::create().unwrap()).unwrap();
    world.hub.attach(1, 1, life.clone());
    world.workers.push(Worker { id: 1, life, number: 0 });
    for _ in 0..10 {
        world.workers[0].publish("x", b"");
    }
    let before = world.hub.offset();
    assert!(!world.round().waits);
    assert_eq!(world.hub.offset(), before + 10);
}

#[test]
fn those_who_publish_share_what_a_slow_worker_frees() {
    let mut world = world(1 << 20, 4);
    world.workers[3].add(0, "a", 1);
    world.round();
    world.workers[3].answers();
    let mut reader = world.ring.broadcast().reader().unwrap();
    let (mut published, mut bytes) = ([0_u32; 3], Vec::new());
    for _ in 0..1000 {
        for worker in 0..3 {
            while world.workers[worker].publish("a", &[0; 1000]) {}
        }
        world.round();
        for worker in 0..3 {
            world.workers[worker].answers();
        }
        for _ in 0..20 {
            if reader.next(&mut bytes).unwrap() == chappe_rings::Found::Record {
                let life = Record::read(&bytes).unwrap().life;
                published[usize::try_from(life).unwrap()] += 1;
            }
        }
        world.workers[3].life.note_read(reader.position());
        world.workers[3].life.note_progress();
    }
    let (least, most) = (published.iter().min().unwrap(), published.iter().max().unwrap());
    assert!(most / 3 < *least, "{published:?}");
}

#[test]
fn what_another_hub_has_asked_for_says_nothing() {
    let mut world = world(1 << 20, 1);
    world.succeed();
    world.round();
    world.workers[0].add(0, "a", 1);
    // The second hub has taken the cell, and dies before what is behind it.
    world.round();
    world.workers[0].tell(&Interest::AllNamed { hub: 2 });
    world.succeed();
    world.workers[0].publish("a", b"");
    assert!(world.round().waits, "for the names");
    world.workers[0].add(0, "a", 1);
    world.workers[0].tell(&Interest::AllNamed { hub: 3 });
    world.round();
    let published = Answer::Published { number: 1, offset: 1, subscribers: 1 };
    assert_eq!(world.workers[0].answers().last(), Some(&published));
}

#[test]
fn a_request_is_not_left_out_for_hubs_that_died_elsewhere() {
    let mut world = world(1 << 20, 1);
    world.workers[0].publish("a", b"innocent");
    world.workers[0].life.begin_work(1, true);
    // One has died on it, and these two before they took anything.
    world.succeed();
    world.succeed();
    world.workers[0].tell(&Interest::AllNamed { hub: 3 });
    assert_eq!(world.round().skipped, 0);
    assert_eq!(world.records(), [b"innocent"]);
}

#[test]
fn workers_that_stand_still_do_so_side_by_side() {
    let mut world = world(1 << 16, 9);
    for worker in 0..8 {
        world.workers[worker].add(0, "a", 1);
    }
    world.round();
    let mut waited = 0;
    for _ in 0..1000 {
        world.workers[8].publish("a", &[0; 1000]);
        let round = world.round();
        waited += u64::from(round.waits && round.published == 0);
        world.workers[8].answers();
        world.read_all(8);
    }
    assert!(waited <= STANDSTILL_MS + 1, "{waited} ms");
}

#[test]
fn nobody_waits_for_the_names_of_a_dead_worker() {
    let mut world = world(1 << 20, 2);
    world.succeed();
    world.hub.end(1);
    world.workers[0].tell(&Interest::AllNamed { hub: 2 });
    world.workers[1].publish("a", b"left");
    world.round();
    let round = world.round();
    assert_eq!((world.hub.offset(), round.waits, round.over), (1, false, vec![1]));
}

#[test]
fn a_worker_that_makes_progress_is_waited_for_concerned_or_not() {
    let mut world = world(1 << 16, 2);
    for _ in 0..200 {
        world.workers[1].publish("a", &[0; 1000]);
    }
    for _ in 0..100 {
        world.workers[0].life.note_progress();
        world.round();
    }
    let position = world.ring.broadcast().writer().unwrap().position();
    let words = world.ring.broadcast().words() as u64;
    assert!(position > words / 2, "half of it is free to who is not concerned");
    assert!(position < words, "{position} of {words}");
}
