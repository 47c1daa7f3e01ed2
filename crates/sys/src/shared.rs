//! A handle to a part of something that it keeps alive.

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

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
