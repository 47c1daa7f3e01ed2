//! When a worker that is gone is replaced. Pure, so that every row of the table
//! is a test.

use std::time::Duration;

/// A worker that lived shorter than this died young.
const YOUNG: Duration = Duration::from_secs(1);
/// A worker that lived this long makes up for those before it.
const HEALTHY: Duration = Duration::from_secs(60);
/// The pause after the first young death; it doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause. A worker is never given up.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::master) enum Death {
    /// It was told to stop, by somebody else than the master, and did: exit code 0.
    Stopped,
    /// Any other exit code, or a signal.
    Failed,
    /// It failed before it served: it could not boot, or was not ready in time.
    Unserved,
}

impl Death {
    /// What this death is of a worker that had not served yet.
    pub(super) fn before_serving(self) -> Self {
        if self == Self::Failed { Self::Unserved } else { self }
    }
}

/// What happens to its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::master) enum Verdict {
    /// No worker takes its place.
    Forget,
    /// A new worker is forked after this pause.
    Respawn(Duration),
}

/// Judges one death. `pause` is the worker number's pace: zero while all is well,
/// and brought up to date here.
pub(in crate::master) fn judge(
    is_stopping: bool,
    death: Death,
    lived: Duration,
    pause: &mut Duration,
) -> Verdict {
    if is_stopping {
        return Verdict::Forget;
    }
    // However long it took: a worker that never served was never healthy.
    if lived >= HEALTHY && death != Death::Unserved {
        *pause = Duration::ZERO;
    }
    let is_paced = match death {
        Death::Stopped => false,
        Death::Failed => lived < YOUNG,
        Death::Unserved => true,
    };
    if !is_paced {
        return Verdict::Respawn(Duration::ZERO);
    }
    *pause = (*pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
    Verdict::Respawn(*pause)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn every_row_of_the_table() {
        use Death::{Failed, Stopped, Unserved};
        use Verdict::{Forget, Respawn};
        // stopping, death, lived, pace before → verdict, pace after
        let rows = [
            (true, Failed, ms(1), ms(0), Forget, ms(0)),
            (true, Stopped, ms(90_000), ms(400), Forget, ms(400)),
            (false, Stopped, ms(0), ms(0), Respawn(ms(0)), ms(0)),
            (false, Stopped, ms(0), ms(800), Respawn(ms(0)), ms(800)),
            (false, Stopped, ms(60_000), ms(800), Respawn(ms(0)), ms(0)),
            (false, Failed, ms(0), ms(0), Respawn(ms(100)), ms(100)),
            (false, Failed, ms(999), ms(100), Respawn(ms(200)), ms(200)),
            (false, Failed, ms(999), ms(25_600), Respawn(ms(30_000)), ms(30_000)),
            (false, Failed, ms(999), ms(30_000), Respawn(ms(30_000)), ms(30_000)),
            (false, Failed, ms(1000), ms(400), Respawn(ms(0)), ms(400)),
            (false, Failed, ms(59_999), ms(400), Respawn(ms(0)), ms(400)),
            (false, Failed, ms(60_000), ms(400), Respawn(ms(0)), ms(0)),
            (true, Unserved, ms(10_000), ms(400), Forget, ms(400)),
            (false, Unserved, ms(0), ms(0), Respawn(ms(100)), ms(100)),
            (false, Unserved, ms(10_000), ms(400), Respawn(ms(800)), ms(800)),
            (false, Unserved, ms(90_000), ms(30_000), Respawn(ms(30_000)), ms(30_000)),
        ];
        for (is_stopping, death, lived, before, verdict, after) in rows {
            let mut pause = before;
            let got = judge(is_stopping, death, lived, &mut pause);
            let row = format!("{is_stopping} {death:?} {lived:?} {before:?}");
            assert_eq!((got, pause), (verdict, after), "{row}");
        }
    }

    #[test]
    fn a_worker_that_cannot_live_is_tried_for_ever_at_the_longest_pause() {
        let mut pause = Duration::ZERO;
        let pauses: Vec<_> = (0..12)
            .map(|_| {
                judge(false, Death::Failed, ms(5), &mut pause);
                pause.as_millis()
            })
            .collect();
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses[9..], [30_000; 3]);
    }
}
