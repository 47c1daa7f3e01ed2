//! What the threads of the tests' world do: those of the handlers, and who writes.

use super::*;

impl World {
    pub(super) fn turn(&mut self, event: Event) -> bool {
        // A handler that has taken a ticket does nothing else, and its turn ends.
        if self.has_deferred && !matches!(event, Event::Leave { handled: true, .. }) {
            return false;
        }
        // Nor has one that was submitted anything left to do.
        let is_left = matches!(event, Event::HandOver | Event::Leave { handled: false, .. });
        if self.has_submitted && is_left {
            return false;
        }
        let Some(item) = self.turn.take() else { return false };
        self.has_deferred = false;
        self.has_submitted = false;
        let mut done = Done::default();
        let mut rest = None;
        let is_handled = !matches!(event, Event::HandOver | Event::Leave { handled: false, .. });
        match item {
            Some(Item::Hook(hook)) if is_handled => {
                done.hook = Some(self.run_hook(hook, event));
            }
            Some(item) if is_handled => {
                let messages = item.messages();
                done = Done { messages, bytes: item.charged(), hook: None };
                self.handled += messages;
            }
            // Such a turn has messages of the loop's buffer.
            None if matches!(event, Event::Handle) => {
                self.turn = Some(None);
                return false;
            }
            other => rest = other,
        }
        let mut effects = Effects::default();
        match event {
            Event::Handle => {
                let item = self.state.next(done, &BOUNDS, &mut effects);
                self.turn = Some(item);
            }
            Event::HandOver => {
                let reply = self.reply();
                self.state.hand_over(reply, Room::Free, &BOUNDS, &mut effects);
                self.turn = Some(rest);
            }
            Event::Leave { replies, end, exhausted, .. } => {
                let replies = replies.then(|| self.reply());
                let end = end.then_some(Cause::HandlerPanicked);
                let leaving = Leaving { done, rest, replies, end, session: None };
                let total = if exhausted { Room::Exhausted } else { Room::Free };
                self.state.leave(leaving, total, &BOUNDS, &mut effects);
                // Behind the replies, which are queued or were never to be.
                self.check_submissions(&effects);
            }
            _ => unreachable!("events of a turn"),
        }
        self.carry_out(&effects, false);
        true
    }

    /// One whose turn ends the connection has denied it.
    fn run_hook(&mut self, hook: HookCall, event: Event) -> Hook {
        let is_denied = matches!(event, Event::Leave { end: true, .. });
        match hook {
            HookCall::Connected if is_denied => Hook::None,
            HookCall::Connected => {
                self.connected += 1;
                Hook::Connected
            }
            HookCall::Closed(_) => {
                self.closed += 1;
                Hook::None
            }
        }
    }

    pub(super) fn write(&mut self, event: Event) -> bool {
        let came = match event {
            Event::TakeReady => {
                if self.on_send_list == 0 {
                    return false;
                }
                self.on_send_list -= 1;
                let writer = self.state.take_ready();
                self.writer = self.writer.take().or(writer);
                return true;
            }
            Event::TakeBlocked => {
                let writer = self.state.take_blocked();
                let is_taken = writer.is_some();
                self.writer = self.writer.take().or(writer);
                self.seen = Self::see(&self.state);
                return is_taken;
            }
            Event::Settle(came) => came,
            _ => unreachable!("events of a writer"),
        };
        let Some(mut writer) = self.writer.take() else { return false };
        if writer.entries.is_empty() && came != Came::AllSent {
            // Replies of a turn of the loop's, which are in no entry: two bytes.
            if self.queued >= MESSAGES_MAX {
                self.writer = Some(writer);
                return false;
            }
            let entry = Entry::new((b"xy"[..].into(), 1));
            self.queued += 1;
            self.outbox_charged += entry.cost();
            writer.begin(entry, usize::from(came == Came::HalfSent));
            return self.settle(writer, came);
        }
        let (mut all, mut first) = (0, 0);
        while came == Came::AllSent && !writer.entries.is_empty() {
            all += usize::try_from(writer.advance(1)).expect("one");
        }
        if came == Came::HalfSent {
            first = usize::try_from(writer.advance(1)).expect("one");
        }
        self.sent += all + first;
        self.settle(writer, came)
    }

    fn settle(&mut self, writer: Writer, came: Came) -> bool {
        let flushed = match came {
            Came::AllSent => Flushed::All,
            Came::HalfSent if writer.entries.is_empty() => Flushed::All,
            Came::HalfSent => Flushed::ShareUsed,
            Came::NotSent => Flushed::SocketFull,
            Came::NoBuffers => Flushed::NoBuffers,
            Came::Broken => Flushed::Broken(io::Error::other("broken")),
        };
        let mut effects = Effects::default();
        self.state.settle(writer, &flushed, Room::Free, &BOUNDS, &mut effects);
        self.carry_out(&effects, false);
        true
    }
}
