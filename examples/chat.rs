//! A chat: accounts in SQLite, a login, who is here, a timer; what each has said is saved.
//!
//! ```sh
//! cargo run -p chappe-examples --bin chat -- --foreground -c examples/chat.toml
//! chappe send --code 16 --body 'anna secret' --listen 1h   # logs in, and prints what is said for an hour
//! chappe bench --first '16:user{n} pass' --code 17 --body hello --expect any
//! ```
//!
//! Code 16 is a login, `user password`; the first one makes the account. 17 says a text to all
//! others in the room, which is a worker's own. Pushed: 18 what somebody said, 19 who is here.

use chappe::{
    Call, Client, CloseReason, Deny, Handle, Message, Outcome, Routes, Server, Service, StartError,
    Worker,
};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension};
use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, time::Duration};

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    database: PathBuf,
    tick_ms: u64,
}

struct Chat {
    database: Mutex<Connection>,
    /// Who is logged in, by the connection.
    room: Mutex<BTreeMap<u64, (String, Handle)>>,
}

/// The user is empty until the login; what was said before is in the database.
#[derive(Default)]
struct Seat {
    user: String,
    said: u32,
}

impl Service for Chat {
    type Config = Config;
    type State = Seat;

    fn start(worker: &Worker<Self>) -> Result<Self, StartError> {
        let database = Connection::open(&worker.config().database)?;
        database.busy_timeout(Duration::from_secs(5))?;
        let columns = "user TEXT PRIMARY KEY, password TEXT, said INTEGER NOT NULL DEFAULT 0";
        database.execute(&format!("CREATE TABLE IF NOT EXISTS account ({columns})"), ())?;
        worker.every(Duration::from_millis(worker.config().tick_ms), |chat, _worker| {
            let here: Vec<String> =
                chat.room.lock().values().map(|(user, _)| user.clone()).collect();
            chat.tell(0, 19, here.join(" ").as_bytes())
        });
        Ok(Self { database: Mutex::new(database), room: Mutex::default() })
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.blocking_before_admit(16, login).on(17, say);
    }

    fn connected(&self, _client: &Client) -> Result<Seat, Deny> {
        Ok(Seat::default())
    }

    /// Also runs for each connection at a graceful stop, and at a reload.
    fn closed(&self, client: &Client, seat: Seat, _why: CloseReason) {
        self.room.lock().remove(&client.id());
        let sql = "UPDATE account SET said = said + ?2 WHERE user = ?1";
        if let Err(error) = self.database.lock().execute(sql, (&seat.user, seat.said)) {
            log::error!("{} things that {} has said are lost: {error}", seat.said, seat.user);
        }
    }
}

impl Chat {
    /// Sends to all but one; who reads too slowly misses it.
    fn tell(&self, but: u64, code: u16, body: &[u8]) -> Outcome {
        let message = Message::new(code, body)?;
        for (_, (_, handle)) in self.room.lock().iter().filter(|(id, _)| **id != but) {
            let _ = handle.send_message(&message);
        }
        Ok(())
    }
}

fn login(chat: &Chat, seat: &mut Seat, call: &mut Call<'_, Chat>) -> Outcome {
    let named = std::str::from_utf8(call.body())?.split_once(' ').filter(|_| seat.user.is_empty());
    let (user, password) = named.ok_or_else(|| Deny::close("one user and password, please"))?;
    let database = chat.database.lock();
    let sql = "INSERT OR IGNORE INTO account (user, password) VALUES (?1, ?2)";
    database.execute(sql, (user, password))?;
    let sql = "SELECT said FROM account WHERE user = ?1 AND password = ?2";
    let said = database.query_row(sql, (user, password), |row| row.get::<_, u32>(0)).optional()?;
    let said = said.ok_or_else(|| Deny::close("wrong password"))?;
    user.clone_into(&mut seat.user);
    call.admit();
    drop(database);
    chat.room.lock().insert(call.client().id(), (seat.user.clone(), call.handle()));
    call.reply(16, said.to_string().as_bytes())
}

fn say(chat: &Chat, seat: &mut Seat, call: &mut Call<'_, Chat>) -> Outcome {
    seat.said += 1;
    chat.tell(call.client().id(), 18, &[seat.user.as_bytes(), b": ", call.body()].concat())?;
    call.reply(17, seat.said.to_string().as_bytes())
}

fn main() -> ExitCode {
    Server::of::<Chat>().name("chat").version(env!("CARGO_PKG_VERSION")).main()
}
