use super::*;
use proptest::prelude::*;
use std::borrow::Cow;

/// Everything that is whole, and what stands behind it.
fn all(mut stream: &[u8]) -> (Vec<Vec<Vec<u8>>>, Result<usize, String>) {
    let mut commands = Vec::new();
    loop {
        match scan(stream) {
            Scan::Whole { length, words } => {
                assert!(length > 0 && length <= stream.len());
                let words: Vec<_> = words.iter().map(Cow::into_owned).collect();
                commands.push(words);
                stream = &stream[length..];
            }
            Scan::Part { wanted } => {
                assert!(wanted > stream.len(), "{wanted} of {}", stream.len());
                return (commands, Ok(stream.len()));
            }
            Scan::Malformed(text) => return (commands, Err(text)),
        }
    }
}

fn array(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

fn malformed(stream: &[u8]) -> String {
    match scan(stream) {
        Scan::Malformed(text) => text,
        other => panic!("{}: {other:?}", stream.escape_ascii()),
    }
}

fn is_part(stream: &[u8]) -> bool {
    matches!(scan(stream), Scan::Part { .. })
}

#[test]
fn commands_of_both_kinds_stand_side_by_side() {
    let stream = [&array(&[b"ECHO", b"a\r\nb"])[..], b"PING x\n\r\n*0\r\n*-1\r\n", &array(&[b"Q"])];
    let (commands, rest) = all(&stream.concat());
    let expected: [&[&[u8]]; 6] = [&[b"ECHO", b"a\r\nb"], &[b"PING", b"x"], &[], &[], &[], &[b"Q"]];
    assert_eq!(
        commands,
        expected.map(|words| words.iter().map(|w| w.to_vec()).collect::<Vec<_>>())
    );
    assert_eq!(rest, Ok(0));
}

#[test]
fn what_is_no_command_is_told_in_redis_words() {
    for (stream, text) in [
        (&b"*x\r\n"[..], "invalid multibulk length"),
        (b"*\r\n", "invalid multibulk length"),
        (b"*-\r\n", "invalid multibulk length"),
        (b"*01\r\n", "invalid multibulk length"),
        (b"*+1\r\n", "invalid multibulk length"),
        (b"* 1\r\n", "invalid multibulk length"),
        (b"*2049\r\n", "invalid multibulk length"),
        (b"*9223372036854775807\r\n", "invalid multibulk length"),
        (b"*9223372036854775808\r\n", "invalid multibulk length"),
        (b"*99999999999999999999999", "invalid multibulk length"),
        (b"*1\r\nPING\r\n", "expected '$', got 'P'"),
        (b"*1\r\n*", "expected '$', got '*'"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$x\r\n", "invalid bulk length"),
        (b"*1\r\n$\r\n", "invalid bulk length"),
        (b"*1\r\n$131073\r\n", "invalid bulk length"),
        (b"*1\r\n$9223372036854775807\r\n", "invalid bulk length"),
        (b"*1\r\n$18446744073709551616\r\n", "invalid bulk length"),
        (b"echo \"a\n", "unbalanced quotes in request"),
    ] {
        assert_eq!(malformed(stream), text, "{}", stream.escape_ascii());
    }
}

#[test]
fn each_limit_holds_to_the_byte() {
    let words = vec![&b""[..]; ARGUMENTS_MAX];
    assert_eq!(all(&array(&words)).0[0].len(), ARGUMENTS_MAX);
    assert!(is_part(b"*2048\r\n"));
    assert_eq!(malformed(b"*2049\r\n"), "invalid multibulk length");

    let head = b"*2\r\n$4\r\nECHO\r\n$131047\r\n";
    let most = COMMAND_BYTES_MAX - head.len() - 2;
    assert_eq!(most, 131_047);
    let largest = array(&[b"ECHO", &vec![b'x'; most]]);
    let words = Words::Array { count: 2, bytes: &largest[4..] };
    assert_eq!(scan(&largest), Scan::Whole { length: COMMAND_BYTES_MAX, words });
    assert!(is_part(head));
    assert_eq!(malformed(b"*2\r\n$4\r\nECHO\r\n$131048\r\n"), "invalid bulk length");

    let line = vec![b'x'; INLINE_BYTES_MAX + 1];
    for end in [&b"\n"[..], b"\r\n"] {
        let most = [&line[1..], end].concat();
        assert_eq!(all(&most).0[0][0].len(), INLINE_BYTES_MAX);
        assert_eq!(malformed(&[&line[..], end].concat()), "too big inline request");
    }
    assert!(is_part(&line[1..]));
    assert!(is_part(&[&line[1..], b"\r"].concat()));
    assert_eq!(malformed(&[&line[..], b"x"].concat()), "too big inline request");
    let many = b"a ".repeat(ARGUMENTS_MAX);
    assert_eq!(all(&[&many[..], b"\n"].concat()).0[0].len(), ARGUMENTS_MAX);
    assert_eq!(malformed(&[&many[..], b"a\n"].concat()), "too big inline request");
}

/// As the framer does it: never more than is asked for. Returns how many looks it took.
fn feed(command: &[u8], piece: usize) -> (usize, usize) {
    let (mut begun, mut progress, mut looks) = (Vec::new(), Progress::default(), 0);
    let mut pieces = command.chunks(piece);
    let mut arrived: &[u8] = pieces.next().unwrap();
    loop {
        if let Some(wanted) = match scan_on(&begun, arrived, &mut progress) {
            _ if begun.is_empty() => Some(1),
            Scan::Part { wanted } => Some(wanted),
            Scan::Whole { length, .. } => return (length, looks),
            Scan::Malformed(text) => panic!("{text}"),
        } {
            looks += 1;
            while begun.len() < wanted {
                if arrived.is_empty() {
                    arrived = pieces.next().expect("it is whole at its end");
                }
                let (now, later) = arrived.split_at((wanted - begun.len()).min(arrived.len()));
                begun.extend_from_slice(now);
                arrived = later;
            }
        }
    }
}

#[test]
fn a_begun_command_is_looked_at_a_few_times_for_each_argument() {
    let words = vec![&b"a word"[..]; ARGUMENTS_MAX];
    let command = array(&words);
    let (length, looks) = feed(&command, 1);
    assert_eq!(length, command.len());
    assert!(looks < 4 * ARGUMENTS_MAX, "{looks}");
    let line = [&vec![b'x'; 1000][..], b"\r\n"].concat();
    let (length, looks) = feed(&line, 7);
    assert_eq!(length, line.len());
    assert!(looks <= line.len().div_ceil(7) + 2, "{looks}");
}

#[test]
fn a_line_without_an_end_is_given_up_at_its_limit() {
    let (junk, mut progress) = (vec![b'x'; 200_000], Progress::default());
    let Scan::Part { wanted } = scan_on(&junk[..10], &junk[10..], &mut progress) else {
        panic!("it has begun");
    };
    assert_eq!(wanted, INLINE_BYTES_MAX + 2);
    let judged = scan_on(&junk[..wanted], &junk[wanted..], &mut progress);
    assert_eq!(judged, Scan::Malformed("too big inline request".to_owned()));
}

fn command() -> impl Strategy<Value = Vec<u8>> {
    let word = prop::collection::vec(any::<u8>(), 0..40);
    let words = prop::collection::vec(word, 0..6);
    let as_array = words.prop_map(|words| {
        let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        array(&words)
    });
    let as_line = "[ -!#-&(-)+-~]{0,30}".prop_map(|line| format!("{line}\r\n").into_bytes());
    prop_oneof![as_array, as_line]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_cut_does_not_matter(commands in prop::collection::vec(command(), 1..5), piece in 1_usize..50) {
        let stream = commands.concat();
        let (whole, rest) = all(&stream);
        prop_assert_eq!((whole.len(), rest), (commands.len(), Ok(0)));
        for command in &commands {
            prop_assert_eq!(feed(command, piece).0, command.len());
            for end in 0..command.len() {
                prop_assert!(is_part(&command[..end]), "{}", end);
            }
        }
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        _ = all(&bytes);
        _ = scan_on(&bytes, &bytes, &mut Progress::default());
    }

    #[test]
    fn almost_commands_are_judged_the_same_at_once_and_later(
        mut bytes in command(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let at = at.index(bytes.len());
        bytes[at] = byte;
        // A second look that begins with what a first has seen.
        let mut progress = Progress::default();
        let first = scan_on(&bytes[..cut.index(bytes.len() + 1)], b"", &mut progress);
        if matches!(first, Scan::Part { .. }) {
            let later = match scan_on(&bytes, b"", &mut progress) {
                Scan::Whole { length, .. } => Ok(length),
                Scan::Part { wanted } => Ok(wanted + 1_000_000),
                Scan::Malformed(text) => Err(text),
            };
            let at_once = match scan(&bytes) {
                Scan::Whole { length, .. } => Ok(length),
                Scan::Part { wanted } => Ok(wanted + 1_000_000),
                Scan::Malformed(text) => Err(text),
            };
            prop_assert_eq!(later, at_once);
        }
    }
}
