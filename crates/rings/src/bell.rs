//! The bell: how a sleeper on a semaphore learns that there is something to look at, once
//! for as many reasons as there are before it looks.
//!
//! A permit of the semaphore is a reason to look. One permit too few would leave a record
//! behind a sleeper; one too many costs a look.

use crate::sync::{AtomicU32, Ordering, cells, step};

cells! {
    /// Rung, or not. Lies in memory that both sides write.
    pub struct Bell {
        rung: AtomicU32,
    }
}

impl Bell {
    /// To be called after what the sleeper is to see was stored. Posts a permit unless one is
    /// there for this bell that was not heard.
    ///
    /// A process that is stopped or killed between the swap and the post leaves a bell that is rung
    /// for nobody. So each process that rings has a bell of its own, the sleeper looks after some
    /// time without being called, and after a death everybody's semaphore gets a permit.
    pub fn ring(&self, post: impl FnOnce()) {
        step("ring: swap");
        // Release: what was stored before is seen by who hears. Also where it was rung: the
        // sleeper's swap is behind this one then, and sees it.
        if self.rung.swap(1, Ordering::AcqRel) == 0 {
            step("ring: post");
            post();
        }
    }

    /// Whether it is rung and not heard. Of use only to who has taken a permit.
    #[must_use]
    pub fn is_rung(&self) -> bool {
        self.rung.load(Ordering::Acquire) != 0
    }

    /// To be called after a permit was taken and before looking: what is stored after the
    /// look rings again. Whether it was rung.
    pub fn hear(&self) -> bool {
        self.rung.swap(0, Ordering::AcqRel) != 0
    }
}
