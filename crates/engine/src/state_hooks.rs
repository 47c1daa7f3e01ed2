//! How the hooks of a connection come and go: what a turn, the loop and an abort mean for
//! them.

use super::State;
use crate::effects::{Effects, Received};
use crate::inbox::Phase;
use crate::item::Item;
use crate::notice::Cause;
use crate::session::{Hook, HookCall};
use crate::state::Stage;

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
