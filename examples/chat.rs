//! A chat with a login: a value for each connection, one for the worker, and hooks.
//!
//! ```sh
//! cargo run -p chappe-examples --bin chat -- --foreground -c examples/chat.toml
//! chappe send --code 16 --body 'anna secret' --listen 1h   # comes, and listens
//! chappe bench --first '16:ben hidden' --code 17 --body hello --expect any
//! ```
//!
//! Code 16 is a login, `user password`; nothing else is open before. Code 17 says a text to
//! all others and is answered with how many heard it. Code 18 is what somebody said, 19 that
//! somebody came, 20 that somebody left. A room is a worker's own: with more workers than one
//! there are as many rooms.

use chappe::{
    Call, Client, CloseReason, Deny, Handle, Message, Outcome, Routes, Server, Service, StartError,
    Worker,
};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::process::ExitCode;

const LOGIN: u16 = 16;
const SAY: u16 = 17;
const SAID: u16 = 18;
const CAME: u16 = 19;
const LEFT: u16 = 20;

/// The table `[application]`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// By user.
    passwords: BTreeMap<String, String>,
}

/// One in each worker.
struct Chat {
    passwords: BTreeMap<String, String>,
    /// Who is logged in, by the connection.
    room: Mutex<BTreeMap<u64, Handle>>,
}

/// One for each connection.
struct Seat {
    /// Empty until the login.
    user: String,
}

impl Service for Chat {
    type Config = Config;
    type State = Seat;

    fn start(worker: &Worker<Self>) -> Result<Self, StartError> {
        Ok(Self { passwords: worker.config().passwords.clone(), room: Mutex::default() })
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.before_admit(LOGIN, login).on(SAY, say);
    }

    fn connected(&self, _client: &Client) -> Result<Seat, Deny> {
        Ok(Seat { user: String::new() })
    }

    fn closed(&self, client: &Client, seat: Seat, _why: CloseReason) {
        if self.room.lock().remove(&client.id()).is_some() {
            // A name always fits a frame: it came in one.
            let _ = self.tell(client.id(), LEFT, seat.user.as_bytes());
        }
    }
}

impl Chat {
    /// Sends a message to all who are logged in but one; returns how many got it.
    fn tell(&self, but: u64, code: u16, body: &[u8]) -> Result<u32, chappe::HandlerError> {
        // Encoded once: all share the bytes.
        let message = Message::new(code, body)?;
        // A copy: nothing is sent while the lock is held.
        let room = self.room.lock().clone();
        let others = room.iter().filter(|(id, _)| **id != but);
        // Who has just left, or reads too slowly, misses it.
        let heard = others.filter(|(_, other)| other.send_message(&message).is_ok()).count();
        Ok(u32::try_from(heard).unwrap_or(u32::MAX))
    }
}

fn login(chat: &Chat, seat: &mut Seat, call: &mut Call<'_, Chat>) -> Outcome {
    let (user, password) = std::str::from_utf8(call.body())?
        .split_once(' ')
        .ok_or_else(|| Deny::close("a user and a password, please"))?;
    if chat.passwords.get(user).is_none_or(|right| right != password) {
        return Err(Deny::close("wrong user or password").into());
    }
    seat.user = user.to_owned();
    call.admit();
    chat.room.lock().insert(call.client().id(), call.handle());
    chat.tell(call.client().id(), CAME, user.as_bytes())?;
    call.reply(LOGIN, b"welcome")
}

fn say(chat: &Chat, seat: &mut Seat, call: &mut Call<'_, Chat>) -> Outcome {
    let text = [seat.user.as_bytes(), b": ", call.body()].concat();
    let heard = chat.tell(call.client().id(), SAID, &text)?;
    call.reply(SAY, heard.to_string().as_bytes())
}

fn main() -> ExitCode {
    Server::of::<Chat>()
        .name("chat")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A chat with a login.")
        .main()
}
