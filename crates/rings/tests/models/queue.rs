//! The queue: nothing is lost, nothing comes twice, and a producer that waits for room is called.

use super::{Semaphore, check, words};
use chappe_rings::sync::{AtomicU64, Ordering, die_at, survives};
use chappe_rings::{Bell, Full, Queue, QueueCursors};
use loom::thread;
use std::sync::Arc;

/// Two words: a record of one byte fills it.
fn tight() -> Queue {
    Queue::new(Arc::new(QueueCursors::default()), words(2))
}

/// A record that is visible is whole.
#[test]
fn what_the_consumer_sees_is_whole() {
    check(3, || {
        let queue = Queue::new(Arc::new(QueueCursors::default()), words(4));
        let mut producer = queue.producer();
        let writes = thread::spawn(move || {
            for nth in 1..=2 {
                producer.push(&[nth; 8]).expect("there is room for two");
            }
        });
        let (mut consumer, mut record, mut next) = (queue.consumer(), Vec::new(), 1);
        for _ in 0..3 {
            if consumer.next(&mut record).expect("it is sound") {
                assert_eq!(record, [next; 8]);
                _ = consumer.advance();
                next += 1;
            }
        }
        writes.join().expect("it writes both");
    });
}

/// The place of a record is written over only when it was read.
#[test]
fn a_place_is_used_again_after_it_was_read() {
    check(3, || {
        let queue = tight();
        let mut producer = queue.producer();
        producer.push(&[1; 8]).expect("it is empty");
        let writes = thread::spawn(move || producer.push(&[2; 8]).is_ok());
        let (mut consumer, mut record) = (queue.consumer(), Vec::new());
        assert!(consumer.next(&mut record).expect("it is sound"));
        assert_eq!(record, [1; 8]);
        let waits = consumer.advance();
        let was_written = writes.join().expect("it returns");
        assert!(was_written || waits || consumer.advance(), "it waits, and nobody knows");
    });
}

/// A producer that finds no room and sleeps is woken when there is some.
#[test]
fn who_waits_for_room_is_woken() {
    check(3, || {
        let (queue, semaphore) = (tight(), Semaphore::new());
        let mut producer = queue.producer();
        producer.push(&[1; 8]).expect("it is empty");
        let sleeper = Arc::clone(&semaphore);
        let writes = thread::spawn(move || {
            while producer.push(&[2; 8]) == Err(Full) {
                sleeper.wait();
            }
        });
        let (mut consumer, mut record) = (queue.consumer(), Vec::new());
        assert!(consumer.next(&mut record).expect("it is sound"));
        if consumer.advance() {
            semaphore.post();
        }
        writes.join().expect("it has found room");
        assert!(consumer.next(&mut record).expect("it is sound"));
        assert_eq!(record, [2; 8]);
    });
}

/// A producer that sleeps until its records are taken is woken when they are, and sees what has
/// followed from them.
#[test]
fn who_waits_until_all_is_taken_is_woken() {
    check(3, || {
        let queue = Queue::new(Arc::new(QueueCursors::default()), words(4));
        let (semaphore, done) = (Semaphore::new(), Arc::new(AtomicU64::new(0)));
        let mut producer = queue.producer();
        (1..=2).for_each(|byte| producer.push(&[byte; 8]).expect("there is room for two"));
        let (sleeper, followed) = (Arc::clone(&semaphore), Arc::clone(&done));
        let waits = thread::spawn(move || {
            let all = producer.position();
            while !producer.is_taken(all) {
                sleeper.wait();
            }
            followed.load(Ordering::Relaxed)
        });
        let (mut consumer, mut record) = (queue.consumer(), Vec::new());
        for nth in 1..=2 {
            assert!(consumer.next(&mut record).expect("it is sound"));
            done.store(nth, Ordering::Relaxed);
            if consumer.advance() {
                semaphore.post();
            }
        }
        assert_eq!(waits.join().expect("it was woken"), 2);
    });
}

/// A producer that dies at any step has written all of a record or nothing of it.
#[test]
fn a_producer_that_dies_leaves_whole_records() {
    for nth in 1..=4 {
        check(2, move || {
            let queue = Queue::new(Arc::new(QueueCursors::default()), words(4));
            let mut producer = queue.producer();
            let dies = thread::spawn(move || {
                die_at(nth);
                survives(|| (1..=2).for_each(|byte| producer.push(&[byte; 8]).expect("room")));
            });
            let (mut consumer, mut record, mut next) = (queue.consumer(), Vec::new(), 1);
            for _ in 0..2 {
                if consumer.next(&mut record).expect("it is sound") {
                    assert_eq!(record, [next; 8]);
                    _ = consumer.advance();
                    next += 1;
                }
            }
            dies.join().expect("its death was caught");
            while consumer.next(&mut record).expect("it is sound") {
                assert_eq!(record, [next; 8]);
                _ = consumer.advance();
                next += 1;
            }
            // The next one goes on there.
            let visible = (u32::from(next) - 1).min(1);
            assert_eq!(visible, u32::from(nth > 2), "one is visible if it died in the second");
            queue.producer().push(&[9; 8]).expect("all was taken");
            assert!(consumer.next(&mut record).expect("it is sound"));
            assert_eq!(record, [9; 8]);
        });
    }
}

/// A consumer that dies before it has taken a record leaves it to the next one. The next
/// one calls the producer, which may wait for room that is there already.
#[test]
fn a_consumer_that_dies_takes_nothing_with_it() {
    for nth in 1..=2 {
        check(2, move || {
            let (queue, semaphore) = (tight(), Semaphore::new());
            let mut producer = queue.producer();
            producer.push(&[1; 8]).expect("it is empty");
            let sleeper = Arc::clone(&semaphore);
            let writes = thread::spawn(move || {
                while producer.push(&[2; 8]) == Err(Full) {
                    sleeper.wait();
                }
            });
            let mut consumer = queue.consumer();
            let mut record = Vec::new();
            die_at(nth);
            let lives = survives(|| {
                assert!(consumer.next(&mut record).expect("it is sound"));
                _ = consumer.advance();
            });
            assert!(!lives);
            // Of a death everybody is told.
            semaphore.post();
            let mut consumer = queue.consumer();
            let mut found = Vec::new();
            while found.last() != Some(&2) {
                if consumer.next(&mut record).expect("it is sound") {
                    found.push(record[0]);
                    if consumer.advance() {
                        semaphore.post();
                    }
                } else {
                    thread::yield_now();
                }
            }
            writes.join().expect("it has found room");
            let expected: &[u8] = if nth == 1 { &[1, 2] } else { &[2] };
            assert_eq!(found, expected);
        });
    }
}

/// Records, a bell and a semaphore together, as a worker and the hub use them: a consumer
/// that sleeps has read everything.
#[test]
fn a_rung_consumer_reads_everything() {
    check(2, || {
        let queue = Queue::new(Arc::new(QueueCursors::default()), words(4));
        let (bell, semaphore) = (Arc::new(Bell::default()), Semaphore::new());
        let (its_bell, its_semaphore) = (Arc::clone(&bell), Arc::clone(&semaphore));
        let mut producer = queue.producer();
        let writes = thread::spawn(move || {
            for nth in 1..=2 {
                producer.push(&[nth; 8]).expect("there is room for two");
                its_bell.ring(|| its_semaphore.post());
            }
        });
        let (mut consumer, mut record, mut last) = (queue.consumer(), Vec::new(), 0);
        while last != 2 {
            semaphore.wait();
            bell.hear();
            while consumer.next(&mut record).expect("it is sound") {
                last = record[0];
                _ = consumer.advance();
            }
        }
        writes.join().expect("it returns");
    });
}
