//! Where a handler runs, by what its calls have taken.
//!
//! The event loop serves no other connection while a handler runs on it, and a handler
//! thread costs two wake-ups. So a handler begins on the handler threads, where its calls
//! are timed, and moves to the loop once enough of them were short. A call that takes long
//! there, or waits, sends it back, and it has to prove more the next time: of more calls, as many
//! of which are timed as the first time. At the third relapse it stays, until the next reload: no
//! client can train a handler and then stop the loop again and again.
//!
//! | tempo | runs | leaves when |
//! |---|---|---|
//! | proving | on a handler thread, timed | enough short calls in a row: quick |
//! | quick | on the loop | a turn took long: suspect; very long, or the second within some thousand calls: proving, or slow at the third |
//! | suspect | on the loop, timed | enough calls that were not long: quick; a long one: as above |
//! | slow | on a handler thread | never |
//!
//! The hooks `connected` and `closed` have a tempo each. There are fewer of their calls, so on
//! the loop each is timed, as if it were suspect.
//!
//! *Short* and *long* are the thread's own time ([`chappe_sys::Stopwatch`]): what it has
//! computed, or all the time if it has waited. To be displaced by another program is
//! neither. A hypervisor may take time in a way that looks as if it was computed, and does so
//! to the shortest handler, sooner or later three times. So one long turn that could be that is a
//! reason to look closer, and no relapse.

use chappe_engine::{Pace, QUICK_TIME_MAX};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// A call that takes no longer is proof that the handler is quick.
const SHORT: Duration = Duration::from_micros(20);
/// Short calls in a row that make a handler quick.
const PROOF_CALLS: u32 = 64;
/// After each relapse they are spread over this many times as many calls. To time all of them
/// would cost more than the calls, of a handler that waits now and then and is never quick.
const PROOF_GROWTH: u32 = 8;
/// The relapse at which a handler stays on the handler threads.
const RELAPSES_MAX: u32 = 3;
/// What takes longer on the loop is a relapse at once.
const VERY_LONG: Duration = Duration::from_millis(20);
/// Two long turns within this many calls are a relapse.
const TURNS_WITHIN: u64 = 8192;
/// Calls of a hook, each of which is timed, that may follow a long one without another.
const SUSPECT_HOOKS: u32 = 8192;
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
    /// Calls that it was looked for since a relapse: which of them are timed.
    calls: AtomicU32,
    /// How many calls there had been at the last long turn, plus one; 0: there was none.
    long_turn_at: AtomicU64,
    /// How many calls are looked at after one that was long.
    suspect_calls: u32,
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

    /// To be measured, at each call.
    pub(super) fn of_hook() -> Self {
        Self { suspect_calls: SUSPECT_HOOKS, ..Self::proving() }
    }

    fn with(to_prove: u32) -> Self {
        let [to_prove, to_time, relapses, calls] = [to_prove, 0, 0, 0].map(AtomicU32::new);
        let (long_turn_at, suspect_calls) = (AtomicU64::new(0), SUSPECT_CALLS);
        Self { to_prove, to_time, relapses, calls, long_turn_at, suspect_calls }
    }

    /// Where the handler runs now, and whether its call is timed.
    pub(super) fn pace(&self) -> Pace {
        match self.to_prove.load(Ordering::Relaxed) {
            0 if self.to_time.load(Ordering::Relaxed) == 0 => Pace::Quick,
            0 => Pace::Suspect,
            Self::NEVER => Pace::Slow,
            _ if self.is_spared() => Pace::Slow,
            _ => Pace::Proving,
        }
    }

    /// Whether it stays on the handler threads. [`Tempo::pace`] does not tell: to it a call that
    /// proves nothing is one of a slow handler, too.
    pub(super) fn is_slow(&self) -> bool {
        self.to_prove.load(Ordering::Relaxed) == Self::NEVER
    }

    /// Whether the next call proves nothing.
    fn is_spared(&self) -> bool {
        let relapses = self.relapses.load(Ordering::Relaxed);
        // Before the first one every call is timed, and nothing is to be counted.
        relapses > 0 && !self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(spread(relapses))
    }

    /// A turn of the loop with calls of this handler took long: the next ones are timed.
    pub(super) fn suspect(&self) {
        self.to_time.fetch_max(self.suspect_calls, Ordering::Relaxed);
    }

    /// A timed call took this long.
    pub(super) fn record(&self, time: Duration) -> Changed {
        match self.to_prove.load(Ordering::Relaxed) {
            0 if time > VERY_LONG => self.relapse(),
            0 if time > QUICK_TIME_MAX => {
                if self.to_time.load(Ordering::Relaxed) > 0 {
                    return self.relapse();
                }
                self.suspect();
                Changed::Nothing
            }
            0 => {
                let left = self.to_time.load(Ordering::Relaxed).saturating_sub(1);
                self.to_time.store(left, Ordering::Relaxed);
                Changed::Nothing
            }
            Self::NEVER => Changed::Nothing,
            _ if time > SHORT => {
                self.to_prove.store(PROOF_CALLS, Ordering::Relaxed);
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

    /// A turn of the loop with nothing but calls of this handler, `calls` of them, was long.
    pub(super) fn record_turn(&self, time: Duration, calls: u64) -> Changed {
        let last = self.long_turn_at.swap(calls + 1, Ordering::Relaxed);
        let is_again = last > 0 && (calls + 1).saturating_sub(last) <= TURNS_WITHIN;
        if time > VERY_LONG || is_again {
            return self.relapse();
        }
        self.suspect();
        Changed::Nothing
    }

    fn relapse(&self) -> Changed {
        if self.to_prove.load(Ordering::Relaxed) != 0 {
            return Changed::Nothing;
        }
        self.to_time.store(0, Ordering::Relaxed);
        self.long_turn_at.store(0, Ordering::Relaxed);
        let is_last = self.relapses.fetch_add(1, Ordering::Relaxed) + 1 >= RELAPSES_MAX;
        self.to_prove.store(if is_last { Self::NEVER } else { PROOF_CALLS }, Ordering::Relaxed);
        Changed::Demoted
    }
}

/// Of how many calls one is timed, after `relapses` relapses.
fn spread(relapses: u32) -> u32 {
    PROOF_GROWTH.pow(relapses.min(RELAPSES_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = QUICK_TIME_MAX.saturating_add(Duration::from_nanos(1));

    /// How many short calls make it quick, and how many of them are timed.
    fn proof_of(tempo: &Tempo) -> (u32, u32) {
        let (mut calls, mut timed) = (0, 0);
        loop {
            match tempo.pace() {
                Pace::Quick => return (calls, timed),
                Pace::Proving => {
                    timed += 1;
                    let is_last = tempo.record(SHORT) == Changed::Promoted;
                    assert_eq!(is_last, timed == PROOF_CALLS);
                }
                Pace::Slow => {}
                Pace::Suspect => panic!("it is on no loop"),
            }
            calls += 1;
        }
    }

    #[test]
    fn short_calls_in_a_row_make_it_quick_and_a_longer_one_starts_again() {
        let tempo = Tempo::proving();
        for _ in 1..PROOF_CALLS {
            assert_eq!(tempo.record(SHORT), Changed::Nothing);
        }
        assert_eq!(tempo.record(SHORT + Duration::from_nanos(1)), Changed::Nothing);
        assert_eq!(proof_of(&tempo), (PROOF_CALLS, PROOF_CALLS));
    }

    #[test]
    fn each_relapse_needs_the_proof_of_more_calls_and_the_third_is_the_last() {
        let tempo = Tempo::proving();
        for spread in [1, 8, 64] {
            let (calls, timed) = proof_of(&tempo);
            assert_eq!((calls, timed), ((PROOF_CALLS - 1) * spread + 1, PROOF_CALLS));
            assert_eq!(tempo.record(QUICK_TIME_MAX), Changed::Nothing, "long is longer");
            assert_eq!(tempo.record(LONG), Changed::Nothing, "it is looked at");
            assert_eq!(tempo.record(LONG), Changed::Demoted);
            assert_eq!(tempo.is_slow(), spread == 64, "only then");
            tempo.calls.store(0, Ordering::Relaxed);
        }
        assert_eq!(tempo.pace(), Pace::Slow);
        let later = (tempo.record(SHORT), tempo.record_turn(VERY_LONG * 2, 9));
        assert_eq!(later, (Changed::Nothing, Changed::Nothing));
        assert_eq!(tempo.pace(), Pace::Slow);
    }

    #[test]
    fn a_handler_that_waits_now_and_then_comes_to_its_end() {
        let tempo = Tempo::proving();
        let mut timed = 0;
        for call in 1..100_000_u32 {
            let time = if call.is_multiple_of(1000) { LONG } else { SHORT };
            match tempo.pace() {
                // On the loop it is noticed by the time of its turn.
                Pace::Quick if time == LONG => _ = tempo.record_turn(time, call.into()),
                Pace::Quick | Pace::Slow => {}
                Pace::Proving | Pace::Suspect => {
                    timed += 1;
                    tempo.record(time);
                }
            }
        }
        assert_eq!(tempo.to_prove.load(Ordering::Relaxed), Tempo::NEVER);
        assert!(timed < 1000, "{timed}");
    }

    #[test]
    fn a_turn_that_was_long_once_is_forgiven_and_a_very_long_one_is_not() {
        let tempo = Tempo::quick();
        let mut calls = 1000;
        for _ in 0..100 {
            assert_eq!(tempo.record_turn(LONG, calls), Changed::Nothing);
            for _ in 0..SUSPECT_CALLS {
                assert_eq!(tempo.record(SHORT), Changed::Nothing);
            }
            assert_eq!(tempo.pace(), Pace::Quick);
            calls += TURNS_WITHIN + 1;
        }
        assert_eq!(tempo.record_turn(LONG, calls), Changed::Nothing);
        assert_eq!(tempo.record_turn(LONG, calls + TURNS_WITHIN), Changed::Demoted);
        let tempo = Tempo::quick();
        let very_long = VERY_LONG + Duration::from_nanos(1);
        assert_eq!(tempo.record_turn(very_long, 0), Changed::Demoted);
        assert_eq!(Tempo::quick().record(very_long), Changed::Demoted);
    }

    #[test]
    fn of_a_hook_two_long_calls_within_thousands_are_a_relapse() {
        for (between, expected) in
            [(SUSPECT_HOOKS - 1, Changed::Demoted), (SUSPECT_HOOKS, Changed::Nothing)]
        {
            let tempo = Tempo::of_hook();
            (0..PROOF_CALLS).for_each(|_| _ = tempo.record(SHORT));
            assert_eq!(tempo.record(LONG), Changed::Nothing);
            (0..between).for_each(|_| assert_eq!(tempo.record(SHORT), Changed::Nothing));
            assert_eq!(tempo.record(LONG), expected);
        }
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
