//! The broadcast ring: a reader believes no word of another lap, and a successor goes on.

use super::{check, words};
use chappe_rings::sync::{die_at, survives};
use chappe_rings::{Broadcast, BroadcastCursors, Found, Reader};
use loom::thread;
use std::sync::Arc;

/// Eight words: two records of a word each.
fn tight() -> Broadcast {
    Broadcast::new(Arc::new(BroadcastCursors::default()), words(8))
}

/// What the record of an offset says.
fn text(offset: u64) -> [u8; 8] {
    [u8::try_from(offset).expect("few records"); 8]
}

/// One look: what is believed is right, whatever was lost.
fn look(reader: &mut Reader) -> Found {
    let mut record = Vec::new();
    let before = reader.offset();
    let found = reader.next(&mut record).expect("it is sound");
    match found {
        Found::Record => assert_eq!(record, text(reader.offset()), "of two laps"),
        Found::Lapped(lost) => assert_eq!(before + lost, reader.offset()),
        Found::Nothing => {}
    }
    found
}

/// A writer that goes round while a reader copies.
#[test]
fn a_lapped_reader_believes_nothing() {
    check(2, || {
        let ring = tight();
        let mut reader = ring.reader().expect("it is sound");
        let mut writer = ring.writer().expect("it is sound");
        writer.write(&text(1));
        let writes = thread::spawn(move || {
            for offset in 2..=3 {
                writer.write(&text(offset));
            }
        });
        look(&mut reader);
        writes.join().expect("it never waits");
        while look(&mut reader) != Found::Nothing {}
        assert_eq!(reader.offset(), 3);
    });
}

/// Two readers that share nothing but the ring.
#[test]
fn two_readers_read_the_same() {
    check(2, || {
        let ring = tight();
        let mut writer = ring.writer().expect("it is sound");
        let (mut one, mut two) = (ring.reader().expect("sound"), ring.reader().expect("sound"));
        let writes = thread::spawn(move || {
            writer.write(&text(1));
            writer.write(&text(2));
        });
        let reads = thread::spawn(move || {
            while look(&mut one) == Found::Record {}
            one
        });
        while look(&mut two) == Found::Record {}
        writes.join().expect("it never waits");
        let mut one = reads.join().expect("it returns");
        for reader in [&mut one, &mut two] {
            while look(reader) != Found::Nothing {}
            assert_eq!(reader.offset(), 2);
        }
    });
}

/// One that begins to read while the writer goes round.
#[test]
fn a_new_reader_begins_at_a_record() {
    check(2, || {
        let ring = tight();
        let mut writer = ring.writer().expect("it is sound");
        writer.write(&text(1));
        writer.write(&text(2));
        let writes = thread::spawn(move || {
            writer.write(&text(3));
        });
        let mut reader = ring.reader().expect("it is sound");
        assert!((2..=3).contains(&reader.offset()));
        writes.join().expect("it never waits");
        while look(&mut reader) != Found::Nothing {}
        assert_eq!(reader.offset(), 3);
    });
}

/// A writer dies at each of its steps, and its successor writes on while somebody reads: no
/// offset comes twice, none is left out, and no record is of both.
#[test]
fn a_successor_writes_over_what_was_not_shown() {
    for nth in 1..=8 {
        check(1, move || {
            let ring = tight();
            let mut reader = ring.reader().expect("it is sound");
            let mut writer = ring.writer().expect("it is sound");
            writer.write(&text(1));
            let its_ring = ring.clone();
            let writes = thread::spawn(move || {
                die_at(nth);
                survives(|| (2..=3).for_each(|offset| _ = writer.write(&text(offset))));
                die_at(0);
                let mut successor = its_ring.writer().expect("it is sound");
                assert_eq!(successor.offset(), 1 + u64::from(nth > 4) + u64::from(nth > 8));
                let last = successor.last().expect("it is sound");
                assert_eq!(last.as_deref(), Some(&text(successor.offset())[..]));
                while successor.offset() < 4 {
                    successor.write(&text(successor.offset() + 1));
                }
            });
            look(&mut reader);
            writes.join().expect("its death was caught");
            while look(&mut reader) != Found::Nothing {}
            assert_eq!(reader.offset(), 4);
        });
    }
}

/// A writer dies when it has written a long record over two others, and has shown nothing. Its
/// successor writes a short one there, over the first of the two: the second is no record either.
#[test]
fn a_successor_does_not_take_back_an_intent() {
    check(1, || {
        let ring = Broadcast::new(Arc::new(BroadcastCursors::default()), words(16));
        let mut second = ring.reader().expect("it is sound");
        let mut writer = ring.writer().expect("it is sound");
        writer.write(&[]);
        let mut record = Vec::new();
        assert_eq!(second.next(&mut record), Ok(Found::Record));
        writer.write(&[]);
        writer.write(&[3; 40]);
        die_at(4);
        assert!(!survives(|| _ = writer.write(&[4; 40])), "all is written but the tail");
        ring.writer().expect("it is sound").write(&[]);
        assert_eq!(second.next(&mut record), Ok(Found::Lapped(3)));
    });
}

/// A reader who looks for an offset gets what is behind it, or is told that it is gone.
#[test]
fn an_offset_is_found_or_gone() {
    check(1, || {
        let ring = tight();
        let mut writer = ring.writer().expect("it is sound");
        writer.write(&text(1));
        writer.write(&text(2));
        let writes = thread::spawn(move || {
            writer.write(&text(3));
        });
        if let Some(mut reader) = ring.reader_behind(1).expect("it is sound") {
            assert_eq!(reader.offset(), 1);
            look(&mut reader);
        }
        writes.join().expect("it never waits");
    });
}
