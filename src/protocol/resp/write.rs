//! Replies as bytes, in RESP2 or RESP3.

use std::fmt::Display;

/// The longest text of an error; a longer one is cut at a character.
const TEXT_BYTES_MAX: usize = 512;

/// What a reply is appended to.
#[derive(Debug)]
pub(super) struct Out<'a> {
    pub(super) bytes: &'a mut Vec<u8>,
    pub(super) is_resp3: bool,
}

impl Out<'_> {
    /// `+OK`.
    pub(super) fn simple(&mut self, text: &str) {
        self.bytes.push(b'+');
        self.bytes.extend_from_slice(text.as_bytes());
        self.end();
    }

    /// `-ERR text`: the first word is the kind, and the whole is one line.
    pub(super) fn error(&mut self, kind: &str, text: &str) {
        self.bytes.push(b'-');
        self.bytes.extend_from_slice(kind.as_bytes());
        self.bytes.push(b' ');
        let cut = (0..=TEXT_BYTES_MAX.min(text.len())).rfind(|at| text.is_char_boundary(*at));
        let line = text[..cut.unwrap_or(0)].bytes();
        self.bytes.extend(line.map(|b| if matches!(b, b'\r' | b'\n') { b' ' } else { b }));
        self.end();
    }

    pub(super) fn integer(&mut self, number: impl Display) {
        self.bytes.extend_from_slice(format!(":{number}\r\n").as_bytes());
    }

    pub(super) fn bulk(&mut self, body: &[u8]) {
        self.head(b'$', body.len());
        self.bytes.extend_from_slice(body);
        self.end();
    }

    /// A text to be shown as it is.
    pub(super) fn verbatim(&mut self, text: &str) {
        if !self.is_resp3 {
            return self.bulk(text.as_bytes());
        }
        self.head(b'=', text.len() + 4);
        self.bytes.extend_from_slice(b"txt:");
        self.bytes.extend_from_slice(text.as_bytes());
        self.end();
    }

    pub(super) fn null(&mut self) {
        self.bytes.extend_from_slice(if self.is_resp3 { b"_\r\n" } else { b"$-1\r\n" });
    }

    /// So many values follow.
    pub(super) fn array(&mut self, count: usize) {
        self.head(b'*', count);
    }

    /// So many values follow, in no order.
    pub(super) fn set(&mut self, count: usize) {
        self.head(if self.is_resp3 { b'~' } else { b'*' }, count);
    }

    /// So many pairs follow.
    pub(super) fn map(&mut self, pairs: usize) {
        match self.is_resp3 {
            true => self.head(b'%', pairs),
            false => self.head(b'*', pairs * 2),
        }
    }

    /// So many values follow that answer nothing. RESP3 only.
    pub(super) fn push(&mut self, count: usize) {
        self.head(b'>', count);
    }

    fn head(&mut self, kind: u8, number: usize) {
        self.bytes.push(kind);
        decimal(self.bytes, number);
        self.end();
    }

    fn end(&mut self) {
        self.bytes.extend_from_slice(b"\r\n");
    }
}

/// Digits without the machinery of `format!`: each reply with a body has them.
fn decimal(out: &mut Vec<u8>, mut number: usize) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(is_resp3: bool, write: impl FnOnce(&mut Out<'_>)) -> String {
        let mut bytes = Vec::new();
        write(&mut Out { bytes: &mut bytes, is_resp3 });
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn values_have_the_form_of_their_version() {
        let all = |out: &mut Out<'_>| {
            out.simple("OK");
            out.integer(-3);
            out.bulk(b"0123456789");
            out.bulk(b"");
            out.null();
            out.array(1204);
            out.set(2);
            out.map(3);
            out.verbatim("hi");
        };
        let same = "+OK\r\n:-3\r\n$10\r\n0123456789\r\n$0\r\n\r\n";
        let two = "$-1\r\n*1204\r\n*2\r\n*6\r\n$2\r\nhi\r\n";
        let three = "_\r\n*1204\r\n~2\r\n%3\r\n=6\r\ntxt:hi\r\n";
        assert_eq!(written(false, all), [same, two].concat());
        assert_eq!(written(true, all), [same, three].concat());
    }

    #[test]
    fn an_error_is_one_line_and_not_a_long_one() {
        let text = "a\r\nb";
        assert_eq!(written(false, |out| out.error("ERR", text)), "-ERR a  b\r\n");
        let long = "é".repeat(300);
        let expected = format!("-ERR {}\r\n", "é".repeat(256));
        assert_eq!(written(false, |out| out.error("ERR", &long)), expected);
    }
}
