//! What epoll is to watch for a connection: a pure function of its state, so that it can
//! be computed again at any time, and tested over every state.

use chappe_engine::{Blocked, Stage, View};
use nix::sys::epoll::EpollFlags;

/// What epoll watches for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    /// Nothing: it is not in the epoll set. EPOLLERR and EPOLLHUP come by themselves and
    /// cannot be masked.
    Out,
    /// It is in the set.
    In {
        /// EPOLLIN, and EPOLLRDHUP with it: that one is level-triggered too, and stays on
        /// forever once the peer has sent its FIN.
        reads: bool,
        /// EPOLLOUT.
        writes: bool,
    },
}

/// All that decides the interest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input {
    pub(super) stage: Stage,
    /// By inbox, outbox or the worker's total.
    pub(super) is_paused: bool,
    pub(super) blocked: Option<Blocked>,
    /// The peer is gone, on a socket on which that tells nothing of our input.
    pub(super) is_hung_up: bool,
}

impl Input {
    /// `is_starved`: the inbox total has no room for what the connection would bring.
    pub(super) fn of(view: &View, is_starved: bool, is_hung_up: bool) -> Self {
        let is_paused = view.is_paused || is_starved;
        Self { stage: view.stage, is_paused, blocked: view.blocked, is_hung_up }
    }

    /// Whether the socket is read.
    pub(super) fn reads(self) -> bool {
        match self.stage {
            Stage::Open => !self.is_paused,
            Stage::Lingering => true,
            Stage::Answering | Stage::Flushing | Stage::Aborted => false,
        }
    }

    pub(super) fn interest(self) -> Interest {
        if self.stage == Stage::Aborted || self.is_hung_up {
            return Interest::Out;
        }
        Interest::In { reads: self.reads(), writes: self.blocked == Some(Blocked::Socket) }
    }
}

impl Interest {
    /// For epoll_ctl(2); `None`: not in the set.
    pub(super) fn flags(self) -> Option<EpollFlags> {
        let Self::In { reads, writes } = self else { return None };
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, reads);
        flags.set(EpollFlags::EPOLLOUT, writes);
        Some(flags)
    }

    /// Whether input is watched for.
    pub(super) fn reads(self) -> bool {
        matches!(self, Self::In { reads: true, .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interest_over_all_states() {
        let stages =
            [Stage::Open, Stage::Answering, Stage::Flushing, Stage::Lingering, Stage::Aborted];
        for stage in stages {
            for is_paused in [false, true] {
                for blocked in [None, Some(Blocked::Socket), Some(Blocked::Buffers)] {
                    let input = Input { stage, is_paused, blocked, is_hung_up: false };
                    let gone = Input { is_hung_up: true, ..input };
                    assert_eq!(gone.interest(), Interest::Out, "EPOLLHUP can't be masked");
                    assert_eq!(gone.reads(), input.reads());
                    let flags = input.interest().flags();
                    assert_eq!(flags.is_none(), stage == Stage::Aborted);
                    let Some(flags) = flags else { continue };
                    let reads = stage == Stage::Open && !is_paused || stage == Stage::Lingering;
                    let read = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
                    assert_eq!(flags.contains(read), reads, "{input:?}");
                    assert_eq!(flags.intersects(read), reads, "both or none: {input:?}");
                    let writes = blocked == Some(Blocked::Socket);
                    assert_eq!(flags.contains(EpollFlags::EPOLLOUT), writes, "{input:?}");
                }
            }
        }
    }
}
