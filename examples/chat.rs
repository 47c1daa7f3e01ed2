//! A chat room: everybody who has joined gets what the others say.
//!
//! ```sh
//! cargo run --example chat -- --foreground --set worker_processes=1
//! chappe send --code 17 --body 'hello'      # in a second terminal: says hello
//! ```
//!
//! Code 16 joins, code 17 says something to all who have joined and is answered with
//! how many that were; what is said arrives as code 18. A room is a worker's own: with
//! more workers than one there are as many rooms.

use chappe::{Handle, Message, Outcome, Replies, Request, SendError, Server};
use parking_lot::Mutex;
use std::process::ExitCode;

const JOIN: u16 = 16;
const SAY: u16 = 17;
const SAID: u16 = 18;

/// Handles are weak: who leaves is noticed at the next message. Empty in the master,
/// so each worker has its own after the fork.
static ROOM: Mutex<Vec<Handle>> = Mutex::new(Vec::new());

fn main() -> ExitCode {
    Server::new().on(JOIN, join).on(SAY, say).main()
}

fn join(request: &Request<'_>, replies: &mut Replies) -> Outcome {
    let handle = request.handle();
    let mut room = ROOM.lock();
    // Who joins twice hears everything once; who is gone makes room.
    room.retain(|other| other.is_open() && other.id() != handle.id());
    room.push(handle);
    replies.send(JOIN, b"")
}

fn say(request: &Request<'_>, replies: &mut Replies) -> Outcome {
    // Encoded once: all who hear it share the bytes.
    let message = Message::new(SAID, request.body())?;
    let room = ROOM.lock().clone();
    let mut heard = 0_u32;
    for handle in &room {
        match handle.send_message(&message) {
            Ok(()) => heard += 1,
            // Too much is queued for this one: it misses the message.
            Err(SendError::Full) => {}
            // It is gone, or was too slow and is told goodbye; the next join clears up.
            Err(_) => {}
        }
    }
    replies.send(SAY, heard.to_string().as_bytes())
}
