//! Where a handler runs, by what its calls have taken.
//!
//! The event loop serves no other connection while a handler runs on it, and a handler
//! thread costs two wake-ups. So a handler begins on the handler threads, where its calls
//! are timed, and moves to the loop once enough of them were short. A call that takes long
//! there, or waits, sends it back, and it has to prove more the next time. A long call while it
//! does so is a relapse as well. At the third one it stays, until the next reload: no client
//! can train a handler and then stop the loop again and again, and a handler that waits now
//! and then is not timed for ever.
//!
//! | tempo | runs | leaves when |
//! |---|---|---|
//! | proving | on a handler thread, timed | enough short calls in a row: quick; a long one at the third relapse: slow |
//! | quick | on the loop | a long call is seen: proving, or slow at the third; a turn took long: suspect |
//! | suspect | on the loop, timed | enough calls that were not long: quick; a long one: as above |
//! | slow | on a handler thread | never |
//!
//! The hooks `connected` and `closed` have a tempo each. There are fewer of their calls, so on
//! the loop each is timed, as if it were suspect.
//!
//! *Short* and *long* are the thread's own time ([`chappe_sys::Stopwatch`]): what it has
//! computed, or all the time if it has waited. To be displaced by another program is
//! neither.

use chappe_engine::{Pace, QUICK_TIME_MAX};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A call that takes no longer is proof that the handler is quick.
const SHORT: Duration = Duration::from_micros(20);
/// Short calls in a row that make a handler quick, at first. [`PROOF_GROWTH`] times as many
/// after each relapse.
const PROOF_CALLS: u32 = 64;
const PROOF_GROWTH: u32 = 8;
/// The relapse at which a handler stays on the handler threads.
const RELAPSES_MAX: u32 = 3;
/// Calls that are timed after a turn that took long. Displaced turns look the same, so this
/// is also what a machine that is short of CPUs pays.
const SUSPECT_CALLS: u32 = 64;

/// Where one handler runs.
///
/// The atomics order nothing, and it does not matter whether one call more or less is timed:
/// all of them are relaxed.
#[derive(Debug)]
pub(super) struct Tempo {
    /// Short calls that are still to be seen; 0: it is quick. [`Tempo::NEVER`]: slow.
    to_prove: AtomicU32,
    /// Calls on the loop that are still to be timed.
    to_time: AtomicU32,
    relapses: AtomicU32,
}

/// What a timed call has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Changed {
    Nothing,
    /// It runs on the loop from now on.
    Promoted,
    /// It runs on the handler threads from now on.
    Demoted,
}

impl Tempo {
    const NEVER: u32 = u32::MAX;

    /// Quick from the first call.
    pub(super) fn quick() -> Self {
        Self::with(0)
    }

    /// To be measured.
    pub(super) fn proving() -> Self {
        Self::with(PROOF_CALLS)
    }

    /// Slow for good: its author says that it may wait.
    pub(super) fn slow() -> Self {
        Self::with(Self::NEVER)
    }

    fn with(to_prove: u32) -> Self {
        let (to_time, relapses) = (AtomicU32::new(0), AtomicU32::new(0));
        Self { to_prove: AtomicU32::new(to_prove), to_time, relapses }
    }

    /// Where the handler runs now, and whether its call is timed.
    pub(super) fn pace(&self) -> Pace {
        match self.to_prove.load(Ordering::Relaxed) {
            0 if self.to_time.load(Ordering::Relaxed) == 0 => Pace::Quick,
            0 => Pace::Suspect,
            Self::NEVER => Pace::Slow,
            _ => Pace::Proving,
        }
    }

    /// A turn of the loop with calls of this handler took long: the next ones are timed.
    pub(super) fn suspect(&self) {
        self.to_time.fetch_max(SUSPECT_CALLS, Ordering::Relaxed);
    }

    /// A timed call took this long.
    pub(super) fn record(&self, time: Duration) -> Changed {
        match self.to_prove.load(Ordering::Relaxed) {
            0 if time > QUICK_TIME_MAX => self.relapse(),
            0 => {
                let left = self.to_time.load(Ordering::Relaxed).saturating_sub(1);
                self.to_time.store(left, Ordering::Relaxed);
                Changed::Nothing
            }
            Self::NEVER => Changed::Nothing,
            // Its first long calls may be what it does once: those it proves itself after.
            _ if time > QUICK_TIME_MAX && self.relapses.load(Ordering::Relaxed) > 0 => {
                self.relapse_once_more();
                Changed::Nothing
            }
            _ if time > SHORT => {
                self.to_prove.store(self.proof(), Ordering::Relaxed);
                Changed::Nothing
            }
            left => {
                // Of two threads that take the last one, one promotes.
                let took = self.to_prove.compare_exchange(
                    left,
                    left - 1,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
                if took == Ok(1) { Changed::Promoted } else { Changed::Nothing }
            }
        }
    }

    /// A call took long on the loop.
    pub(super) fn relapse(&self) -> Changed {
        if self.to_prove.load(Ordering::Relaxed) != 0 {
            return Changed::Nothing;
        }
        self.to_time.store(0, Ordering::Relaxed);
        self.relapse_once_more();
        Changed::Demoted
    }

    fn relapse_once_more(&self) {
        self.relapses.fetch_add(1, Ordering::Relaxed);
        self.to_prove.store(self.proof(), Ordering::Relaxed);
    }

    /// What it has to prove, after its relapses.
    fn proof(&self) -> u32 {
        match self.relapses.load(Ordering::Relaxed) {
            relapses @ 0..RELAPSES_MAX => PROOF_CALLS * PROOF_GROWTH.pow(relapses),
            _ => Self::NEVER,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = QUICK_TIME_MAX.saturating_add(Duration::from_nanos(1));

    /// How many short calls make it quick.
    fn proof_of(tempo: &Tempo) -> u32 {
        let mut calls = 0;
        while tempo.pace() == Pace::Proving {
            calls += 1;
            let is_last = tempo.record(SHORT) == Changed::Promoted;
            assert_eq!(is_last, tempo.pace() == Pace::Quick);
        }
        calls
    }

    #[test]
    fn short_calls_in_a_row_make_it_quick_and_a_longer_one_starts_again() {
        let tempo = Tempo::proving();
        for _ in 1..PROOF_CALLS {
            assert_eq!(tempo.record(SHORT), Changed::Nothing);
        }
        assert_eq!(tempo.record(SHORT + Duration::from_nanos(1)), Changed::Nothing);
        assert_eq!(proof_of(&tempo), PROOF_CALLS);
    }

    #[test]
    fn each_relapse_needs_more_proof_and_the_third_is_the_last() {
        let tempo = Tempo::proving();
        for needed in [PROOF_CALLS, PROOF_CALLS * 8, PROOF_CALLS * 64] {
            assert_eq!(proof_of(&tempo), needed);
            assert_eq!(tempo.record(QUICK_TIME_MAX), Changed::Nothing, "long is longer");
            assert_eq!(tempo.record(LONG), Changed::Demoted);
        }
        assert_eq!(tempo.pace(), Pace::Slow);
        assert_eq!((tempo.record(SHORT), tempo.relapse()), (Changed::Nothing, Changed::Nothing));
        assert_eq!(tempo.pace(), Pace::Slow);
    }

    #[test]
    fn a_long_call_is_a_relapse_also_while_it_proves_itself_again() {
        let tempo = Tempo::proving();
        for _ in 0..5 {
            tempo.record(LONG);
        }
        assert_eq!(proof_of(&tempo), PROOF_CALLS, "before it was quick it has none");
        assert_eq!(tempo.record(LONG), Changed::Demoted);
        tempo.record(SHORT + Duration::from_nanos(1));
        assert_eq!(tempo.record(LONG), Changed::Nothing);
        assert_eq!(tempo.pace(), Pace::Proving, "the second");
        assert_eq!(tempo.record(LONG), Changed::Nothing);
        assert_eq!(tempo.pace(), Pace::Slow, "the third");
    }

    #[test]
    fn a_long_turn_has_the_next_calls_timed() {
        let tempo = Tempo::quick();
        assert_eq!(tempo.pace(), Pace::Quick);
        tempo.suspect();
        for _ in 0..SUSPECT_CALLS {
            assert_eq!(tempo.pace(), Pace::Suspect);
            tempo.record(SHORT);
        }
        assert_eq!(tempo.pace(), Pace::Quick);
        assert_eq!(Tempo::slow().pace(), Pace::Slow);
    }
}
