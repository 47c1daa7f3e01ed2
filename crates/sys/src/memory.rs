//! Memory that the allocator keeps.

/// Gives the pages back that the allocator has free and keeps: after a storm that can be
/// most of what the process has. Walks all that is free, a matter of milliseconds for some
/// hundred megabytes; no thread can allocate from an arena while it is walked.
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
