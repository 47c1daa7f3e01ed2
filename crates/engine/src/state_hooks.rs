//! How the hooks of a connection come and go: what a turn, the loop and an abort mean for
//! them.

use super::State;
use crate::effects::{Effects, Received, Rejected};
use crate::engine::Bounds;
use crate::inbox::Phase;
use crate::item::Item;
use crate::notice::Cause;
use crate::session::{Hook, HookCall, Session};
use crate::state::Stage;
use crate::writer::Entry;

impl State {
    /// The connection can carry messages: the application's hook is called for it. With a
    /// gate the peer has yet to be admitted.
    pub(crate) fn connect(&mut self, has_gate: bool) -> Received {
        debug_assert!(self.stage == Stage::Open && self.hook == Hook::None);
        self.hook = Hook::Connecting;
        self.is_admitted = !has_gate;
        self.inbox.add(Item::Hook(HookCall::Connected));
        self.inbox.leave_empty()
    }

    /// What a turn had of the application comes back, with what the turn has changed.
    #[inline]
    pub(super) fn take_session(&mut self, session: Option<Box<Session>>, effects: &mut Effects) {
        if let Some(session) = &session {
            self.dialect = session.dialect;
            if session.is_admitted && !self.is_admitted {
                self.is_admitted = true;
                // A clock of the loop's stops.
                effects.call = true;
            }
        }
        self.session = session;
    }

    /// Queues a message that was encoded for this dialect, with another one in front of it if there
    /// is one; otherwise like [`State::push`].
    pub(crate) fn push_as(
        &mut self,
        dialect: u8,
        (head, entry): (Option<Entry>, Entry),
        bounds: &Bounds,
    ) -> Result<Effects, Rejected> {
        if self.dialect != dialect {
            return Err(Rejected::Dialect);
        }
        let Some(head) = head else { return self.push(entry, bounds) };
        self.has_room(0, head.cost() + entry.cost(), bounds)?;
        let mut effects = Effects::default();
        self.outbox.append(head, &mut effects);
        self.outbox.append(entry, &mut effects);
        Ok(effects)
    }

    /// A hook was called, and has come to this.
    #[cold]
    pub(super) fn note_hook(&mut self, hook: Hook, effects: &mut Effects) {
        self.hook = hook;
        // The loop waits for the hook before it closes the socket.
        effects.call |= self.is_over();
    }

    /// A connection that is over and was connected: `closed` is the last that its inbox has.
    pub(super) fn owe_closed(&mut self, effects: &mut Effects) {
        let is_due = self.stage == Stage::Aborted && self.hook == Hook::Connected;
        if is_due && self.inbox.phase != Phase::Running {
            self.hook = Hook::Closing;
            let cause = self.cause.unwrap_or(Cause::PeerReset);
            self.inbox.add(Item::Hook(HookCall::Closed(cause)));
            effects.enqueue |= self.inbox.leave_empty() == Received::StartTurn;
        }
    }
}
