//! What tells a zone from other memory, and from the zone of another program.
//!
//! A program maps a zone that it did not make only in an upgrade: the new program gets
//! the descriptor from the old one, while workers of the old one go on writing. If both
//! do not mean the same bytes, this is found here, before anything is touched.

use std::io;
use std::sync::atomic::Ordering;

use chappe_sys::SharedFile;
use thiserror::Error;

use super::layout::{DIGEST, Header, MAGIC, VERSION, ZONE_BYTES};

/// Why memory cannot be used as a zone. Nothing in it was changed.
#[derive(Debug, Error)]
pub enum ZoneError {
    /// It can't be mapped, or could shrink under the mapping.
    #[error("the zone cannot be mapped")]
    System(#[from] io::Error),
    /// There is not even room for a header.
    #[error("{bytes} bytes are too few for a zone")]
    TooSmall {
        /// How many there are.
        bytes: u64,
    },
    /// It is something else, or a zone that was never completed.
    #[error("this is no zone: it begins with {found:#018x}")]
    WrongMagic {
        /// What it begins with.
        found: u64,
    },
    /// Its fields mean something else.
    #[error("the zone has version {found}, and this program has {VERSION}")]
    OtherVersion {
        /// Its version.
        found: u64,
    },
    /// Its fields lie somewhere else.
    #[error("the zone's layout is {found:#018x}, and this program's is {DIGEST:#018x}")]
    OtherLayout {
        /// The digest of its layout.
        found: u64,
    },
    /// It is longer or shorter than such a zone is.
    #[error("the zone has {bytes} bytes and says {noted}, of {ZONE_BYTES}")]
    WrongSize {
        /// How many it has.
        bytes: u64,
        /// How many its header says.
        noted: u64,
    },
    /// A semaphore is not initialised: somebody has written over it.
    #[error("the zone is damaged: its semaphore {name} was overwritten")]
    Damaged {
        /// The semaphore.
        name: &'static str,
    },
}

impl From<ZoneError> for io::Error {
    fn from(error: ZoneError) -> Self {
        match error {
            ZoneError::System(cause) => cause,
            other => Self::other(other),
        }
    }
}

/// Declares a zone complete.
pub(super) fn write(header: &Header) {
    header.version.store(VERSION, Ordering::Relaxed);
    header.digest.store(DIGEST, Ordering::Relaxed);
    header.bytes.store(ZONE_BYTES, Ordering::Relaxed);
    // Last: a zone with its magic number is complete.
    header.magic.store(MAGIC, Ordering::Release);
}

/// Whether the file is a zone of this very layout.
pub(super) fn check(file: &SharedFile) -> Result<(), ZoneError> {
    let bytes = file.bytes();
    if usize::try_from(bytes).is_ok_and(|bytes| bytes < size_of::<Header>()) {
        return Err(ZoneError::TooSmall { bytes });
    }
    let header = file.map::<Header>(0)?;
    let magic = header.magic.load(Ordering::Acquire);
    if magic != MAGIC {
        return Err(ZoneError::WrongMagic { found: magic });
    }
    // In this order: with another version the digest is another one anyhow.
    let version = header.version.load(Ordering::Relaxed);
    if version != VERSION {
        return Err(ZoneError::OtherVersion { found: version });
    }
    let digest = header.digest.load(Ordering::Relaxed);
    if digest != DIGEST {
        return Err(ZoneError::OtherLayout { found: digest });
    }
    let noted = header.bytes.load(Ordering::Relaxed);
    if bytes != ZONE_BYTES || noted != ZONE_BYTES {
        return Err(ZoneError::WrongSize { bytes, noted });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Zone;
    use std::os::fd::OwnedFd;
    use std::sync::atomic::AtomicU64;

    /// A zone, with one word of its header overwritten.
    fn doctored(word: fn(&Header) -> &AtomicU64, value: u64) -> ZoneError {
        let zone = Zone::create(1).unwrap();
        word(&zone.layout().header).store(value, Ordering::Relaxed);
        Zone::from_descriptor(zone.descriptor().unwrap()).unwrap_err()
    }

    /// Memory of `bytes` bytes, with a header as a zone has it.
    fn with_header(bytes: u64) -> OwnedFd {
        let file = SharedFile::create("test", bytes).unwrap();
        write(&file.map::<Header>(0).unwrap());
        file.descriptor().unwrap()
    }

    #[test]
    fn memory_that_is_too_small_is_no_zone() {
        for bytes in [0, 1, 63] {
            let file = SharedFile::create("test", bytes).unwrap();
            let error = Zone::from_descriptor(file.descriptor().unwrap()).unwrap_err();
            assert!(matches!(error, ZoneError::TooSmall { bytes: found } if found == bytes));
            assert_eq!(error.to_string(), format!("{bytes} bytes are too few for a zone"));
        }
    }

    #[test]
    fn memory_without_the_magic_number_is_no_zone() {
        let blank = SharedFile::create("test", ZONE_BYTES).unwrap();
        let error = Zone::from_descriptor(blank.descriptor().unwrap()).unwrap_err();
        assert!(matches!(error, ZoneError::WrongMagic { found: 0 }), "{error}");
        let error = doctored(|header| &header.magic, MAGIC ^ 1);
        assert_eq!(error.to_string(), "this is no zone: it begins with 0x6368617070657a6f");
    }

    #[test]
    fn a_zone_of_another_version_is_refused() {
        for version in [0, VERSION - 1, VERSION + 1, u64::MAX] {
            let error = doctored(|header| &header.version, version);
            assert!(matches!(error, ZoneError::OtherVersion { found } if found == version));
            let text = format!("the zone has version {version}, and this program has {VERSION}");
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn a_zone_of_another_layout_is_refused() {
        let error = doctored(|header| &header.digest, DIGEST.wrapping_add(1));
        let ZoneError::OtherLayout { found } = error else { panic!("{error}") };
        assert_eq!(found, DIGEST.wrapping_add(1));
    }

    #[test]
    fn a_zone_of_another_size_is_refused() {
        let error = doctored(|header| &header.bytes, ZONE_BYTES - 1);
        let noted = ZONE_BYTES - 1;
        assert!(matches!(error, ZoneError::WrongSize { noted: found, .. } if found == noted));
        for wrong in [64, 4096, ZONE_BYTES - 1, ZONE_BYTES + 1] {
            let error = Zone::from_descriptor(with_header(wrong)).unwrap_err();
            let ZoneError::WrongSize { bytes, noted } = error else { panic!("{error}") };
            assert_eq!((bytes, noted), (wrong, ZONE_BYTES));
        }
    }

    #[test]
    fn a_zone_whose_semaphores_were_overwritten_is_refused() {
        let error = Zone::from_descriptor(with_header(ZONE_BYTES)).unwrap_err();
        let text = "the zone is damaged: its semaphore worker_ready was overwritten";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn what_is_no_memory_of_ours_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(Zone::from_descriptor(null.into()), Err(ZoneError::System(_))));
    }
}
