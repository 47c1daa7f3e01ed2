//! Standard output that may be a closed pipe: `chappe status | head -1` is no
//! failure, and `println!` would panic. And errors, in the name of the program.

use crate::program;
use std::io::{self, ErrorKind, IsTerminal, Write};

/// Writes text. False if nobody reads it any more, which is no error.
///
/// # Errors
/// Any other error of standard output, such as a full disk.
pub(crate) fn print(text: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes a line, like [`print`].
///
/// # Errors
/// Prints a line, like [`print`].
pub(crate) fn print_line(line: &str) -> io::Result<bool> {
    print(&format!("{line}\n"))
}

/// Writes a line for a person, marked as this program's. A closed `err` leaves nobody to tell.
pub(crate) fn print_error(err: &mut dyn Write, text: &str) {
    let _ = writeln!(err, "{}: {text}", program::get().name);
}

/// Whether a letter would steer a terminal, or turn the order of letters around.
pub(crate) fn steers_terminal(letter: char) -> bool {
    letter.is_control()
        || matches!(
            letter,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{202a}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
        )
}

/// The text of a file as a terminal may see it: what would steer the terminal, or turn the
/// order of letters around, is written as an escape, and so are bytes that are no text. Tabs
/// and ends of lines stay.
pub(crate) fn harmless(text: &[u8]) -> Vec<u8> {
    use std::fmt::Write as _;
    let mut shown = String::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        for letter in chunk.valid().chars() {
            // Writing to a String can't fail.
            let _ = match letter {
                '\t' | '\n' => shown.write_char(letter),
                letter if letter.is_control() => write!(shown, "\\x{:02x}", u32::from(letter)),
                letter if steers_terminal(letter) => write!(shown, "{}", letter.escape_unicode()),
                letter => shown.write_char(letter),
            };
        }
        for byte in chunk.invalid() {
            let _ = write!(shown, "\\x{byte:02x}");
        }
    }
    shown.into_bytes()
}

/// As [`harmless`], for one line of output: an end of a line is an escape, too.
pub(crate) fn harmless_line(text: &[u8]) -> Vec<u8> {
    let lines: Vec<_> = text.split(|byte| *byte == b'\n').map(harmless).collect();
    lines.join(&b"\\x0a"[..])
}

/// The text such that it takes the place of the one before, if standard output is a
/// terminal; else it follows after an empty line.
pub(crate) fn redrawn(text: &str) -> String {
    if !io::stdout().is_terminal() {
        return format!("{text}\n");
    }
    // To the upper left corner, each line cleared to its end, then all below: unlike
    // a cleared screen this does not flicker.
    let lines: String = text.lines().map(|line| format!("{line}\x1b[K\n")).collect();
    format!("\x1b[H{lines}\x1b[J")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_text_cannot_steer_a_terminal() {
        let text = b"\x1b[2Jred\x1b[0m\r\n\tline\x7f \xc2\x9b1m \xff\xc3\xa4 \xe2\x80\xae\xd8\x9c"
            .as_slice();
        let shown = "\\x1b[2Jred\\x1b[0m\\x0d\n\tline\\x7f \\x9b1m \\xff\u{e4} \\u{202e}\\u{61c}";
        assert_eq!(String::from_utf8(harmless(text)).unwrap(), shown);
        assert_eq!(harmless(b"plain\n"), b"plain\n");
        assert_eq!(harmless_line(b"\x1ba\tb\n"), b"\\x1ba\tb\\x0a");
    }
}
