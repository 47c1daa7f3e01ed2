//! Whether, and how, the server is going down, and what one more request makes of it. Pure.

use std::time::{Duration, Instant};

/// A signal that comes twice in this time is one: timeout(1) and others send it to the process
/// and to its group.
const ONE_SIGNAL: Duration = Duration::from_millis(250);

/// Whether, and how, the server is going down. It only ever gets more urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It is not.
    No,
    /// Workers answer what they have; then the rest is cut.
    Graceful,
    /// Workers close and go; then they are killed. Who asked for it, and when.
    Fast { by: &'static str, since: Instant },
    /// Workers were killed; the kernel does the rest.
    Killed,
}

/// What a request for the fast stop comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fast {
    /// It begins, also in the middle of a graceful one.
    Begins,
    /// It is the request that was heard already.
    IsTheSame,
    /// A second request: its sender does not want to wait.
    Kills,
    /// Nothing is left to be hurried.
    IsOver,
}

impl Stop {
    pub(super) fn is_stopping(self) -> bool {
        self != Self::No
    }

    /// What comes of a request for the fast stop, by whom, at this time.
    pub(super) fn asked_to_be_fast(self, by: &str, now: Instant) -> Fast {
        match self {
            Self::No | Self::Graceful => Fast::Begins,
            Self::Fast { by: first, since }
                if first == by && now.saturating_duration_since(since) < ONE_SIGNAL =>
            {
                Fast::IsTheSame
            }
            Self::Fast { .. } => Fast::Kills,
            Self::Killed => Fast::IsOver,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_stop_only_gets_more_urgent() {
        let since = Instant::now();
        let fast = Stop::Fast { by: "SIGTERM", since };
        let just_before = ONE_SIGNAL - Duration::from_millis(1);
        for (stop, by, after, expected) in [
            (Stop::No, "SIGTERM", Duration::ZERO, Fast::Begins),
            (Stop::Graceful, "SIGINT", Duration::ZERO, Fast::Begins),
            (fast, "SIGTERM", Duration::ZERO, Fast::IsTheSame),
            (fast, "SIGTERM", just_before, Fast::IsTheSame),
            (fast, "SIGTERM", ONE_SIGNAL, Fast::Kills),
            // Another signal, or a command, is another request, however soon it comes.
            (fast, "SIGINT", Duration::ZERO, Fast::Kills),
            (fast, "the control socket", just_before, Fast::Kills),
            (Stop::Killed, "SIGTERM", ONE_SIGNAL, Fast::IsOver),
        ] {
            let came = stop.asked_to_be_fast(by, since + after);
            assert_eq!(came, expected, "{stop:?}, {by} after {after:?}");
        }
        assert!(!Stop::No.is_stopping());
        assert!([Stop::Graceful, fast, Stop::Killed].iter().all(|stop| stop.is_stopping()));
    }
}
