//! The words of one command: its name and its arguments.

use super::scan::{Header, number};
use std::borrow::Cow;

/// The words of a whole command, as they were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words<'a> {
    /// An empty line or an empty array, which nothing answers.
    None,
    /// The bulk strings of an array, checked.
    Array { count: usize, bytes: &'a [u8] },
    /// A line, whose quotes are balanced.
    Line { count: usize, line: &'a [u8] },
}

impl<'a> Words<'a> {
    /// How many there are.
    pub(super) fn count(self) -> usize {
        match self {
            Words::None => 0,
            Words::Array { count, .. } | Words::Line { count, .. } => count,
        }
    }

    /// One after the other.
    pub(super) fn iter(self) -> Iter<'a> {
        Iter(self)
    }
}

/// One word after the other. Only a word of a line that has quotes is a copy.
#[derive(Debug)]
pub(super) struct Iter<'a>(Words<'a>);

impl<'a> Iterator for Iter<'a> {
    type Item = Cow<'a, [u8]>;

    fn next(&mut self) -> Option<Cow<'a, [u8]>> {
        match &mut self.0 {
            Words::None => None,
            Words::Array { bytes, .. } => {
                let Header::Number(Some(length), used) = number(bytes.get(1..)?) else {
                    return None;
                };
                let length = usize::try_from(length).ok()?;
                let rest = &bytes[1 + used..];
                let (word, rest) = rest.split_at_checked(length)?;
                *bytes = rest.get(2..).unwrap_or_default();
                Some(Cow::Borrowed(word))
            }
            Words::Line { line, .. } => match split_first(line) {
                Split::Word(word, rest) => {
                    *line = rest;
                    Some(word)
                }
                Split::Nothing | Split::Unbalanced => None,
            },
        }
    }
}

/// How many words a line has; `None` if a quote is not closed, or something stands behind a
/// closing one.
pub(super) fn count(mut line: &[u8]) -> Option<usize> {
    let mut count = 0;
    loop {
        match split_first(line) {
            Split::Word(_, rest) => line = rest,
            Split::Nothing => return Some(count),
            Split::Unbalanced => return None,
        }
        count += 1;
    }
}

enum Split<'a> {
    Word(Cow<'a, [u8]>, &'a [u8]),
    Nothing,
    Unbalanced,
}

/// isspace(3).
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// The first word of a line, as Redis splits it: `"…"` knows escapes, `'…'` knows `\'`.
fn split_first(line: &[u8]) -> Split<'_> {
    let Some(begin) = line.iter().position(|byte| !is_space(*byte)) else { return Split::Nothing };
    let line = &line[begin..];
    let ends = |byte: &u8| matches!(byte, b' ' | b'\n' | b'\r' | b'\t' | 0);
    let end = line.iter().position(|byte| ends(byte) || matches!(byte, b'"' | b'\''));
    let end = end.unwrap_or(line.len());
    if line.get(end).is_none_or(ends) {
        // A zero byte ends the line.
        let rest = if line.get(end) == Some(&0) { &[] } else { &line[end..] };
        return match end {
            0 => Split::Nothing,
            _ => Split::Word(Cow::Borrowed(&line[..end]), rest),
        };
    }
    let mut word = line[..end].to_vec();
    let mut at = end;
    while let Some(byte) = line.get(at) {
        at += 1;
        let used = match byte {
            b'"' => double_quoted(&line[at..], &mut word),
            b'\'' => single_quoted(&line[at..], &mut word),
            0 => return Split::Word(Cow::Owned(word), &[]),
            other if ends(other) => return Split::Word(Cow::Owned(word), &line[at..]),
            other => {
                word.push(*other);
                Some(0)
            }
        };
        let Some(used) = used else { return Split::Unbalanced };
        at += used;
    }
    Split::Word(Cow::Owned(word), &[])
}

/// Appends what stands in front of the closing quote; `None` without such a quote, or if something
/// but a space stands behind it.
fn double_quoted(bytes: &[u8], word: &mut Vec<u8>) -> Option<usize> {
    let mut at = 0;
    loop {
        match bytes.get(at..)? {
            [b'\\', b'x', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                word.push(hex(*high) << 4 | hex(*low));
                at += 4;
            }
            [b'\\', escaped, ..] => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                at += 2;
            }
            [b'"', rest @ ..] => {
                return rest.first().is_none_or(|byte| is_space(*byte)).then_some(at + 1);
            }
            [other, ..] => {
                word.push(*other);
                at += 1;
            }
            [] => return None,
        }
    }
}

/// Reads a word in single quotes; what it returns is what [`double_quoted`] returns.
fn single_quoted(bytes: &[u8], word: &mut Vec<u8>) -> Option<usize> {
    let mut at = 0;
    loop {
        match bytes.get(at..)? {
            [b'\\', b'\'', ..] => {
                word.push(b'\'');
                at += 2;
            }
            [b'\'', rest @ ..] => {
                return rest.first().is_none_or(|byte| is_space(*byte)).then_some(at + 1);
            }
            [other, ..] => {
                word.push(*other);
                at += 1;
            }
            [] => return None,
        }
    }
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit - b'A' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[u8]) -> Option<Vec<Vec<u8>>> {
        let count = count(line)?;
        let words: Vec<_> = Words::Line { count, line }.iter().map(Cow::into_owned).collect();
        assert_eq!(words.len(), count);
        Some(words)
    }

    #[test]
    fn a_line_is_split_as_redis_splits_it() {
        for (line, expected) in [
            (&b""[..], Some(vec![])),
            (b" \t ", Some(vec![])),
            (b"ping", Some(vec![&b"ping"[..]])),
            (b"  set  a\tb ", Some(vec![b"set", b"a", b"b"])),
            (br#"echo "a b" 'c d' "" ''"#, Some(vec![b"echo", b"a b", b"c d", b"", b""])),
            (br#""\x41\n\"\\" '\n\''"#, Some(vec![b"A\n\"\\", br"\n'"])),
            (br#"ab"cd" x'y z'"#, Some(vec![b"abcd", b"xy z"])),
            (br#""\xzz""#, Some(vec![b"xzz"])),
            (br#""a"b"#, None),
            (br#"'a'b"#, None),
            (br#"echo "a"#, None),
            (br#"echo 'a"#, None),
            (br#"echo "a\"#, None),
        ] {
            let expected = expected.map(|words| words.into_iter().map(<[u8]>::to_vec).collect());
            assert_eq!(words(line), expected, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn words_of_an_array_are_where_they_were_sent() {
        let bytes = b"$4\r\nECHO\r\n$0\r\n\r\n$3\r\na\r\n\r\n";
        let words: Vec<_> = Words::Array { count: 3, bytes }.iter().collect();
        assert_eq!(words, [&b"ECHO"[..], b"", b"a\r\n"]);
        assert!(words.iter().all(|word| matches!(word, Cow::Borrowed(_))));
    }
}
