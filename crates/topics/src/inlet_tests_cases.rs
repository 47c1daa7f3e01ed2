//! One thing after the other.

use super::*;

#[test]
fn a_publisher_has_its_answer_before_its_own_message() {
    let mut world = world(1 << 16, 100);
    world.workers[0].wish(1, subscribe(filter("a")), &filter("a"));
    world.settle();
    world.workers[0].publish(1, "a", b"");
    world.round();
    // The answer is there; the message alone would be seen by a look that finds no answer.
    world.workers[0].look();
    let seen = &world.workers[0].log.seen[&1];
    let message = Seen::Message { lost: 0, offset: 1, topic: "a".into() };
    assert_eq!(seen[1..], [Seen::Published { offset: 1, subscribers: 1 }, message]);
}

#[test]
fn a_message_without_its_answer_is_held() {
    let mut world = world(1 << 16, 100);
    world.workers[0].wish(1, subscribe(filter("a")), &filter("a"));
    world.settle();
    world.workers[0].publish(1, "a", b"");
    // As if the hub had died behind the message.
    let mut bytes = Vec::new();
    assert!(world.workers[0].life.publish().consumer().next(&mut bytes).unwrap());
    let request = crate::record::Request::read(&bytes).unwrap();
    let mut record = Vec::new();
    Record { life: 0, concerned: 1, subscribers: 1, request }.write(&mut record);
    world.ring.broadcast().writer().unwrap().write(&record);
    assert!(!world.workers[0].look());
    assert_eq!(world.workers[0].log.seen[&1].len(), 1, "only the confirmation");
    world.succeed();
    world.settle();
    let seen = &world.workers[0].log.seen[&1];
    let message = Seen::Message { lost: 0, offset: 1, topic: "a".into() };
    assert_eq!(seen[1..], [Seen::Published { offset: 1, subscribers: 1 }, message]);
}

#[test]
fn who_was_lapped_is_told_how_much_was_lost_once_and_each() {
    let mut world = world(1 << 14, 100);
    for of in [1, 2] {
        world.workers[0].wish(of, subscribe(filter("a")), &filter("a"));
    }
    world.settle();
    let mut published = 0;
    for _ in 0..40 {
        world.workers[1].publish(9, "a", &[0; 500]);
        published += 1;
        // It makes no progress for long enough.
        world.now += 1000;
        while world.hub.offset() < published {
            world.round();
        }
        world.workers[1].look();
    }
    world.settle();
    for of in [1, 2] {
        let seen = &world.workers[0].log.seen[&of];
        assert_eq!(seen.len(), 1, "all was lost, and nothing came behind it: {seen:?}");
    }
    world.workers[0].wish(3, subscribe(filter("a")), &filter("a"));
    world.workers[1].publish(9, "a", b"");
    world.settle();
    let message = |lost| Seen::Message { lost, offset: published + 1, topic: "a".into() };
    for (of, lost) in [(1, published), (2, published), (3, 0)] {
        assert_eq!(world.workers[0].log.seen[&of][1..], [message(lost)]);
    }
}

#[test]
fn many_subscribers_are_served_in_shares_and_wishes_wait() {
    let mut world = world(1 << 16, 100);
    for of in 0..200 {
        world.workers[0].wish(of, subscribe(filter("a")), &filter("a"));
    }
    world.settle();
    world.workers[0].publish(9, "a", b"");
    world.round();
    let mut looks = 0;
    while world.workers[0].look() {
        looks += 1;
        let is_message = |seen: &Seen| matches!(seen, Seen::Message { .. });
        let seen = world.workers[0].log.seen.values();
        let got = seen.filter(|seen| seen.iter().any(is_message)).count();
        assert!(got <= looks * DELIVERIES_A_LOOK, "{got} after {looks} looks");
        assert_eq!(world.workers[0].inlet.is_delivering(), got < 200);
    }
    let got = |of| world.workers[0].log.seen[&of].len();
    assert_eq!((0..200).map(got).filter(|&count| count >= 2).count(), 200);
}

#[test]
fn what_finds_no_room_waits_in_the_worker_and_is_published_in_order() {
    let mut world = world(1 << 22, 100);
    let mut submitted = 0;
    while world.workers[0].publish(1, "a", &[0; 10_000]) != Submitted::Spilled {
        submitted += 1;
    }
    assert_eq!(world.workers[0].outlet.spilled(), 1);
    let message = Message { code: 0, topic: Topic::new(b"a").unwrap(), body: b"" };
    assert_eq!(world.workers[0].outlet.publish(message, || {}), Err(crate::outlet::Full));
    assert_eq!(world.workers[0].publish(1, "a", b"last"), Submitted::Spilled, "behind it");
    world.settle();
    assert_eq!(world.workers[0].outlet.spilled(), 0);
    let offsets = world.workers[0].log.seen[&1].iter().map(|seen| match seen {
        Seen::Published { offset, .. } => *offset,
        other => panic!("{other:?}"),
    });
    assert_eq!(offsets.collect::<Vec<_>>(), (1..=submitted + 2).collect::<Vec<_>>());
    assert!(world.workers[0].outlet.publish(message, || {}).is_ok());
}

#[test]
fn what_a_subscriber_does_not_take_it_is_told_of_later() {
    let mut world = world(1 << 16, 100);
    world.workers[0].wish(1, subscribe(filter("a")), &filter("a"));
    world.settle();
    world.workers[0].log.refuses = 1;
    for _ in 0..2 {
        world.workers[1].publish(9, "a", b"");
        world.settle();
    }
    let message = Seen::Message { lost: 1, offset: 2, topic: "a".into() };
    assert_eq!(world.workers[0].log.seen[&1][1..], [message]);
}

/// Publishes without an answer, and returns the mark behind it.
fn publish_for_the_service(worker: &Worker, topic: &str) -> Mark {
    let message = Message { code: 16, topic: Topic::new(topic.as_bytes()).unwrap(), body: b"" };
    worker.outlet.publish(message, || {}).unwrap();
    worker.outlet.mark()
}

#[test]
fn a_mark_is_passed_when_all_in_front_of_it_is_delivered() {
    let mut world = world(1 << 16, 100);
    world.workers[0].wish(1, subscribe(filter("a")), &filter("a"));
    world.settle();
    assert!(world.workers[0].inlet.has_passed(&mut world.workers[0].outlet.mark()), "at rest");
    // Also what is for nobody here, so that nobody else would call the worker.
    for topic in ["a", "nobody"] {
        let mut mark = publish_for_the_service(&world.workers[0], topic);
        world.workers[0].look();
        assert!(!world.workers[0].inlet.has_passed(&mut mark), "the hub does not have it");
        world.now += 50;
        let round = world.hub.round(world.now);
        assert!(round.to_ring.contains(&0), "its worker waits for that");
        assert!(!world.workers[0].inlet.has_passed(&mut mark), "it is not read");
        world.workers[0].look();
        assert!(world.workers[0].inlet.has_passed(&mut mark));
        assert_eq!(world.workers[0].log.seen[&1].len(), 2, "its confirmation, and one message");
    }
}

#[test]
fn a_mark_is_passed_under_a_new_hub_and_by_a_worker_that_was_lapped() {
    let mut world = world(1 << 14, 100);
    world.settle();
    let mut mark = publish_for_the_service(&world.workers[0], "a");
    assert!(!world.workers[0].inlet.has_passed(&mut mark));
    world.succeed();
    let mut published = 1;
    while published <= 40 {
        world.now += 1000;
        world.round();
        if world.hub.offset() == published {
            world.workers[1].publish(9, "a", &[0; 500]);
            published += 1;
        }
        world.workers[1].look();
    }
    while !world.workers[0].inlet.has_passed(&mut mark) {
        assert!(world.workers[0].inlet.has_news(), "it is called until it has");
        world.workers[0].look();
    }
    assert!(world.workers[0].log.lapped > 0);
}

/// Worker 1 publishes, and worker 0 has not looked yet.
fn publish_before_a_look(world: &mut World, topics: &[&str]) {
    for topic in topics {
        world.workers[1].publish(9, topic, topic.as_bytes());
    }
    let offset = world.hub.offset() + topics.len() as u64;
    while world.hub.offset() < offset {
        world.round();
    }
}

/// Offsets and topics of the messages that a connection of worker 0 has got.
fn heard(world: &World, of: Connection) -> Vec<(u64, u64, String)> {
    let seen = world.workers[0].log.seen[&of].iter();
    let message = |seen: &Seen| match seen {
        Seen::Message { lost, offset, topic } => Some((*lost, *offset, topic.clone())),
        _ => None,
    };
    seen.filter_map(message).collect()
}

#[test]
fn what_waits_of_a_topic_goes_together() {
    let mut world = world(1 << 16, 100);
    for (of, text) in [(1, "a"), (2, "a"), (3, "b")] {
        world.workers[0].wish(of, subscribe(filter(text)), &filter(text));
    }
    world.settle();
    publish_before_a_look(&mut world, &["a", "a", "a", "b", "b", "a", "ab", "a"]);
    assert!(!world.workers[0].look());
    // Nobody here subscribes to what is between the last two.
    assert_eq!(world.workers[0].log.together, [3, 3, 2, 2, 2]);
    let message = |offset: u64, topic: &str| (0, offset, topic.to_owned());
    let of_a = [1, 2, 3, 6, 8].map(|offset| message(offset, "a"));
    assert_eq!((heard(&world, 1), heard(&world, 2)), (of_a.to_vec(), of_a.to_vec()));
    assert_eq!(heard(&world, 3), [4, 5].map(|offset| message(offset, "b")));
}

#[test]
fn what_two_subscriptions_match_goes_alone() {
    let mut world = world(1 << 16, 100);
    for text in ["a", "a*"] {
        let wish = Wish::Subscribe { filter: filter(text), flags: Some(EACH), resume: None };
        world.workers[0].wish(1, wish, &filter(text));
    }
    world.settle();
    publish_before_a_look(&mut world, &["a", "a", "ab", "ab"]);
    while world.workers[0].look() {}
    // One that gets each message for each of them gets them message for message.
    assert_eq!(world.workers[0].log.together, [1, 1, 1, 1, 2]);
    let offsets = heard(&world, 1).iter().map(|(_, offset, _)| *offset).collect::<Vec<_>>();
    assert_eq!(offsets, [1, 1, 2, 2, 3, 4]);
}

#[test]
fn all_that_was_not_taken_is_lost() {
    let mut world = world(1 << 16, 100);
    world.workers[0].wish(1, subscribe(filter("a")), &filter("a"));
    world.settle();
    world.workers[0].log.refuses = 1;
    publish_before_a_look(&mut world, &["a", "a", "a"]);
    world.workers[0].look();
    publish_before_a_look(&mut world, &["a"]);
    world.workers[0].look();
    assert_eq!(world.workers[0].log.together, [3, 1]);
    assert_eq!(heard(&world, 1), [(3, 4, "a".to_owned())]);
}

#[test]
fn what_goes_together_is_bounded() {
    let mut world = world(1 << 20, 100);
    world.workers[0].wish(1, subscribe(filter("a")), &filter("a"));
    world.settle();
    publish_before_a_look(&mut world, &["a"; 200]);
    while world.workers[0].look() {}
    let together = &world.workers[0].log.together;
    // A part of what may be missed: REPLAYS.each_bytes / 8.
    let record = crate::record::RECORD_BYTES + crate::record::REQUEST_BYTES + 2;
    assert_eq!(*together.iter().max().unwrap(), REPLAYS.each_bytes / 8 / record);
    assert_eq!(heard(&world, 1).len(), 200);
}

#[test]
fn a_name_that_the_hub_refuses_is_refused() {
    let mut world = world(1 << 16, 1);
    // What is named before a worker has named all is let in.
    world.settle();
    for text in ["a", "b"] {
        world.workers[0].wish(1, subscribe(filter(text)), &filter(text));
    }
    world.settle();
    let on = Seen::On { filter: filter("a"), offset: 0 };
    let seen = &world.workers[0].log.seen[&1];
    assert!(seen.len() == 2 && seen.contains(&on) && seen.contains(&Seen::Refused(filter("b"))));
}

/// A request of worker 0 is in the log, and its hub dies before the answer.
fn die_behind_the_message(world: &mut World, topic: &str) {
    world.workers[0].publish(9, topic, b"");
    let mut bytes = Vec::new();
    assert!(world.workers[0].life.publish().consumer().next(&mut bytes).unwrap());
    let request = crate::record::Request::read(&bytes).unwrap();
    let mut record = Vec::new();
    Record { life: 0, concerned: 1, subscribers: 1, request }.write(&mut record);
    world.ring.broadcast().writer().unwrap().write(&record);
}

#[test]
fn who_subscribes_while_a_message_is_held_gets_it() {
    let mut world = world(1 << 16, 100);
    // Both names are known, and the connection is not new.
    world.workers[0].wish(1, subscribe(filter("b")), &filter("b"));
    world.workers[0].wish(2, subscribe(filter("a")), &filter("a"));
    world.settle();
    die_behind_the_message(&mut world, "a");
    world.workers[0].look();
    world.workers[0].wish(1, subscribe(filter("a")), &filter("a"));
    world.succeed();
    world.settle();
    let message = Seen::Message { lost: 0, offset: 1, topic: "a".into() };
    let on = Seen::On { filter: filter("a"), offset: 0 };
    assert_eq!(world.workers[0].log.seen[&1][1..], [on, message]);
}

#[test]
fn a_worker_that_holds_a_message_and_its_hub_do_not_wait_for_each_other() {
    let mut world = world(1 << 16, 100);
    world.workers[0].wish(1, subscribe(filter("a")), &filter("a"));
    world.settle();
    die_behind_the_message(&mut world, "a");
    for _ in 0..60 {
        world.workers[1].publish(8, "a", &[0; 1000]);
    }
    world.succeed();
    world.settle();
    assert_eq!(world.hub.offset(), 61);
    assert_eq!(world.workers[0].log.seen[&9].len(), 1);
    assert_eq!(world.workers[1].log.seen[&8].len(), 60);
}

#[test]
fn wishes_have_their_turn_under_a_backlog() {
    let mut world = world(1 << 16, 100);
    for of in 0..100 {
        world.workers[0].wish(of, subscribe(filter("a")), &filter("a"));
    }
    world.settle();
    let mut turns = 0;
    for _ in 0..1000 {
        // More than a look delivers.
        for _ in 0..2 {
            world.workers[1].publish(9, "a", &[0; 100]);
        }
        world.round();
        world.workers[1].look();
        world.workers[0].look();
        turns += u32::from(!world.workers[0].inlet.is_delivering());
    }
    assert!(turns > 100, "{turns} of 1000");
}

#[test]
fn a_look_reads_a_bounded_part_of_the_ring() {
    let mut world = world(1 << 20, 100);
    world.settle();
    let count = 3 * DELIVERIES_A_LOOK as u64;
    for _ in 0..count {
        world.workers[1].publish(9, "a", b"");
    }
    while world.hub.offset() < count {
        world.round();
    }
    assert!(world.workers[0].look());
    assert_eq!(world.workers[0].inlet.reader.offset(), DELIVERIES_A_LOOK as u64);
}

#[test]
fn what_a_subscriber_missed_before_its_confirmation_is_no_loss() {
    let mut world = world(1 << 14, 100);
    world.settle();
    world.workers[0].wish(1, subscribe(filter("a")), &filter("a"));
    // Not told yet, and the ring goes round.
    for count in 1..=40 {
        world.workers[1].publish(9, "b", &[0; 500]);
        while world.hub.offset() < count {
            world.now += STANDSTILL_MS;
            world.round();
        }
        world.workers[1].look();
    }
    world.settle();
    world.workers[1].publish(9, "a", b"");
    world.settle();
    let message = Seen::Message { lost: 0, offset: 41, topic: "a".into() };
    let on = Seen::On { filter: filter("a"), offset: 40 };
    assert_eq!(world.workers[0].log.seen[&1], [on, message]);
    assert_eq!(world.workers[0].log.lapped, 40);
}

const STANDSTILL_MS: u64 = 200;

#[test]
fn what_was_confirmed_goes_on_with_a_hub_that_takes_fewer_names() {
    let mut world = world(1 << 16, 100);
    for text in ["a", "b"] {
        world.workers[0].wish(1, subscribe(filter(text)), &filter(text));
    }
    world.settle();
    world.succeed();
    world.hub.set_limits(limits_of(1));
    world.settle();
    for text in ["a", "b"] {
        world.workers[1].publish(9, text, b"");
    }
    world.settle();
    let answers = [1, 2].map(|offset| Seen::Published { offset, subscribers: 1 });
    assert_eq!(world.workers[1].log.seen[&9], answers);
    assert_eq!(world.workers[0].log.seen[&1].len(), 4);
}

#[test]
fn nothing_waits_for_room_that_may_not() {
    let mut world = world(1 << 20, 100);
    let outlet = Arc::clone(&world.workers[0].outlet);
    let message = Message { code: 0, topic: Topic::new(b"a").unwrap(), body: &[0; 10_000] };
    let mut allowed = 3;
    let mut spilled = 0;
    loop {
        let may_wait = |_: &mut u64| {
            allowed -= 1;
            allowed >= 0
        };
        match outlet.submit(message, true, 1, may_wait, || {}) {
            Submitted::Awaited => assert_eq!(spilled, 0, "in order"),
            Submitted::Spilled => spilled += 1,
            refused => {
                assert_eq!(refused, Submitted::Refused(1));
                break;
            }
        }
    }
    assert_eq!((spilled, outlet.spilled()), (3, 3));
    world.settle();
    assert_eq!(outlet.spilled(), 0);
}
