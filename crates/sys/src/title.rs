//! What `ps` shows for a process: `chappe: worker process 0` and the like.
//!
//! Linux has no call for it. `ps` reads the memory in which the kernel once put
//! the arguments and the environment, so that memory is overwritten, after
//! everything in it that somebody may still read was copied elsewhere.
//!
//! `prepare_title` runs once, early, in a process with one thread; `set_title`
//! afterwards in any process forked from it, by one thread.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use super::process::current_thread_count;

/// Where the kernel put the strings, and how many bytes there are. `TITLE_BYTES`
/// is 0 until `prepare_title` has moved the strings away.
static TITLE: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static TITLE_BYTES: AtomicUsize = AtomicUsize::new(0);

static ARGC: AtomicUsize = AtomicUsize::new(0);
static ARGV: AtomicPtr<*mut libc::c_char> = AtomicPtr::new(ptr::null_mut());

unsafe extern "C" {
    static mut environ: *mut *mut libc::c_char;
}

/// glibc hands the arguments of `main` to every function of `.init_array`; a Rust
/// `main` does not get the pointers any more.
extern "C" fn remember_arguments(
    argc: libc::c_int,
    argv: *mut *mut libc::c_char,
    _environment: *mut *mut libc::c_char,
) {
    ARGC.store(usize::try_from(argc).unwrap_or(0), Ordering::Relaxed);
    ARGV.store(argv, Ordering::Relaxed);
}

#[used]
// SAFETY: the section holds pointers to functions of exactly this type, which the
// C runtime calls before `main`; the function only stores two words.
#[unsafe(link_section = ".init_array")]
static REMEMBER_ARGUMENTS: extern "C" fn(
    libc::c_int,
    *mut *mut libc::c_char,
    *mut *mut libc::c_char,
) = remember_arguments;

/// Moves arguments and environment out of the way, so that titles have room.
/// `std::env` goes on working. A second call does nothing.
///
/// # Errors
/// `EBUSY` in a process with more than one thread: another could be reading the
/// environment. `ENOMEM`. Titles stay off then; nothing else depends on them.
pub fn prepare_title() -> io::Result<()> {
    if TITLE_BYTES.load(Ordering::Relaxed) > 0 {
        return Ok(());
    }
    if current_thread_count()? != 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let argv = ARGV.load(Ordering::Relaxed);
    if argv.is_null() {
        return Ok(());
    }
    // SAFETY: `argv` is main's array of `argc` strings, in the kernel's area.
    let argv = unsafe { std::slice::from_raw_parts_mut(argv, ARGC.load(Ordering::Relaxed)) };
    let Some(&start) = argv.first() else { return Ok(()) };
    let mut end = start.cast::<u8>();
    move_strings(argv, &mut end)?;
    // SAFETY: one thread (counted above), so nobody changes the environment now.
    let variables = unsafe { environ };
    let mut count = 0;
    // SAFETY: `environ` is an array of pointers that ends with a null one.
    while !variables.is_null() && !unsafe { variables.wrapping_add(count).read() }.is_null() {
        count += 1;
    }
    if count > 0 {
        // SAFETY: `count` pointers were just seen in it.
        let variables = unsafe { std::slice::from_raw_parts_mut(variables, count) };
        move_strings(variables, &mut end)?;
    }
    TITLE.store(start.cast(), Ordering::Relaxed);
    TITLE_BYTES.store(end.addr() - start.addr(), Ordering::Relaxed);
    Ok(())
}

/// Replaces each string that lies at `end` by a copy and moves `end` behind it.
/// A string from somewhere else (`setenv` made it) is left where it is.
fn move_strings(strings: &mut [*mut libc::c_char], end: &mut *mut u8) -> io::Result<()> {
    for string in strings {
        if string.cast::<u8>() != *end {
            continue;
        }
        // SAFETY: an entry of argv or environ is a string that ends with a NUL.
        let bytes = unsafe { libc::strlen(*string) } + 1;
        // SAFETY: as above. The copy is never freed: argv and environ keep it.
        let copy = unsafe { libc::strdup(*string) };
        if copy.is_null() {
            return Err(io::Error::last_os_error());
        }
        *string = copy;
        *end = end.wrapping_add(bytes);
    }
    Ok(())
}

/// Sets the title, cut to the room there is. Without `prepare_title` it does nothing.
pub fn set_title(title: &str) {
    let room = TITLE_BYTES.load(Ordering::Relaxed);
    if room == 0 {
        return;
    }
    let area = TITLE.load(Ordering::Relaxed);
    let bytes = title.len().min(room - 1);
    // SAFETY: `area` has `room` writable bytes (the kernel's argument area, on
    // this process's stack for its whole life), nothing points into it any more,
    // and `bytes` < `room`.
    unsafe { ptr::copy_nonoverlapping(title.as_ptr(), area, bytes) };
    // SAFETY: as above; the rest of the same area, at least one byte.
    unsafe { area.wrapping_add(bytes).write_bytes(0, room - bytes) };
}
