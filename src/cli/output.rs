//! Standard output that may be a closed pipe: `chappe status | head -1` is no
//! failure, and `println!` would panic.

use std::io::{self, ErrorKind, Write};

/// Writes text. A reader that has gone away is no error.
///
/// # Errors
/// Any other error of standard output, such as a full disk.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes a line, like [`print`].
///
/// # Errors
/// As [`print`].
pub(crate) fn print_line(line: &str) -> io::Result<()> {
    print(&format!("{line}\n"))
}
