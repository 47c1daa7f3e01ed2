//! The memory of the broadcast ring: the log of all messages of a machine.

use chappe_rings::{Broadcast, BroadcastCursors};
use chappe_sys::{SharedArray, SharedFile, SharedMapping, shared_layout};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const PAGE: usize = 4096;

shared_layout! {
    /// What does not change.
    #[derive(Debug)]
    #[repr(align(4096))]
    struct Front {
        epoch: AtomicU64,
    }
}

const _: () = assert!(size_of::<Front>() == PAGE && size_of::<BroadcastCursors>() <= PAGE);
const WORDS_AT: usize = 2 * PAGE;

/// The log. Workers read it and the hub writes it.
#[derive(Clone, Debug)]
pub struct Ring {
    front: Arc<SharedMapping<Front>>,
    broadcast: Broadcast,
}

impl Ring {
    /// New memory for a ring of `bytes` bytes, a power of two, as a file that only its owner's
    /// processes can open. `epoch` tells its offsets from those of another ring.
    ///
    /// # Errors
    /// Of memfd_create(2), fchmod(2) and mmap(2): no descriptor or no memory left.
    ///
    /// # Panics
    /// Below [`BYTES_MIN`](Self::BYTES_MIN).
    pub fn create(bytes: usize, epoch: u64) -> io::Result<SharedFile> {
        assert!(bytes >= Self::BYTES_MIN, "a ring of {bytes} bytes is too small for a message");
        Self::of_any_size(bytes, epoch)
    }

    /// Of these bytes the longest message takes an eighth at the most.
    pub const BYTES_MIN: usize = 1 << 20;

    pub(crate) fn of_any_size(bytes: usize, epoch: u64) -> io::Result<SharedFile> {
        let file = SharedFile::create("chappe-topics", (WORDS_AT + bytes) as u64)?;
        file.forbid_others()?;
        file.map::<Front>(PAGE as u64)?.epoch.store(epoch, Ordering::Relaxed);
        Ok(file)
    }

    /// Maps it: to write, or to read alone if the file [is for that](SharedFile::to_read).
    ///
    /// # Errors
    /// `InvalidInput`: it is something else. Otherwise of mmap(2).
    pub fn map(file: &SharedFile) -> io::Result<Self> {
        let bytes = usize::try_from(file.bytes()).ok().and_then(|it| it.checked_sub(WORDS_AT));
        let bytes = bytes.filter(|bytes| bytes.is_power_of_two() && *bytes >= PAGE);
        let bytes = bytes.ok_or(io::ErrorKind::InvalidInput)?;
        let words: Arc<SharedArray<AtomicU64>> =
            file.map_array(WORDS_AT as u64, bytes / size_of::<u64>())?;
        let cursors: Arc<SharedMapping<BroadcastCursors>> = file.map(0)?;
        Ok(Self { front: file.map(PAGE as u64)?, broadcast: Broadcast::new(cursors, words) })
    }

    /// What tells its offsets from those of another ring.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.front.epoch.load(Ordering::Relaxed)
    }

    /// How many bytes a worker has yet to read that has read up to this position.
    #[must_use]
    pub fn bytes_behind(&self, position: u64) -> u64 {
        let behind = self.broadcast.position().saturating_sub(position);
        behind.saturating_mul(size_of::<u64>() as u64)
    }

    /// The ring itself.
    #[must_use]
    pub fn broadcast(&self) -> &Broadcast {
        &self.broadcast
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{CLIENT_BYTES_MAX, RECORD_BYTES, REQUEST_BYTES};

    #[test]
    fn the_smallest_ring_holds_the_longest_message() {
        let ring = Ring::map(&Ring::create(Ring::BYTES_MIN, 7).unwrap()).unwrap();
        let longest = RECORD_BYTES + REQUEST_BYTES + CLIENT_BYTES_MAX;
        assert!(longest <= ring.broadcast().record_bytes_max());
        assert_eq!(ring.epoch(), 7);
        assert_eq!(ring.bytes_behind(0), 0);
        ring.broadcast().writer().unwrap().write(&vec![0; longest]);
        let behind = ring.bytes_behind(0);
        assert!(behind > longest as u64 && behind < 2 * longest as u64, "{behind}");
        assert_eq!(ring.bytes_behind(u64::MAX), 0, "what a worker says may be anything");
        assert!(Ring::map(&SharedFile::create("other", 12345).unwrap()).is_err());
    }
}
