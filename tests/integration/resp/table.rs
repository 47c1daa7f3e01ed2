//! The replies of redis-server 7.0.15, byte by byte. `scripts/resp` has recorded them.

use super::{connect, start};

const TABLE: &str = include_str!("replies.txt");

/// One command of the table.
struct Row {
    sent: Vec<u8>,
    redis: String,
    own: Option<String>,
    ends: bool,
}

/// `\r`, `\n`, `\xff` and the like, as in a byte string.
fn unescaped(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    loop {
        rest = match rest {
            [] => return bytes,
            [b'\\', b'x', high, low, rest @ ..] => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).expect("ASCII");
                bytes.push(u8::from_str_radix(digits, 16).expect("two digits"));
                rest
            }
            [b'\\', escaped, rest @ ..] => {
                bytes.push(match escaped {
                    b'r' => b'\r',
                    b'n' => b'\n',
                    b't' => b'\t',
                    other => *other,
                });
                rest
            }
            [byte, rest @ ..] => {
                bytes.push(*byte);
                rest
            }
        }
    }
}

/// The connections of the table.
fn connections() -> Vec<Vec<Row>> {
    let mut connections = vec![Vec::<Row>::new()];
    for line in TABLE.lines() {
        let rows = connections.last_mut().expect("one at least");
        match line.split_at_checked(2) {
            Some(("> ", sent)) => {
                let (sent, redis) = (unescaped(sent), String::new());
                rows.push(Row { sent, redis, own: None, ends: false });
            }
            Some(("< ", reply)) => rows.last_mut().expect("a command").redis = reply.to_owned(),
            Some(("= ", reply)) => rows.last_mut().expect("a command").own = Some(reply.to_owned()),
            _ if line == "!" => rows.last_mut().expect("a command").ends = true,
            _ if line.is_empty() => connections.push(Vec::new()),
            _ => assert!(line.starts_with('#') || line == "<" || line == "=", "{line}"),
        }
    }
    connections.retain(|rows| !rows.is_empty());
    connections
}

/// Whether `reply` is `expected`, in which `{n}` stands for digits.
fn is_as(expected: &str, reply: &[u8]) -> bool {
    let mut rest = reply;
    let mut parts = expected.split("{n}").map(unescaped);
    let first = parts.next().unwrap_or_default();
    let Some(behind) = rest.strip_prefix(&first[..]) else { return false };
    rest = behind;
    for part in parts {
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let Some(behind) = rest[digits..].strip_prefix(&part[..]) else { return false };
        if digits == 0 {
            return false;
        }
        rest = behind;
    }
    rest.is_empty()
}

#[test]
fn replies_are_those_of_redis() {
    for fuse in [true, false] {
        let server = start(&format!("table_{fuse}"), &format!("[worker]\nfuse = {fuse}\n"));
        let (mut wrong, mut asked) = (Vec::new(), 0);
        for rows in connections() {
            let mut client = connect(&server);
            for row in rows {
                let (reply, ends) = client.exchange(&row.sent);
                let expected = row.own.as_ref().unwrap_or(&row.redis);
                if !is_as(expected, &reply) || ends != row.ends {
                    let (sent, reply) = (row.sent.escape_ascii(), reply.escape_ascii());
                    wrong.push(format!("> {sent}\n  {expected}\n  {reply} ends={ends}"));
                }
                assert_ne!(row.own.as_ref(), Some(&row.redis), "no difference");
                asked += 1;
                if ends {
                    break;
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert!(asked > 100, "the whole table: {asked}");
    }
}

#[test]
fn a_wrong_reply_is_told_from_a_right_one() {
    assert!(is_as("a{n}\\r\\n", b"a12\r\n") && is_as("", b""));
    for reply in [&b"a\r\n"[..], b"a12\r\nx", b"b1\r\n", b"a1x\r\n"] {
        assert!(!is_as("a{n}\\r\\n", reply), "{}", reply.escape_ascii());
    }
}
