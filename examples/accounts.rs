//! Accounts in SQLite: the register and login messages of the classic teaching design.
//!
//! ```sh
//! cargo run -p chappe-examples --bin accounts -- --foreground -c examples/accounts.toml
//! ```
//!
//! A request is a user name in 56 bytes and a password in 40, both UTF-8 and filled up with
//! zeros. Code 16 registers, code 17 logs in. The answer is the result, a big-endian u32
//! (0 done, 1 the name is taken, 2 wrong name or password), and the name as it came.
//!
//! In C++ such messages are structs, read from the buffer by a cast and sent by another one:
//! what the sender did not set, goes out as it happened to lie in memory, and a name without a
//! zero is read beyond its end. Here a field is a slice of known length, and an answer is
//! made of bytes that somebody wrote.
//!
//! The database is opened in `start`, after the fork: a connection of SQLite must not be used
//! by two processes. Both handlers are `blocking`, since a transaction waits for the disk.
//! (Passwords are stored as they come, to keep to the subject. Store a hash.)

use chappe::{
    Call, Client, Deny, HandlerError, Outcome, Routes, Server, Service, StartError, Worker,
};
use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, OptionalExtension};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const REGISTER: u16 = 16;
const LOGIN: u16 = 17;

const NAME_BYTES: usize = 56;
const PASSWORD_BYTES: usize = 40;

/// How long a transaction may wait for those of other workers.
const BUSY_TIME_MAX: Duration = Duration::from_secs(5);

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// A file; its folder must be writable for the workers' user.
    database: PathBuf,
}

struct Accounts {
    /// SQLite runs one statement at a time on a connection.
    database: Mutex<Connection>,
}

/// The first field of an answer.
#[derive(Clone, Copy)]
enum Answer {
    Done = 0,
    Taken = 1,
    Wrong = 2,
}

impl Service for Accounts {
    type Config = Config;
    type State = ();

    fn start(worker: &Worker<Self>) -> Result<Self, StartError> {
        let database = Connection::open(&worker.config().database)?;
        database.busy_timeout(BUSY_TIME_MAX)?;
        database.execute(
            "CREATE TABLE IF NOT EXISTS account (name TEXT PRIMARY KEY, password TEXT NOT NULL)",
            (),
        )?;
        Ok(Self { database: Mutex::new(database) })
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.blocking(REGISTER, register).blocking(LOGIN, login);
    }

    fn connected(&self, _client: &Client) -> Result<(), Deny> {
        Ok(())
    }
}

fn register(accounts: &Accounts, (): &mut (), call: &mut Call<'_, Accounts>) -> Outcome {
    let (name, password) = credentials(call.body())?;
    let sql = "INSERT INTO account (name, password) VALUES (?1, ?2)";
    let answer = match accounts.database.lock().execute(sql, (name, password)) {
        Ok(_) => Answer::Done,
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
            Answer::Taken
        }
        Err(error) => return Err(error.into()),
    };
    reply(call, REGISTER, answer)
}

fn login(accounts: &Accounts, (): &mut (), call: &mut Call<'_, Accounts>) -> Outcome {
    let (name, password) = credentials(call.body())?;
    let sql = "SELECT 1 FROM account WHERE name = ?1 AND password = ?2";
    let found = accounts.database.lock().query_row(sql, (name, password), |_| Ok(())).optional()?;
    reply(call, LOGIN, if found.is_some() { Answer::Done } else { Answer::Wrong })
}

/// Name and password of a request.
fn credentials(body: &[u8]) -> Result<(&str, &str), HandlerError> {
    if body.len() != NAME_BYTES + PASSWORD_BYTES {
        let text = format!("a request has {} bytes", NAME_BYTES + PASSWORD_BYTES);
        return Err(HandlerError::new(text));
    }
    let (name, password) = body.split_at(NAME_BYTES);
    Ok((text(name)?, text(password)?))
}

/// A field without the zeros at its end.
fn text(field: &[u8]) -> Result<&str, HandlerError> {
    let bytes = field.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let text = std::str::from_utf8(&field[..bytes])?;
    if text.is_empty() || text.contains('\0') {
        return Err(HandlerError::new("a field is empty, or has a zero in its middle"));
    }
    Ok(text)
}

fn reply(call: &mut Call<'_, Accounts>, code: u16, answer: Answer) -> Outcome {
    let mut body = [0; 4 + NAME_BYTES];
    body[..4].copy_from_slice(&(answer as u32).to_be_bytes());
    body[4..].copy_from_slice(&call.body()[..NAME_BYTES]);
    call.reply(code, &body)
}

fn main() -> ExitCode {
    Server::of::<Accounts>()
        .name("accounts")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Accounts in SQLite.")
        .main()
}
