//! What a worker does on a signal that is sent to it directly.

use chappe_sys::signals::USED;
use nix::sys::signal::Signal;

/// The signals that a worker handles: all that the program uses, except SIGCHLD. Those that
/// only the master acts on are among them, since their default action would kill the worker.
pub(super) fn taken() -> Vec<Signal> {
    USED.into_iter().filter(|signal| *signal != Signal::SIGCHLD).collect()
}

/// What a worker does on a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Stop now.
    Terminate,
    /// Stop once all is answered.
    Drain,
    /// Ask the master to reopen all logs.
    ReopenLogs,
    /// Nothing: only the master acts on the signal.
    Nothing,
}

pub(super) fn action_of(signal: Signal) -> Action {
    match signal {
        Signal::SIGTERM | Signal::SIGINT => Action::Terminate,
        Signal::SIGQUIT => Action::Drain,
        Signal::SIGUSR1 => Action::ReopenLogs,
        _ => Action::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_stops_for_three_signals_and_leaves_the_rest_to_the_master() {
        let stops =
            |signal: &Signal| matches!(action_of(*signal), Action::Terminate | Action::Drain);
        let stopping: Vec<Signal> = taken().into_iter().filter(stops).collect();
        assert_eq!(stopping, [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT]);
        assert_eq!(action_of(Signal::SIGQUIT), Action::Drain);
        assert_eq!(action_of(Signal::SIGUSR1), Action::ReopenLogs);
        assert_eq!(action_of(Signal::SIGHUP), Action::Nothing);
        assert_eq!(taken().len(), USED.len() - 1);
    }
}
