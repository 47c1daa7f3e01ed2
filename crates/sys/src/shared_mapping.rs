//! Memory that several processes see: a sealed memfd, and parts of it mapped shared.
//! The layout is a type, and the type is all that is ever in it.
//!
//! Every thread of every process may read and write at any time, and a process
//! may be killed between any two instructions. Therefore a layout consists of
//! atomics and semaphores only, and no reference to plain memory is handed out.

use std::fmt;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MmapAdvise, ProtFlags, madvise, mprotect};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{SysconfVar, sysconf};

use super::process::Forked;
use super::semaphore::{Semaphore, SemaphorePlace, Sharing};
use super::shared::Shared;
use super::shared_layout::SharedLayout;

/// A process that shrinks the file kills every process that touches the missing pages, by SIGBUS.
/// These seals make that impossible, for us as well, and last as long as the file.
const SEALS: SealFlag =
    SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SEAL);

/// A sealed memfd, held by its descriptor. Mappings of it outlive it.
///
/// The descriptor is closed by exec, and is not for forked processes either: those have
/// the mappings.
#[derive(Debug)]
pub struct SharedFile {
    descriptor: OwnedFd,
    bytes: u64,
    is_read_only: bool,
}

impl SharedFile {
    /// A new file of `bytes` bytes, all of them 0. A page takes memory once it is
    /// touched. `name` appears in `/proc/PID/maps`.
    ///
    /// # Errors
    /// Of memfd_create, ftruncate (`EFBIG` beyond RLIMIT_FSIZE, with SIGXFSZ) or fcntl: no
    /// descriptor or no memory left.
    pub fn create(name: &str, bytes: u64) -> io::Result<Self> {
        let descriptor = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let length = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
        nix::unistd::ftruncate(&descriptor, length)?;
        fcntl(&descriptor, FcntlArg::F_ADD_SEALS(SEALS))?;
        Ok(Self { descriptor, bytes, is_read_only: false })
    }

    /// The one behind a descriptor that this process was handed, which is closed by exec
    /// from now on.
    ///
    /// # Errors
    /// `InvalidInput` when it is not sealed as [`create`](Self::create) does it, or is no
    /// memfd at all; otherwise of fcntl or fstat.
    pub fn from_descriptor(descriptor: OwnedFd) -> io::Result<Self> {
        fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        let seals = SealFlag::from_bits_retain(fcntl(&descriptor, FcntlArg::F_GET_SEALS)?);
        if !seals.contains(SEALS) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a memfd that is not sealed"));
        }
        let bytes = u64::try_from(fstat(&descriptor)?.st_size).map_err(io::Error::other)?;
        Ok(Self { descriptor, bytes, is_read_only: false })
    }

    /// Only the processes of its owner, or of the superuser, can open it once more by
    /// `/proc/PID/fd`: a memfd begins with the rights 0777.
    ///
    /// # Errors
    /// Of fchmod.
    pub fn forbid_others(&self) -> io::Result<()> {
        fchmod(&self.descriptor, Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok(())
    }

    /// A handle by which the file can be read and never written: what is mapped from here, in this
    /// process or in one that is forked later, cannot be made writable by mprotect either. A
    /// store ends the process by SIGSEGV.
    ///
    /// # Errors
    /// Of open: no descriptor is left, or `/proc` is not mounted.
    pub fn to_read(&self) -> io::Result<Self> {
        // A copy of a descriptor may do what the descriptor may. Only who opens the file once
        // more can ask for less.
        let descriptor = File::open(format!("/proc/self/fd/{}", self.descriptor.as_raw_fd()))?;
        Ok(Self { descriptor: descriptor.into(), bytes: self.bytes, is_read_only: true })
    }

    /// Its size in bytes, for good.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A second descriptor of it, closed by exec as well.
    ///
    /// # Errors
    /// Of fcntl: `EMFILE`.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.descriptor.try_clone()
    }

    /// Maps the `T` that is `offset` bytes from the beginning.
    ///
    /// # Errors
    /// Those of [`map_array`](Self::map_array).
    pub fn map<T: SharedLayout>(&self, offset: u64) -> io::Result<Arc<SharedMapping<T>>> {
        Ok(Arc::new(SharedMapping(self.array(offset, 1)?)))
    }

    /// Maps `count` of `T`, at least one, that begin `offset` bytes from the beginning,
    /// at a page.
    ///
    /// # Errors
    /// `InvalidInput` when they do not lie in the file; otherwise of mmap: no memory, or no
    /// address space (RLIMIT_AS).
    pub fn map_array<T: SharedLayout>(
        &self,
        offset: u64,
        count: usize,
    ) -> io::Result<Arc<SharedArray<T>>> {
        Ok(Arc::new(self.array(offset, count)?))
    }

    fn array<T: SharedLayout>(&self, offset: u64, count: usize) -> io::Result<SharedArray<T>> {
        const {
            assert!(size_of::<T>() > 0 && align_of::<T>() <= 4096 && !std::mem::needs_drop::<T>());
        }
        let outside = || io::Error::new(io::ErrorKind::InvalidInput, "outside of the shared file");
        let bytes = size_of::<T>().checked_mul(count).filter(|&bytes| bytes > 0);
        let bytes = bytes.ok_or_else(outside)?;
        let end = u64::try_from(bytes).ok().and_then(|bytes| offset.checked_add(bytes));
        if end.is_none_or(|end| end > self.bytes) || !offset.is_multiple_of(4096) {
            return Err(outside());
        }
        // Not `MmapMut::map_anon`: that one is MAP_PRIVATE, and each worker would
        // count into a copy of its own.
        let mut options = MmapOptions::new();
        options.offset(offset).len(bytes);
        let map = match self.is_read_only {
            true => options.map_raw_read_only(&self.descriptor)?,
            false => options.map_raw(&self.descriptor)?,
        };
        Ok(SharedArray { map, count, element: PhantomData })
    }
}

/// `T`s in memory shared with every process that maps the same file, or is forked after
/// it was mapped.
pub struct SharedArray<T> {
    map: MmapRaw,
    count: usize,
    element: PhantomData<T>,
}

impl<T: SharedLayout> SharedArray<T> {
    /// Sets a part of the layout to 0 and gives its memory back to the system.
    ///
    /// # Errors
    /// `EINVAL` unless the part is whole pages, of whatever size this machine has them;
    /// otherwise of madvise. Nothing was changed then.
    pub fn clear<U: SharedLayout>(&self, part: impl FnOnce(&[T]) -> &U) -> io::Result<()> {
        let part = part(self);
        let first = NonNull::from(part);
        let page = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|bytes| usize::try_from(bytes).ok());
        let page = page.ok_or(Errno::EINVAL)?;
        // madvise would round the end up, over what follows the part.
        if !size_of::<U>().is_multiple_of(page) || !first.addr().get().is_multiple_of(page) {
            return Err(Errno::EINVAL.into());
        }
        // SAFETY: madvise asks for a range of mapped pages; this one is a part of the
        // mapping, since it is borrowed from it, and whole pages. MADV_REMOVE turns it into
        // zeros, for all processes: `SharedLayout` promises that it tolerates writers and
        // that zeros are valid.
        unsafe { madvise(first.cast(), size_of::<U>(), MmapAdvise::MADV_REMOVE) }?;
        Ok(())
    }

    /// From here on this process can read and not write: a store would end it by
    /// SIGSEGV. Its descendants and handles to parts are held to it, other processes
    /// are not.
    ///
    /// # Errors
    /// Of mprotect, which needs memory to split a mapping, and this one is whole.
    pub fn forbid_writes(&self, _forked: &Forked) -> io::Result<()> {
        let start = NonNull::new(self.map.as_mut_ptr().cast()).ok_or(io::ErrorKind::NotFound)?;
        // SAFETY: mprotect asks for a range whose pages may lose the right; it is exactly
        // the mapping that `self` owns and keeps, so no other memory changes. It stays
        // readable, which is all that `Deref` promises; a store through it is stopped by
        // the kernel and changes nothing.
        unsafe { mprotect(start, self.map.len(), ProtFlags::PROT_READ) }?;
        Ok(())
    }
}

impl<T: SharedLayout> Deref for SharedArray<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: from_raw_parts asks for `count` valid `T`s that nobody changes but
        // through their own cells: `SharedFile::array` has mapped that many from a page
        // on, and `SharedLayout` promises that any bytes are a valid `T` which tolerates
        // writers. The seals keep the file's size, and it stays mapped while `self` lives.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast::<T>(), self.count) }
    }
}

impl<T> fmt::Debug for SharedArray<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedArray").field("count", &self.count).finish_non_exhaustive()
    }
}

/// One `T` in memory shared with every process that maps the same file, or is forked
/// after it was mapped.
pub struct SharedMapping<T>(SharedArray<T>);

impl<T: SharedLayout> SharedMapping<T> {
    /// Maps a new, zeroed `T` of which no descriptor is kept: only processes forked from
    /// here on share it. `name` appears in `/proc/PID/maps`.
    ///
    /// # Errors
    /// Those of [`SharedFile::create`] and [`SharedFile::map`].
    pub fn create(name: &str) -> io::Result<Arc<Self>> {
        let bytes = u64::try_from(size_of::<T>()).map_err(io::Error::other)?;
        SharedFile::create(name, bytes)?.map(0)
    }

    /// A handle to one part of the layout, which keeps the whole mapped.
    pub fn part<U: SharedLayout>(self: &Arc<Self>, part: impl FnOnce(&T) -> &U) -> Shared<U> {
        Shared::new(Arc::clone(self), |mapping| part(mapping))
    }

    /// Sets a semaphore's value, for use by all processes.
    ///
    /// Before the first fork, or while no process can wait on it: a sleeper would
    /// be forgotten.
    ///
    /// # Errors
    /// `InvalidInput` when `value` is beyond [`Semaphore::VALUE_MAX`].
    pub fn init_semaphore(
        &self,
        place: impl FnOnce(&T) -> &SemaphorePlace,
        value: u32,
    ) -> io::Result<()> {
        place(self).init(Sharing::Processes, value)
    }

    /// Gives the pages of a part back; they read as zeros, like [`SharedArray::clear`].
    ///
    /// # Errors
    /// Those of [`SharedArray::clear`].
    pub fn clear<U: SharedLayout>(&self, part: impl FnOnce(&T) -> &U) -> io::Result<()> {
        self.0.clear(|all| part(&all[0]))
    }

    /// Forbids this process to write a part, like [`SharedArray::forbid_writes`].
    ///
    /// # Errors
    /// Of mprotect.
    pub fn forbid_writes(&self, forked: &Forked) -> io::Result<()> {
        self.0.forbid_writes(forked)
    }

    /// A handle to a semaphore of the layout.
    ///
    /// # Panics
    /// If `init_semaphore` was not called for it.
    pub fn semaphore(self: &Arc<Self>, place: impl FnOnce(&T) -> &SemaphorePlace) -> Semaphore {
        let semaphore = self.find_semaphore(place);
        semaphore.expect("a semaphore in shared memory is initialised before its use")
    }

    /// A handle to a semaphore of a layout that somebody else has made; `None` if it was
    /// not initialised.
    pub fn find_semaphore(
        self: &Arc<Self>,
        place: impl FnOnce(&T) -> &SemaphorePlace,
    ) -> Option<Semaphore> {
        Semaphore::in_mapping(self.part(place))
    }
}

impl<T: SharedLayout> Deref for SharedMapping<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0[0]
    }
}

impl<T> fmt::Debug for SharedMapping<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMapping").field("bytes", &self.0.map.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared_layout;
    use std::os::fd::AsRawFd;
    use std::sync::atomic::{AtomicU64, Ordering};

    shared_layout! {
        #[derive(Debug)]
        struct Layout {
            bell: SemaphorePlace,
            cells: [AtomicU64; 1000],
        }
    }

    #[test]
    fn a_new_mapping_is_zero_and_keeps_what_is_written() {
        let mapping = SharedMapping::<Layout>::create("test").unwrap();
        assert!(mapping.cells.iter().all(|cell| cell.load(Ordering::Relaxed) == 0));
        mapping.cells[999].store(7, Ordering::Relaxed);
        assert_eq!(mapping.cells[999].load(Ordering::Relaxed), 7);
    }

    const PAGE: u64 = 4096;

    shared_layout! {
        #[derive(Debug)]
        #[repr(align(4096))]
        struct Pages {
            words: [AtomicU64; 2048],
        }
    }

    #[test]
    fn whole_pages_can_be_cleared_and_used_again() {
        let file = SharedFile::create("test", 10 * PAGE).unwrap();
        let array = file.map_array::<Pages>(2 * PAGE, 2).unwrap();
        for pages in array.iter() {
            pages.words[0].store(1, Ordering::Relaxed);
            pages.words[2047].store(2, Ordering::Relaxed);
        }
        array.clear(|pages| &pages[0]).unwrap();
        assert!(array[0].words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
        assert_eq!(array[1].words[0].load(Ordering::Relaxed), 1);
        assert_eq!(array[1].words[2047].load(Ordering::Relaxed), 2);
        array[0].words[0].store(4, Ordering::Relaxed);
        assert_eq!(array[0].words[0].load(Ordering::Relaxed), 4);
        assert!(array.clear(|pages| &pages[0].words[0]).is_err(), "not a whole page");
        assert_eq!(array[0].words[0].load(Ordering::Relaxed), 4);
    }

    #[test]
    fn two_mappings_of_a_place_are_the_same_memory() {
        let file = SharedFile::create("test", 12 * PAGE).unwrap();
        let (one, two) =
            (file.map::<Pages>(4 * PAGE).unwrap(), file.map_array::<Pages>(0, 3).unwrap());
        one.words[5].store(7, Ordering::Relaxed);
        assert_eq!(two[1].words[5].load(Ordering::Relaxed), 7);
        assert_eq!(two.len(), 3);
        // Nothing of the file is needed any more.
        drop(file);
        two[1].words[5].store(8, Ordering::Relaxed);
        assert_eq!(one.words[5].load(Ordering::Relaxed), 8);
    }

    #[test]
    fn what_is_mapped_to_read_cannot_be_made_writable() {
        let file = SharedFile::create("test", 4 * PAGE).unwrap();
        file.forbid_others().unwrap();
        let writer = file.map::<Pages>(0).unwrap();
        let reader = file.to_read().unwrap().map::<Pages>(0).unwrap();
        writer.words[5].store(7, Ordering::Relaxed);
        assert_eq!(reader.words[5].load(Ordering::Relaxed), 7);
        let make_writable = |mapping: &SharedMapping<Pages>| {
            let start = NonNull::new(mapping.0.map.as_mut_ptr().cast()).unwrap();
            let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            // SAFETY: the range is exactly a mapping that lives until the end of the test, and
            // all that is in it is atomic: more rights change nothing for who reads.
            unsafe { mprotect(start, mapping.0.map.len(), rights) }
        };
        assert_eq!(make_writable(&reader), Err(Errno::EACCES));
        assert_eq!(make_writable(&writer), Ok(()));
    }

    #[test]
    fn what_does_not_lie_in_the_file_is_not_mapped() {
        let file = SharedFile::create("test", 8 * PAGE - 1).unwrap();
        assert!(file.map_array::<Pages>(0, 1).is_ok());
        for (offset, count) in
            [(4 * PAGE, 1), (0, 2), (0, 0), (0, usize::MAX), (1, 1), (u64::MAX - PAGE + 1, 1)]
        {
            let error = file.map_array::<Pages>(offset, count).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{offset} {count}");
        }
    }

    #[test]
    fn a_descriptor_that_was_handed_on_is_the_same_file_and_closed_by_exec() {
        let file = SharedFile::create("test", 4 * PAGE).unwrap();
        let mapping = file.map::<Pages>(0).unwrap();
        mapping.words[0].store(9, Ordering::Relaxed);
        let descriptor = file.descriptor().unwrap();
        fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let again = SharedFile::from_descriptor(descriptor).unwrap();
        assert_eq!(again.bytes(), 4 * PAGE);
        assert_eq!(again.map::<Pages>(0).unwrap().words[0].load(Ordering::Relaxed), 9);
        for file in [&file, &again] {
            let flags = fcntl(&file.descriptor, FcntlArg::F_GETFD).unwrap();
            let number = file.descriptor.as_raw_fd();
            assert_eq!(flags, FdFlag::FD_CLOEXEC.bits(), "descriptor {number}");
        }
    }

    #[test]
    fn only_what_cannot_shrink_is_taken() {
        let unsealed = memfd_create("test", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        nix::unistd::ftruncate(&unsealed, 4096).unwrap();
        let half = unsealed.try_clone().unwrap();
        let error = SharedFile::from_descriptor(unsealed).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        fcntl(&half, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
        assert!(SharedFile::from_descriptor(half).is_err());
        let no_memfd = tempfile::tempfile().unwrap();
        assert!(SharedFile::from_descriptor(no_memfd.into()).is_err());
    }

    #[test]
    fn a_handle_keeps_the_mapping() {
        let mapping = SharedMapping::<Layout>::create("test").unwrap();
        mapping.init_semaphore(|layout| &layout.bell, 3).unwrap();
        let bell = mapping.semaphore(|layout| &layout.bell);
        let cell = mapping.part(|layout| &layout.cells[5]);
        drop(mapping);
        assert!(bell.try_wait());
        assert_eq!(bell.value(), 2);
        cell.store(1, Ordering::Relaxed);
        assert_eq!(cell.load(Ordering::Relaxed), 1);
    }

    #[test]
    #[should_panic(expected = "initialised before its use")]
    fn a_semaphore_that_was_never_initialised_is_refused() {
        let mapping = SharedMapping::<Layout>::create("test").unwrap();
        let _semaphore = mapping.semaphore(|layout| &layout.bell);
    }
}
