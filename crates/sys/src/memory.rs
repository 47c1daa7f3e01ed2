//! Free memory that the allocator keeps in the process.

/// Allocations below this size come from the heap; larger ones have a mapping of their own.
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD_BYTES: libc::c_int = 4 * 1024 * 1024;

/// Free memory that is left at the top of a heap when it grows or is trimmed. It is trimmed
/// when twice as much is free there. Each thread may have a heap of its own, and
/// malloc_trim(3) leaves the tops of all but the first: this is what a storm leaves.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: libc::c_int = 2 * 1024 * 1024;

/// Makes the allocator keep freed memory for the next allocation. By default glibc returns
/// it to the kernel as soon as 128 KiB are free at the top of a heap, and the next
/// allocation faults its pages in again; that happens all the time where one thread
/// allocates what another one frees. [`give_back`] returns what a storm has left. Settings
/// of the environment (`GLIBC_TUNABLES`, `MALLOC_MMAP_THRESHOLD_`) are overridden.
///
/// To be called before there are other threads.
///
/// With another C library than glibc it does nothing.
pub fn keep_for_reuse() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_TRIM_THRESHOLD, 2 * KEPT_BYTES),
        (libc::M_TOP_PAD, KEPT_BYTES),
        (libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES),
    ] {
        // SAFETY: mallopt(3) takes two integers. It is not safe against allocations of
        // other threads in old versions of glibc; the one caller has no other thread.
        let result = unsafe { libc::mallopt(parameter, value) };
        debug_assert_eq!(result, 1, "a known parameter");
    }
}

/// Returns the allocator's free pages to the kernel. After a storm of messages these can be
/// most of the process's memory. It walks all free memory, which takes milliseconds for some
/// hundred megabytes; no thread can allocate from an arena while that is walked.
///
/// With another C library than glibc it does nothing.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes no pointer, is safe to call from any thread, and
    // touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
