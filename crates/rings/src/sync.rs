//! The atomics and the memory of rings.
//!
//! Under `--cfg loom` the same names stand for loom's models, so that `tests/loom.rs` runs
//! the very code of this crate through the orders in which processes can meet. Nothing else
//! in the crate may name std's atomics.

#[cfg(not(loom))]
pub use native::{AtomicU32, AtomicU64, Cells, Words, fence, spin_loop, step};

#[cfg(loom)]
pub use model::{AtomicU32, AtomicU64, Cells, Words, die_at, fence, spin_loop, step, survives};

pub use std::sync::atomic::Ordering;

#[cfg(not(loom))]
mod native {
    use chappe_sys::{SharedArray, SharedMapping};
    use std::sync::Arc;

    pub use chappe_sys::crash::step;
    pub use std::hint::spin_loop;
    pub use std::sync::atomic::{AtomicU32, AtomicU64, fence};

    /// Cursors in shared memory.
    pub type Cells<T> = Arc<SharedMapping<T>>;
    /// The words of a ring in shared memory.
    pub type Words = Arc<SharedArray<AtomicU64>>;
}

#[cfg(loom)]
mod model {
    //! A process is a thread; its death is a panic that its model catches.
    #![allow(missing_docs, reason = "seen by the models only")]

    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::sync::Arc;

    pub use loom::hint::spin_loop;
    pub use loom::sync::atomic::{AtomicU32, AtomicU64, fence};

    pub type Cells<T> = Arc<T>;
    pub type Words = Arc<[AtomicU64]>;

    struct Death;

    thread_local! {
        /// Steps until this thread dies; 0: it lives.
        static LEFT: Cell<u32> = const { Cell::new(0) };
    }

    /// This thread dies at its nth step from now on, the first one is 1.
    pub fn die_at(nth: u32) {
        LEFT.set(nth);
    }

    pub fn step(_place: &str) {
        let left = LEFT.get();
        LEFT.set(left.saturating_sub(1));
        if left == 1 {
            resume_unwind(Box::new(Death));
        }
    }

    /// Whether it came to the end of `life`, or died at a step.
    pub fn survives(life: impl FnOnce()) -> bool {
        match catch_unwind(AssertUnwindSafe(life)) {
            Ok(()) => true,
            Err(cause) if cause.is::<Death>() => false,
            Err(cause) => resume_unwind(cause),
        }
    }
}

/// Defines the cursors of a ring: a layout of shared memory, or under loom a plain struct.
macro_rules! cells {
    ($(#[$meta:meta])* pub struct $name:ident {
        $($(#[$field_meta:meta])* $field:ident: $type:ty,)*
    }) => {
        #[cfg(not(loom))]
        chappe_sys::shared_layout! {
            $(#[$meta])*
            #[derive(Debug)]
            pub struct $name { $($(#[$field_meta])* pub(crate) $field: $type,)* }
        }

        #[cfg(loom)]
        $(#[$meta])*
        #[derive(Debug, Default)]
        pub struct $name { $($(#[$field_meta])* pub(crate) $field: $type,)* }
    };
}

cells! {
    /// A word that has a cache line to itself: what others write next to it does not take the
    /// line from its reader.
    #[repr(align(64))]
    pub struct Line {
        word: AtomicU64,
    }
}

pub(crate) use cells;

impl std::ops::Deref for Line {
    type Target = AtomicU64;

    fn deref(&self) -> &AtomicU64 {
        &self.word
    }
}
