//! What signals ask of a worker that gets them directly.

use chappe_sys::signals::USED;
use nix::sys::signal::Signal;

/// A worker takes all signals that the program uses but SIGCHLD: the default of
/// those that are the master's business would kill it.
pub(super) fn taken() -> Vec<Signal> {
    USED.into_iter().filter(|signal| *signal != Signal::SIGCHLD).collect()
}

/// What a signal asks of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Stop now.
    Terminate,
    /// Stop after all is answered.
    Drain,
    /// Ask the master to open all logs anew.
    ReopenLogs,
    /// Nothing: it is the master's business.
    Nothing,
}

pub(super) fn asked_by(signal: Signal) -> Asked {
    match signal {
        Signal::SIGTERM | Signal::SIGINT => Asked::Terminate,
        Signal::SIGQUIT => Asked::Drain,
        Signal::SIGUSR1 => Asked::ReopenLogs,
        _ => Asked::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_stops_for_three_signals_and_leaves_the_rest_to_the_master() {
        let stops = |signal: &Signal| matches!(asked_by(*signal), Asked::Terminate | Asked::Drain);
        let stopping: Vec<Signal> = taken().into_iter().filter(stops).collect();
        assert_eq!(stopping, [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT]);
        assert_eq!(asked_by(Signal::SIGQUIT), Asked::Drain);
        assert_eq!(asked_by(Signal::SIGUSR1), Asked::ReopenLogs);
        assert_eq!(asked_by(Signal::SIGHUP), Asked::Nothing);
        assert_eq!(taken().len(), USED.len() - 1);
    }
}
