//! The body of a frame, as a command line gives it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use chappe_client::BODY_BYTES_MAX;

/// What the command line has as text.
pub(super) fn of_text(text: &str) -> io::Result<Vec<u8>> {
    read(text.as_bytes())
}

/// What the file has.
pub(super) fn of_file(path: &Path) -> io::Result<Vec<u8>> {
    File::open(path)
        .and_then(read)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// Reads at most one byte more than fits: enough to know that it is too much.
pub(super) fn read(source: impl Read) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    source.take(BODY_BYTES_MAX as u64 + 1).read_to_end(&mut body)?;
    if body.len() > BODY_BYTES_MAX {
        let text = format!("more than {BODY_BYTES_MAX} bytes do not fit a frame");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_as_long_as_a_frame_allows_and_not_longer() {
        assert_eq!(of_text(&"x".repeat(BODY_BYTES_MAX)).unwrap().len(), BODY_BYTES_MAX);
        let error = of_text(&"x".repeat(BODY_BYTES_MAX + 1)).unwrap_err();
        assert_eq!(error.to_string(), "more than 65527 bytes do not fit a frame");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let error = of_file(Path::new("/nowhere/body")).unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/body: "), "{error}");
    }
}
