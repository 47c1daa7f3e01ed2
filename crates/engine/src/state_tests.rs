//! The state over every legal combination and every event: where each leads, that nothing
//! illegal is reached, that each account is right, and that nobody waits for a call that
//! does not come.

#[path = "state_tests_explore.rs"]
mod explore;
#[path = "state_tests_threads.rs"]
mod threads;
#[path = "state_tests_waits.rs"]
mod waits;

use super::*;
use crate::deferral::Number;
use crate::item::Chunk;
use crate::session::HookCall;
use crate::{Engine, writer};
use std::io::{self, IoSlice};
use std::sync::LazyLock;
use waits::Waits;

#[derive(Debug)]
pub(super) struct NoSocket;

impl Socket for NoSocket {
    fn send(&self, _: &[IoSlice<'_>]) -> io::Result<usize> {
        unreachable!("the test plays the writer")
    }
}

/// Two messages fill the inbox, and so do two entries the outbox.
pub(super) const BOUNDS: Bounds = Bounds {
    inbox_messages_max: 2,
    inbox_bytes_max: 10_000,
    outbox_high: ENTRY_COST + 1,
    outbox_low: ENTRY_COST / 2,
};

/// How many messages are received or queued in one run at most, or there would be no end.
const MESSAGES_MAX: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// Only as the first.
    Connect,
    Receive {
        exhausted: bool,
    },
    EndInput {
        notice: bool,
    },
    /// By another thread, which calls the loop.
    EndByThread,
    Look,
    Begin {
        exhausted: bool,
    },
    BeginUnqueued,
    Handle,
    HandOver,
    Leave {
        replies: bool,
        handled: bool,
        end: bool,
        exhausted: bool,
    },
    Resume,
    Wait(Waits),
    Push,
    DropBacklog,
    TakeReady,
    TakeBlocked,
    Settle(Came),
    Linger,
    Abort,
}

/// How a flush came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Came {
    AllSent,
    HalfSent,
    NotSent,
    NoBuffers,
    Broken,
}

fn events() -> Vec<Event> {
    use Event::*;
    let mut all = vec![
        Connect,
        EndInput { notice: false },
        EndInput { notice: true },
        EndByThread,
        Look,
        BeginUnqueued,
        Handle,
        HandOver,
        Resume,
        Push,
        DropBacklog,
        TakeReady,
        TakeBlocked,
        Linger,
        Abort,
    ];
    for exhausted in [false, true] {
        all.extend([Receive { exhausted }, Begin { exhausted }]);
        for bits in 0..8 {
            let is = |bit: u32| bits & (1 << bit) != 0;
            let (replies, handled, end) = (is(0), is(1), is(2));
            all.push(Leave { replies, handled, end, exhausted });
        }
    }
    all.extend(waits::all().map(Wait));
    all.extend(
        [Came::AllSent, Came::HalfSent, Came::NotSent, Came::NoBuffers, Came::Broken].map(Settle),
    );
    all
}

/// A state with all that other threads and lists hold of it.
struct World {
    state: State,
    /// The running turn: what it has taken and not handled.
    turn: Option<Option<Item>>,
    writer: Option<Writer>,
    on_run_list: usize,
    on_send_list: usize,
    waits_for_total: bool,
    is_called: bool,
    /// What the loop saw last, as far as it acts on it.
    seen: Seen,
    received: usize,
    handled: usize,
    queued: usize,
    sent: usize,
    lost: usize,
    rejected: usize,
    inbox_charged: usize,
    outbox_charged: usize,
    steps: usize,
    /// The handler of the running turn has taken a ticket.
    has_deferred: bool,
    /// Messages that the running turn has submitted, and whether that of its item is one.
    together: usize,
    has_submitted: bool,
    /// One that was submitted: its answer may come too late.
    submitted: Option<Number>,
    /// The last ticket, if it is not used.
    ticket: Option<Number>,
    numbers: Number,
    /// The wait that the loop keeps the clock of.
    clock: Option<Number>,
    /// How often each hook has run and was content.
    connected: usize,
    closed: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    reads: bool,
    is_blocked: Option<bool>,
    is_sent: bool,
    is_over: bool,
}

/// The combination, and what else decides what happens next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    stage: Stage,
    phase: &'static str,
    seat: &'static str,
    paused: (bool, bool),
    items: usize,
    in_turn: u32,
    waiting: usize,
    flight: (usize, bool),
    drops_at_return: bool,
    turn_has: Option<&'static str>,
    hook: Hook,
    waits: (Option<bool>, bool, bool, bool),
    parts: Vec<(u32, usize)>,
    submits: (usize, bool),
    is_fresh: bool,
    lists: (usize, usize, bool),
    is_called: bool,
    seen: Seen,
    totals: (usize, usize),
}

fn seat_name(state: &State) -> &'static str {
    match state.outbox.seat {
        Seat::Idle(_) => "idle",
        Seat::Ready(_) => "ready",
        Seat::Sending => "sending",
        Seat::Blocked(..) => "blocked",
        Seat::Closed => "closed",
    }
}

fn phase_name(state: &State) -> &'static str {
    match state.inbox.phase {
        Phase::Empty => "empty",
        Phase::Queued => "queued",
        Phase::Running => "running",
        Phase::Stalled(_) => "stalled",
        Phase::Waiting => "waiting",
    }
}

/// The table at the head of the module.
fn is_legal(stage: Stage, phase: &str, seat: &str) -> bool {
    match stage {
        Stage::Open => seat != "closed",
        Stage::Answering => phase != "empty" && seat != "closed",
        _ if matches!(phase, "stalled" | "waiting") => false,
        Stage::Flushing => seat != "closed",
        Stage::Lingering => seat == "idle",
        Stage::Aborted => matches!(seat, "sending" | "closed"),
    }
}

/// What is pushed is shared with others, who have their own part of the total.
fn one_byte_for_many() -> Entry {
    static ENGINE: LazyLock<Arc<Engine>> = LazyLock::new(|| writer::tests::engine(1 << 40));
    Entry::shared((b"x"[..].into(), 1), &ENGINE)
}

fn one_byte() -> Entry {
    Entry::new((b"x"[..].into(), 1))
}

impl World {
    fn new() -> Self {
        let state = State::new(Arc::new(NoSocket));
        let seen = Self::see(&state);
        Self {
            state,
            turn: None,
            writer: None,
            on_run_list: 0,
            on_send_list: 0,
            waits_for_total: false,
            is_called: false,
            seen,
            received: 0,
            handled: 0,
            queued: 0,
            sent: 0,
            lost: 0,
            rejected: 0,
            inbox_charged: 0,
            outbox_charged: 0,
            steps: 0,
            has_deferred: false,
            together: 0,
            has_submitted: false,
            submitted: None,
            ticket: None,
            numbers: 0,
            clock: None,
            connected: 0,
            closed: 0,
        }
    }

    fn see(state: &State) -> Seen {
        let view = state.view();
        Seen {
            reads: view.stage == Stage::Open && !view.is_paused,
            is_blocked: view.blocked.map(|why| why == Blocked::Socket),
            is_sent: view.stage == Stage::Flushing && view.is_idle,
            is_over: view.stage == Stage::Aborted && state.is_over(),
        }
    }

    fn key(&self) -> Key {
        let State { stage, inbox, outbox, .. } = &self.state;
        Key {
            stage: *stage,
            phase: phase_name(&self.state),
            seat: seat_name(&self.state),
            paused: (self.state.inbox_pauses, self.state.outbox_pauses),
            items: inbox.items.len(),
            in_turn: inbox.in_turn,
            waiting: outbox.entries.len(),
            flight: (outbox.bytes, outbox.sent_bytes > 0),
            drops_at_return: self.state.drops_at_return,
            turn_has: self.turn.as_ref().map(|item| match item {
                None => "messages",
                Some(Item::Hook(_)) => "hook",
                Some(_) => "item",
            }),
            hook: self.state.hook,
            waits: self.waits(),
            parts: self.parts().into_iter().map(|(_, answers, early)| (answers, early)).collect(),
            submits: (self.together, self.has_submitted),
            is_fresh: self.steps == 0,
            lists: (self.on_run_list, self.on_send_list, self.waits_for_total),
            is_called: self.is_called,
            seen: self.seen,
            totals: (self.received, self.queued),
        }
    }

    fn item(&mut self) -> Item {
        let item = Item::from(Chunk::new(b"m", 1));
        self.inbox_charged += item.charged();
        self.received += 1;
        item
    }

    fn reply(&mut self) -> Entry {
        let entry = one_byte();
        self.outbox_charged += entry.cost();
        self.queued += 1;
        entry
    }

    fn note_push(&mut self) {
        self.outbox_charged += ENTRY_COST;
        self.queued += 1;
    }

    fn carry_out(&mut self, effects: &Effects, on_loop: bool) {
        self.on_run_list += usize::from(effects.enqueue);
        self.on_send_list += usize::from(effects.list);
        self.waits_for_total |= effects.wait_for_total;
        self.is_called |= effects.call && !on_loop;
        self.lost += usize::try_from(effects.lost).expect("few");
        self.rejected += usize::try_from(effects.rejected).expect("few");
        self.note_submissions(effects);
        self.inbox_charged -= effects.inbox_released;
        self.outbox_charged -= effects.outbox_released;
    }

    /// False if the event cannot happen now.
    fn apply(&mut self, event: Event) -> bool {
        let is_applied = self.attempt(event);
        self.steps += usize::from(is_applied);
        is_applied
    }

    /// Whether the event would be one more of its kind than the world has.
    fn is_enough(&self, event: Event) -> bool {
        match event {
            Event::Connect => self.steps > 0,
            Event::Receive { .. }
            | Event::EndInput { notice: true }
            | Event::EndByThread
            | Event::Wait(Waits::Defer | Waits::Submit { .. })
            | Event::BeginUnqueued => self.received >= MESSAGES_MAX,
            Event::Wait(Waits::Answer { replies: true, .. }) => {
                self.queued + self.early() >= MESSAGES_MAX
            }
            Event::Push | Event::HandOver | Event::Leave { replies: true, .. } => {
                self.queued >= MESSAGES_MAX
            }
            _ => false,
        }
    }

    fn attempt(&mut self, event: Event) -> bool {
        let room = |exhausted| if exhausted { Room::Exhausted } else { Room::Free };
        match event {
            _ if self.is_enough(event) => return false,
            Event::Connect | Event::Receive { .. } | Event::EndInput { .. } | Event::Look => {
                self.by_loop(event);
            }
            Event::EndByThread => {
                let last = Some(self.item());
                let received = self.state.end_input(Cause::ByApplication, last);
                self.note_received(received);
                self.is_called |= received != Received::Discarded;
            }
            Event::Begin { exhausted } => {
                if self.on_run_list == 0 {
                    return false;
                }
                self.on_run_list -= 1;
                let mut effects = Effects::default();
                let item = self.state.begin(room(exhausted), &BOUNDS, &mut effects);
                self.carry_out(&effects, false);
                self.turn = item.map(|(item, _)| Some(item));
            }
            Event::BeginUnqueued => {
                let Some((writer, _)) = self.state.begin_unqueued() else { return false };
                self.turn = Some(None);
                self.writer = self.writer.take().or(writer);
            }
            Event::Resume => {
                if !std::mem::take(&mut self.waits_for_total) {
                    return false;
                }
                let effects = self.state.resume();
                self.carry_out(&effects, false);
            }
            Event::Handle | Event::HandOver | Event::Leave { .. } => return self.turn(event),
            Event::Wait(event) => return self.wait(event),
            Event::TakeReady | Event::TakeBlocked | Event::Settle(_) => return self.write(event),
            Event::Push => match self.state.push(one_byte_for_many(), &BOUNDS) {
                Ok(effects) => {
                    self.note_push();
                    self.carry_out(&effects, false);
                }
                Err(_) => return false,
            },
            Event::DropBacklog => {
                let Some(effects) = self.state.drop_backlog(Some(one_byte()), Cause::TooSlow)
                else {
                    return false;
                };
                _ = self.reply();
                self.carry_out(&effects, false);
            }
            Event::Linger => {
                let view = self.state.view();
                if view.stage != Stage::Flushing || !view.is_idle {
                    return false;
                }
                self.state.linger();
                self.seen = Self::see(&self.state);
            }
            Event::Abort => {
                let mut effects = Effects::default();
                self.state.abort(Cause::Kicked, &mut effects);
                self.carry_out(&effects, true);
                self.seen = Self::see(&self.state);
            }
        }
        true
    }

    fn by_loop(&mut self, event: Event) {
        match event {
            Event::Connect => {
                let received = self.state.connect(false);
                self.note_received(received);
            }
            Event::Receive { exhausted } => {
                let item = self.item();
                let received = self.state.receive(
                    item,
                    if exhausted { Room::Exhausted } else { Room::Free },
                    &BOUNDS,
                );
                self.note_received(received);
                self.seen = Self::see(&self.state);
            }
            Event::EndInput { notice } => {
                let last = notice.then(|| self.item());
                let received = self.state.end_input(Cause::Idle, last);
                if received != Received::Discarded || notice {
                    self.note_received(received);
                }
                self.seen = Self::see(&self.state);
            }
            Event::Look => {
                self.is_called = false;
                self.clock = self.awaited();
                self.seen = Self::see(&self.state);
            }
            _ => unreachable!("events of the loop"),
        }
    }

    fn note_received(&mut self, received: Received) {
        match received {
            Received::StartTurn => self.on_run_list += 1,
            Received::Added => {}
            Received::Discarded => {
                self.inbox_charged -= crate::item::ITEM_COST + 1;
                self.lost += 1;
            }
        }
    }

    /// Bytes in the outbox that the total is not charged for with each entry.
    fn shared(&self) -> usize {
        let of = |entries: &Entries| entries.iter().map(Entry::unsent_shared).sum::<usize>();
        let in_flight = |writer: &Writer| of(&writer.entries) + writer.sent.shared;
        of(&self.state.outbox.entries) + self.writer.as_ref().map_or(0, in_flight)
    }

    fn check(&self, path: &[Event]) {
        let State { stage, inbox, outbox, .. } = &self.state;
        let (phase, seat) = (phase_name(&self.state), seat_name(&self.state));
        assert!(is_legal(*stage, phase, seat), "{stage:?} {phase} {seat} after {path:?}");
        assert_eq!(self.on_run_list, usize::from(phase == "queued"), "run list after {path:?}");
        assert!(self.on_send_list >= usize::from(seat == "ready"), "send list after {path:?}");
        assert_eq!(self.turn.is_some(), phase == "running", "turn after {path:?}");
        assert_eq!(self.writer.is_some(), seat == "sending", "writer after {path:?}");
        let stalls_for_total = inbox.phase == Phase::Stalled(Backlog::Total);
        assert!(self.waits_for_total || !stalls_for_total, "not resumed after {path:?}");
        let stalls_for_own = inbox.phase == Phase::Stalled(Backlog::Own);
        assert!(!stalls_for_own || outbox.bytes > BOUNDS.outbox_low, "stalled after {path:?}");
        assert!(!self.state.outbox_pauses || outbox.bytes > 0, "paused for good after {path:?}");
        let is_open = *stage <= Stage::Answering;
        let is_closing = self.state.hook == Hook::Closing && phase == "queued";
        let kept = usize::from(is_closing);
        assert!(is_open || inbox.items.len() == kept && inbox.bytes == 0, "kept after {path:?}");
        let owed = usize::from(self.state.hook >= Hook::Connected);
        assert_eq!(self.connected, self.closed + owed, "hooks after {path:?}");
        assert_eq!(self.inbox_charged, inbox.bytes as usize, "inbox total after {path:?}");
        let held = outbox.bytes + self.early_cost();
        let charged = self.outbox_charged + self.shared();
        assert_eq!(charged, held, "outbox total after {path:?}");
        // What was received is handled, lost, or still here; so is what was queued.
        let in_turn = inbox.in_turn as usize;
        let here = if is_open { inbox.messages as usize } else { in_turn };
        let queued = self.queued - self.sent - self.rejected;
        let received = self.received - self.handled - here;
        assert!(self.lost <= received + queued && self.lost >= received, "lost after {path:?}");
        if seat == "closed" {
            assert_eq!(self.lost, received + queued, "lost after {path:?}");
        }
        let now = Self::see(&self.state);
        assert!(self.is_called || now == self.seen, "not called after {path:?}");
        self.check_waits(path);
    }
}

#[test]
fn an_idle_connection_owns_no_queue() {
    let mut world = World::new();
    let owned = |world: &World| {
        let State { inbox, outbox, .. } = &world.state;
        (inbox.items.owns_memory(), outbox.entries.owns_memory())
    };
    let turn = [
        Event::Begin { exhausted: false },
        Event::Leave { replies: true, handled: true, end: false, exhausted: false },
    ];
    for event in [[Event::Receive { exhausted: false }; 2], turn].concat() {
        assert!(world.apply(event), "{event:?}");
        assert_eq!(owned(&world), (world.state.inbox.items.len() == 2, false), "{event:?}");
    }
    for event in turn {
        assert!(world.apply(event), "{event:?}");
    }
    assert_eq!(owned(&world), (false, true));
    for event in [Event::TakeReady, Event::Settle(Came::AllSent)] {
        assert!(world.apply(event), "{event:?}");
    }
    assert_eq!((seat_name(&world.state), owned(&world)), ("idle", (false, false)));
}
