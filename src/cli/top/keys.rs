//! The keys of `chappe top`, and what they change.

/// What a person has typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Letter(u8),
    Up,
    Down,
    /// `q`, Esc, Ctrl-C.
    End,
}

/// What workers are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Worker,
    Cpu,
    Memory,
    Connections,
    Received,
    Sent,
}

/// A key of the footer: the key, what stands behind it, what it sorts by.
pub(super) const SORTS: [(char, &str, Sort); 6] = [
    ('w', "worker", Sort::Worker),
    ('c', "cpu", Sort::Cpu),
    ('m', "mem", Sort::Memory),
    ('n', "conns", Sort::Connections),
    ('i', "in", Sort::Received),
    ('o', "out", Sort::Sent),
];

/// What a person has chosen to see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) sort: Sort,
    pub(super) is_reversed: bool,
    /// Counters that are 0 are shown.
    pub(super) zeros: bool,
    /// How many workers are above the first one that is shown.
    pub(super) scrolled: usize,
}

impl Choice {
    /// True if the screen is to be closed.
    pub(super) fn press(&mut self, key: Key) -> bool {
        match key {
            Key::End => return true,
            Key::Up | Key::Letter(b'k') => self.scrolled = self.scrolled.saturating_sub(1),
            Key::Down | Key::Letter(b'j') => self.scrolled += 1,
            Key::Letter(b'r') => self.is_reversed = !self.is_reversed,
            Key::Letter(b'z') => self.zeros = !self.zeros,
            Key::Letter(letter) => {
                let sort = SORTS.iter().find(|(key, ..)| *key == char::from(letter));
                if let Some((.., sort)) = sort {
                    *self = Self { sort: *sort, is_reversed: false, scrolled: 0, ..*self };
                }
            }
        }
        false
    }
}

/// What a terminal in raw mode sends, as keys. It makes no signal of Ctrl-C, and Escape is
/// also the beginning of what other keys send, in one piece: `ESC [ A`, `ESC O P`, `ESC x`.
pub(crate) fn keys_of(typed: &[u8]) -> Vec<Key> {
    const CONTROL_C: u8 = 0x03;
    const ESCAPE: u8 = 0x1b;
    let mut keys = Vec::new();
    let mut rest = typed.iter().copied();
    while let Some(byte) = rest.next() {
        match byte {
            b'q' | CONTROL_C => keys.push(Key::End),
            ESCAPE => match rest.next() {
                None => keys.push(Key::End),
                Some(b'[') => {
                    let mut is_alone = true;
                    let last = rest.find(|byte| {
                        let is_last = (0x40..0x7f).contains(byte);
                        is_alone &= is_last;
                        is_last
                    });
                    keys.extend(last.filter(|_| is_alone).and_then(arrow));
                }
                Some(b'O') => keys.extend(rest.next().and_then(arrow)),
                Some(_) => {}
            },
            letter if letter.is_ascii_alphabetic() => keys.push(Key::Letter(letter)),
            _ => {}
        }
    }
    keys
}

fn arrow(last: u8) -> Option<Key> {
    match last {
        b'A' => Some(Key::Up),
        b'B' => Some(Key::Down),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q_escape_and_control_c_end_it_and_nothing_else_does() {
        let is_end = |typed: &[u8]| keys_of(typed).contains(&Key::End);
        for end in [&b"q"[..], b"\x1b", b"\x03", b"xq", b"\x1b[Aq", b"\x1bOPq", b"\x1b[5~\x03"] {
            assert!(is_end(end), "{}", end.escape_ascii());
        }
        // A letter, Ctrl-X, arrow up, F1, page up, Alt-Q, Shift-Tab, a mouse, an umlaut.
        for other in [
            &b"x"[..],
            b"\x18",
            b"\x1b[A",
            b"\x1bOP",
            b"\x1b[5~",
            b"\x1bq",
            b"\x1b[Z",
            b"\x1b[<0;3;7M",
            b"\xc3\xa4",
            b"",
        ] {
            assert!(!is_end(other), "{}", other.escape_ascii());
        }
    }

    #[test]
    fn arrows_and_letters_are_keys_and_longer_sequences_are_none() {
        assert_eq!(keys_of(b"\x1b[A\x1b[Bc"), [Key::Up, Key::Down, Key::Letter(b'c')]);
        assert_eq!(keys_of(b"\x1bOA"), [Key::Up], "an application's arrow");
        assert_eq!(keys_of(b"\x1b[1;5A\x1b[<0;3;7Mz"), [Key::Letter(b'z')]);
    }

    #[test]
    fn each_key_changes_what_it_says() {
        let mut choice = Choice::default();
        for key in [Key::Up, Key::Letter(b'x')] {
            assert!(!choice.press(key));
            assert_eq!(choice, Choice::default(), "{key:?}");
        }
        for (letter, _, sort) in SORTS {
            choice.press(Key::Down);
            choice.press(Key::Letter(b'r'));
            assert!(choice.is_reversed && choice.scrolled == 1);
            choice.press(Key::Letter(u8::try_from(letter).unwrap()));
            assert_eq!(choice, Choice { sort, ..Choice::default() });
        }
        choice.press(Key::Letter(b'z'));
        assert!(choice.zeros && choice.press(Key::End));
    }
}
