use super::*;
use chappe_sys::SharedFile;

const WORDS: usize = 16;

fn queue() -> Queue {
    let file = SharedFile::create("test", 8192).expect("memory");
    Queue::new(file.map(0).expect("cursors"), file.map_array(4096, WORDS).expect("words"))
}

/// Everything that is there, taken.
fn drain(consumer: &mut Consumer) -> Vec<Vec<u8>> {
    let (mut all, mut record) = (Vec::new(), Vec::new());
    while consumer.next(&mut record).expect("it is sound") {
        all.push(record.clone());
        _ = consumer.advance();
    }
    all
}

#[test]
fn records_of_each_length_come_out_as_they_went_in() {
    let queue = queue();
    let (mut producer, mut consumer) = (queue.producer(), queue.consumer());
    let bytes: Vec<u8> = (0..120).collect();
    for _ in 0..3 {
        for length in 0..=queue.record_bytes_max() {
            producer.push(&bytes[..length]).unwrap();
            assert_eq!(drain(&mut consumer), [bytes[..length].to_vec()]);
        }
    }
}

#[test]
fn a_record_stays_until_it_is_taken_and_who_comes_next_finds_it() {
    let queue = queue();
    queue.producer().push(b"one").unwrap();
    queue.producer().push(b"two").unwrap();
    let mut record = Vec::new();
    for _ in 0..3 {
        assert!(queue.consumer().next(&mut record).unwrap());
        assert_eq!(record, b"one");
    }
    let mut consumer = queue.consumer();
    assert!(consumer.next(&mut record).unwrap());
    assert!(!consumer.advance(), "nobody waits for room");
    assert_eq!(drain(&mut queue.consumer()), [b"two"]);
    assert!(!queue.consumer().next(&mut record).unwrap());
}

#[test]
fn a_full_queue_refuses_and_the_room_that_comes_is_reported_once() {
    let queue = queue();
    let (mut producer, mut consumer) = (queue.producer(), queue.consumer());
    for _ in 0..WORDS / 2 {
        producer.push(&[1; 8]).unwrap();
    }
    assert_eq!((producer.push(&[]), producer.push(&[])), (Err(Full), Err(Full)));
    let mut record = Vec::new();
    assert!(consumer.next(&mut record).unwrap());
    assert!(consumer.advance());
    assert!(consumer.next(&mut record).unwrap());
    assert!(!consumer.advance(), "it was called");
    producer.push(&[9; 24]).unwrap();
    assert_eq!(producer.push(&[]), Err(Full));
    let all = drain(&mut consumer);
    assert_eq!(all.len(), WORDS / 2 - 1);
    assert_eq!(all.last().unwrap(), &[9; 24]);
}

#[test]
#[should_panic(expected = "121 bytes do not fit into the queue")]
fn one_byte_more_than_fits_is_a_fault_of_ours() {
    let queue = queue();
    assert_eq!(queue.record_bytes_max(), 120);
    _ = queue.producer().push(&[0; 121]);
}

/// A worker that was taken over can write anything into its own queue.
#[test]
fn lengths_and_cursors_that_cannot_be_are_reported() {
    let doctored = |change: fn(&Queue)| {
        let queue = queue();
        queue.producer().push(&[7; 20]).unwrap();
        change(&queue);
        queue.consumer().next(&mut Vec::new())
    };
    let of_length = Err(Corrupt { what: "the length of a record" });
    assert_eq!(doctored(|queue| queue.words[0].store(24, Ordering::Relaxed)), Ok(true));
    assert_eq!(doctored(|queue| queue.words[0].store(25, Ordering::Relaxed)), of_length);
    assert_eq!(doctored(|queue| queue.words[0].store(u64::MAX, Ordering::Relaxed)), of_length);
    let of_tail = Err(Corrupt { what: "a queue's tail and its head" });
    assert_eq!(doctored(|queue| queue.cursors.tail.store(16, Ordering::Relaxed)), Ok(true));
    assert_eq!(doctored(|queue| queue.cursors.tail.store(17, Ordering::Relaxed)), of_tail);
    assert_eq!(doctored(|queue| queue.cursors.tail.store(u64::MAX, Ordering::Relaxed)), of_tail);
    // The other way round: what the consumer is to have taken.
    for head in [5, u64::MAX, 1 << 63] {
        let queue = queue();
        queue.cursors.head.store(head, Ordering::Relaxed);
        assert_eq!(queue.producer().push(&[1]), Err(Full), "head {head}");
    }
}
