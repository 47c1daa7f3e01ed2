//! Subscriptions that go on where another one has ended.

use super::*;

#[test]
fn what_was_missed_comes_with_the_confirmation() {
    let mut world = world(1 << 16, 100);
    for topic in ["a", "b", "ab", "a"] {
        world.workers[0].publish(1, topic, b"");
    }
    world.settle();
    let worker = &mut world.workers[0];
    worker.resume(2, 1, &filter("a*"));
    world.settle();
    world.workers[0].publish(1, "a", b"");
    world.settle();
    // The other subscription has them; it adds none, but what it knows more of.
    world.workers[0].resume(2, 0, &filter("a"));
    world.settle();
    let resumed = |text, from, missed: &[u64], offset| Seen::Resumed {
        filter: filter(text),
        from,
        missed: missed.to_vec(),
        offset,
    };
    let message = Seen::Message { lost: 0, offset: 5, topic: "a".into() };
    let expected = [resumed("a*", 1, &[3, 4], 4), message, resumed("a", 0, &[1], 5)];
    assert_eq!(world.workers[0].log.seen[&2], expected);
}

#[test]
fn one_that_is_ahead_of_its_worker_goes_on_where_it_is() {
    let mut world = world(1 << 16, 100);
    world.workers[0].wish(1, subscribe(filter("a")), &filter("a"));
    world.settle();
    // It has got them from another worker, which is faster.
    for topic in ["a", "b", "a"] {
        world.workers[1].publish(9, topic, b"");
    }
    while world.hub.offset() < 3 {
        world.round();
    }
    world.workers[0].resume(2, 3, &filter("a"));
    assert_eq!(world.workers[0].log.seen.get(&2), None, "not yet");
    world.workers[0].look();
    let resumed = Seen::Resumed { filter: filter("a"), from: 3, missed: Vec::new(), offset: 3 };
    assert_eq!(world.workers[0].log.seen[&2], [resumed]);
    world.workers[1].publish(9, "a", b"");
    world.settle();
    assert_eq!(world.workers[0].log.seen[&2].len(), 2);
}

#[test]
fn a_subscription_begins_as_soon_as_its_worker_has_read_up_to_it() {
    let mut world = world(1 << 16, 100);
    world.settle();
    for _ in 0..3 {
        world.workers[1].publish(9, "b", b"");
    }
    while world.hub.offset() < 3 {
        world.round();
    }
    let worker = &mut world.workers[0];
    worker.inlet.wish(1, &1, subscribe(filter("a")), filter("a"), &mut worker.log);
    worker.inlet.tell(&mut worker.log);
    // The hub says that it knows the name, behind three messages for nobody here.
    world.round();
    world.workers[0].look();
    let on = Seen::On { filter: filter("a"), offset: 3 };
    assert_eq!(world.workers[0].log.seen[&1], [on]);
}

#[test]
fn nothing_is_resumed_in_part() {
    let mut world = world(1 << 16, 100);
    let publish = |world: &mut World, count: usize, topic| {
        for _ in 0..count {
            world.workers[0].publish(1, topic, &[7; 900]);
            world.settle();
        }
    };
    let seen = |world: &mut World, of: u64, from, text: &str| {
        world.workers[0].log.seen.remove(&of);
        world.workers[0].resume(of, from, &filter(text));
        world.settle();
        world.workers[0].log.resumes.remove(&of);
        world.workers[0].log.seen.remove(&of).unwrap()
    };
    publish(&mut world, 12, "a");
    // Too much, then as much as may be, then from an offset that is still to come, then from a lap ago.
    assert!(matches!(&seen(&mut world, 2, 0, "a")[..], [Seen::On { offset: 12, .. }]));
    let [Seen::Resumed { missed, .. }] = &seen(&mut world, 3, 2, "a")[..] else {
        panic!("resumed")
    };
    assert_eq!(missed.len(), 10);
    assert!(matches!(&seen(&mut world, 4, 13, "a")[..], [Seen::On { offset: 12, .. }]));
    assert!(matches!(&seen(&mut world, 5, u64::MAX, "a")[..], [Seen::On { offset: 12, .. }]));
    let [Seen::Resumed { missed, .. }] = &seen(&mut world, 6, 12, "a")[..] else {
        panic!("resumed")
    };
    assert!(missed.is_empty());
    publish(&mut world, 80, "b");
    assert!(matches!(&seen(&mut world, 7, 3, "c")[..], [Seen::On { offset: 92, .. }]));
    let [Seen::Resumed { missed, .. }] = &seen(&mut world, 8, 90, "b")[..] else {
        panic!("resumed")
    };
    assert_eq!(missed[..], [91, 92]);
}

#[test]
fn all_who_resume_together_share_the_bytes_that_there_are() {
    let mut world = world(1 << 16, 100);
    for _ in 0..9 {
        world.workers[0].publish(1, "a", &[7; 900]);
    }
    world.settle();
    for of in 2..6 {
        world.workers[0].resume(of, 0, &filter("a"));
    }
    world.settle();
    let log = &world.workers[0].log;
    let whole = (2..6).filter(|of| matches!(log.seen[of][..], [Seen::Resumed { .. }])).count();
    assert_eq!(whole, 2, "two of 8400 bytes fit into 20000");
    for of in 2..6 {
        if let [Seen::Resumed { missed, .. }] = &log.seen[&of][..] {
            assert_eq!(missed.len(), 9);
        }
    }
}

#[test]
fn a_look_that_leaves_something_to_be_looked_up_says_so() {
    let mut world = world(1 << 16, 100);
    world.workers[0].publish(1, "a", b"");
    world.settle();
    world.workers[0].resume(2, 0, &filter("a"));
    world.workers[0].look();
    world.round();
    let worker = &mut world.workers[0];
    while worker.look() {}
    assert!(matches!(&worker.log.seen[&2][..], [Seen::Resumed { .. }]));
}
