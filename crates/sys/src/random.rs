//! Random numbers from the kernel.

use std::io;

/// A key that nobody can guess: 128 bits from getrandom(2). Any thread may call it. It
/// sleeps only on a machine that has just been started, until the kernel has gathered
/// enough.
///
/// # Errors
/// Of getrandom: `ENOSYS` where a sandbox forbids it.
pub fn key() -> io::Result<[u64; 2]> {
    let mut key = [0_u64; 2];
    let bytes = size_of_val(&key);
    // SAFETY: getrandom writes up to `bytes` bytes at the pointer, which is to a live
    // local of that size, for which any bytes are valid.
    let got = unsafe { libc::getrandom(key.as_mut_ptr().cast(), bytes, 0) };
    // Up to 256 bytes come whole, and no signal interrupts them.
    match usize::try_from(got) {
        Ok(got) if got == bytes => Ok(key),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_keys_are_alike() {
        let (one, two) = (key().unwrap(), key().unwrap());
        for (one, two) in one.into_iter().zip(two) {
            assert!(one != two && one != 0 && two != 0, "{one} {two}");
        }
    }
}
