//! The data path of one Chappe worker, without sockets, processes and wire formats.
//!
//! ```text
//! event loop: read, frame ──▶ inbox ──▶ turn: open, handle, reply ──▶ outbox ──▶ writer ──▶ socket
//!                              │         on a handler thread                      send thread
//!                              └───────▶ on the event loop ─────────────────────▶ event loop
//! ```
//!
//! A connection is a [`Mailbox`]: its whole state under one lock. The threads of a worker
//! hand connections to each other by three lists, each for one reason:
//!
//! | list | says | read by |
//! |---|---|---|
//! | run list | something is to be handled | handler threads |
//! | send list, with a permit of the semaphore | something is to be sent | the send thread |
//! | call list, with a write to an eventfd | the state has changed | the event loop |
//!
//! What may happen to a connection, and who owns what in each state, stands at the head
//! of `state.rs`. Every hand-over is model-checked: `tests/loom.rs` runs this code through
//! each order in which the threads can meet.

mod batch;
mod budget;
mod call_list;
mod calls;
mod deferral;
mod effects;
mod engine;
mod flush;
mod inbox;
mod item;
mod mailbox;
mod notice;
mod outbox;
mod peer;
mod protocol;
mod queue;
mod run_list;
mod send_list;
mod session;
mod share;
mod state;
pub mod sync;
mod turn;
mod writer;

pub use batch::{BATCH_BYTES_MAX, Batch, Mark};
pub use budget::{Budget, Resume, Room};
pub use call_list::{CallList, Called};
pub use deferral::{Deferred, Ending, Ticket};
pub use effects::{Received, Rejected};
pub use engine::{Aside, Engine, Limits, SlowReader, Work};
pub use flush::{FLUSH_BYTES_MAX, Flushed, IO_SLICES_MAX, Socket};
pub use item::{Chunk, ITEM_COST, Item};
pub use mailbox::{Aborted, Mailbox, Names, Next, Place};
pub use notice::{Cause, Goodbye, Notice, Problem};
pub use outbox::Blocked;
pub use peer::Peer;
pub use protocol::{
    Asks, BodyTooLong, CODE_COMMAND, CODE_SLOW_COMMAND, Ended, Event, Framed, Host, Login, Opened,
    Progress, Protocol, PushForm, Refusal, Rest, TopicKind, TopicQuery,
};
pub use run_list::RunList;
pub use send_list::{CONNECTIONS_PER_LOOK, SendList, Wakeup};
pub use session::{HookCall, Hooks, Session};
pub use state::{Stage, View};
pub use turn::{
    Found, Message, Pace, QUICK_TIME_MAX, Serve, Served, Source, TURN_BYTES_MAX, TURN_MESSAGES_MAX,
    TURN_TIME_MAX, Turned, Turns,
};
pub use writer::{ENTRY_COST, Entry};
