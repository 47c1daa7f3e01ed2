//! Memory that several processes see: a sealed memfd, mapped shared before the
//! first fork. The layout is a type, and the type is all that is ever in it.
//!
//! Every thread of every process may read and write at any time, and a process
//! may be killed between any two instructions. Therefore a layout consists of
//! atomics and semaphores only, and no reference to plain memory is handed out.

use std::any::Any;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MmapAdvise, ProtFlags, madvise, mprotect};

use super::process::Forked;
use super::semaphore::{Semaphore, SemaphorePlace, Sharing};

/// A type that may lie in memory which other processes write.
///
/// # Safety
/// Zero bytes are a valid value; every field is an atomic or a
/// [`SemaphorePlace`] (or consists of such); it needs no drop. Structs get it by
/// `shared_layout!`, which checks the fields.
pub unsafe trait SharedLayout: Send + Sync + 'static {}

// SAFETY: atomics are valid as zero bytes, and made for concurrent writers.
unsafe impl SharedLayout for AtomicU32 {}
// SAFETY: as above.
unsafe impl SharedLayout for AtomicU64 {}
// SAFETY: an array is its elements, one after the other.
unsafe impl<T: SharedLayout, const N: usize> SharedLayout for [T; N] {}

/// Defines a `#[repr(C)]` struct that may lie in a [`SharedMapping`]. Each field's
/// type must be a [`SharedLayout`] itself, or the crate does not compile.
#[macro_export]
macro_rules! shared_layout {
    ($(#[$meta:meta])* $vis:vis struct $name:ident {
        $($(#[$field_meta:meta])* $field_vis:vis $field:ident: $type:ty,)*
    }) => {
        $(#[$meta])*
        #[repr(C)]
        $vis struct $name { $($(#[$field_meta])* $field_vis $field: $type,)* }

        const _: () = {
            const fn is_shared_layout<T: $crate::SharedLayout>() {}
            $(is_shared_layout::<$type>();)*
        };

        #[allow(unsafe_code, reason = "each field's type is checked two lines above")]
        // SAFETY: every field is a `SharedLayout`, so zero bytes are valid for the
        // whole and no field is plain memory; padding is never read.
        unsafe impl $crate::SharedLayout for $name {}
    };
}

/// One `T` in memory shared with every process forked after `create`.
pub struct SharedMapping<T> {
    map: MmapRaw,
    layout: PhantomData<T>,
}

impl<T: SharedLayout> SharedMapping<T> {
    const BYTES: usize = size_of::<T>();

    /// Maps a new, zeroed `T`. `name` appears in `/proc/PID/maps`.
    ///
    /// # Errors
    /// Of memfd_create, ftruncate, fcntl or mmap: no descriptor or no memory left.
    pub fn create(name: &str) -> io::Result<Arc<Self>> {
        const {
            assert!(Self::BYTES > 0 && align_of::<T>() <= 4096 && !std::mem::needs_drop::<T>());
        }
        // Not `MmapMut::map_anon`: that one is MAP_PRIVATE, and each worker would
        // count into a copy of its own.
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let bytes = libc::off_t::try_from(Self::BYTES).map_err(io::Error::other)?;
        nix::unistd::ftruncate(&fd, bytes)?;
        // Whoever shrinks the file kills every process that touches the missing
        // pages by SIGBUS. The seal makes that impossible, for us as well.
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
        let map = MmapOptions::new().len(Self::BYTES).map_raw(&fd)?;
        // The mapping holds the memory; the descriptor is closed here, so that
        // there is none for a worker to inherit.
        Ok(Arc::new(Self { map, layout: PhantomData }))
    }

    /// A handle to one part of the layout, which keeps the whole mapped.
    pub fn part<U: SharedLayout>(self: &Arc<Self>, part: impl FnOnce(&T) -> &U) -> Shared<U> {
        Shared::new(Arc::clone(self), |mapping| part(mapping))
    }

    /// Sets numbers of the layout to 0 and gives their memory back to the system. They
    /// must be whole pages.
    ///
    /// # Errors
    /// Of madvise: `EINVAL` unless they are whole pages.
    pub fn clear_words(&self, words: impl FnOnce(&T) -> &[AtomicU64]) -> io::Result<()> {
        let words = words(self);
        let first = NonNull::from(words).cast();
        // SAFETY: the range is a part of this mapping, since it is borrowed from it.
        // MADV_REMOVE turns it into zeros, for all processes: atomics tolerate writers,
        // and 0 is valid for them.
        unsafe { madvise(first, size_of_val(words), MmapAdvise::MADV_REMOVE) }?;
        Ok(())
    }

    /// Sets a semaphore's value, for use by all processes.
    ///
    /// Before the first fork, or while no process can wait on it: a sleeper would
    /// be forgotten.
    ///
    /// # Errors
    /// `InvalidInput` when `value` is beyond `SEM_VALUE_MAX`.
    pub fn init_semaphore(
        &self,
        place: impl FnOnce(&T) -> &SemaphorePlace,
        value: u32,
    ) -> io::Result<()> {
        place(self).init(Sharing::Processes, value)
    }

    /// From here on this process can read and not write: a store would end it by
    /// SIGSEGV. Its descendants and handles to parts are held to it, other processes
    /// are not.
    ///
    /// # Errors
    /// Of mprotect, which needs memory to split a mapping, and this one is whole.
    pub fn forbid_writes(&self, _forked: &Forked) -> io::Result<()> {
        let start = NonNull::new(self.map.as_mut_ptr().cast()).ok_or(io::ErrorKind::NotFound)?;
        // SAFETY: the range is exactly the mapping that `self` owns and keeps, so no
        // other memory changes. It stays readable, which is all that `Deref` promises;
        // a store through it is stopped by the kernel and changes nothing.
        unsafe { mprotect(start, self.map.len(), ProtFlags::PROT_READ) }?;
        Ok(())
    }

    /// A handle to a semaphore of the layout.
    ///
    /// # Panics
    /// If `init_semaphore` was not called for it.
    pub fn semaphore(self: &Arc<Self>, place: impl FnOnce(&T) -> &SemaphorePlace) -> Semaphore {
        Semaphore::in_mapping(self.part(place))
    }
}

impl<T: SharedLayout> Deref for SharedMapping<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the mapping is BYTES long, page-aligned and was zeroed by the
        // kernel; `SharedLayout` promises that this is a valid `T` which tolerates
        // writers. The seals keep its size, and it stays mapped while `self` lives.
        unsafe { &*self.map.as_ptr().cast::<T>() }
    }
}

impl<T> fmt::Debug for SharedMapping<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMapping").field("bytes", &self.map.len()).finish()
    }
}

/// A reference to a part of something that it keeps alive: one pointer, so that
/// the hot path does not walk from the mapping's start each time.
pub struct Shared<U> {
    part: NonNull<U>,
    /// Never read: it holds the memory that `part` points into.
    owner: Arc<dyn Any + Send + Sync>,
}

impl<U: Sync + 'static> Shared<U> {
    pub(super) fn new<O: Send + Sync + 'static>(
        owner: Arc<O>,
        part: impl FnOnce(&O) -> &U,
    ) -> Self {
        let part = NonNull::from(part(&owner));
        Self { part, owner }
    }

    /// A value of this process alone, for tests and models.
    #[must_use]
    pub fn private(value: U) -> Self
    where
        U: Send,
    {
        Self::new(Arc::new(value), |value| value)
    }
}

impl<U> Deref for Shared<U> {
    type Target = U;

    fn deref(&self) -> &U {
        // SAFETY: `part` was a reference into what `owner` keeps alive, unmoved;
        // only shared references to it exist, for the Arc is never unique.
        unsafe { self.part.as_ref() }
    }
}

impl<U> Clone for Shared<U> {
    fn clone(&self) -> Self {
        Self { part: self.part, owner: Arc::clone(&self.owner) }
    }
}

impl<U> fmt::Debug for Shared<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

// SAFETY: a `Shared<U>` is a `&U` (Send when U is Sync) and an Arc of something
// that is Send and Sync.
unsafe impl<U: Sync> Send for Shared<U> {}
// SAFETY: as above; `&Shared<U>` gives no more than `&U` and a clone.
unsafe impl<U: Sync> Sync for Shared<U> {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

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

    #[test]
    fn whole_pages_can_be_cleared_and_used_again() {
        const PAGES: usize = 64 * 1024 / size_of::<u64>();
        shared_layout! {
            #[derive(Debug)]
            #[repr(align(4096))]
            struct Pages {
                words: [AtomicU64; PAGES],
                last: AtomicU64,
            }
        }
        let mapping = SharedMapping::<Pages>::create("test").unwrap();
        mapping.words[0].store(1, Ordering::Relaxed);
        mapping.words[PAGES - 1].store(2, Ordering::Relaxed);
        mapping.last.store(3, Ordering::Relaxed);
        mapping.clear_words(|pages| &pages.words).unwrap();
        assert!(mapping.words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
        assert_eq!(mapping.last.load(Ordering::Relaxed), 3);
        mapping.words[0].store(4, Ordering::Relaxed);
        assert_eq!(mapping.words[0].load(Ordering::Relaxed), 4);
        assert!(mapping.clear_words(|pages| &pages.words[1..]).is_err(), "no whole pages");
    }

    #[test]
    fn a_handle_keeps_the_mapping() {
        let mapping = SharedMapping::<Layout>::create("test").unwrap();
        mapping.init_semaphore(|layout| &layout.bell, 3).unwrap();
        let bell = mapping.semaphore(|layout| &layout.bell);
        let cell = mapping.part(|layout| &layout.cells[5]);
        drop(mapping);
        assert!(bell.try_wait().unwrap());
        assert_eq!(bell.value().unwrap(), 2);
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
