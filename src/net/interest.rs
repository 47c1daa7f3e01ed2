//! What epoll shall watch for a connection: a pure function of its state, so
//! that it can be computed anew at any time, and tested over every state.

use crate::send::Blocked;
use nix::sys::epoll::EpollFlags;

/// Where a connection is in its life, for the event loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Messages come and go.
    Open,
    /// Goodbye was said; goes on until the peer is quiet.
    Draining,
    /// No new message is taken: what is queued is flushed.
    Finishing,
    /// SHUT_WR was sent; what the peer still sends is discarded.
    Lingering,
    /// Given up. Out of epoll; waits until a thread gives the writer back.
    Aborting,
}

/// What the connection's input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// More may come.
    Open,
    /// We do not want more: an error or a time-out ended it.
    Refused,
    /// The peer has sent its FIN.
    Ended,
}

/// All that decides the interest.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) input: Input,
    /// The peer has closed a socket on which that tells nothing of our input.
    pub(super) hung_up: bool,
    /// By inbox, outbox or the worker's total.
    pub(super) paused: bool,
    pub(super) blocked: Option<Blocked>,
}

impl State {
    /// Whether the socket is read.
    pub(super) fn reads(self) -> bool {
        match self.phase {
            Phase::Open | Phase::Draining => self.input == Input::Open && !self.paused,
            Phase::Lingering => self.input != Input::Ended,
            Phase::Finishing | Phase::Aborting => false,
        }
    }

    /// `None`: not in the epoll set at all. EPOLLERR and EPOLLHUP come by
    /// themselves and cannot be masked.
    ///
    /// EPOLLRDHUP goes with EPOLLIN: it is level-triggered too, and stays on
    /// for ever once the peer has sent its FIN.
    pub(super) fn interest(self) -> Option<EpollFlags> {
        if self.phase == Phase::Aborting || self.hung_up {
            return None;
        }
        let mut flags = EpollFlags::empty();
        if self.reads() {
            flags |= EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        }
        if self.blocked == Some(Blocked::Socket) && self.phase != Phase::Lingering {
            flags |= EpollFlags::EPOLLOUT;
        }
        Some(flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interest_over_all_states() {
        let read = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        let write = EpollFlags::EPOLLOUT;
        for phase in
            [Phase::Open, Phase::Draining, Phase::Finishing, Phase::Lingering, Phase::Aborting]
        {
            for input in [Input::Open, Input::Refused, Input::Ended] {
                for paused in [false, true] {
                    for blocked in [None, Some(Blocked::Socket), Some(Blocked::Buffers)] {
                        let state = State { phase, input, hung_up: false, paused, blocked };
                        let gone = State { hung_up: true, ..state };
                        assert_eq!(gone.interest(), None, "EPOLLHUP can't be masked");
                        assert_eq!(gone.reads(), state.reads());
                        let Some(flags) = state.interest() else {
                            assert_eq!(phase, Phase::Aborting);
                            continue;
                        };
                        assert_ne!(phase, Phase::Aborting);
                        let live = matches!(phase, Phase::Open | Phase::Draining);
                        let reads = (live && input == Input::Open && !paused)
                            || (phase == Phase::Lingering && input != Input::Ended);
                        assert_eq!(flags.contains(read), reads, "{state:?}");
                        assert_eq!(flags.intersects(read), reads, "both or none: {state:?}");
                        let writes = blocked == Some(Blocked::Socket) && phase != Phase::Lingering;
                        assert_eq!(flags.contains(write), writes, "{state:?}");
                    }
                }
            }
        }
    }
}
