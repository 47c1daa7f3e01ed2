//! Bytes as the words of a ring.
//!
//! A *position* counts words from the ring's beginning on, and never goes back: its place is
//! its rest by the number of words, which is a power of two.

use crate::sync::{AtomicU64, Ordering};

/// The bytes of a word.
const BYTES: usize = 8;

/// How many words these bytes need.
pub(crate) fn needed(bytes: usize) -> usize {
    bytes.div_ceil(BYTES)
}

/// The word at a position.
pub(crate) fn at(words: &[AtomicU64], position: u64) -> &AtomicU64 {
    &words[place(words, position)]
}

#[expect(clippy::cast_possible_truncation, reason = "it is less than the number of words")]
fn place(words: &[AtomicU64], position: u64) -> usize {
    (position % words.len() as u64) as usize
}

/// The words from a position on, in order, up to `count` of them, which are in one piece or
/// in two.
fn from(words: &[AtomicU64], position: u64, count: usize) -> (&[AtomicU64], &[AtomicU64]) {
    let (front, back) = words.split_at(place(words, position));
    let whole = count.min(back.len());
    (&back[..whole], &front[..count - whole])
}

/// Writes bytes from a position on; the last word is filled with zeros.
pub(crate) fn write(words: &[AtomicU64], position: u64, bytes: &[u8]) {
    let (one, two) = from(words, position, needed(bytes.len()));
    let (first, second) = bytes.split_at(bytes.len().min(one.len() * BYTES));
    write_piece(one, first);
    write_piece(two, second);
}

fn write_piece(words: &[AtomicU64], bytes: &[u8]) {
    let whole = bytes.chunks_exact(BYTES);
    let rest = whole.remainder();
    for (word, chunk) in words.iter().zip(whole) {
        let chunk = chunk.try_into().expect("eight bytes");
        word.store(u64::from_le_bytes(chunk), Ordering::Relaxed);
    }
    if !rest.is_empty() {
        let mut last = [0; BYTES];
        last[..rest.len()].copy_from_slice(rest);
        words[words.len() - 1].store(u64::from_le_bytes(last), Ordering::Relaxed);
    }
}

/// Appends the bytes from a position on to `into`.
pub(crate) fn read(words: &[AtomicU64], position: u64, bytes: usize, into: &mut Vec<u8>) {
    let (one, two) = from(words, position, needed(bytes));
    let end = into.len() + bytes;
    for word in one.iter().chain(two) {
        into.extend_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
    }
    into.truncate(end);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_at_each_place_and_of_each_length() {
        let words: Vec<AtomicU64> = (0..8).map(|_| AtomicU64::new(u64::MAX)).collect();
        let bytes: Vec<u8> = (1..=64).collect();
        for position in 0..20 {
            for length in 0..=64 {
                write(&words, position, &bytes[..length]);
                let mut found = vec![7];
                read(&words, position, length, &mut found);
                assert_eq!(found[0], 7);
                assert_eq!(found[1..], bytes[..length], "{length} bytes at {position}");
            }
        }
    }

    #[test]
    fn nothing_outside_of_the_record_is_touched() {
        let words: Vec<AtomicU64> = (0..8).map(|_| AtomicU64::new(u64::MAX)).collect();
        write(&words, 7, &[1; 9]);
        let values: Vec<u64> = words.iter().map(|word| word.load(Ordering::Relaxed)).collect();
        assert_eq!(values[0], 1, "the ninth byte, and zeros");
        assert_eq!(values[7], 0x0101_0101_0101_0101);
        assert!(values[1..7].iter().all(|&value| value == u64::MAX));
    }
}
