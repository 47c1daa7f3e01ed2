//! A chat: accounts in SQLite, a login, rooms over all workers, a timer; what each has said is saved.
//!
//! ```sh
//! cargo run -p chappe-examples --bin chat -- --foreground -c examples/chat.toml
//! chappe send --code 16 --body 'anna secret lobby' --listen 1h   # enters, and prints what is said
//! chappe bench --first '16:user{n} pass room{n}' --code 17 --body hello --expect any
//! ```
//!
//! Code 16 is a login, `user password room`; the first one makes the account. 17 says a text to the
//! room, oneself too. Published there: 18 what somebody said, 19 who comes and goes; and to all
//! rooms: 20 how much has been said and saved.

use chappe::{
    Call, Client, CloseReason, Deny, Outcome, Routes, Server, Service, StartError, Worker,
};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension};
use std::{path::PathBuf, process::ExitCode, time::Duration};

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    database: PathBuf,
    tick_ms: u64,
}

struct Chat {
    worker: Worker<Self>,
    database: Mutex<Connection>,
}

/// Empty until the login; what was said before is in the database.
#[derive(Default)]
struct Seat {
    user: String,
    room: String,
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
        // One is enough: what it publishes reaches the clients of all workers.
        if worker.number() == 0 {
            worker.every(Duration::from_millis(worker.config().tick_ms), |chat, worker| {
                let sql = "SELECT coalesce(sum(said), 0) FROM account";
                let said: u32 = chat.database.lock().query_row(sql, (), |row| row.get(0))?;
                worker.publish("$all", 20, said.to_string().as_bytes())
            });
        }
        Ok(Self { worker: worker.clone(), database: Mutex::new(database) })
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.blocking_before_admit(16, login).on(17, say);
    }

    fn connected(&self, _client: &Client) -> Result<Seat, Deny> {
        Ok(Seat::default())
    }

    /// Also runs for each connection at a graceful stop, and at a reload.
    fn closed(&self, _client: &Client, seat: Seat, _why: CloseReason) {
        if seat.user.is_empty() {
            return;
        }
        let sql = "UPDATE account SET said = said + ?2 WHERE user = ?1";
        if let Err(error) = self.database.lock().execute(sql, (&seat.user, seat.said)) {
            log::error!("{} things that {} has said are lost: {error}", seat.said, seat.user);
        }
        // If there is no room for it, nobody hears it.
        let _ = self.worker.publish(&seat.room, 19, format!("{} goes", seat.user).as_bytes());
    }
}

fn login(chat: &Chat, seat: &mut Seat, call: &mut Call<'_, Chat>) -> Outcome {
    let words: Vec<&str> = std::str::from_utf8(call.body())?.split(' ').collect();
    let ([user, password, room], true) = (&words[..], seat.user.is_empty()) else {
        return Err(Deny::close("a user, a password and a room, please").into());
    };
    let database = chat.database.lock();
    let sql = "INSERT OR IGNORE INTO account (user, password) VALUES (?1, ?2)";
    database.execute(sql, (user, password))?;
    let sql = "SELECT said FROM account WHERE user = ?1 AND password = ?2";
    let said = database.query_row(sql, (user, password), |row| row.get::<_, u32>(0)).optional()?;
    let said = said.ok_or_else(|| Deny::close("wrong password"))?;
    // With a $ it is the service's: no client can speak there for another one.
    let room = format!("$room.{room}");
    call.subscribe(&room)?;
    call.subscribe("$all")?;
    call.publish(&room, 19, format!("{user} comes").as_bytes())?;
    (seat.user, seat.room) = ((*user).to_owned(), room);
    call.admit();
    call.reply(16, said.to_string().as_bytes())
}

fn say(_chat: &Chat, seat: &mut Seat, call: &mut Call<'_, Chat>) -> Outcome {
    seat.said += 1;
    call.publish(&seat.room, 18, &[seat.user.as_bytes(), b": ", call.body()].concat())?;
    call.reply(17, seat.said.to_string().as_bytes())
}

fn main() -> ExitCode {
    Server::of::<Chat>().name("chat").version(env!("CARGO_PKG_VERSION")).main()
}
