//! Patterns as Redis has them: `*`, `?`, `[a-z]`, `[^a]`, `\` before what is meant literally.
//!
//! A `*` that leads nowhere is given up for the next one and never tried again, so a match
//! takes at most as many steps as pattern and text have bytes, multiplied: no pattern makes
//! it explode.

/// Whether the whole text is like the pattern.
pub fn is_like(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Behind the last `*`, and where the text that it leaves begins.
    let mut retry = None;
    while t < text.len() {
        match step(&pattern[p..]) {
            Some(Step::Any(used)) => {
                p += used;
                retry = Some((p, t));
                continue;
            }
            Some(Step::One { used, matches }) if matches.has(text[t]) => {
                (p, t) = (p + used, t + 1);
                continue;
            }
            _ => {}
        }
        let Some((behind, from)) = retry else { return false };
        (p, t) = (behind, from + 1);
        retry = Some((behind, t));
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

enum Step<'a> {
    /// Any number of bytes.
    Any(usize),
    /// One byte.
    One { used: usize, matches: Class<'a> },
}

enum Class<'a> {
    All,
    Byte(u8),
    Set { is_not: bool, ranges: &'a [u8] },
}

impl Class<'_> {
    fn has(&self, byte: u8) -> bool {
        match self {
            Self::All => true,
            Self::Byte(only) => *only == byte,
            Self::Set { is_not, ranges } => is_in(ranges, byte) != *is_not,
        }
    }
}

/// What the pattern asks for next.
fn step(pattern: &[u8]) -> Option<Step<'_>> {
    Some(match pattern {
        [] => return None,
        [b'*', rest @ ..] => Step::Any(1 + rest.iter().take_while(|byte| **byte == b'*').count()),
        [b'?', ..] => Step::One { used: 1, matches: Class::All },
        [b'[', rest @ ..] => {
            let is_not = rest.first() == Some(&b'^');
            let begin = usize::from(is_not);
            let mut end = begin;
            while let Some(byte) = rest.get(end).filter(|byte| **byte != b']') {
                end += if *byte == b'\\' && rest.len() > end + 1 { 2 } else { 1 };
            }
            // An unclosed class ends with the pattern.
            let used = (1 + end + 1).min(pattern.len());
            let ranges = &rest[begin..end.min(rest.len())];
            Step::One { used, matches: Class::Set { is_not, ranges } }
        }
        [b'\\', byte, ..] => Step::One { used: 2, matches: Class::Byte(*byte) },
        [byte, ..] => Step::One { used: 1, matches: Class::Byte(*byte) },
    })
}

fn is_in(mut ranges: &[u8], byte: u8) -> bool {
    let mut found = false;
    loop {
        ranges = match ranges {
            [] => return found,
            [b'\\', literal, rest @ ..] => {
                found |= *literal == byte;
                rest
            }
            [from, b'-', to, rest @ ..] => {
                found |= (*from.min(to)..=*from.max(to)).contains(&byte);
                rest
            }
            [literal, rest @ ..] => {
                found |= *literal == byte;
                rest
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        for (pattern, yes, no) in [
            ("", &[""][..], &["a"][..]),
            ("*", &["", "a", "abc"], &[]),
            ("a", &["a"], &["", "b", "ab"]),
            ("a*", &["a", "abc"], &["", "ba"]),
            ("*a", &["a", "bca", "aa"], &["", "ab"]),
            ("a*b*c", &["abc", "aXbYc", "abbcc"], &["ac", "abcX"]),
            ("h?llo", &["hello", "hallo"], &["hllo"]),
            ("h[ae]llo", &["hello", "hallo"], &["hillo"]),
            ("h[^e]llo", &["hallo"], &["hello"]),
            ("h[a-c]", &["ha", "hb", "hc"], &["hd", "h"]),
            ("h[c-a]", &["ha", "hb"], &["hd"]),
            ("[\\]]", &["]"], &["\\"]),
            ("a\\*", &["a*"], &["ab"]),
            ("a\\", &["a\\"], &["a"]),
            ("[a", &["a"], &["b", "aa"]),
            ("[]", &[], &["", "a", "]"]),
            ("[^]", &["a"], &[""]),
            ("**a**", &["a", "xax"], &["x"]),
        ] {
            for text in yes {
                assert!(is_like(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
            }
            for text in no {
                assert!(!is_like(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
            }
        }
    }

    #[test]
    fn no_pattern_explodes() {
        let pattern = [&b"a*".repeat(500)[..], b"b"].concat();
        assert!(!is_like(&pattern, &vec![b'a'; 10_000]));
        let brackets = vec![b'['; 1000];
        assert!(!is_like(&brackets, b"x"));
    }
}
