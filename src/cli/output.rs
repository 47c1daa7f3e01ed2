//! Standard output that may be a closed pipe: `chappe status | head -1` is no
//! failure, and `println!` would panic.

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
/// As [`print`].
pub(crate) fn print_line(line: &str) -> io::Result<bool> {
    print(&format!("{line}\n"))
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
