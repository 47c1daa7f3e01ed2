//! From received chunks to handlers: inboxes, the run list, handler threads.
//!
//! A connection's inbox is on the run list at most once, and a handler thread
//! runs it for a *turn*: some messages, then the next connection. So the
//! messages of one connection are handled and answered in order, different
//! connections run in parallel, and no client keeps a thread.
//!
//! This module sees chunks and [`crate::handler::Serve`], not a protocol.

mod handler_thread;
mod inbox;
mod receive_half;
mod run_list;
mod turn;

pub use handler_thread::HandlerThread;
pub use inbox::{
    Discarded, Done, ITEM_COST, Inbox, InboxLimits, InboxView, Item, Left, Next, Notice, Pushed,
    Then,
};
pub use receive_half::{DispatchPath, ReceiveHalf};
pub use run_list::{RunList, Wake};
pub use turn::{
    Cut, OnLoop, TURN_BYTES_MAX, TURN_MESSAGES_MAX, TURN_TIME_MAX, run_turn, run_turn_directly,
    run_turn_on_loop,
};
