//! The log that a worker, or the hub, is still to be handed: the one thing that needs a descriptor, and
//! so can't stand in the worker's slot.
//!
//! Of several logs only the latest counts. A worker gets no second one before it has
//! answered for the first: a worker that is stopped, or busy for long, reads nothing, and
//! descriptors must not pile up in its channel. What fails, because the channel is full or
//! the worker has no descriptor left, is tried again a second later.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::channel::{MasterEnd, Message};

/// When a log is offered again that could not be handed over.
pub(in crate::master) const TRY_AGAIN: Duration = Duration::from_secs(1);

/// A log with the number that the worker's answer will have.
type Numbered = (u64, Arc<File>);

/// New logs that a worker has not taken over yet.
#[derive(Debug, Default)]
pub(in crate::master) struct OwedLog {
    /// To be handed over.
    next: Option<Numbered>,
    /// Handed over, and not answered for.
    asked: Option<Numbered>,
    /// It could not be handed over, or not be taken: not before this time.
    not_before: Option<Instant>,
}

impl OwedLog {
    /// Its log is another file from now on.
    pub(in crate::master) fn set(&mut self, ticket: u64, file: Arc<File>) {
        self.next = Some((ticket, file));
        self.not_before = None;
    }

    /// When [`hand_over`](Self::hand_over) is due again; `None` while nothing is to be
    /// handed over, or the worker has to answer first.
    pub(in crate::master) fn due(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.next.is_some() && self.asked.is_none())
    }

    /// Hands the log over, if there is one and it is time to. An error has been noted for
    /// another try.
    ///
    /// # Errors
    /// Of the channel, but for that of a worker that is gone.
    pub(in crate::master) fn hand_over(
        &mut self,
        channel: &MasterEnd,
        now: Instant,
    ) -> std::io::Result<()> {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
        if self.asked.is_some() || self.not_before.is_some_and(|at| at > now) {
            return Ok(());
        }
        self.not_before = None;
        let Some((ticket, file)) = self.next.take() else { return Ok(()) };
        match channel.send_parcel(Message::SwapLog, ticket, Some(file.as_fd())) {
            Ok(()) => self.asked = Some((ticket, file)),
            Err(error) if matches!(error.kind(), BrokenPipe | ConnectionReset) => {}
            Err(error) => {
                self.next = Some((ticket, file));
                self.not_before = Some(now + TRY_AGAIN);
                return Err(error);
            }
        }
        Ok(())
    }

    /// The worker has answered; whether this ticket was its log's. A log that it could not
    /// take is offered again, unless there is a newer one.
    pub(in crate::master) fn answered(&mut self, ticket: u64, is_done: bool, now: Instant) -> bool {
        let Some(asked) = self.asked.take_if(|(asked, _)| *asked == ticket) else {
            return false;
        };
        if !is_done && self.next.is_none() {
            self.next = Some(asked);
            self.not_before = Some(now + TRY_AGAIN);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::{Channel, Parcel, ReceivedParcel, WorkerEnd};

    fn received(worker: &WorkerEnd) -> Vec<(Message, u64)> {
        let mut received = Vec::new();
        while let Some(ReceivedParcel::Parcel(parcel)) = worker.try_receive_parcel().unwrap() {
            let Parcel { message, value, .. } = parcel;
            received.push((message, value));
        }
        received
    }

    fn log() -> Arc<File> {
        Arc::new(tempfile::tempfile().unwrap())
    }

    #[test]
    fn a_log_that_finds_no_room_is_handed_over_later_and_only_the_last_one() {
        let (master, worker) = Channel::pair().unwrap();
        let (mut owed, now) = (OwedLog::default(), Instant::now());
        while master.send_parcel(Message::Kick, 1, None).is_ok() {}
        for ticket in [1, 2] {
            owed.set(ticket, log());
            assert!(owed.hand_over(&master, now).is_err());
            assert_eq!(owed.due(), Some(now + TRY_AGAIN));
        }
        assert!(received(&worker).iter().all(|(message, _)| *message == Message::Kick));
        owed.hand_over(&master, now).unwrap();
        assert_eq!(received(&worker), [], "not yet");
        owed.hand_over(&master, now + TRY_AGAIN).unwrap();
        assert_eq!(received(&worker), [(Message::SwapLog, 2)]);
        assert_eq!(owed.due(), None);
    }

    #[test]
    fn a_worker_that_owes_an_answer_gets_no_second_log_before() {
        let (master, worker) = Channel::pair().unwrap();
        let (mut owed, now) = (OwedLog::default(), Instant::now());
        for ticket in 1..=1000 {
            owed.set(ticket, log());
            owed.hand_over(&master, now).unwrap();
        }
        assert_eq!(received(&worker), [(Message::SwapLog, 1)]);
        assert_eq!(owed.due(), None, "its answer wakes the master");
        assert!(!owed.answered(1000, true, now), "that was never handed over");
        // It could not take it; the newer one is not kept from it for that.
        assert!(owed.answered(1, false, now));
        owed.hand_over(&master, now).unwrap();
        assert_eq!(received(&worker), [(Message::SwapLog, 1000)]);
        assert!(owed.answered(1000, true, now));
        owed.hand_over(&master, now + TRY_AGAIN).unwrap();
        assert_eq!(received(&worker), []);
    }

    #[test]
    fn a_log_that_could_not_be_taken_is_offered_again_after_a_second() {
        let (master, worker) = Channel::pair().unwrap();
        let (mut owed, now) = (OwedLog::default(), Instant::now());
        owed.set(7, log());
        for round in 0..3 {
            let now = now + round * TRY_AGAIN;
            owed.hand_over(&master, now).unwrap();
            assert_eq!(received(&worker), [(Message::SwapLog, 7)]);
            assert!(owed.answered(7, false, now));
            owed.hand_over(&master, now).unwrap();
            assert_eq!(received(&worker), []);
            assert_eq!(owed.due(), Some(now + TRY_AGAIN));
        }
    }

    #[test]
    fn nothing_is_owed_to_the_dead() {
        let (master, worker) = Channel::pair().unwrap();
        drop(worker);
        let mut owed = OwedLog::default();
        owed.set(1, log());
        owed.hand_over(&master, Instant::now()).unwrap();
        assert_eq!(owed.due(), None);
    }
}
