//! Where a command ends, and what is no command.
//!
//! ```text
//! *2\r\n $4\r\nECHO\r\n $2\r\nhi\r\n     an array of bulk strings
//! ECHO "hi"\r\n                          an inline command: a line of words
//! ```
//!
//! Lengths are judged as soon as they can be read: a peer that announces too much is refused
//! before its bytes are there. As in Redis, the two bytes behind an argument are not looked at,
//! nor is the byte behind the `\r` of a length.

use super::words::{self, Words};
use chappe_engine::Progress;

/// The most arguments of a command, its name included.
pub(super) const ARGUMENTS_MAX: usize = 2048;
/// The largest command.
pub(super) const COMMAND_BYTES_MAX: usize = 128 * 1024;
/// The longest inline command, without the end of its line.
pub(super) const INLINE_BYTES_MAX: usize = 64 * 1024;

/// An inline command with a `\r`, which is known to be a part of its end by the next byte only.
const LINE_BYTES_MAX: usize = INLINE_BYTES_MAX + 1;

/// The shortest array: `*0\r\n`.
const ARRAY_BYTES_MIN: usize = 4;
/// The shortest argument: `$0\r\n\r\n`.
const ARGUMENT_BYTES_MIN: usize = 6;
/// The digits of the largest number that is read.
const DIGITS_MAX: usize = 19;

/// The front of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scan<'a> {
    /// A command of this many bytes.
    Whole { length: usize, words: Words<'a> },
    /// More can be said when there are this many bytes: more than there are.
    Part { wanted: usize },
    /// No command; the text says why.
    Malformed(String),
}

/// What a walk over the arguments of an array has come to.
enum Walk {
    /// Their end.
    End(usize),
    Part {
        wanted: usize,
        progress: Progress,
    },
    Malformed(String),
}

/// Looks at the front of a stream.
pub(super) fn scan(stream: &[u8]) -> Scan<'_> {
    match stream.first() {
        None => Scan::Part { wanted: 1 },
        Some(b'*') => scan_array(stream),
        Some(_) => scan_line(stream, 0),
    }
}

/// Scans on in a begun command that was scanned before, with what has come behind it; otherwise
/// like [`scan`]. The words of a whole command are not returned.
pub(super) fn scan_on<'a>(begun: &'a [u8], input: &[u8], progress: &mut Progress) -> Scan<'a> {
    if begun.first() != Some(&b'*') {
        let seen = progress.at as usize;
        progress.at = small(begun.len());
        return match scan_line(begun, seen) {
            // Not byte by byte: where its line ends can be seen.
            Scan::Part { .. } => {
                let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
                let most = begun.len().max(LINE_BYTES_MAX) + 1;
                Scan::Part { wanted: (begun.len() + end + 1).min(most) }
            }
            other => other,
        };
    }
    if progress.parts == 0 {
        // The length of the array was not there yet.
        return match array_header(begun) {
            Header::Number(Some(count), at) if (1..=ARGUMENTS_MAX as i64).contains(&count) => {
                *progress = Progress { at: small(at), parts: small_count(count) };
                scan_on(begun, input, progress)
            }
            _ => scan_array(begun),
        };
    }
    match walk(begun, *progress) {
        Walk::End(length) => Scan::Whole { length, words: Words::None },
        Walk::Part { wanted, progress: further } => {
            *progress = further;
            Scan::Part { wanted }
        }
        Walk::Malformed(text) => Scan::Malformed(text),
    }
}

fn scan_array(stream: &[u8]) -> Scan<'_> {
    let (count, first) = match array_header(stream) {
        Header::Part => {
            let wanted = (stream.len() + 1).max(ARRAY_BYTES_MIN);
            return Scan::Part { wanted };
        }
        Header::Number(Some(..=0), length) => return Scan::Whole { length, words: Words::None },
        Header::Number(Some(count), first) if count <= ARGUMENTS_MAX as i64 => (count, first),
        Header::Number(..) => return Scan::Malformed("invalid multibulk length".to_owned()),
    };
    let count = small_count(count);
    match walk(stream, Progress { at: small(first), parts: count }) {
        Walk::End(length) => {
            let words = Words::Array { count: count as usize, bytes: &stream[first..length] };
            Scan::Whole { length, words }
        }
        Walk::Part { wanted, .. } => Scan::Part { wanted },
        Walk::Malformed(text) => Scan::Malformed(text),
    }
}

fn array_header(stream: &[u8]) -> Header {
    match number(&stream[1..]) {
        Header::Number(count, used) => Header::Number(count, 1 + used),
        Header::Part => Header::Part,
    }
}

/// Goes over the arguments that are left.
fn walk(stream: &[u8], from: Progress) -> Walk {
    let (mut at, mut left) = (from.at as usize, from.parts as usize);
    while left > 0 {
        let part = |wanted: usize| Walk::Part {
            wanted: wanted.max(stream.len() + 1),
            progress: Progress { at: small(at), parts: small(left) },
        };
        // `at` may be beyond the end: the two bytes behind an argument may be missing.
        let head = stream.get(at..).unwrap_or_default();
        match head.first() {
            None => return part(at + left * ARGUMENT_BYTES_MIN),
            Some(b'$') => {}
            Some(&other) => {
                let text = format!("expected '$', got '{}'", char::from(other));
                return Walk::Malformed(text);
            }
        }
        let (length, begin) = match number(&head[1..]) {
            Header::Part => return part(at + left * ARGUMENT_BYTES_MIN),
            Header::Number(length, used) => (length, at + 1 + used),
        };
        let rest = (left - 1) * ARGUMENT_BYTES_MIN;
        let room = COMMAND_BYTES_MAX.checked_sub(begin + 2 + rest);
        let length = length.and_then(|length| usize::try_from(length).ok());
        let Some(length) = length.filter(|length| room.is_some_and(|room| *length <= room)) else {
            return Walk::Malformed("invalid bulk length".to_owned());
        };
        let end = begin + length + 2;
        if end > stream.len() {
            return part(end + rest);
        }
        (at, left) = (end, left - 1);
    }
    Walk::End(at)
}

/// A line of words, of which the first `seen` bytes are known to hold no end.
fn scan_line(stream: &[u8], seen: usize) -> Scan<'_> {
    let too_big = || Scan::Malformed("too big inline request".to_owned());
    let end = stream[seen..].iter().take(LINE_BYTES_MAX + 1).position(|byte| *byte == b'\n');
    let Some(end) = end.map(|end| seen + end) else {
        return match stream.len() <= LINE_BYTES_MAX {
            true => Scan::Part { wanted: stream.len() + 1 },
            false => too_big(),
        };
    };
    let line = stream[..end].strip_suffix(b"\r").unwrap_or(&stream[..end]);
    if line.len() > INLINE_BYTES_MAX {
        return too_big();
    }
    let length = end + 1;
    match words::count(line) {
        None => Scan::Malformed("unbalanced quotes in request".to_owned()),
        Some(0) => Scan::Whole { length, words: Words::None },
        Some(count) if count <= ARGUMENTS_MAX => {
            Scan::Whole { length, words: Words::Line { count, line } }
        }
        Some(_) => too_big(),
    }
}

/// A number with the end of its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// Its end is not there.
    Part,
    /// The number, `None` if the bytes are no number, and how many bytes there are with the end.
    Number(Option<i64>, usize),
}

/// The number that a line begins with. As Redis reads it: no space, no plus, no leading zero.
#[inline]
pub(super) fn number(bytes: &[u8]) -> Header {
    let is_negative = bytes.first() == Some(&b'-');
    let begin = usize::from(is_negative);
    let mut value = 0_i64;
    let mut at = begin;
    loop {
        match bytes.get(at) {
            None => return Header::Part,
            Some(digit @ b'0'..=b'9') => {
                let is_after_zero = at == begin + 1 && value == 0;
                if is_after_zero || at - begin >= DIGITS_MAX {
                    return Header::Number(None, at);
                }
                let next =
                    value.checked_mul(10).and_then(|it| it.checked_add(i64::from(digit - b'0')));
                let Some(next) = next else { return Header::Number(None, at) };
                value = next;
            }
            Some(b'\r') if at > begin && !(is_negative && value == 0) => {
                // The byte behind it belongs to it, whatever it is.
                let value = if is_negative { -value } else { value };
                return if bytes.len() > at + 1 {
                    Header::Number(Some(value), at + 2)
                } else {
                    Header::Part
                };
            }
            Some(_) => return Header::Number(None, at),
        }
        at += 1;
    }
}

/// Within a command, whose size is bounded.
fn small(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// At most [`ARGUMENTS_MAX`].
fn small_count(count: i64) -> u32 {
    u32::try_from(count).unwrap_or(0)
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
